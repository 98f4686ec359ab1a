"""What a call of the CUDA backend launches: a function per kernel, which fills the kernel's struct by field names.

Plans depend on shapes, strides and options alone. They are worked out once per kind of call and kept, since planning
takes hundreds of microseconds of Python, longer than many a kernel runs. A call then fills in addresses.

The kernels that memory limits are planned here, the convolutions and their weight gradients in sm80.py, sm90.py and
sm90_halo.py.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssconv.backend.cuda import structs
from ssconv.backend.cuda.structs import Companion, Divider, Grid, Volume
from ssconv.backend.gpu import FUSED, power_of_two
from ssconv.spec import BORDERS, Geometry, Triple, folded_slices

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
THREADS = 128  # of every block
FILTER_SHARED = 64 * 1024  # bytes of shared memory of a block of upfirdn
MAX_GRID = 2**31 - 1  # blocks
MAX_BATCH_VOXELS = 2**31 - 1  # of a whole batch, where they are numbered together
KEPT = 4096  # plans of each kind

_ADDRESS, _FLOAT = struct.Struct("=Q"), struct.Struct("=f")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


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
        """The layout of results, channels_last_3d."""
        n, c, d, h, w = shape
        return cls(dtype, (n, c, d, h, w), (c * d * h * w, 1, c * h * w, c * w, c), True)

    @property
    def per_chunk(self) -> int:
        """Elements of 16 bytes."""
        return 16 // self.dtype.itemsize

    @property
    def voxels(self) -> int:
        """Voxels of a sample."""
        return self.shape[2] * self.shape[3] * self.shape[4]

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of n, c, d, h, w; 0 where the extent is 1, but 1 of a single channel."""
        n, c, *space = (0 if extent == 1 else s for extent, s in zip(self.shape, self.stride, strict=True))
        return n, c if self.shape[1] > 1 else 1, *space

    def volume(self) -> Volume:
        """The kernels' view of the tensor, without its address."""
        return Volume(stride=self.strides, size=(self.shape[0], *self.shape[2:]))

    def dividers(self) -> dict[str, Divider]:
        """What takes a voxel's number apart: fields d, h, w."""
        return dividers(self.shape[2:])

    def in_chunks(self, channels: int) -> bool:
        """Whether copies of 16 bytes can read branches of that many channels."""
        n, c, *space = self.strides
        size = self.per_chunk
        return self.aligned and c == 1 and channels % size == 0 and all(s % size == 0 for s in (n, *space))


