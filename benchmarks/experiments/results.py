"""Reads and appends the JSON lines of finished and failed cells; the last line of a cell and protocol counts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from ssgan.utils.errors import UserError

Record = dict[str, Any]
_warned: set[Path] = set()


class ResultsError(UserError):
    """A file of results that cannot be read."""


def load(path: Path) -> list[Record]:
    """Reads all records; [] where there is no file yet. Half a last line, left by a kill, is dropped with a warning."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            record["cell"], record["protocol"], record["seed"]
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                if path not in _warned:
                    print(f"note: the last line of {path} is half a record and left out", file=sys.stderr)
                    _warned.add(path)
                break
            raise ResultsError(f"{path}, line {number} is no record of a cell ({error}); restore the file") from None
        records.append(record)
    return records


def append(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size:  # half a line, left by a kill
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def main_protocol(records: list[Record]) -> str:
    """Picks the protocol under which the most cells have finished, the later of equals: the others are trials."""
    finished: dict[str, set[str]] = {}
    for record in records:
        cells = finished.pop(record["protocol"], set())  # to the end: dicts keep their order
        finished[record["protocol"]] = cells | ({record["cell"]} if "error" not in record else set())
    return max(reversed(finished), key=lambda name: len(finished[name]))


def latest(records: list[Record], protocol: str) -> dict[str, Record]:
    """Gives cell (its folder's name) -> its last record under that protocol."""
    return {r["cell"]: r for r in records if r["protocol"] == protocol}
