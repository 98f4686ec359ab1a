"""`ssgan train --dry-run`: estimates the cost of a run without its memory. Writes nothing.

It counts operations and follows the bytes of tensors as PyTorch dispatches them, in steps with every phase on the meta
device, whose tensors have shapes and no memory; so the figures include second derivatives, activation checkpointing and
precision. Steps are timed for real, with smaller volumes where those of the run would take more than `TIMED_BYTES`.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import os
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ssconv.ops import flops
from ssgan.augmentation.ada import AdaptiveProbability
from ssgan.config.training import TrainConfig
from ssgan.models.conditioning import Condition
from ssgan.training.cuda_graphs import WARMUP
from ssgan.training.precision import Execution
from ssgan.training.run import Echo
from ssgan.training.step import StageTrainer

META = torch.device("meta")
COLLECTED = 500  # operations of a step between two collections of reference cycles
TIMED_BYTES = 1 << 30  # of a step that is timed on a CPU
MARGIN = 0.85  # fraction of the free memory that a proposed batch may fill; kernels need workspaces of their own
# Bytes of process memory for a byte of tensors. CPU: glibc keeps freed blocks that the next phase cannot reuse; 2.0 to
# 2.5 were measured on 16x32x32 and 32x32x32 voxels. Elsewhere: an allowance for workspaces, not measured.
OVERHEAD = {"cpu": 2.2}
OVERHEAD_ELSEWHERE = 1.25


def count_flops(call: Callable[[], Any]) -> int:
    """Counts floating-point operations (two per multiply-add) of matrix products and convolutions in `call`."""
    flops.register()
    counter = FlopCounterMode(display=False)
    with counter:
        call()
    return counter.get_total_flops()


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors made under it; `peak` is their maximum.

    Tensors in reference cycles, as activation checkpointing leaves them, are collected every `COLLECTED` operations.
    When Python itself would do so depends on what else the process has done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._storages: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations += 1
        if self.operations % COLLECTED == 0:
            gc.collect()
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return out


class MetaTrainer(StageTrainer):
    """A stage on the meta device: its steps have the shapes of real ones, and compute nothing."""

    def __init__(self, cfg: TrainConfig, stage: str, execution: Execution) -> None:
        with META:
            super().__init__(cfg, stage, META, _plain(execution))
        # Its sums have values, and it never adapts p, which reads from the device.
        never = dataclasses.replace(cfg.augment, interval=2**30)
        self.ada = AdaptiveProbability(never, self.hyper.batch, self.hyper.kimg)

    def _generator_for(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        return super()._generator_for(purpose)  # the meta device has no generators


def with_batch(cfg: TrainConfig, stage: str, batch: int) -> TrainConfig:
    name = f"stage_{stage}"
    return dataclasses.replace(cfg, **{name: dataclasses.replace(getattr(cfg, name), batch=batch)})


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: `fixed` (weights, average, gradients, Adam) + `each` per image of a micro-batch."""

    fixed: int
    each: int

    def at(self, images: int) -> int:
        return self.fixed + self.each * images


def _plain(execution: Execution) -> Execution:
    """The same without options whose work PyTorch's dispatcher does not show."""
    return dataclasses.replace(execution, accumulate=1, compile="", cuda_graphs=False)


def measure_memory(cfg: TrainConfig, stage: str, device: torch.device, execution: Execution) -> Memory:
    """Fits a line to the peaks of a first step, which has all phases, at 2 and 4 images; times `OVERHEAD`.

    1 image would not do: path length uses half of a batch, which is one image at a batch of 1 and of 2.
    """
    peaks = []
    automatic = gc.isenabled()
    gc.collect()
    gc.freeze()  # the collections look at what the steps make alone, and take no time
    gc.disable()
    try:
        for images in (2, 4):
            live = LiveBytes()
            with live:
                trainer = MetaTrainer(with_batch(cfg, stage, images), stage, execution)
                trainer.train_step(*empty_batch(trainer))
                del trainer
            peaks.append(live.peak)
    finally:
        gc.unfreeze()
        if automatic:
            gc.enable()
    each = max((peaks[1] - peaks[0]) / 2, 1)
    overhead = OVERHEAD.get(device.type, OVERHEAD_ELSEWHERE)
    return Memory(round(max(peaks[0] - 2 * each, 0) * overhead), round(each * overhead))


