"""The training loop: 2D on slices, inflation, 3D on volumes.

The order of the data depends on (seed, stage, epoch) and the draws of a step on (seed, stage, step, purpose): a resumed
run needs no random state to continue as the same run.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from ssgan.augmentation.ada import Augment
from ssgan.config.training import TrainConfig
from ssgan.data.dataset import VolumeDataset
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointError, CheckpointMeta
from ssgan.runs.config import RunError
from ssgan.runs.progress import Progress
from ssgan.runs.tensorboard import TensorBoardWriter
from ssgan.training.distributed import SINGLE, Group, split_batch
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.precision import Execution
from ssgan.training.real_images import RealImages
from ssgan.training.run import Echo, Run, RunningMeans, open_folder
from ssgan.training.schedule import MAX_REWINDS, best_so_far, check_metrics, is_stopped_early
from ssgan.training.start_file import differences, load_start
from ssgan.training.step import StageTrainer
from ssgan.training.threads import Threads
from ssgan.utils.errors import ConfigError, OutOfMemory, out_of_memory
from ssgan.utils.files import atomic_write_bytes
from ssgan.utils.signals import StopSignals

LOG_STEPS = 16  # steps between rows of log.jsonl; the R1 interval, so that each row has every loss


def train(
    cfg: TrainConfig,
    data: VolumeDataset,
    folder: Path,
    *,
    init: Path | None = None,
    data_path: str = "",
    device: torch.device | str = "cpu",
    progress: bool = True,
    echo: Echo = print,
    execution: Execution | None = None,
    group: Group = SINGLE,
    on_nan: str = "stop",
    threads: Threads | None = None,
) -> int:
    """Trains or resumes the run in `folder`, whose lock the caller holds. Returns the exit status.

    init: a 2D checkpoint to inflate, or the output of `ssgan inflate`, for stage 3d. data_path: recorded in
    config.json. echo: shows messages. on_nan: "stop" raises, "rewind" goes back to the last checkpoint and halves the
    learning rates, up to `MAX_REWINDS` times a stage. threads: chooses their number, for one process on a CPU; None
    leaves PyTorch's. Every process of `group` calls this.

    Returns 0 when the run is finished, and 128 plus the signal's number when SIGINT, SIGTERM or SIGHUP stopped it
    (SIGTERM's if another process received the signal).

    Raises:
        RunError, CheckpointError, NonFiniteError, DistributedError, OSError: see there; saved checkpoints are intact.
    """
    device, execution = torch.device(device), execution or Execution()
    check_plan(cfg, data, execution, group)
    if group.main:
        open_folder(cfg, data, folder, init, data_path)
    group.barrier(device)
    run = Run(cfg, data, folder, device, progress, echo, execution, group)
    newest = run.newest()
    resumed = newest[1].stage if newest and newest[1].stage in cfg.stages else cfg.stages[0]
    for stage in cfg.stages[cfg.stages.index(resumed) :]:
        for name in cfg.metrics if group.main else ():
            run.monitor.get(stage, name)  # fails now if the data set is too small for a metric
    run.log.rewind(newest[1] if newest else None)
    trainer = None
    if newest is None:
        if group.main:
            with explained_memory(cfg, cfg.stages[-1]):
                run.log_start()
    else:
        tensors, meta, path = newest
        if meta.config_hash != run.identity:
            raise RunError(f"{path} belongs to a run of another configuration than the config.json of {folder}")
        with explained_memory(cfg, meta.stage):
            trainer = run.new_trainer(meta.stage)
            trainer.load(tensors, meta, str(path))
        stopped_early = group.any(group.main and is_stopped_early(run.log.rows, meta.stage, cfg), device)
        if meta.stage == cfg.stages[-1] and (trainer.step >= trainer.steps or stopped_early):
            echo(
                f"{folder} is finished: {trainer.images} images in stage {meta.stage}; "
                f"a longer --kimg-{meta.stage} goes on"
            )
            if group.main:
                run.write_result()
            return 0
        echo(f"resuming {folder} from {path.name}: stage {meta.stage}, {meta.images} images")
    with StopSignals() as stop:
        for stage in cfg.stages[cfg.stages.index(trainer.stage) if trainer else 0 :]:
            with explained_memory(cfg, stage):
                trainer = trainer or begin_stage(run, stage, init)
                while True:
                    try:
                        finished = train_stage(run, trainer, stop, threads)
                        break
                    except NonFiniteError as error:  # the same one in every process
                        if on_nan != "rewind":
                            raise
                        trainer = rewind(run, trainer, error, init)
            if not finished:
                return 128 + (stop.received or signal.SIGTERM)
            trainer = None
    if group.main:
        run.write_result()
    return 0


@contextlib.contextmanager
def explained_memory(cfg: TrainConfig, stage: str) -> Iterator[None]:
    """Turns an error for lack of memory into one that names the stage, its batch and the options that need less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        asked = out_of_memory(error)
        if asked is None:
            raise
        batch = (cfg.stage_2d if stage == "2d" else cfg.stage_3d).batch
        raise OutOfMemory(
            f"out of memory in stage {stage} at batch {batch}{asked}. Saved checkpoints are intact: the same command "
            f"goes on with --accumulate or --checkpoint-activations. A new run may have a smaller --batch-{stage} or "
            "--precision bf16; --dry-run estimates what fits"
        ) from error


def check_plan(cfg: TrainConfig, data: VolumeDataset, execution: Execution, group: Group) -> None:
    """Raises ConfigError for a plan that would fail later, perhaps after hours in the first stage."""
    check_metrics(cfg)
    if cfg.network.classes and cfg.network.classes != len(data.class_counts):
        raise ConfigError(
            f"classes: the networks have {cfg.network.classes}, the data set {data.path} has {len(data.class_counts)}; "
            "prepare it with --labels, or train without --conditional"
        )
    masks = cfg.network.mask_classes
    if masks and masks != data.info.mask_classes:
        have = f"masks of {data.info.mask_classes} classes" if data.info.mask_classes else "no masks"
        raise ConfigError(
            f"mask_classes: the networks have {masks}, the data set {data.path} has {have}; prepare it with --masks of "
            "as many classes, or train networks of intensities alone (--no-masks)"
        )
    for stage in cfg.stages:
        batch = (cfg.stage_2d if stage == "2d" else cfg.stage_3d).batch
        split_batch(batch, cfg.network.mbstd_group, group.size * execution.accumulate)
        shape = cfg.network.flat().shape if stage == "2d" else cfg.network.shape
        Augment(cfg.augment, shape, slice_axis=data.info.slice_axis, spacing=data.info.spacing, mask_classes=masks)


class Due(NamedTuple):
    """What is due after a step, by the images shown."""

    final: bool  # the stage's last step
    snapshot: bool  # with a checkpoint and the distance
    metrics: bool


def due_after(trainer: StageTrainer) -> Due:
    cfg, batch = trainer.cfg, trainer.hyper.batch
    snapshot_every = max(round(cfg.snapshot_kimg * 1000), 1)
    metrics_every = cfg.metrics_every or snapshot_every
    final = trainer.step == trainer.steps

    def passed(every: int) -> bool:
        return final or trainer.images // every > (trainer.images - batch) // every

    return Due(final, passed(snapshot_every), passed(metrics_every))


def train_stage(run: Run, trainer: StageTrainer, stop: StopSignals, threads: Threads | None = None) -> bool:
    """Trains to the end of the stage. Returns False if a signal stopped it, with everything saved."""
    cfg, group, log, batch = run.cfg, run.group, run.log, trainer.hyper.batch
    if threads is not None:
        threads.begin(run, trainer)
    reals = RealImages(run.data, trainer.stage, cfg.seed, cfg.network)
    means, shown = RunningMeans(), dict[str, float]()
    began, seconds_before = time.monotonic(), log.seconds
    stopped_early = group.any(group.main and is_stopped_early(log.rows, trainer.stage, cfg), run.device)
    with contextlib.ExitStack() as stack:
        bar = Progress(trainer.stage, trainer.steps * batch, trainer.images, run.progress)
        stack.callback(bar.close)
        if group.main:
            board = TensorBoardWriter(run.folder, trainer.stage, trainer.images)
            stack.callback(board.close)
        while trainer.step < trainer.steps and not stopped_early:
            # Step.
            clock = time.monotonic()
            stats = trainer.train_step(*reals.batch(trainer.images, batch, trainer.local_samples))
            due = due_after(trainer)
            stopping = group.any(stop.received is not None, run.device)
            reporting = due.snapshot or due.metrics or stopping or trainer.step % LOG_STEPS == 0
            if reporting:
                trainer.check()  # waits for the device; between two rows the host runs ahead of it
            seconds = time.monotonic() - clock

            # Snapshot, measure and report.
            best = False
            if group.main:
                means.add(stats, seconds)
            if group.main and reporting:
                row = {"stage": trainer.stage, "step": trainer.step, "images": trainer.images} | means.row(batch)
                shown = {name: row[name] for name in ("loss_g", "loss_d")}
                if due.snapshot:
                    board.image("G_ema", run.snapshot(trainer), trainer.images)
                if due.snapshot or due.metrics:
                    row |= run.measure(trainer, due.metrics)
                row["seconds"] = seconds_before + time.monotonic() - began
                log.append(row)
                board.scalars(row)
                if due.snapshot:
                    run.plot_curves()
                best = cfg.best_metric in row and best_so_far(log.rows, trainer.stage, cfg)[1] == 0
                stopped_early = is_stopped_early(log.rows, trainer.stage, cfg)
            bar.update(trainer.images, shown.items())
            if due.snapshot or due.metrics:  # only the main process has measured
                best, stopped_early = group.any(best, run.device), group.any(stopped_early, run.device)

            # Checkpoint. After the row: a resumed run writes a row without its checkpoint again, but not the reverse.
            final = due.final or stopped_early
            if best:
                run.save(trainer, final=False, best=True)
            if due.snapshot or final or stopping:
                path = run.save(trainer, final)

            if threads is not None:
                threads.after_step(run, trainer, seconds)

            # Done?
            if stopped_early:
                run.echo(
                    f"stage {trainer.stage} ends after {trainer.images} images: {cfg.best_metric} has not improved in "
                    f"{cfg.early_stop} measurements (--early-stop)"
                )
            if stopping and not final:
                name = stop.received.name if stop.received else "a signal to another process"
                run.echo(
                    f"stopped by {name} in stage {trainer.stage} after {trainer.images} images; saved {path}; "
                    "the same command goes on from there"
                )
                return False
    return True


def begin_stage(run: Run, stage: str, init: Path | None) -> StageTrainer:
    """Makes a stage's trainer before its first step, inflated from the 2D stage or from `init` where there is one.

    Raises:
        RunError: `init` does not fit this run.
    """
    cfg, trainer = run.cfg, run.new_trainer(stage)
    if stage == "2d" or (init is None and "2d" not in cfg.stages):
        return trainer
    if cfg.inflate == "none":
        if run.group.main:
            atomic_write_bytes(run.folder / "inflation.txt", b"profile none: the 3D networks start fresh\n")
        return trainer
    source = init if init is not None else checkpoint.final_path(run.checkpoints, "2d")
    tensors, meta = checkpoint.load(source)
    if meta.stage == "2d":
        aware = "D.depth_embedding" in tensors
        if aware != bool(cfg.network.depth_places):
            theirs, ours = ("with", "without") if aware else ("without", "with")
            raise RunError(
                f"--init {source}: its 2D networks were trained {theirs} slice indices, this run is {ours} them; give "
                f"--{'' if aware else 'no-'}depth-aware"
            )
        flat = StageTrainer(cfg, "2d", run.device)
        try:
            flat.load(tensors, meta, str(source))
        except CheckpointError as error:
            if found := differences(source, cfg):
                raise RunError(f"--init {source} does not fit: {found}") from error
            raise
        report = trainer.inflate_from(flat, cfg.inflate, images=meta.images)
        done = f"inflated 2D -> 3D with profile {cfg.inflate}"
    elif meta.step == 0:
        load_start(trainer, tensors, meta, str(source))
        report = f"inflated before, by `ssgan inflate`: {source}\n"
        done = f"starting from the inflated {source}"
    else:
        raise RunError(f"--init {source} is a checkpoint within stage 3d; expected one of stage 2d or of `inflate`")
    if not run.group.main:
        return trainer
    atomic_write_bytes(run.folder / "inflation.txt", report.encode())
    row = {"event": "inflated", "stage": stage, "step": 0, "images": 0, "seconds": run.log.seconds}
    run.log.append(row | run.measure(trainer))
    run.echo(f"{done}; report in {run.folder / 'inflation.txt'}")
    return trainer


def rewind(run: Run, trainer: StageTrainer, error: NonFiniteError, init: Path | None) -> StageTrainer:
    """Goes back to the stage's last checkpoint, or its start, and halves the learning rates from there on.

    Raises:
        NonFiniteError: the stage has gone back too often.
    """
    if trainer.rewinds >= MAX_REWINDS:
        raise NonFiniteError(f"{error}; the stage went back {MAX_REWINDS} times before, each time at half the rate")
    stage, newest = trainer.stage, run.newest()
    meta = newest[1] if newest else CheckpointMeta("2d", 0, 0, run.identity)
    run.log.rewind(meta)
    if newest and meta.stage == stage:
        fresh = run.new_trainer(stage)
        fresh.load(newest[0], meta, str(newest[2]))
    else:
        fresh = begin_stage(run, stage, init)
    fresh.rewinds = trainer.rewinds + 1
    row = {"event": "rewind", "stage": stage, "step": fresh.step, "images": fresh.images, "reason": str(error)}
    run.log.append({**row, "seconds": run.log.seconds, "rewinds": fresh.rewinds})
    run.save(fresh, final=False)  # so that the lower rates outlive this process
    run.echo(
        f"{error}. Going back to {fresh.images} images of stage {stage}, with learning rates times "
        f"{0.5**fresh.rewinds:g} (rewind {fresh.rewinds} of at most {MAX_REWINDS})"
    )
    return fresh
