"""Converts between the array axes D, H, W of a data set and the patient's X, Y, Z (RAS+)."""

from __future__ import annotations

import numpy as np

from ssgan.config.fields import Triple

# Slice axis (the plane of the 2D slices) -> which of X, Y, Z the array axes D, H, W are.
ARRAY_AXES: dict[str, Triple] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


def axis_names(slice_axis: str) -> tuple[str, str, str]:
    """Which of X, Y, Z, the order of `--shape`, the array axes D, H, W are."""
    d, h, w = ("XYZ"[a] for a in ARRAY_AXES[slice_axis])
    return d, h, w


def shape_option(shape: Triple, slice_axis: str = "axial") -> str:
    """The numbers X Y Z of `--shape` for arrays of `shape` (D, H, W)."""
    return " ".join(str(n) for _, n in sorted(zip(axis_names(slice_axis), shape, strict=True)))


def to_array_axes(volume: np.ndarray, slice_axis: str) -> np.ndarray:
    """Transposes a volume (X, Y, Z) to (D, H, W)."""
    return volume.transpose(ARRAY_AXES[slice_axis])


def to_world_axes(volume: np.ndarray, slice_axis: str) -> np.ndarray:
    """Transposes volumes (..., D, H, W) to (..., X, Y, Z)."""
    order = np.argsort(ARRAY_AXES[slice_axis])
    lead = volume.ndim - 3
    return volume.transpose(*range(lead), *(lead + order))


def to_axial(volumes: np.ndarray, slice_axis: str) -> np.ndarray:
    """Transposes volumes (..., D, H, W) of any slice axis to (..., Z, Y, X), from which pictures are drawn."""
    return np.swapaxes(to_world_axes(volumes, slice_axis), -1, -3)
