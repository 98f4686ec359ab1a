"""What the layers of a GPU run take at least, and what sm_90a's products are expected to take: computed, not measured.

python -m benchmarks.floors          prints the Markdown tables of KERNEL_NOTES.md
"""

from __future__ import annotations

import math

from benchmarks.cases import KERNELS, Layer
from benchmarks.gpu_cases import GPU_LAYERS, PASSES, work
from ssconv import cuda_hopper

# Dense bf16 products per second and bytes per second, from NVIDIA's data sheets of the SXM cards.
PEAKS = {"H100": (989.4e12, 3.35e12), "H200": (989.4e12, 4.8e12)}
ITEM_SIZE = 2
# For the expectation: multiprocessors, clock under load, multiply-adds and bytes of shared memory of a multiprocessor
# and clock, and bytes per second from the L2 cache to all of them [estimates but for the first].
MULTIPROCESSORS, CLOCK, MULTIPLY_ADDS, SHARED, L2 = 132, 1.755e9, 2048, 128, 5.5e12


def plain_layers() -> list[Layer]:
    """Scales are not counted."""
    return [layer for layer in GPU_LAYERS if not layer.scaled]


def floors() -> str:
    """A row per layer and kernel set: operations and bytes of a forward, and floors of every pass on either card."""
    rows = [
        f"| layer | kernels | forward, TFLOP | forward, MiB | {' | '.join(f'{p}, ms' for p in PASSES)} |",
        "|---" * (4 + len(PASSES)) + "|",
    ]
    for layer in plain_layers():
        for kernels in KERNELS:
            forward = work(layer, kernels, "forward", ITEM_SIZE)
            cells = []
            for what in PASSES:
                least = work(layer, kernels, what, ITEM_SIZE)
                cells.append(" / ".join(f"{least.floor(*peaks) * 1e3:.3f}" for peaks in PEAKS.values()))
            rows.append(
                f"| {layer.name} | {kernels} | {forward.operations / 1e12:.4f} | {forward.bytes / 2**20:.1f} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(rows)


def step_clocks(own: int) -> tuple[float, float, float]:
    """Clocks of a stage of a product's ring by what may limit it: tensor cores, shared memory, the L2 cache."""
    outputs = cuda_hopper.OUTPUTS
    tensor = outputs * own * cuda_hopper.STEP / MULTIPLY_ADDS
    read = outputs / 64 * cuda_hopper.STEP / 16 * (64 + own) * 16 * ITEM_SIZE  # by the warpgroups' wgmmas
    brought = (outputs + own) * cuda_hopper.STEP * ITEM_SIZE
    return tensor, read / SHARED, brought / (L2 / MULTIPROCESSORS / CLOCK)


def expected_forward(layer: Layer, kernels: str) -> tuple[tuple[float, float, float], float]:
    """Clocks of a stage, and seconds: the slowest of the three, tiles in whole waves, no time for the epilogue."""
    branches = KERNELS[kernels]
    count = len(branches)
    cin, cout = layer.channels // count, layer.out // count
    own = next((c for c in cuda_hopper.COLUMNS[count] if c >= cout), cuda_hopper.COLUMNS[count][-1])
    box = cuda_hopper.box_channels(cin)
    steps = sum(-(-math.prod(k) * -(-cin // box) * box // cuda_hopper.STEP) for k in branches)
    outputs = layer.batch * layer.out_edge**3
    tiles = -(-outputs // cuda_hopper.OUTPUTS) * -(-cout // own)
    clocks = step_clocks(own)
    return clocks, -(-tiles // MULTIPROCESSORS) * steps * max(clocks) / CLOCK


def expectations() -> str:
    rows = ["| layer | kernels | clocks of a stage: tensor / shared / L2 | forward, ms | measured |", "|---" * 5 + "|"]
    for layer in plain_layers():
        for kernels, branches in KERNELS.items():
            few = min(layer.channels, layer.out) // len(branches) < cuda_hopper.LEAST
            if few or layer.transposed:
                rows.append(f"| {layer.name} | {kernels} | sm_80's product | | not measured yet |")
                continue
            clocks, seconds = expected_forward(layer, kernels)
            rows.append(
                f"| {layer.name} | {kernels} | {' / '.join(f'{c:.0f}' for c in clocks)} | {seconds * 1e3:.2f} | "
                "not measured yet |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    print(floors(), expectations(), sep="\n\n")
