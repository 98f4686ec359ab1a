"""Makes a training volume of a loaded one: resamples it, normalises its intensities, crops or pads it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import nibabel
import numpy as np
from scipy import ndimage

from ssgan.config.fields import Triple
from ssgan.data.axes import ARRAY_AXES, to_array_axes
from ssgan.data.masks import read_mask
from ssgan.data.recipes import CT_WINDOW, RECIPES
from ssgan.data.sources import Source, load
from ssgan.data.volume import HOUNSFIELD, MAX_VOXELS, Failure, StoredVolume, Volume, VolumeError
from ssgan.data.writer import MaskClasses

MRI_PERCENTILES = (0.5, 99.5)
LABEL_VALUES = 8  # integers with fewer distinct values are labels rather than intensities
LABEL_NAME = re.compile(r"^(label|seg|mask)|[_-](labels?|seg|mask)$", re.IGNORECASE)  # of a folder, or a file's stem
# The beginnings of warnings that many volumes can have; `prepare` prints one line for all of them.
PADDED = "smaller than the shape, padded with background"
LABEL_MAP = f"looks like a label map (by its name, or integers of fewer than {LABEL_VALUES} values)"
EMPTY_MASK = "the mask is empty (every voxel is 0)"
VANISHED = "a class of the mask vanishes by resampling and cropping"
ONE_GRID = 0.05  # of a voxel; the most by which a corner of a mask's grid may lie off its image's


@dataclass(frozen=True)
class Recipe:
    """The grid and the intensity range of training volumes.

    name: of `ssgan.data.recipes`; "mri" and "adni" scale by percentiles of each volume, "ct" and "coca" by a window.
    shape: (X, Y, Z) in voxels.
    spacing: (x, y, z) in mm, None for each volume's own.
    slice_axis: of `ssgan.data.axes`.
    window: (low, high) in HU.
    """

    name: str
    shape: Triple
    spacing: tuple[float, float, float] | None
    slice_axis: str = "axial"
    window: tuple[float, float] = CT_WINDOW

    @property
    def array_shape(self) -> Triple:
        """The shape (D, H, W) of the arrays."""
        return tuple(self.shape[a] for a in ARRAY_AXES[self.slice_axis])  # type: ignore[return-value]


def prepare_source(
    source: Source, recipe: Recipe, strict: bool = False, classes: MaskClasses | None = None
) -> tuple[np.ndarray, dict[str, Any]] | tuple[np.ndarray, dict[str, Any], np.ndarray] | Failure:
    """Reads and prepares one volume; returns the array (D, H, W) and its record, or the reason why there is none.

    With a mask, which `classes` are for, it also returns the mask (D, H, W) of class numbers. strict: whether a header
    that contradicts itself, or an empty mask, is such a reason.
    """
    modality = RECIPES[recipe.name].modality
    try:
        if source.series is not None and not source.reason and modality not in (None, source.series.modality):
            raise VolumeError(
                f"modality {source.series.modality or 'unknown'}; --recipe {recipe.name} is for {modality}"
            )
        volume = load(source)
        if strict and volume.contradiction:
            raise VolumeError(volume.contradiction)
        array, record = prepare_volume(volume, recipe)
        mask = None
        if source.mask is not None and classes is not None:
            mask, notes = _prepare_mask_file(source.mask, volume, recipe, classes, strict)
            record["warnings"] += notes
    except VolumeError as error:
        return Failure(str(error))
    if _is_label_map(source.name, volume.data):
        record["warnings"].append(LABEL_MAP)
    record = {"content_hash": volume.content_hash, **record}
    return (array, record) if mask is None else (array, record, mask)


def _prepare_mask_file(
    path: Path, image: Volume, recipe: Recipe, classes: MaskClasses, strict: bool
) -> tuple[np.ndarray, list[str]]:
    """Reads and prepares a mask; also returns warnings about it. Raises VolumeError, which names the file."""
    try:
        stored = read_mask(path)
        if strict and (stored.contradiction or not stored.data.any()):
            raise VolumeError(stored.contradiction or EMPTY_MASK)
        mask = prepare_mask(stored, image, recipe, classes.values)
    except VolumeError as error:
        raise VolumeError(f"its mask {path.name}: {error}") from error
    before, after = (set(np.unique(array).tolist()) for array in (stored.data, mask))
    lost = [name for k, (value, name) in enumerate(zip(*classes)) if value in before and k not in after and k > 0]
    warnings = [f"mask: {warning}" for warning in stored.warnings]
    warnings += [] if stored.data.any() else [EMPTY_MASK]
    return mask, warnings + ([f"{VANISHED}: {', '.join(lost)}"] if lost else [])


def _is_label_map(name: str, data: np.ndarray) -> bool:
    """Whether a volume is named as label maps are, in its file or a folder, or has a label map's values."""
    path = PurePath(name)
    if any(LABEL_NAME.search(part) for part in (*path.parts[:-1], path.name.partition(".")[0])):
        return True
    few = np.unique(data.ravel()[:: max(data.size // 4096, 1)])  # enough to tell most scans
    values = np.unique(data) if len(few) < LABEL_VALUES else few
    return len(values) < LABEL_VALUES and bool((values == values.round()).all())


def prepare_volume(volume: Volume, recipe: Recipe) -> tuple[np.ndarray, dict[str, Any]]:
    """Makes a training volume (D, H, W), float32 in [-1, 1], and its record: intensity map, affine, crop, warnings.

    The record's `affine` maps the index (X, Y, Z) of the result to RAS+ in mm.

    Raises:
        VolumeError: one intensity is left after windowing and cropping, or resampling makes the volume far too large.
    """
    _, size = resampled_grid(volume, recipe.spacing)
    low, high = intensity_bounds(volume.data, recipe)
    data, affine = resample(volume, recipe.spacing, low, recipe.shape)
    scaled = np.clip((data.astype(np.float64) - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    fitted, start = fit_shape(scaled, recipe.shape)
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    warnings = list(volume.warnings)
    padded = [
        f"{axis} by {want - have} of {want}"
        for axis, want, have in zip("XYZ", recipe.shape, size, strict=True)
        if have < want
    ]
    if padded:
        warnings.append(f"{PADDED}: {', '.join(padded)} voxels")
    if fitted.min() == fitted.max():
        raise VolumeError("nothing but one intensity is left after windowing and cropping")
    record = {
        "intensity_low": float(low),
        "intensity_high": float(high),
        "affine": affine.tolist(),
        "original_affine": volume.original_affine.tolist(),
        "original_shape": list(volume.original_shape),
        "first_voxel": _middle(size, recipe.shape).tolist(),
        "warnings": warnings,
    }
    return to_array_axes(fitted, recipe.slice_axis), record


def prepare_mask(mask: StoredVolume, image: Volume, recipe: Recipe, values: Sequence[int]) -> np.ndarray:
    """Makes the mask (D, H, W) of a training volume: uint8, the index in `values` of each voxel's value.

    mask: of uint8 values, on the grid of `image` as stored. Each class is resampled as the image is, as an image that
    is 1 in the class and 0 elsewhere (linear interpolation, after the same Gaussian where voxels become larger); each
    voxel gets the class with the largest value, of several equal ones the first. Without resampling nothing changes.
    What lies outside the image is background.

    Raises:
        VolumeError: the mask lies on another grid than the image.
    """
    _check_grid(mask, image)
    labels = nibabel.apply_orientation(mask.data, nibabel.io_orientation(image.original_affine))

    def resampled(value: int) -> np.ndarray:
        one_hot = replace(image, data=(labels == value).astype(np.float32))
        return fit_shape(resample(one_hot, recipe.spacing, 0.0, recipe.shape)[0], recipe.shape)[0]

    best, result = resampled(values[0]), np.zeros(recipe.shape, np.uint8)
    present = set(np.unique(labels).tolist())
    for number, value in enumerate(values[1:], 1):
        if value in present:
            share = resampled(value)
            result[share > best] = number
            best = np.maximum(best, share)
    return to_array_axes(result, recipe.slice_axis)


def _check_grid(mask: StoredVolume, image: Volume) -> None:
    """Raises VolumeError unless a mask's voxels lie, as they are stored, where the image's do."""
    shape = image.original_shape[:3]
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    off = corners @ (mask.affine - image.original_affine)[:3, :3].T + (mask.affine - image.original_affine)[:3, 3]
    if mask.data.shape == shape and np.abs(off).max() <= ONE_GRID * image.spacing.min():
        return
    order, its = ("".join(nibabel.aff2axcodes(affine)) for affine in (mask.affine, image.original_affine))
    raise VolumeError(
        f"it lies on another grid: {_grid_text(mask.data.shape, mask.affine)}; the image has "
        f"{_grid_text(shape, image.original_affine)}"
        f"{f' (voxel order {order} against {its})' if order != its else ''}; resample the mask to the image's grid"
    )


def _grid_text(shape: Sequence[int], affine: np.ndarray) -> str:
    rows = " ".join(f"[{' '.join(f'{v:.5g}' for v in row)}]" for row in affine[:3])
    return f"{' x '.join(map(str, shape))} voxels, affine {rows}"


def intensity_bounds(data: np.ndarray, recipe: Recipe) -> tuple[float, float]:
    """The raw intensities that become -1 and +1.

    They are the recipe's window if it has one, else the 0.5th percentile of all voxels and the 99.5th of the
    foreground. The foreground is all voxels but those of the most frequent value, if that fills more than a twentieth
    of the volume (air, or zeros around a stripped brain).
    """
    if RECIPES[recipe.name].window is not None:
        if data.max() > HOUNSFIELD[1]:
            raise VolumeError(f"intensities up to {data.max():g} are no Hounsfield units; is it CT, stored as signed?")
        return recipe.window
    values, counts = np.unique(data, return_counts=True)
    frequent = counts.argmax()
    foreground = data[data != values[frequent]] if counts[frequent] > data.size / 20 else data
    low = float(np.percentile(data, MRI_PERCENTILES[0]))
    high = float(np.percentile(foreground, MRI_PERCENTILES[1]))
    if not high > low:
        raise VolumeError(f"nearly constant volume: percentiles {MRI_PERCENTILES} are {low:g} and {high:g}")
    return low, high


def resampled_grid(volume: Volume, spacing: tuple[float, ...] | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns the spacing (x, y, z) in mm and the voxels (X, Y, Z) of the whole volume after resampling.

    Raises:
        VolumeError: the result would have more than MAX_VOXELS, or none: the spacing or the header's unit is wrong.
    """
    own = volume.spacing
    target = own if spacing is None else np.asarray(spacing, dtype=np.float64)
    if not volume.is_oblique and np.allclose(own, target, rtol=1e-3):
        return own, np.array(volume.data.shape)
    directions = volume.affine[:3, :3] / own
    if not volume.is_oblique:
        directions = np.diag(np.sign(np.diag(directions)))
    extent = np.abs(directions) @ (own * volume.data.shape)
    size = np.round(extent / target - 1e-6)
    was, to, whole = (" x ".join(f"{v:.4g}" for v in s) for s in (own, target, extent))
    if size.prod() > MAX_VOXELS:
        raise VolumeError(
            f"{size.prod():.3g} voxels after resampling from {was} to {to} mm; choose a larger --spacing, or correct "
            "the header's units"
        )
    if size.min() < 1:
        raise VolumeError(
            f"all of it is {whole} mm, less than a voxel of {to} mm; choose a smaller --spacing, or correct the "
            "header's units"
        )
    return target, size.astype(int)


def resample(
    volume: Volume, spacing: tuple[float, ...] | None, background: float, shape: Triple | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples a volume to an axis-aligned RAS+ grid of `spacing` mm with the same centre.

    Returns the data (X, Y, Z) and their affine. Interpolation is linear, after a Gaussian with a standard deviation of
    half the decimation factor along axes whose voxels become larger. An axis-aligned volume keeps its field of view; an
    oblique one is placed into the box around it, which is filled with background. With `shape` no more than that part
    around the centre is computed.

    Raises:
        VolumeError: as `resampled_grid`.
    """
    own = volume.spacing
    target, size = resampled_grid(volume, spacing)
    directions = volume.affine[:3, :3] / own
    if not volume.is_oblique:
        directions = np.diag(np.sign(np.diag(directions)))
        if np.array_equal(own, target):
            affine = np.eye(4)
            affine[:3, :3] = np.diag(own)
            affine[:3, 3] = volume.affine[:3, 3]
            return volume.data, affine
    to_voxel = np.diag(1 / own) @ directions.T @ np.diag(target)
    centre_in, centre_out = (np.array(volume.data.shape) - 1) / 2, (size - 1) / 2
    if shape is not None:
        centre_out = centre_out - np.maximum(_middle(size, shape), 0)
        size = np.minimum(size, shape)
    data = volume.data
    factor = np.abs(np.diag(1 / own) @ directions.T) @ target
    if (factor > 1).any():
        data = ndimage.gaussian_filter(data, np.where(factor > 1.05, factor / 2, 0), mode="nearest")
    data = ndimage.affine_transform(
        data, to_voxel, centre_in - to_voxel @ centre_out, output_shape=tuple(size), order=1,
        mode="constant" if volume.is_oblique else "nearest", cval=background,
    )  # fmt: skip
    centre_world = volume.affine[:3, :3] @ centre_in + volume.affine[:3, 3]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(target)
    affine[:3, 3] = centre_world - target * centre_out
    return data, affine


def _middle(have: Sequence[int], want: Sequence[int]) -> np.ndarray:
    """Index of the first voxel of the middle `want` of `have` voxels on each axis; below 0 where it is padded."""
    return (np.asarray(have) - want) // 2


def fit_shape(data: np.ndarray, shape: Triple) -> tuple[np.ndarray, np.ndarray]:
    """Crops or pads (with -1) around the centre; also returns the source index of the result's first voxel."""
    start = _middle(data.shape, shape)
    result = np.full(shape, -1, dtype=np.float32)
    source = tuple(slice(max(s, 0), max(s, 0) + min(h, w)) for s, h, w in zip(start, data.shape, shape, strict=True))
    target = tuple(slice(max(-s, 0), max(-s, 0) + min(h, w)) for s, h, w in zip(start, data.shape, shape, strict=True))
    result[target] = data[source]
    return result, start
