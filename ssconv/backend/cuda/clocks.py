"""How long the products of sm_90a are expected to take, by what limits them: nothing here was measured.

A multiprocessor's clocks, tiles in whole waves, the slowest of tensor cores, shared memory, L2 cache and bulk copies;
no time for the epilogue. `sm90_halo` chooses by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ssconv.backend.cuda import sm90
from ssconv.spec import Triple

CLOCK = 1.755e9  # of a second, under load [estimate]
MULTIPROCESSORS = 132
MULTIPLY_ADDS, SHARED = 2048, 128  # of a multiprocessor and clock; bytes that its wgmmas read
L2 = 5.5e12 / MULTIPROCESSORS / CLOCK  # bytes that it gets of a clock [estimate]
COPIED_ROWS = 1.0  # of a tiled bulk copy and clock: the pixels of a box, of 16 to 128 bytes [guess]
ITEM = 2  # bytes
MATRIX = 64  # outputs


def slice_clocks(own: int) -> float:
    """A wgmma of 64 outputs, `own` columns and 16 of K: tensor cores or shared memory."""
    return max(MATRIX * own * 16 / MULTIPLY_ADDS, (MATRIX + own) * 16 * ITEM / SHARED)


def step_clocks(own: int) -> tuple[float, float, float]:
    """A stage of the im2col product's ring by tensor cores, shared memory and L2 cache."""
    outputs = sm90.TILE_M
    tensor = outputs * own * sm90.TILE_K / MULTIPLY_ADDS
    read = outputs / MATRIX * sm90.TILE_K / 16 * (MATRIX + own) * 16 * ITEM
    brought = (outputs + own) * sm90.TILE_K * ITEM
    return tensor, read / SHARED, brought / L2


def im2col(
    branches: Sequence[Triple], channels: int, columns: int, outputs: int, together: int, multiprocessors: int
) -> float:
    """Clocks of a call by im2col copies. channels, columns: of a branch; outputs: voxels of all samples; together:
    branches of a block."""
    own = sm90.tile_n(columns, together)
    box = sm90.box_channels(channels)
    steps = sum(-(-math.prod(k) * -(-channels // box) * box // sm90.TILE_K) for k in branches)
    work = -(-outputs // sm90.TILE_M) * -(-columns // own) * len(branches) // together
    return -(-work // multiprocessors) * steps * max(step_clocks(own)) * together / len(branches)


def halo_chunk(kernel: Triple, chunk: int, tile: Triple, own: int, swizzled: bool) -> tuple[float, float, float]:
    """A chunk of a branch's channels in a tile of the product with its halo in shared memory: by what multiplies
    (tensor cores or shared memory), by L2 cache, by bulk copies."""
    slices = math.prod(kernel) * chunk // 16
    pixels = math.prod(t + k - 1 for t, k in zip(tile, kernel, strict=True))
    multiplied = slices * math.prod(tile) / MATRIX * slice_clocks(own)
    brought = -(-slices // 4) * own * 64 * ITEM + pixels * chunk * ITEM
    rows = pixels if swizzled else pixels * chunk // 8
    return multiplied, brought / L2, rows / COPIED_ROWS


def halo(
    branches: Sequence[Triple], channels: int, chunk: int, tile: Triple, own: int, swizzled: bool, work: int,
    together: int, multiprocessors: int,
) -> tuple[float, float]:  # fmt: skip
    """Clocks of a call of `work` tiles of so many columns, of as many branches as a block computes; and the clocks of
    L2 cache and bulk copies, hidden or not."""
    chunks = -(-channels // chunk)
    clocks = [halo_chunk(k, chunk, tile, own, swizzled) for k in branches]
    share = -(-work // multiprocessors) * chunks * together / len(branches)
    return share * sum(map(max, clocks)), share * sum(l2 + copied for _, l2, copied in clocks)
