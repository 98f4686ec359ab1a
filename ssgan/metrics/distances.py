"""Distances between two sets of feature vectors (N, F), in float64: Frechet distance, KID and linear MMD."""

from __future__ import annotations

import numpy as np

from ssgan.metrics.features import check_features


def frechet(real: np.ndarray, fake: np.ndarray) -> float:
    """Computes |mu1 - mu2|^2 + Tr(S1 + S2 - 2 sqrt(S1 S2)) with covariances over N - 1 (Heusel et al. 2017).

    With centred data A, B the eigenvalues of S1 S2 are the squared singular values of A B^T / sqrt((N-1)(M-1)), so the
    trace of the root is that matrix's nuclear norm. This is exact with fewer samples than dimensions and has no complex
    roots.
    """
    real, fake = check_features(real, fake)
    a, b = real - real.mean(0), fake - fake.mean(0)
    a, b = a / np.sqrt(len(a) - 1), b / np.sqrt(len(b) - 1)
    cross = a @ b.T if len(a) + len(b) <= 2 * a.shape[1] else np.linalg.qr(a, "r") @ np.linalg.qr(b, "r").T
    root = np.linalg.svd(cross, compute_uv=False).sum()
    mean = np.sum((real.mean(0) - fake.mean(0)) ** 2)
    return float(max(0.0, mean + np.sum(a**2) + np.sum(b**2) - 2 * root))


def kid(real: np.ndarray, fake: np.ndarray) -> float:
    """Computes the unbiased MMD^2 with the kernel (x.y / F + 1)^3 (Binkowski et al. 2018), in one block of all rows.

    It may be below 0.
    """
    real, fake = check_features(real, fake)
    n, m, dims = len(real), len(fake), real.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / dims + 1) ** 3

    rr, ff = kernel(real, real), kernel(fake, fake)
    within = (rr.sum() - np.trace(rr)) / (n * (n - 1)) + (ff.sum() - np.trace(ff)) / (m * (m - 1))
    return float(within - 2 * kernel(real, fake).mean())


def mmd_linear(real: np.ndarray, fake: np.ndarray, batch: int = 8) -> float:
    """Computes the biased MMD^2 with the kernel x.y / F as the mean over batches of rows in order.

    Rows that do not fill a batch are left out.
    """
    real, fake = check_features(real, fake)
    batch = min(batch, len(real), len(fake))
    count = min(len(real), len(fake)) // batch * batch
    means = [x[:count].reshape(-1, batch, x.shape[1]).mean(1) for x in (real, fake)]
    return float(np.mean((means[0] - means[1]) ** 2))
