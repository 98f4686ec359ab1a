"""What sm_90a's product with the halo in shared memory is expected to take: computed, not measured.

python -m benchmarks.gpu.halo_floors          prints the Markdown table of KERNEL_NOTES.md
"""

from __future__ import annotations

from benchmarks.gpu.cases import work
from benchmarks.gpu.floors import PEAKS, plain_layers
from benchmarks.operator.cases import KERNELS, Layer
from ssconv.backend.cuda import clocks, sm90_halo
from ssconv.backend.cuda.clocks import CLOCK, ITEM, MULTIPROCESSORS


def expected(layer: Layer, kernels: str, what: str, swizzled: bool) -> sm90_halo.Tiling:
    """The plan of a layer's "forward" or "input gradient", whose branches come one by one."""
    branches = KERNELS[kernels]
    count = len(branches)
    there, columns = layer.channels // count, layer.out // count
    if what == "input gradient":
        there, columns = columns, there
    found = sm90_halo.tiling(
        branches, there, columns, count if what == "forward" else 1, layer.batch, (layer.out_edge,) * 3, swizzled,
        MULTIPROCESSORS,
    )  # fmt: skip
    assert found is not None, "layers of 3x3x3 taps fit"
    return found


def _clocks(layer: Layer, kernels: str, plan: sm90_halo.Tiling, swizzled: bool) -> str:
    """Of all taps of the first branch with a chunk of channels, in a tile."""
    branches = KERNELS[kernels]
    own = sm90_halo.tile_n(layer.out // len(branches), len(branches))
    parts = clocks.halo_chunk(branches[0], plan.chunk, plan.tile, own, swizzled)
    return " / ".join(f"{clocks:.0f}" for clocks in parts)


def expectations() -> str:
    """A row per layer of stride 1 and kernel set; ms of the plain layout."""
    head = (
        "| layer | kernels | tile, chunk | clocks of a chunk, 3x3x3: multiplied / L2 / copies | forward, ms "
        "| input gradient, ms | floor of a forward (H200), ms | measured |"
    )
    rows = [head, "|---" * 8 + "|"]
    for layer in plain_layers():
        if layer.stride != 1:
            continue
        for kernels in KERNELS:
            plan = expected(layer, kernels, "forward", False)
            gradient = expected(layer, kernels, "input gradient", False)
            floor = work(layer, kernels, "forward", ITEM).floor(*PEAKS["H200"])
            cells = (
                layer.name,
                kernels,
                f"{'x'.join(map(str, plan.tile))}, {plan.chunk}",
                _clocks(layer, kernels, plan, False),
                *(f"{1e3 * seconds:.2f}" for seconds in (plan.clocks / CLOCK, gradient.clocks / CLOCK, floor)),
                "not measured yet",
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(expectations())
