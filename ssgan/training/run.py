"""One run's folder while it is trained: log, snapshots, checkpoints and the result."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgan.config.training import TrainConfig
from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.models.sampling import latents, synthesise_pairs
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.config import check_voxels, identity, record_config
from ssgan.runs.folder import remove_stray_files
from ssgan.runs.log import JsonLog, distance_line
from ssgan.training.distributed import Group
from ssgan.training.monitor import Monitor
from ssgan.training.optimiser import read
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from ssgan.utils.files import write_json_atomic
from ssgan.utils.pictures import plot_curves, slice_grid, three_plane_grid

SNAPSHOT_IMAGES = 16

Echo = Callable[[str], None]  # shows a line in the terminal


def open_folder(cfg: TrainConfig, data: VolumeDataset, folder: Path, init: Path | None, data_path: str) -> None:
    """Makes the run's folders and config.json, or checks that the run there has this configuration and this data set.

    Raises:
        RunError: they differ; the fields are named.
    """
    for name in ("checkpoints", "snapshots", "samples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    remove_stray_files(folder)
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    info = {"path": data_path, "content_hash": data.info.content_hash, "info": data.info.to_json()}
    if cfg.network.classes:
        digest = hashlib.sha256(np.ascontiguousarray(data.labels, "<i8").tobytes()).hexdigest()
        info |= {"class_counts": list(data.class_counts), "labels_sha256": digest}
    source = None if init is None else {"path": os.path.abspath(init), "sha256": checkpoint.checksum(init)}
    record_config(folder, cfg.to_json(), info, source, begun=found[-1].name[:2] if found else None)
    if found:
        check_voxels(data, data_path or str(data.path))


class Run:
    """A run in this process of `group`. Only the main process writes."""

    def __init__(
        self, cfg: TrainConfig, data: VolumeDataset, folder: Path, device: torch.device, progress: bool, echo: Echo,
        execution: Execution, group: Group,
    ) -> None:  # fmt: skip
        self.cfg, self.data, self.folder, self.device = cfg, data, folder, device
        self.progress, self.echo = progress and group.main, echo
        self.execution, self.group = execution, group
        self.checkpoints = folder / "checkpoints"
        self.identity = identity(cfg.to_json())
        self.log = JsonLog(folder / "log.jsonl", write=group.main)
        self.monitor = Monitor(data, cfg.seed)

    def new_trainer(self, stage: str) -> StageTrainer:
        """A stage before its first step."""
        info = self.data.info
        about = {"slice_axis": info.slice_axis, "spacing": info.spacing, "class_counts": self.data.class_counts}
        return StageTrainer(self.cfg, stage, self.device, self.execution, self.group, **about)

    def measure(self, trainer: StageTrainer, metrics: bool = True) -> dict[str, float]:
        """Measures the distance to the data, and with `metrics` the run's metrics."""
        return self.monitor.measure(trainer, dict.fromkeys(("distance", *(self.cfg.metrics if metrics else ()))))

    def log_start(self) -> None:
        """Logs, before the first step, the distance between real images and that of untrained networks."""
        trainer = self.new_trainer(self.cfg.stages[-1])
        count, masked = min(SNAPSHOT_IMAGES, len(self.data)), self.cfg.network.mask_classes > 0
        masks = np.array(self.data.masks[:count]) if masked and self.data.masks is not None else None
        self.draw(np.array(self.data.volumes[:count]), masks, self.folder / "snapshots" / "reals.png", "real")
        row = {"stage": trainer.stage, "step": 0, "images": 0, "seconds": 0.0}
        self.log.append({"event": "floor", **row, "distance_floor": self.monitor.distance(trainer.stage).floor})
        self.log.append({"event": "start", **row, **self.measure(trainer)})

    def save(self, trainer: StageTrainer, final: bool, best: bool = False) -> Path:
        """Writes a checkpoint: numbered, the stage's last (`final`), or the copy kept as the best."""
        trainer.check_finite("before saving")
        self.group.check_together([*trainer.G.parameters(), *trainer.D.parameters()], self.device)
        meta = CheckpointMeta(trainer.stage, trainer.step, trainer.images, self.identity, trainer.images_before)
        path = checkpoint.numbered_path(self.checkpoints, meta)
        if best:
            path = checkpoint.best_path(self.checkpoints, trainer.stage)
        elif final:
            path = checkpoint.final_path(self.checkpoints, trainer.stage)
        if self.group.main:
            checkpoint.save(path, trainer.state(), meta)
            checkpoint.prune(self.checkpoints, self.cfg.keep_checkpoints)
        self.group.barrier(self.device)  # the others read the file when the next stage begins
        return path

    def newest(self) -> tuple[dict[str, Tensor], CheckpointMeta, Path] | None:
        """Loads the newest intact checkpoint, the same one in every process."""
        found = checkpoint.load_newest(self.checkpoints, self.echo) if self.group.main else None
        name = self.group.broadcast(found[2].name if found else "", self.device)
        if self.group.main or not name:
            return found
        return *checkpoint.load(self.checkpoints / name), self.checkpoints / name

    def snapshot(self, trainer: StageTrainer) -> Path:
        """Draws G_ema's images of the same latents at every snapshot."""
        number, classes = np.arange(SNAPSHOT_IMAGES), max(self.cfg.network.classes, 1)
        z = latents(number // classes, self.cfg.network.z_dim)  # every class of one seed, then of the next
        c = torch.from_numpy(number % classes) if self.cfg.network.classes else None
        volumes, masks = synthesise_pairs(trainer.G_ema, z, batch=trainer.hyper.batch, c=c)
        path = self.folder / "snapshots" / f"{trainer.stage}-{trainer.images:09d}.png"
        title = f"stage {trainer.stage}, {trainer.images} images"
        if trainer.stage == "2d":
            return slice_grid(volumes[:, 0], path, title=title)
        return self.draw(volumes, masks, path, title)

    def draw(self, volumes: np.ndarray, masks: np.ndarray | None, path: Path, title: str) -> Path:
        """Draws volumes (N, D, H, W), and their masks, as three planes each."""
        info = self.data.info
        if masks is not None:
            masks = to_axial(masks, info.slice_axis)
        axial = to_axial(volumes, info.slice_axis)
        return three_plane_grid(axial, path, spacing=info.spacing, title=title, masks=masks)

    def plot_curves(self) -> None:
        plot_curves(self.log.rows, self.folder / "curves.png")

    def write_result(self) -> None:
        """Writes result.json and shows where the run's files are."""
        last = self.cfg.stages[-1]
        finals = {stage: checkpoint.final_path(self.checkpoints, stage) for stage in self.cfg.stages}
        result = self.log.result(last) | {
            "protocol": self.monitor.distance(last).protocol,
            "images": {stage: checkpoint.read_meta(path).images for stage, path in finals.items()},
            "checkpoint": str(finals[last].relative_to(self.folder)),
        }
        write_json_atomic(self.folder / "result.json", result)
        self.echo(f"final checkpoint: {finals[last]}\nsnapshots: {self.folder / 'snapshots'}")
        self.echo(f"curves: {self.folder / 'curves.png'}")
        best = checkpoint.best_path(self.checkpoints, last)
        if best.exists():
            self.echo(f"best by {self.cfg.best_metric}: {best} (after {checkpoint.read_meta(best).images} images)")
        self.echo(distance_line(result["distance"]))


class RunningMeans:
    """Means of the steps' statistics since the last row of the log."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor | float]] = defaultdict(list)
        self.seconds = 0.0

    def add(self, stats: dict[str, Tensor | float], seconds: float) -> None:
        self.seconds += seconds
        for name, value in stats.items():
            self.values[name].append(value)

    def row(self, batch: int) -> dict[str, Any]:
        """Reads the values, all at once. Returns the means and images per second; begins anew."""
        count = len(self.values["loss_g"])
        numbers = iter(read([v for values in self.values.values() for v in values if isinstance(v, Tensor)]))
        row: dict[str, Any] = {}
        for name, values in self.values.items():
            found = [next(numbers) if isinstance(v, Tensor) else v for v in values]
            row[name] = math.fsum(found) / len(found)
        row["images_per_second"] = count * batch / max(self.seconds, 1e-9)
        self.values.clear()
        self.seconds = 0.0
        return row
