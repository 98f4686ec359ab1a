"""Metrics cheap enough for training: at most 64 images a side, the real side computed once and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from ssgan.metrics import distances as sets
from ssgan.metrics import voxels
from ssgan.metrics.features import Random3d
from ssgan.utils.errors import UserError

MAX_IMAGES = 64
NEIGHBOURS = 5
# Name -> which way is better. MS-SSIM is within the generated set: low is varied.
BETTER = {"frechet": "lower", "kid": "lower", "msssim": "lower"}
BETTER |= dict.fromkeys(("precision", "recall", "density", "coverage"), "higher")


class Subset:
    """At most 64 images of the data and their features, for any number of metrics: each is computed once.

    volumes: (N, D, H, W), such as a memory map; slices=True takes slices (depth 1) of them instead.
    """

    def __init__(self, volumes: np.ndarray, seed: int = 0, slices: bool = False) -> None:
        self._volumes, self._slices = volumes, slices
        self._depth = volumes.shape[1] if slices else 1
        self.items, self.kind = len(volumes) * self._depth, "slices" if slices else "volumes"
        self.count, self._extract = min(MAX_IMAGES, self.items), Random3d()
        self._chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(self.items)[: self.count])
        self.protocol = f"{self.count} against {self.count} {self.kind}, seed {seed}; {self._extract.protocol}"
        self._seen: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def real(self) -> np.ndarray:
        """(count, F) of the data's images."""
        v, depth = self._volumes, self._depth
        return self._extract(np.stack([v[i // depth, i % depth][None] if self._slices else v[i] for i in self._chosen]))

    def features(self, made: np.ndarray) -> np.ndarray:
        """(count, F) of generated images; those of the last array are kept for the next metric."""
        if self._seen is None or self._seen[0] is not made:
            self._seen = made, self._extract(made)
        return self._seen[1]

    def forget(self) -> None:
        """Lets go of the last generated images."""
        self._seen = None


class TrainingMetrics:
    """`names` (of BETTER) of generated images against a fixed random subset of the data's, by the random3d features.

    Raises:
        UserError: an unknown name, or fewer images than the metric needs (2; 6 for precision and its kin).
    """

    def __init__(self, subset: Subset, names: tuple[str, ...] = ("frechet",)) -> None:
        unknown = [name for name in names if name not in BETTER]
        if unknown:
            raise UserError(f"metrics: expected some of {', '.join(BETTER)}; got {', '.join(unknown)}")
        self._neighbours = {name for name in names if BETTER[name] == "higher"}
        least = NEIGHBOURS + 1 if self._neighbours else 2
        if subset.items < least:
            raise UserError(
                f"metrics: {', '.join(names)}: expected at least {least} {subset.kind} in the data; got {subset.items}"
            )
        self.names, self.subset = names, subset

    def measure(self, generate: Callable[[int], np.ndarray]) -> dict[str, float]:
        """Name -> value for `generate(count)`, (count, D, H, W) in [-1, 1]."""
        made = generate(self.subset.count)
        result: dict[str, float] = {}
        if set(self.names) != {"msssim"}:
            real, features = self.subset.real, self.subset.features(made)
            result = {n: getattr(sets, n)(real, features) for n in self.names if n in ("frechet", "kid")}
            if self._neighbours:
                result |= sets.prdc(real, features, NEIGHBOURS)
        if "msssim" in self.names:
            result["msssim"] = float(voxels.pairwise_msssim(made).mean())
        return {name: result[name] for name in self.names}
