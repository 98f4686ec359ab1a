"""What convolutions and their weight gradients launch on sm_80 and later (csrc/cuda/conv_sm80.cuh, wgrad_sm80.cuh).

A convolution reads its input as it lies where a branch's channels are side by side in whole chunks of 16 bytes and need
no scale. It reads up to 16 channels element by element. Everything else is packed first: scaled and copied to such
chunks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ssconv.backend.cuda import structs
from ssconv.backend.cuda.plan import (
    EPILOGUE_FLOATS,
    EPILOGUE_READS,
    KEPT,
    THREADS,
    Launch,
    Layout,
    Noise,
    ceil_div,
    epilogue_of,
    geometry_of,
    grid,
)
from ssconv.backend.cuda.structs import BRANCHES, Branch, Divider, WgradBranch
from ssconv.backend.cuda.table import Config, Key
from ssconv.backend.gpu import FUSED, choose_box, count_boxes
from ssconv.spec import ABSENT, IDENTITY, Geometry, Triple

ARITHMETIC = {"bf16": 0, "f16": 1, "tf32": 2, "ieee": 3}
TILE_M = 128  # voxels of a convolution's block; columns of a weight gradient's tile
ROW_BYTES = 128  # of a step of a convolution's inner dimension
MAX_ELEMENTWISE = 16  # channels of a branch up to which a convolution reads element by element


def arithmetic_of(dtype: torch.dtype, arithmetic: str) -> int:
    """The number that the kernels give a convolution's arithmetic."""
    return {torch.bfloat16: 0, torch.float16: 1}.get(dtype, ARITHMETIC.get(arithmetic, 3))


# -------------------------------------------------------------------------------------- forward and input gradient


class ConvCall(NamedTuple):
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue.

    in_channels, out_channels: of a branch, without what x is padded by. weight_strides: of the branches that have
    weights. swap: weights are read with input and output channels exchanged.
    """

    x: Layout
    in_channels: int
    weight_strides: tuple[tuple[int, ...], ...]
    swap: bool
    noise: Noise | None
    geometry: Geometry
    adjoint: bool
    size: tuple[int, ...]
    out_channels: int
    groups: int
    clamped: bool
    arithmetic: int

    def question(self) -> tuple[Layout, Geometry, bool, tuple[int, ...], int, int]:
        """What decides whether a kernel of sm_90 can compute it."""
        return self.x, self.geometry, self.adjoint, self.size, self.out_channels, self.groups


class ConvPlan(NamedTuple):
    """What a convolution launches, for each group of branches: weights packed (None where no branch has any), then
    multiplied; and the elements of the packed weights of each."""

    launches: tuple[tuple[Launch | None, Launch], ...]
    packed: tuple[int, ...]


def has_weights(kernel: Triple) -> bool:
    return kernel not in (IDENTITY, ABSENT)


def parities(geometry: Geometry, adjoint: bool) -> list[Triple]:
    """The parities of outputs that different taps reach, in the order in which weights are packed: the adjoint of a
    stride has 2, 4 or 8, everything else one."""
    return list(itertools.product(*(range(s if adjoint else 1) for s in geometry.stride)))  # type: ignore[arg-type]


def taps(extent: int, parity: int, begin: int, stride: int, adjoint: bool) -> range:
    """Input positions, relative to an output's number among those of its parity, that the taps along one dimension
    read. begin: of the first window centre."""
    half = (extent - 1) // 2
    if not adjoint:
        return range(begin - half, begin - half + extent)
    tap = (parity + half - begin) % stride
    last = (parity + half - begin - tap) // stride
    return range(last - (extent - tap + stride - 1) // stride + 1, last + 1)


def tap_count(kernel: Triple, parity: Triple, geometry: Geometry, adjoint: bool) -> int:
    """Taps that reach outputs of a parity, over all dimensions."""
    count = 1
    for d in range(3):
        count *= len(taps(kernel[d], parity[d], geometry.first_centre()[d], geometry.stride[d], adjoint))
    return count


def parity_size(geometry: Geometry, adjoint: bool, size: Sequence[int]) -> Triple:
    """Outputs of a parity along D, H and W, all of them having extents `size`; some parities' last may lie outside."""
    d, h, w = (ceil_div(n, s) if adjoint else n for n, s in zip(size, geometry.stride, strict=True))
    return d, h, w


