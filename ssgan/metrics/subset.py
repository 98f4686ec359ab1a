"""The part of a data set that metrics during training compare with; small, so that they are cheap."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import numpy as np

from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.extractors.choose import make_extractor
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.features import Extractor
from ssgan.utils.errors import UserError

MAX_IMAGES = 64


class Subset:
    """At most 64 images of the data, chosen by `seed`; their features are computed once for all metrics.

    volumes: (N, D, H, W), such as a memory map; slices=True takes slices (depth 1) of them instead.
    extractor: default random3d.
    """

    def __init__(
        self, volumes: np.ndarray, seed: int = 0, slices: bool = False, extractor: Extractor | None = None
    ) -> None:
        self._volumes, self._slices = volumes, slices
        self._depth = volumes.shape[1] if slices else 1
        self.items, self.kind = len(volumes) * self._depth, "slices" if slices else "volumes"
        self.count, self._extract = min(MAX_IMAGES, self.items), extractor or Random3d()
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


_SUBSETS: WeakKeyDictionary[VolumeDataset, dict[tuple[str, int, str], Subset]] = WeakKeyDictionary()


def subset_of(data: VolumeDataset, stage: str, seed: int, extractor: str = "random3d") -> Subset:
    """Gives the subset of a data set for a stage: the same object for all metrics. Stage 2d has slices."""
    subsets = _SUBSETS.setdefault(data, {})
    key = stage, seed, extractor
    if key not in subsets:
        features = Random3d() if extractor == "random3d" else make_extractor(extractor, None, data.info.slice_axis)
        subsets[key] = Subset(data.volumes, seed, slices=stage == "2d", extractor=features)
    return subsets[key]


def forget_generated(data: VolumeDataset) -> None:
    """Frees the generated images that the subsets of a data set keep."""
    for subset in _SUBSETS.get(data, {}).values():
        subset.forget()
