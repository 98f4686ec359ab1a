"""The training loop: 2D on slices, inflation, 3D on volumes.

The order of the data comes from (seed, stage, epoch) and the draws of a step from (seed, stage, step, purpose): a
resumed run needs no random state to be the same run.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgan import checkpoint
from ssgan.checkpoint import CheckpointMeta
from ssgan.config import TrainConfig
from ssgan.data.dataset import VolumeDataset, to_axial
from ssgan.files import atomic_write_bytes, write_json_atomic
from ssgan.gan import Gan, stream_seed
from ssgan.images import plot_curves, slice_grid, three_plane_grid
from ssgan.metrics.sliced import DistanceToData
from ssgan.runlog import (
    Board,
    JsonLog,
    Progress,
    RunError,
    StopSignals,
    distance_line,
    identity,
    record_config,
    remove_stray_files,
)
from ssgan.sampling import latents, synthesise

LOG_STEPS = 16  # a row of log.jsonl; the R1 interval, so that each row has every loss
SNAPSHOT_IMAGES = 16

Say = Callable[[str], None]


class RealImages:
    """The real images of a stage in training order: each item once per epoch, in an order of its own.

    Items are volumes in stage 3d and single slices (volume, position along D) in stage 2d.
    """

    def __init__(self, data: VolumeDataset, stage: str, seed: int) -> None:
        self.data, self.stage, self.seed = data, stage, seed
        self.depth = data.info.shape[0]
        self.count = len(data) * (self.depth if stage == "2d" else 1)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def items(self, first: int, count: int) -> np.ndarray:
        """The items of the stage's images number first .. first + count - 1."""
        found = np.empty(count, np.int64)
        for i, image in enumerate(range(first, first + count)):
            epoch, place = divmod(image, self.count)
            if epoch != self._epoch:
                generator = torch.Generator().manual_seed(stream_seed(self.seed, self.stage, epoch, "order"))
                self._epoch, self._order = epoch, torch.randperm(self.count, generator=generator).numpy()
            found[i] = self._order[place]
        return found

    def batch(self, first: int, count: int) -> Tensor:
        """(count, 1, D, H, W) float32 on the CPU, D = 1 in stage 2d."""
        items = self.items(first, count)
        if self.stage == "3d":
            return self.data.volume_batch(items)
        return self.data.slice_batch(items // self.depth, items % self.depth)


class Run:
    """One run's folder and the work in it."""

    def __init__(
        self, cfg: TrainConfig, data: VolumeDataset, folder: Path, device: torch.device, progress: bool, say: Say
    ) -> None:
        self.cfg, self.data, self.folder, self.device = cfg, data, folder, device
        self.progress, self.say = progress, say
        self.checkpoints = folder / "checkpoints"
        self.identity = identity(cfg.to_json())
        self.log = JsonLog(folder / "log.jsonl")
        self._distances: dict[str, DistanceToData] = {}

    def distance_to_data(self, stage: str) -> DistanceToData:
        if stage not in self._distances:
            self._distances[stage] = DistanceToData(self.data.volumes, slices=stage == "2d", seed=self.cfg.seed)
        return self._distances[stage]

    def measure(self, gan: Gan) -> float:
        """Sliced Wasserstein distance of G_ema's images to the data; takes nothing from the training's randomness."""

        def generate(count: int) -> np.ndarray:
            z = latents(range(count), self.cfg.network.z_dim)
            return synthesise(gan.G_ema, z, batch=gan.hyper.batch, noise="random")

        return self.distance_to_data(gan.stage).measure(generate)

    def start(self) -> None:
        """Before the first step: real images for comparison, the floor, and the distance of untrained networks."""
        gan = Gan(self.cfg, self.cfg.stages[-1], self.device)
        real = np.array(self.data.volumes[: min(SNAPSHOT_IMAGES, len(self.data))])
        self.draw(real, self.folder / "snapshots" / "reals.png", "real")
        row = {"stage": gan.stage, "step": 0, "images": 0, "seconds": 0.0}
        self.log.append({"event": "floor", **row, "distance_floor": self.distance_to_data(gan.stage).floor})
        self.log.append({"event": "start", **row, "distance": self.measure(gan)})

    def begin_stage(self, stage: str, init: Path | None) -> Gan:
        """A fresh GAN of a stage, inflated from the 2D stage or from `init` where that is asked for."""
        gan = Gan(self.cfg, stage, self.device)
        source = init if init is not None else checkpoint.final_path(self.checkpoints, "2d")
        if stage == "2d" or (init is None and "2d" not in self.cfg.stages):
            return gan
        if self.cfg.inflate == "none":
            atomic_write_bytes(self.folder / "inflation.txt", b"profile none: the 3D networks start fresh\n")
            return gan
        tensors, meta = checkpoint.load(source)
        if meta.stage == "2d":
            gan2d = Gan(self.cfg, "2d", self.device)
            gan2d.load(tensors, meta, str(source))
            report = gan.inflate_from(gan2d, self.cfg.inflate, images=meta.images)
            done = f"inflated 2D -> 3D with profile {self.cfg.inflate}"
        elif meta.step == 0:
            gan.load(tensors, meta, str(source))
            report = f"inflated before, by `ssgan inflate`: {source}\n"
            done = f"starting from the inflated {source}"
        else:
            raise RunError(f"--init {source} is a checkpoint within stage 3d; expected one of stage 2d or of `inflate`")
        atomic_write_bytes(self.folder / "inflation.txt", report.encode())
        row = {"event": "inflated", "stage": stage, "step": 0, "images": 0, "seconds": self.log.seconds}
        self.log.append({**row, "distance": self.measure(gan)})
        self.say(f"{done}; report in {self.folder / 'inflation.txt'}")
        return gan

    def save(self, gan: Gan, final: bool) -> Path:
        gan.check_finite("before saving")
        meta = CheckpointMeta(gan.stage, gan.step, gan.images, self.identity, gan.images_before)
        path = checkpoint.numbered_path(self.checkpoints, meta)
        if final:
            path = checkpoint.final_path(self.checkpoints, gan.stage)
        checkpoint.save(path, gan.state(), meta)
        checkpoint.prune(self.checkpoints, self.cfg.keep_checkpoints)
        return path

    def snapshot(self, gan: Gan) -> Path:
        """The same latents at every snapshot, by G_ema."""
        z = latents(range(SNAPSHOT_IMAGES), self.cfg.network.z_dim)
        volumes = synthesise(gan.G_ema, z, batch=gan.hyper.batch)
        path = self.folder / "snapshots" / f"{gan.stage}-{gan.images:09d}.png"
        title = f"stage {gan.stage}, {gan.images} images"
        if gan.stage == "2d":
            return slice_grid(volumes[:, 0], path, title=title)
        return self.draw(volumes, path, title)

    def draw(self, volumes: np.ndarray, path: Path, title: str) -> Path:
        """Volumes (N, D, H, W) as three planes each."""
        info = self.data.info
        return three_plane_grid(to_axial(volumes, info.slice_axis), path, spacing=info.spacing, title=title)

    def train_stage(self, gan: Gan, stop: StopSignals) -> bool:
        """Trains to the end of the stage; False if a signal stopped it, with everything saved."""
        reals = RealImages(self.data, gan.stage, self.cfg.seed)
        board = Board(self.folder, gan.stage, gan.images)
        bar = Progress(gan.stage, gan.steps * gan.hyper.batch, gan.images, self.progress)
        every = max(round(self.cfg.snapshot_kimg * 1000), 1)
        began, before = time.monotonic(), self.log.seconds
        sums: dict[str, list[float]] = defaultdict(list)
        busy = 0.0
        try:
            while gan.step < gan.steps:
                clock = time.monotonic()
                stats = gan.train_step(reals.batch(gan.images, gan.hyper.batch))
                busy += time.monotonic() - clock
                for name, value in stats.items():
                    sums[name].append(value)
                bar.update(gan.images, ((n, stats[n]) for n in ("loss_g", "loss_d")))
                final = gan.step == gan.steps
                due = final or gan.images // every > (gan.images - gan.hyper.batch) // every
                if due or stop.received or gan.step % LOG_STEPS == 0:
                    count = len(sums["loss_g"])
                    row: dict[str, Any] = {"stage": gan.stage, "step": gan.step, "images": gan.images}
                    row |= {name: math.fsum(values) / len(values) for name, values in sums.items()}
                    row["images_per_second"] = count * gan.hyper.batch / max(busy, 1e-9)
                    if due:
                        board.image("G_ema", self.snapshot(gan), gan.images)
                        row["distance"] = self.measure(gan)
                    row["seconds"] = before + time.monotonic() - began
                    self.log.append(row)
                    board.scalars(row)
                    if due:
                        plot_curves(self.log.rows, self.folder / "curves.png")
                    sums.clear()
                    busy = 0.0
                # After its row: a row without its checkpoint is written again, a checkpoint without its row is not.
                if due or stop.received:
                    path = self.save(gan, final)
                if stop.received and not final:
                    where = f"in stage {gan.stage} after {gan.images} images"
                    self.say(
                        f"stopped by {stop.received.name} {where}; saved {path}; the same command goes on from there"
                    )
                    return False
        finally:
            bar.close()
            board.close()
        return True

    def finish(self) -> None:
        """Writes result.json and says where everything is."""
        last = self.cfg.stages[-1]
        finals = {stage: checkpoint.final_path(self.checkpoints, stage) for stage in self.cfg.stages}
        result = self.log.result(last) | {
            "protocol": self.distance_to_data(last).protocol,
            "images": {stage: checkpoint.read_meta(path).images for stage, path in finals.items()},
            "checkpoint": str(finals[last].relative_to(self.folder)),
        }
        write_json_atomic(self.folder / "result.json", result)
        self.say(f"final checkpoint: {finals[last]}\nsnapshots: {self.folder / 'snapshots'}")
        self.say(f"curves: {self.folder / 'curves.png'}")
        self.say(distance_line(result["distance"]))


def train(
    cfg: TrainConfig,
    data: VolumeDataset,
    folder: Path,
    *,
    init: Path | None = None,
    data_path: str = "",
    device: torch.device | str = "cpu",
    progress: bool = True,
    say: Say = print,
) -> int:
    """Trains or resumes the run in `folder`; the caller holds its lock. Returns the exit status.

    init: a 2D checkpoint to inflate from, for stage 3d. data_path: recorded in config.json. Returns 0 when the run
    is finished, 128 plus the signal's number when SIGINT or SIGTERM stopped it.

    Raises:
        RunError, CheckpointError, NonFiniteError, OSError: see there; saved checkpoints are intact.
    """
    for name in ("checkpoints", "snapshots", "samples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    remove_stray_files(folder)
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    info = {"path": data_path, "content_hash": data.info.content_hash, "info": data.info.to_json()}
    source = None if init is None else {"path": str(init), "sha256": checkpoint.checksum(init)}
    record_config(folder, cfg.to_json(), info, source, begun=found[-1].name[:2] if found else None)
    run = Run(cfg, data, folder, torch.device(device), progress, say)
    newest = checkpoint.load_newest(run.checkpoints, say)
    run.log.rewind(newest[1] if newest else None)
    gan = None
    if newest is None:
        run.start()
    else:
        tensors, meta, path = newest
        if meta.config_hash != run.identity:
            raise RunError(f"{path} belongs to a run of another configuration than {folder / 'config.json'}")
        gan = Gan(cfg, meta.stage, run.device)
        gan.load(tensors, meta, str(path))
        if meta.stage == cfg.stages[-1] and gan.step >= gan.steps:
            say(
                f"{folder} is finished: {gan.images} images in stage {meta.stage}; a longer --kimg-{meta.stage} goes on"
            )
            run.finish()
            return 0
        say(f"resuming {folder} from {path.name}: stage {meta.stage}, {meta.images} images")
    with StopSignals() as stop:
        for stage in cfg.stages[cfg.stages.index(gan.stage) if gan else 0 :]:
            gan = gan or run.begin_stage(stage, init)
            if not run.train_stage(gan, stop):
                return 128 + stop.received
            gan = None
    run.finish()
    return 0
