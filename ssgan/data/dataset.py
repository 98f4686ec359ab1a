"""The prepared data set on disk (`volumes.npy`, `dataset.json`, a contact sheet) and the way back to NIfTI.

Array axes depend on the slice axis, so that a 2D slice volumes[i, d] is the plane that was asked for:

    axial      D, H, W = Z, Y, X        coronal    D, H, W = Y, Z, X        sagittal   D, H, W = X, Z, Y

with X, Y, Z pointing to the patient's right, front and head (RAS+). Intensities are float32 in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import nibabel
import numpy as np
import torch
from torch import Tensor

from ssgan.config import Triple
from ssgan.errors import UserError
from ssgan.files import fsync_path, read_json, write_json_atomic

FORMAT, VERSION = "ssgan-dataset", 1
FILES = ("volumes.npy", "dataset.json", "contact_sheet.png")
HEADER_BYTES = 128  # of volumes.npy: numpy pads it to a multiple of 64, and any count of volumes fits

# slice axis -> which of X, Y, Z the array axes D, H, W are.
ARRAY_AXES: dict[str, Triple] = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}


class DatasetError(UserError):
    """A data set that is absent, incomplete, damaged or would be overwritten; the message names the folder."""


@dataclass(frozen=True)
class DatasetInfo:
    """What all volumes of a data set share.

    shape: (D, H, W) voxels. spacing: (x, y, z) mm. affine: 4x4, index (X, Y, Z) to RAS+ world in mm, of a typical
    volume. intensity_low, intensity_high: typical raw values of -1 and +1 (medians over the volumes).
    content_hash: SHA-256 of the voxels. classes: names of the classes in the order of their numbers, or None where
    the volumes have no labels (and in data sets of earlier versions).
    """

    shape: Triple
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    slice_axis: str
    recipe: str
    intensity_low: float
    intensity_high: float
    content_hash: str
    classes: tuple[str, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DatasetInfo:
        known = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) | {"classes"} != known:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise DatasetError(f"data set description: expected the fields {sorted(known)}; got {found}")
        if data["slice_axis"] not in ARRAY_AXES:
            raise DatasetError(f"data set description: slice_axis is {data['slice_axis']!r}, not of {list(ARRAY_AXES)}")
        values = dict(data)
        try:
            values["shape"] = tuple(int(n) for n in data["shape"])
            values["spacing"] = tuple(float(s) for s in data["spacing"])
            values["affine"] = tuple(tuple(float(v) for v in row) for row in data["affine"])
            names = data.get("classes")
            values["classes"] = None if names is None else tuple(str(name) for name in names)
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"data set description: shape, spacing or affine hold no numbers, or classes no names ({error})"
            ) from error
        return cls(**values)


def class_names(labels: Sequence[str]) -> tuple[str, ...] | None:
    """The different labels in order (by value where all are whole numbers); None where there are none."""
    names = set(labels)
    whole = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if whole else name)) if names else None


def to_array_axes(volume: np.ndarray, slice_axis: str) -> np.ndarray:
    """(X, Y, Z) -> (D, H, W)."""
    return volume.transpose(ARRAY_AXES[slice_axis])


def to_world_axes(volume: np.ndarray, slice_axis: str) -> np.ndarray:
    """(..., D, H, W) -> (..., X, Y, Z)."""
    order = np.argsort(ARRAY_AXES[slice_axis])
    lead = volume.ndim - 3
    return volume.transpose(*range(lead), *(lead + order))


def to_axial(volumes: np.ndarray, slice_axis: str) -> np.ndarray:
    """(..., D, H, W) of any slice axis -> (..., Z, Y, X), the axes that pictures are drawn from."""
    return np.swapaxes(to_world_axes(volumes, slice_axis), -1, -3)


def to_nifti(volume: np.ndarray | Tensor, info: DatasetInfo) -> nibabel.Nifti1Image:
    """A volume (D, H, W) in [-1, 1] as a NIfTI image with axes X, Y, Z (RAS+), in mm, intensities on the raw scale."""
    array = np.asarray(volume, dtype=np.float32)
    if array.shape != tuple(info.shape):
        raise DatasetError(f"volume: expected shape (D, H, W) = {tuple(info.shape)}; got {array.shape}")
    raw = (array.astype(np.float64) + 1) / 2 * (info.intensity_high - info.intensity_low) + info.intensity_low
    image = nibabel.Nifti1Image(
        np.ascontiguousarray(to_world_axes(raw.astype(np.float32), info.slice_axis)), np.asarray(info.affine)
    )
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code="aligned")  # some readers look at the qform alone
    return image


class VolumeDataset:
    """A prepared data set, opened read-only; the voxels stay on the disk (memory-mapped).

    volumes: (N, D, H, W) float32. labels: (N,) int64, the place of each volume's class in `info.classes`, or None.
    records: per volume what `prepare` found and did. skipped: the files left out, with reasons.

    Raises:
        DatasetError: the folder is absent or not a data set, a file is missing, or the two do not belong together.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "dataset.json").is_file():
            what = "is not a data set (it has no dataset.json)" if self.path.is_dir() else "does not exist"
            raise DatasetError(f"{self.path} {what}; make one with `ssgan prepare` or `ssgan phantom`")
        head = read_json(self.path / "dataset.json")
        if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
            found = (head.get("format"), head.get("version")) if isinstance(head, dict) else type(head).__name__
            raise DatasetError(f"{self.path}/dataset.json: expected format {FORMAT!r}, version {VERSION}; got {found}")
        missing = [name for name in ("info", "volumes", "skipped") if name not in head]
        if missing:
            raise DatasetError(f"{self.path}/dataset.json lacks {', '.join(missing)}; prepare the data set again")
        self.info = DatasetInfo.from_json(head["info"])
        self.records: list[dict[str, Any]] = head["volumes"]
        self.skipped: list[dict[str, Any]] = head["skipped"]
        file = self.path / "volumes.npy"
        try:
            self.volumes: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DatasetError(f"{file} is missing; prepare the data set again") from None
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{file} is damaged or cut off ({error}); prepare the data set again") from error
        expected = (len(self.records), *self.info.shape)
        if self.volumes.shape != expected or self.volumes.dtype != np.float32:
            raise DatasetError(
                f"{file}: expected float32 of shape {expected} as dataset.json says; got {self.volumes.dtype} of "
                f"shape {self.volumes.shape}; prepare the data set again"
            )
        self.labels = self._labels()

    def _labels(self) -> np.ndarray | None:
        if self.info.classes is None:
            return None
        number = {name: i for i, name in enumerate(self.info.classes)}
        names = [r.get("class_label") for r in self.records]
        unknown = [i for i, name in enumerate(names) if name not in number]
        if unknown or len(number) != len(self.info.classes):
            found = f"volume {unknown[0]} has {names[unknown[0]]!r}" if unknown else "a name stands twice"
            raise DatasetError(
                f"{self.path}/dataset.json: expected classes of {list(self.info.classes)}; {found}; prepare the data "
                "set again"
            )
        return np.array([number[name] for name in names], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.volumes)

    def volume_batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """(B, 1, D, H, W) float32 of the volumes at `indices`."""
        return torch.from_numpy(np.stack([self.volumes[i] for i in indices])[:, None])

    def slice_batch(self, volumes: Sequence[int] | np.ndarray, slices: Sequence[int] | np.ndarray) -> Tensor:
        """(B, 1, 1, H, W) float32: slice slices[b] along D of volume volumes[b]."""
        picked = np.stack([self.volumes[v, s] for v, s in zip(volumes, slices, strict=True)])
        return torch.from_numpy(picked[:, None, None])


