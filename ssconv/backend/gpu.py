"""Helpers of the GPU backends: allocation, devices, tiles of voxels. Nothing here computes."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.spec import Triple

FUSED = (1, 2, 4)  # numbers of branches that one block interleaves
MAX_VOXELS = 2**31 - 2**10  # of one sample's output: offsets have 64 bits, voxel numbers within a sample have 32


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which kernels launch on `device`; the current device may be another one."""
    if device.type == "cpu" or torch.accelerator.current_device_index() == device.index:
        return contextlib.nullcontext()
    return torch.accelerator.device_index(device.index)


def capturing() -> bool:
    """Whether the current stream is being captured by a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


@functools.cache
def architecture(device: torch.device) -> int:
    """Compute capability as 80, 90, ..; a GPU of another maker counts as 80."""
    if device.type != "cuda" or torch.version.hip:
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a GPU; the emulator counts as two."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def arithmetic(dtype: torch.dtype) -> str:
    """How a GEMM multiplies: "16bit"; for float32 "tf32" if PyTorch's own convolutions may use it, else "ieee"."""
    if dtype != torch.float32:
        return "16bit"
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def empty(like: Tensor, channels: int, size: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """(N, channels, *size), channels_last_3d, uninitialised."""
    shape = (like.shape[0], channels, *size)
    dtype = dtype or like.dtype
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last_3d)


def contiguous(t: Tensor | None) -> Tensor | None:
    """A scale, bias or noise as the kernels read it, by element number. These are small."""
    return None if t is None else t.contiguous()


def per_sample(noise: Tensor | None) -> int:
    """Stride in elements from one sample's noise to the next; 0 if all samples share it."""
    return 0 if noise is None or noise.shape[0] == 1 else noise.stride(0)


def too_large(size: Sequence[int]) -> bool:
    """Whether an output sample of extents `size` has more voxels than 32 bits can number."""
    return size[0] * size[1] * size[2] > MAX_VOXELS


def check_size(size: Sequence[int]) -> None:
    """Raises ValueError if an output sample of extents `size` has more voxels than 32 bits can number."""
    if too_large(size):
        raise ValueError(
            f"x: the GPU kernels number a sample's voxels with 32 bits; got an output of {tuple(size)} voxels; "
            "cut the volume into parts"
        )


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n, for n >= 1."""
    return 1 << (n - 1).bit_length()


@functools.lru_cache(maxsize=1024)
def choose_box(voxels: int, counts: Triple) -> tuple[int, int, int, int]:
    """Samples, D, H, W of a box of `voxels` that covers volumes of extents `counts` with little waste and small halo.

    A box has more than one sample only if a whole volume is smaller than the box. The batch size has no influence, so
    that another one needs no new kernel.
    """
    whole = [power_of_two(n) for n in counts]
    if whole[0] * whole[1] * whole[2] < voxels:
        return voxels // (whole[0] * whole[1] * whole[2]), whole[0], whole[1], whole[2]
    sizes = [2**i for i in range(voxels.bit_length())]
    boxes = [b for b in itertools.product(sizes, repeat=3) if b[0] * b[1] * b[2] == voxels]

    def cost(box: tuple[int, ...]) -> tuple[int, int]:
        covered, halo = 1, 1
        for n, b in zip(counts, box, strict=True):
            covered *= -(-n // b) * b
            halo *= b + 2
        return covered, halo

    return 1, *min(boxes, key=cost)


def count_boxes(counts: Sequence[int], box: Sequence[int]) -> int:
    """Number of boxes that cover `counts`."""
    return math.prod(-(-n // b) for n, b in zip(counts, box, strict=True))
