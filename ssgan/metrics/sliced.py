"""Sliced Wasserstein distance between two sets of volumes: a cheap distance of a generator to its data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ssgan.utils.errors import UserError

MAX_SIDE = 16  # voxels per side after pooling
PROJECTIONS = 512
MAX_VOLUMES = 128


def protocol(count: int, shape: tuple[int, int, int]) -> str:
    """Describes the measurement in one line, to be kept with its numbers. shape: (D, H, W) before pooling."""
    factors = "x".join(str(f) for f in _factors(shape))
    return (
        f"sliced Wasserstein-2, {count} against {count} volumes of {'x'.join(map(str, shape))} voxels, block means of "
        f"{factors}, {PROJECTIONS} unit projections in float64, root of the mean squared 1D distance; "
        "unit: intensity ([-1, 1] scale)"
    )


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, projections: int = PROJECTIONS, seed: int = 0) -> float:
    """Computes the sliced Wasserstein-2 distance of two sets of volumes, each (N, D, H, W) (Bonneel et al. 2015).

    Protocol: every volume is reduced to at most 16 voxels a side by the mean over blocks of ceil(n / 16) voxels (the
    last block of an axis may be smaller), flattened, and projected in float64 on `projections` random unit vectors
    (NumPy's PCG64 with `seed`). On each vector the squared 1D Wasserstein-2 distance is the mean squared difference
    of the sorted projections; the result is the root of its mean over the vectors. For two sets that differ
    by adding one fixed volume the expected square is that volume's mean square over the voxels, so the unit is that
    of the intensities. Finite sets of one distribution have a distance above zero that shrinks with N: compare it at
    equal N only, and with the distance of two disjoint sets of real volumes.

    Raises:
        UserError: shapes or counts differ, a set is empty or not 4-dimensional, or a value is not finite.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 4 or a.shape != b.shape or a.size == 0:
        raise UserError(
            f"sliced_wasserstein: expected two sets of the same shape (N, D, H, W), N >= 1; got {a.shape} and {b.shape}"
        )
    features = [block_means(v).reshape(len(v), -1) for v in (a, b)]
    for name, values in zip("ab", features, strict=True):
        if not np.isfinite(values).all():
            raise UserError(f"sliced_wasserstein: set {name} holds values that are not finite")
    directions = np.random.Generator(np.random.PCG64(seed)).standard_normal((features[0].shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    sorted_a, sorted_b = (np.sort(values @ directions, axis=0) for values in features)
    return float(np.sqrt(np.mean((sorted_a - sorted_b) ** 2)))


class DistanceToData:
    """Measures the distance of generated volumes to as many real ones, always the same ones.

    real: (N, D, H, W), such as a memory map; slices=True measures slices (depth 1) instead. Two disjoint sets of
    `count` = min(128, N // 2) items are drawn by `seed`. Generated items are compared with the first; its distance to
    the second is the `floor`, the score of a perfect generator. One item has no floor (None).
    """

    def __init__(self, real: np.ndarray, slices: bool = False, seed: int = 0) -> None:
        n, depth = real.shape[:2]
        items = n * depth if slices else n
        self.count = max(1, min(MAX_VOLUMES, items // 2))
        order = np.random.Generator(np.random.PCG64(seed)).permutation(items)
        first, second = order[: self.count], order[self.count : 2 * self.count]

        def pick(chosen: np.ndarray) -> np.ndarray:
            volumes = (real[i // depth, i % depth][None] if slices else real[i] for i in chosen)
            return np.concatenate([block_means(volume[None]) for volume in volumes])

        self._real = pick(first)
        self.protocol = protocol(self.count, (1, *real.shape[2:]) if slices else real.shape[1:])
        self.floor = sliced_wasserstein(self._real, pick(second)) if items > 1 else None

    def __call__(self, generate: Callable[[int], np.ndarray]) -> float:
        """Measures the distance of `generate(count)`, (count, D, H, W), to the real items."""
        return sliced_wasserstein(block_means(generate(self.count)), self._real)


def _factors(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // MAX_SIDE) for n in shape)


def block_means(volumes: np.ndarray) -> np.ndarray:
    """(N, D, H, W) -> (N, d, h, w) float64 of at most 16 voxels a side; smaller axes stay as they are."""
    factors = _factors(volumes.shape[1:])

    def pool(volume: np.ndarray) -> np.ndarray:  # one at a time: a set in float64 may not fit into memory
        x = torch.from_numpy(np.array(volume, dtype=np.float64))
        return torch.nn.functional.avg_pool3d(x[None, None], factors, ceil_mode=True)[0, 0].numpy()

    return np.stack([pool(volume) for volume in volumes])
