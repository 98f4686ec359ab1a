"""Confidence intervals of metrics, by resampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def halves(real: np.ndarray, fake: np.ndarray, repeats: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws random halves of both sets without replacement, `repeats` times, for `interval`.

    The delete-half jackknife: a half of N rows varies about the whole set as the set does about its distribution.
    Drawing with replacement would put copies into a set, which spoils distances to nearest neighbours.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(repeats):
        first, second = (np.sort(rng.permutation(len(x))[: len(x) // 2]) for x in (real, fake))
        yield real[first], fake[second]


def replicates(real: np.ndarray, fake: np.ndarray, repeats: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Draws bootstrap replicates of both sets (N rows with replacement; Efron 1979), `repeats` times, for `interval`.

    Only the spread of the replicates is used. Their percentiles would be wrong for distances between sets: a
    replicate holds about 63 % of the rows, some twice, so its Frechet distance and KID lie above the set's own.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(repeats):
        first, second = (rng.integers(0, len(x), len(x)) for x in (real, fake))
        yield real[first], fake[second]


def interval(value: float, drawn: Sequence[float]) -> list[float]:
    """Gives the 95 % interval of a metric: its value +- 1.96 standard deviations of its values on resampled sets."""
    spread = float(np.std(drawn))
    return [value - 1.96 * spread, value + 1.96 * spread]


def mean_interval(values: np.ndarray, repeats: int, seed: int) -> list[float]:
    """Gives the 95 % percentile bootstrap interval of the mean of independent values (N,), as of disjoint pairs."""
    rng = np.random.Generator(np.random.PCG64(seed))
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(repeats)]
    return [float(x) for x in np.quantile(means, (0.025, 0.975))]
