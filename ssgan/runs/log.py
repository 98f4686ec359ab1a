"""A run's folder: its lock, its configuration, its log, TensorBoard events and the progress shown in the terminal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from ssgan.config.augmentation import AugmentConfig
from ssgan.runs.checkpoint import CheckpointMeta, config_hash
from ssgan.utils.environment import environment
from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_write_bytes, read_json, write_json_atomic
from ssgan.utils.seeding import STAGES

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
LOCK_NAME = "train.lock"
FOLDERS = ("checkpoints", "snapshots", "samples", "tensorboard")
# May change between two calls of one run: they decide how long it goes and what is kept, not the numbers.
LONGER = ("stage_2d.kimg", "stage_3d.kimg")
FREE = ("snapshot_kimg", "keep_checkpoints", "metrics", "metrics_every", "early_stop", "best_metric")
# Fields of later versions with the value that stands for how things were: runs of earlier versions go on.
LATER = {"precision": "fp32", "freeze_d": 0, "warmup_kimg": 0.0, "network.classes": 0, "network.label_layers": None}
LATER |= {"network.depth_places": None, "network.arch_d": None, "network.dense_levels": [], "cooldown_kimg": 0.0}
LATER |= {"ema_carries_over": False}
LATER |= {f"augment.{k}": list(v) if isinstance(v, tuple) else v for k, v in AugmentConfig().to_json().items()}
# Names that ssgan.utils.files and ssgan.data.dataset give to what they are still writing.
_STRAY = re.compile(r"^\..+\.\d+\.[0-9a-f]{8}\.tmp(\.[A-Za-z0-9.]+)?$")


class RunError(UserError):
    """A run's folder that is taken, not a run, or of another run."""


class RunLock:
    """Holds a run's folder for one process. The kernel drops it when the process ends, however it ends.

    Raises (on entry):
        RunError: another process trains this run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self._handle: TextIO | None = None

    def __enter__(self) -> RunLock:
        self._handle = open(self.path, "a+", encoding="utf-8")
        if fcntl is None:
            print("note: this system has no flock; do not train one run from two processes", file=sys.stderr)
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
    """Raises RunError unless `folder` is absent, empty, a run, or a run that was stopped before it had a config."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"--out {folder} is a file; expected a folder for the run")
    names = {p.name for p in folder.iterdir()}
    begun = LOCK_NAME in names and not names - {LOCK_NAME, "data", *FOLDERS} - {n for n in names if _STRAY.match(n)}
    if names and "config.json" not in names and not begun:
        shown = ", ".join(sorted(names)[:3])
        raise RunError(
            f"--out {folder} is not empty and not a run (it holds {shown}, no config.json); choose another folder"
        )


def remove_stray_files(folder: Path) -> list[Path]:
    """Deletes what a killed process left half-written in a run (files, a data set); call it under the run's lock."""
    found = [p for sub in (folder, *(folder / name for name in FOLDERS)) if sub.is_dir() for p in sub.iterdir()]
    stray = [p for p in found if _STRAY.match(p.name)]
    for path in stray:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    return stray


def record_config(
    folder: Path, config: dict[str, Any], data: dict[str, Any], init: dict[str, Any] | None, begun: str | None
) -> None:
    """Writes config.json, or checks an existing one: it may only ask for more images, or for other snapshots.

    config: TrainConfig.to_json(). data: path, content_hash and info of the data set. init: path and sha256 of the
    checkpoint given by --init. begun: the last stage that has a checkpoint; the 2D stage cannot be made longer once
    the 3D stage has gone on from it.

    Raises:
        RunError: the run in `folder` was made with another configuration or data set; the fields are named.
    """
    path = folder / "config.json"
    record = {"format": FORMAT, "config": config, "data": data, "init": init, "environment": environment()}
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    if path.exists():
        old = read_json(path)
        if not isinstance(old, dict) or old.get("format") != FORMAT:
            raise RunError(f"{path} is not a configuration of format {FORMAT}; choose another --out")
        different = _differences(old, record, LONGER[1:] if begun == "3d" else LONGER)
        if different:
            raise RunError(
                f"{folder} holds a run made otherwise: {'; '.join(different)}. Give the same arguments to resume it, "
                "or another --out"
            )
        record["environment"] = old.get("environment")  # where the run began; unknown for runs of earlier versions
    write_json_atomic(path, record)


def identity(config: dict[str, Any]) -> str:
    """Hash of all that decides the numbers of a run; the budgets and snapshot settings are left out."""
    flat = _flatten(json.loads(json.dumps(config)))
    return config_hash({k: v for k, v in flat.items() if k not in LONGER + FREE and not _as_before(k, v)})


def _as_before(name: str, value: Any) -> bool:
    value = list(value) if isinstance(value, tuple) else value
    return name in LATER and (value is None or value == LATER[name])


def check_voxels(volumes: np.ndarray, expected: str, where: str) -> None:
    """Raises RunError where the voxels (N, D, H, W) are no longer those that dataset.json's hash was taken of."""
    digest = hashlib.sha256()
    for volume in volumes:
        digest.update(np.ascontiguousarray(volume))
    if digest.hexdigest() != expected:
        raise RunError(
            f"the data set {where}: its voxels have changed since it was made (SHA-256 {digest.hexdigest()[:12]}.., "
            f"dataset.json says {expected[:12]}..); restore volumes.npy, or prepare it again and start another run"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in _flatten(item, f"{prefix}{name}.").items()}
    return {prefix[:-1]: value}


