"""What the files of a GPU run say: figures, and ratios between those of one run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

MEMORY = "peak memory"


def lines(path: Path) -> list[Record]:
    """The records of one file, none where there is no file; of several commits or devices only those of the last line.

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


def name(r: Record) -> str:
    return f"{r['kernels']}, {r['implementation']}"


def with_memory(records: Iterable[Record]) -> list[Record]:
    """Every figure as a record with a "cost": seconds, or bytes of the further pass "peak memory". The last of equal
    ones counts."""
    found: dict[tuple[str, ...], Record] = {}
    for r in records:
        if "seconds" not in r:
            continue
        rows = [{**r, "cost": r["seconds"]["median"]}]
        if r.get("peak_bytes"):
            rows.append({**r, "pass": MEMORY, "cost": r["peak_bytes"]})
        for row in rows:
            found[row["layer"], row["dtype"], row["pass"], name(row)] = row
    return list(found.values())


def best_dense(figures: Sequence[Record], layer: str, what: str) -> Record | None:
    """The figure of PyTorch's dense convolution in its better layout."""
    able = [
        r
        for r in figures
        if (r["layer"], r["pass"], r["kernels"]) == (layer, what, "dense") and r["implementation"].startswith("nn.")
    ]
    return min(able, key=lambda r: r["cost"], default=None)


def ratios(figures: Sequence[Record], what: str) -> dict[str, dict[str, float]]:
    """Contender -> layer -> best dense cost / its cost; above 1 is faster, or smaller."""
    table: dict[str, dict[str, float]] = {}
    for r in figures:
        best = best_dense(figures, r["layer"], what)
        if r["pass"] == what and best is not None:
            table.setdefault(name(r), {})[r["layer"]] = best["cost"] / r["cost"]
    return table


def share_of_floor(r: Record) -> float:
    return r["floor_seconds"] / r["seconds"]["median"]


def share_of_copy(r: Record) -> float:
    """Of what a large copy moved in a second of the same run, how much this kernel did."""
    return r["bytes"] / r["seconds"]["median"] / r["ceilings"]["bytes_per_second"]


def setting(r: Record) -> tuple[str, str, str]:
    """Preset, shape and precision of a training step: what steps that are compared share."""
    return r["preset"], "x".join(map(str, r["shape"])), r["precision"]


def variant(r: Record) -> tuple[str, ...]:
    """All that tells a training step from others of its run."""
    return (*setting(r), r["arch"], r["implementation"])


def training_figures(records: Iterable[Record]) -> list[Record]:
    """Those with figures; the last of equal ones counts."""
    return list({variant(r): r for r in records if "step_seconds" in r}.values())


def against_dense(figures: Sequence[Record], r: Record) -> float | None:
    """Images per second against dense on nn.Conv3d in the same setting."""
    for other in figures:
        same = setting(other) == setting(r)
        if same and (other["arch"], other["implementation"]) == ("dense", "nn.Conv3d"):
            return r["images_per_second"] / other["images_per_second"]
    return None
