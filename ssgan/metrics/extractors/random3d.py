"""A 3D network with fixed random weights, which needs no file of weights."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm


class Random3d:
    """Features (N, 304) of a 3D convolutional network with fixed random weights.

    They are for comparing sets of volumes of one shape within this project: the network has learnt no anatomy, and its
    distances mean nothing elsewhere. Three convolutions 3x3x3 of stride 2 (1-16-32-32, leaky ReLU 0.2, He scale, no
    bias); features: channel means of the first two, and the third averaged to 2x2x2, which keeps some position.
    16 + 32 + 256 = 304 numbers.
    """

    name = "random3d"
    protocol = "random3d v1: conv 3x3x3 stride 2, 1-16-32-32, lrelu 0.2, He normal from RandomState(7), 304 features"

    def __init__(self) -> None:
        draw = np.random.RandomState(7)  # NumPy guarantees its stream for ever, that of Generator not
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