def pack_weights(
    call: ConvCall,
    branches: Sequence[Branch],
    chunks: int,
    parity_count: int,
    *,
    padded_channels: int,
    tile_n: int,
    lane_columns: int,
    swizzled: int,
) -> Launch:
    """Packs the weights of some branches, `chunks` of 16 bytes in all."""
    with_weights = [n for n, kernel in enumerate(call.geometry.branches) if has_weights(kernel)]
    strides = dict(zip(with_weights, call.weight_strides, strict=True))
    params = structs.PackWeightsParams(
        grid=grid(min(256, ceil_div(chunks, THREADS)), len(branches), parity_count),
        arithmetic=call.arithmetic,
        in_channels=call.in_channels,
        padded_channels=padded_channels,
        out_channels=call.out_channels,
        tile_n=tile_n,
        lane_columns=lane_columns,
        swizzled=swizzled,
        geometry=geometry_of(call.geometry, call.adjoint),
        branch=tuple(branches),
    )
    reads = {}
    for i, branch in enumerate(branches):
        if branch.number in strides:
            stride = strides[branch.number]
            params.stride[i] = (stride[1], stride[0], *stride[2:]) if call.swap else stride
            reads[f"weight[{i}]"] = f"weight{branch.number}"
    return Launch.make("pack_weights", params, reads=reads, writes={"packed": "packed_weights"})


@functools.lru_cache(KEPT)
def conv_key(
    x: Layout, scaled: bool, out_channels: int, geometry: Geometry, groups: int, architecture: int, arithmetic: str
) -> tuple[Key, bool]:
    """The class of a convolution of sm_80, and whether its input has to be packed before."""
    count = len(geometry.branches)
    channels = x.shape[1] // count
    in_chunks = not scaled and x.in_chunks(channels)
    elementwise = not in_chunks and channels <= MAX_ELEMENTWISE
    fused = count if count in FUSED and (count == 1 or groups > 1) else 1
    key = Key.of("product", architecture, arithmetic, fused, out_channels, elementwise)
    return key, not in_chunks and not elementwise


@functools.lru_cache(KEPT)
def conv_sm80(call: ConvCall, key: Key, config: Config) -> ConvPlan:
    """What a convolution launches on sm_80 and later."""
    plans = [_conv_sm80_group(call, key, config, group) for group in _groups(call.geometry.branches)]
    return ConvPlan(tuple(p[:2] for p in plans), tuple(p[2] for p in plans))


def _groups(branches: Sequence[Triple]) -> Iterator[list[tuple[int, Triple]]]:
    """Numbers and kernels of as many branches as a launch takes."""
    numbered = list(enumerate(branches))
    for start in range(0, len(numbered), BRANCHES):
        yield numbered[start : start + BRANCHES]


