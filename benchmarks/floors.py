"""The least time that the layers of a GPU run take on a card, from its published peaks: nothing is measured.

python -m benchmarks.floors          prints the Markdown table of KERNEL_NOTES.md
"""

from __future__ import annotations

from benchmarks.cases import KERNELS
from benchmarks.gpu_cases import GPU_LAYERS, PASSES, work

# Dense bf16 products per second and bytes per second, from NVIDIA's data sheets of the SXM cards.
PEAKS = {"H100": (989.4e12, 3.35e12), "H200": (989.4e12, 4.8e12)}
ITEM_SIZE = 2


def table() -> str:
    """A row per layer and kernel set: operations and bytes of a forward, and floors of every pass on either card."""
    rows = [
        f"| layer | kernels | forward, TFLOP | forward, MiB | {' | '.join(f'{p}, ms' for p in PASSES)} |",
        "|---" * (4 + len(PASSES)) + "|",
    ]
    for layer in GPU_LAYERS:
        if layer.scaled:  # the scales are not counted
            continue
        for kernels in KERNELS:
            forward = work(layer, kernels, "forward", ITEM_SIZE)
            cells = []
            for what in PASSES:
                least = work(layer, kernels, what, ITEM_SIZE)
                floors = [least.floor(*peaks) * 1e3 for peaks in PEAKS.values()]
                cells.append(" / ".join(f"{floor:.3f}" for floor in floors))
            rows.append(
                f"| {layer.name} | {kernels} | {forward.operations / 1e12:.4f} | {forward.bytes / 2**20:.1f} | "
                f"{' | '.join(cells)} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
