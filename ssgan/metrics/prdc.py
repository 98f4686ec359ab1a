"""Precision, recall, density and coverage of generated features, by nearest neighbours."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from ssgan.metrics.features import check_features

NEIGHBOURS = 5  # k of every metric here that the project reports


def compute_prdc(real: np.ndarray, fake: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """Computes precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    real, fake: features (N, F) and (M, F). Neighbourhoods are Euclidean balls to the k-th nearest neighbour.
    """
    real, fake = check_features(real, fake, k + 1)
    cross = cdist(real, fake)
    radius_real = np.sort(cdist(real, real), axis=1)[:, k]  # column 0 is the volume itself
    radius_fake = np.sort(cdist(fake, fake), axis=1)[:, k]
    inside = cross < radius_real[:, None]
    return {
        "precision": float(inside.any(0).mean()),
        "recall": float((cross < radius_fake[None]).any(1).mean()),
        "density": float(inside.sum() / (k * len(fake))),
        "coverage": float((cross.min(1) < radius_real).mean()),
    }
