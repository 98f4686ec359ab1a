"""Loads the sets of volumes that an evaluation compares: of a data set, a run or a folder of NIfTI files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.data.axes import shape_option, to_array_axes
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.data.nifti import SUFFIXES, load_nifti
from ssgan.data.sources import find_files
from ssgan.data.volume import VolumeError
from ssgan.models.sampling import latents, synthesise
from ssgan.runs.config import is_run
from ssgan.runs.generator import load_generator
from ssgan.utils.errors import UserError

MIN_VOLUMES = 12  # a side
MAX_GENERATED = 200  # volumes of a run, unless more are asked for
BATCH = 4


class EvaluateError(UserError):
    """Sets that cannot be compared, or a bad argument of `evaluate`."""


@dataclass(frozen=True)
class VolumeSet:
    """Volumes (N, D, H, W) float32 in [-1, 1].

    kind: "dataset", "run" or "folder". spacing: (x, y, z) mm. info: None for a folder. checkpoint: of the file that a
    run's volumes were generated from, as metrics.json records it.
    """

    path: Path
    kind: str
    volumes: np.ndarray
    spacing: tuple[float, ...]
    slice_axis: str
    info: DatasetInfo | None = None
    checkpoint: dict[str, Any] | None = None

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all voxels, as a data set records it."""
        digest = hashlib.sha256()
        for volume in self.volumes:
            digest.update(np.ascontiguousarray(volume, dtype="<f4").tobytes())
        return digest.hexdigest()

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
    if is_run(real) and not (real / "dataset.json").is_file():
        raise EvaluateError(f"--real {real} is a run; expected a data set or a folder of NIfTI")
    if is_run(fake) and real.is_dir():  # before the work of generating
        have = len(_nifti_files(real, "--real")) if _is_folder(real) else len(VolumeDataset(real))
        check_counts(have, None, count)
    if _is_folder(real):
        second = load_volume_set(fake, "--fake", None, count or MAX_GENERATED, checkpoint)
        first = load_volume_set(real, "--real", second)
    else:
        first = load_volume_set(real, "--real")
        most = count or min(MAX_GENERATED, len(first.volumes) // 2)
        second = load_volume_set(fake, "--fake", first, most, checkpoint)
    check_comparable(first, second, "--fake")
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
    check_disjoint(real, held)
    return held


def _is_folder(path: Path) -> bool:
    """Whether it is a folder of files: neither a data set nor a run, which record what their intensities mean."""
    return path.is_dir() and not (path / "dataset.json").is_file() and not is_run(path)


def load_volume_set(
    path: Path, option: str, like: VolumeSet | None = None, count: int = 0, checkpoint: Path | None = None
) -> VolumeSet:
    """Loads a data set, `count` volumes of a run's G_ema (seeds 0, 1, ...), or a folder of NIfTI.

    like: the other side, whose intensity scale and axes a folder gets.

    Raises:
        EvaluateError: see the message, which names `option`.
    """
    if (path / "dataset.json").is_file():
        data = VolumeDataset(path)
        loaded = VolumeSet(path, "dataset", data.volumes, data.info.spacing, data.info.slice_axis, data.info)
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
        synthesise(
            G, latents(range(i, min(i + BATCH, count)), G.cfg.z_dim), batch=BATCH,
            c=None if c is None else c[i : i + BATCH],
        )
        for i in tqdm(range(0, count, BATCH), desc="generating", disable=None)
    ]  # fmt: skip
    volumes = np.clip(np.concatenate(parts), -1, 1)
    about = {
        "checkpoint": source.path.name,
        "checkpoint_sha256": source.sha256,
        "checkpoint_images": source.meta.images,
    }
    return VolumeSet(path, "run", volumes, info.spacing, info.slice_axis, info, about)


def _nifti_files(path: Path, option: str) -> list[Path]:
    """The NIfTI files below a folder; raises EvaluateError if there are none, or a folder cannot be read."""
    found = find_files(path)
    for unread, reason in found.unreadable:
        raise EvaluateError(f"{option} {unread}: {reason}")
    files = [f for f in found.files if f.name.lower().endswith(SUFFIXES)]
    if not files:
        raise EvaluateError(f"{option} {path}: no NIfTI files, dataset.json or config.json in it")
    return files


def _load_folder(path: Path, option: str, like: VolumeSet | None) -> VolumeSet:
    """Reads NIfTI files. Their intensities are scaled to [-1, 1] as those of `like` were, and clipped; without `like`
    by the 0.5 and 99.5 percentiles of all voxels."""
    files = _nifti_files(path, option)
    axis = like.slice_axis if like else "axial"
    arrays: list[np.ndarray] = []
    spacing: np.ndarray | None = None
    for file in tqdm(files, desc=f"reading {option}", disable=None):
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
    raw = np.stack(arrays)
    info = like.info if like else None
    low, high = (info.intensity_low, info.intensity_high) if info else np.percentile(raw, (0.5, 99.5))
    if like is not None and info is None:
        raise EvaluateError(
            f"{option} {path} is a folder and so is the other side: no common intensity scale; prepare one of them"
        )
    scaled = np.clip((raw - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    return VolumeSet(path, "folder", scaled, tuple(map(float, spacing)), axis)


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


def check_disjoint(real: VolumeSet, held: VolumeSet) -> None:
    """Raises EvaluateError where a held-out volume is also a training volume: the check for copies would be void."""
    trained = set(real.volume_hashes)
    same = [i for i, digest in enumerate(held.volume_hashes) if digest in trained]
    if same:
        raise EvaluateError(
            f"--held-out: volumes {same[:5]} ({len(same)} in all) are among those of --real, voxel for voxel; expected "
            "volumes that were not trained on"
        )
