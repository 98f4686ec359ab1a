"""The kernels of sm_90a with im2col copies: which calls they can compute, and what those launch.

They multiply in bf16 and fp16, by wgmma, what bulk copies (TMA) load: forward, input gradient and their transposes
(csrc/cuda/conv_sm90.cuh), weight gradient (csrc/cuda/wgrad_sm90.cuh). Two blocks of a convolution may form a cluster,
which loads weights once for both: a family of its own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch

from ssconv.backend.cuda import structs
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
from ssconv.backend.cuda.sm80 import (
    ConvCall,
    ConvPlan,
    WgradCall,
    WgradPlan,
    has_weights,
    pack_weights,
    parities,
    parity_size,
    tap_count,
    taps,
    wgrad_branches,
    wgrad_reduce,
)
from ssconv.backend.cuda.structs import Branch, Divider
from ssconv.backend.gpu import FUSED
from ssconv.spec import Geometry, Triple

CLUSTERS = {"sm90_im2col": 1, "sm90_cluster": 2}  # blocks of a cluster, by family
ARCHITECTURE = 90  # wgmma is in no other
DTYPES = (torch.bfloat16, torch.float16)
BRANCHES = 4  # of a launch, at most
BOXES = (64, 32, 16)  # channels of a bulk copy
TILE_M = 256  # outputs of a block
TILE_N = {1: (64, 128), 2: (32, 64, 128), 4: (32, 64)}  # columns of each branch of a block, by its branches
TILE_K = 64  # of a stage of a convolution, and voxels of a weight gradient's
MIN_STEPS = 4  # of a split
MIN_CHANNELS = 32  # of a branch, in and out, below which most of a tile is padding [estimate]
CORNERS = range(-16, 16)  # of an im2col box in five dimensions
MAX_OFFSET = 31  # of a tap in an im2col copy
MAX_OUTPUTS = 2**31 - 2**10
MAX_STRIDE = 2**40  # bytes


def box_channels(channels: int) -> int:
    """Channels of a bulk copy: those with the least padding, and the widest of these; 16 only for up to 16 channels."""
    boxes = BOXES if channels <= BOXES[-1] else BOXES[:-1]
    return min(boxes, key=lambda box: (ceil_div(channels, box) * box, -box))


def tile_n(out_channels: int, fused: int) -> int:
    """Columns of each branch of a block that computes `fused` branches: the least that hold all, else the most."""
    return next((n for n in TILE_N[fused] if n >= out_channels), TILE_N[fused][-1])


def unreadable(x: Layout, channels: int) -> str | None:
    """Why no tensor map reads branches of that many channels, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype}, not of 16 bits"
    if not x.in_chunks(channels):
        return "channels that are not side by side in steps of 16 bytes"
    strides = [x.stride[i] * x.dtype.itemsize for i in (4, 3, 2, 0) if x.shape[i] > 1]
    if any(s <= 0 or s >= MAX_STRIDE for s in strides) or any(b % a for a, b in itertools.pairwise(strides)):
        return "strides that no tensor map takes"
    return None


def _unreachable(
    x: Layout, branches: Sequence[Triple], geometry: Geometry, adjoint: bool, outputs: tuple[int, ...]
) -> str | None:
    """Why no im2col box covers the inputs of `outputs` (of a parity, along D, H, W), or None. One map serves all
    parities."""
    for kernel in branches:
        for d in range(3):
            step = 1 if adjoint else geometry.stride[d]
            along = range(geometry.stride[d] if adjoint else 1)
            read = [
                taps(kernel[d], parity, geometry.first_centre()[d], geometry.stride[d], adjoint) for parity in along
            ]
            lower, last = min(r[0] for r in read if r), max(r[-1] for r in read if r)
            upper = lower + (outputs[d] - 1) * step - (x.shape[2 + d] - 1)
            if last - lower > MAX_OFFSET:
                return f"a kernel that reaches more than {MAX_OFFSET + 1} positions along a dimension"
            if lower not in CORNERS or upper not in CORNERS:
                return "a window too far outside"
    if x.shape[0] * outputs[0] * outputs[1] * outputs[2] > MAX_OUTPUTS:
        return "more outputs than 32 bits number"
    return None


@functools.lru_cache(KEPT)
def conv_unsupported(
    x: Layout, geometry: Geometry, adjoint: bool, size: tuple[int, ...], out_channels: int, groups: int
) -> str | None:
    """Why conv_sm90 cannot compute a call, or None. x: as convolutions read it."""
    count = len(geometry.branches)
    channels = x.shape[1] // count
    if not all(map(has_weights, geometry.branches)):
        return "a branch without weights"
    if count > BRANCHES or (groups > 1 and count not in FUSED):
        return f"{count} branches"
    if channels < MIN_CHANNELS or out_channels < MIN_CHANNELS:
        return f"{channels} channels to {out_channels} of a branch, fewer than {MIN_CHANNELS}"
    return unreadable(x, channels) or _unreachable(
        x, geometry.branches, geometry, adjoint, parity_size(geometry, adjoint, size)
    )


