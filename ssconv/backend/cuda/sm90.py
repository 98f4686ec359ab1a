"""The kernels of sm_90a: when they serve a call, and what they launch. Pure functions of shapes, as `cuda_plans`.

They multiply by wgmma what bulk copies bring, in bf16 and fp16: forward, input gradient and their transposes
(csrc/cuda/conv_sm90.cuh), weight gradient (wgrad_sm90.cuh). Those of sm_80 serve the rest, and everything with
SSCONV_HOPPER=0 in the environment.

Two blocks of a product may form a cluster, which brings weights once for both: `cluster_blocks` decides, or
SSCONV_CLUSTER=1 or 2 in the environment.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence

import torch

from ssconv.backend.cuda.plan import Call, Launch, Layout, Numbers, Product, epilogue_of, geometry_of, grid
from ssconv.backend.gpu import FUSED, first
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, Triple

SWITCH = "SSCONV_HOPPER"
CLUSTER_SWITCH = "SSCONV_CLUSTER"
ARCHITECTURE = 90  # wgmma is in no other
DTYPES = (torch.bfloat16, torch.float16)
BRANCHES = 4  # the most of a launch
BOXES = (64, 32, 16)  # channels of a bulk copy
STEP = 64  # of a product's inner dimension, and voxels of a weight gradient's
LEAST_STEPS = 4  # of a split
# Columns of a block by the branches that it computes, and its outputs.
COLUMNS = {1: (64, 128), 2: (32, 64, 128), 4: (32, 64)}
OUTPUTS = 256
LEAST = 32  # channels of a branch, in and out, below which most of a tile is padding [estimate]
CORNERS = range(-16, 16)  # of an im2col box in five dimensions
MOST_OFFSET = 31
MAX_OUTPUTS = 2**31 - 2**10
MAX_STRIDE = 2**40  # bytes


def box_channels(channels: int) -> int:
    """Channels of a bulk copy: as little padding as can be, and the widest box of those. 16 only where they are all."""
    boxes = BOXES if channels <= BOXES[-1] else BOXES[:-1]
    return min(boxes, key=lambda box: (-(-channels // box) * box, -box))


def block_columns(columns: int, together: int) -> int:
    """Columns of a block that computes so many branches of so many columns."""
    return next((c for c in COLUMNS[together] if c >= columns), COLUMNS[together][-1])


def unread(x: Layout, channels: int) -> str | None:
    """Why no tensor map reads branches of that many channels, or None."""
    if x.dtype not in DTYPES:
        return f"{x.dtype}, not of 16 bits"
    if not x.in_chunks(channels):
        return "channels that are not side by side in steps of 16 bytes"
    strides = [x.stride[i] * x.dtype.itemsize for i in (4, 3, 2, 0) if x.shape[i] > 1]
    if any(s <= 0 or s >= MAX_STRIDE for s in strides) or any(b % a for a, b in itertools.pairwise(strides)):
        return "strides that no tensor map takes"
    return None


def parities(spec: ConvSpec, adjoint: bool) -> list[Triple]:
    """Those of the outputs that different taps reach, in the order in which weights are packed: the adjoint of a stride
    has 2, 4 or 8, all else one."""
    return list(itertools.product(*(range(s if adjoint else 1) for s in spec.stride)))  # type: ignore[arg-type]


def taps(extent: int, parity: int, begin: int, stride: int, adjoint: bool) -> range:
    """Input positions, relative to an output's number among those of its parity, that the taps along one dimension
    read. begin: of the first window centre."""
    half = (extent - 1) // 2
    if not adjoint:
        return range(begin - half, begin - half + extent)
    tap = (parity + half - begin) % stride
    last = (parity + half - begin - tap) // stride
    return range(last - (extent - tap + stride - 1) // stride + 1, last + 1)


def tap_count(kernel: Triple, parity: Triple, spec: ConvSpec, adjoint: bool) -> int:
    """Of one parity, in all dimensions."""
    count = 1
    for d in range(3):
        count *= len(taps(kernel[d], parity[d], first(spec)[d], spec.stride[d], adjoint))
    return count


def windows_of(spec: ConvSpec, adjoint: bool, size: Sequence[int]) -> tuple[int, ...]:
    """Outputs of a parity along D, H and W, all of them having extents `size`; some parities' last may lie outside."""
    return tuple(-(-n // s) if adjoint else n for n, s in zip(size, spec.stride, strict=True))


def _unreached(
    x: Layout, branches: Sequence[Triple], spec: ConvSpec, adjoint: bool, windows: tuple[int, ...]
) -> str | None:
    """Why no im2col box goes over that many windows along D, H and W, or None. One map serves all parities."""
    for kernel in branches:
        for d in range(3):
            pace = 1 if adjoint else spec.stride[d]
            kinds = range(spec.stride[d] if adjoint else 1)
            read = [taps(kernel[d], parity, first(spec)[d], spec.stride[d], adjoint) for parity in kinds]
            lower, last = min(r[0] for r in read if r), max(r[-1] for r in read if r)
            upper = lower + (windows[d] - 1) * pace - (x.shape[2 + d] - 1)
            if last - lower > MOST_OFFSET:
                return f"a kernel that reaches more than {MOST_OFFSET + 1} positions along a dimension"
            if lower not in CORNERS or upper not in CORNERS:
                return "a window too far outside"
    if x.shape[0] * windows[0] * windows[1] * windows[2] > MAX_OUTPUTS:
        return "more outputs than 32 bits number"
    return None


@functools.lru_cache(4096)
def refusal(x: Layout, spec: ConvSpec, adjoint: bool, size: tuple[int, ...], columns: int, groups: int) -> str | None:
    """Why sm_90a's product does not serve a call, or None where it does. x: as products read it."""
    count = len(spec.branches)
    channels = x.shape[1] // count
    if any(kernel in (IDENTITY, ABSENT) for kernel in spec.branches):
        return "a branch without weights"
    if count > BRANCHES or (groups > 1 and count not in FUSED):
        return f"{count} branches"
    if channels < LEAST or columns < LEAST:
        return f"{channels} channels to {columns} of a branch, fewer than {LEAST}"
    return unread(x, channels) or _unreached(x, spec.branches, spec, adjoint, windows_of(spec, adjoint, size))


@functools.lru_cache(4096)
def weights_refusal(low: Layout, high: Layout, numbers: tuple[int, ...], spec: ConvSpec) -> str | None:
    """Why sm_90a's weight gradient does not serve the branches `numbers`, or None where it does."""
    count = len(spec.branches)
    channels = low.shape[1] // count, high.shape[1] // count
    if len(numbers) > BRANCHES:
        return f"{len(numbers)} branches"
    if min(channels) < LEAST:
        return f"{channels[0]} by {channels[1]} channels of a branch, fewer than {LEAST}"
    return (
        unread(low, channels[0])
        or unread(high, channels[1])
        or _unreached(low, [], spec, False, low.shape[2:])
        or _unreached(high, [spec.branches[n] for n in numbers], spec, False, low.shape[2:])
    )


def switched_off() -> str | None:
    """What the environment says against them."""
    return f"{SWITCH}=0" if os.environ.get(SWITCH) == "0" else None


def cluster_wanted() -> int:
    """Blocks of a cluster that the environment asks for, 0 where it leaves it to `cluster_blocks`.

    Raises:
        ValueError: it asks for others than 1 or 2.
    """
    wanted = os.environ.get(CLUSTER_SWITCH, "0")
    if wanted not in ("0", "1", "2"):
        raise ValueError(
            f"{CLUSTER_SWITCH}: expected 1 or 2 blocks, or 0 for what is expected to be faster; got {wanted!r}"
        )
    return int(wanted)


def cluster_blocks(tiles: int, times: int, own: int, multiprocessors: int) -> int:
    """Blocks of a cluster, 1 or 2, by what one of them has to bring: inputs, and weights or half of them.

    tiles: of outputs, of which two are a cluster's. times: for how many columns, parities and branches. own: columns.
    """
    alone = -(-tiles * times // multiprocessors) * (OUTPUTS + own)
    pairs = -(-tiles // 2) * times
    both = -(-pairs // max(1, multiprocessors // 2)) * (OUTPUTS + own / 2)
    return 2 if multiprocessors > 1 and both < alone else 1


@functools.lru_cache(4096)
def product(call: Call, multiprocessors: int, cluster: int = 0) -> Product:
    """As `cuda_plans.product`, for a call that is not refused. cluster: its blocks; 0 for `cluster_blocks`."""
    x, channels, weights, swap, noise, spec, adjoint, size, columns, groups, clamped, kind = call
    count = len(spec.branches)
    together = count if groups > 1 else 1
    own = block_columns(columns, together)
    there = x.shape[1] // count
    box = box_channels(there)
    padded = -(-there // box) * box
    windows = windows_of(spec, adjoint, size)
    outputs = x.shape[0] * windows[0] * windows[1] * windows[2]  # of a parity
    blocks, tiles = -(-columns // own), -(-outputs // OUTPUTS)
    kinds = parities(spec, adjoint)
    apart = blocks * count // together
    cluster = cluster or cluster_blocks(tiles, apart * len(kinds), own, multiprocessors)
    tiles = -(-tiles // cluster)
    slots = apart * tiles
    rows, packs, total = [], [], 0
    for number, (kernel, stride) in enumerate(zip(spec.branches, weights, strict=True)):
        starts = []
        for parity in kinds:
            starts.append(total)
            steps = -(-tap_count(kernel, parity, spec, adjoint) * padded // STEP)
            total += blocks * steps * own * STEP // x.per_chunk
        row = [*kernel, number, *starts, *[0] * (8 - len(starts))]
        rows.append(row)
        swapped = (stride[1], stride[0], *stride[2:]) if swap else stride
        packs.append([f"weight{number}", *swapped, *row])
    pack_numbers: Numbers = [
        *grid(min(256, -(-total // 128)), count, len(kinds)), "packed", channels, padded, columns, own, 8 // together,
        1, *geometry_of(spec, adjoint), count, *itertools.chain.from_iterable(packs),
    ]  # fmt: skip
    running = min(slots * len(kinds), max(1, multiprocessors // cluster)) * cluster
    numbers: Numbers = [
        *grid(running), together, own, *x.volume("x"), "packed", "y", "z", *size, there, box, padded, columns, count,
        *geometry_of(spec, adjoint), *epilogue_of(noise, clamped), outputs, slots, slots * len(kinds), blocks, tiles,
        size[0] * size[1] * size[2], *windows, cluster, count, *itertools.chain.from_iterable(rows),
    ]  # fmt: skip
    launches = (
        Launch.make("pack_weights", kind, pack_numbers, ["packed"]),
        Launch.make("conv_sm90", kind, numbers, ["y", "z"]),
    )
    return Product((launches,), (total * x.per_chunk,))


@functools.lru_cache(4096)
def weights(
    low: Layout, high: Layout, numbers: tuple[int, ...], spec: ConvSpec, rows: int, columns: int, kind: int,
    multiprocessors: int,
) -> tuple[Launch, Launch, int]:  # fmt: skip
    """As `cuda_plans.weights`, for a call that is not refused: as many splits as give every multiprocessor a block."""
    count = len(spec.branches)
    low_channels, high_channels = low.shape[1] // count, high.shape[1] // count
    low_box, high_box = box_channels(low_channels), box_channels(high_channels)
    boxes = -(-high_channels // high_box)
    block_rows = 64 if rows <= 64 else 128
    together = 4 if block_rows == 64 else 2  # tiles of a block
    row_blocks = -(-rows // block_rows)
    parts, described, tiles = [], [], 0
    for i, number in enumerate(numbers):
        kernel = spec.branches[number]
        taps = kernel[0] * kernel[1] * kernel[2]
        parts.append([*kernel, number, tiles])
        described.append([f"out{i}", taps, tiles])
        tiles += -(-taps * boxes * high_box // (128 * together)) * together
    steps = -(-low.shape[0] * low.voxels // STEP)
    blocks = tiles // together * row_blocks
    share = max(LEAST_STEPS, -(-steps // max(1, multiprocessors // blocks)))
    splits = -(-steps // share)
    multiply: Numbers = [
        *grid(blocks, splits), block_rows, *low.volume("low"), *high.volume("high"), "workspace",
        *geometry_of(spec, False), low_channels, high_channels, low_box, high_box, boxes, row_blocks, steps, share,
        *low.shape[2:], len(numbers), *itertools.chain.from_iterable(parts),
    ]  # fmt: skip
    tile = block_rows * 128
    add: Numbers = [
        *grid(tiles * row_blocks * tile // 128), "workspace", splits, row_blocks, block_rows, rows, columns, high_box,
        boxes, int(spec.transposed), len(numbers), *itertools.chain.from_iterable(described), tiles,
    ]  # fmt: skip
    outs = [f"out{i}" for i in range(len(numbers))]
    return (
        Launch.make("wgrad_sm90", kind, multiply, ["workspace"]),
        Launch.make("wgrad_reduce", 0, add, outs),
        splits * tiles * row_blocks * tile,
    )
