"""Features of deepbet: the encoder of a network that was trained to find the brain in thousands of T1 heads (Fisch et
al. 2024, "deepbet: Fast brain extraction of T1-weighted MRI using Convolutional Neural Networks").

The weights come with the package deepbet (MIT): `pip install --no-deps deepbet`. Its code is not used.
"""

from __future__ import annotations

import math
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ssgan.data.axes import to_world_axes
from ssgan.metrics.extractors.torchscript import read_torchscript
from ssgan.metrics.extractors.weights import WeightsError, fit

PACKAGE, FILE = "deepbet", "data/models/model.pt"
INSTALL = f"pip install --no-deps {PACKAGE}"
WIDTHS = (16, 32, 64)  # of the stages; the fourth is left out, since small volumes have a single voxel there
SHORTEST = 32  # voxels of the shortest axis that the network is given, at least: two in the last stage
FEATURES = 2 * sum(WIDTHS)
MEAN, STD = 0.449, 0.226  # of the network's input, as in deepbet's own code


def is_installed() -> bool:
    """Returns whether the package is installed."""
    try:
        metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return False
    return True


def installed_file() -> Path:
    """Finds the file of weights among the files of the installed package. Raises WeightsError where it is missing."""
    if not is_installed():
        raise WeightsError(f"the features of deepbet need its package, which is not installed; run `{INSTALL}`")
    found = [Path(file.locate()) for file in metadata.files(PACKAGE) or () if file.as_posix() == FILE]
    if not found or not found[0].is_file():
        raise WeightsError(f"the installed package {PACKAGE} lacks its file {FILE}; run `{INSTALL} --force-reinstall`")
    return found[0]


class Block(nn.Module):
    """relu(x + f(x)): f is two 3x3x3 convolutions, each with instance norm; the shortcut of a strided one is 1x1x1."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.double_conv = nn.Sequential(
            nn.Conv3d(cin, cout, 3, stride, 1, bias=False), nn.InstanceNorm3d(cout), nn.ReLU(),
            nn.Conv3d(cout, cout, 3, 1, 1, bias=False), nn.InstanceNorm3d(cout),
        )  # fmt: skip
        self.downsample = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv3d(cin, cout, 1, stride, bias=False), nn.InstanceNorm3d(cout))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.double_conv(x) + self.downsample(x))


class Stage(nn.Module):
    """Two blocks, of which the first may have a stride."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self.block1, self.block2 = Block(cin, cout, stride), Block(cout, cout, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.block2(self.block1(x))


class Encoder(nn.Module):
    """(N, 1, X, Y, Z) -> outputs of the stem, (N, 16, X/4, Y/4, Z/4), and of the stages, the last (N, 64, X/16, ..).

    Parameters have the names of deepbet's file.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv3d(1, WIDTHS[0], 7, 2, 3, bias=False)
        self.init = nn.Sequential(stem, nn.InstanceNorm3d(WIDTHS[0]), nn.ReLU(), nn.MaxPool3d(3, 2, 1))
        for i, (cin, cout) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS)):
            setattr(self, f"down{i}", Stage(cin, cout, 2 if i else 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = [self.init(x)]
        for i in range(len(WIDTHS)):
            found.append(getattr(self, f"down{i}")(found[-1]))
        return found


def normalise(volume: Tensor) -> Tensor:
    """Scales a volume in [-1, 1] to the mean and standard deviation that deepbet gives its network.

    A volume of one intensity becomes the mean.
    """
    x = volume.double().clamp(-1, 1)
    std = x.std()
    x = torch.zeros_like(x) if std < 1e-6 else (x - x.mean()) / std
    return (STD * x + MEAN).float()


def enlarge(x: Tensor) -> Tensor:
    """Enlarges (N, C, X, Y, Z) by the least whole factor that gives its shortest axis `SHORTEST` voxels; trilinear."""
    factor = math.ceil(SHORTEST / min(x.shape[2:]))
    return x if factor <= 1 else F.interpolate(x, scale_factor=factor, mode="trilinear", align_corners=False)


class Deepbet:
    """Features (N, 224): means and standard deviations over space of the channels of the first three stages.

    slice_axis: that of the volumes (D, H, W), which are turned to X, Y, Z, as the network has learnt them; a slice
    (D = 1) is repeated along depth before, as often as its shorter side has pixels.
    """

    name = "deepbet"

    def __init__(self, slice_axis: str = "axial") -> None:
        self.slice_axis = slice_axis
        weights = read_torchscript(installed_file())
        self.checksum = weights.sha256
        with torch.device("meta"):
            network = Encoder()
        self.network = fit(network, weights, self.name, ignored=("down3.", "up", "conv.", "tp_conv"))
        self.protocol = (
            f"{self.name} v1, {FILE} sha256 {self.checksum}: axes X, Y, Z, z-score of each volume to {MEAN:g} +- "
            f"{STD:g}, enlarged by the least whole factor that gives the shortest axis {SHORTEST} voxels, means and "
            f"standard deviations of the first {len(WIDTHS)} stages over space, {FEATURES} features"
        )

    @torch.no_grad()
    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        rows = []
        for volume in tqdm(volumes, desc=self.name, leave=False, disable=None):
            if len(volume) == 1:
                volume = np.repeat(volume, min(volume.shape[1:]), axis=0)
            turned = to_world_axes(np.asarray(volume, np.float32), self.slice_axis)
            x = normalise(torch.from_numpy(np.ascontiguousarray(turned)))
            stages = [y.double().flatten(2) for y in self.network(enlarge(x[None, None]))[1:]]
            row = torch.cat([*(y.mean(2) for y in stages), *(y.std(2, correction=0) for y in stages)], 1)
            rows.append(row.numpy())
        return np.concatenate(rows)
