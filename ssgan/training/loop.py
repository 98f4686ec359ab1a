"""The training loop: 2D on slices, inflation, 3D on volumes.

The order of the data comes from (seed, stage, epoch) and the draws of a step from (seed, stage, step, purpose): a
resumed run needs no random state to be the same run.
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgan.augmentation.ada import Augment
from ssgan.config.training import TrainConfig
from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.models.sampling import latents, synthesise
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.config import RunError, check_voxels, identity, record_config
from ssgan.runs.folder import remove_stray_files
from ssgan.runs.log import JsonLog, distance_line
from ssgan.runs.progress import Progress
from ssgan.runs.tensorboard import TensorBoardWriter
from ssgan.training.distributed import SINGLE, Group, split_batch
from ssgan.training.losses import NonFiniteError
from ssgan.training.monitor import Measures
from ssgan.training.precision import Execution
from ssgan.training.schedule import MAX_REWINDS, check_metrics, exhausted, standing
from ssgan.training.start_file import load_start
from ssgan.training.step import Gan
from ssgan.utils.errors import ConfigError
from ssgan.utils.files import atomic_write_bytes, write_json_atomic
from ssgan.utils.pictures import plot_curves, slice_grid, three_plane_grid
from ssgan.utils.seeding import stream_seed
from ssgan.utils.signals import StopSignals

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

    def batch(self, first: int, count: int, samples: Sequence[int] | None = None) -> Tensor:
        """(count, 1, D, H, W) float32 on the CPU, D = 1 in stage 2d; `samples` of the batch only, where given."""
        items = self.items(first, count)
        if samples is not None:
            items = items[list(samples)]
        if self.stage == "3d":
            return self.data.volume_batch(items)
        return self.data.slice_batch(items // self.depth, items % self.depth)

    def places(self, first: int, count: int, samples: Sequence[int] | None = None) -> Tensor:
        """(count,) int64: where along depth the slices of `batch` lie, in stage 2d."""
        items = self.items(first, count)
        return torch.from_numpy((items if samples is None else items[list(samples)]) % self.depth)

    def labels(self, first: int, count: int, samples: Sequence[int] | None = None) -> Tensor:
        """(count,) int64: the classes of the images of `batch`; a slice has its volume's."""
        items = self.items(first, count)
        items = items if samples is None else items[list(samples)]
        return torch.from_numpy(self.data.labels[items if self.stage == "3d" else items // self.depth])


class Run:
    """One run's folder and the work in it, in this process of `group`; only the main one writes."""

    def __init__(
        self, cfg: TrainConfig, data: VolumeDataset, folder: Path, device: torch.device, progress: bool, say: Say,
        execution: Execution | None = None, group: Group = SINGLE,
    ) -> None:  # fmt: skip
        self.cfg, self.data, self.folder, self.device = cfg, data, folder, device
        self.progress, self.say = progress and group.main, say
        self.execution, self.group = execution or Execution(), group
        self.checkpoints = folder / "checkpoints"
        self.identity = identity(cfg.to_json())
        self.log = JsonLog(folder / "log.jsonl", write=group.main)
        self.measures = Measures(data, cfg.seed)

    def measure(self, gan: Gan, evaluate: bool = True) -> dict[str, float]:
        """The distance to the data, and with `evaluate` the run's other metrics."""
        return self.measures.of(gan, dict.fromkeys(("distance", *(self.cfg.metrics if evaluate else ()))))

    def gan(self, stage: str) -> Gan:
        info = self.data.info
        place = {"slice_axis": info.slice_axis, "spacing": info.spacing, "class_counts": self.data.class_counts}
        return Gan(self.cfg, stage, self.device, self.execution, self.group, **place)

    def start(self) -> None:
        """Before the first step: real images for comparison, the floor, and the distance of untrained networks."""
        gan = self.gan(self.cfg.stages[-1])
        real = np.array(self.data.volumes[: min(SNAPSHOT_IMAGES, len(self.data))])
        self.draw(real, self.folder / "snapshots" / "reals.png", "real")
        row = {"stage": gan.stage, "step": 0, "images": 0, "seconds": 0.0}
        self.log.append({"event": "floor", **row, "distance_floor": self.measures.distance(gan.stage).floor})
        self.log.append({"event": "start", **row, **self.measure(gan)})

    def begin_stage(self, stage: str, init: Path | None) -> Gan:
        """A fresh GAN of a stage, inflated from the 2D stage or from `init` where that is asked for."""
        gan = self.gan(stage)
        source = init if init is not None else checkpoint.final_path(self.checkpoints, "2d")
        if stage == "2d" or (init is None and "2d" not in self.cfg.stages):
            return gan
        if self.cfg.inflate == "none":
            if self.group.main:
                atomic_write_bytes(self.folder / "inflation.txt", b"profile none: the 3D networks start fresh\n")
            return gan
        tensors, meta = checkpoint.load(source)
        if meta.stage == "2d":
            knows = "D.depth_embedding" in tensors
            if knows != bool(self.cfg.network.depth_places):
                raise RunError(
                    f"--init {source}: its 2D networks {'know' if knows else 'do not know'} places along depth, this "
                    f"run's are to {'do without' if knows else 'know them'}; give --{'' if knows else 'no-'}depth-aware"
                )
            gan2d = Gan(self.cfg, "2d", self.device)
            gan2d.load(tensors, meta, str(source))
            report = gan.inflate_from(gan2d, self.cfg.inflate, images=meta.images)
            done = f"inflated 2D -> 3D with profile {self.cfg.inflate}"
        elif meta.step == 0:
            load_start(gan, tensors, meta, str(source))
            report = f"inflated before, by `ssgan inflate`: {source}\n"
            done = f"starting from the inflated {source}"
        else:
            raise RunError(f"--init {source} is a checkpoint within stage 3d; expected one of stage 2d or of `inflate`")
        if not self.group.main:
            return gan
        atomic_write_bytes(self.folder / "inflation.txt", report.encode())
        row = {"event": "inflated", "stage": stage, "step": 0, "images": 0, "seconds": self.log.seconds}
        self.log.append(row | self.measure(gan))
        self.say(f"{done}; report in {self.folder / 'inflation.txt'}")
        return gan

    def save(self, gan: Gan, final: bool, best: bool = False) -> Path:
        """Writes the checkpoint of this moment: numbered, the stage's last, or the copy kept as the best."""
        gan.check_finite("before saving")
        self.group.check_together([*gan.G.parameters(), *gan.D.parameters()], self.device)
        meta = CheckpointMeta(gan.stage, gan.step, gan.images, self.identity, gan.images_before)
        path = checkpoint.numbered_path(self.checkpoints, meta)
        if best:
            path = checkpoint.best_path(self.checkpoints, gan.stage)
        elif final:
            path = checkpoint.final_path(self.checkpoints, gan.stage)
        if self.group.main:
            checkpoint.save(path, gan.state(), meta)
            checkpoint.prune(self.checkpoints, self.cfg.keep_checkpoints)
        self.group.tell("", self.device)  # the others read what was written, at the start of the next stage say
        return path

    def newest(self) -> tuple[dict[str, Tensor], CheckpointMeta, Path] | None:
        """The newest intact checkpoint, the same one in every process."""
        found = checkpoint.load_newest(self.checkpoints, self.say) if self.group.main else None
        name = self.group.tell(found[2].name if found else "", self.device)
        if self.group.main or not name:
            return found
        return *checkpoint.load(self.checkpoints / name), self.checkpoints / name

    def rewind(self, gan: Gan, error: NonFiniteError, init: Path | None) -> Gan:
        """The stage as of its last checkpoint (or its start), with half the learning rates from there on.

        Raises:
            NonFiniteError: the stage has gone back too often.
        """
        if gan.rewinds >= MAX_REWINDS:
            raise NonFiniteError(f"{error}; the stage went back {MAX_REWINDS} times before, each time at half the rate")
        newest = self.newest()
        place = newest[1] if newest else CheckpointMeta("2d", 0, 0, self.identity)
        self.log.rewind(place)
        if newest and place.stage == gan.stage:
            fresh = self.gan(gan.stage)
            fresh.load(newest[0], place, str(newest[2]))
        else:
            fresh = self.begin_stage(gan.stage, init)
        fresh.rewinds = gan.rewinds + 1
        row = {"event": "rewind", "stage": gan.stage, "step": fresh.step, "images": fresh.images, "reason": str(error)}
        self.log.append({**row, "seconds": self.log.seconds, "rewinds": fresh.rewinds})
        self.save(fresh, final=False)  # so that the lower rates outlive this process
        self.say(
            f"{error}. Going back to {fresh.images} images of stage {gan.stage}, with learning rates times "
            f"{0.5**fresh.rewinds:g} (rewind {fresh.rewinds} of at most {MAX_REWINDS})"
        )
        return fresh

    def snapshot(self, gan: Gan) -> Path:
        """The same latents at every snapshot, by G_ema."""
        number, classes = np.arange(SNAPSHOT_IMAGES), max(self.cfg.network.classes, 1)
        z = latents(number // classes, self.cfg.network.z_dim)  # every class of one seed, then of the next
        c = torch.from_numpy(number % classes) if self.cfg.network.classes else None
        volumes = synthesise(gan.G_ema, z, batch=gan.hyper.batch, c=c)
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
        main, batch = self.group.main, gan.hyper.batch
        reals = RealImages(self.data, gan.stage, self.cfg.seed)
        labelled = self.cfg.network.classes > 0
        board = TensorBoardWriter(self.folder, gan.stage, gan.images) if main else None
        bar = Progress(gan.stage, gan.steps * batch, gan.images, self.progress)
        every = max(round(self.cfg.snapshot_kimg * 1000), 1)
        measured = self.cfg.metrics_every or every
        began, before = time.monotonic(), self.log.seconds
        sums: dict[str, list[float]] = defaultdict(list)
        busy = 0.0
        ended = self.group.any(main and exhausted(self.log.rows, gan.stage, self.cfg), self.device)
        try:
            while gan.step < gan.steps and not ended:
                clock = time.monotonic()
                known = reals.labels(gan.images, batch, gan.local) if labelled else None
                where = reals.places(gan.images, batch, gan.local) if gan.places else None
                stats = gan.train_step(reals.batch(gan.images, batch, gan.local), known, where)
                busy += time.monotonic() - clock
                for name, value in stats.items():
                    sums[name].append(value)
                bar.update(gan.images, ((n, stats[n]) for n in ("loss_g", "loss_d")))
                final = gan.step == gan.steps
                due = final or gan.images // every > (gan.images - batch) // every
                evaluate = final or gan.images // measured > (gan.images - batch) // measured
                stopping = self.group.any(stop.received is not None, self.device)
                best = False
                if main and (due or evaluate or stopping or gan.step % LOG_STEPS == 0):
                    count = len(sums["loss_g"])
                    row: dict[str, Any] = {"stage": gan.stage, "step": gan.step, "images": gan.images}
                    row |= {name: math.fsum(values) / len(values) for name, values in sums.items()}
                    row["images_per_second"] = count * batch / max(busy, 1e-9)
                    if due:
                        board.image("G_ema", self.snapshot(gan), gan.images)
                    if due or evaluate:
                        row |= self.measure(gan, evaluate)
                    row["seconds"] = before + time.monotonic() - began
                    self.log.append(row)
                    board.scalars(row)
                    if due:
                        plot_curves(self.log.rows, self.folder / "curves.png")
                    best = self.cfg.best_metric in row and standing(self.log.rows, gan.stage, self.cfg)[1] == 0
                    ended = exhausted(self.log.rows, gan.stage, self.cfg)
                    sums.clear()
                    busy = 0.0
                if due or evaluate:  # what the main process measured is news to the others
                    best, ended = self.group.any(best, self.device), self.group.any(ended, self.device)
                final |= ended
                # After its row: a row without its checkpoint is written again, a checkpoint without its row is not.
                if best:
                    self.save(gan, final=False, best=True)
                if due or final or stopping:
                    path = self.save(gan, final)
                if ended:
                    self.say(
                        f"stage {gan.stage} ends after {gan.images} images: {self.cfg.best_metric} has not improved in "
                        f"{self.cfg.early_stop} measurements (--early-stop)"
                    )
                if stopping and not final:
                    where = f"in stage {gan.stage} after {gan.images} images"
                    name = stop.received.name if stop.received else "a signal to another process"
                    self.say(f"stopped by {name} {where}; saved {path}; the same command goes on from there")
                    return False
        finally:
            bar.close()
            if board is not None:
                board.close()
        return True

    def finish(self) -> None:
        """Writes result.json and says where everything is."""
        last = self.cfg.stages[-1]
        finals = {stage: checkpoint.final_path(self.checkpoints, stage) for stage in self.cfg.stages}
        result = self.log.result(last) | {
            "protocol": self.measures.distance(last).protocol,
            "images": {stage: checkpoint.read_meta(path).images for stage, path in finals.items()},
            "checkpoint": str(finals[last].relative_to(self.folder)),
        }
        write_json_atomic(self.folder / "result.json", result)
        self.say(f"final checkpoint: {finals[last]}\nsnapshots: {self.folder / 'snapshots'}")
        self.say(f"curves: {self.folder / 'curves.png'}")
        best = checkpoint.best_path(self.checkpoints, last)
        if best.exists():
            self.say(f"best by {self.cfg.best_metric}: {best} (after {checkpoint.read_meta(best).images} images)")
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
    execution: Execution | None = None,
    group: Group = SINGLE,
    on_nan: str = "stop",
) -> int:
    """Trains or resumes the run in `folder`; the caller holds its lock. Returns the exit status.

    init: a 2D checkpoint to inflate from, for stage 3d. data_path: recorded in config.json. on_nan: "stop" raises,
    "rewind" goes back to the last checkpoint and halves the learning rates, up to `MAX_REWINDS` times a stage. Every
    process of `group` calls this. Returns 0 when the run is finished, 128 plus the signal's number when SIGINT or
    SIGTERM stopped it (15 where it came to another process).

    Raises:
        RunError, CheckpointError, NonFiniteError, DistributedError, OSError: see there; saved checkpoints are intact.
    """
    device = torch.device(device)
    check_metrics(cfg)
    if cfg.network.classes and cfg.network.classes != len(data.class_counts):
        raise ConfigError(
            f"classes: the networks have {cfg.network.classes}, the data set {data.path} has {len(data.class_counts)}; "
            "prepare it with --labels, or train without --conditional"
        )
    for stage in cfg.stages:  # before hours have gone into the first
        batch = (cfg.stage_2d if stage == "2d" else cfg.stage_3d).batch
        split_batch(batch, cfg.network.mbstd_group, group.size * (execution or Execution()).accumulate)
        shape = cfg.network.flat().shape if stage == "2d" else cfg.network.shape
        Augment(cfg.augment, shape, slice_axis=data.info.slice_axis, spacing=data.info.spacing)
    if group.main:
        _open_folder(cfg, data, folder, init, data_path)
    group.tell("", device)
    run = Run(cfg, data, folder, device, progress, say, execution, group)
    newest = run.newest()
    for stage in cfg.stages[cfg.stages.index(newest[1].stage) if newest and newest[1].stage in cfg.stages else 0 :]:
        for name in cfg.metrics if group.main else ():
            run.measures.get(stage, name)  # what the data are too few for is said now
    run.log.rewind(newest[1] if newest else None)
    gan = None
    if newest is None:
        if group.main:
            run.start()
    else:
        tensors, meta, path = newest
        if meta.config_hash != run.identity:
            raise RunError(f"{path} belongs to a run of another configuration than the config.json of {folder}")
        gan = run.gan(meta.stage)
        gan.load(tensors, meta, str(path))
        ended = group.any(group.main and exhausted(run.log.rows, meta.stage, cfg), device)
        if meta.stage == cfg.stages[-1] and (gan.step >= gan.steps or ended):
            say(
                f"{folder} is finished: {gan.images} images in stage {meta.stage}; a longer --kimg-{meta.stage} goes on"
            )
            if group.main:
                run.finish()
            return 0
        say(f"resuming {folder} from {path.name}: stage {meta.stage}, {meta.images} images")
    with StopSignals() as stop:
        for stage in cfg.stages[cfg.stages.index(gan.stage) if gan else 0 :]:
            gan = gan or run.begin_stage(stage, init)
            while True:
                try:
                    finished = run.train_stage(gan, stop)
                    break
                except NonFiniteError as error:  # the same one in every process
                    if on_nan != "rewind":
                        raise
                    gan = run.rewind(gan, error, init)
            if not finished:
                return 128 + (stop.received or signal.SIGTERM)
            gan = None
    if group.main:
        run.finish()
    return 0


def _open_folder(cfg: TrainConfig, data: VolumeDataset, folder: Path, init: Path | None, data_path: str) -> None:
    """Makes the run's folders and config.json, or checks that configuration and data are those of the run there."""
    for name in ("checkpoints", "snapshots", "samples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    remove_stray_files(folder)
    found = checkpoint.list_checkpoints(folder / "checkpoints")
    info = {"path": data_path, "content_hash": data.info.content_hash, "info": data.info.to_json()}
    if cfg.network.classes:
        digest = hashlib.sha256(np.ascontiguousarray(data.labels, "<i8").tobytes()).hexdigest()
        info |= {"class_counts": list(data.class_counts), "labels_sha256": digest}
    source = None if init is None else {"path": str(init), "sha256": checkpoint.checksum(init)}
    record_config(folder, cfg.to_json(), info, source, begun=found[-1].name[:2] if found else None)
    if found:
        check_voxels(data.volumes, data.info.content_hash, data_path or str(data.path))
