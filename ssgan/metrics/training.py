"""Metrics cheap enough for training: at most 64 images a side, the real side computed once and kept."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ssgan.errors import UserError
from ssgan.metrics import sets, voxels
from ssgan.metrics.features import Random3d

MAX_IMAGES = 64
NEIGHBOURS = 5
# Name -> which way is better. MS-SSIM is within the generated set: low is varied.
BETTER = {"frechet": "lower", "kid": "lower", "msssim": "lower"}
BETTER |= dict.fromkeys(("precision", "recall", "density", "coverage"), "higher")


class TrainingMetrics:
    """`names` (of BETTER) of generated images against a fixed random subset of the data's, by the random3d features.

    volumes: (N, D, H, W), such as a memory map; slices=True takes slices (depth 1) of them instead.

    Raises:
        UserError: an unknown name, or fewer images than the metric needs (2; 6 for precision and its kin).
    """

    def __init__(
        self, volumes: np.ndarray, names: tuple[str, ...] = ("frechet",), seed: int = 0, slices: bool = False
    ) -> None:
        unknown = [name for name in names if name not in BETTER]
        if unknown:
            raise UserError(f"metrics: expected some of {', '.join(BETTER)}; got {', '.join(unknown)}")
        depth = volumes.shape[1] if slices else 1
        items, kind = len(volumes) * depth, "slices" if slices else "volumes"
        self._neighbours = {name for name in names if BETTER[name] == "higher"}
        least = NEIGHBOURS + 1 if self._neighbours else 2
        if items < least:
            raise UserError(f"metrics: {', '.join(names)}: expected at least {least} {kind} in the data; got {items}")
        self.names, self.count, self._extract = names, min(MAX_IMAGES, items), Random3d()
        chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(items)[: self.count])
        self._real = None
        if set(names) != {"msssim"}:
            images = [volumes[i // depth, i % depth][None] if slices else volumes[i] for i in chosen]
            self._real = self._extract(np.stack(images))
        self.protocol = f"{self.count} against {self.count} {kind}, seed {seed}; {self._extract.protocol}"

    def measure(self, generate: Callable[[int], np.ndarray]) -> dict[str, float]:
        """Name -> value for `generate(count)`, (count, D, H, W) in [-1, 1]."""
        made = generate(self.count)
        result: dict[str, float] = {}
        if self._real is not None:
            features = self._extract(made)
            result = {n: getattr(sets, n)(self._real, features) for n in self.names if n in ("frechet", "kid")}
            if self._neighbours:
                result |= sets.prdc(self._real, features, NEIGHBOURS)
        if "msssim" in self.names:
            result["msssim"] = float(voxels.pairwise_msssim(made).mean())
        return {name: result[name] for name in self.names}
