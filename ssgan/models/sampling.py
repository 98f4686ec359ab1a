"""Generates volumes from seeds: a seed gives the same latent in every command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssgan.models.conditioning import Condition
from ssgan.models.masks import decode_masks
from ssgan.models.networks import Generator


def latents(seeds: Sequence[int], z_dim: int) -> Tensor:
    """Draws (len(seeds), z_dim) float32 on the CPU; each row from its seed alone, as NVIDIA's generate.py does."""
    rows = [np.random.RandomState(seed).randn(z_dim) for seed in seeds]
    return torch.from_numpy(np.stack(rows)).float()


def class_shares(class_counts: Sequence[int], count: int) -> Tensor | None:
    """Returns class numbers (count,) in the proportions of `class_counts`; None without classes."""
    if not class_counts:
        return None
    bounds = torch.tensor(class_counts, dtype=torch.float64).cumsum(0)
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * bounds[-1]
    return torch.searchsorted(bounds, quantiles, right=True)


class Pairs(NamedTuple):
    """Volumes (N, D, H, W) float32 and their masks, class numbers (N, D, H, W) uint8; None without masks."""

    volumes: np.ndarray
    masks: np.ndarray | None


def synthesise(G: Generator, z: Tensor, **options: Any) -> np.ndarray:
    """Generates volumes (N, D, H, W) float32 from latents z (N, z_dim); options as of `synthesise_pairs`."""
    return synthesise_pairs(G, z, **options).volumes


@torch.no_grad()
def synthesise_pairs(
    G: Generator, z: Tensor, *, batch: int, truncation: float = 1.0, noise: str = "const", noise_seed: int = 0,
    c: Tensor | None = None, centre: Tensor | None = None,
) -> Pairs:  # fmt: skip
    """Generates volumes from latents z (N, z_dim), `batch` at a time, with their masks where the network gives them.

    A 2D network with `depth_places` gives slices at index 0, 1, .. along depth in turn.

    c: labels, for a network with classes. centre: (w_dim,) that truncation moves towards; default w_avg.
    """
    device = next(G.parameters()).device
    generator = torch.Generator(device).manual_seed(noise_seed)
    slice_index = torch.arange(len(z)) % G.cfg.depth_places[1] if G.cfg.is_flat and G.cfg.depth_places else None
    groups = z.split(batch)
    volumes, masks = [], []
    for part, condition in zip(groups, Condition(c, slice_index).split([len(g) for g in groups]), strict=True):
        condition = condition.map(lambda t: t.to(device))
        w = G.mapping(part.to(device), condition.labels)
        if truncation != 1.0:
            w = (G.mapping.w_avg if centre is None else centre).lerp(w, truncation)
        ws = w[:, None].expand(-1, G.num_ws, -1)
        images = G.synthesis(ws, noise, generator, condition.slice_index)
        volumes.append(images[:, 0].cpu())
        if G.cfg.mask_classes:
            masks.append(decode_masks(images).cpu())
    return Pairs(torch.cat(volumes).numpy(), torch.cat(masks).numpy() if masks else None)


@torch.no_grad()
def class_mean(G: Generator, number: int, count: int = 4096) -> Tensor:
    """Returns the mean w (w_dim,) of a class over `count` latents, always the same ones."""
    parameter = next(G.parameters())
    z = torch.randn(count, G.cfg.z_dim, generator=torch.Generator().manual_seed(0)).to(parameter)
    return G.mapping(z, torch.full((count,), number, device=parameter.device)).mean(0)
