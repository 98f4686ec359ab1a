"""Writes a data set volume by volume: atomically, and so that an unfinished one can be continued."""

from __future__ import annotations

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
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, TextIO

import numpy as np

from ssgan.config.fields import Triple
from ssgan.data.dataset import (
    FORMAT,
    NO_MASK,
    VERSION,
    DatasetError,
    DatasetInfo,
    VolumeDataset,
    check_mask_classes,
    class_names,
)
from ssgan.utils.errors import UserError
from ssgan.utils.files import fsync_path, read_json, write_json_atomic

FILES = ("volumes.npy", "masks.npy", "dataset.json", "contact_sheet.png")
CONTACT_SHEET_VOLUMES = 48  # at most
WORK_FILES = ("plan.json", "journal.jsonl", "lock")  # of an unfinished data set
HEADER_BYTES = 128  # of a .npy file; numpy pads the header to a multiple of 64, and any count of volumes fits


class MaskClasses(NamedTuple):
    """The classes of a data set's masks: their values in the source files, from 0 on, and their names."""

    values: tuple[int, ...]
    names: tuple[str, ...]


class _ArrayFile:
    """A .npy file (N, *shape) to which arrays are appended; its header is written last."""

    def __init__(self, path: Path, dtype: str, shape: Triple, resume: bool) -> None:
        self.file: BinaryIO = path.open("r+b" if resume else "w+b")
        self.dtype, self.shape = dtype, shape
        self.size = np.dtype(dtype).itemsize * math.prod(shape)  # bytes of one array

    def append(self, voxels: bytes) -> None:
        self.file.seek(0, os.SEEK_END)
        self.file.write(voxels)

    def next(self) -> bytes:
        """The voxels of the next array; too few at the end of the file."""
        return self.file.read(self.size)

    def truncate(self, count: int) -> None:
        self.file.truncate(HEADER_BYTES + count * self.size)

    def write_header(self, count: int) -> None:
        """Writes the .npy header for so many arrays; its length is the same for any count."""
        self.file.seek(0)
        head = {"descr": self.dtype, "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(self.file, head)
        assert self.file.tell() == HEADER_BYTES

    def read(self, count: int) -> np.ndarray:
        """Reads back the first `count` arrays."""
        self.file.flush()
        voxels = np.fromfile(self.file.name, self.dtype, count * math.prod(self.shape), offset=HEADER_BYTES)
        return voxels.reshape(count, *self.shape)

    def finish(self, count: int) -> None:
        self.write_header(count)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


class DatasetWriter:
    """Writes a data set volume by volume into a hidden folder beside `path`, and renames the folder at the end.

    It is a context manager: leaving it without `finish` (an error, Ctrl-C) deletes the hidden folder. Memory holds one
    volume at a time. An earlier data set at `path` is replaced only with overwrite=True, and only at the end.

    With a `plan` (all that decides the data set, as JSON) the hidden folder stays after Ctrl-C or a system error, and
    the next writer with the same plan continues there: `done` volumes and skipped files are settled already. They are
    read from a journal, whose checksums are compared with the voxels on the disk.

    With `masks`, the classes of the masks, each volume may have one: masks.npy is written beside volumes.npy.

    Raises:
        DatasetError: `path` holds something else, another process writes there, or an unfinished data set with another
            plan is there and restart is False.
    """

    def __init__(
        self, path: str | os.PathLike[str], shape: Triple, overwrite: bool = False, plan: dict[str, Any] | None = None,
        restart: bool = False, masks: MaskClasses | None = None,
    ) -> None:  # fmt: skip
        if masks is not None:
            check_mask_classes(*masks)
        self.path, self.shape, self.overwrite, self.count = Path(path), tuple(shape), overwrite, 0
        check_destination(self.path, overwrite)
        self.target = self.path.resolve()  # a link stays one, and its disk is the one written to
        self.plan, self.restart = json.loads(json.dumps(plan)), restart
        mark = "partial" if plan is not None else f"{os.getpid()}.{secrets.token_hex(4)}.tmp"
        self.folder = self.target.parent / f".{self.target.name}.{mark}"
        self.records: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []
        self.mask_classes = masks
        self._hash = hashlib.sha256()
        self._files: list[_ArrayFile] = []  # of the volumes, and of the masks if there are any
        self._journal: TextIO | None = None
        self._lock: TextIO | None = None

    @property
    def done(self) -> int:
        """How many volumes and skipped files are settled."""
        return len(self.records) + len(self.skipped)

    def __enter__(self) -> DatasetWriter:
        self.folder.mkdir(parents=True, exist_ok=self.plan is not None)
        if self.plan is not None:
            self._take_lock()
        try:
            resume = self.plan is not None and self._can_resume()
            for name, dtype in self._arrays():
                self._files.append(_ArrayFile(self.folder / name, dtype, self.shape, resume))  # type: ignore[arg-type]
            if resume:
                self._resume()
            elif self.plan is not None:
                write_json_atomic(self.folder / "plan.json", self.plan)
            if self.plan is not None:
                self._journal = (self.folder / "journal.jsonl").open("a" if resume else "w", encoding="utf-8")
            for file in self._files:
                file.write_header(self.count)
        except DatasetError:
            self._close()
            raise
        except BaseException:  # Python does not call __exit__ after an error in __enter__
            self._keep_or_delete()
            raise
        return self

    def _arrays(self) -> list[tuple[str, str]]:
        """The files with voxels and their types."""
        return [("volumes.npy", "<f4")] + ([("masks.npy", "|u1")] if self.mask_classes is not None else [])

    def _take_lock(self) -> None:
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise DatasetError(f"--out {self.path}: another process prepares it at this moment; wait for it") from None

    def _can_resume(self) -> bool:
        """Whether an unfinished data set with the same plan is there; deletes its files if they cannot be used."""
        needed = ("plan.json", "journal.jsonl", *(name for name, _ in self._arrays()))
        if not self.restart and all((self.folder / name).is_file() for name in needed):
            old = read_json(self.folder / "plan.json")
            different = [k for k in {**old, **self.plan} if old.get(k) != self.plan.get(k)]
            if not different:
                return True
            was, now = (", ".join(f"{k} {str(p.get(k))[:60]}" for k in different) for p in (old, self.plan))
            raise DatasetError(
                f"--out {self.path}: an unfinished run with other arguments is there ({was}; now {now}). Repeat its "
                "command to finish it, give another folder, or --restart to begin anew (nothing was changed)"
            )
        for file in list(self.folder.iterdir()):
            if file.name != "lock":
                file.unlink()
        return False

    def _resume(self) -> None:
        """Reads the journal up to the first entry whose voxels are not on the disk, and truncates the files there."""
        good = 0  # bytes of intact journal lines
        for file in self._files:
            file.file.seek(HEADER_BYTES)
        with (self.folder / "journal.jsonl").open("rb") as journal:
            for line in journal:
                try:
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                except ValueError:
                    entry = {}
                if "skipped" in entry:
                    self.skipped.append(entry["skipped"])
                else:
                    voxels = [file.next() for file in self._files]
                    whole = all(len(v) == file.size for v, file in zip(voxels, self._files, strict=True))
                    if not whole or _checksums(voxels) != {k: v for k, v in entry.items() if k != "record"}:
                        break
                    self._settle(voxels, entry["record"])
                good += len(line)
        for file in self._files:
            file.truncate(self.count)
        os.truncate(self.folder / "journal.jsonl", good)

    def add(self, volume: np.ndarray, record: dict[str, Any], mask: np.ndarray | None = None) -> None:
        """Appends a volume (D, H, W) in [-1, 1] with its record for dataset.json, and its mask of class numbers.

        The record holds at least intensity_low and intensity_high; with a mask, `mask` names its source.
        """
        array = np.ascontiguousarray(volume, dtype="<f4")
        if array.shape != self.shape or not np.isfinite(array).all() or np.abs(array).max() > 1:
            raise ValueError(f"volume: expected finite values in [-1, 1] of shape {self.shape}; got {array.shape}")
        voxels = [array.tobytes()]
        if self.mask_classes is not None:
            labels, counts = self._checked_mask(mask)
            voxels.append(labels.tobytes())
            name = None if mask is None else str(record.get("mask") or record.get("source"))
            record = {**record, "mask": name, "mask_voxels": counts}
        elif mask is not None:
            raise ValueError("mask: this data set has none; give `masks`, their classes, to the DatasetWriter")
        for file, array_bytes in zip(self._files, voxels, strict=True):
            file.append(array_bytes)
        self._write_journal({**_checksums(voxels), "record": record})
        self._settle(voxels, record)

    def _checked_mask(self, mask: np.ndarray | None) -> tuple[np.ndarray, list[int]]:
        """The mask as it is written, and the voxels of each class; raises ValueError for another shape or class."""
        assert self.mask_classes is not None
        if mask is None:
            return np.full(self.shape, NO_MASK, np.uint8), [0] * len(self.mask_classes.values)
        classes, array = len(self.mask_classes.values), np.asarray(mask)
        if array.shape != self.shape or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= classes:
            raise ValueError(
                f"mask: expected class numbers below {classes} of shape {self.shape}; got {array.dtype} from "
                f"{array.min()} to {array.max()} of shape {array.shape}"
            )
        return np.ascontiguousarray(array, dtype=np.uint8), np.bincount(array.ravel(), minlength=classes).tolist()

    def _settle(self, voxels: Sequence[bytes], record: dict[str, Any]) -> None:
        """Counts a volume that is on the disk, with its mask."""
        for array in voxels:
            self._hash.update(array)
        self.records.append(record)
        self.count += 1

    def skip(self, entry: dict[str, str]) -> None:
        """Records a file that is left out: {"file": ..., "reason": ...}."""
        self._write_journal({"skipped": entry})
        self.skipped.append(entry)

    def _write_journal(self, entry: dict[str, Any]) -> None:
        """Appends a line to the journal, after the voxels that it is about."""
        if self._journal is not None:
            for file in self._files:
                file.file.flush()
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()

    def read(self, count: int) -> np.ndarray:
        """Reads back the first `count` volumes, (count, D, H, W)."""
        return self._files[0].read(count)

    def read_masks(self, count: int) -> np.ndarray | None:
        """Reads back the first `count` masks, (count, D, H, W); None for a data set without masks."""
        return self._files[1].read(count) if self.mask_classes is not None else None

    def finish(
        self, *, spacing: Sequence[float], affine: np.ndarray, slice_axis: str, recipe: str
    ) -> VolumeDataset:  # fmt: skip
        """Writes dataset.json, moves the data set to `path` and opens it."""
        for file in self._files:
            file.finish(self.count)
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
            mask_values=self.mask_classes.values if self.mask_classes is not None else None,
            mask_names=self.mask_classes.names if self.mask_classes is not None else None,
        )
        head = {"format": FORMAT, "version": VERSION, "info": info.to_json()}
        write_json_atomic(self.folder / "dataset.json", {**head, "volumes": self.records, "skipped": self.skipped})
        VolumeDataset(self.folder)  # raises if it cannot be opened
        fsync_path(self.folder)
        self._move_into_place()
        return VolumeDataset(self.path)

    def _move_into_place(self) -> None:
        check_destination(self.path, self.overwrite)  # again, hours may have passed
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
        for name in WORK_FILES:  # last, so that a run killed before the rename can be continued
            (self.target / name).unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self._delete()
        else:
            self._keep_or_delete()

    def _keep_or_delete(self) -> None:
        """Keeps the folder if a later run can continue there, else deletes it."""
        if self.plan is None or not self.done:
            self._delete()
        else:
            self._close()

    def _close(self) -> None:
        for file in (*(f.file for f in self._files), self._journal, self._lock):
            if file is not None:
                with suppress(OSError):  # closing flushes, which fails again on a full disk
                    file.close()

    def _delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._close()


