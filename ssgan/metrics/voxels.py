"""Voxel statistics: MS-SSIM between pairs of volumes, and distances of histograms, spectra and mean profiles."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance

from ssgan.utils.errors import UserError

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW, SIGMA, C1, C2 = 7, 1.5, 0.01**2, 0.03**2


def msssim_scales(shape: tuple[int, ...]) -> tuple[int, int]:
    """Gives (scales, window): as many of 5 scales as have room for a window of 7; below 7 voxels a smaller odd one."""
    side = min(shape)
    window = WINDOW if side >= WINDOW else (side - 1) // 2 * 2 + 1
    scales = 1
    while scales < len(WEIGHTS) and side // 2**scales >= window >= 3:
        scales += 1
    return scales, window


def ms_ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes MS-SSIM (Wang et al. 2003), (N,) float64, of volumes (N, D, H, W) in [-1, 1], scaled to [0, 1].

    Gaussian window without padding, block means of 2 between scales, the weights of the first scales divided by their
    sum. A negative contrast term counts as zero, since its power is not real.
    """
    if a.shape != b.shape or a.ndim != 4:
        raise UserError(f"ms_ssim: expected two arrays of one shape (N, D, H, W); got {a.shape} and {b.shape}")
    scales, window = msssim_scales(a.shape[1:])
    weights = torch.tensor(WEIGHTS[:scales], dtype=torch.float64)
    weights /= weights.sum()
    line = torch.exp(-((torch.arange(window, dtype=torch.float64) - window // 2) ** 2) / (2 * SIGMA**2))
    line /= line.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        for axis in range(3):
            extent = [1, 1, 1]
            extent[axis] = window
            x = F.conv3d(x, line.view(1, 1, *extent))
        return x

    result = []
    for u, v in zip(a, b, strict=True):
        x, y = (torch.from_numpy((np.asarray(w, np.float64) + 1) / 2)[None, None] for w in (u, v))
        value = torch.ones((), dtype=torch.float64)
        for scale in range(scales):
            mx, my, xx, yy, xy = blur(torch.cat([x, y, x * x, y * y, x * y]))
            contrast = (2 * (xy - mx * my) + C2) / (xx - mx * mx + yy - my * my + C2)
            last = scale == scales - 1
            part = contrast * (2 * mx * my + C1) / (mx * mx + my * my + C1) if last else contrast
            value = value * part.mean().clamp(min=0) ** weights[scale]
            if not last:
                x, y = F.avg_pool3d(x, 2), F.avg_pool3d(y, 2)
        result.append(float(value))
    return np.array(result)


def pairwise_msssim(volumes: np.ndarray, pairs: int = 64, seed: int = 0) -> np.ndarray:
    """Computes MS-SSIM of random disjoint pairs within one set, at most `pairs` of them. High means little variety."""
    if len(volumes) < 2:
        raise UserError(f"MS-SSIM: expected at least 2 volumes; got {len(volumes)}")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(volumes))
    count = min(pairs, len(order) // 2)
    return ms_ssim(volumes[order[:count]], volumes[order[count : 2 * count]])


def histogram_distance(real: np.ndarray, fake: np.ndarray, bins: int = 256) -> float:
    """Computes the Wasserstein-1 distance of all intensities, binned over [-1, 1]; unit: intensity."""
    edges = np.linspace(-1, 1, bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    counts = [np.histogram(np.clip(x, -1, 1), edges)[0].astype(np.float64) for x in (real, fake)]
    return float(wasserstein_distance(centres, centres, *counts))


def spectrum(volumes: np.ndarray) -> np.ndarray:
    """Computes log10 of the mean power per shell of spatial frequency (up to 0.5 cycles per voxel), without shell 0."""
    shape = volumes.shape[1:]
    radius = np.sqrt(sum(g**2 for g in np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")))
    side = max(shape)
    shell = np.round(radius * side).astype(int).ravel()
    used = np.intersect1d(np.arange(1, side // 2 + 1), shell)
    counts = np.bincount(shell)
    total = np.zeros(len(counts))
    for volume in volumes:
        power = np.abs(np.fft.fftn(np.asarray(volume, np.float64), norm="ortho")) ** 2
        total += np.bincount(shell, power.ravel())
    return np.log10(total[used] / counts[used] / len(volumes) + 1e-12)


def spectrum_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Computes the root mean squared difference of the two radial spectra, in decades of power."""
    return float(np.sqrt(np.mean((spectrum(real) - spectrum(fake)) ** 2)))


def profile_distances(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Computes, per array axis, the root mean squared difference of the mean intensities along it; unit: intensity."""
    means = [np.mean(x, axis=0, dtype=np.float64) for x in (real, fake)]
    result = {}
    for axis, name in enumerate("DHW"):
        others = tuple(i for i in range(3) if i != axis)
        result[name] = float(np.sqrt(np.mean((means[0].mean(others) - means[1].mean(others)) ** 2)))
    return result
