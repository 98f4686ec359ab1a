"""The kernels of sm_90a: when they serve a call, and what they launch. Pure functions of shapes, as `cuda_plans`.

They multiply by wgmma what bulk copies bring, in bf16 and fp16: forward and input gradient of stride 1
(csrc/cuda/product_sm90.cuh), weight gradient (weights_sm90.cuh). Those of sm_80 serve the rest, and everything with
SSCONV_HOPPER=0 in the environment.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence

import torch

from ssconv.cuda_plans import Call, Launch, Layout, Numbers, Product, epilogue_of, geometry_of, grid
from ssconv.gpu import FUSED, first
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, Triple

SWITCH = "SSCONV_HOPPER"
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


def _unreached(
    x: Layout, branches: Sequence[Triple], spec: ConvSpec, adjoint: bool, windows: tuple[int, ...]
) -> str | None:
    """Why no im2col box goes over that many windows along D, H and W, or None."""
    for kernel in branches:
        for d in range(3):
            lower = (-1 if adjoint else 1) * first(spec)[d] - (kernel[d] - 1) // 2
            upper = lower + (windows[d] - 1) * spec.stride[d] - (x.shape[2 + d] - 1)
            if kernel[d] > MOST_OFFSET + 1:
                return f"a kernel of more than {MOST_OFFSET + 1} taps along a dimension"
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
    if adjoint and spec.stride != (1, 1, 1):
        return "the adjoint of a stride"
    if any(kernel in (IDENTITY, ABSENT) for kernel in spec.branches):
        return "a branch without weights"
    if count > BRANCHES or (groups > 1 and count not in FUSED):
        return f"{count} branches"
    if channels < LEAST or columns < LEAST:
        return f"{channels} channels to {columns} of a branch, fewer than {LEAST}"
    return unread(x, channels) or _unreached(x, spec.branches, spec, adjoint, size)


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


@functools.lru_cache(4096)
def product(call: Call, multiprocessors: int) -> Product:
    """As `cuda_plans.product`, for a call that is not refused."""
    x, channels, weights, swap, noise, spec, adjoint, size, columns, groups, clamped, kind = call
    count = len(spec.branches)
    together = count if groups > 1 else 1
    own = block_columns(columns, together)
    there = x.shape[1] // count
    box = box_channels(there)
    padded = -(-there // box) * box
    outputs = x.shape[0] * size[0] * size[1] * size[2]
    blocks, tiles = -(-columns // own), -(-outputs // OUTPUTS)
    work = blocks * tiles * count // together
    rows, packs, total = [], [], 0
    for number, (kernel, stride) in enumerate(zip(spec.branches, weights, strict=True)):
        row = [*kernel, number, total, *[0] * 7]
        rows.append(row)
        swapped = (stride[1], stride[0], *stride[2:]) if swap else stride
        packs.append([f"weight{number}", *swapped, *row])
        total += blocks * -(-kernel[0] * kernel[1] * kernel[2] * padded // STEP) * own * STEP // x.per_chunk
    pack_numbers: Numbers = [
        *grid(min(256, -(-total // 128)), count), "packed", channels, padded, columns, own, 8 // together, 1,
        *geometry_of(spec, adjoint), count, *itertools.chain.from_iterable(packs),
    ]  # fmt: skip
    numbers: Numbers = [
        *grid(min(work, multiprocessors)), together, own, *x.volume("x"), "packed", "y", "z", *size, there, box,
        padded, columns, count, *geometry_of(spec, adjoint), *epilogue_of(noise, clamped), outputs, work, blocks, tiles,
        size[0] * size[1] * size[2], *size, count, *itertools.chain.from_iterable(rows),
    ]  # fmt: skip
    launches = (
        Launch.make("pack", kind, pack_numbers, ["packed"]),
        Launch.make("product_sm90", kind, numbers, ["y", "z"]),
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
        Launch.make("weight_gradient_sm90", kind, multiply, ["workspace"]),
        Launch.make("reduce", 0, add, outs),
        splits * tiles * row_blocks * tile,
    )