@functools.lru_cache(KEPT)
def wgrad_unsupported(low: Layout, high: Layout, numbers: tuple[int, ...], geometry: Geometry) -> str | None:
    """Why wgrad_sm90 cannot compute the weight gradients of the branches `numbers`, or None."""
    count = len(geometry.branches)
    channels = low.shape[1] // count, high.shape[1] // count
    if len(numbers) > BRANCHES:
        return f"{len(numbers)} branches"
    if min(channels) < MIN_CHANNELS:
        return f"{channels[0]} by {channels[1]} channels of a branch, fewer than {MIN_CHANNELS}"
    return (
        unreadable(low, channels[0])
        or unreadable(high, channels[1])
        or _unreachable(low, [], geometry, False, low.shape[2:])
        or _unreachable(high, [geometry.branches[n] for n in numbers], geometry, False, low.shape[2:])
    )


@functools.lru_cache(KEPT)
def conv_sm90(call: ConvCall, multiprocessors: int, cluster: int) -> ConvPlan:
    """What a convolution launches that `conv_unsupported` lets through. cluster: its blocks, 1 or 2."""
    x, geometry, adjoint = call.x, call.geometry, call.adjoint
    count = len(geometry.branches)
    fused = count if call.groups > 1 else 1
    columns = tile_n(call.out_channels, fused)
    channels = x.shape[1] // count
    box = box_channels(channels)
    padded = ceil_div(channels, box) * box
    every_parity = parities(geometry, adjoint)
    of_parity = parity_size(geometry, adjoint, call.size)
    outputs = x.shape[0] * of_parity[0] * of_parity[1] * of_parity[2]
    n_tiles, m_tiles = ceil_div(call.out_channels, columns), ceil_div(outputs, TILE_M)
    times = n_tiles * count // fused  # that each tile of outputs is computed, for other columns and branches
    tiles = ceil_div(m_tiles, cluster)
    slots = times * tiles
    work = slots * len(every_parity)
    branches, chunks = [], 0
    for number, kernel in enumerate(geometry.branches):
        starts = []
        for parity in every_parity:
            starts.append(chunks)
            steps = ceil_div(tap_count(kernel, parity, geometry, adjoint) * padded, TILE_K)
            chunks += n_tiles * steps * columns * TILE_K // x.per_chunk
        branches.append(Branch(kernel, number, tuple(starts)))
    params = structs.ConvSm90Call(
        grid=grid(min(work, max(1, multiprocessors // cluster)) * cluster),
        arithmetic=call.arithmetic,
        fused=fused,
        tile_n=columns,
        cluster=cluster,
        x=x.volume(),
        size=call.size,
        channels=channels,
        box_channels=box,
        padded_channels=padded,
        out_channels=call.out_channels,
        branches=count,
        geometry=geometry_of(geometry, adjoint),
        epilogue=epilogue_of(call.noise, call.clamped),
        outputs=outputs,
        slots=slots,
        work=work,
        n_tiles=Divider.by(n_tiles),
        m_tiles=Divider.by(tiles),
        voxels=Divider.by(call.size[0] * call.size[1] * call.size[2]),
        branch=tuple(branches),
        **dividers(of_parity),
    )
    reads = {"x.data": "x", "weights": "packed_weights", **EPILOGUE_READS}
    conv = Launch.make("conv_sm90", params, reads=reads, writes={"y": "y", "z": "z"}, floats=EPILOGUE_FLOATS)
    pack = pack_weights(
        call,
        branches,
        chunks,
        len(every_parity),
        padded_channels=padded,
        tile_n=columns,
        lane_columns=8 // fused,
        swizzled=1,
    )
    return ConvPlan(((pack, conv),), (chunks * x.per_chunk,))


@functools.lru_cache(KEPT)
def wgrad_sm90(call: WgradCall, multiprocessors: int) -> WgradPlan:
    """What a weight gradient launches that `wgrad_unsupported` lets through. There are as many splits as give every
    multiprocessor a block."""
    low, high = call.low, call.high
    count = len(call.geometry.branches)
    low_channels, high_channels = low.shape[1] // count, high.shape[1] // count
    low_box, high_box = box_channels(low_channels), box_channels(high_channels)
    boxes = ceil_div(high_channels, high_box)
    tile_m = 64 if call.rows <= 64 else 128
    tiles_of_block = 4 if tile_m == 64 else 2
    m_tiles = ceil_div(call.rows, tile_m)
    branches, tiles = wgrad_branches(call, boxes * high_box, tiles_of_block)
    blocks = tiles // tiles_of_block * m_tiles
    steps = ceil_div(low.shape[0] * low.voxels, TILE_K)
    steps_per_split = max(MIN_STEPS, ceil_div(steps, max(1, multiprocessors // blocks)))
    splits = ceil_div(steps, steps_per_split)
    params = structs.WgradSm90Call(
        grid=grid(blocks, splits),
        arithmetic=call.arithmetic,
        tile_m=tile_m,
        low=low.volume(),
        high=high.volume(),
        geometry=geometry_of(call.geometry, False),
        low_channels=low_channels,
        high_channels=high_channels,
        low_box=low_box,
        high_box=high_box,
        boxes=boxes,
        m_tiles=m_tiles,
        steps=steps,
        steps_per_split=steps_per_split,
        branches=len(branches),
        branch=tuple(branches),
        **low.dividers(),
    )
    reads = {"low.data": "low", "high.data": "high"}
    multiply = Launch.make("wgrad_sm90", params, reads=reads, writes={"workspace": "workspace"})
    reduce, workspace = wgrad_reduce(call, branches, tiles, splits=splits, tile_m=tile_m, chunk=high_box, chunks=boxes)
    return WgradPlan(multiply, reduce, workspace)
