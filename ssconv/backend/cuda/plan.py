"""What a call of the CUDA backend launches, worked out once per kind of call and kept: pure functions of shapes.

A `Launch` is a kernel's call in numbers, in the order of csrc/cuda/calls.cpp, in which only the addresses are missing.
Planning takes hundreds of microseconds of Python, longer than many a kernel runs; filling in addresses takes few.

A product reads its input as it lies where a branch's channels are side by side in whole chunks of 16 bytes and need no
scale; up to 16 channels it reads singly; everything else is first arranged, scaled, into a tensor of such chunks.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssconv.backend.cuda.table import Config, Key
from ssconv.backend.gpu import FUSED, choose_box, count_boxes, first, power_of_two
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, Triple

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
THREADS = 128  # of every block
BRANCHES = 16  # the most of one launch
ROWS = 128  # voxels of a product's block; columns of a weight gradient's
ROW_BYTES = 128  # of a step of a product's inner dimension
SINGLY = 16  # channels of a branch up to which a product reads what is not in chunks
FILTER_SHARED = 64 * 1024  # bytes of shared memory of a block of upfirdn
MAX_GRID = 2**31 - 1  # blocks
MAX_BATCH_VOXELS = 2**31 - 1  # of a whole batch, where they are numbered together
KEPT = 4096  # plans of each kind

Numbers = list[int | str]  # a word is the address of the tensor of that name


@dataclass(frozen=True)
class Layout:
    """What a plan needs to know of a tensor (N, C, D, H, W). aligned: its address is a multiple of 16."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    aligned: bool

    @classmethod
    def of(cls, t: Tensor) -> Layout:
        return cls(t.dtype, tuple(t.shape), t.stride(), t.data_ptr() % 16 == 0)

    @classmethod
    def native(cls, dtype: torch.dtype, shape: Sequence[int]) -> Layout:
        """channels_last_3d, as results are."""
        n, c, d, h, w = shape
        return cls(dtype, (n, c, d, h, w), (c * d * h * w, 1, c * h * w, c * w, c), True)

    @property
    def per_chunk(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.dtype.itemsize

    @property
    def voxels(self) -> int:
        """Of a sample."""
        return self.shape[2] * self.shape[3] * self.shape[4]

    def volume(self, name: str) -> Numbers:
        """Address, strides, extents without C. An extent of 1 has stride 0, but for channels."""
        strides = [0 if extent == 1 else stride for extent, stride in zip(self.shape, self.stride, strict=True)]
        strides[1] = self.stride[1] if self.shape[1] > 1 else 1
        return [name, *strides, self.shape[0], *self.shape[2:]]

    def in_chunks(self, channels: int) -> bool:
        """Whether copies of 16 bytes can read branches of that many channels."""
        _, n, c, *space = self.volume("")[:6]
        size = self.per_chunk
        return self.aligned and c == 1 and channels % size == 0 and all(s % size == 0 for s in (n, *space))


@dataclass(frozen=True)
class Launch:
    """One kernel. numbers: the call's, with 0 where `places` puts the address of a tensor; the stream comes first.
    reads, writes: names of the tensors that the kernel touches."""

    kernel: str
    numbers: tuple[int, ...]
    places: tuple[tuple[int, str], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @classmethod
    def make(cls, kernel: str, kind: int, numbers: Numbers, writes: Sequence[str]) -> Launch:
        """kind: the arithmetic of a product, else the format of the tensors."""
        call = [0, kind, *numbers]
        places = tuple((i, n) for i, n in enumerate(call) if isinstance(n, str))
        names = tuple(dict.fromkeys(n for _, n in places))
        known = tuple(0 if isinstance(n, str) else n for n in call)
        return cls(kernel, known, places, tuple(n for n in names if n not in writes), tuple(writes))

    def filled(self, tensors: dict[str, Tensor | None], stream: int) -> list[int]:
        """The numbers with the tensors' addresses, 0 where there is none."""
        call = list(self.numbers)
        call[0] = stream
        for i, name in self.places:
            t = tensors[name]
            call[i] = 0 if t is None else t.data_ptr()
        return call


@dataclass(frozen=True)
class Noise:
    """dtype, and elements from one sample's noise to the next; 0 where all share one."""

    dtype: torch.dtype
    stride: int


def grid(x: int, y: int = 1, z: int = 1) -> Numbers:
    if x > MAX_GRID:
        raise ValueError(f"x: the GPU's grids end at {MAX_GRID} blocks; got {x}; cut the batch into parts")
    return [x, y, z]


def _companion(name: str, dtype: torch.dtype | None) -> Numbers:
    return [name, 0 if dtype is None else FORMATS[dtype]]


def epilogue_of(noise: Noise | None, clamped: bool) -> Numbers:
    dtype, stride = (None, 0) if noise is None else (noise.dtype, noise.stride)
    return ["out_scale", "bias", *_companion("noise", dtype), stride, int(clamped)]


def geometry_of(spec: ConvSpec, adjoint: bool) -> Numbers:
    return [*first(spec), *spec.stride, int(adjoint)]


def _groups(branches: Sequence[Triple]) -> Iterator[list[tuple[int, Triple]]]:
    """Numbers and extents of as many branches as a launch takes."""
    numbered = list(enumerate(branches))
    for start in range(0, len(numbered), BRANCHES):
        yield numbered[start : start + BRANCHES]


# ---------------------------------------------------------------------------------------------------------- arranging


@functools.lru_cache(KEPT)
def arrange(x: Layout, count: int) -> tuple[Launch, int]:
    """`source` times `in_scale`, with the channels of each of `count` branches side by side in whole chunks, zeros
    beyond them, to `arranged`; the launch, and the channels of a branch there."""
    channels = x.shape[1] // count
    size = x.per_chunk
    padded = -(-channels // size) * size
    voxels = x.shape[0] * x.voxels
    if voxels > MAX_BATCH_VOXELS:
        raise ValueError(
            f"x: tensors that are not channels_last_3d in steps of 16 bytes may have 2^31 voxels; got {voxels}; "
            "cut the batch into parts"
        )
    threads = voxels * count * padded // size
    numbers = [
        *grid(-(-threads // THREADS)), *x.volume("source"), "in_scale", "arranged", channels, padded, count,
        int(x.stride[1] != 1), voxels, *x.shape[2:],
    ]  # fmt: skip
    return Launch.make("pack_input", FORMATS[x.dtype], numbers, ["arranged"]), padded


# -------------------------------------------------------------------------------------- forward and input gradient


def _taps(extent: int, offset: int, begin: int, stride: int, adjoint: bool) -> int:
    """How many taps reach outputs of parity `offset` along one dimension."""
    if not adjoint:
        return extent
    tap = (offset + (extent - 1) // 2 - begin) % stride
    return (extent - tap + stride - 1) // stride


@functools.lru_cache(KEPT)
def product_key(
    x: Layout, scaled: bool, columns: int, spec: ConvSpec, groups: int, architecture: int, arithmetic: str
) -> tuple[Key, bool]:
    """The class of a product, and whether its input has to be arranged before."""
    count = len(spec.branches)
    channels = x.shape[1] // count
    apart = scaled or not x.in_chunks(channels)
    singly = apart and channels <= SINGLY
    together = count if count in FUSED and (count == 1 or groups > 1) else 1
    key = Key.of("product", architecture, arithmetic, together, columns, singly)
    return key, apart and not singly


@dataclass(frozen=True)
class Product:
    """launches: weights packed and multiplied, for each group of branches; `packed`: elements of the packed weights of
    each."""

    launches: tuple[tuple[Launch | None, Launch], ...]
    packed: tuple[int, ...]


class Call(NamedTuple):
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue.

    channels: of a branch, without what x is padded by. weights: their strides. swap: they are read with input and
    output channels exchanged.
    """

    x: Layout
    channels: int
    weights: tuple[tuple[int, ...], ...]
    swap: bool
    noise: Noise | None
    spec: ConvSpec
    adjoint: bool
    size: tuple[int, ...]
    columns: int
    groups: int
    clamped: bool
    kind: int


@functools.lru_cache(KEPT)
def product(call: Call, key: Key, config: Config) -> Product:
    """What a call launches on sm_80 and later."""
    x, channels, weights, swap, noise, spec, adjoint, size, columns, groups, clamped, kind = call
    count = len(spec.branches)
    padded = x.shape[1] // count
    together, own = key.branches, config.width // key.branches
    pace = spec.stride if adjoint else (1, 1, 1)
    parities = list(itertools.product(*(range(p) for p in pace)))
    counts = tuple(-(-n // p) for n, p in zip(size, pace, strict=True))
    box = choose_box(ROWS, counts)
    boxes, blocks = count_boxes((x.shape[0], *counts), box), -(-columns // own)
    strides = iter(weights)
    launches: list[tuple[Launch | None, Launch]] = []
    sizes: list[int] = []
    for group in _groups(spec.branches):
        total, rows, packs = 0, [], []
        for number, kernel in group:
            starts = []
            real = kernel not in (IDENTITY, ABSENT)
            for parity in parities:
                starts.append(total)
                if real:
                    taps = 1
                    for d in range(3):
                        taps *= _taps(kernel[d], parity[d], first(spec)[d], spec.stride[d], adjoint)
                    steps = -(-taps * padded * x.dtype.itemsize // ROW_BYTES)
                    total += blocks * steps * own * (ROW_BYTES // 16)
            row = [*kernel, number, *starts, *[0] * (8 - len(starts))]
            rows.append(row)
            stride = next(strides) if real else (0,) * 5
            swapped = (stride[1], stride[0], *stride[2:]) if swap else stride
            packs.append([f"weight{number}" if real else 0, *swapped, *row])
        numbers: Numbers = [
            *grid(boxes * blocks, len(parities), 1 if together == count else len(group)),
            together, config.width, int(key.singly), config.stages, int(config.cached), *x.volume("x"),
            "in_scale", "packed", "y", "z",
            *size, padded, columns, count, int(groups > 1), *geometry_of(spec, adjoint), *epilogue_of(noise, clamped),
            *(b.bit_length() - 1 for b in box), *(-(-n // b) for n, b in zip(counts, box[1:], strict=True)), blocks,
            len(group), *itertools.chain.from_iterable(rows),
        ]  # fmt: skip
        pack = None
        if total:
            pack_numbers: Numbers = [
                *grid(min(256, -(-total // THREADS)), len(group), len(parities)), "packed", channels, padded, columns,
                own, own // 8, 0, *geometry_of(spec, adjoint), len(group), *itertools.chain.from_iterable(packs),
            ]  # fmt: skip
            pack = Launch.make("pack_weights", kind, pack_numbers, ["packed"])
        launches.append((pack, Launch.make("conv_sm80", kind, numbers, ["y", "z"])))
        sizes.append(total * x.per_chunk)
    return Product(tuple(launches), tuple(sizes))


# -------------------------------------------------------------------------------------------------- weight gradient


@functools.lru_cache(KEPT)
def weights_key(rows: int, architecture: int, arithmetic: str) -> Key:
    return Key.of("weights", architecture, arithmetic, 1, rows, False)


@functools.lru_cache(KEPT)
def weights(
    low: Layout, high: Layout, numbers: tuple[int, ...], spec: ConvSpec, rows: int, columns: int, kind: int,
    config: Config,
) -> tuple[Launch, Launch, int]:  # fmt: skip
    """Gradients of the weights of the branches `numbers`: partial sums of `low` and `high` to `workspace`, then their
    sums to out0, out1, ..; the launches, and the workspace's elements. rows, columns: of a branch, unpadded."""
    count = len(spec.branches)
    voxels = low.shape[0] * low.voxels
    size = low.per_chunk
    block_rows = config.width
    row_blocks = -(-rows // block_rows)
    chunks = high.shape[1] // count // size
    parts, described, tiles = [], [], 0
    for i, number in enumerate(numbers):
        kernel = spec.branches[number]
        taps = kernel[0] * kernel[1] * kernel[2]
        parts.append([*kernel, number, tiles])
        described.append([f"out{i}", taps, tiles])
        tiles += -(-taps * chunks // (ROWS // size))
    steps = -(-voxels // (64 // low.dtype.itemsize))
    share = max(4, -(-steps // max(1, config.programs // (tiles * row_blocks))))
    splits = -(-steps // share)
    multiply: Numbers = [
        *grid(tiles * row_blocks, splits), block_rows, config.stages, *low.volume("low"), *high.volume("high"),
        low.shape[1] // count, high.shape[1] // count, "workspace", *geometry_of(spec, False), row_blocks,
        voxels, steps, share, *low.shape[2:], len(numbers), *itertools.chain.from_iterable(parts),
    ]  # fmt: skip
    tile = block_rows * ROWS
    add: Numbers = [
        *grid(tiles * row_blocks * tile // THREADS), "workspace", splits, row_blocks, block_rows, rows, columns, size,
        chunks, int(spec.transposed), len(numbers), *itertools.chain.from_iterable(described), tiles,
    ]  # fmt: skip
    outs = [f"out{i}" for i in range(len(numbers))]
    return (
        Launch.make("wgrad_sm80", kind, multiply, ["workspace"]),
        Launch.make("wgrad_reduce", 0, add, outs),
        splits * tiles * row_blocks * tile,
    )


# -------------------------------------------------------------------------------------- the epilogue and its backward


def _run_length(t: Layout, groups: int) -> int:
    """Channels of a thread: a chunk of each branch."""
    return t.per_chunk * (groups if groups in FUSED else 1)


@functools.lru_cache(KEPT)
def epilogue(z: Layout, noise: Noise | None, groups: int, clamped: bool) -> Launch:
    """`z` in branch order to `y`."""
    threads = -(-z.shape[1] // _run_length(z, groups))
    blocks = -(-z.voxels * threads // THREADS)
    numbers = [
        *grid(z.shape[0] * blocks), *z.volume("z"), "y", *epilogue_of(noise, clamped), z.shape[1], groups, threads,
        blocks, *z.shape[2:],
    ]  # fmt: skip
    return Launch.make("epilogue", FORMATS[z.dtype], numbers, ["y"])


@functools.lru_cache(KEPT)
def epilogue_backward(gy: Layout, y: Layout, z: Layout | None, groups: int, clamped: bool) -> tuple[Launch, int]:
    """`gz` in branch order, and sums per block of voxels; the launch, and the blocks of a sample."""
    lanes = min(32, power_of_two(-(-y.shape[1] // _run_length(y, groups))))
    per_block = min(256, 16 * THREADS // lanes)
    blocks = -(-y.voxels // per_block)
    numbers = [
        *grid(y.shape[0] * blocks), *gy.volume("gy"), *y.volume("y"), *([0] * 10 if z is None else z.volume("z")),
        "gz", "out_scale", "bias_sums", "scale_sums", "noise_sums", int(clamped), y.shape[1], groups, lanes, per_block,
        blocks, *y.shape[2:],
    ]  # fmt: skip
    writes = ["gz", "bias_sums", "scale_sums", "noise_sums"]
    return Launch.make("epilogue_backward", FORMATS[y.dtype], numbers, writes), blocks


# --------------------------------------------------------------------------------------------------------- resampling


@functools.lru_cache(KEPT)
def upfirdn(
    x: Layout,
    taps: tuple[tuple[int, torch.dtype] | None, ...],
    up: Triple,
    down: Triple,
    padding: tuple[int, ...],
    size: tuple[int, ...],
) -> Launch | None:
    """`x` to `y` of extents `size` in one pass; None where no tile fits into shared memory. taps: length and dtype per
    dimension."""
    lengths = [1 if t is None else t[0] for t in taps]
    width = min(32, -(-x.shape[1] // 8) * 8)
    tile = _filter_tile(size, lengths, up, down, width)
    if tile is None:
        return None
    source = _source(tile, lengths, up, down)
    counts = [-(-x.shape[1] // width), *(-(-n // t) for n, t in zip(size[::-1], tile[::-1], strict=True))]
    filters = [_companion(f"taps{d}", None if t is None else t[1]) for d, t in enumerate(taps)]
    numbers = [
        *grid(x.shape[0] * counts[0] * counts[1] * counts[2] * counts[3]), _shared(tile, source, width),
        *x.volume("x"), "y", *size, x.shape[1], *itertools.chain.from_iterable(filters), *lengths, *up, *down,
        *padding[::2], *tile, *source, width, *counts,
    ]  # fmt: skip
    return Launch.make("upfirdn", FORMATS[x.dtype], numbers, ["y"])


def _source(tile: Sequence[int], lengths: Sequence[int], up: Sequence[int], down: Sequence[int]) -> list[int]:
    """Voxels of the input that a tile of the output needs at most."""
    return [((t - 1) * s + n - 1) // u + 1 for t, n, u, s in zip(tile, lengths, up, down, strict=True)]


def _shared(tile: Sequence[int], source: Sequence[int], width: int) -> int:
    """Bytes of a block: the input or its result along H, and its result along W."""
    return source[0] * (max(source[1] * source[2], tile[1] * tile[2]) + source[1] * tile[2]) * width * 4


def _filter_tile(
    size: Sequence[int], lengths: Sequence[int], up: Sequence[int], down: Sequence[int], width: int
) -> list[int] | None:
    """The largest tile, starting from 4 x 8 x 8, whose input fits into shared memory; None where none does."""
    tile = [min(t, n) for t, n in zip((4, 8, 8), size, strict=True)]
    while True:
        source = _source(tile, lengths, up, down)
        if _shared(tile, source, width) <= FILTER_SHARED:
            return tile
        largest = max(range(3), key=lambda d: tile[d])
        if tile[largest] == 1:
            return None
        tile[largest] = -(-tile[largest] // 2)


ARITHMETIC = {"bf16": 0, "f16": 1, "tf32": 2, "ieee": 3}


def arithmetic_kind(dtype: torch.dtype, arithmetic: str) -> int:
    """How a product's kernels number it."""
    return {torch.bfloat16: 0, torch.float16: 1}.get(dtype, ARITHMETIC.get(arithmetic, 3))
