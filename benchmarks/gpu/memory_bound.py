"""Times the memory-bound kernels, activation gradients and filters, against a large copy; appends JSON lines.

    python -m benchmarks.gpu.memory_bound --out memory-bound.jsonl [--budget 10] [--backends cuda triton]

Each is called as the operator calls it and first compared with the reference backend: one that is wrong or fails gets a
record with its error, and the exit code is 1. Bytes are every input read once and every output written once; the bias
gradient, a millionth of them, is not counted. Without a GPU: exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import ssconv
from benchmarks.gpu.cases import gpu_backends
from benchmarks.gpu.environment import about, refuse_without_gpu
from benchmarks.gpu.figures import Record, append, bandwidth_share
from benchmarks.gpu.roofline import Peaks, measure_peaks
from benchmarks.gpu.timing import CudaTimer, Prepare, Timer, measure_on
from benchmarks.operator.cases import SLOPE
from ssconv.backend import reference
from ssconv.backend.dispatch import implementation
from ssconv.parser import Parser
from ssconv.spec import Epilogue

KIND = "gpu memory-bound"
DEVICE = "cuda"
GROUPS = 2
FIR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's filter
DEVIATION = 1e-2  # of the norm, in bf16, which rounds each value by at most 1 in 256
# (batch, channels, edge) of the GPU run's layers that are larger than the L2 cache.
SIZES = ((8, 128, 64), (8, 64, 64), (4, 32, 128), (16, 256, 32))


@dataclass(frozen=True)
class Kernel:
    """One kernel on given tensors. call: takes a backend's module. bytes: the least it moves."""

    name: str
    call: Callable[[ModuleType], Any]
    bytes: int


def kernels(size: tuple[int, int, int], device: str, dtype: torch.dtype) -> list[Kernel]:
    """Lists the kernels of a two-branch layer whose output is (N, C, E, E, E) of `size`, channels last in memory."""
    batch, channels, edge = size
    generator = torch.Generator(device=device).manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        t = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        return t.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else t

    shape = (batch, channels, *[edge] * 3)
    z, gy, bias, scale = drawn(*shape), drawn(*shape), drawn(channels), drawn(batch, channels).abs() + 0.5
    settings = Epilogue(GROUPS, SLOPE)
    y = reference.epilogue(z, bias, scale, None, settings).to(z)
    grown = drawn(batch, channels, *[edge + 1] * 3)
    taps = [torch.tensor(FIR, device=device) / sum(FIR)] * 3
    one, two = (1, 1, 1), (2, 2, 2)

    def moved(*tensors: Tensor) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    eighth = z[:, :, ::2, ::2, ::2].contiguous(memory_format=torch.channels_last_3d)
    return [
        Kernel(
            "activation gradient, unshuffled",
            lambda b: b.epilogue_backward(gy, y, None, None, settings, True, -1),
            moved(gy, y, z),
        ),
        Kernel(
            "activation gradient with scales",
            lambda b: b.epilogue_backward(gy, y, z, scale, settings, True, -1),
            moved(gy, y, z, z),
        ),
        Kernel("filter after upsampling", lambda b: b.upfirdn(grown, taps, one, one, (1,) * 6), moved(grown, z)),
        Kernel("filter before halving", lambda b: b.upfirdn(z, taps, one, one, (2,) * 6), moved(z, grown)),
        Kernel("filter and halve", lambda b: b.upfirdn(z, taps, one, two, (1,) * 6), moved(z, eighth)),
        Kernel("double and filter", lambda b: b.upfirdn(eighth, taps, two, one, (2, 1) * 3), moved(eighth, z)),
    ]


def results(kernel: Kernel, module: ModuleType) -> list[Tensor]:
    """Calls the kernel and gives its tensors, a bias gradient among them."""
    result = kernel.call(module)
    return [t for t in result if t is not None] if isinstance(result, tuple) else [result]


def deviation(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Gives the largest relative difference, in norms; infinite where a result is missing."""
    if len(found) != len(expected):
        return float("inf")
    return max(float((f.float() - e.float()).norm() / e.float().norm()) for f, e in zip(found, expected))


def prepared(kernel: Kernel, module: ModuleType) -> Prepare:
    return lambda: lambda: kernel.call(module)


def measure_size(
    size: tuple[int, int, int], backends: Sequence[str], timer: Timer, *, device: str, dtype: torch.dtype,
    budget: float,
) -> list[Record]:  # fmt: skip
    """Gives a record for each kernel and backend: seconds and bytes, or an error."""
    records: list[Record] = []
    found = kernels(size, device, dtype)
    for kernel in found:
        head = {"tensor": "x".join(map(str, size[:2])) + f"x{size[2]}^3", "kernel": kernel.name}
        able = {}
        expected: list[Tensor] = []
        for name in backends:
            try:
                expected = expected or results(kernel, reference)
                module = implementation(name)
                off = deviation(results(kernel, module), expected)
                if not off <= DEVIATION:
                    raise ArithmeticError(f"differs from the reference by {off:.3g} of its norm")
                able[name] = prepared(kernel, module)
            except Exception as error:  # of any library: the others are still to be measured
                words = f"{type(error).__name__}: {str(error).strip()[:500]}"
                records.append({**head, "implementation": name, "error": words})
        del expected
        times = measure_on(timer, able, warmup=2, budget=budget / len(found))
        for name, (timing, _) in times.items():
            records.append({**head, "implementation": name, "seconds": timing.to_json(), "bytes": kernel.bytes})
    return records


def run(
    path: Path, *, head: Record, timer: Timer, device: str, peaks: Peaks, backends: Sequence[str],
    dtype: torch.dtype = torch.bfloat16, sizes: Sequence[tuple[int, int, int]] = SIZES, budget: float = 10.0,
) -> int:  # fmt: skip
    """Measures, prints and appends. Gives the number that failed."""
    failed = 0
    for size in sizes:
        records = measure_size(size, backends, timer, device=device, dtype=dtype, budget=budget / len(sizes))
        records = [{"kind": KIND, **head, "peaks": vars(peaks), **r} for r in records]
        for r in records:
            failed += "error" in r
            said = r.get("error") or f"{100 * bandwidth_share(r):.0f} % of a copy's bytes a second"
            print(f"{r['tensor']:>12}  {r['kernel']:<32} {r['implementation']:<8} {said}", flush=True)
        append(path, {}, records)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.memory_bound", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--backends", nargs="+", choices=list(ssconv.backends()), help="default: those made for GPUs")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of timed calls for all (default: 10)")
    args = parser.parse_args(argv)
    refuse_without_gpu("benchmarks.gpu.memory_bound")
    timer = CudaTimer()
    failed = run(
        args.out, head=about(), timer=timer, device=DEVICE, peaks=measure_peaks(timer, DEVICE, torch.bfloat16),
        backends=args.backends or gpu_backends(), sizes=SIZES, budget=args.budget,
    )  # fmt: skip
    if failed:
        print(f"benchmarks.gpu.memory_bound: {failed} kernels failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
