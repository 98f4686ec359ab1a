"""Loads the sets of volumes, and of masks, that an evaluation compares: of a data set, a run or a folder of NIfTI."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from tqdm import tqdm

from ssgan.data.axes import ARRAY_AXES, shape_option, to_array_axes
from ssgan.data.dataset import NO_MASK, DatasetInfo, VolumeDataset, content_hash, is_dataset
from ssgan.data.masks import read_mask
from ssgan.data.nifti import SUFFIXES, load_nifti
from ssgan.data.sources import find_files
from ssgan.data.volume import Volume, VolumeError
from ssgan.models.sampling import latents, synthesise_pairs
from ssgan.runs.config import is_run
from ssgan.runs.generator import load_generator
from ssgan.utils.errors import UserError

MIN_VOLUMES = 12  # a side
MAX_GENERATED = 200  # volumes of a run, unless more are asked for
BATCH = 4
MASK_ENDING = "_seg"  # of a mask's file beside its volume's, before the suffix


class EvaluateError(UserError):
    """Sets that cannot be compared, or a bad argument of `evaluate`."""


@dataclass(frozen=True)
class VolumeSet:
    """Volumes (N, D, H, W) float32 in [-1, 1].

    kind: "dataset", "run" or "folder". spacing: (x, y, z) mm. info: None for a folder. checkpoint: of the file that a
    run's volumes were generated from, as metrics.json records it. masks: (N, D, H, W) uint8 class numbers, NO_MASK in a
    volume without a mask; or None.
    """

    path: Path
    kind: str
    volumes: np.ndarray
    spacing: tuple[float, ...]
    slice_axis: str
    info: DatasetInfo | None = None
    checkpoint: dict[str, Any] | None = None
    masks: np.ndarray | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all voxels, as a data set records it."""
        return content_hash(self.volumes, self.masks)

    @cached_property
    def labelled(self) -> np.ndarray:
        """The indices of the volumes that have a mask."""
        masks = [] if self.masks is None else self.masks
        return np.array([i for i, mask in enumerate(masks) if mask[0, 0, 0] != NO_MASK], dtype=np.int64)

    @property
    def array_spacing(self) -> tuple[float, ...]:
        """The spacing in mm along D, H, W."""
        return tuple(self.spacing[axis] for axis in ARRAY_AXES[self.slice_axis])

    @cached_property
    def volume_hashes(self) -> list[str]:
        """SHA-256 of every volume."""
        return [hashlib.sha256(np.ascontiguousarray(v, dtype="<f4").tobytes()).hexdigest() for v in self.volumes]


