"""The prepared data set on disk (`volumes.npy`, `dataset.json`, a contact sheet) and the way back to NIfTI.

Array axes depend on the slice axis, so that a 2D slice volumes[i, d] is the plane that was asked for:

    axial      D, H, W = Z, Y, X        coronal    D, H, W = Y, Z, X        sagittal   D, H, W = X, Z, Y

with X, Y, Z pointing to the patient's right, front and head (RAS+). Intensities are float32 in [-1, 1].
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TextIO

import nibabel
import numpy as np
import torch
from torch import Tensor

from ssgan.config.fields import Triple
from ssgan.data.axes import ARRAY_AXES, to_array_axes, to_axial, to_world_axes
from ssgan.utils.errors import UserError
from ssgan.utils.files import fsync_path, read_json, write_json_atomic

__all__ = [
    "ARRAY_AXES", "DatasetError", "DatasetInfo", "DatasetWriter", "VolumeDataset", "check_destination", "class_names",
    "to_array_axes", "to_axial", "to_nifti", "to_world_axes",
]  # fmt: skip

FORMAT, VERSION = "ssgan-dataset", 1
FILES = ("volumes.npy", "dataset.json", "contact_sheet.png")
CONTACT_SHEET_VOLUMES = 48  # at most
WORK_FILES = ("plan.json", "journal.jsonl", "lock")  # of a run that is not finished
HEADER_BYTES = 128  # of volumes.npy: numpy pads it to a multiple of 64, and any count of volumes fits


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

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Volumes of each class; empty for a data set without classes."""
        names = self.info.classes or ()
        return () if self.labels is None else tuple(np.bincount(self.labels, minlength=len(names)).tolist())

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

    With a `plan` (JSON-able: all that decides the result) what was begun stays, unless the error is the user's to
    mend, and the next writer with the same plan goes on there: `done` says how many volumes and skipped files are
    settled, from a journal whose checksums are compared with the voxels on the disk.

    Raises:
        DatasetError: `path` holds something else, another process writes there, or what was begun has another plan
            and restart is False.
    """

    def __init__(
        self, path: str | os.PathLike[str], shape: Triple, overwrite: bool = False, plan: dict[str, Any] | None = None,
        restart: bool = False,
    ) -> None:  # fmt: skip
        self.path, self.shape, self.overwrite, self.count = Path(path), tuple(shape), overwrite, 0
        check_destination(self.path, overwrite)
        self.target = self.path.resolve()  # a link stays one, and its disk is the one written to
        self.plan, self.restart = json.loads(json.dumps(plan)), restart
        mark = "partial" if plan is not None else f"{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.folder = self.target.parent / f".{self.target.name}.{mark}"
        self.records: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None
        self._journal: TextIO | None = None
        self._lock: TextIO | None = None

    @property
    def done(self) -> int:
        """Volumes and skipped files that are settled."""
        return len(self.records) + len(self.skipped)

    def __enter__(self) -> DatasetWriter:
        self.folder.mkdir(parents=True, exist_ok=self.plan is not None)
        if self.plan is not None:
            self._take_lock()
        try:
            begun = self.plan is not None and self._same_plan()
            self._file = (self.folder / "volumes.npy").open("r+b" if begun else "w+b")
            if begun:
                self._resume()
            elif self.plan is not None:
                write_json_atomic(self.folder / "plan.json", self.plan)
            if self.plan is not None:
                self._journal = (self.folder / "journal.jsonl").open("a" if begun else "w", encoding="utf-8")
            self._header()
        except DatasetError:
            self._close()
            raise
        except BaseException:  # Python calls __exit__ only after a whole __enter__
            self._leave()
            raise
        return self

    def _take_lock(self) -> None:
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise DatasetError(f"--out {self.path}: another process prepares it at this moment; wait for it") from None

    def _same_plan(self) -> bool:
        """Whether a usable beginning is there; what is unusable goes."""
        others = [f for f in self.folder.iterdir() if f.name != "lock"]
        wanted = ("plan.json", "journal.jsonl", "volumes.npy")
        if not self.restart and all((self.folder / name).is_file() for name in wanted):
            old = read_json(self.folder / "plan.json")
            differ = [k for k in {**old, **self.plan} if old.get(k) != self.plan.get(k)]
            if not differ:
                return True
            was, now = (", ".join(f"{k} {str(p.get(k))[:60]}" for k in differ) for p in (old, self.plan))
            raise DatasetError(
                f"--out {self.path}: an unfinished run with other arguments is there ({was}; now {now}). Repeat its "
                "command to finish it, give another folder, or --restart to begin anew (nothing was changed)"
            )
        for file in others:
            file.unlink()
        return False

    def _resume(self) -> None:
        """Takes over what the journal names and the disk holds; cuts off the rest."""
        assert self._file is not None
        size, good = 4 * math.prod(self.shape), 0
        self._file.seek(HEADER_BYTES)
        with (self.folder / "journal.jsonl").open("rb") as journal:
            for line in journal:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                except ValueError:
                    entry = {}
                if "skipped" in entry:
                    self.skipped.append(entry["skipped"])
                else:
                    voxels = self._file.read(size)
                    if "crc" not in entry or len(voxels) != size or zlib.crc32(voxels) != entry["crc"]:
                        break
                    self._hash.update(voxels)
                    self.records.append(entry["record"])
                good += len(line)
        self.count = len(self.records)
        self._file.truncate(HEADER_BYTES + self.count * size)
        os.truncate(self.folder / "journal.jsonl", good)

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
        voxels = array.tobytes()
        self._file.seek(0, os.SEEK_END)
        self._file.write(voxels)
        self._note({"crc": zlib.crc32(voxels), "record": record})
        self._hash.update(voxels)
        self.records.append(record)
        self.count += 1

    def skip(self, entry: dict[str, str]) -> None:
        """Settles a file that is left out: {"file": ..., "reason": ...}."""
        self._note({"skipped": entry})
        self.skipped.append(entry)

    def _note(self, entry: dict[str, Any]) -> None:
        """A line of the journal, after the voxels it speaks of."""
        if self._journal is not None:
            assert self._file is not None
            self._file.flush()
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()

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
        write_json_atomic(
            self.folder / "dataset.json", {**head, "volumes": self.records, "skipped": [*self.skipped, *skipped]}
        )
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
        for name in WORK_FILES:  # last: a run killed before the rename goes on, and after it they do no harm
            (self.target / name).unlink(missing_ok=True)
        return VolumeDataset(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self._discard()
        else:
            self._leave()

    def _leave(self) -> None:
        """Keeps what a later run can go on from, and nothing else."""
        if self.plan is None or not self.done:
            self._discard()
        else:
            self._close()

    def _close(self) -> None:
        for file in (self._file, self._journal, self._lock):
            if file is not None:
                with suppress(OSError):  # closing flushes, which a full disk refuses once more
                    file.close()

    def _discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._close()


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
    others = sorted(names - {*FILES, *WORK_FILES})
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
