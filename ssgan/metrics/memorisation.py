"""Checks whether generated volumes are copies of training volumes, by distances to nearest neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

DIGITS = 5
CLOSEST = 8  # pairs that are named
REFERENCE_ROWS = 500


def significant(value: float) -> float:
    """Rounds to five significant digits: beyond that, float32 sums of an extractor depend on the number of threads."""
    return float(f"{value:.{DIGITS}g}")


def pairwise_distances(a: np.ndarray, b: np.ndarray, block: int = 64) -> np.ndarray:
    """Computes Euclidean distances (len(a), len(b)) in float64, reading few rows of a memory map at once."""
    found = np.empty((len(a), len(b)))
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            found[i : i + block, j : j + block] = cdist(a[i : i + block], b[j : j + block])
    return found


def memorisation(fake: np.ndarray, train: np.ndarray, held: np.ndarray | None) -> dict[str, Any]:
    """Compares the distances of generated rows to their nearest training row with those of held-out rows.

    Both are compared with all training rows, so the counts need not agree. Without held-out rows, the reference is the
    distance of training rows (500 of them, evenly spaced, where there are more) to the nearest other one.

    Returns:
        median_to_training, median_reference, their ratio (about 1 without copies); below_5_percent, the fraction of
        generated rows nearer than the reference's 5 % quantile (about 0.05 without copies); closest, the eight
        closest pairs as [generated row, training row, distance].
    """
    nearest = pairwise_distances(fake, train)
    to_train = nearest.min(1)
    if held is None:
        rows = np.linspace(0, len(train) - 1, min(len(train), REFERENCE_ROWS)).astype(int)
        own = pairwise_distances(train[rows], train)
        own[np.arange(len(rows)), rows] = np.inf
        reference = own.min(1)
    else:
        reference = pairwise_distances(held, train).min(1)
    order = np.argsort(to_train, kind="stable")
    return {
        "median_to_training": significant(np.median(to_train)),
        "median_reference": significant(np.median(reference)),
        "ratio": significant(np.median(to_train) / max(float(np.median(reference)), 1e-12)),
        "below_5_percent": significant((to_train < np.quantile(reference, 0.05)).mean()),
        "closest": [[int(i), int(nearest[i].argmin()), significant(to_train[i])] for i in order[:CLOSEST]],
    }
