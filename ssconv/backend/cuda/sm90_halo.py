"""The convolution of sm_90a that keeps a tile's input with its halo in shared memory: which calls it computes, and what
they launch (csrc/cuda/conv_sm90_halo.cuh).

Two families differ in how pixels lie in shared memory: "sm90_halo", and "sm90_halo_swizzled", which relies on a reading
of the PTX ISA that no GPU has confirmed yet.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from ssconv.backend.cuda import sm90, structs
from ssconv.backend.cuda.plan import (
    EPILOGUE_FLOATS,
    EPILOGUE_READS,
    KEPT,
    Launch,
    Layout,
    ceil_div,
    dividers,
    epilogue_of,
    geometry_of,
    grid,
)
from ssconv.backend.cuda.sm80 import ConvCall, ConvPlan, has_weights, pack_weights
from ssconv.backend.cuda.structs import Branch, Divider
from ssconv.backend.gpu import FUSED
from ssconv.spec import Geometry, Triple

LAYOUTS = {"sm90_halo": False, "sm90_halo_swizzled": True}  # whether pixels are swizzled, by family
SEARCHED = 4  # tilings that are candidates
TILE_N = {1: (32, 64, 128), 2: (32, 64, 128), 4: (32, 64)}  # columns of each branch of a block, by its branches
CHUNKS = (64, 32, 16)  # channels that are in shared memory at a time
MIN_CHANNELS = 16  # of a branch, in and out, below which most of a tile is padding [estimate]
GROUP = 8  # outputs along W, and along H, of the 64 rows of a wgmma
MAX_TAPS = 27
MAX_TILES = 2**31 - 1


class Tiling(NamedTuple):
    """Outputs of a tile (D, H, W), and channels of a chunk."""

    tile: Triple
    chunk: int


def tile_n(out_channels: int, fused: int) -> int:
    """Columns of each branch of a block that computes `fused` branches: the least that hold all, else the most."""
    return next((n for n in TILE_N[fused] if n >= out_channels), TILE_N[fused][-1])


def row_groups(fused: int, columns: int) -> int:
    """Groups of 64 outputs of a tile: as many as two warpgroups have registers for."""
    return 4 if columns == 128 or fused * columns > 128 else 8


def stages(columns: int) -> int:
    """Stages of the weights' pipeline."""
    return {128: 4, 64: 12, 32: 16}[columns]


def buffer_bytes(columns: int) -> int:
    """Bytes of one of the two buffers of inputs: what the weights leave."""
    return (225 * 1024 - stages(columns) * columns * 128) // 2 // 1024 * 1024


def shared_bytes(columns: int) -> int:
    """Shared memory of a block, with its mbarriers."""
    return stages(columns) * (columns * 128 + 16) + 2 * (buffer_bytes(columns) + 16) + 8


