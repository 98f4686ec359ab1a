"""A run's folder: the lock that one process holds, and what a killed process leaves behind."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

from ssgan.runs.config import RunError, is_run

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "train.lock"
FOLDERS = ("checkpoints", "snapshots", "samples", "tensorboard")
# Names that ssgan.utils.files and ssgan.data.dataset give to files that are still being written.
_STRAY = re.compile(r"^\..+\.\d+\.[0-9a-f]{8}\.tmp(\.[A-Za-z0-9.]+)?$")


class RunLock:
    """Locks a run's folder for one process. The operating system drops the lock when the process ends, however it does.

    Raises (on entry):
        RunError: another process trains this run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._handle: TextIO | None = None

    def __enter__(self) -> RunLock:
        self._handle = open(self.path, "a+", encoding="utf-8")
        if fcntl is None:
            print("warning: this system has no file locks; do not train one run from two processes", file=sys.stderr)
            return self
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._handle.seek(0)
            owner = self._handle.read().strip() or "unknown"
            self._handle.close()
            raise RunError(
                f"{self.path.parent} is being trained by another process ({owner}); wait for it or choose another --out"
            ) from None
        self._handle.truncate(0)
        self._handle.write(f"pid {os.getpid()}\n")
        self._handle.flush()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._handle is not None:
            self._handle.close()


def check_folder(folder: Path) -> None:
    """Raises RunError unless `folder` is absent, empty, a run, or a run stopped before it had its config.json."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"--out {folder} is a file; expected a folder for the run")
    names = {p.name for p in folder.iterdir()}
    begun = LOCK_NAME in names and not names - {LOCK_NAME, "data", *FOLDERS} - {n for n in names if _STRAY.match(n)}
    if names and not is_run(folder) and not begun:
        shown = ", ".join(sorted(names)[:3])
        raise RunError(
            f"--out {folder} is not empty and not a run (it holds {shown}, no config.json); choose another folder"
        )


def remove_stray_files(folder: Path) -> list[Path]:
    """Deletes half-written files and data sets that a killed process left in a run; call it under the run's lock."""
    found = [p for sub in (folder, *(folder / name for name in FOLDERS)) if sub.is_dir() for p in sub.iterdir()]
    stray = [p for p in found if _STRAY.match(p.name)]
    for path in stray:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return stray
