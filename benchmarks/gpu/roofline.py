"""The roofline of a layer: the larger of operations over a peak rate and bytes over a peak bandwidth.

    python -m benchmarks.gpu.roofline          prints a Markdown table for the peaks of NVIDIA's data sheets

A GPU run measures the peaks itself (`measure_peaks`) and stores the roofline of each pass beside its time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from benchmarks.gpu.timing import Timer, measure_on
from benchmarks.operator.cases import KERNELS, Layer

PASSES = ("forward", "input gradient", "weight gradient", "full step", "double backward")


@dataclass(frozen=True)
class Peaks:
    """The most operations and the most bytes (read and written) that a device reaches in a second."""

    operations_per_second: float
    bytes_per_second: float


# Dense bf16 operations and bytes a second of the SXM cards, from NVIDIA's data sheets.
DATA_SHEETS = {"H100": Peaks(989.4e12, 3.35e12), "H200": Peaks(989.4e12, 4.8e12)}


@dataclass(frozen=True)
class Work:
    """A pass's floating-point operations, and its bytes where each input is read once and each output written once."""

    operations: int
    bytes: int

    def seconds(self, peaks: Peaks) -> float:
        """Gives the time that no kernel can undercut."""
        return max(self.operations / peaks.operations_per_second, self.bytes / peaks.bytes_per_second)


def work(layer: Layer, kernels: str, what: str, item_size: int) -> Work:
    """Counts the least work of a pass (one of `PASSES`) of a layer with that kernel set; item_size in bytes.

    A multiply-add counts as two operations. Taps that fall outside of the volume are counted too (a few percent), the
    scales, the bias and the pointwise arithmetic are not. Gradients read the output for the activation's slope. The
    double backward is forward, input gradient, and that gradient's derivatives for the weights and the upstream.
    """
    branches = KERNELS[kernels]
    w = layer.channels * layer.out * sum(math.prod(k) for k in branches) // len(branches) ** 2  # weights
    centres = layer.batch * (layer.edge if layer.transposed else layer.out_edge) ** 3
    x, y = math.prod(layer.shape), math.prod(layer.out_shape)
    convolutions, items = {
        "forward": (1, x + w + y),
        "input gradient": (1, 2 * y + w + x),
        "weight gradient": (1, 2 * y + x + w),
        "full step": (3, (x + w + y) + (2 * y + x + w) + (x + w)),
        "double backward": (4, (x + w + y) + (2 * y + w + x) + (x + 2 * y + w) + (w + y)),
    }[what]
    return Work(2 * convolutions * centres * w, items * item_size)


def measure_peaks(timer: Timer, device: str, dtype: torch.dtype, *, edge: int = 8192, copied: int = 2**31) -> Peaks:
    """Measures a large matrix product and a large copy, on random data: zeros run faster than real data."""
    a, b = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(copied // 4, device=device)
    target = torch.empty_like(source)
    found = measure_on(
        timer,
        {"matmul": lambda: lambda: torch.mm(a, b), "copy": lambda: lambda: target.copy_(source)},
        repeats=10,
        budget=5.0,
    )
    matmul, copy = found["matmul"][0].median, found["copy"][0].median
    return Peaks(2 * edge**3 / matmul, 2 * 4 * source.numel() / copy)


def table() -> str:
    """Gives a row per layer and kernel set in bf16: operations and bytes of a forward, and rooflines of every pass."""
    from benchmarks.gpu.cases import GPU_LAYERS

    cards = " / ".join(DATA_SHEETS)
    rows = [
        f"| layer | kernels | forward, TFLOP | forward, MiB | {' | '.join(f'{p}, ms ({cards})' for p in PASSES)} |",
        "|---" * (4 + len(PASSES)) + "|",
    ]
    for layer in (layer for layer in GPU_LAYERS if not layer.scaled):
        for kernels in KERNELS:
            forward = work(layer, kernels, "forward", 2)
            times = [
                " / ".join(f"{1e3 * work(layer, kernels, p, 2).seconds(peaks):.3f}" for peaks in DATA_SHEETS.values())
                for p in PASSES
            ]
            cells = [f"{forward.operations / 1e12:.4f}", f"{forward.bytes / 2**20:.1f}", *times]
            rows.append(f"| {layer.name} | {kernels} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
