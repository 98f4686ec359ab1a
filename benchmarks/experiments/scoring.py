"""Measures generated volumes against training and held-out volumes, each metric beside its floor.

A Frechet distance of n against n volumes is biased upwards when n is small, so every one of them has the distance of
real to real volumes at the same counts beside it; a perfect generator reaches that, not 0.

frechet_held: groups of as many generated volumes as are held out, each against the held-out ones, and the mean over the
    groups. Floor: groups of training volumes in their place.
frechet_train: half as many generated as training volumes against each half of the training volumes. Floor: the halves
    against each other.

Where the package deepbet is installed, the metrics of features are taken of its features too: a conclusion stands only
where both agree.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ssgan.metrics import distances, voxels
from ssgan.metrics.extractors import deepbet
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.features import Extractor
from ssgan.metrics.memorisation import memorisation
from ssgan.metrics.prdc import compute_prdc
from ssgan.models.networks import Generator
from ssgan.models.sampling import latents, synthesise
from ssgan.utils.errors import UserError

NEIGHBOURS, SEED, BATCH = 5, 0, 8
BETTER = {
    "frechet_held": "lower", "frechet_train": "lower", "kid": "lower", "precision": "higher", "recall": "higher",
    "msssim": "as floor", "copies": "about 1",
}  # fmt: skip


@dataclass(frozen=True)
class Reference:
    """Real volumes (N, D, H, W) in [-1, 1]: those trained on and those held out.

    beside: the same with another extractor, if there is one.
    """

    train: np.ndarray
    held: np.ndarray
    extractor: Extractor
    beside: Reference | None = None

    @property
    def protocol(self) -> str:
        """Describes the metrics in one line."""
        n, m, half = len(self.held), self.count, len(self.train) // 2
        scales, window = voxels.msssim_scales(self.train.shape[1:])
        return (
            f"{m} volumes of G_ema, latents of seeds 0..{m - 1}, random noise, no truncation; "
            f"{self.extractor.protocol}; frechet_held {n} against {n}, mean of {self.groups}; frechet_train {half} "
            f"against {half}, mean of 2; KID cubic, unbiased, {m} against {n}; precision and recall {n} against {n}, "
            f"k={NEIGHBOURS}, mean of {self.groups}; MS-SSIM of disjoint pairs, {scales} scales, window {window}; "
            "copies: median voxel distance to the nearest training volume over that of held-out volumes"
        )

    @property
    def groups(self) -> int:
        return max(1, len(self.train) // len(self.held))

    @property
    def count(self) -> int:
        """Counts the generated volumes that are needed."""
        return max(self.groups * len(self.held), len(self.train) // 2)

    @cached_property
    def order(self) -> np.ndarray:
        return np.random.Generator(np.random.PCG64(SEED)).permutation(len(self.train))

    @cached_property
    def features(self) -> tuple[np.ndarray, np.ndarray]:
        return self.extractor(self.train)[self.order], self.extractor(self.held)

    def floors(self) -> dict[str, float]:
        """Measures training volumes as if they were generated."""
        return self.feature_floors() | {"msssim": float(voxels.pairwise_msssim(self.train).mean()), "copies": 1.0}

    def feature_floors(self) -> dict[str, float]:
        """Gives the floors of the metrics of features."""
        train, held = self.features
        half = len(train) // 2
        n = min(len(train), self.groups * len(held))
        result = {"frechet_held": self._grouped(distances.frechet, train[:n])}
        result["frechet_train"] = distances.frechet(train[:half], train[half : 2 * half])
        result["kid"] = distances.kid(held, train)
        return result | {name: self._grouped(_prdc(name), train[:n]) for name in ("precision", "recall")}

    def quick(self, fake: np.ndarray) -> dict[str, float]:
        """Measures the distances of generated volumes (count, D, H, W), for the points of a curve."""
        return self._distances(self.extractor(fake))

    def whole(self, fake: np.ndarray) -> dict[str, float]:
        """Measures all metrics of generated volumes (count, D, H, W)."""
        flat = [x.reshape(len(x), -1) for x in (fake, self.train, self.held)]
        of_voxels = {"msssim": float(voxels.pairwise_msssim(fake).mean()), "copies": memorisation(*flat)["ratio"]}
        return self.in_features(fake) | of_voxels

    def in_features(self, fake: np.ndarray) -> dict[str, float]:
        """Measures the metrics of features."""
        features, n = self.extractor(fake), self.groups * len(self.held)
        found = {name: self._grouped(_prdc(name), features[:n]) for name in ("precision", "recall")}
        return self._distances(features) | found

    def other_features(self, fake: np.ndarray) -> dict[str, dict[str, Any]]:
        """Gives a record's entry `other_features`: extractor -> protocol, floors and metrics; {} without another."""
        if self.beside is None:
            return {}
        found = {"protocol": self.beside.extractor.protocol, "floors": self.beside.feature_floors()}
        return {self.beside.extractor.name: found | {"final": self.beside.in_features(fake)}}

    def _distances(self, features: np.ndarray) -> dict[str, float]:
        train, held = self.features
        half = len(train) // 2
        halves = [distances.frechet(part, features[:half]) for part in (train[:half], train[half : 2 * half])]
        n = self.groups * len(held)
        result = {
            "frechet_held": self._grouped(distances.frechet, features[:n]),
            "frechet_train": float(np.mean(halves)),
        }
        return result | {"kid": distances.kid(held, features)}

    def _grouped(self, measure, features: np.ndarray) -> float:
        held = self.features[1]
        n = min(len(held), len(features))
        parts = [features[i : i + n] for i in range(0, len(features) - n + 1, n)]
        return float(np.mean([measure(held[:n], part) for part in parts]))


def _prdc(name: str):
    return lambda real, fake: compute_prdc(real, fake, NEIGHBOURS)[name]


def reference(train: np.ndarray, held: np.ndarray, slice_axis: str = "axial") -> Reference:
    """Makes the reference of random3d, and beside it that of deepbet where it is installed."""
    both = np.array(train), np.array(held)
    beside = Reference(*both, deepbet.Deepbet(slice_axis)) if deepbet.is_installed() else None
    return Reference(*both, Random3d(), beside)


@torch.no_grad()
def generated(G: Generator, count: int) -> np.ndarray:
    """Generates (count, D, H, W) in [-1, 1], with the same latents for every generator of one z_dim.

    Raises UserError where a voxel is not finite; clipping would hide an infinity.
    """
    z = latents(range(count), G.cfg.z_dim)
    volumes = synthesise(G, z, batch=BATCH, noise="random")
    if not np.isfinite(volumes).all():
        raise UserError("the generator gives values that are not finite")
    return np.clip(volumes, -1, 1)


def digest(*parts: str) -> str:
    """Hashes what decides a result to a short name."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