class DatasetWriter:
    """Writes a data set volume by volume into a hidden folder beside `path`, and renames it when it is whole.

    Use as a context manager: leaving it without `finish` (an error, Ctrl-C) removes what was begun. Memory holds one
    volume at a time. An earlier data set at `path` is replaced only with overwrite=True and only at the end.
    """

    def __init__(self, path: str | os.PathLike[str], shape: Triple, overwrite: bool = False) -> None:
        self.path, self.shape, self.overwrite, self.count = Path(path), tuple(shape), overwrite, 0
        check_destination(self.path, overwrite)
        self.target = self.path.resolve()  # a link stays one, and its disk is the one written to
        self.folder = self.target.parent / f".{self.target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.records: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> DatasetWriter:
        self.folder.mkdir(parents=True)
        try:
            self._file = (self.folder / "volumes.npy").open("w+b")
            self._header()
        except BaseException:  # Python calls __exit__ only after a whole __enter__
            self._discard()
            raise
        return self

    def _header(self) -> None:
        """The .npy header for the volumes so far; numpy pads it to 64 bytes, so rewriting does not move the data."""
        assert self._file is not None
        self._file.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, head)
        assert self._file.tell() == HEADER_BYTES

    def add(self, volume: np.ndarray, record: dict[str, Any]) -> None:
        """Appends a volume (D, H, W) in [-1, 1] with its JSON-able record; needs intensity_low and intensity_high."""
        assert self._file is not None
        array = np.ascontiguousarray(volume, dtype="<f4")
        if array.shape != self.shape or not np.isfinite(array).all() or np.abs(array).max() > 1:
            raise ValueError(f"volume: expected finite values in [-1, 1] of shape {self.shape}; got {array.shape}")
        self._file.seek(0, os.SEEK_END)
        self._file.write(array.tobytes())
        self._hash.update(array.tobytes())
        self.records.append(record)
        self.count += 1

    def read(self, count: int) -> np.ndarray:
        """The first `count` volumes written so far, (count, D, H, W)."""
        assert self._file is not None
        self._file.flush()
        voxels = count * int(np.prod(self.shape))
        return np.fromfile(self._file.name, "<f4", voxels, offset=HEADER_BYTES).reshape(count, *self.shape)

    def finish(
        self, *, spacing: Sequence[float], affine: np.ndarray, slice_axis: str, recipe: str,
        skipped: Sequence[dict[str, Any]] = (),
    ) -> VolumeDataset:  # fmt: skip
        """Writes dataset.json, syncs, renames into place and opens the result."""
        assert self._file is not None
        self._header()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        info = DatasetInfo(
            shape=self.shape,  # type: ignore[arg-type]
            spacing=tuple(float(s) for s in spacing),  # type: ignore[arg-type]
            affine=tuple(tuple(float(v) for v in row) for row in affine),
            slice_axis=slice_axis,
            recipe=recipe,
            intensity_low=float(np.median([r["intensity_low"] for r in self.records])),
            intensity_high=float(np.median([r["intensity_high"] for r in self.records])),
            content_hash=self._hash.hexdigest(),
            classes=class_names([r["class_label"] for r in self.records if "class_label" in r]),
        )
        head = {"format": FORMAT, "version": VERSION, "info": info.to_json()}
        write_json_atomic(self.folder / "dataset.json", {**head, "volumes": self.records, "skipped": list(skipped)})
        VolumeDataset(self.folder)
        fsync_path(self.folder)
        check_destination(self.path, self.overwrite)  # again: hours may have passed
        old = self.folder.with_name(self.folder.name + ".old")
        if self.target.exists():
            os.replace(self.target, old)
        try:
            os.replace(self.folder, self.target)
        except BaseException:
            if old.exists():
                os.replace(old, self.target)
            raise
        fsync_path(self.target.parent)
        shutil.rmtree(old, ignore_errors=True)
        return VolumeDataset(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # closing flushes, which a full disk refuses once more
                self._file.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def check_destination(path: Path, overwrite: bool) -> None:
    """Refuses to touch anything that is not ours.

    Raises:
        DatasetError: `path` is a file, a folder of something else or with other files, or a data set and overwrite is
            False.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise DatasetError(f"--out {path} is a file; expected a folder to be made")
    names = {p.name for p in path.iterdir()}
    if not names:
        return
    if "dataset.json" not in names or not _is_ours(path / "dataset.json"):
        raise DatasetError(f"--out {path} is not empty and not a data set; give a new folder (nothing was changed)")
    if not overwrite:
        raise DatasetError(f"--out {path} holds a data set already; give another folder, or --overwrite to replace it")
    others = sorted(names - set(FILES))
    if others:
        raise DatasetError(
            f"--out {path} holds more than a data set, such as {others[0]}, which --overwrite would delete; move it "
            "away or give another folder (nothing was changed)"
        )


def _is_ours(path: Path) -> bool:
    """Other programs (and the Medical Segmentation Decathlon) have a dataset.json too."""
    try:
        head = read_json(path)
    except UserError:
        return False
    return isinstance(head, dict) and head.get("format") == FORMAT
