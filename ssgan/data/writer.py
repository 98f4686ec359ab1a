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
from typing import Any, BinaryIO, TextIO

import numpy as np

from ssgan.config.fields import Triple
from ssgan.data.dataset import FORMAT, VERSION, DatasetError, DatasetInfo, VolumeDataset, class_names
from ssgan.utils.errors import UserError
from ssgan.utils.files import fsync_path, read_json, write_json_atomic

FILES = ("volumes.npy", "dataset.json", "contact_sheet.png")
CONTACT_SHEET_VOLUMES = 48  # at most
WORK_FILES = ("plan.json", "journal.jsonl", "lock")  # of an unfinished data set
HEADER_BYTES = 128  # of volumes.npy; numpy pads the header to a multiple of 64, and any count of volumes fits


class DatasetWriter:
    """Writes a data set volume by volume into a hidden folder beside `path`, and renames the folder at the end.

    It is a context manager: leaving it without `finish` (an error, Ctrl-C) deletes the hidden folder. Memory holds one
    volume at a time. An earlier data set at `path` is replaced only with overwrite=True, and only at the end.

    With a `plan` (all that decides the data set, as JSON) the hidden folder stays after Ctrl-C or a system error, and
    the next writer with the same plan continues there: `done` volumes and skipped files are settled already. They are
    read from a journal, whose checksums are compared with the voxels on the disk.

    Raises:
        DatasetError: `path` holds something else, another process writes there, or an unfinished data set with another
            plan is there and restart is False.
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
        """How many volumes and skipped files are settled."""
        return len(self.records) + len(self.skipped)

    def __enter__(self) -> DatasetWriter:
        self.folder.mkdir(parents=True, exist_ok=self.plan is not None)
        if self.plan is not None:
            self._take_lock()
        try:
            resume = self.plan is not None and self._can_resume()
            self._file = (self.folder / "volumes.npy").open("r+b" if resume else "w+b")
            if resume:
                self._resume()
            elif self.plan is not None:
                write_json_atomic(self.folder / "plan.json", self.plan)
            if self.plan is not None:
                self._journal = (self.folder / "journal.jsonl").open("a" if resume else "w", encoding="utf-8")
            self._write_header()
        except DatasetError:
            self._close()
            raise
        except BaseException:  # Python does not call __exit__ after an error in __enter__
            self._keep_or_delete()
            raise
        return self

    def _take_lock(self) -> None:
        self._lock = (self.folder / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise DatasetError(f"--out {self.path}: another process prepares it at this moment; wait for it") from None

    def _can_resume(self) -> bool:
        """Whether an unfinished data set with the same plan is there; deletes its files if they cannot be used."""
        needed = ("plan.json", "journal.jsonl", "volumes.npy")
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
        assert self._file is not None
        size, good = 4 * math.prod(self.shape), 0  # bytes of a volume, bytes of intact journal lines
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

    def _write_header(self) -> None:
        """Writes the .npy header for the volumes so far; its length is the same for any count."""
        assert self._file is not None
        self._file.seek(0)
        head = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, head)
        assert self._file.tell() == HEADER_BYTES

    def add(self, volume: np.ndarray, record: dict[str, Any]) -> None:
        """Appends a volume (D, H, W) in [-1, 1] with its record for dataset.json.

        The record holds at least intensity_low and intensity_high.
        """
        assert self._file is not None
        array = np.ascontiguousarray(volume, dtype="<f4")
        if array.shape != self.shape or not np.isfinite(array).all() or np.abs(array).max() > 1:
            raise ValueError(f"volume: expected finite values in [-1, 1] of shape {self.shape}; got {array.shape}")
        voxels = array.tobytes()
        self._file.seek(0, os.SEEK_END)
        self._file.write(voxels)
        self._write_journal({"crc": zlib.crc32(voxels), "record": record})
        self._hash.update(voxels)
        self.records.append(record)
        self.count += 1

    def skip(self, entry: dict[str, str]) -> None:
        """Records a file that is left out: {"file": ..., "reason": ...}."""
        self._write_journal({"skipped": entry})
        self.skipped.append(entry)

    def _write_journal(self, entry: dict[str, Any]) -> None:
        """Appends a line to the journal, after the voxels that it is about."""
        if self._journal is not None:
            assert self._file is not None
            self._file.flush()
            self._journal.write(json.dumps(entry) + "\n")
            self._journal.flush()

    def read(self, count: int) -> np.ndarray:
        """Reads back the first `count` volumes, (count, D, H, W)."""
        assert self._file is not None
        self._file.flush()
        voxels = count * int(np.prod(self.shape))
        return np.fromfile(self._file.name, "<f4", voxels, offset=HEADER_BYTES).reshape(count, *self.shape)

    def finish(
        self, *, spacing: Sequence[float], affine: np.ndarray, slice_axis: str, recipe: str
    ) -> VolumeDataset:  # fmt: skip
        """Writes dataset.json, moves the data set to `path` and opens it."""
        assert self._file is not None
        self._write_header()
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
        for file in (self._file, self._journal, self._lock):
            if file is not None:
                with suppress(OSError):  # closing flushes, which fails again on a full disk
                    file.close()

    def _delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._close()


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