def free_memory(device: torch.device) -> int:
    """Free memory of the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def propose_batch(memory: Memory, free: int) -> int:
    """Returns the largest power of two of images that fits into `free` bytes, 0 if not even one does."""
    fits = int((free * MARGIN - memory.fixed) // memory.each)
    return 1 << (fits.bit_length() - 1) if fits > 0 else 0


def empty_batch(trainer: StageTrainer) -> tuple[Tensor, Condition]:
    """Zero images for `train_step`, of class 0 and slice index 0 if the networks take these."""
    count = len(trainer.local_samples)
    images = torch.zeros(count, trainer.cfg.network.image_channels, *trainer.G.cfg.shape, device=trainer.device)
    zeros = torch.zeros(count, dtype=torch.int64)
    return images, Condition(zeros if trainer.class_counts else None, zeros if trainer.slice_count else None)


def step_seconds(trainer: StageTrainer, repeats: int = 2) -> float:
    """Times real steps of `trainer`. Returns the mean seconds of a step, lazy phases weighted by their frequency."""

    batch = empty_batch(trainer)

    def timed(step: int) -> float:
        found = []
        for _ in range(repeats):
            trainer.step = step
            began = time.perf_counter()
            trainer.train_step(*batch)
            trainer.check()  # waits for the device
            found.append(time.perf_counter() - began)
        return min(found)

    path, r1 = trainer.cfg.g_reg_interval, trainer.cfg.d_reg_interval
    every = math.lcm(path, r1)
    first = every * max(1, math.ceil(trainer.cfg.warmup_kimg * 1000 / trainer.hyper.batch / every))
    for _ in range(1 + (WARMUP if trainer.execution.cuda_graphs else 0)):
        trainer.step = first
        trainer.train_step(*batch)  # warm-up
    kinds = {(i % path == 0, i % r1 == 0) for i in range(every)}
    seconds = {
        kind: timed(next(first + i for i in range(every) if (i % path == 0, i % r1 == 0) == kind)) for kind in kinds
    }
    return sum(seconds[i % path == 0, i % r1 == 0] for i in range(every)) / every


def dry_run(cfg: TrainConfig, device: torch.device, execution: Execution | None = None, echo: Echo = print) -> None:
    """Shows parameters, operations, memory, speed and time to finish of each stage, and a batch that fits."""
    execution = execution or Execution()
    total = 0.0
    for stage in tqdm(cfg.stages, desc="dry run", unit="stage", disable=None, leave=False):
        total += _stage(cfg, stage, device, execution, echo)
    if len(cfg.stages) > 1:
        echo(f"both stages: {_duration(total)}")
    echo("nothing was written")


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of an image: forwards in G and in D, and in a step without regularisers."""

    g: int
    d: int
    step: int


def count_operations(trainer: MetaTrainer) -> Operations:
    """Counts those of a trainer whose batch is 1."""
    images, condition = empty_batch(trainer)
    condition = condition.map(lambda t: t.to(META))
    inputs = trainer.draw("g_main", 1)
    for net in (trainer.G, trainer.D):  # PyTorch's counter follows gradients otherwise
        net.requires_grad_(False)
    trainer.step = 1
    g = count_flops(functools.partial(trainer.phases.generate, inputs))
    d = count_flops(functools.partial(trainer.D, images, condition))
    return Operations(g, d, count_flops(functools.partial(trainer.train_step, images, condition)))


