"""Metrics cheap enough for training: at most 64 volumes a side, the real side computed once and kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssgan.errors import UserError
from ssgan.metrics import sets, voxels
from ssgan.metrics.features import Random3d

MAX_VOLUMES = 64
BETTER = {"frechet": "lower", "kid": "lower", "msssim": "lower"}  # MS-SSIM within the generated set: low is varied


class TrainingMetrics:
    """`names` (of BETTER) of generated volumes against a fixed random subset of the data's, by the random3d features.

    volumes: (N, D, H, W), such as a memory map. Raises UserError for an unknown name or fewer than two volumes.
    """

    def __init__(self, volumes: np.ndarray, names: tuple[str, ...] = ("frechet",), seed: int = 0) -> None:
        unknown = [name for name in names if name not in BETTER]
        if unknown:
            raise UserError(f"metrics: expected some of {', '.join(BETTER)}; got {', '.join(unknown)}")
        if len(volumes) < 2:
            raise UserError(f"metrics: expected at least 2 volumes in the data set; got {len(volumes)}")
        self.names, self.count, self._extract = names, min(MAX_VOLUMES, len(volumes)), Random3d()
        chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(len(volumes))[: self.count])
        self._real = self._extract(np.asarray(volumes[chosen])) if {"frechet", "kid"} & set(names) else None
        self.protocol = f"{self.count} against {self.count} volumes, seed {seed}; {self._extract.protocol}"

    def measure(self, generate: Callable[[int], np.ndarray]) -> dict[str, float]:
        """Name -> value for `generate(count)`, (count, D, H, W) in [-1, 1]."""
        made = generate(self.count)
        result = {}
        if self._real is not None:
            features = self._extract(made)
            result = {n: getattr(sets, n)(self._real, features) for n in self.names if n != "msssim"}
        if "msssim" in self.names:
            result["msssim"] = float(voxels.pairwise_msssim(made).mean())
        return {name: result[name] for name in self.names}
