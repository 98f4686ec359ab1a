"""Seconds per 1,000 images of every kind of cell, measured in turns on a machine that does nothing else.

The grids run for hours, beside other work as often as not; what their logs say of seconds is no benchmark. This times
training steps of each kind, one after the other, in rounds, and keeps the best of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from benchmarks.experiments.grids import PLACES, Cell, architectures
from benchmarks.experiments.training import Job
from ssgan.training.dry_run import step_seconds
from ssgan.training.step import StageTrainer

CELL = "pace"  # the name of its record
ROUNDS = 3


def kind(record: dict[str, Any], stage: str) -> str:
    """What decides the pace of a stage: architectures, widths, places."""
    widths = "x".join(map(str, record["widths"]))
    archs = architectures(record["arch"], record.get("arch_d"), record.get("dense_levels", ()))
    return f"{archs}-w{widths}{'-places' if record['inflate'] == PLACES else ''}-{stage}"


def kinds(cells: Sequence[Cell]) -> dict[str, tuple[Cell, str]]:
    """Every kind among the cells -> a cell of it, and the stage."""
    found: dict[str, tuple[Cell, str]] = {}
    for cell in cells:
        for stage in ("3d",) if cell.inflate == "none" else ("2d", "3d"):
            found.setdefault(kind(dataclasses.asdict(cell), stage), (cell, stage))
    return found


def serving(records: Sequence[dict[str, Any]], cells: Sequence[Cell]) -> dict[str, Any] | None:
    """Of the measurements, the one that has the most kinds of a grid's cells, the later of equals; None without any.

    One alone: seconds of different days, or machines, do not compare.
    """
    wanted = set(kinds(cells))
    return max(reversed(list(records)), key=lambda r: len(wanted & set(r["pace"])), default=None)


def measure(job: Job, cells: Sequence[Cell]) -> dict[str, float]:
    """Kind -> seconds per 1,000 images, with the lazy phases by their share of the steps."""
    gans = {
        name: StageTrainer(job.config(cell, stage), stage, job.device, job.execution)
        for name, (cell, stage) in kinds(cells).items()
    }
    found: dict[str, list[float]] = {name: [] for name in gans}
    for number in range(ROUNDS):
        for name, gan in gans.items():
            found[name].append(1000 * step_seconds(gan) / gan.hyper.batch)
        job.say(f"round {number + 1} of {ROUNDS}: " + ", ".join(f"{n} {v[-1]:.3g} s" for n, v in found.items()))
    return {name: min(values) for name, values in found.items()}
