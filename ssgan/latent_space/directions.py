"""Principal directions of w, as GANSpace finds them (Härkönen et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssgan.latent_space.files import LatentError
from ssgan.latent_space.styles import map_latents
from ssgan.models.networks import Generator


@dataclass(frozen=True)
class Directions:
    """Principal directions of w.

    mean (w_dim,). components (K, w_dim) of length 1. std (K,): standard deviation of w along each. share (K,): the part
    of the variance of w that each explains.
    """

    mean: Tensor
    components: Tensor
    std: Tensor
    share: Tensor


def principal_directions(G: Generator, count: int, samples: int, seed: int, label: int | None = None) -> Directions:
    """Computes the PCA of `samples` many w in float64, and gives `count` directions in float32.

    label: the class of the w, for a network with classes. A direction's sign is such that its entry of largest size is
    positive, so that a rerun gives the same.

    Raises:
        LatentError: more directions than dimensions, or too few samples.
    """
    w_dim = G.cfg.w_dim
    if not 1 <= count <= w_dim:
        raise LatentError(f"--components: w has {w_dim} dimensions, so 1 to {w_dim} directions; got {count}")
    if samples <= w_dim:
        raise LatentError(f"--samples: expected more than the {w_dim} dimensions of w; got {samples}")
    z = torch.randn(samples, G.cfg.z_dim, generator=torch.Generator().manual_seed(seed))
    w = map_latents(G, z, label=label).double().cpu()
    mean = w.mean(0)
    variance, vectors = torch.linalg.eigh((w - mean).T @ (w - mean) / (samples - 1))
    variance, components = variance.flip(0).clamp(min=0), vectors.T.flip(0)
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    components = components * largest.sign()
    share = variance / variance.sum()
    return Directions(mean.float(), components[:count].float(), variance[:count].sqrt().float(), share[:count].float())
