"""Features of volumes: what an extractor is, and how its output is arranged for the metrics.

Features are (N, F), or (N, views, slices, F) of a network that looks at slices in several planes (views).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ssgan.utils.errors import UserError


class Extractor(Protocol):
    """Turns volumes (N, D, H, W) in [-1, 1] into float64 features.

    protocol: how, in one line. checksum: SHA-256 of the weights.
    """

    name: str
    protocol: str
    checksum: str

    def __call__(self, volumes: np.ndarray) -> np.ndarray: ...


def views(features: np.ndarray) -> list[np.ndarray]:
    """Splits features into samples (rows, F) for each view; every slice of a volume is a row."""
    if features.ndim == 2:
        return [features]
    return [features[:, view].reshape(-1, features.shape[3]) for view in range(features.shape[1])]


def per_volume(features: np.ndarray) -> np.ndarray:
    """Gives one row per volume, (N, F'): the mean over its slices, the views side by side.

    For metrics by nearest neighbours: with a row per slice, another slice of the same volume would be the nearest.
    """
    return features if features.ndim == 2 else features.mean(2).reshape(len(features), -1)


def check_features(real: np.ndarray, fake: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Gives both sets (N, F) and (M, F) as float64.

    Raises:
        UserError: other shapes, fewer than `least` rows, or values that are not finite.
    """
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(f"features: expected (N, F) and (M, F); got real {real.shape} and fake {fake.shape}")
    for name, values in (("real", real), ("fake", fake)):
        if len(values) < least:
            raise UserError(f"{name}: expected at least {least} volumes for this metric; got {len(values)}")
        if not np.isfinite(values).all():
            raise UserError(f"{name}: the features hold NaN or infinite values; check the volumes that they come from")
    return real, fake