def _checksums(voxels: Sequence[bytes]) -> dict[str, int]:
    """The CRC-32 of a volume's voxels, and of its mask's if it has one, as the journal holds them."""
    return {name: zlib.crc32(array) for name, array in zip(("crc", "mask_crc"), voxels)}


def check_destination(path: Path, overwrite: bool) -> None:
    """Raises DatasetError unless a data set may be written to `path`.

    It may if `path` is absent or an empty folder, or with `overwrite` a data set without other files in its folder.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise DatasetError(f"--out {path} is a file; expected a folder to be made")
    names = {p.name for p in path.iterdir()}
    if not names:
        return
    if "dataset.json" not in names or not _has_our_format(path / "dataset.json"):
        raise DatasetError(f"--out {path} is not empty and not a data set; give a new folder (nothing was changed)")
    if not overwrite:
        raise DatasetError(f"--out {path} holds a data set already; give another folder, or --overwrite to replace it")
    others = sorted(names - {*FILES, *WORK_FILES})
    if others:
        raise DatasetError(
            f"--out {path} holds more than a data set, such as {others[0]}, which --overwrite would delete; move it "
            "away or give another folder (nothing was changed)"
        )


def _has_our_format(path: Path) -> bool:
    """Whether a dataset.json is of this format; the Medical Segmentation Decathlon has files of that name too."""
    try:
        head = read_json(path)
    except UserError:
        return False
    return isinstance(head, dict) and head.get("format") == FORMAT