@dataclass(frozen=True)
class Launch:
    """One kernel's call.

    params: its struct, which nobody changes. bytes: the struct's. addresses, floats: offsets in them, and the names of
    the tensors and numbers that a call puts there. reads, writes: names of the tensors that the kernel touches.
    """

    kernel: str
    params: ctypes.Structure
    bytes: bytes
    addresses: tuple[tuple[int, str], ...]
    floats: tuple[tuple[int, str], ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @classmethod
    def make(
        cls,
        kernel: str,
        params: ctypes.Structure,
        *,
        reads: Mapping[str, str],
        writes: Mapping[str, str],
        floats: Mapping[str, str] | None = None,
    ) -> Launch:
        """reads, writes: fields of the struct and the tensors whose addresses they hold. floats: fields and numbers."""
        kind = type(params)
        addresses = tuple((structs.offset_of(kind, field), name) for field, name in (reads | writes).items())
        numbers = tuple((structs.offset_of(kind, field), name) for field, name in (floats or {}).items())
        return cls(
            kernel, params, bytes(params), addresses, numbers, tuple(reads.values()), tuple(writes.values())
        )  # fmt: skip

    def filled(self, tensors: Mapping[str, Tensor | None], floats: Mapping[str, float]) -> bytes:
        """The struct's bytes with the tensors' addresses, 0 where there is none, and the floats."""
        call = bytearray(self.bytes)
        for offset, name in self.addresses:
            if (t := tensors[name]) is not None:
                _ADDRESS.pack_into(call, offset, t.data_ptr())
        for offset, name in self.floats:
            _FLOAT.pack_into(call, offset, floats[name])
        return bytes(call)


@dataclass(frozen=True)
class Noise:
    """dtype, and elements from one sample's noise to the next; 0 where all share one."""

    dtype: torch.dtype
    stride: int


def grid(x: int, y: int = 1, z: int = 1) -> Grid:
    if x > MAX_GRID:
        raise ValueError(f"x: the GPU's grids end at {MAX_GRID} blocks; got {x}; cut the batch into parts")
    return Grid(x, y, z)


def dividers(extents: Sequence[int]) -> dict[str, Divider]:
    """Fields d, h, w for extents D, H, W."""
    return dict(zip("dhw", map(Divider.by, extents), strict=True))


def geometry_of(geometry: Geometry, adjoint: bool) -> structs.Geometry:
    return structs.Geometry(geometry.first_centre(), geometry.stride, adjoint)


def epilogue_of(noise: Noise | None, clamped: bool) -> structs.Epilogue:
    if noise is None:
        return structs.Epilogue(clamped=clamped)
    return structs.Epilogue(noise=Companion(format=FORMATS[noise.dtype]), noise_stride=noise.stride, clamped=clamped)


# The fields of an epilogue that a call fills.
EPILOGUE_READS = {"epilogue.scale": "out_scale", "epilogue.bias": "bias", "epilogue.noise.data": "noise"}
EPILOGUE_FLOATS = {f"epilogue.{name}": name for name in ("slope", "gain", "clamp")}


# ---------------------------------------------------------------------------------------------------- packing the input


def packed_layout(x: Layout, branches: int) -> Layout:
    """The layout of `packed_input`."""
    padded = ceil_div(x.shape[1] // branches, x.per_chunk) * x.per_chunk
    return Layout.native(x.dtype, (x.shape[0], branches * padded, *x.shape[2:]))


def readable_layout(x: Layout, branches: int) -> Layout:
    """The layout in which copies of 16 bytes read a tensor: its own, or that of `packed_input`."""
    return x if x.in_chunks(x.shape[1] // branches) else packed_layout(x, branches)


@functools.lru_cache(KEPT)
def pack_input(x: Layout, branches: int) -> tuple[Launch, int]:
    """Copies `source` times `in_scale` to `packed_input`, where the channels of each branch lie side by side in whole
    chunks with zeros beyond them; the launch, and the channels of a branch there."""
    channels = x.shape[1] // branches
    padded = ceil_div(channels, x.per_chunk) * x.per_chunk
    voxels = x.shape[0] * x.voxels
    if voxels > MAX_BATCH_VOXELS:
        raise ValueError(
            f"x: tensors that are not channels_last_3d in steps of 16 bytes may have 2^31 voxels; got {voxels}; "
            "cut the batch into parts"
        )
    params = structs.PackInputParams(
        grid=grid(ceil_div(voxels * branches * padded // x.per_chunk, THREADS)),
        format=FORMATS[x.dtype],
        x=x.volume(),
        channels=channels,
        padded_channels=padded,
        branches=branches,
        voxels_first=x.stride[1] != 1,
        voxels=voxels,
        **x.dividers(),
    )
    reads = {"x.data": "source", "scale": "in_scale"}
    return Launch.make("pack_input", params, reads=reads, writes={"out": "packed_input"}), padded


# -------------------------------------------------------------------------------------- the epilogue and its backward


def _run_length(t: Layout, groups: int) -> int:
    """Channels of a thread: a chunk of each branch."""
    return t.per_chunk * (groups if groups in FUSED else 1)


@functools.lru_cache(KEPT)
def epilogue(z: Layout, noise: Noise | None, groups: int, clamped: bool) -> Launch:
    """`z` in branch order to `y`."""
    threads = ceil_div(z.shape[1], _run_length(z, groups))
    blocks = ceil_div(z.voxels * threads, THREADS)
    params = structs.EpilogueParams(
        grid=grid(z.shape[0] * blocks),
        format=FORMATS[z.dtype],
        z=z.volume(),
        epilogue=epilogue_of(noise, clamped),
        channels=z.shape[1],
        groups=groups,
        threads=threads,
        blocks=Divider.by(blocks),
        **z.dividers(),
    )
    reads = {"z.data": "z", **EPILOGUE_READS}
    return Launch.make("epilogue", params, reads=reads, writes={"y": "y"}, floats=EPILOGUE_FLOATS)


@functools.lru_cache(KEPT)
def epilogue_backward(gy: Layout, y: Layout, z: Layout | None, groups: int, clamped: bool) -> tuple[Launch, int]:
    """`gz` in branch order, and sums per block of voxels; the launch, and the blocks of a sample."""
    lanes = min(32, power_of_two(ceil_div(y.shape[1], _run_length(y, groups))))
    voxels_per_block = min(256, 16 * THREADS // lanes)
    blocks = ceil_div(y.voxels, voxels_per_block)
    params = structs.EpilogueBackwardParams(
        grid=grid(y.shape[0] * blocks),
        format=FORMATS[y.dtype],
        gy=gy.volume(),
        y=y.volume(),
        z=Volume() if z is None else z.volume(),
        clamped=clamped,
        channels=y.shape[1],
        groups=groups,
        lanes=lanes,
        voxels_per_block=voxels_per_block,
        blocks=Divider.by(blocks),
        **y.dividers(),
    )
    reads = {"gy.data": "gy", "y.data": "y", "scale": "out_scale"}
    if z is not None:
        reads["z.data"] = "z"
    writes = {name: name for name in ("gz", "bias_sums", "scale_sums", "noise_sums")}
    floats = {name: name for name in ("slope", "gain", "clamp")}
    return Launch.make("epilogue_backward", params, reads=reads, writes=writes, floats=floats), blocks


# --------------------------------------------------------------------------------------------------------- resampling


@functools.lru_cache(KEPT)
def upfirdn(
    x: Layout,
    taps: tuple[tuple[int, torch.dtype] | None, ...],
    up: Triple,
    down: Triple,
    padding: tuple[int, ...],
    border: str,
    size: tuple[int, ...],
) -> Launch | None:
    """`x` to `y` of extents `size` in one pass; None where no tile fits into shared memory. taps: length and dtype per
    dimension."""
    lengths = tuple(1 if t is None else t[0] for t in taps)
    block_channels = min(32, ceil_div(x.shape[1], 8) * 8)
    folded = folded_slices(x.shape[2], size[0], lengths[0], up[0], down[0], padding[0]) if border == "fold" else (0, 0)
    tile = _filter_tile(size, sum(folded), lengths, up, down, block_channels)
    if tile is None:
        return None
    input_tile = _input_tile(tile, sum(folded), lengths, up, down)
    channel_blocks = ceil_div(x.shape[1], block_channels)
    counts = (channel_blocks, *(ceil_div(n, t) for n, t in zip(size[::-1], tile[::-1], strict=True)))
    params = structs.UpfirdnParams(
        grid=grid(x.shape[0] * counts[0] * counts[1] * counts[2] * counts[3]),
        format=FORMATS[x.dtype],
        shared_bytes=_shared(tile, input_tile, block_channels),
        x=x.volume(),
        size=size,
        channels=x.shape[1],
        taps=tuple(Companion(format=0 if t is None else FORMATS[t[1]]) for t in taps),
        length=lengths,
        up=up,
        down=down,
        padding=padding[::2],
        border=BORDERS.index(border),
        folded=folded,
        tile=tuple(tile),
        input_tile=tuple(input_tile),
        block_channels=block_channels,
        blocks=tuple(map(Divider.by, counts)),
    )
    reads = {"x.data": "x", **{f"taps[{d}].data": f"taps{d}" for d in range(3)}}
    return Launch.make("upfirdn", params, reads=reads, writes={"y": "y"})


def _input_tile(
    tile: Sequence[int], folded: int, lengths: Sequence[int], up: Sequence[int], down: Sequence[int]
) -> list[int]:
    """Voxels of the input that a tile of the output needs at most; `folded` slices more are added to its border."""
    outputs = (tile[0] + folded, *tile[1:])
    return [((t - 1) * s + n - 1) // u + 1 for t, n, u, s in zip(outputs, lengths, up, down, strict=True)]


def _shared(tile: Sequence[int], input_tile: Sequence[int], block_channels: int) -> int:
    """Bytes of a block: the input or its result along H, and its result along W."""
    d, h, w = input_tile
    return d * (max(h * w, tile[1] * tile[2]) + h * tile[2]) * block_channels * 4


def _filter_tile(
    size: Sequence[int], folded: int, lengths: Sequence[int], up: Sequence[int], down: Sequence[int],
    block_channels: int,
) -> list[int] | None:  # fmt: skip
    """The largest tile, starting from 4 x 8 x 8, whose input fits into shared memory; None where none does."""
    tile = [min(t, n) for t, n in zip((4, 8, 8), size, strict=True)]
    while True:
        input_tile = _input_tile(tile, folded, lengths, up, down)
        if _shared(tile, input_tile, block_channels) <= FILTER_SHARED:
            return tile
        largest = max(range(3), key=lambda d: tile[d])
        if tile[largest] == 1:
            return None
        tile[largest] = ceil_div(tile[largest], 2)
