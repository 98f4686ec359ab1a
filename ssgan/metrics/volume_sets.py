"""The sides of an evaluation: volumes of a data set, a run or a folder of NIfTI files, on one scale of intensity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ssgan.data.axes import to_array_axes
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.data.nifti import SUFFIXES, load_nifti
from ssgan.data.sources import find_files
from ssgan.data.volume import VolumeError
from ssgan.models.sampling import latents, synthesise
from ssgan.runs import checkpoint as checkpoints
from ssgan.runs.generator import class_labels, load_generator
from ssgan.utils.errors import UserError


class EvaluateError(UserError):
    """Sets that cannot be compared, or a bad argument of `evaluate`."""


@dataclass(frozen=True)
class Source:
    """volumes: (N, D, H, W) float32 in [-1, 1]. spacing: (x, y, z) mm. info: None for a folder. checkpoint: of a run,
    its file's name and SHA-256."""

    kind: str
    volumes: np.ndarray
    spacing: tuple[float, ...]
    slice_axis: str
    info: DatasetInfo | None
    checkpoint: tuple[str, str] | None = None

    @cached_property
    def content(self) -> str:
        """SHA-256 of all voxels; a data set records the same."""
        digest = hashlib.sha256()
        for volume in self.volumes:
            digest.update(np.ascontiguousarray(volume, dtype="<f4").tobytes())
        return digest.hexdigest()

    @cached_property
    def each(self) -> list[str]:
        """SHA-256 of every volume."""
        return [hashlib.sha256(np.ascontiguousarray(v, dtype="<f4").tobytes()).hexdigest() for v in self.volumes]


def is_folder(path: Path) -> bool:
    """Whether it is a folder of files: neither a data set nor a run, which say themselves what their greys mean."""
    return path.is_dir() and not (path / "dataset.json").is_file() and not (path / "config.json").is_file()


def load_source(path: Path, option: str, like: Source | None, count: int, checkpoint: Path | None = None) -> Source:
    """A data set, a run (`count` volumes of G_ema by seeds 0, 1, ...) or a folder of NIfTI.

    The raw intensities of a folder are taken to [-1, 1] by the scale of `like`, if that is a data set, and clipped; a
    folder without one by the 0.5 and 99.5 percentiles of all its voxels.
    """
    if (path / "dataset.json").is_file():
        data = VolumeDataset(path)
        return checked(Source("dataset", data.volumes, data.info.spacing, data.info.slice_axis, data.info), option)
    if (path / "config.json").is_file():
        G, meta, info, file = load_generator(path, checkpoint)
        if meta.stage == "2d":
            raise EvaluateError(f"{option} {path}: {file.name} is of stage 2d, which makes slices; train the 3D stage")
        c = class_labels(path, G, count)
        parts = [
            synthesise(
                G, latents(range(i, min(i + 4, count)), G.cfg.z_dim), batch=4, c=None if c is None else c[i : i + 4]
            )
            for i in tqdm(range(0, count, 4), desc="generating", disable=None)
        ]
        made = np.clip(np.concatenate(parts), -1, 1)
        origin = (file.name, checkpoints.checksum(file))
        return checked(Source("run", made, info.spacing, info.slice_axis, info, origin), option)
    if not path.is_dir():
        what = "is a file" if path.exists() else "does not exist"
        raise EvaluateError(f"{option} {path} {what}; expected a data set, a folder of NIfTI files or a run")
    files = [f for f in find_files(path).files if f.name.lower().endswith(SUFFIXES)]
    if not files:
        raise EvaluateError(f"{option} {path}: no NIfTI files, dataset.json or config.json in it")
    axis = like.slice_axis if like else "axial"
    loaded: list[np.ndarray] = []
    spacing: np.ndarray | None = None
    for file in tqdm(files, desc=f"reading {option}", disable=None):
        try:
            volume = load_nifti(file)
        except VolumeError as error:
            raise EvaluateError(f"{option} {file}: {error}") from error
        array = to_array_axes(volume.data, axis)
        if loaded and (array.shape != loaded[0].shape or not np.allclose(volume.spacing, spacing, rtol=1e-3)):
            raise EvaluateError(
                f"{option} {file}: expected the first file's shape {loaded[0].shape} and spacing {spacing}; "
                f"got {array.shape} and {volume.spacing}; make one data set of them with `ssgan prepare`"
            )
        loaded.append(array)
        spacing = volume.spacing
    raw = np.stack(loaded)
    info = like.info if like else None
    low, high = (info.intensity_low, info.intensity_high) if info else np.percentile(raw, (0.5, 99.5))
    if like is not None and info is None:
        raise EvaluateError(
            f"{option} {path} is a folder and so is the other side: no common intensity scale; prepare one of them"
        )
    scaled = np.clip((raw - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
    return checked(Source("folder", scaled, tuple(map(float, spacing)), axis, None), option)


def checked(source: Source, option: str) -> Source:
    bad = [i for i, v in enumerate(source.volumes) if not np.isfinite(v).all()]
    if bad:
        raise EvaluateError(f"{option}: volumes {bad[:5]} hold NaN or infinite values; repair or leave them out")
    return source


def check_alike(real: Source, other: Source, option: str) -> None:
    """Raises EvaluateError unless shape, spacing (to 1 %) and axes agree."""
    for what, a, b in (
        ("shape (D, H, W)", real.volumes.shape[1:], other.volumes.shape[1:]),
        ("slice axis", real.slice_axis, other.slice_axis),
    ):
        if a != b:
            raise EvaluateError(f"{option}: expected the {what} of --real, {a}; got {b}; prepare both alike")
    if not np.allclose(real.spacing, other.spacing, rtol=0.01):
        raise EvaluateError(
            f"{option}: expected the spacing of --real, {real.spacing} mm; got {other.spacing}; prepare both alike"
        )


def check_apart(real: Source, held: Source) -> None:
    """Raises EvaluateError where a held-out volume is one of the training volumes: copies would look like nothing."""
    trained = set(real.each)
    same = [i for i, digest in enumerate(held.each) if digest in trained]
    if same:
        raise EvaluateError(
            f"--held-out: volumes {same[:5]} ({len(same)} in all) are among those of --real, voxel for voxel; expected "
            "volumes that were not trained on"
        )
