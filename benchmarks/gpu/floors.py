"""What the layers of a GPU run take at least, and what sm_90a's products are expected to take: computed, not measured.

python -m benchmarks.gpu.floors          prints the Markdown tables of KERNEL_NOTES.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.gpu.cases import GPU_LAYERS, PASSES, work
from benchmarks.operator.cases import KERNELS, Layer
from ssconv.backend.cuda import sm80, sm90
from ssconv.spec import ConvSpec

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


def step_clocks(own: int, cluster: int) -> tuple[float, float, float]:
    """Clocks of a stage of a product's ring by what may limit it: tensor cores, shared memory, the L2 cache, which
    gives the blocks of a cluster weights once for all of them."""
    outputs = sm90.TILE_M
    tensor = outputs * own * sm90.TILE_K / MULTIPLY_ADDS
    read = outputs / 64 * sm90.TILE_K / 16 * (64 + own) * 16 * ITEM_SIZE  # by the warpgroups' wgmmas
    brought = (outputs + own / cluster) * sm90.TILE_K * ITEM_SIZE
    return tensor, read / SHARED, brought / (L2 / MULTIPROCESSORS / CLOCK)


def dealt(slots: int, steps: Sequence[Sequence[int]], workers: int) -> int:
    """Stages of the block (or cluster) that has most, of so many. steps: of a tile of each of the branches computed
    apart, and of each parity, the longest first; as csrc/cuda/conv_sm90.cuh deals tiles out."""
    busy = [0] * workers
    parities, apart = len(steps[0]), slots // len(steps)
    for first in range(0, slots, workers):
        wave = min(workers, slots - first)
        for number in range(wave * parities):
            busy[number % workers] += steps[(first + number % wave) // apart][number // wave]
    return max(busy)


def scheduled(outputs: int, blocks: int, own: int, steps: Sequence[Sequence[int]], cluster: int) -> float:
    """Seconds of so many outputs (of a parity) in so many blocks of columns; the slowest of `step_clocks` counts, the
    epilogue does not. steps: as `dealt` has them. cluster: 1, 2, or 0 for what the plan takes."""
    tiles = -(-outputs // sm90.TILE_M)
    times = blocks * len(steps) * len(steps[0])
    cluster = cluster or sm90.cluster_blocks(tiles, times, own, MULTIPROCESSORS)
    most = dealt(-(-tiles // cluster) * blocks * len(steps), steps, MULTIPROCESSORS // cluster)
    return most * max(step_clocks(own, cluster)) / CLOCK


def expected(layer: Layer, kernels: str, what: str, cluster: int = 0) -> tuple[int, float]:
    """Columns of a block, and seconds of a layer's "forward" or "input gradient" as `scheduled` has them."""
    branches = KERNELS[kernels]
    count, forward = len(branches), what == "forward"
    channels = (layer.channels, layer.out) if forward else (layer.out, layer.channels)
    there, columns = (c // count for c in channels)
    spec, adjoint = ConvSpec(branches, (layer.stride,) * 3), layer.transposed == forward
    together = count if forward else 1
    own = sm90.tile_n(columns, together)
    box = sm90.box_channels(there)
    padded = -(-there // box) * box
    windows = sm80.parity_size(spec, adjoint, (layer.out_edge if forward else layer.edge,) * 3)
    kinds = sm80.parities(spec, adjoint)
    kinds.sort(key=lambda parity: -sum(sm80.tap_count(k, parity, spec, adjoint) for k in branches))
    each = [
        [-(-sm80.tap_count(k, parity, spec, adjoint) * padded // sm90.TILE_K) for parity in kinds] for k in branches
    ]
    steps = [[sum(of_all) for of_all in zip(*each, strict=True)]] if forward else each
    return own, scheduled(layer.batch * math.prod(windows), -(-columns // own), own, steps, cluster)


def expectations() -> str:
    """A row per layer and kernel set; of the two passes that the product computes."""
    rows = [
        "| layer | kernels | clocks of a forward's stage: tensor / shared / L2 / L2 in clusters "
        "| forward, ms: blocks alone | as planned | input gradient, ms: alone | as planned | measured |",
        "|---" * 8 + "|",
    ]
    for layer in plain_layers():
        for kernels, branches in KERNELS.items():
            if min(layer.channels, layer.out) // len(branches) < sm90.MIN_CHANNELS:
                rows.append(f"| {layer.name} | {kernels} | sm_80's product | | | | | not measured yet |")
                continue
            own, _ = expected(layer, kernels, "forward")
            clocks = " / ".join(f"{c:.0f}" for c in (*step_clocks(own, 1), step_clocks(own, 2)[2]))
            times = [
                f"{expected(layer, kernels, what, cluster)[1] * 1e3:.2f}"
                for what in ("forward", "input gradient")
                for cluster in (1, 0)
            ]
            rows.append(f"| {layer.name} | {kernels} | {clocks} | {' | '.join(times)} | not measured yet |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(floors(), expectations(), sep="\n\n")
