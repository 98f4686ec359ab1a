"""Features of 2D networks on slices in the three planes of the array."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm


def slice_positions(size: int, count: int) -> list[int]:
    """Spreads `count` indices evenly over an axis, each in the middle of its part; a single one is the middle slice."""
    return [int((2 * i + 1) * size / (2 * count)) for i in range(count)]


def three_planes(volume: np.ndarray, count: int, side: int) -> Tensor:
    """(D, H, W) -> (3, count, side, side) float32: slices across D, H and W, bilinear, half-pixel centres."""
    x = torch.from_numpy(np.array(volume, np.float32))
    planes = []
    for axis in range(3):
        chosen = x.movedim(axis, 0)[slice_positions(x.shape[axis], count)]
        planes.append(F.interpolate(chosen[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0])
    return torch.stack(planes)


@torch.no_grad()
def plane_features(
    volumes: np.ndarray, network: Callable[[Tensor], Tensor], prepare: Callable[[Tensor], Tensor], name: str,
    count: int, side: int,
) -> np.ndarray:  # fmt: skip
    """Computes features (N, 3, count, F) in float64.

    prepare: grey (M, side, side) in [-1, 1] -> the network's input (M, 3, side, side).
    """
    rows = []
    for volume in tqdm(volumes, desc=name, leave=False, disable=None):
        slices = three_planes(volume, count, side)
        found = network(prepare(slices.flatten(0, 1)))
        rows.append(found.reshape(3, count, -1).double().numpy())
    return np.stack(rows)
