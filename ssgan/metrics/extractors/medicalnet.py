"""Features of MedicalNet: 3D ResNets trained to segment 23 medical data sets (Chen et al. 2019, Med3D).

The published files are resnet_10.pth, resnet_10_23dataset.pth, ... of Tencent/MedicalNet: one input channel, 7x7x7
stem, and, since they were trained for segmentation, stages 3 and 4 with dilation 2 and 4 in place of a stride.
Shortcuts are of type A at depth 18 and 34, and B at 10 and 50.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ssgan.metrics.extractors.resnet import ResNetSpec, build
from ssgan.metrics.extractors.weights import fit, read_weights

BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
BACKGROUND = -0.95  # darker voxels are background: 0 to 2.5 % of the intensity range


def spec(depth: int) -> ResNetSpec:
    return ResNetSpec(
        BLOCKS[depth], bottleneck=depth == 50, dims=3, channels=1, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4),
        pad=depth in (18, 34),
    )  # fmt: skip


def normalise(x: Tensor) -> Tensor:
    """Scales volumes (N, 1, D, H, W) in [-1, 1] to mean 0 and standard deviation 1 of each one's foreground.

    MedicalNet's own code takes voxels above 0 and fills the background with random numbers, so that features differ
    from call to call; here the background keeps its value below the mean. A volume of background alone becomes zero.
    """
    rows = []
    for volume in x:
        inside = volume[volume > BACKGROUND].double()
        if inside.numel() < 2 or inside.std(correction=0) < 1e-6:
            rows.append(torch.zeros_like(volume))
        else:
            rows.append(((volume.double() - inside.mean()) / inside.std(correction=0)).to(volume.dtype))
    return torch.stack(rows)


class MedicalNet:
    """Features (N, 512), or (N, 2048) at depth 50: the mean of the last stage over space."""

    def __init__(self, depth: int, file: Path) -> None:
        weights = read_weights(file)
        self.name, self.checksum = f"medicalnet-{depth}", weights.sha256
        self.network = fit(build(spec(depth)), weights, self.name, ignored=("conv_seg.", "fc."))
        self.protocol = (
            f"{self.name} v1, weights sha256 {self.checksum}: z-score over voxels above {BACKGROUND:g}, not resized, "
            f"mean of the last stage over space, {self.network.spec.features} features"
        )

    @torch.no_grad()
    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        rows = []
        for volume in tqdm(volumes, desc=self.name, leave=False, disable=None):
            x = torch.from_numpy(np.array(volume, np.float32))[None, None]
            rows.append(self.network(normalise(x)).double().numpy())
        return np.concatenate(rows)
