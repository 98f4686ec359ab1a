"""A training step of each preset: dense on PyTorch's own convolutions, split_depth on each GPU backend of ssconv; each
called, and replayed as CUDA graphs.

    python -m benchmarks.gpu.training --out training.jsonl [--presets demo heart] [--precision tf32] [--budget 90]
    python -m benchmarks.gpu.training --out training.jsonl --presets brain --edges 64 128 --precision bf16 --compared

What is timed is `Gan.train_step`, the step that `ssgan train` makes, with its four phases apart; the lazy ones (path
length, R1) count by the share of steps that have them. Reals are random: their values cost nothing. Where the preset's
batch does not fit the memory it is halved, and the record says so. The networks train in float32, with TF32 products
unless --precision fp32 forbids them, or as `ssgan train --precision bf16` (fp16) does. Without a GPU: exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import ssconv
import ssgan.models.layers
from benchmarks.gpu.cases import DTYPES, gpu_backends
from benchmarks.gpu.environment import about, refuse_without_gpu
from benchmarks.gpu.figures import Record, setting, training_figures, variant
from benchmarks.gpu.layers import SKIPPED, precision
from benchmarks.gpu.timing import CudaDevice, Device
from ssgan.config.training import PRESETS, ConfigError, TrainConfig
from ssgan.training.cuda_graphs import WARMUP
from ssgan.training.precision import Execution
from ssgan.training.step import Gan

KIND = "gpu training"
PLACE = "cuda"
PLAIN = "nn.Conv3d"
GRAPHS = ", CUDA graphs"  # ends the name of an implementation whose pieces are replayed
ENOUGH = 5.0  # seconds without which a measurement is not begun


def plain_conv3d(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str = "same",
    transposed: bool = False,
    in_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    noise: Tensor | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Tensor:
    """`ssconv.split_shuffle_conv3d` of one branch by PyTorch's own convolution and pointwise functions; under autocast
    all of them in its dtype, as ssconv's."""
    (weight,) = weights
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias, in_scale, out_scale, noise = (
            None if t is None else t.to(dtype) for t in (x, bias, in_scale, out_scale, noise)
        )
    strides = (stride,) * 3 if isinstance(stride, int) else tuple(stride)
    same = padding == "same"
    pads = [(k - 1) // 2 if same else 0 for k in weight.shape[2:]]
    if in_scale is not None:
        x = x * in_scale[:, :, None, None, None]
    if transposed:
        extra = [s - 1 if same else 0 for s in strides]
        y = F.conv_transpose3d(x, weight.transpose(0, 1), None, strides, pads, extra)
    else:
        y = F.conv3d(x, weight, None, strides, pads)
    if out_scale is not None:
        y = y * out_scale[:, :, None, None, None]
    if noise is not None:
        y = y + noise
    if bias is not None:
        y = y + bias[:, None, None, None]
    if activation == "lrelu":
        y = F.leaky_relu(y, negative_slope)
    if gain != 1:
        y = y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


@contextlib.contextmanager
def computed_by(implementation: str) -> Iterator[None]:
    """Convolutions and filters of the networks by a backend of ssconv, or convolutions by PyTorch: "nn.Conv3d" with the
    filters of the backend "reference", "nn.Conv3d, upfirdn NAME" with those of another."""
    name, _, filters = implementation.partition(", upfirdn ")
    if name == PLAIN:
        conv, backend = plain_conv3d, filters or "reference"
    else:
        conv, backend = functools.partial(ssconv.split_shuffle_conv3d, backend=name), name
    before = ssgan.models.layers.split_shuffle_conv3d, ssgan.models.layers.upfirdn3d
    ssgan.models.layers.split_shuffle_conv3d = conv  # type: ignore[assignment]
    ssgan.models.layers.upfirdn3d = functools.partial(ssconv.upfirdn3d, backend=backend)  # type: ignore[assignment]
    try:
        yield
    finally:
        ssgan.models.layers.split_shuffle_conv3d, ssgan.models.layers.upfirdn3d = before


def variants(backends: Sequence[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(architecture, implementation): those that are compared, and those that tell where a difference comes from, which
    are measured after the first of all presets."""
    plain, ours = ("dense", PLAIN), [("split_depth", name) for name in backends]
    filtered = [("dense", f"{PLAIN}, upfirdn {name}") for name in backends]
    further = [(arch, name + GRAPHS) for arch, name in (plain, *ours)]
    return [plain, *filtered, *ours], further + [("dense", name) for name in backends]


class TimedGan(Gan):
    """Marks the end of every phase of a step."""

    def __init__(self, cfg: TrainConfig, place: str, device: Device, execution: Execution | None = None) -> None:
        super().__init__(cfg, "3d", torch.device(place), execution)
        self.timer = device
        self.marks: list[tuple[str, Any]] = []

    def _apply(self, phase: str, loss: Tensor) -> float:
        value = super()._apply(phase, loss)
        self.marks.append((phase, self.timer.mark()))
        return value

    def timed_step(self, reals: Tensor) -> dict[str, float]:
        """Seconds per phase of a step that has all of them; "average" is that of the weights."""
        self.step = math.lcm(self.cfg.d_reg_interval, self.cfg.g_reg_interval)
        self.marks = []
        start = self.timer.mark()
        self.train_step(reals)
        self.marks.append(("average", self.timer.mark()))
        self.timer.synchronise()
        seconds = {}
        for phase, mark in self.marks:
            seconds[phase] = self.timer.between(start, mark)
            start = mark
        return seconds


def amortised(seconds: dict[str, float], cfg: TrainConfig) -> float:
    """Seconds of a step on average: a lazy phase counts by the share of the steps that have it."""
    share = {"path length": 1 / cfg.g_reg_interval, "R1": 1 / cfg.d_reg_interval}
    return sum(value * share.get(phase, 1.0) for phase, value in seconds.items())


def of_network(seconds: dict[str, float], network: str) -> dict[str, float]:
    """The phases that train G, or D."""
    phases = {"G": ("generator", "path length"), "D": ("discriminator", "R1")}[network]
    return {phase: value for phase, value in seconds.items() if phase in phases}


def with_batch(cfg: TrainConfig, batch: int) -> TrainConfig:
    return dataclasses.replace(cfg, stage_3d=dataclasses.replace(cfg.stage_3d, batch=batch))


def measure_step(
    cfg: TrainConfig,
    implementation: str,
    device: Device,
    place: str,
    *,
    budget: float = 10.0,
    warmup: int = 2,
    repeats: int = 10,
    least: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Times the steps of one variant at the batch of `cfg`: medians per phase, images per second, peak memory."""
    batch = cfg.stage_3d.batch
    times: dict[str, list[float]] = defaultdict(list)
    graphs = implementation.endswith(GRAPHS)
    with computed_by(implementation.removesuffix(GRAPHS)):
        gan = TimedGan(cfg, place, device, Execution(cuda_graphs=graphs))
        reals = torch.rand(batch, cfg.network.image_channels, *cfg.network.shape) * 2 - 1
        begun = clock()
        device.reset_peak()
        for turn in range(WARMUP + 1 if graphs else warmup):  # with graphs, until all pieces are recorded
            if turn and not graphs and clock() - begun > budget / 2:
                break
            gan.timed_step(reals)
        if not graphs:  # a replay allocates nothing: its memory is that of the recording
            device.reset_peak()
        for turn in range(repeats):
            if turn >= least and clock() - begun > budget:
                break
            for phase, value in gan.timed_step(reals).items():
                times[phase].append(value)
    seconds = {phase: float(np.median(values)) for phase, values in times.items()}
    step = amortised(seconds, cfg)
    parameters = sum(p.numel() for net in (gan.G, gan.D) for p in net.parameters())
    return {
        "batch": batch,
        "repeats": len(times["average"]),
        "phases": seconds,
        "step_seconds": step,
        "g_step_seconds": amortised(of_network(seconds, "G"), cfg),
        "d_step_seconds": amortised(of_network(seconds, "D"), cfg),
        "images_per_second": batch / step,
        "peak_bytes": device.peak(),
        "parameters": parameters,
    }


def fitting(cfg: TrainConfig, measure: Callable[[TrainConfig], Record], forget: Callable[[], None]) -> Record:
    """`measure` at the batch of `cfg`, or at the largest half, quarter, .. of it that fits the memory."""
    asked = cfg.stage_3d.batch
    batch = asked
    while batch:
        try:
            return {"asked_batch": asked, **measure(with_batch(cfg, batch))}
        except torch.OutOfMemoryError:
            batch //= 2
        forget()  # after the exception, which holds the frames and their tensors
    return {"asked_batch": asked, "error": "out of memory at a batch of 1"}


def forget() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(
    presets: Sequence[str],
    path: Path,
    *,
    head: Record,
    device: Device,
    place: str,
    dtype: str,
    backends: Sequence[str],
    budget: float,
    edges: Sequence[int] = (),
    further: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measures every variant of every preset and appends to `path`; how many of ssconv's failed.

    edges: of the cubes that are trained on instead of a preset's own shape. further: with the `variants` that are not
    compared.
    """
    deadline = clock() + budget
    path.parent.mkdir(parents=True, exist_ok=True)
    known = _known(path, head)
    shapes = [(edge,) * 3 for edge in edges]
    todo = [
        (name, shape, *way)
        for group in variants(backends)[: 2 if further else 1]
        for name in presets
        for shape in shapes or [PRESETS[name].shape]
        for way in group
    ]
    failed = 0
    for number, (name, shape, arch, implementation) in enumerate(tqdm(todo, unit="variant", disable=None)):
        lowered = {"precision": dtype} if dtype in ("bf16", "fp16") else {}
        cfg = PRESETS[name].train_config(name, shape, arch, **lowered)
        record: Record = {"kind": KIND, **head, "preset": name, "shape": list(cfg.network.shape), "arch": arch}
        record |= {"implementation": implementation, "precision": dtype}
        if variant(record) in known:
            continue
        left = deadline - clock()
        if left < ENOUGH:
            record["skipped"] = SKIPPED
        else:
            share = left / (len(todo) - number)

            def measure(cfg: TrainConfig, implementation: str = implementation, share: float = share) -> Record:
                return measure_step(cfg, implementation, device, place, budget=share, clock=clock)

            try:
                record |= fitting(cfg, measure, forget)
            except Exception as error:  # of any library: the others are still to be measured
                record["error"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
            failed += "error" in record and implementation not in (PLAIN, PLAIN + GRAPHS)
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(_line(record), flush=True)
        forget()
    return failed


def _known(path: Path, head: Record) -> set[tuple[str, ...]]:
    if not path.exists():
        return set()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    same = [r for r in records if all(r.get(k) == head.get(k) for k in ("commit", "device"))]
    return set(map(variant, training_figures(same)))


def _line(r: Record) -> str:
    preset, shape, precision = setting(r)
    name = f"{preset:>12} {shape:>11}  {r['arch'] + ', ' + r['implementation']:<40}  {precision}"
    if "step_seconds" not in r:
        return f"{name}  {r.get('skipped') or r['error']}"
    batch = f"batch {r['batch']}" + (f" (of {r['asked_batch']})" if r["batch"] != r["asked_batch"] else "")
    return f"{name}  {r['images_per_second']:9.2f} images/s  {r['peak_bytes'] / 2**30:6.2f} GiB  {batch}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--edges", nargs="+", type=int, default=[], help="train on cubes instead of a preset's shape")
    parser.add_argument("--precision", choices=list(DTYPES), default="tf32", help="of products (default: tf32)")
    parser.add_argument("--backends", nargs="+", choices=list(ssconv.backends()), help="default: those made for GPUs")
    parser.add_argument("--compared", action="store_true", help="only what is compared: no graphs, no dense on ssconv")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds for all of them (default: 90)")
    args = parser.parse_args(argv)
    try:
        for name, edge in itertools.product(args.presets, args.edges):
            PRESETS[name].network((edge,) * 3)
    except ConfigError as error:
        parser.error(f"--edges {edge}, preset {name}: {error}")
    refuse_without_gpu("gpu_training")
    with precision(args.precision):
        failed = run(
            args.presets, args.out, head=about(), device=CudaDevice(), place=PLACE, dtype=args.precision,
            backends=args.backends or gpu_backends(), budget=args.budget, edges=args.edges, further=not args.compared,
        )  # fmt: skip
    if failed:
        print(f"gpu_training: {failed} measurements of ssconv failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