def _differences(old: dict[str, Any], new: dict[str, Any], longer: tuple[str, ...]) -> list[str]:
    was, now = _flatten(old["config"]), _flatten(new["config"])
    found = []
    for name in sorted(set(was) | set(now)):
        before, after = (fields.get(name, LATER.get(name)) for fields in (was, now))
        if before == after or name in FREE:
            continue
        if name in longer and after >= before:
            continue
        why = " (a stage can be made longer, not shorter, and not once the next has begun)" if name in LONGER else ""
        found.append(f"{name} was {before}, now {after}{why}")
    parts = (
        ("data", "content_hash", "the data set"), ("data", "labels_sha256", "the classes of the data set"),
        ("init", "sha256", "the --init checkpoint"),
    )  # fmt: skip
    for part, key, what in parts:
        before, after = ((record.get(part) or {}) for record in (old, new))
        if before.get(key) != after.get(key):
            paths = f"was {before.get('path', 'none')}, now {after.get('path', 'none')}"
            found.append(f"{what} ({paths}; the contents differ)")
    return found


class JsonLog:
    """log.jsonl: one JSON object a row, appended and flushed to the disk. write=False keeps the rows in memory only."""

    def __init__(self, path: Path, write: bool = True) -> None:
        self.path, self.write = path, write
        self.rows = _read_rows(path)

    def rewind(self, meta: CheckpointMeta | None) -> None:
        """Drops the rows after a checkpoint (all rows for None), so that a resumed run writes them again."""
        kept = (
            [] if meta is None else [row for row in self.rows if _place(row) <= (STAGES.index(meta.stage), meta.step)]
        )
        self.rows = kept
        if self.write:
            atomic_write_bytes(self.path, "".join(_line(row) for row in kept).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row. Numbers that JSON cannot hold (NaN, infinities) raise ValueError."""
        line = _line(row)
        if self.write:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)

    def event(self, name: str) -> dict[str, Any] | None:
        """The last row with that `event`, or None."""
        return next((row for row in reversed(self.rows) if row.get("event") == name), None)

    @property
    def seconds(self) -> float:
        """Training time that the rows account for."""
        return max((row.get("seconds", 0.0) for row in self.rows), default=0.0)

    def result(self, last: str) -> dict[str, Any]:
        """The distances of a finished run, whose last stage is `last`, and its seconds: a part of result.json."""
        start, floor, inflated = (self.event(name) or {} for name in ("start", "floor", "inflated"))
        end = next(row for row in reversed(self.rows) if row["stage"] == last and "distance" in row)
        distance = {"start": start.get("distance"), "after_inflation": inflated.get("distance")}
        distance |= {"end": end["distance"], "floor": floor.get("distance_floor")}
        return {"distance": distance, "seconds": self.seconds}


def distance_line(distance: dict[str, float | None]) -> str:
    """The distances of `JsonLog.result` as one line for the terminal."""
    names = {"start": "start", "after_inflation": "after inflation", "end": "end"}
    parts = ", ".join(f"{names[k]} {distance[k]:.4f}" for k in names if distance[k] is not None)
    floor = "" if distance["floor"] is None else f" (real against real {distance['floor']:.4f})"
    return f"sliced Wasserstein distance to the data: {parts}{floor}"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _place(row: dict[str, Any]) -> tuple[int, int]:
    # Measured before the first step, whatever stage it belongs to.
    return (-1, 0) if row.get("event") in ("start", "floor") else (STAGES.index(row["stage"]), row["step"])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _place(row)
            rows.append(row)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number == len(lines):  # a kill in the middle of a write leaves half of the last line
                break
            raise RunError(
                f"{path}, line {number} is not a row of a training log ({error}); restore or delete it"
            ) from None
    return rows


class Board:
    """TensorBoard events of one stage, in RUN/tensorboard/STAGE; steps are images shown to the discriminator."""

    def __init__(self, folder: Path, stage: str, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, needed in training only

        # Events after the checkpoint are purged; each stage counts its own images, so each has its own writer.
        self._writer = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=images + 1 if images else 0)

    def scalars(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and name != "seconds":
                self._writer.add_scalar(name, value, row["images"])

    def image(self, name: str, path: Path, images: int) -> None:
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), images, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@dataclass
class Progress:
    """Progress of one stage on stderr: a bar with the time left on a terminal, else a line every 30 seconds."""

    stage: str
    total: int  # images
    done: int  # images
    enabled: bool = True
    every: float = 30.0  # seconds between lines where stderr is not a terminal

    def __post_init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first = self.done
        self._bar = None
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total, initial=self.done, desc=f"stage {self.stage}", unit="img", dynamic_ncols=True
            )

    def update(self, images: int, stats: Iterable[tuple[str, float]]) -> None:
        """Moves to `images` shown; `stats` are names and values to print beside."""
        gained, self.done = images - self.done, images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(_shown(stats), refresh=False)
            self._bar.update(gained)
        elif self.enabled and (now - self._last >= self.every or images >= self.total):
            self._last = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = tqdm.format_interval(max(self.total - self.done, 0) / max(rate, 1e-9))
            print(
                f"stage {self.stage}: {self.done}/{self.total} images ({100 * self.done / max(self.total, 1):.0f} %), "
                f"{rate:.1f} img/s, {left} left, {_shown(stats)}",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _shown(stats: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in stats)
