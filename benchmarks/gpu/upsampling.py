"""Times the two ways of `benchmarks.gpu.upsampling_floors` on a GPU; appends JSON lines to one file.

    python -m benchmarks.gpu.upsampling --out upsampling.jsonl [--budget 12] [--backend cuda]

Both are checked against each other on random data before they are timed; where they differ, or one fails, a line says
so and the exit code is 1. Without a GPU: exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cases import gpu_backends
from benchmarks.gpu.environment import about, refuse_without_gpu
from benchmarks.gpu.timing import CudaDevice, Device, measure_on
from benchmarks.gpu.upsampling_floors import LEVELS, Level, folded, in_order, phases, two_steps
from benchmarks.operator.cases import KERNELS

DEVIATION = 2e-2  # of bf16, where the filter's pass rounds once more

Record = dict[str, Any]


def measure_level(
    level: Level, kernels: str, device: Device, *, place: str, backend: str, dtype: torch.dtype, budget: float
) -> list[Record]:
    """A record for each way, or one with an "error"."""
    generator = torch.Generator().manual_seed(1)
    branches = KERNELS[kernels]
    count = len(branches)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(place, dtype)

    x = drawn(level.batch, level.channels, *[level.edge] * 3).contiguous(memory_format=torch.channels_last_3d)
    weights = [drawn(level.out // count, level.channels // count, *k) for k in branches]
    bias = drawn(level.out)
    summed = [folded(w) for w in weights]
    head = {"level": level.name, "of": level.where, "kernels": kernels, "backend": backend}
    try:
        with torch.no_grad():
            expected = two_steps(x, weights, bias, backend).double()
            off = (in_order(phases(x, summed, bias, backend), count).double() - expected).norm() / expected.norm()
            if not off <= DEVIATION:
                return [{**head, "error": f"the two ways differ by {float(off):.3g} of their norm"}]
            del expected
            calls = {
                "two steps": lambda: two_steps(x, weights, bias, backend),
                "phases": lambda: phases(x, summed, bias, backend),
            }
            times = measure_on(device, {n: lambda c=c: c for n, c in calls.items()}, budget=budget)
    except Exception as error:  # of any library: the other levels are still to be measured
        return [{**head, "error": f"{type(error).__name__}: {str(error).strip()[:500]}"}]
    return [{**head, "way": name, "seconds": timing.to_json()} for name, (timing, _) in times.items()]


def run(
    levels: Sequence[Level], path: Path, *, head: Record, device: Device, place: str, backend: str, dtype: torch.dtype,
    budget: float,
) -> int:  # fmt: skip
    """Measures, prints and appends; how many failed."""
    failed = 0
    pairs = [(level, kernels) for level in levels for kernels in KERNELS]
    for level, kernels in pairs:
        share = budget / len(pairs)
        records = measure_level(
            level, kernels, device, place=place, backend=backend, dtype=dtype, budget=share
        )  # fmt: skip
        for r in records:
            failed += "error" in r
            said = r["error"] if "error" in r else f"{r['way']:<9}  {r['seconds']['median'] * 1e3:9.3f} ms"
            print(f"{r['level']:>20}  {r['kernels']:<11}  {said}", flush=True)
        with path.open("a") as file:
            file.writelines(json.dumps({"kind": "gpu upsampling", **head, **r}) + "\n" for r in records)
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.upsampling", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--backend", help="default: cuda, or else the first that is made for GPUs")
    parser.add_argument(
        "--budget", type=float, default=12.0, help="seconds of timed calls for all levels (default: 12)"
    )
    args = parser.parse_args(argv)
    refuse_without_gpu("gpu_upsampling")
    found = gpu_backends()
    backend = args.backend or ("cuda" if "cuda" in found else next(iter(found), "reference"))
    failed = run(
        LEVELS, args.out, head=about(), device=CudaDevice(), place="cuda", backend=backend, dtype=torch.bfloat16,
        budget=args.budget,
    )  # fmt: skip
    if failed:
        print(f"gpu_upsampling: {failed} levels failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