def _conv_sm80_group(
    call: ConvCall, key: Key, config: Config, group: Sequence[tuple[int, Triple]]
) -> tuple[Launch | None, Launch, int]:
    """Launches for some branches, and the elements of their packed weights."""
    x, geometry, adjoint = call.x, call.geometry, call.adjoint
    count = len(geometry.branches)
    padded = x.shape[1] // count
    fused, tile_n = key.branches, config.width // key.branches
    every_parity = parities(geometry, adjoint)
    outputs = parity_size(geometry, adjoint, call.size)
    box = choose_box(TILE_M, outputs)
    n_tiles = ceil_div(call.out_channels, tile_n)
    branches, chunks = [], 0
    for number, kernel in group:
        starts = []
        for parity in every_parity:
            starts.append(chunks)
            if has_weights(kernel):
                bytes_of_k = tap_count(kernel, parity, geometry, adjoint) * padded * x.dtype.itemsize
                chunks += n_tiles * ceil_div(bytes_of_k, ROW_BYTES) * tile_n * (ROW_BYTES // 16)
        branches.append(Branch(kernel, number, tuple(starts)))
    params = structs.ConvSm80Params(
        grid=grid(
            count_boxes((x.shape[0], *outputs), box) * n_tiles,
            len(every_parity),
            1 if fused == count else len(group),
        ),
        arithmetic=call.arithmetic,
        fused=fused,
        block_n=config.width,
        elementwise=key.singly,
        stages=config.stages,
        cached=config.cached,
        x=x.volume(),
        size=call.size,
        in_channels=padded,
        out_channels=call.out_channels,
        branches=count,
        shuffle=call.groups > 1,
        geometry=geometry_of(geometry, adjoint),
        epilogue=epilogue_of(call.noise, call.clamped),
        box_bits=tuple(b.bit_length() - 1 for b in box),
        m_tiles=tuple(Divider.by(ceil_div(n, b)) for n, b in zip(outputs, box[1:], strict=True)),
        n_tiles=Divider.by(n_tiles),
        branch=tuple(branches),
    )
    reads = {"x.data": "x", "in_scale": "in_scale", "weights": "packed_weights", **EPILOGUE_READS}
    conv = Launch.make("conv_sm80", params, reads=reads, writes={"y": "y", "z": "z"}, floats=EPILOGUE_FLOATS)
    pack = None
    if chunks:
        pack = pack_weights(
            call,
            branches,
            chunks,
            len(every_parity),
            padded_channels=padded,
            tile_n=tile_n,
            lane_columns=tile_n // 8,
            swizzled=0,
        )
    return pack, conv, chunks * x.per_chunk


# -------------------------------------------------------------------------------------------------- weight gradient


class WgradCall(NamedTuple):
    """Gradients of the weights of the branches `numbers`.

    low: the tensor that has a voxel per window, high: the other one. rows, columns: channels of a branch of low and of
    high, without what the tensors are padded by.
    """

    low: Layout
    high: Layout
    numbers: tuple[int, ...]
    geometry: Geometry
    rows: int
    columns: int
    arithmetic: int


class WgradPlan(NamedTuple):
    """Partial sums of `low` and `high` to `workspace`, then their sums to out0, out1, ..; the workspace's elements."""

    multiply: Launch
    reduce: Launch
    workspace: int


def wgrad_branches(call: WgradCall, columns_per_tap: int, multiple: int = 1) -> tuple[list[WgradBranch], int]:
    """The branches with their tiles of 128 columns, each with a multiple of tiles; and the number of all tiles."""
    branches, tiles = [], 0
    for number in call.numbers:
        kernel = call.geometry.branches[number]
        branches.append(WgradBranch(kernel, number, tiles))
        columns = kernel[0] * kernel[1] * kernel[2] * columns_per_tap
        tiles += ceil_div(columns, TILE_M * multiple) * multiple
    return branches, tiles


def wgrad_reduce(
    call: WgradCall, branches: Sequence[WgradBranch], tiles: int, *, splits: int, tile_m: int, chunk: int, chunks: int
) -> tuple[Launch, int]:
    """Adds the splits' tiles of `tile_m` by 128 in a fixed order; the launch, and the workspace's elements."""
    m_tiles = ceil_div(call.rows, tile_m)
    elements = tiles * m_tiles * tile_m * TILE_M
    params = structs.WgradReduceParams(
        grid=grid(elements // THREADS),
        splits=splits,
        m_tiles=m_tiles,
        tile_m=tile_m,
        rows=call.rows,
        columns=call.columns,
        chunk=chunk,
        chunks=chunks,
        transposed=call.geometry.transposed,
        branches=len(branches),
        taps=tuple(b.extent[0] * b.extent[1] * b.extent[2] for b in branches),
        first_tile=(*(b.first_tile for b in branches), tiles),
    )
    outs = {f"out[{i}]": f"out{i}" for i in range(len(branches))}
    launch = Launch.make("wgrad_reduce", params, reads={"workspace": "workspace"}, writes=outs)
    return launch, splits * elements


@functools.lru_cache(KEPT)
def wgrad_key(rows: int, architecture: int, arithmetic: str) -> Key:
    """The class of a weight gradient of sm_80."""
    return Key.of("weights", architecture, arithmetic, 1, rows, False)


@functools.lru_cache(KEPT)
def wgrad_sm80(call: WgradCall, config: Config) -> WgradPlan:
    """What a weight gradient launches on sm_80 and later."""
    low, high = call.low, call.high
    count = len(call.geometry.branches)
    low_channels, high_channels = low.shape[1] // count, high.shape[1] // count
    voxels = low.shape[0] * low.voxels
    m_tiles = ceil_div(call.rows, config.width)
    branches, tiles = wgrad_branches(call, high_channels)
    steps = ceil_div(voxels, 64 // low.dtype.itemsize)
    steps_per_split = max(4, ceil_div(steps, max(1, config.programs // (tiles * m_tiles))))
    splits = ceil_div(steps, steps_per_split)
    params = structs.WgradSm80Params(
        grid=grid(tiles * m_tiles, splits),
        arithmetic=call.arithmetic,
        tile_m=config.width,
        stages=config.stages,
        low=low.volume(),
        high=high.volume(),
        low_channels=low_channels,
        high_channels=high_channels,
        geometry=geometry_of(call.geometry, False),
        m_tiles=m_tiles,
        voxels=voxels,
        steps=steps,
        steps_per_split=steps_per_split,
        branches=len(branches),
        branch=tuple(branches),
        **low.dividers(),
    )
    reads = {"low.data": "low", "high.data": "high"}
    multiply = Launch.make("wgrad_sm80", params, reads=reads, writes={"workspace": "workspace"})
    chunk = low.per_chunk
    reduce, workspace = wgrad_reduce(
        call, branches, tiles, splits=splits, tile_m=config.width, chunk=chunk, chunks=high_channels // chunk
    )
    return WgradPlan(multiply, reduce, workspace)
