"""MONAI's 3D U-Net for segmentation: its network, the augmentation of its training, its training, and its scores.

Images are (N, 1, D, H, W) float32, masks (N, 1, D, H, W) class numbers with 0 as the background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor, nn

import ssconv
from ssgan.metrics.masks import surface
from ssgan.utils.errors import UserError

# Probabilities and ranges of `augment`: nnU-Net's where it has the augmentation, for intensities in [-1, 1].
GEOMETRY_P = 0.5  # each of rotation, scale and shift; nnU-Net has 0.2, which was worse here
ROTATION, SCALE, SHIFT = 30.0, (0.7, 1.4), 0.08  # degrees about each axis; factor; share of each extent
NOISE_P, NOISE = 0.1, 0.15  # standard deviation at most
BLUR_P, BLUR = 0.2, (0.5, 1.0)  # voxels
BRIGHTNESS_P, BRIGHTNESS = 0.15, 0.2
CONTRAST_P, CONTRAST = 0.15, (0.75, 1.25)
GAMMA_P, GAMMA = 0.3, (0.7, 1.5)


class Labelled(NamedTuple):
    """Images (N, 1, D, H, W) float32 and their masks (N, 1, D, H, W) uint8."""

    images: Tensor
    masks: Tensor

    @classmethod
    def of(cls, volumes: np.ndarray, masks: np.ndarray) -> Labelled:
        """Of volumes and masks (N, D, H, W)."""
        return cls(
            torch.from_numpy(np.array(volumes, np.float32))[:, None],
            torch.from_numpy(np.array(masks, np.uint8))[:, None],
        )

    def __getitem__(self, chosen) -> Labelled:  # type: ignore[override]
        return Labelled(self.images[chosen], self.masks[chosen])


# ---- network ----


def network(channels: Sequence[int], seed: int, variant: str = "dense", classes: int = 3) -> nn.Module:
    """Builds MONAI's U-Net with residual units; converts its convolutions unless it is dense."""
    from monai.networks.nets import UNet

    torch.manual_seed(seed)
    strides = (2,) * (len(channels) - 1)
    model = UNet(3, 1, classes, tuple(channels), strides, num_res_units=2, norm="instance")
    if variant != "dense":
        ssconv.convert(model, variant)
    return model


# ---- augmentation ----


def augment(pairs: Labelled, generator: torch.Generator, spacing: Sequence[float], classes: int) -> Labelled:
    """Augments each pair: rotation, scale and shift of both; noise, blur, brightness, contrast, gamma of the image.

    No flips: they would turn a left hippocampus into a right one. The draws depend on the batch's size and shape only.
    spacing: mm along D, H, W, in which rotations are made.
    """
    n, shape = len(pairs.images), pairs.images.shape[2:]

    def some(p: float) -> Tensor:
        return torch.rand(n, generator=generator) < p

    def uniform(low: float, high: float, *more: int) -> Tensor:
        return torch.rand(n, *more, generator=generator) * (high - low) + low

    turned, scaled, shifted = (some(GEOMETRY_P) for _ in range(3))
    angles = uniform(-ROTATION, ROTATION, 3) * turned[:, None]
    factors = torch.where(scaled, uniform(math.log(SCALE[0]), math.log(SCALE[1])).exp(), 1.0)
    shifts = uniform(-SHIFT, SHIFT, 3) * shifted[:, None]
    images, masks = _moved(pairs, angles.deg2rad(), factors, shifts, turned | scaled | shifted, spacing, classes)
    sigma = torch.where(some(BLUR_P), uniform(*BLUR), 0.0)
    images = torch.where(sigma.view(-1, 1, 1, 1, 1) > 0, _blurred(images, sigma.clamp(min=0.1)), images)
    strength = uniform(0, NOISE) * some(NOISE_P)
    images = images + _each(strength) * torch.randn(n, 1, *shape, generator=generator)
    images = images + _each(uniform(-BRIGHTNESS, BRIGHTNESS) * some(BRIGHTNESS_P))
    factor = torch.where(some(CONTRAST_P), uniform(*CONTRAST), 1.0)
    mean = images.mean((1, 2, 3, 4), keepdim=True)
    images = (images - mean) * _each(factor) + mean
    exponent = torch.where(some(GAMMA_P), uniform(*GAMMA), 1.0)
    low, high = images.amin((1, 2, 3, 4), keepdim=True), images.amax((1, 2, 3, 4), keepdim=True)
    extent = (high - low).clamp(min=1e-6)
    images = ((images - low) / extent).pow(_each(exponent)) * extent + low
    return Labelled(images, masks)


def _each(values: Tensor) -> Tensor:
    """One value a sample, to be combined with (N, C, D, H, W)."""
    return values.view(-1, 1, 1, 1, 1)


