"""Draws the volumes that the cells of a grid generate at the end of their runs, one row a cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import scoring, training
from benchmarks.experiments.grids import Cell
from benchmarks.experiments.training import Job
from ssgan.data.axes import to_axial
from ssgan.runs import checkpoint
from ssgan.runs.config import identity
from ssgan.utils.pictures import contact_sheet

COLUMNS = 4  # volumes of each cell


def drawable(job: Job, cells: Sequence[Cell]) -> list[Cell]:
    """Picks the cells of one seed: the one with the most finished runs of these settings (the lowest of equals)."""

    def finished(cell: Cell) -> bool:
        path = job.final(cell)
        return path.exists() and checkpoint.read_meta(path).config_hash == identity(job.config(cell, "3d").to_json())

    done = [c for c in cells if finished(c)]
    seeds = [c.seed for c in done]
    chosen = max(sorted(set(seeds)), key=seeds.count, default=None)
    return [c for c in done if c.seed == chosen]


def draw(job: Job, cells: Sequence[Cell], path: Path) -> Path | None:
    """Draws a PNG: a row of held-out volumes and one for every drawable cell, each as three middle slices.

    The latents are the first of the measurements, the volumes the first, none chosen. None without any run.
    """
    cells = drawable(job, cells)
    if not cells:
        return None
    info = job.split.held.info
    rows, names = [np.array(job.split.held.volumes[:COLUMNS])], _names("real, held out")
    for cell in cells:
        G = training.generator(job, cell, checkpoint.load(job.final(cell))[0], job.final(cell))
        rows.append(scoring.generated(G, COLUMNS))
        names += _names(cell.label)
    volumes = to_axial(np.concatenate(rows), info.slice_axis)
    title = f"seed {cells[0].seed}; the first {COLUMNS} volumes of each, none chosen"
    return contact_sheet(volumes, names, path, spacing=info.spacing, title=title, columns=COLUMNS)


def _names(label: str) -> list[str]:
    return [label, *[""] * (COLUMNS - 1)]
