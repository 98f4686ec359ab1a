"""Real images of a stage in training order, which depends only on (seed, stage, epoch): resuming needs no state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ssgan.config.network import NetworkConfig
from ssgan.data.dataset import VolumeDataset
from ssgan.models.conditioning import Condition
from ssgan.models.masks import encode_masks
from ssgan.utils.seeding import stream_seed


class RealImages:
    """Gives each item once per epoch, in an order of that epoch's own.

    Items are volumes in stage 3d and single slices (volume, index along D) in stage 2d. With `network` images and
    condition have the channels and fields that its networks take; without, the intensity and both fields (labels only
    if the data set has classes).
    """

    def __init__(self, data: VolumeDataset, stage: str, seed: int, network: NetworkConfig | None = None) -> None:
        self.data, self.stage, self.seed = data, stage, seed
        self.labelled = bool(data.class_counts if network is None else network.classes)
        self.indexed = stage == "2d" and (network is None or network.depth_places is not None)
        self.mask_classes = network.mask_classes if network else 0
        self.depth = data.info.shape[0]
        self.count = len(data) * (self.depth if stage == "2d" else 1)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def items(self, first: int, count: int) -> np.ndarray:
        """Items shown as the stage's images number first .. first + count - 1."""
        found = np.empty(count, np.int64)
        for i, image in enumerate(range(first, first + count)):
            epoch, position = divmod(image, self.count)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(stream_seed(self.seed, self.stage, epoch, "order"))
                self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).numpy()
            found[i] = self._order[position]
        return found

    def batch(self, first: int, count: int, samples: Sequence[int] | None = None) -> tuple[Tensor, Condition]:
        """Images (count, C, D, H, W) float32 on the CPU, D = 1 in stage 2d, with class numbers and slice indices.

        C is 1, or 1 + K with masks of K classes (`ssgan.models.masks`).

        samples: the samples of the batch to give, default all.
        """
        items = self.items(first, count)
        if samples is not None:
            items = items[list(samples)]
        volumes, slices = np.divmod(items, self.depth) if self.stage == "2d" else (items, None)
        images = self.data.volume_batch(volumes) if slices is None else self.data.slice_batch(volumes, slices)
        labels = torch.from_numpy(self.data.labels[volumes]) if self.labelled else None
        condition = Condition(labels, torch.from_numpy(slices) if self.indexed else None)
        if not self.mask_classes:
            return images, condition
        masks = self.data.mask_batch(volumes) if slices is None else self.data.mask_slice_batch(volumes, slices)
        if not self.data.has_mask.all():
            condition = condition._replace(mask_shown=torch.from_numpy(self.data.has_mask[volumes]).float())
        return torch.cat([images, encode_masks(masks, self.mask_classes)], 1), condition
