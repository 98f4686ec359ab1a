"""Ways through a generator's latent space: interpolation, style mixing, truncation, principal directions of w.

z (N, z_dim) is what a seed draws; w (N, w_dim) what the mapping makes of it; ws (N, num_ws, w_dim) one w per layer of
the synthesis. Levels count from 0, the coarsest: a level owns the styles of its convolutions, the last one also that
of its image layer (the other image layers take the first style of the level above, as in StyleGAN2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssgan.latent_space.files import LatentError
from ssgan.models.networks import Generator
from ssgan.models.sampling import class_mean

PARALLEL = 1e-4  # radians: below, an arc is a chord to float32


@torch.no_grad()
def map_latents(
    G: Generator, z: Tensor, truncation: float = 1.0, batch: int = 4096, label: int | None = None
) -> Tensor:
    """z (N, z_dim) -> w (N, w_dim), on the generator's device.

    label: the class, for a network with classes; truncation then moves towards the mean of the class.
    """
    device = next(G.parameters()).device

    def mapped(part: Tensor) -> Tensor:
        c = None if label is None else torch.full((len(part),), label, device=device)
        return G.mapping(part.to(device), c)

    w = torch.cat([mapped(part) for part in z.split(batch)])
    if truncation == 1.0:
        return w
    return (G.mapping.w_avg if label is None else class_mean(G, label)).lerp(w, truncation)


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Along the great circle from a to b, each (dim,), at the shares t (T,) -> (T, dim); the length changes linearly.

    z is Gaussian and so near a sphere of radius sqrt(dim); a chord would cut through where no z is (Shoemake 1985).
    """
    length_a, length_b = a.norm(), b.norm()
    if not length_a > 0 or not length_b > 0:
        raise LatentError("slerp: a latent of length zero has no direction")
    unit_a, unit_b = a / length_a, b / length_b
    # From chords, not from the dot product: its arccosine has no digits left for small angles.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())
    if angle > math.pi - PARALLEL:
        raise LatentError("slerp: the two latents are opposite; no great circle is the shortest. Take another seed")
    t = t[:, None]
    if angle < PARALLEL:
        direction = unit_a.lerp(unit_b, t)
    else:
        direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return direction * length_a.lerp(length_b, t)


def interpolate(
    G: Generator, z: Tensor, steps: int, space: str, truncation: float = 1.0, label: int | None = None
) -> Tensor:
    """From each of z (N, z_dim) to the next: w (N - 1, steps + 1, w_dim), both ends included.

    space: "z" goes along great circles and maps every point, "w" goes straight between the mapped ends.
    """
    t = torch.linspace(0, 1, steps + 1)
    if space == "z":
        paths = [map_latents(G, slerp(a, b, t), truncation, label=label) for a, b in itertools.pairwise(z)]
        return torch.stack(paths)
    w = map_latents(G, z, truncation, label=label)
    return torch.stack([a.lerp(b, t.to(w.device)[:, None]) for a, b in itertools.pairwise(w)])


def broadcast(G: Generator, w: Tensor) -> Tensor:
    """w (..., w_dim) -> ws (..., num_ws, w_dim)."""
    return w.unsqueeze(-2).expand(*w.shape[:-1], G.num_ws, w.shape[-1])


def level_slices(G: Generator) -> list[slice]:
    """The part of ws that each level owns, coarse to fine; together they are all of it."""
    slices, first = [], 0
    for block in G.synthesis.blocks:
        slices.append(slice(first, first + block.num_conv))
        first += block.num_conv
    slices[-1] = slice(slices[-1].start, G.num_ws)
    return slices


def mix(G: Generator, ws: Tensor, other: Tensor, levels: Sequence[int]) -> Tensor:
    """ws with the styles of `levels` taken from `other`; both broadcast to (..., num_ws, w_dim)."""
    mixed = ws.expand(torch.broadcast_shapes(ws.shape, other.shape)).clone()
    slices = level_slices(G)
    for level in levels:
        mixed[..., slices[level], :] = other[..., slices[level], :]
    return mixed


@dataclass(frozen=True)
class Directions:
    """Principal directions of w. mean (w_dim,), components (K, w_dim) of length 1, std (K,): the standard deviation of
    w along each; share (K,): of the variance of w that each explains."""

    mean: Tensor
    components: Tensor
    std: Tensor
    share: Tensor


def principal_directions(G: Generator, count: int, samples: int, seed: int, label: int | None = None) -> Directions:
    """PCA of `samples` many w (Härkönen et al. 2020, GANSpace, for StyleGAN), in float64, float32 results.

    label: the class whose w they are, for a network with classes.

    Each direction's sign is such that its entry of largest size is positive, so that a rerun is the same.
    """
    w_dim = G.cfg.w_dim
    if not 1 <= count <= w_dim:
        raise LatentError(f"count: w has {w_dim} dimensions, so 1 to {w_dim} directions; got {count}")
    if samples <= w_dim:
        raise LatentError(f"samples: expected more than the {w_dim} dimensions of w; got {samples}")
    z = torch.randn(samples, G.cfg.z_dim, generator=torch.Generator().manual_seed(seed))
    w = map_latents(G, z, label=label).double().cpu()
    mean = w.mean(0)
    variance, vectors = torch.linalg.eigh((w - mean).T @ (w - mean) / (samples - 1))
    variance, components = variance.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    share = variance / variance.sum()
    return Directions(mean.float(), components[:count].float(), variance[:count].sqrt().float(), share[:count].float())


def sweep(G: Generator, ws: Tensor, step: Tensor, amounts: Tensor, levels: Sequence[int]) -> Tensor:
    """ws (num_ws, w_dim) moved by amounts (T,) times step (w_dim,), at `levels` only: (T, num_ws, w_dim)."""
    moved = ws + amounts[:, None, None] * step
    return mix(G, ws[None], moved, levels)
