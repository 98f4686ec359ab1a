"""The part of a data set that metrics during training compare with; small, so that they are cheap."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.utils.errors import UserError

MAX_IMAGES = 64


class Subset:
    """At most 64 images of the data, chosen by `seed`; their random3d features are computed once for all metrics.

    volumes: (N, D, H, W), such as a memory map; slices=True takes slices (depth 1) of them instead.
    """

    def __init__(self, volumes: np.ndarray, seed: int = 0, slices: bool = False) -> None:
        self._volumes, self._slices = volumes, slices
        self._depth = volumes.shape[1] if slices else 1
        self.items, self.kind = len(volumes) * self._depth, "slices" if slices else "volumes"
        self.count, self._extract = min(MAX_IMAGES, self.items), Random3d()
        self._chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(self.items)[: self.count])
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def check_size(self, metric: str, least: int) -> None:
        """Raises UserError where the data have fewer than `least` images."""
        if self.items < least:
            raise UserError(f"metrics: {metric}: expected at least {least} {self.kind} in the data; got {self.items}")

    @cached_property
    def real(self) -> np.ndarray:
        """(count, F): features of the data's images."""
        v, depth = self._volumes, self._depth
        return self._extract(np.stack([v[i // depth, i % depth][None] if self._slices else v[i] for i in self._chosen]))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Gives the features (count, F) of generated images; those of the last array are kept for the next metric."""
        if self._last is None or self._last[0] is not images:
            self._last = images, self._extract(images)
        return self._last[1]

    def forget(self) -> None:
        """Frees the last generated images."""
        self._last = None


_SUBSETS: WeakKeyDictionary[VolumeDataset, dict[tuple[str, int], Subset]] = WeakKeyDictionary()


def subset_of(data: VolumeDataset, stage: str, seed: int) -> Subset:
    """Gives the subset of a data set for a stage: the same object for all metrics. Stage 2d has slices."""
    subsets = _SUBSETS.setdefault(data, {})
    if (stage, seed) not in subsets:
        subsets[stage, seed] = Subset(data.volumes, seed, slices=stage == "2d")
    return subsets[stage, seed]


def forget_generated(data: VolumeDataset) -> None:
    """Frees the generated images that the subsets of a data set keep."""
    for subset in _SUBSETS.get(data, {}).values():
        subset.forget()
