"""Times a training step of each preset: dense on nn.Conv3d, split_depth on ssconv, eager and as CUDA graphs.

    python -m benchmarks.gpu.training --out training.jsonl [--presets demo heart] [--precision tf32] [--budget 90]
    python -m benchmarks.gpu.training --out training.jsonl --presets brain --edges 64 128 --precision bf16 --compared

It times `StageTrainer.train_step`, the step of `ssgan train`, and each of its four phases; the lazy ones (path length,
R1) count by the share of steps that have them. The real images are random. Where the preset's batch does not fit the
memory it is halved, and the record says so. The networks train in float32, with TF32 products unless --precision fp32
forbids them, or as `ssgan train --precision bf16` (fp16) does. Without a GPU: exit code 2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
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
from benchmarks.gpu.figures import Record, append, measured, setting, variant
from benchmarks.gpu.layers import SKIPPED, precision
from benchmarks.gpu.timing import CudaTimer, Timer
from ssconv.parser import Parser
from ssgan.config.presets import PRESETS
from ssgan.config.training import TrainConfig
from ssgan.training.cuda_graphs import WARMUP
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError

KIND = "gpu training"
DEVICE = "cuda"
PLAIN = "nn.Conv3d"
GRAPHS = ", CUDA graphs"  # ends the name of an implementation whose steps are replayed
LEAST_SECONDS = 5.0  # with less left, a measurement is skipped


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
    """Computes `ssconv.split_shuffle_conv3d` of one branch by PyTorch's own convolution and pointwise functions, all of
    them in the dtype of x."""
    (weight,) = weights
    bias, in_scale, out_scale, noise = (
        None if t is None else t.to(x.dtype) for t in (bias, in_scale, out_scale, noise)
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
    """Gives the networks' convolutions and filters to a backend of ssconv, or the convolutions to PyTorch: "nn.Conv3d"
    with the filters of the backend "reference", "nn.Conv3d, upfirdn NAME" with those of another."""
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
    """Lists (architecture, implementation): first those that are compared, then those that explain a difference (CUDA
    graphs, dense on ssconv), which are measured after the first list of all presets."""
    plain, ours = ("dense", PLAIN), [("split_depth", name) for name in backends]
    filtered = [("dense", f"{PLAIN}, upfirdn {name}") for name in backends]
    replayed = [(arch, name + GRAPHS) for arch, name in (plain, *ours)]
    return [plain, *filtered, *ours], replayed + [("dense", name) for name in backends]


class TimedGan(StageTrainer):
    """Marks the end of every phase of a step."""

    def __init__(self, cfg: TrainConfig, device: str, timer: Timer, execution: Execution | None = None) -> None:
        super().__init__(cfg, "3d", torch.device(device), execution)
        self.timer = timer
        self.marks: list[tuple[str, Any]] = []

    def _optimiser_step(self, phase: str, loss: Tensor) -> Tensor:
        taken = super()._optimiser_step(phase, loss)
        self.marks.append((phase, self.timer.mark()))
        return taken

    def timed_step(self, reals: Tensor) -> dict[str, float]:
        """Times each phase of a step that has all of them, in seconds; "average" is the EMA of G's weights."""
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
    """Gives the mean seconds of a step: a lazy phase counts by the share of the steps that have it."""
    share = {"path length": 1 / cfg.g_reg_interval, "R1": 1 / cfg.d_reg_interval}
    return sum(value * share.get(phase, 1.0) for phase, value in seconds.items())


def of_network(seconds: dict[str, float], network: str) -> dict[str, float]:
    """Picks the phases that train G, or D."""
    phases = {"G": ("generator", "path length"), "D": ("discriminator", "R1")}[network]
    return {phase: value for phase, value in seconds.items() if phase in phases}


def with_batch(cfg: TrainConfig, batch: int) -> TrainConfig:
    return dataclasses.replace(cfg, stage_3d=dataclasses.replace(cfg.stage_3d, batch=batch))


def measure_step(
    cfg: TrainConfig,
    implementation: str,
    timer: Timer,
    device: str,
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
        gan = TimedGan(cfg, device, timer, Execution(cuda_graphs=graphs))
        reals = torch.rand(batch, cfg.network.image_channels, *cfg.network.shape) * 2 - 1
        begun = clock()
        timer.reset_peak()
        for turn in range(WARMUP + 1 if graphs else warmup):  # with graphs, until all are recorded
            if turn and not graphs and clock() - begun > budget / 2:
                break
            gan.timed_step(reals)
        if not graphs:  # a replay allocates nothing: its memory is that of the recording
            timer.reset_peak()
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
        "peak_bytes": timer.peak(),
        "parameters": parameters,
    }


