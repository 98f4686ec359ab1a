"""Latents and styles of a generator: mapping, interpolation, style mixing and moves of w.

z (N, z_dim) is drawn from a seed; w (N, w_dim) is the mapping network's output; ws (N, num_ws, w_dim) holds one w per
layer of the synthesis network. Levels count from 0, the coarsest: a level owns the styles of its convolutions, the last
one also that of its image layer (the other image layers take the first style of the next level, as in StyleGAN2).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

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
    """Maps z (N, z_dim) to w (N, w_dim), on the generator's device.

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
    """Goes along the great circle from a to b, each (dim,): points (T, dim) at the fractions t (T,) (Shoemake 1985).

    The length changes linearly. z is Gaussian and so lies near a sphere of radius sqrt(dim); a chord would leave it.

    Raises:
        LatentError: a latent has length zero, or the two are opposite.
    """
    length_a, length_b = a.norm(), b.norm()
    if not length_a > 0 or not length_b > 0:
        raise LatentError("slerp: a latent of length zero has no direction")
    unit_a, unit_b = a / length_a, b / length_b
    # From chords, not from the dot product: its arccosine has no digits left for small angles.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(), (unit_a + unit_b).norm())
    if angle > math.pi - PARALLEL:
        raise LatentError(
            "slerp: the two latents are opposite; no great circle between them is the shortest; give another seed"
        )
    t = t[:, None]
    if angle < PARALLEL:
        direction = unit_a.lerp(unit_b, t)
    else:
        direction = (torch.sin((1 - t) * angle) * unit_a + torch.sin(t * angle) * unit_b) / torch.sin(angle)
    return direction * length_a.lerp(length_b, t)


def interpolate(
    G: Generator, z: Tensor, steps: int, space: str, truncation: float = 1.0, label: int | None = None
) -> Tensor:
    """Interpolates from each of z (N, z_dim) to the next: w (N - 1, steps + 1, w_dim), both ends included.

    space: "z" goes along great circles and maps every point, "w" goes straight between the mapped ends.
    """
    t = torch.linspace(0, 1, steps + 1)
    if space == "z":
        paths = [map_latents(G, slerp(a, b, t), truncation, label=label) for a, b in itertools.pairwise(z)]
        return torch.stack(paths)
    w = map_latents(G, z, truncation, label=label)
    return torch.stack([a.lerp(b, t.to(w.device)[:, None]) for a, b in itertools.pairwise(w)])


def broadcast(G: Generator, w: Tensor) -> Tensor:
    """Repeats w (..., w_dim) for every layer: ws (..., num_ws, w_dim)."""
    return w.unsqueeze(-2).expand(*w.shape[:-1], G.num_ws, w.shape[-1])


def level_slices(G: Generator) -> list[slice]:
    """Gives the range of layers in ws that each level owns, coarse to fine; together they cover all layers."""
    slices, first = [], 0
    for block in G.synthesis.blocks:
        slices.append(slice(first, first + block.num_conv))
        first += block.num_conv
    slices[-1] = slice(slices[-1].start, G.num_ws)
    return slices


def level_size(G: Generator, level: int) -> tuple[int, ...]:
    """Gives the size (D, H, W) of a level's feature maps."""
    size = G.cfg.base
    for scale in G.cfg.scales[:level]:
        size = tuple(n * s for n, s in zip(size, scale, strict=True))
    return size


def parse_levels(text: str | None, G: Generator) -> list[int]:
    """ "0-1,3" -> [0, 1, 3]; None -> all. Raises LatentError, which lists the levels and their sizes."""
    count = len(level_slices(G))
    if not text:
        return list(range(count))
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or not int(match[1]) <= int(match[2] or match[1]) < count:
            sizes = "; ".join(f"{k}: {'x'.join(map(str, level_size(G, k)))}" for k in range(count))
            raise LatentError(
                f"--levels: expected numbers and ranges such as 0-1 among (D x H x W) {sizes}; got {text!r}"
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(found))


def mix(G: Generator, ws: Tensor, other: Tensor, levels: Sequence[int]) -> Tensor:
    """Replaces the styles of `levels` in ws by those of `other`; both broadcast to (..., num_ws, w_dim)."""
    mixed = ws.expand(torch.broadcast_shapes(ws.shape, other.shape)).clone()
    slices = level_slices(G)
    for level in levels:
        mixed[..., slices[level], :] = other[..., slices[level], :]
    return mixed


def sweep(G: Generator, ws: Tensor, step: Tensor, amounts: Tensor, levels: Sequence[int]) -> Tensor:
    """Moves ws (num_ws, w_dim) by amounts (T,) times step (w_dim,), at `levels` only: (T, num_ws, w_dim)."""
    moved = ws + amounts[:, None, None] * step
    return mix(G, ws[None], moved, levels)
