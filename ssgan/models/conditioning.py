"""What the networks are told about an image: its class, which slice of a volume it is, and whether it has a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssgan.config.network import NetworkConfig


class Condition(NamedTuple):
    """Labels, slice indices and masks of N images. A field is None where the networks take none.

    labels: class numbers (N,) int64, or weights of the classes (N, classes) floating, one-hot as a rule.
    slice_index: (N,) int64, the index along the volume's depth, for 2D networks with `depth_places`.
    mask_shown: (N,), 1 where the discriminator sees the mask, 0 where it is hidden; None shows all.
    """

    labels: Tensor | None = None
    slice_index: Tensor | None = None
    mask_shown: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return Condition(*(None if t is None else function(t) for t in self))

    def split(self, sizes: Sequence[int]) -> list[Condition]:
        """Conditions of consecutive groups of the images, as `Tensor.split` makes them."""
        split = [[None] * len(sizes) if t is None else t.split(list(sizes)) for t in self]
        return [Condition(*fields) for fields in zip(*split, strict=True)]


UNCONDITIONAL = Condition()


def one_hot(labels: Tensor | None, classes: int, batch: int | None = None) -> Tensor | None:
    """Returns labels as floating (N, classes); None for a network without classes.

    labels: class numbers (N,) int64, or weights (N, classes), which are returned as they are.

    Raises:
        ValueError: labels are missing, not expected, of another shape or not one for each of `batch` images.
    """
    if classes == 0:
        if labels is not None:
            raise ValueError("labels: the network was made without classes and takes no labels; leave them out")
        return None
    expected = f"expected class numbers 0..{classes - 1} of shape (N,), int64, or weights (N, {classes}), floating"
    if not isinstance(labels, Tensor):
        raise ValueError(f"labels: the network has {classes} classes; {expected}; got {labels!r}")
    numbers = labels.dim() == 1 and labels.dtype == torch.int64
    weights = labels.dim() == 2 and labels.is_floating_point()
    if not (numbers or (weights and labels.shape[1] == classes)):
        raise ValueError(f"labels: {expected}; got {tuple(labels.shape)}, {labels.dtype}")
    if batch is not None and len(labels) != batch:
        raise ValueError(f"labels: expected a label for each of {batch} images; got {len(labels)}")
    if weights:
        return labels
    # F.one_hot checks the values itself on a GPU, and does not make the host wait for them.
    on_host = labels.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"labels: {expected}; got {labels.unique().tolist()[:8]}")
    return F.one_hot(labels, classes).float()


def check_slice_index(slice_index: Tensor | None, cfg: NetworkConfig, batch: int) -> None:
    """Checks that 2D networks with `depth_places` get slice indices (N,) int64, and others none.

    The values are checked separately (`check_slice_range`): reading them here would make the host wait for a GPU.

    Raises:
        ValueError: slice indices are missing, not expected, or not one for each of `batch` images.
    """
    if not (cfg.is_flat and cfg.depth_places):
        if slice_index is not None:
            raise ValueError("slice_index: only 2D networks made with depth_places take slice indices; leave it out")
        return
    depth = cfg.depth_places[1]
    if not isinstance(slice_index, Tensor) or slice_index.dtype != torch.int64 or slice_index.shape != (batch,):
        is_tensor = isinstance(slice_index, Tensor)
        got = f"{tuple(slice_index.shape)}, {slice_index.dtype}" if is_tensor else repr(slice_index)
        raise ValueError(f"slice_index: expected 0..{depth - 1} of shape ({batch},), int64; got {got}")


def check_slice_range(slice_index: Tensor, depth: int) -> None:
    """Raises ValueError unless all slice indices are 0 .. depth - 1. Reads the values."""
    if bool(((slice_index < 0) | (slice_index >= depth)).any()):
        raise ValueError(f"slice_index: expected 0..{depth - 1}; got {slice_index.unique().tolist()[:8]}")
