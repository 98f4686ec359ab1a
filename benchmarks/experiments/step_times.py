"""Measures the seconds per 1,000 images of every kind of cell, in turns, on an otherwise idle machine.

The grids run for hours, often beside other work, so the seconds in their logs are no benchmark. This times training
steps of each kind, one after the other, in rounds, and keeps the best of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.experiments.grids import DEPTH_AWARE, Cell, architectures
from benchmarks.experiments.training import Job
from ssgan.training.dry_run import step_seconds
from ssgan.training.step import StageTrainer

CELL = "pace"  # the name of its record in the file of results
ROUNDS = 3


def kind(record: dict[str, Any], stage: str) -> str:
    """Names what decides the time of a stage's step: architectures, widths, depth-aware or not."""
    widths = "x".join(map(str, record["widths"]))
    archs = architectures(record["arch"], record.get("arch_d"), record.get("dense_levels", ()))
    return f"{archs}-w{widths}{'-places' if record['inflate'] == DEPTH_AWARE else ''}-{stage}"


def kinds(cells: Sequence[Cell]) -> dict[str, tuple[Cell, str]]:
    """Gives every kind among the cells -> a cell of it, and the stage."""
    found: dict[str, tuple[Cell, str]] = {}
    for cell in cells:
        for stage in ("3d",) if cell.inflate == "none" else ("2d", "3d"):
            found.setdefault(kind(dataclasses.asdict(cell), stage), (cell, stage))
    return found


def most_complete(records: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Picks the measurement that has the most kinds of a grid's cells, the later of equals; None without any.

    Two are never mixed: seconds of different days, or machines, do not compare.
    """
    wanted = set(kinds(cells))
    return max(reversed(list(records)), key=lambda r: len(wanted & set(r["pace"])), default=None)


def measure(job: Job, cells: Sequence[Cell]) -> dict[str, float]:
    """Gives kind -> seconds per 1,000 images, with the lazy phases by their share of the steps."""
    gans = {
        name: StageTrainer(job.config(cell, stage), stage, job.device, job.execution)
        for name, (cell, stage) in kinds(cells).items()
    }
    found: dict[str, list[float]] = {name: [] for name in gans}
    for number in range(ROUNDS):
        for name, gan in gans.items():
            found[name].append(1000 * step_seconds(gan) / gan.hyper.batch)
        job.log(f"round {number + 1} of {ROUNDS}: " + ", ".join(f"{n} {v[-1]:.3g} s" for n, v in found.items()))
    return {name: min(values) for name, values in found.items()}
