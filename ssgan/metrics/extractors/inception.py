"""Features of Inception-v3 (Szegedy et al. 2016): the 2048 outputs of its last pooling, on the middle slices.

Two published files fit. pt_inception-2015-12-05-6726825d.pth (pytorch-fid) is the network of the FID's authors, with
1008 outputs; its average pooling leaves the padding out of the mean, and its last block pools by the maximum.
torchvision's inception_v3_google-0cc3c7bd.pth has 1000 outputs and ordinary average pooling with zeros. The network
follows the file. A FID that is compared with published ones needs the first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssgan.metrics.extractors.planes import plane_features
from ssgan.metrics.extractors.weights import WeightsError, fit, read_weights

SIDE = 299
KINDS = {1008: "FID", 1000: "torchvision"}
PUBLISHED = {"6726825d": "pt_inception-2015-12-05", "0cc3c7bd": "inception_v3_google"}  # by the start of the sha256
Layer = tuple[int, int, int | tuple[int, int], int]  # channels in, out, kernel, stride


class ConvNorm(nn.Module):
    """relu(batch norm(convolution)); padded to keep the size unless strided or pad=False."""

    def __init__(self, cin: int, cout: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = True):
        super().__init__()
        extents = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(k // 2 if pad and stride == 1 else 0 for k in extents)
        self.conv = nn.Conv2d(cin, cout, extents, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Parallel branches, concatenated.

    pool: the pooling before `branch_pool`: "zeros" (average, padding counts), "inside" (average, padding does not),
    "max", or "halve" (max of stride 2 and no convolution).
    """

    pool: str

    def __init__(self, layers: dict[str, Layer], pool: str):
        super().__init__()
        self.pool = pool
        for name, (cin, cout, kernel, stride) in layers.items():
            self.add_module(name, ConvNorm(cin, cout, kernel, stride))

    def chain(self, x: Tensor, *names: str) -> Tensor:
        for name in names:
            x = getattr(self, name)(x)
        return x

    def pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, 2)
        if self.pool == "max":
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=self.pool == "zeros"))


class MixedA(Mixed):
    """35x35: (N, Cin, ...) -> 224 + features channels."""

    def __init__(self, cin: int, features: int, pool: str):
        layers: dict[str, Layer] = {
            "branch1x1": (cin, 64, 1, 1),
            "branch5x5_1": (cin, 48, 1, 1), "branch5x5_2": (48, 64, 5, 1),
            "branch3x3dbl_1": (cin, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 1), "branch3x3dbl_3": (96, 96, 3, 1),
            "branch_pool": (cin, features, 1, 1),
        }  # fmt: skip
        super().__init__(layers, pool)

    def forward(self, x: Tensor) -> Tensor:
        five = self.chain(x, "branch5x5_1", "branch5x5_2")
        three = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch1x1(x), five, three, self.pooled(x)], 1)


class MixedB(Mixed):
    """35x35 -> 17x17: 288 -> 768 channels."""

    def __init__(self, cin: int):
        layers: dict[str, Layer] = {
            "branch3x3": (cin, 384, 3, 2),
            "branch3x3dbl_1": (cin, 64, 1, 1), "branch3x3dbl_2": (64, 96, 3, 1), "branch3x3dbl_3": (96, 96, 3, 2),
        }  # fmt: skip
        super().__init__(layers, "halve")

    def forward(self, x: Tensor) -> Tensor:
        three = self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3")
        return torch.cat([self.branch3x3(x), three, self.pooled(x)], 1)


class MixedC(Mixed):
    """17x17, 7x7 convolutions as 1x7 and 7x1: 768 -> 768 channels."""

    def __init__(self, cin: int, width: int, pool: str):
        across, along = (1, 7), (7, 1)
        layers: dict[str, Layer] = {
            "branch1x1": (cin, 192, 1, 1),
            "branch7x7_1": (cin, width, 1, 1), "branch7x7_2": (width, width, across, 1),
            "branch7x7_3": (width, 192, along, 1),
            "branch7x7dbl_1": (cin, width, 1, 1), "branch7x7dbl_2": (width, width, along, 1),
            "branch7x7dbl_3": (width, width, across, 1), "branch7x7dbl_4": (width, width, along, 1),
            "branch7x7dbl_5": (width, 192, across, 1),
            "branch_pool": (cin, 192, 1, 1),
        }  # fmt: skip
        super().__init__(layers, pool)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.chain(x, *(f"branch7x7_{i}" for i in (1, 2, 3)))
        double = self.chain(x, *(f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5)))
        return torch.cat([self.branch1x1(x), seven, double, self.pooled(x)], 1)


