"""`ssgan train --dry-run`: what a run would cost, from a few steps on noise. Writes nothing.

Operations are counted, and bytes of tensors followed, as PyTorch dispatches them, in real steps with every phase: so
second derivatives, recomputation and precision are in the figures as they are in training.
"""

from __future__ import annotations

import dataclasses
import functools
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

from ssgan.config.training import TrainConfig
from ssgan.training.cuda_graphs import WARMUP
from ssgan.training.precision import Execution
from ssgan.training.step import Gan

MARGIN = 0.85  # share of the free memory that a proposed batch may fill; kernels have scratch of their own
# What a process holds for a byte of tensors. CPU: glibc keeps what one phase has freed and the next does not fit into;
# 2.0 to 2.5 were measured on 16x32x32 and 32x32x32 voxels. Elsewhere: an allowance for workspaces, not measured.
HOLDS = {"cpu": 2.2}
HOLDS_ELSEWHERE = 1.25
Say = Callable[[str], None]


def _macs(images: int, positions: list[int], weights: list[torch.Size]) -> int:
    return 2 * images * math.prod(positions) * sum(math.prod(w) for w in weights)


def _forward(x, weights, bias, in_scale, out_scale, noise, branches, stride, valid, transposed, *rest, out_shape):
    return _macs(x[0], (x if transposed else out_shape[0])[2:], weights)


def _input_grad(g, weights, in_scale, branches, stride, valid, transposed, size, *rest, out_shape):
    return _macs(g[0], (out_shape if transposed else g)[2:], weights)


def _weight_grad(g, x, in_scale, branches, stride, valid, transposed, *rest, out_shape):
    return _macs(x[0], (x if transposed else g)[2:], out_shape)


def count_flops(call: Callable[[], Any]) -> int:
    """Floating-point operations (two per multiply and add) of matrix products and convolutions in `call`."""
    ops = torch.ops.ssconv
    counter = FlopCounterMode(
        display=False,
        custom_mapping={ops.forward: _forward, ops.input_grad: _input_grad, ops.weight_grad: _weight_grad},
    )
    with counter:
        call()
    return counter.get_total_flops()


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of every tensor made under it; `peak` is the most that lived at once."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size).atexit = False

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return out


def with_batch(cfg: TrainConfig, stage: str, batch: int) -> TrainConfig:
    name = f"stage_{stage}"
    return dataclasses.replace(cfg, **{name: dataclasses.replace(getattr(cfg, name), batch=batch)})


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: `fixed` (weights, average, gradients, Adam) + `each` * (images computed at a time)."""

    fixed: int
    each: int

    def at(self, images: int) -> int:
        return self.fixed + self.each * images


def _plain(execution: Execution) -> Execution:
    """Without what PyTorch's dispatcher does not show."""
    return dataclasses.replace(execution, accumulate=1, compile="", cuda_graphs=False)


def measure_memory(cfg: TrainConfig, stage: str, device: torch.device, execution: Execution) -> Memory:
    """The line through the peaks of a first step, with all phases, at 2 and 4 images at a time, times `HOLDS`.

    Not 1: path length works on half of a batch, and has one image at a batch of 1 as at 2.
    """
    peaks = []
    for images in (2, 4):
        live = LiveBytes()
        with live:
            gan = Gan(with_batch(cfg, stage, images), stage, device, _plain(execution))
            gan.train_step(*stand_ins(gan))
            del gan
        peaks.append(live.peak)
    each = max((peaks[1] - peaks[0]) / 2, 1)
    holds = HOLDS.get(device.type, HOLDS_ELSEWHERE)
    return Memory(round(max(peaks[0] - 2 * each, 0) * holds), round(each * holds))


def free_memory(device: torch.device) -> int:
    """Bytes that a process may still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def propose_batch(memory: Memory, free: int) -> int:
    """The largest power of two of images at a time that fits, 0 where not even one does."""
    fits = int((free * MARGIN - memory.fixed) // memory.each)
    return 1 << (fits.bit_length() - 1) if fits > 0 else 0


def stand_ins(gan: Gan) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Empty images for a step of `gan`, and their classes and places along depth if it has any."""
    count = len(gan.local)
    images = torch.zeros(count, gan.cfg.network.image_channels, *gan.G.cfg.shape)
    firsts = torch.zeros(count, dtype=torch.int64)
    return images, firsts if gan.class_counts else None, firsts if gan.places else None


