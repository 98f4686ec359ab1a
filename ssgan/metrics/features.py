"""Feature extractors: a name, a protocol, a checksum of the weights, and volumes (N, D, H, W) -> features, float64.

Features are (N, F), or (N, views, slices, F) of a network that looks at slices in several planes (views).
"""

from __future__ import annotations

import hashlib
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm


class Extractor(Protocol):
    name: str
    protocol: str
    checksum: str

    def __call__(self, volumes: np.ndarray) -> np.ndarray: ...


def views(features: np.ndarray) -> list[np.ndarray]:
    """Samples (rows, F) for each view; the slices of a volume are rows of their own."""
    if features.ndim == 2:
        return [features]
    return [features[:, view].reshape(-1, features.shape[3]) for view in range(features.shape[1])]


def per_volume(features: np.ndarray) -> np.ndarray:
    """(N, F'), one row a volume: the mean over its slices, the views side by side.

    For distances to nearest neighbours, which another slice of the same volume would be.
    """
    return features if features.ndim == 2 else features.mean(2).reshape(len(features), -1)


class Random3d:
    """A 3D convolutional network with fixed random weights: compares sets with each other, and no more than that.

    It needs no file and knows no anatomy. Its distances have no meaning beyond this project and volumes of one shape.
    Three convolutions 3x3x3 of stride 2 (1-16-32-32, leaky ReLU 0.2, He scale, no bias); features: channel means of
    the first two, and the third averaged to 2x2x2, which keeps where things are. 16 + 32 + 256 = 304 numbers.
    """

    name = "random3d"
    protocol = "random3d v1: conv 3x3x3 stride 2, 1-16-32-32, lrelu 0.2, He normal from RandomState(7), 304 features"

    def __init__(self) -> None:
        draw = np.random.RandomState(7)  # its stream is frozen by NumPy, that of Generator is not
        digest, self._weights = hashlib.sha256(), []
        for inputs, outputs in ((1, 16), (16, 32), (32, 32)):
            weight = (draw.randn(outputs, inputs, 3, 3, 3) * np.sqrt(2 / (27 * inputs))).astype("<f4")
            digest.update(weight.tobytes())
            self._weights.append(torch.from_numpy(weight))
        self.checksum = digest.hexdigest()

    @torch.no_grad()
    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        rows = []
        for first in tqdm(range(0, len(volumes), 8), desc=self.name, leave=False, disable=None):
            x = torch.from_numpy(np.array(volumes[first : first + 8], np.float32))[:, None]
            levels = []
            for weight in self._weights:
                x = F.leaky_relu(F.conv3d(x, weight, stride=2, padding=1), 0.2)
                levels.append(x)
            means = [level.mean((2, 3, 4)) for level in levels[:2]]
            rows.append(torch.cat([*means, F.adaptive_avg_pool3d(x, 2).flatten(1)], 1).double().numpy())
        return np.concatenate(rows)