def load_sides(real: Path, fake: Path, count: int | None, checkpoint: Path | None) -> tuple[VolumeSet, VolumeSet]:
    """Loads both sides of an evaluation, on the intensity scale of the side that is a data set or a run.

    count: volumes that a run generates; default half of the real ones, at most `MAX_GENERATED`.

    Raises:
        EvaluateError: a side cannot be read, --real is a run, or the sides differ in shape, spacing or axes.
    """
    if is_run(real) and not is_dataset(real):
        raise EvaluateError(f"--real {real} is a run; expected a data set or a folder of NIfTI")
    if is_run(fake) and real.is_dir():  # before the work of generating
        have = len(_folder_pairs(real, "--real")) if _is_folder(real) else len(VolumeDataset(real))
        check_counts(have, None, count)
    if _is_folder(real):
        second = load_volume_set(fake, "--fake", None, count or MAX_GENERATED, checkpoint)
        first = load_volume_set(real, "--real", second)
    else:
        first = load_volume_set(real, "--real")
        most = count or min(MAX_GENERATED, len(first.volumes) // 2)
        second = load_volume_set(fake, "--fake", first, most, checkpoint)
    check_comparable(first, second, "--fake")
    check_masks(first, second, "--fake")
    return first, second


def check_counts(real: int, fake: int | None, count: int | None) -> int:
    """Returns how many volumes of each side are compared: `count`, or as many as there are.

    fake: None for a run, which makes as many as are wanted.

    Raises:
        EvaluateError: too few.
    """
    possible = real // 2 if fake is None else min(real // 2, fake)
    wanted = count or possible
    if wanted > possible or wanted < MIN_VOLUMES:
        least = max(wanted, MIN_VOLUMES)
        raise EvaluateError(
            f"expected at least {2 * least} real volumes (half are for the floor) and {least} generated; got {real} "
            f"and {'a run, which makes as many as needed' if fake is None else fake}"
        )
    return wanted


def load_held_out(path: Path, real: VolumeSet, fake: VolumeSet) -> VolumeSet:
    """Loads --held-out. Raises EvaluateError where it cannot be compared, or holds training volumes."""
    held = load_volume_set(path, "--held-out", real if real.info else fake)
    check_comparable(real, held, "--held-out")
    check_masks(real if real.info else fake, held, "--held-out")
    check_disjoint(real, held)
    return held


def _is_folder(path: Path) -> bool:
    """Whether it is a folder of files: neither a data set nor a run, which record what their intensities mean."""
    return path.is_dir() and not is_dataset(path) and not is_run(path)


def load_volume_set(
    path: Path, option: str, like: VolumeSet | None = None, count: int = 0, checkpoint: Path | None = None
) -> VolumeSet:
    """Loads a data set, `count` volumes of a run's G_ema (seeds 0, 1, ...), or a folder of NIfTI.

    like: the other side, whose intensity scale and axes a folder gets.

    Raises:
        EvaluateError: see the message, which names `option`.
    """
    if is_dataset(path):
        data = VolumeDataset(path)
        info = data.info
        loaded = VolumeSet(path, "dataset", data.volumes, info.spacing, info.slice_axis, info, masks=data.masks)
    elif is_run(path):
        loaded = _generate(path, option, count, checkpoint)
    elif path.is_dir():
        loaded = _load_folder(path, option, like)
    else:
        state = "is a file" if path.exists() else "does not exist"
        raise EvaluateError(f"{option} {path} {state}; expected a data set, a folder of NIfTI files or a run")
    return check_finite(loaded, option)


def _generate(path: Path, option: str, count: int, checkpoint: Path | None) -> VolumeSet:
    """Generates volumes of a run, without truncation and with constant noise."""
    source = load_generator(path, checkpoint)
    G, info = source.G, source.info
    if source.meta.stage == "2d":
        name = source.path.name
        raise EvaluateError(f"{option} {path}: {name} is of stage 2d, which makes slices; train the 3D stage")
    c = source.class_labels(count)
    parts = [
        synthesise_pairs(
            G, latents(range(i, min(i + BATCH, count)), G.cfg.z_dim), batch=BATCH,
            c=None if c is None else c[i : i + BATCH],
        )
        for i in tqdm(range(0, count, BATCH), desc="generating", disable=None)
    ]  # fmt: skip
    volumes = np.clip(np.concatenate([part.volumes for part in parts]), -1, 1)
    masks = np.concatenate([part.masks for part in parts]) if G.cfg.mask_classes else None
    about = {
        "checkpoint": source.path.name,
        "checkpoint_sha256": source.sha256,
        "checkpoint_images": source.meta.images,
    }
    return VolumeSet(path, "run", volumes, info.spacing, info.slice_axis, info, about, masks)


def _nifti_files(path: Path, option: str) -> list[Path]:
    """The NIfTI files below a folder; raises EvaluateError if there are none, or a folder cannot be read."""
    found = find_files(path)
    for unread, reason in found.unreadable:
        raise EvaluateError(f"{option} {unread}: {reason}")
    files = [f for f in found.files if f.name.lower().endswith(SUFFIXES)]
    if not files:
        raise EvaluateError(f"{option} {path}: no NIfTI files, dataset.json or config.json in it")
    return files


def _folder_pairs(path: Path, option: str) -> list[tuple[Path, Path | None]]:
    """The volumes below a folder, each with its mask, NAME_seg beside NAME, or None.

    Raises:
        EvaluateError: as `_nifti_files`, or a mask without its volume beside others that have theirs.
    """
    files = [
        (f.with_name(re.sub(r"\.(nii|nii\.gz|hdr)$", "", f.name, flags=re.I)), f) for f in _nifti_files(path, option)
    ]
    by_stem = dict(files)
    volumes = {s: s.with_name(s.name.removesuffix(MASK_ENDING)) for s in by_stem if s.name.endswith(MASK_ENDING)}
    alone = [mask for mask, volume in volumes.items() if volume not in by_stem]
    if len(alone) == len(volumes):  # then the ending has no such meaning in this folder
        return [(file, None) for _, file in files]
    if alone:
        raise EvaluateError(
            f"{option} {by_stem[alone[0]]}: a mask without its volume {volumes[alone[0]].name} beside it; restore the "
            "volume, or delete the mask"
        )
    return [(f, by_stem.get(s.with_name(s.name + MASK_ENDING))) for s, f in files if s not in volumes]


def _load_folder(path: Path, option: str, like: VolumeSet | None) -> VolumeSet:
    """Reads NIfTI files. Their intensities are scaled to [-1, 1] as those of `like` were, and clipped; without `like`
    by the 0.5 and 99.5 percentiles of all voxels. Masks are read where `like` has masks, whose values they have."""
    pairs = _folder_pairs(path, option)
    axis = like.slice_axis if like else "axial"
    values = like.info.mask_values if like and like.info else None
    arrays: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    spacing: np.ndarray | None = None
    for file, mask in tqdm(pairs, desc=f"reading {option}", disable=None):
        try:
            volume = load_nifti(file)
        except VolumeError as error:
            raise EvaluateError(f"{option} {file}: {error}") from error
        for warning in volume.warnings:
            tqdm.write(f"warning  {file}: {warning}")
        array = to_array_axes(volume.data, axis)
        if arrays and (array.shape != arrays[0].shape or not np.allclose(volume.spacing, spacing, rtol=1e-3)):
            raise EvaluateError(
                f"{option} {file}: expected the first file's shape {shape_option(arrays[0].shape, axis)} (X Y Z) and "
                f"spacing {spacing}; got {shape_option(array.shape, axis)} and {volume.spacing}; make one data set of "
                "them with `ssgan prepare`"
            )
        arrays.append(array)
        spacing = volume.spacing
        if values and mask:
            try:
                masks.append(to_array_axes(read_class_numbers(mask, volume, values), axis))
            except VolumeError as error:
                raise EvaluateError(f"{option} {mask}: {error}") from error
        elif values:
            masks.append(np.full(array.shape, NO_MASK, np.uint8))
    raw = np.stack(arrays)
    info = like.info if like else None
    low, high = (info.intensity_low, info.intensity_high) if info else np.percentile(raw, (0.5, 99.5))
    if like is not None and info is None:
        raise EvaluateError(
            f"{option} {path} is a folder and so is the other side: no common intensity scale; prepare one of them"
        )
    scaled = np.clip((raw - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    stacked = np.stack(masks) if values and any(mask for _, mask in pairs) else None
    return VolumeSet(path, "folder", scaled, tuple(map(float, spacing)), axis, masks=stacked)


def read_class_numbers(file: Path, volume: Volume, values: Sequence[int]) -> np.ndarray:
    """Reads the mask of a volume, (X, Y, Z) uint8 class numbers. values: the value of each class in the file.

    Raises:
        VolumeError: unreadable, on another grid than the volume, or with other values.
    """
    stored = read_mask(file)
    order = nibabel.io_orientation(stored.affine)
    data = nibabel.apply_orientation(stored.data, order)
    affine = stored.affine @ nibabel.orientations.inv_ornt_aff(order, stored.data.shape)
    if data.shape != volume.data.shape or not np.allclose(affine, volume.affine, atol=1e-3):
        raise VolumeError(
            f"expected the grid of its volume, shape {volume.data.shape} and affine {volume.affine.tolist()}; got "
            f"{data.shape} and {affine.tolist()}"
        )
    found = np.unique(data)
    if not np.isin(found, values).all():
        raise VolumeError(f"expected the values {list(values)} of the data set's masks; got {found.tolist()}")
    return np.searchsorted(values, data).astype(np.uint8)


def check_finite(source: VolumeSet, option: str) -> VolumeSet:
    """Raises EvaluateError where a voxel is NaN or infinite."""
    bad = [i for i, v in enumerate(source.volumes) if not np.isfinite(v).all()]
    if bad:
        raise EvaluateError(f"{option}: volumes {bad[:5]} hold NaN or infinite values; repair or leave them out")
    return source


def check_comparable(real: VolumeSet, other: VolumeSet, option: str) -> None:
    """Raises EvaluateError unless shape, spacing (to 1 %) and axes agree."""
    for name, a, b in (
        ("slice axis", real.slice_axis, other.slice_axis),
        ("shape (X Y Z)", *(shape_option(s.volumes.shape[1:], s.slice_axis) for s in (real, other))),
    ):
        if a != b:
            raise EvaluateError(f"{option}: expected the {name} of --real, {a}; got {b}; prepare both alike")
    if not np.allclose(real.spacing, other.spacing, rtol=0.01):
        raise EvaluateError(
            f"{option}: expected the spacing of --real, {real.spacing} mm; got {other.spacing}; prepare both alike"
        )


def check_masks(first: VolumeSet, other: VolumeSet, option: str) -> None:
    """Raises EvaluateError where both have masks, of other classes."""
    if first.masks is None or other.masks is None or first.info is None or other.info is None:
        return  # the masks of a folder were read as those of the other side
    kinds = [dict(zip(s.info.mask_names, s.info.mask_values, strict=True)) for s in (first, other)]
    if kinds[0] != kinds[1]:
        raise EvaluateError(f"{option}: expected the classes of the other masks, {kinds[0]}; got {kinds[1]}")


def check_disjoint(real: VolumeSet, held: VolumeSet) -> None:
    """Raises EvaluateError where a held-out volume is also a training volume: the check for copies would be void."""
    trained = set(real.volume_hashes)
    same = [i for i, digest in enumerate(held.volume_hashes) if digest in trained]
    if same:
        raise EvaluateError(
            f"--held-out: volumes {same[:5]} ({len(same)} in all) are among those of --real, voxel for voxel; expected "
            "volumes that were not trained on"
        )