def _input_bytes(kernel: Triple, tile: Triple, chunk: int, swizzled: bool) -> int:
    """Bytes of a chunk of a tile's input in its buffer."""
    pixels = 1
    for t, k in zip(tile, kernel, strict=True):
        pixels *= t + k - 1
    planes, pixel = (1, chunk * 2) if swizzled else (chunk // 8, 16)
    return planes * ceil_div(pixels * pixel, 128) * 128


def _tiles(size: tuple[int, ...], tile: Triple) -> Triple:
    """Tiles of a sample along D, H and W."""
    d, h, w = (ceil_div(n, t) for n, t in zip(size, tile, strict=True))
    return d, h, w


@functools.lru_cache(KEPT)
def tilings(
    branches: tuple[Triple, ...],
    channels: int,
    out_channels: int,
    fused: int,
    batch: int,
    size: tuple[int, ...],
    swizzled: bool,
) -> tuple[Tiling, ...]:
    """Every tile and chunk whose input fits, those that load the fewest elements first and then the widest chunks.

    channels, out_channels: of a branch; size: of the output; fused: branches of a block.
    """
    columns = tile_n(out_channels, fused)
    count = row_groups(fused, columns)
    widest = next((c for c in reversed(CHUNKS) if c >= channels), CHUNKS[0])  # wider ones are padding
    found = {}
    for d, down in itertools.product((1, 2, 4, 8), repeat=2):
        if count % (d * down):
            continue
        tile = (d, down * GROUP, count // d // down * GROUP)
        along = _tiles(size, tile)
        work = batch * along[0] * along[1] * along[2] * ceil_div(out_channels, columns) * len(branches) // fused
        pixels = sum((d + k - 1) * (tile[1] + j - 1) * (tile[2] + i - 1) for k, j, i in branches)
        for chunk in CHUNKS:
            fits = all(_input_bytes(kernel, tile, chunk, swizzled) <= buffer_bytes(columns) for kernel in branches)
            if chunk <= widest and fits and work <= MAX_TILES:
                found[Tiling(tile, chunk)] = work * pixels * ceil_div(channels, chunk) * chunk, -chunk
    return tuple(sorted(found, key=found.__getitem__))


def tilings_of(call: ConvCall, swizzled: bool) -> tuple[Tiling, ...]:
    """`tilings` of a call."""
    count = len(call.geometry.branches)
    fused = count if call.groups > 1 else 1
    return tilings(
        call.geometry.branches, call.x.shape[1] // count, call.out_channels, fused, call.x.shape[0], call.size, swizzled
    )


def configs(call: ConvCall, family: str) -> Iterator[Tiling]:
    """The tilings with which a family can compute a call, the default first."""
    if unsupported(*call.question()) is None:
        yield from tilings_of(call, LAYOUTS[family])[:SEARCHED]


@functools.lru_cache(KEPT)
def unsupported(
    x: Layout, geometry: Geometry, adjoint: bool, size: tuple[int, ...], out_channels: int, groups: int
) -> str | None:
    """Why this kernel cannot compute a call, whatever the tiling, or None. x: as convolutions read it."""
    count = len(geometry.branches)
    channels = x.shape[1] // count
    if geometry.stride != (1, 1, 1):
        return "a stride"
    if not all(map(has_weights, geometry.branches)):
        return "a branch without weights"
    if count > sm90.BRANCHES or (groups > 1 and count not in FUSED):
        return f"{count} branches"
    if channels < MIN_CHANNELS or out_channels < MIN_CHANNELS:
        return f"{channels} channels to {out_channels} of a branch, fewer than {MIN_CHANNELS}"
    if any(d * h * w > MAX_TAPS for d, h, w in geometry.branches):
        return f"a kernel of more than {MAX_TAPS} taps"
    return sm90.unreadable(x, channels)


@functools.lru_cache(KEPT)
def conv_sm90_halo(call: ConvCall, family: str, found: Tiling, multiprocessors: int) -> ConvPlan:
    """What a convolution launches with one of its `configs`."""
    x, geometry = call.x, call.geometry
    count = len(geometry.branches)
    fused = count if call.groups > 1 else 1
    columns = tile_n(call.out_channels, fused)
    channels = x.shape[1] // count
    chunks_of_k, n_tiles = ceil_div(channels, found.chunk), ceil_div(call.out_channels, columns)
    along = _tiles(call.size, found.tile)
    tiles = x.shape[0] * along[0] * along[1] * along[2]
    work = n_tiles * tiles * count // fused
    branches, chunks = [], 0
    for number, kernel in enumerate(geometry.branches):
        branches.append(Branch(kernel, number, (chunks,)))
        steps = ceil_div(kernel[0] * kernel[1] * kernel[2] * found.chunk, sm90.TILE_K)
        chunks += n_tiles * chunks_of_k * steps * columns * sm90.TILE_K // x.per_chunk
    params = structs.ConvSm90HaloCall(
        grid=grid(min(work, multiprocessors)),
        arithmetic=call.arithmetic,
        fused=fused,
        tile_n=columns,
        x=x.volume(),
        size=call.size,
        channels=channels,
        chunk_channels=found.chunk,
        swizzled=LAYOUTS[family],
        out_channels=call.out_channels,
        branches=count,
        geometry=geometry_of(geometry, call.adjoint),
        epilogue=epilogue_of(call.noise, call.clamped),
        tile=found.tile,
        work=work,
        n_tiles=Divider.by(n_tiles),
        m_tiles=Divider.by(tiles),
        branch=tuple(branches),
        **dividers(along),
    )
    reads = {"x.data": "x", "weights": "packed_weights", **EPILOGUE_READS}
    conv = Launch.make("conv_sm90_halo", params, reads=reads, writes={"y": "y", "z": "z"}, floats=EPILOGUE_FLOATS)
    pack = pack_weights(
        call,
        branches,
        chunks,
        1,
        padded_channels=chunks_of_k * found.chunk,
        tile_n=columns,
        lane_columns=8 // fused,
        swizzled=found.chunk,
    )
    return ConvPlan(((pack, conv),), (chunks * x.per_chunk,))
