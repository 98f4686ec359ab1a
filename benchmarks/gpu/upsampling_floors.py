"""Two ways to a generator's up-convolution, and what each is expected to take: computed, not measured.

python -m benchmarks.gpu.upsampling_floors          prints the Markdown table of KERNEL_NOTES.md

A transposed stride-2 convolution followed by the FIR filter [1, 3, 3, 1] (Karras et al. 2020) goes over the large
tensor three times: written, read, written. The same sum as phases: each of 8 parities of the output is a convolution of
the small tensor, 3 taps along every dimension that a kernel spans and 2 along others, whose weights are sums of the
kernel's taps times the filter's. It writes once, and multiplies 8 to 16 times as often. `benchmarks.gpu.upsampling`
measures both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ssconv
from benchmarks.gpu.floors import ITEM_SIZE, expected, scheduled
from benchmarks.operator.cases import KERNELS, SLOPE, Layer
from ssconv.backend.cuda import sm90

FIR = (1.0, 3.0, 3.0, 1.0)
PARITIES = 8
# Of an H200: products and copied bytes a second as measured (KERNELS.md), and what the filter's pass is meant to reach.
PRODUCTS, COPIED, FILTERED = 788e12, 4.3e12, 0.8 * 4.3e12


@dataclass(frozen=True)
class Level:
    """(batch, channels, edge^3) -> (batch, out, (2 edge)^3)."""

    where: str
    batch: int
    channels: int
    out: int
    edge: int

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.channels}->{self.out}x{self.edge}^3"


# The layer of KERNELS.md section 8, and every level of the presets that doubles all three dimensions.
LEVELS = (
    Level("section 8", 8, 128, 64, 32),
    *(
        Level("heart", 16, *widths, edge)
        for *widths, edge in ((256, 256, 4), (256, 256, 8), (256, 128, 16), (128, 64, 32))
    ),
    *(
        Level("brain", 8, *widths, edge)
        for *widths, edge in ((256, 256, 4), (256, 128, 8), (128, 64, 16), (64, 32, 32), (32, 16, 64))
    ),
)

# ------------------------------------------------------------------------------------------------------- the two ways


def two_steps(x: Tensor, weights: Sequence[Tensor], bias: Tensor, backend: str = "auto") -> Tensor:
    """As ssgan's generator does it, zeros beyond every border. (N, Cin, D, H, W) -> (N, Cout, 2D, 2H, 2W)."""
    z = ssconv.split_shuffle_conv3d(x, weights, stride=2, padding="valid", transposed=True, backend=backend)
    taps = torch.tensor(FIR, device=x.device) / sum(FIR) * 2
    return ssconv.upfirdn3d(
        z, [taps] * 3, padding=1, bias=bias, activation="lrelu", negative_slope=SLOPE, backend=backend
    )


def folded(weight: Tensor) -> Tensor:
    """(O, I, kd, kh, kw) of extents 1 or 3 -> (O * 8, I, 3, 3, 3): an output channel's parities one after the other.

    Output 2 q + r along a dimension is the sum over p of x[p] c[r + 2 (q - p)], where c is the kernel's taps convolved
    with the filter's, summed in float32.
    """
    w = weight.to(torch.float32)
    for d in range(3):
        margin = (3 - w.shape[2 + d]) // 2
        # c[v], v = -3 .. 3, at index v + 3: the filter's taps j times the kernel's v + j - 1.
        c = [torch.zeros_like(w.select(2 + d, 0)) for _ in range(7)]
        for t in range(w.shape[2 + d]):
            for j, f in enumerate(FIR):
                c[t + margin - j + 1 + 3] += f / sum(FIR) * 2 * w.select(2 + d, t)
        # Tap i of the phase reads p = q + i - 1.
        phases = [torch.stack([c[r + 2 * (1 - i) + 3] for i in range(3)], 2 + d) for r in range(2)]
        w = torch.stack(phases, 1).flatten(0, 1)
    return w.to(weight.dtype)


def interleaved(y: Tensor, out: int) -> Tensor:
    """(N, Cout * 8, D, H, W), the parities of a channel side by side -> (N, Cout, 2D, 2H, 2W)."""
    n, _, d, h, w = y.shape
    return y.reshape(n, out, 2, 2, 2, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(n, out, 2 * d, 2 * h, 2 * w)


def phases(x: Tensor, weights: Sequence[Tensor], bias: Tensor, backend: str = "auto") -> Tensor:
    """All phases as one convolution with 8 times the columns -> (N, Cout * 8, D, H, W), not interleaved: a kernel that
    writes every voxel where it belongs would take no less. weights: `folded` ones."""
    count = len(weights)
    spread = bias.view(-1, count).t().repeat_interleave(PARITIES, 1).flatten()
    return ssconv.split_shuffle_conv3d(
        x, weights, spread, shuffle=False, activation="lrelu", negative_slope=SLOPE, backend=backend
    )


def in_order(y: Tensor, count: int) -> Tensor:
    """The result of `phases` as `two_steps` has it."""
    z = interleaved(y, y.shape[1] // PARITIES)
    return z.unflatten(1, (count, -1)).transpose(1, 2).flatten(1, 2)


# ---------------------------------------------------------------------------------------------------- the expectation


def taps_of_phases(kernel: Sequence[int]) -> int:
    """Of one parity."""
    return math.prod(3 if k > 1 else 2 for k in kernel)


def expected_phases(level: Level, kernels: str) -> float:
    """Seconds, by the clocks of sm_90a's product, were it to write every parity where it belongs."""
    branches = KERNELS[kernels]
    count = len(branches)
    there, columns = level.channels // count, level.out // count
    own, box = sm90.tile_n(columns, count), sm90.box_channels(there)
    padded = -(-there // box) * box
    steps = sum(-(-taps_of_phases(k) * padded // sm90.TILE_K) for k in branches)
    return scheduled(level.batch * level.edge**3, -(-columns // own), own, [[steps] * PARITIES], 0)


def rows() -> str:
    """Per level and kernel set: two steps and phases by the product's clocks, phases at the card's rates."""
    lines = [
        "| level | of | kernels | multiplications, times | two steps: convolution + filter, ms | phases, ms "
        "| phases at the card's rates, ms |",
        "|---" * 7 + "|",
    ]
    for level in LEVELS:
        small = level.batch * level.channels * level.edge**3 * ITEM_SIZE
        large = level.batch * level.out * (2 * level.edge) ** 3 * ITEM_SIZE
        layer = Layer(level.batch, level.channels, level.edge, level.out, 2, True)
        for kernels, branches in KERNELS.items():
            convolution = max(expected(layer, kernels, "forward")[1], (small + large) / COPIED)
            filtered = 2 * large / FILTERED
            one = max(expected_phases(level, kernels), (small + large) / COPIED)
            taps = PARITIES * sum(map(taps_of_phases, branches))
            products = level.batch * level.edge**3 * level.channels * level.out // len(branches) ** 2 * taps
            least = max(2 * products / PRODUCTS, (small + large) / COPIED)
            lines.append(
                f"| {level.name} | {level.where} | {kernels} | {taps / sum(map(math.prod, branches)):.0f} "
                f"| {convolution * 1e3:.3f} + {filtered * 1e3:.3f} | {one * 1e3:.3f} | {least * 1e3:.3f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(rows())
