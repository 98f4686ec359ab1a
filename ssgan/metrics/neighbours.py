"""Finds the training volumes that are nearest to generated ones, by root mean squared differences of block means."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from ssgan.metrics.sliced import block_means

REFERENCE_ROWS = 500  # training volumes whose nearest neighbours are the reference


@dataclass(frozen=True)
class Neighbours:
    """The nearest training volumes of generated volumes.

    index, distance: of each generated volume. Distances are root mean squared differences of block means, at most 16 a
    side, on the [-1, 1] scale. median, low: median and 5 % quantile of the distances of training volumes to their
    nearest other one.
    """

    index: list[int]
    distance: list[float]
    median: float
    low: float


class TrainingVolumes:
    """The block means of training volumes (N, D, H, W), such as a memory map; reads them once.

    median, low: as in `Neighbours`.
    """

    def __init__(self, volumes: np.ndarray) -> None:
        bar = tqdm(volumes, desc="neighbours", unit="volume", disable=None)
        self._rows = np.stack([block_means(np.asarray(v)[None])[0].ravel() for v in bar])
        own = self._distances(self._rows[:REFERENCE_ROWS])
        own[np.arange(len(own)), np.arange(len(own))] = np.inf
        reference = own.min(1) if len(self._rows) > 1 else np.zeros(1)
        self.median, self.low = float(np.median(reference)), float(np.quantile(reference, 0.05))

    def _distances(self, rows: np.ndarray) -> np.ndarray:
        return cdist(rows, self._rows) / np.sqrt(self._rows.shape[1])

    def distances(self, volumes: np.ndarray) -> np.ndarray:
        """Distances (M, N) of volumes (M, D, H, W) to every training volume."""
        return self._distances(block_means(volumes).reshape(len(volumes), -1))

    def nearest(self, volumes: np.ndarray) -> Neighbours:
        """The nearest training volume of each of `volumes` (M, D, H, W)."""
        found = self.distances(volumes)
        return Neighbours(found.argmin(1).tolist(), found.min(1).tolist(), self.median, self.low)
