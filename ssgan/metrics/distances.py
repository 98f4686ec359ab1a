"""Numbers that compare two sets of feature vectors (N, F), in float64: Frechet distance, KID, precision and kin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from ssgan.utils.errors import UserError


def check_features(real: np.ndarray, fake: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64. Raises UserError for other shapes, too few rows, or values that are not finite."""
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1]:
        raise UserError(f"features: expected (N, F) and (M, F); got real {real.shape} and fake {fake.shape}")
    for name, values in (("real", real), ("fake", fake)):
        if len(values) < least:
            raise UserError(f"{name}: expected at least {least} volumes for this metric; got {len(values)}")
        if not np.isfinite(values).all():
            raise UserError(f"{name}: the features hold NaN or infinite values; look at the volumes they come from")
    return real, fake


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """|mu1 - mu2|^2 + Tr(S1 + S2 - 2 sqrt(S1 S2)), covariances over N - 1 (Heusel et al. 2017).

    With centred data A, B the eigenvalues of S1 S2 are the squared singular values of A B^T / sqrt((N-1)(M-1)), so the
    trace of the root is that matrix's nuclear norm: exact with fewer samples than dimensions, and no complex roots.
    """
    real, fake = check_features(real, fake)
    a, b = real - real.mean(0), fake - fake.mean(0)
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    cross = a @ b.T if len(a) + len(b) <= 2 * a.shape[1] else np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T
    root = np.linalg.svd(cross, compute_uv=False).sum()
    mean = np.sum((real.mean(0) - fake.mean(0)) ** 2)
    return float(max(0.0, mean + np.sum(a**2) + np.sum(b**2) - 2 * root))


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Unbiased MMD^2 with kernel (x.y / F + 1)^3 (Binkowski et al. 2018), one block of all volumes; may be below 0."""
    real, fake = check_features(real, fake)
    n, m, dims = len(real), len(fake), real.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dims + 1) ** 3

    rr, ff = kernel(real, real), kernel(fake, fake)
    within = (rr.sum() - np.trace(rr)) / (n * (n - 1)) + (ff.sum() - np.trace(ff)) / (m * (m - 1))
    return float(within - 2 * kernel(real, fake).mean())


def mmd_linear(real: np.ndarray, fake: np.ndarray, batch: int = 8) -> float:
    """Biased MMD^2 with the linear kernel x.y / F, the mean over batches in order (the last part batch is left out)."""
    real, fake = check_features(real, fake)
    batch = min(batch, len(real), len(fake))
    count = min(len(real), len(fake)) // batch * batch
    means = [x[:count].reshape(-1, batch, x.shape[1]).mean(1) for x in (real, fake)]
    return float(np.mean((means[0] - means[1]) ** 2))


def prdc(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), density, coverage (Naeem et al. 2020), Euclidean, k neighbours."""
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


def halves(real: np.ndarray, fake: np.ndarray, repeats: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`repeats` random halves of both sets, drawn without replacement, for `interval`.

    The delete-half jackknife: a half drawn from N varies about the whole as the whole does about the truth. Drawing
    with replacement would put copies into a set, which distances to nearest neighbours take for memorisation.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(repeats):
        first, second = (np.sort(rng.permutation(len(x))[: len(x) // 2]) for x in (real, fake))
        yield real[first], fake[second]


def replicates(real: np.ndarray, fake: np.ndarray, repeats: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`repeats` bootstrap replicates of both sets (N rows with replacement; Efron 1979), for `interval`.

    Only the spread of the replicates is used. Their percentiles would be wrong for distances between sets: a
    replicate holds about 63 % of the rows, some twice, so its Frechet distance and KID lie above the set's own.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    for _ in range(repeats):
        first, second = (rng.integers(0, len(x), len(x)) for x in (real, fake))
        yield real[first], fake[second]


def interval(value: float, drawn: Sequence[float]) -> list[float]:
    """95 % interval of a metric: its value +- 1.96 standard deviations over what it is for halves or replicates."""
    spread = float(np.std(drawn))
    return [value - 1.96 * spread, value + 1.96 * spread]


def mean_interval(values: np.ndarray, repeats: int, seed: int) -> list[float]:
    """95 % percentile bootstrap interval of the mean of independent values (N,), such as of disjoint pairs."""
    rng = np.random.Generator(np.random.PCG64(seed))
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(repeats)]
    return [float(x) for x in np.quantile(means, (0.025, 0.975))]