def fitting(cfg: TrainConfig, measure: Callable[[TrainConfig], Record], forget: Callable[[], None]) -> Record:
    """Calls `measure` at the batch of `cfg`, or at the largest half, quarter, .. of it that fits the memory."""
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
    timer: Timer,
    device: str,
    dtype: str,
    backends: Sequence[str],
    budget: float,
    edges: Sequence[int] = (),
    only_compared: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measures every variant of every preset and appends to `path`. Gives the number of ssconv's that failed.

    edges: of the cubes that are trained on instead of a preset's own shape. only_compared: only the first list of
    `variants`.
    """
    deadline = clock() + budget
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set(map(variant, measured(path, head)))
    shapes = [(edge,) * 3 for edge in edges]
    todo = [
        (name, shape, *choice)
        for group in variants(backends)[: 1 if only_compared else 2]
        for name in presets
        for shape in shapes or [PRESETS[name].shape]
        for choice in group
    ]
    failed = 0
    for number, (name, shape, arch, implementation) in enumerate(tqdm(todo, unit="variant", disable=None)):
        lowered = {"precision": dtype} if dtype in ("bf16", "fp16") else {}
        cfg = PRESETS[name].train_config(name, shape, arch, **lowered)
        record: Record = {"kind": KIND, **head, "preset": name, "shape": list(cfg.network.shape), "arch": arch}
        record |= {"implementation": implementation, "precision": dtype}
        if variant(record) in done:
            continue
        left = deadline - clock()
        if left < LEAST_SECONDS:
            record["skipped"] = SKIPPED
        else:
            share = left / (len(todo) - number)

            def measure(cfg: TrainConfig, implementation: str = implementation, share: float = share) -> Record:
                return measure_step(cfg, implementation, timer, device, budget=share, clock=clock)

            try:
                record |= fitting(cfg, measure, forget)
            except Exception as error:  # of any library: the others are still to be measured
                record["error"] = f"{type(error).__name__}: {str(error).strip()[:500]}"
            failed += "error" in record and implementation not in (PLAIN, PLAIN + GRAPHS)
        append(path, {}, [record])
        print(_line(record), flush=True)
        forget()
    return failed


def _line(r: Record) -> str:
    preset, shape, precision = setting(r)
    name = f"{preset:>12} {shape:>11}  {r['arch'] + ', ' + r['implementation']:<40}  {precision}"
    if "step_seconds" not in r:
        return f"{name}  {r.get('skipped') or r['error']}"
    batch = f"batch {r['batch']}" + (f" (of {r['asked_batch']})" if r["batch"] != r["asked_batch"] else "")
    return f"{name}  {r['images_per_second']:9.2f} images/s  {r['peak_bytes'] / 2**30:6.2f} GiB  {batch}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.training", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS))
    parser.add_argument("--edges", nargs="+", type=int, default=[], help="train on cubes instead of a preset's shape")
    parser.add_argument("--precision", choices=list(DTYPES), default="tf32", help="of products (default: tf32)")
    parser.add_argument(
        "--backends", nargs="+", choices=["auto", *ssconv.backends()], help="default: auto and those made for GPUs"
    )
    parser.add_argument("--compared", action="store_true", help="leave out CUDA graphs and dense on ssconv")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds for all of them (default: 90)")
    args = parser.parse_args(argv)
    try:
        for name, edge in itertools.product(args.presets, args.edges):
            PRESETS[name].network((edge,) * 3)
    except ConfigError as error:
        parser.error(f"--edges {edge}, preset {name}: {error}")
    refuse_without_gpu("benchmarks.gpu.training")
    with precision(args.precision):
        failed = run(
            args.presets, args.out, head=about(), timer=CudaTimer(), device=DEVICE, dtype=args.precision,
            backends=args.backends or gpu_backends(), budget=args.budget, edges=args.edges, only_compared=args.compared,
        )  # fmt: skip
    if failed:
        print(f"benchmarks.gpu.training: {failed} measurements of ssconv failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
