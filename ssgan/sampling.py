"""Volumes from seeds: the same latents wherever a generator is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssgan.networks import Generator


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """(len(seeds), z_dim) float32 on the CPU; each row from its seed alone, as NVIDIA's generate.py draws it."""
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).float()


@torch.no_grad()
def synthesise(
    G: Generator, z: Tensor, *, batch: int, truncation: float = 1.0, noise: str = "const", noise_seed: int = 0
) -> np.ndarray:
    """Volumes (N, D, H, W) float32 of latents z (N, z_dim), `batch` at a time (channel 0)."""
    device = next(G.parameters()).device
    generator = torch.Generator(device).manual_seed(noise_seed)
    volumes = [G(part.to(device), truncation, noise, generator)[:, 0].cpu() for part in z.split(batch)]
    return torch.cat(volumes).numpy()
