"""Trains one cell, its 2D stage (shared) and its 3D run, and measures it. Resumes where it was stopped."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import grids, scoring
from benchmarks.experiments.data import Split
from benchmarks.experiments.grids import Cell, Scale
from ssgan.config.training import TrainConfig
from ssgan.models.networks import Generator
from ssgan.runs import checkpoint
from ssgan.runs.folder import RunLock
from ssgan.runs.log import JsonLog
from ssgan.training import loop
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import UserError

Log = Callable[[str], None]


class Stopped(Exception):
    """A signal ended the training; everything is saved."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The settings that the cells of a grid share."""

    scale: Scale
    split: Split
    out: Path
    device: torch.device
    changes: dict[str, Any]
    log: Log = print
    progress: bool = False
    cuda_graphs: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.split.train.info.shape

    @property
    def execution(self) -> Execution:
        return Execution(cuda_graphs=self.cuda_graphs)

    def config(self, cell: Cell, stage: str) -> TrainConfig:
        return grids.config(self.scale, self.shape, cell, stage, self.changes)

    def final(self, cell: Cell) -> Path:
        """Gives the path of the last checkpoint of a cell's 3D run; it exists when the run is finished."""
        return checkpoint.final_path(self.out / cell.folder / "checkpoints", "3d")


def train_run(job: Job, cfg: TrainConfig, folder: Path, init: Path | None = None) -> None:
    """Trains or resumes the run in `folder` to its end. Raises Stopped after a signal."""
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        status = loop.train(
            cfg, job.split.train, folder, init=init, data_path=str(job.split.train.path), device=job.device,
            echo=job.log, progress=job.progress, execution=job.execution,
        )  # fmt: skip
    if status:
        raise Stopped(f"{folder} was stopped with status {status}")


def train_cell(job: Job, cell: Cell) -> None:
    """Trains both stages of a cell; a 2D stage that another cell has trained is reused."""
    init = None
    if cell.inflate != "none":
        flat = job.out / cell.folder_2d
        train_run(job, job.config(cell, "2d"), flat)
        init = checkpoint.final_path(flat / "checkpoints", "2d")
    train_run(job, job.config(cell, "3d"), job.out / cell.folder, init)


def speed(folder: Path, stage: str) -> float:
    """Reads the seconds per 1,000 images of a stage: the median over the log's rows, without measuring and saving."""
    rates = [
        r["images_per_second"]
        for r in JsonLog(folder / "log.jsonl", write=False).rows
        if r["stage"] == stage and "images_per_second" in r
    ]
    if not rates:
        raise UserError(f"{folder / 'log.jsonl'} has no rows of stage {stage}; delete the folder and run again")
    return 1000 / float(np.median(rates))


def generators(job: Job, cell: Cell) -> Iterator[tuple[int, Generator]]:
    """Yields (volumes shown in the 3D stage, G_ema) of a finished cell: its start, and the curve's checkpoints."""
    cfg = job.config(cell, "3d")
    start = StageTrainer(cfg, "3d", job.device)
    if cell.inflate != "none":
        tensors, meta = checkpoint.load(checkpoint.final_path(job.out / cell.folder_2d / "checkpoints", "2d"))
        flat = StageTrainer(cfg, "2d", job.device)
        checkpoint.load_module(flat.G_ema, "G_ema", tensors, cell.folder_2d)
        checkpoint.load_module(flat.G, "G", tensors, cell.folder_2d)
        checkpoint.load_module(flat.D, "D", tensors, cell.folder_2d)
        start.inflate_from(flat, cfg.inflate, images=meta.images)
    yield 0, start.G_ema
    for images, path in curve_checkpoints(job, cell).items():
        yield images, generator(job, cell, checkpoint.load(path)[0], path)


def generator(job: Job, cell: Cell, tensors: dict[str, Tensor], path: Path, name: str = "G_ema") -> Generator:
    """Builds the generator of a cell with the tensors NAME.* of a checkpoint; path: for errors."""
    G = Generator(job.config(cell, "3d").network).to(job.device).requires_grad_(False)
    checkpoint.load_module(G, name, tensors, str(path))
    return G


def curve_checkpoints(job: Job, cell: Cell) -> dict[int, Path]:
    """Gives volumes shown -> checkpoint of a finished cell, in order: one every `every` volumes, and the last.

    The checkpoint of a stop is left out, so that the curve does not depend on when the run was stopped.
    """
    every, batch = job.scale.every, job.config(cell, "3d").stage_3d.batch
    end = checkpoint.read_meta(job.final(cell)).images
    found = {checkpoint.read_meta(path).images: path for path in checkpoint.list_checkpoints(job.final(cell).parent)}
    return {n: found[n] for n in sorted(found) if n == end or n // every != (n - batch) // every}


def measure_cell(job: Job, cell: Cell, real: scoring.Reference) -> dict[str, Any]:
    """Measures a finished cell: the metric along the run, all metrics at its end, and the training time.

    seconds: of training alone, 2D stage included where there is one: images times the median seconds per image.
    shown: volumes, with slices as their share of one.
    """
    depth = job.shape[0]
    inflated = cell.inflate != "none"
    slices = 0
    per_slice = 0.0
    if inflated:
        flat = job.out / cell.folder_2d
        slices = checkpoint.read_meta(checkpoint.final_path(flat / "checkpoints", "2d")).images
        per_slice = speed(flat, "2d") / 1000
    per_volume = speed(job.out / cell.folder, "3d") / 1000
    points, final = [], {}
    for volumes, G in generators(job, cell):
        try:
            fake = scoring.generated(G, real.count)
        except UserError as error:
            raise UserError(f"{cell.folder} after {volumes} volumes: {error}") from None
        # All metrics are taken of the last one only.
        final = {"fake": fake}
        row = {"volumes": volumes, "slices": slices, "shown": volumes + slices / depth}
        row |= {"seconds_2d": slices * per_slice, "seconds_3d": volumes * per_volume}
        points.append(row | real.quick(fake))
    cfg = job.config(cell, "3d")
    nets = {
        name: sum(p.numel() for p in net.parameters()) for name, net in zip("GD", grids.build(cfg.network), strict=True)
    }
    return {
        "arch": cell.arch, "arch_d": cell.arch_d, "dense_levels": list(cell.dense_levels), "inflate": cell.inflate,
        "widths": list(cell.widths), "note": cell.note, "label": cell.label,
        "parameters": sum(nets.values()), "parameters_g": nets["G"], "parameters_d": nets["D"],
        "slices": slices, "volumes": points[-1]["volumes"], "shown": points[-1]["shown"],
        "seconds_per_1000_volumes": 1000 * per_volume, "seconds_per_1000_slices": 1000 * per_slice or None,
        "points": points, "final": real.whole(final["fake"]), "other_features": real.other_features(final["fake"]),
    }  # fmt: skip