def step_seconds(gan: Gan, repeats: int = 2) -> float:
    """Seconds of a step on average, the lazy phases by the share of steps that have them. Real steps of `gan`."""

    inputs = stand_ins(gan)

    def timed(step: int) -> float:
        found = []
        for _ in range(repeats):
            gan.step = step
            began = time.perf_counter()
            gan.train_step(*inputs)  # ends with the losses as numbers, so with all work done
            found.append(time.perf_counter() - began)
        return min(found)

    path, r1 = gan.cfg.g_reg_interval, gan.cfg.d_reg_interval
    every = math.lcm(path, r1)
    first = every * max(1, math.ceil(gan.cfg.warmup_kimg * 1000 / gan.hyper.batch / every))
    for _ in range(1 + (WARMUP if gan.execution.cuda_graphs else 0)):
        gan.step = first
        gan.train_step(*inputs)  # warm-up
    kinds = {(i % path == 0, i % r1 == 0) for i in range(every)}
    seconds = {
        kind: timed(next(first + i for i in range(every) if (i % path == 0, i % r1 == 0) == kind)) for kind in kinds
    }
    return sum(seconds[i % path == 0, i % r1 == 0] for i in range(every)) / every


def dry_run(cfg: TrainConfig, device: torch.device, execution: Execution | None = None, say: Say = print) -> None:
    """Prints parameters, operations, memory, speed and time to finish of each stage, and a batch that fits."""
    execution = execution or Execution()
    total = 0.0
    for stage in tqdm(cfg.stages, desc="dry run", unit="stage", disable=None, leave=False):
        total += _stage(cfg, stage, device, execution, say)
    if len(cfg.stages) > 1:
        say(f"both stages: {_duration(total)}")
    say("nothing was written")


def _stage(cfg: TrainConfig, stage: str, device: torch.device, execution: Execution, say: Say) -> float:
    hyper = cfg.stage_2d if stage == "2d" else cfg.stage_3d
    batch, accumulate = hyper.batch, execution.accumulate
    one = Gan(with_batch(cfg, stage, 1), stage, device, _plain(execution))
    inputs = stand_ins(one)
    draws = one.draw("g_main", 1)
    for net in (one.G, one.D):  # PyTorch's counter follows gradients otherwise
        net.requires_grad_(False)
    g_flops = count_flops(functools.partial(one.fakes, draws, one.parts[0]))
    d_flops = count_flops(functools.partial(one.D, *(None if x is None else x.to(device) for x in inputs)))
    count = {name: sum(p.numel() for p in getattr(one, name).parameters()) for name in ("G", "D")}
    one.step = 1
    plain = count_flops(functools.partial(one.train_step, *inputs))
    say(f"stage {stage}: {'x'.join(map(str, one.G.cfg.shape))} voxels, {cfg.network.arch_name}, {cfg.precision}")
    say(f"  parameters: G {count['G']:,}, D {count['D']:,}")
    say(
        f"  operations per image: G {_si(g_flops)}FLOP, D {_si(d_flops)}FLOP forwards, a training step {_si(plain)}FLOP"
    )
    del one
    memory = measure_memory(cfg, stage, device, execution)
    at_once, free = math.ceil(batch / accumulate), free_memory(device)
    fits = propose_batch(memory, free)
    parts = f" in {accumulate} parts" if accumulate > 1 else ""
    need = memory.at(at_once)
    say(
        f"  memory: about {_gib(need)} at batch {batch}{parts} ({_gib(memory.fixed)} fixed, {_gib(memory.each)} per "
        f"image at a time); {_gib(free)} are free on {device.type}"
    )
    if fits == 0:
        say("  not even one image at a time fits: choose a preset of smaller widths, or --checkpoint-activations")
        return math.inf
    if need > free * MARGIN:
        say(f"  does not fit: propose --batch-{stage} {fits}, or --accumulate {math.ceil(batch / fits)} at this batch")
    else:
        say(f"  fits; the largest batch that does: --batch-{stage} {fits * accumulate}")
    run = batch if need <= free * MARGIN else fits
    timed = execution if run == batch else dataclasses.replace(execution, accumulate=1)
    gan = Gan(with_batch(cfg, stage, run), stage, device, timed)
    seconds = step_seconds(gan)
    left = hyper.kimg * 1000 / run * seconds
    say(f"  speed: {run / seconds:.2f} images/s at batch {run}; {hyper.kimg:g} thousand images take {_duration(left)}")
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
        return "no time that can be told"
    days, hours, minutes = seconds / 86400, seconds / 3600, seconds / 60
    return f"{days:.1f} days" if days >= 2 else f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min"
