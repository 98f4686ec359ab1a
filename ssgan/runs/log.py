"""log.jsonl, the rows of numbers that a run writes while it trains."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.config import RunError
from ssgan.utils.files import atomic_write_bytes
from ssgan.utils.seeding import STAGES


class JsonLog:
    """log.jsonl: a JSON object per row, appended and flushed to the disk. write=False keeps the rows in memory only."""

    def __init__(self, path: Path, write: bool = True) -> None:
        self.path, self.write = path, write
        self.rows = _read_rows(path)

    def rewind(self, meta: CheckpointMeta | None) -> None:
        """Drops the rows after a checkpoint (all rows for None), so that a resumed run writes them again."""
        last = (-2, 0) if meta is None else (STAGES.index(meta.stage), meta.step)
        self.rows = [row for row in self.rows if _position(row) <= last]
        if self.write:
            atomic_write_bytes(self.path, "".join(_line(row) for row in self.rows).encode())

    def append(self, row: dict[str, Any]) -> None:
        """Adds a row. Raises ValueError for numbers that JSON cannot hold (NaN, infinities)."""
        line = _line(row)
        if self.write:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        self.rows.append(row)

    def event(self, name: str) -> dict[str, Any] | None:
        """Finds the last row with that `event`; None where there is none."""
        return next((row for row in reversed(self.rows) if row.get("event") == name), None)

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return max((row.get("seconds", 0.0) for row in self.rows), default=0.0)

    def result(self, last: str) -> dict[str, Any]:
        """Gives the distances and the seconds of a finished run for result.json; `last` is its last stage."""
        start, floor, inflated = (self.event(name) or {} for name in ("start", "floor", "inflated"))
        end = next(row for row in reversed(self.rows) if row["stage"] == last and "distance" in row)
        distance = {"start": start.get("distance"), "after_inflation": inflated.get("distance")}
        distance |= {"end": end["distance"], "floor": floor.get("distance_floor")}
        return {"distance": distance, "seconds": self.seconds}


def distance_line(distance: dict[str, float | None]) -> str:
    """Formats the distances of `JsonLog.result` as one line for the terminal."""
    names = {"start": "start", "after_inflation": "after inflation", "end": "end"}
    parts = ", ".join(f"{names[k]} {distance[k]:.4f}" for k in names if distance[k] is not None)
    floor = "" if distance["floor"] is None else f" (real against real {distance['floor']:.4f})"
    return f"sliced Wasserstein distance to the data: {parts}{floor}"


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _position(row: dict[str, Any]) -> tuple[int, int]:
    """(stage, step), for sorting; rows measured before the first step come first, whatever their stage."""
    return (-1, 0) if row.get("event") in ("start", "floor") else (STAGES.index(row["stage"]), row["step"])


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            _position(row)
            rows.append(row)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            if number == len(lines):  # a process killed while writing leaves half a line
                break
            raise RunError(
                f"{path}, line {number} is not a row of a training log ({error}); restore or delete it"
            ) from None
    return rows
