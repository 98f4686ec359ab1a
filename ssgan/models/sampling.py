"""Volumes from seeds: the same latents wherever a generator is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssgan.models.networks import Generator


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """(len(seeds), z_dim) float32 on the CPU; each row from its seed alone, as NVIDIA's generate.py draws it."""
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).float()


def class_shares(class_counts: Sequence[int], count: int) -> Tensor | None:
    """(count,) class numbers, each class as often as its share of `class_counts` says; None without classes."""
    if not class_counts:
        return None
    bounds = torch.tensor(class_counts, dtype=torch.float64).cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + 0.5) / count * bounds[-1]
    return torch.searchsorted(bounds, places, right=True)


@torch.no_grad()
def synthesise(
    G: Generator, z: Tensor, *, batch: int, truncation: float = 1.0, noise: str = "const", noise_seed: int = 0,
    c: Tensor | None = None, centre: Tensor | None = None,
) -> np.ndarray:  # fmt: skip
    """Volumes (N, D, H, W) float32 of latents z (N, z_dim), `batch` at a time (channel 0).

    Slices by a 2D network that knows places along depth: one at each place in turn, from the first on.

    c: their labels, for a network with classes. centre: (w_dim,) that truncation moves towards; default the running
    mean over all classes.
    """
    device = next(G.parameters()).device
    generator = torch.Generator(device).manual_seed(noise_seed)
    labels = [None] * len(z) if c is None else c.split(batch)
    places: Sequence[Tensor | None] = [None] * len(z)
    if G.cfg.is_flat and G.cfg.depth_places:
        places = (torch.arange(len(z)) % G.cfg.depth_places[1]).split(batch)
    volumes = []
    for part, label, place in zip(z.split(batch), labels, places):
        w = G.mapping(part.to(device), None if label is None else label.to(device))
        if truncation != 1.0:
            w = (G.mapping.w_avg if centre is None else centre).lerp(w, truncation)
        ws = w[:, None].expand(-1, G.num_ws, -1)
        place = None if place is None else place.to(device)
        volumes.append(G.synthesis(ws, noise, generator, place)[:, 0].cpu())
    return torch.cat(volumes).numpy()


@torch.no_grad()
def class_mean(G: Generator, number: int, count: int = 4096) -> Tensor:
    """(w_dim,): mean w of a class over `count` latents, always the same ones."""
    parameter = next(G.parameters())
    z = torch.randn(count, G.cfg.z_dim, generator=torch.Generator().manual_seed(0)).to(parameter)
    return G.mapping(z, torch.full((count,), number, device=parameter.device)).mean(0)