def _moved(
    pairs: Labelled, angles: Tensor, factors: Tensor, shifts: Tensor, moved: Tensor, spacing: Sequence[float],
    classes: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Rotates (radians about D, H, W), scales and shifts (shares of the extents) the samples that are `moved`.

    Both repeat their borders. Images are interpolated linearly; so is each class of the masks, and the class with the
    largest share stays.
    """
    if not moved.any():
        return pairs
    images, masks = pairs.images.clone(), pairs.masks.clone()
    inverse = _rotations(angles[moved]).transpose(1, 2) / factors[moved].view(-1, 1, 1)
    shape = torch.tensor(images.shape[2:], dtype=torch.float32)
    half = shape * torch.tensor(spacing, dtype=torch.float32) / 2  # mm from the centre to the border
    normalised = inverse * half[None, None, :] / half[None, :, None]  # of coordinates in [-1, 1]
    theta = torch.cat([normalised, 2 * shifts[moved][:, :, None]], 2)
    theta = theta.flip(1)  # grid_sample's order is W, H, D
    theta[:, :, :3] = theta[:, :, :3].flip(2)
    grid = F.affine_grid(theta, [len(theta), 1, *images.shape[2:]], align_corners=False)
    images[moved] = F.grid_sample(images[moved], grid, padding_mode="border", align_corners=False)
    shares = F.one_hot(masks[moved][:, 0].long(), classes).movedim(-1, 1)[:, 1:].float()
    shares = F.grid_sample(shares, grid, padding_mode="border", align_corners=False)
    shares = torch.cat([1 - shares.sum(1, keepdim=True), shares], 1)
    masks[moved] = shares.argmax(1, keepdim=True).to(masks.dtype)
    return images, masks


def _rotations(angles: Tensor) -> Tensor:
    """Rotation matrices (N, 3, 3) of coordinates (D, H, W): about D, then H, then W."""
    result = torch.eye(3).expand(len(angles), 3, 3)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn = torch.eye(3).repeat(len(angles), 1, 1)
        turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cos, -sin, sin, cos
        result = turn @ result
    return result


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Filters each image (N, 1, D, H, W) with a Gaussian of its own width, 5 voxels wide."""
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma[:, None]).square())
    taps = (taps / taps.sum(1, keepdim=True))[:, None]
    y = images.transpose(0, 1)  # a group a sample
    for axis in range(3):
        size, padding = [1, 1, 1], [0, 0, 0, 0, 0, 0]
        size[axis] = 5
        padding[4 - 2 * axis : 6 - 2 * axis] = 2, 2
        y = F.conv3d(F.pad(y, padding, mode="replicate"), taps.view(-1, 1, *size), groups=len(images))
    return y.transpose(0, 1)


def augmentation() -> dict[str, Any]:
    """The probabilities and ranges of `augment`, for a record."""
    return {
        "geometry_p": GEOMETRY_P, "rotation": ROTATION, "scale": SCALE, "shift": SHIFT, "noise": [NOISE_P, NOISE],
        "blur": [BLUR_P, BLUR], "brightness": [BRIGHTNESS_P, BRIGHTNESS], "contrast": [CONTRAST_P, CONTRAST],
        "gamma": [GAMMA_P, GAMMA],
    }  # fmt: skip


# ---- training ----


class Batches:
    """Batches of real pairs of which the last `round(share * batch)` are replaced by generated ones.

    The real pairs, their order and the draws of the augmentation are the same whatever the share.
    """

    def __init__(
        self, real: Labelled, generated: Labelled | None, share: float, batch: int, seed: int,
    ) -> None:  # fmt: skip
        self.real, self.generated, self.batch = real, generated, batch
        self.made = round(share * batch)
        if self.made and generated is None:
            raise ValueError(f"share: {share} of each batch is generated, and there are no generated pairs")
        self.order, self.picks = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        self._queue: list[int] = []

    def next(self) -> Labelled:
        while len(self._queue) < self.batch:  # every real pair once an epoch
            self._queue += self.order.permutation(len(self.real.images)).tolist()
        chosen, self._queue = self._queue[: self.batch], self._queue[self.batch :]
        real = self.real[chosen[: self.batch - self.made]]
        if not self.made or self.generated is None:
            return real
        made = self.generated[self.picks.choice(len(self.generated.images), self.made)]
        return Labelled(torch.cat([real.images, made.images]), torch.cat([real.masks, made.masks]))


def train(
    model: nn.Module, batches: Batches, steps: int, lr: float, seed: int, spacing: Sequence[float], classes: int,
    augmented: bool = True,
) -> None:  # fmt: skip
    """Trains with Dice and cross-entropy, Adam and a cosine schedule; raises UserError where the loss is not finite."""
    from monai.losses import DiceCELoss

    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    model.train()
    for step in range(steps):
        pairs = batches.next()
        if augmented:
            pairs = augment(pairs, generator, spacing, classes)
        loss = criterion(model(pairs.images.to(device)), pairs.masks.to(device))
        if not torch.isfinite(loss):
            raise UserError(f"the loss of the U-Net is {loss.item()} at step {step}; give a lower learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The most probable classes (N, 1, D, H, W)."""
    device = next(model.parameters()).device
    return torch.cat([model(x.to(device)).argmax(1, keepdim=True).cpu() for x in images.split(8)])


# ---- scores ----


def dice(predicted: Tensor, truth: Tensor, classes: int = 3) -> Tensor:
    """Computes the Dice of classes 1 and up, (N, classes - 1), of label volumes (N, 1, D, H, W); 1 where a class is in
    neither."""
    scores = []
    for c in range(1, classes):
        a, b = (predicted == c).flatten(1), (truth == c).flatten(1)
        both, sizes = (a & b).sum(1), a.sum(1) + b.sum(1)
        scores.append(torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0))
    return torch.stack(scores, 1)


def hausdorff95(predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> float | None:
    """The 95 % Hausdorff distance in mm of two boolean volumes (D, H, W): the larger of the 95th percentiles of the
    distances from each one's surface voxels to the other's. 0 where both are empty, None where one of them is.

    spacing: mm along D, H, W.
    """
    if not predicted.any() or not truth.any():
        return None if predicted.any() or truth.any() else 0.0
    edges = [surface(volume) for volume in (predicted, truth)]
    distances = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return float(max(np.percentile(distances[1][edges[0]], 95), np.percentile(distances[0][edges[1]], 95)))
