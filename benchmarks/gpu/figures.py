"""Reads and writes the JSON lines of a GPU run, and takes ratios between its figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

MEMORY = "peak memory"


def append(path: Path, head: Record, records: Iterable[Record]) -> None:
    """Appends the records, each with the fields of `head`."""
    with path.open("a") as file:
        file.writelines(json.dumps({**head, **record}) + "\n" for record in records)


def measured(path: Path, head: Record) -> list[Record]:
    """Reads the records with figures of the same commit and device as `head`; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    records = [json.loads(line) for line in text.splitlines()]
    same = [r for r in records if all(r.get(key) == head.get(key) for key in ("commit", "device"))]
    return [r for r in same if "seconds" in r or "step_seconds" in r]


def load(path: Path) -> list[Record]:
    """Reads the records of one file, none where there is no file; of several commits or devices only the last line's.

    Raises:
        ValueError: names the line that is not JSON.
    """
    records: list[Record] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); measure again") from error
    return [r for r in records if (r["commit"], r["device"]) == (records[-1]["commit"], records[-1]["device"])]


def contender(r: Record) -> str:
    return f"{r['kernels']}, {r['implementation']}"


def with_memory(records: Iterable[Record]) -> list[Record]:
    """Gives every figure a "cost": seconds, or bytes in a record of its own whose pass is "peak memory". Of two figures
    of the same thing the later one counts."""
    found: dict[tuple[str, ...], Record] = {}
    for r in records:
        if "seconds" not in r:
            continue
        rows = [{**r, "cost": r["seconds"]["median"]}]
        if r.get("peak_bytes"):
            rows.append({**r, "pass": MEMORY, "cost": r["peak_bytes"]})
        for row in rows:
            found[row["layer"], row["dtype"], row["pass"], contender(row)] = row
    return list(found.values())


def best_dense(figures: Sequence[Record], layer: str, what: str) -> Record | None:
    """Finds the figure of PyTorch's dense convolution in its better layout."""
    rivals = [
        r
        for r in figures
        if (r["layer"], r["pass"], r["kernels"]) == (layer, what, "dense") and r["implementation"].startswith("nn.")
    ]
    return min(rivals, key=lambda r: r["cost"], default=None)


def ratios(figures: Sequence[Record], what: str) -> dict[str, dict[str, float]]:
    """Gives contender -> layer -> best dense cost / its cost; above 1 is faster, or needs less memory."""
    table: dict[str, dict[str, float]] = {}
    for r in figures:
        best = best_dense(figures, r["layer"], what)
        if r["pass"] == what and best is not None:
            table.setdefault(contender(r), {})[r["layer"]] = best["cost"] / r["cost"]
    return table


def roofline_share(r: Record) -> float:
    """Gives the roofline's time over the measured time."""
    return r["roofline_seconds"] / r["seconds"]["median"]


def bandwidth_share(r: Record) -> float:
    """Gives the kernel's bytes a second over those of a large copy in the same run."""
    return r["bytes"] / r["seconds"]["median"] / r["peaks"]["bytes_per_second"]


def setting(r: Record) -> tuple[str, str, str]:
    """Gives preset, shape and precision of a training step; only steps that share them are compared."""
    return r["preset"], "x".join(map(str, r["shape"])), r["precision"]


def variant(r: Record) -> tuple[str, ...]:
    """Gives all that identifies a training step among those of its run."""
    return (*setting(r), r["arch"], r["implementation"])


def training_figures(records: Iterable[Record]) -> list[Record]:
    """Picks the records with figures; of two of the same variant the later one counts."""
    return list({variant(r): r for r in records if "step_seconds" in r}.values())


def against_dense(figures: Sequence[Record], r: Record) -> float | None:
    """Gives images per second over those of dense on nn.Conv3d in the same setting."""
    for other in figures:
        same = setting(other) == setting(r)
        if same and (other["arch"], other["implementation"]) == ("dense", "nn.Conv3d"):
            return r["images_per_second"] / other["images_per_second"]
    return None