def smaller(cfg: TrainConfig) -> TrainConfig:
    """The same without the coarsest level: volumes of half the size, with the widths of the finer levels."""
    network = cfg.network
    dense = tuple(n - 1 for n in network.dense_levels if n > 0)
    half = dataclasses.replace(
        network,
        shape=tuple(n // f for n, f in zip(network.shape, network.scales[0], strict=True)),
        scales=network.scales[1:],
        widths=network.widths[1:],
        depth_places=None,
        dense_levels=() if dense == (0,) and network.arch == "dense" else dense,
    )
    return dataclasses.replace(cfg, network=half.depth_aware(network.depth_places is not None))


def _timed(cfg: TrainConfig, stage: str, device: torch.device, execution: Execution, memory: Memory) -> TrainConfig:
    """The configuration whose steps are timed: `cfg`, or smaller volumes and batches that fit into `TIMED_BYTES`."""
    if device.type != "cpu":
        return cfg
    while True:
        batch = (cfg.stage_2d if stage == "2d" else cfg.stage_3d).batch
        if memory.at(math.ceil(batch / execution.accumulate)) <= TIMED_BYTES:
            return cfg
        if len(cfg.network.scales) > 1:
            cfg = smaller(cfg)
            memory = measure_memory(cfg, stage, device, execution)
        elif batch > execution.accumulate:
            cfg = with_batch(cfg, stage, batch // 2)
        else:
            return cfg


def _stage(cfg: TrainConfig, stage: str, device: torch.device, execution: Execution, echo: Echo) -> float:
    hyper = cfg.stage_2d if stage == "2d" else cfg.stage_3d
    batch, accumulate = hyper.batch, execution.accumulate
    one = MetaTrainer(with_batch(cfg, stage, 1), stage, execution)
    operations = count_operations(one)
    count = {name: sum(p.numel() for p in getattr(one, name).parameters()) for name in ("G", "D")}
    echo(f"stage {stage}: {'x'.join(map(str, one.G.cfg.shape))} voxels, {cfg.network.arch_name}, {cfg.precision}")
    echo(f"  parameters: G {count['G']:,}, D {count['D']:,}")
    echo(
        f"  operations per image: G {_si(operations.g)}FLOP, D {_si(operations.d)}FLOP forwards, a training step "
        f"{_si(operations.step)}FLOP"
    )
    memory = measure_memory(cfg, stage, device, execution)
    at_once, free = math.ceil(batch / accumulate), free_memory(device)
    fits = propose_batch(memory, free)
    split = f" in {accumulate} micro-batches" if accumulate > 1 else ""
    need = memory.at(at_once)
    echo(
        f"  memory: about {_gib(need)} at batch {batch}{split} ({_gib(memory.fixed)} fixed, {_gib(memory.each)} per "
        f"image at a time); {_gib(free)} are free on {device.type}"
    )
    if fits == 0:
        echo("  not even one image at a time fits: choose a preset of smaller widths, or --checkpoint-activations")
        return math.inf
    if need > free * MARGIN:
        echo(f"  does not fit: propose --batch-{stage} {fits}, or --accumulate {math.ceil(batch / fits)} at this batch")
    else:
        echo(f"  fits; the largest batch that does: --batch-{stage} {fits * accumulate}")
    run = batch if need <= free * MARGIN else fits
    execution = execution if run == batch else dataclasses.replace(execution, accumulate=1)
    chosen = with_batch(cfg, stage, run)
    timed = _timed(chosen, stage, device, execution, memory)
    trainer = StageTrainer(timed, stage, device, execution)
    seconds, how = step_seconds(trainer), ""
    if timed != chosen:
        theirs = count_operations(MetaTrainer(with_batch(timed, stage, 1), stage, execution))
        seconds *= run * operations.step / (trainer.hyper.batch * theirs.step)
        how = f", from steps of {trainer.hyper.batch} images of {'x'.join(map(str, trainer.G.cfg.shape))} by operations"
    left = hyper.kimg * 1000 / run * seconds
    echo(
        f"  speed: {run / seconds:.2f} images/s at batch {run}{how}; {hyper.kimg:g} thousand images take "
        f"{_duration(left)}"
    )
    return left


def _si(value: float) -> str:
    for factor, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {letter}"
    return f"{value:g} "


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 / 4 else f"{value / 2**20:.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds == math.inf:
        return "unknown time"
    days, hours, minutes = seconds / 86400, seconds / 3600, seconds / 60
    return f"{days:.1f} days" if days >= 2 else f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min"
