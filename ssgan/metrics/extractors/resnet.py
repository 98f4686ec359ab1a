"""Residual networks for published weights: MedicalNet's in 3D and RadImageNet's in 2D.

Parameters have the names of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


@dataclass(frozen=True)
class ResNetSpec:
    """blocks: per stage. dims: 2 or 3. channels: of the image. strides, dilations: per stage. bias: of convolutions.

    first: a bottleneck's stride is that of its first convolution (He et al. 2016, Keras), not of its 3x3 one.
    pad: a shortcut that changes shape takes every stride-th voxel and appends zero channels ("A"), instead of a
    1x1 convolution ("B").
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    dims: int
    channels: int
    strides: tuple[int, ...] = (1, 2, 2, 2)
    dilations: tuple[int, ...] = (1, 1, 1, 1)
    bias: bool = False
    eps: float = 1e-5
    first: bool = False
    pad: bool = False

    @property
    def features(self) -> int:
        return WIDTHS[-1] * (4 if self.bottleneck else 1)

    def conv(self, cin: int, cout: int, kernel: int, stride: int = 1, dilation: int = 1) -> nn.Module:
        layer = nn.Conv3d if self.dims == 3 else nn.Conv2d
        padding = kernel // 2 * dilation
        return layer(cin, cout, kernel, stride=stride, padding=padding, dilation=dilation, bias=self.bias)

    def norm(self, channels: int) -> nn.Module:
        return (nn.BatchNorm3d if self.dims == 3 else nn.BatchNorm2d)(channels, eps=self.eps)


class Block(nn.Module):
    """relu(x + f(x)): f is two 3x3 convolutions, or a bottleneck 1x1, 3x3, 1x1 of four times the width."""

    def __init__(self, spec: ResNetSpec, cin: int, width: int, stride: int, dilation: int):
        super().__init__()
        self.stride, self.cout = stride, width * (4 if spec.bottleneck else 1)
        if spec.bottleneck:
            early, late = (stride, 1) if spec.first else (1, stride)
            self.conv1, self.bn1 = spec.conv(cin, width, 1, early), spec.norm(width)
            self.conv2, self.bn2 = spec.conv(width, width, 3, late, dilation), spec.norm(width)
            self.conv3, self.bn3 = spec.conv(width, self.cout, 1), spec.norm(self.cout)
        else:
            self.conv1, self.bn1 = spec.conv(cin, width, 3, stride, dilation), spec.norm(width)
            self.conv2, self.bn2 = spec.conv(width, width, 3, 1, dilation), spec.norm(width)
        self.layers = 3 if spec.bottleneck else 2
        self.changes = stride != 1 or cin != self.cout
        if self.changes and not spec.pad:
            self.downsample = nn.Sequential(spec.conv(cin, self.cout, 1, stride), spec.norm(self.cout))

    def shortcut(self, x: Tensor) -> Tensor:
        if not self.changes:
            return x
        if hasattr(self, "downsample"):
            return self.downsample(x)
        x = x[(..., *[slice(None, None, self.stride)] * (x.dim() - 2))]
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, self.cout - x.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y) if i < self.layers else y
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """image (N, C, ...) -> (N, features): the mean of the last stage over space."""

    def __init__(self, spec: ResNetSpec):
        super().__init__()
        self.spec = spec
        layer = nn.Conv3d if spec.dims == 3 else nn.Conv2d
        self.conv1 = layer(spec.channels, WIDTHS[0], 7, stride=2, padding=3, bias=spec.bias)
        self.bn1 = spec.norm(WIDTHS[0])
        cin = WIDTHS[0]
        for i, (width, count) in enumerate(zip(WIDTHS, spec.blocks, strict=True)):
            stage = []
            for j in range(count):
                stage.append(Block(spec, cin, width, spec.strides[i] if j == 0 else 1, spec.dilations[i]))
                cin = stage[-1].cout
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Gives the outputs of the stem and of the four stages."""
        pool = F.max_pool3d if self.spec.dims == 3 else F.max_pool2d
        result = [pool(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)]
        for i in range(4):
            result.append(getattr(self, f"layer{i + 1}")(result[-1]))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1].flatten(2).mean(2)


def build(spec: ResNetSpec) -> ResNet:
    """Builds the network on the meta device; `weights.fit` then gives it its weights."""
    with torch.device("meta"):
        return ResNet(spec)
