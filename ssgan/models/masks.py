"""Label maps as image channels: K class probabilities beside the intensity, as 2p - 1 in [-1, 1].

A network with `mask_classes` K has 1 + K image channels: the intensity, then one channel per class. The generator ends
in a softmax over the classes. Real maps are softened before the discriminator sees them (`encode_masks`), since it
would tell generated ones by their values otherwise: a softmax is never 0 or 1.

Where some real volumes have no map, it is hidden from the discriminator, and so is that of the generated image in the
same place of the batch (`hide_masks`): these images are judged by their intensities alone, with the same weights. What
is hidden tells nothing about what is real, because the place in the batch decides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssgan.data.dataset import NO_MASK

SOFTENED = 0.5  # share of the low-pass in an encoded mask
CONFIDENCE = 0.98  # of the encoded class; the rest is spread evenly over all classes
BINOMIAL = (0.25, 0.5, 0.25)  # low-pass filter


def encode_masks(masks: Tensor, classes: int) -> Tensor:
    """Encodes class numbers (N, D, H, W) as channels (N, classes, D, H, W), float32 in [-1, 1].

    p = 0.98 (one-hot + low-pass(one-hot)) / 2 + 0.02 / classes, with a binomial filter of 3 voxels along each axis that
    repeats the outer slices. A class keeps more than half of each of its voxels, so argmax gives the mask back. Volumes
    without a mask (`NO_MASK` everywhere) are 0, no knowledge.
    """
    known = masks != NO_MASK
    p = F.one_hot(torch.where(known, masks, 0).long(), classes).movedim(-1, 1).float()
    p = p.lerp(_low_pass(p), SOFTENED)
    p = CONFIDENCE * p + (1 - CONFIDENCE) / classes
    return torch.where(known.unsqueeze(1), 2 * p - 1, 0.0)


def _low_pass(x: Tensor) -> Tensor:
    """Filters (N, C, D, H, W) along each axis of more than one voxel."""
    for axis in (2, 3, 4):
        n = x.shape[axis]
        if n > 1:
            wide = torch.cat([x.narrow(axis, 0, 1), x, x.narrow(axis, n - 1, 1)], axis)
            x = sum(weight * wide.narrow(axis, i, n) for i, weight in enumerate(BINOMIAL))
    return x


def decode_masks(images: Tensor) -> Tensor:
    """The most probable class (N, D, H, W), uint8, of each voxel of images (N, 1 + classes, D, H, W)."""
    return images[:, 1:].argmax(1).to(torch.uint8)


def softmax_masks(images: Tensor) -> Tensor:
    """Turns the class logits of images (N, 1 + classes, D, H, W) into 2p - 1; the intensity stays."""
    return torch.cat([images[:, :1], 2 * images[:, 1:].softmax(1) - 1], 1)


def with_unknown_masks(images: Tensor, classes: int) -> Tensor:
    """Replaces the class channels of images (N, C, D, H, W) by 0, or adds them; with 0 classes changes nothing."""
    if not classes:
        return images
    return torch.cat([images[:, :1], images.new_zeros(len(images), classes, *images.shape[2:])], 1)


def hide_masks(images: Tensor, shown: Tensor | None) -> Tensor:
    """Sets the class channels to 0 where `shown` (N,) is 0; None shows all."""
    if shown is None:
        return images
    return torch.cat([images[:, :1], images[:, 1:] * shown.to(images.dtype)[:, None, None, None, None]], 1)
