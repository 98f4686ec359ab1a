"""Features of RadImageNet: a 2D ResNet-50 trained on 1.35 million radiological images (Mei et al. 2022), on slices.

The published file is RadImageNet-ResNet50_notop.pth of Warvito/radimagenet-models, converted from Keras: convolutions
have biases, batch norm has eps 1.001e-5, and a bottleneck's stride is that of its first convolution.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssgan.metrics.extractors.planes import plane_features
from ssgan.metrics.extractors.resnet import ResNetSpec, build
from ssgan.metrics.extractors.weights import fit, read_weights

SPEC = ResNetSpec((3, 4, 6, 3), bottleneck=True, dims=2, channels=3, bias=True, eps=1.001e-5, first=True)
SIDE, SLICES = 224, 5
BGR_MEAN = (0.406, 0.456, 0.485)  # ImageNet's, in the order blue, green, red


def prepare(grey: Tensor) -> Tensor:
    """(M, H, W) in [-1, 1] -> (M, 3, H, W): scaled to [0, 1], repeated as B, G, R, minus their means (as in MAISI)."""
    x = ((grey + 1) / 2).clamp(0, 1)[:, None].expand(-1, 3, -1, -1)
    return x - torch.tensor(BGR_MEAN)[:, None, None]


class RadImageNet:
    """Features (N, 3 planes, 5 slices, 2048)."""

    name = "radimagenet"

    def __init__(self, file: Path) -> None:
        weights = read_weights(file)
        self.checksum = weights.sha256
        self.network = fit(build(SPEC), weights, self.name, ignored=("fc.",))
        self.protocol = (
            f"{self.name} v1 ResNet-50, weights sha256 {self.checksum}: {SLICES} slices evenly over each of three "
            f"planes, bilinear to {SIDE}x{SIDE}, [0, 1] less the BGR means {BGR_MEAN}, 2048 features; "
            "distances are means over the planes with slices as samples"
        )

    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        return plane_features(volumes, self.network, prepare, self.name, SLICES, SIDE)