class MixedD(Mixed):
    """17x17 -> 8x8: 768 -> 1280 channels."""

    def __init__(self, cin: int):
        layers: dict[str, Layer] = {
            "branch3x3_1": (cin, 192, 1, 1), "branch3x3_2": (192, 320, 3, 2),
            "branch7x7x3_1": (cin, 192, 1, 1), "branch7x7x3_2": (192, 192, (1, 7), 1),
            "branch7x7x3_3": (192, 192, (7, 1), 1), "branch7x7x3_4": (192, 192, 3, 2),
        }  # fmt: skip
        super().__init__(layers, "halve")

    def forward(self, x: Tensor) -> Tensor:
        three = self.chain(x, "branch3x3_1", "branch3x3_2")
        seven = self.chain(x, *(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
        return torch.cat([three, seven, self.pooled(x)], 1)


class MixedE(Mixed):
    """8x8, with branches that split into 1x3 and 3x1: Cin -> 2048 channels."""

    def __init__(self, cin: int, pool: str):
        layers: dict[str, Layer] = {
            "branch1x1": (cin, 320, 1, 1),
            "branch3x3_1": (cin, 384, 1, 1), "branch3x3_2a": (384, 384, (1, 3), 1),
            "branch3x3_2b": (384, 384, (3, 1), 1),
            "branch3x3dbl_1": (cin, 448, 1, 1), "branch3x3dbl_2": (448, 384, 3, 1),
            "branch3x3dbl_3a": (384, 384, (1, 3), 1), "branch3x3dbl_3b": (384, 384, (3, 1), 1),
            "branch_pool": (cin, 192, 1, 1),
        }  # fmt: skip
        super().__init__(layers, pool)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.branch3x3_1(x), self.chain(x, "branch3x3dbl_1", "branch3x3dbl_2")
        parts = [self.branch3x3_2a(one), self.branch3x3_2b(one), self.branch3x3dbl_3a(two), self.branch3x3dbl_3b(two)]
        return torch.cat([self.branch1x1(x), *parts, self.pooled(x)], 1)


class InceptionV3(nn.Module):
    """RGB (N, 3, 299, 299) in [-1, 1] -> (N, 2048). classes: 1008 for the FID's pooling, 1000 for torchvision's."""

    def __init__(self, classes: int):
        super().__init__()
        pool, last = ("inside", "max") if classes == 1008 else ("zeros", "zeros")
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, pad=False)
        self.Mixed_5b = MixedA(192, 32, pool)
        self.Mixed_5c = MixedA(256, 64, pool)
        self.Mixed_5d = MixedA(288, 64, pool)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b = MixedC(768, 128, pool)
        self.Mixed_6c = MixedC(768, 160, pool)
        self.Mixed_6d = MixedC(768, 160, pool)
        self.Mixed_6e = MixedC(768, 192, pool)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, pool)
        self.Mixed_7c = MixedE(2048, last)
        self.fc = nn.Linear(2048, classes)  # unused, but in both files, and tells them apart

    def stages(self, x: Tensor) -> list[Tensor]:
        """Gives the outputs of every named layer in order; the stem's two poolings belong to the layers before them."""
        result = [x]
        for name, layer in self.named_children():
            if name == "fc":
                break
            x = layer(result[-1])
            result.append(F.max_pool2d(x, 3, 2) if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3") else x)
        return result[1:]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1].mean((2, 3))


def build(classes: int) -> InceptionV3:
    with torch.device("meta"):
        return InceptionV3(classes)


def prepare(grey: Tensor) -> Tensor:
    """(M, H, W) in [-1, 1] -> (M, 3, H, W), repeated over the channels."""
    return grey.clamp(-1, 1)[:, None].expand(-1, 3, -1, -1).contiguous()


class Inception:
    """Features (N, 3 planes, 1 slice, 2048)."""

    name = "inception"

    def __init__(self, file: Path) -> None:
        weights = read_weights(file)
        self.checksum = weights.sha256
        last = weights.tensors.get("fc.weight")
        classes = 1008 if last is None or "Conv2d_1a_3x3.conv.weight" not in weights.tensors else len(last)
        if classes not in KINDS:
            raise WeightsError(
                f"--weights {file}: expected 1008 (FID) or 1000 (torchvision) outputs; fc.weight has {classes}"
            )
        self.network = fit(build(classes), weights, self.name, ignored=("AuxLogits.",))
        source = PUBLISHED.get(self.checksum[:8], "not the published file")
        self.protocol = (
            f"{self.name} v1, Inception-v3 with {KINDS[classes]} pooling, weights sha256 {self.checksum} ({source}): "
            f"middle slice of each of three planes, bilinear to {SIDE}x{SIDE}, grey as RGB in [-1, 1], 2048 features "
            "of the last pooling; distances are means over the planes"
        )

    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        return plane_features(volumes, self.network, prepare, self.name, 1, SIDE)
