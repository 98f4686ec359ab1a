"""The Triton backend: grids, configurations and launches of the kernels in `triton_kernels`.

The same functions as `reference` has, for float32, bfloat16 and float16, on the GPUs that Triton reaches; with
TRITON_INTERPRET=1 in the environment before the first import, on CPU tensors (slow: for tests and for learning), where
bfloat16 is left out since Triton's interpreter multiplies it wrongly (triton#11584).

float32 products use TF32 where PyTorch's own convolutions may (`torch.backends.cudnn.conv.fp32_precision`, or
`torch.backends.cudnn.allow_tf32`), else exact float32. Nothing here waits for the GPU; a CUDA graph can capture every
call whose kernels were compiled by a call before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssconv.backend.gpu import (
    FUSED,
    architecture,
    arithmetic,
    check_size,
    choose_box,
    contiguous,
    count_boxes,
    empty,
    first,
    on,
    per_sample,
    power_of_two,
)
from ssconv.backend.triton import kernels
from ssconv.backend.triton import table as triton_table
from ssconv.backend.triton.table import Config
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, Triple

INTERPRETED = not isinstance(kernels.product_kernel, triton.JITFunction)
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu",) if INTERPRETED else ("cuda", "xpu")
PROGRAMS = 512  # about what a weight gradient is split into, so that every multiprocessor has work
VOXELS, CHANNELS = 32, 64  # tile of the memory-bound kernels


# ---------------------------------------------------------------------------------------------- what launches need


def _precision(dtype: torch.dtype) -> str:
    """As tl.dot has it; for 16-bit tensors it is of no account."""
    return "ieee" if arithmetic(dtype) == "ieee" else "tf32"


def _before(branches: Sequence[Triple]) -> tuple[int, ...]:
    """How many taps with weights come before each branch's."""
    taps = [max(0, b[0]) * max(0, b[1]) * max(0, b[2]) for b in branches]
    return tuple(itertools.accumulate(taps, initial=0))


def _pack(weights: Sequence[Tensor], swap: bool) -> Tensor:
    """The weights as (tap, input channel, output channel), branch after branch, the last axis contiguous.

    swap: the weights' output channels are the product's input channels.
    """
    order = (2, 3, 4, 0, 1) if swap else (2, 3, 4, 1, 0)
    packed = weights[0].new_empty(sum(w.numel() for w in weights))
    start = 0
    for w in weights:
        axes = w.permute(order)
        packed[start : start + w.numel()].view(axes.shape).copy_(axes)
        start += w.numel()
    return packed


def _describable(x: Tensor, channels: int) -> bool:
    """Whether tensor descriptors can read branches of that many channels: channels side by side, 16-byte steps."""
    item = x.element_size()
    n, c, *space = x.stride()
    return (
        x.dtype.itemsize <= 4
        and c == 1
        and channels * item % 16 == 0
        and x.data_ptr() % 16 == 0
        and all(s > 0 and s * item % 16 == 0 for s in (n, *space))
    )


def _descriptor(x: Tensor, first: int, channels: int, block: Sequence[int]) -> TensorDescriptor:
    """Some channels of x as (N, D, H, W, C)."""
    view = x.narrow(1, first, channels).permute(0, 2, 3, 4, 1)
    return TensorDescriptor(view, list(view.shape), list(view.stride()), list(block))


def _run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], **options: Any) -> None:
    """Every launch goes through here."""
    kernel[grid](*arguments, **options)


def _launch(
    key: triton_table.Key,
    kernel: Any,
    prepare: Callable[[Config], tuple[tuple[int, int, int], tuple[Any, ...]]],
    device: torch.device,
) -> None:
    """Launches the kernel with the table's configuration, or with SSCONV_AUTOTUNE=1 after a search for it. prepare:
    grid and arguments for a configuration."""

    def run(config: Config) -> None:
        grid, arguments = prepare(config)
        with on(device):
            _run(kernel, grid, arguments, num_warps=config.warps)

    def seconds(function: Callable[[], None]) -> float:
        with on(device):
            return triton.testing.do_bench(function, warmup=5, rep=20, return_mode="median")

    run(triton_table.TABLE.choose(key, run, seconds))


# -------------------------------------------------------------------------------------- forward and input gradient


def _product(
    x: Tensor,
    weights: Sequence[Tensor],
    swap: bool,
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    spec: ConvSpec,
    adjoint: bool,
    size: Sequence[int],
    groups: int,
    slope: float,
    gain: float,
    clamp: float | None,
    save_z: bool,
) -> tuple[Tensor, Tensor | None]:
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue."""
    count = len(spec.branches)
    columns = (weights[0].shape[1 if swap else 0] * count if len(weights) else x.shape[1]) // count
    cin = x.shape[1] // count
    y = empty(x, columns * count, size)
    z = torch.empty_like(y) if save_z else None
    check_size(size)
    if y.numel() == 0:
        return y, z
    in_scale, out_scale, noise, bias = (contiguous(t) for t in (in_scale, out_scale, noise, bias))
    packed = _pack(weights, swap) if len(weights) else x.new_empty(0)
    pace = spec.stride if adjoint else (1, 1, 1)
    counts = tuple(-(-n // p) for n, p in zip(size, pace, strict=True))
    fused = count in FUSED and (count == 1 or groups > 1)
    smooth = adjoint or spec.stride == (1, 1, 1)
    key = triton_table.Key.of(
        "product", architecture(x.device), arithmetic(x.dtype), count if fused else 1, columns,
        smooth and _describable(x, cin),
    )  # fmt: skip

    def prepare(c: Config) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
        box = choose_box(c.voxels, counts)
        blocks = count_boxes((x.shape[0], *counts), box) * -(-columns // c.columns)
        flat = cin < c.depth and not c.descriptors
        descs = None
        if c.descriptors:
            descs = tuple(_descriptor(x, s * cin, cin, (*box, c.depth)) for s in range(count))
        return (blocks, pace[0] * pace[1] * pace[2], 1 if fused else count), (
            x, descs, packed, in_scale, bias, out_scale, noise, y, z,
            x.shape[0], *x.shape[2:], x.stride(), *size, per_sample(noise), slope, gain, clamp, cin, columns,
            spec.branches, _before(spec.branches), first(spec), spec.stride, adjoint, groups > 1, fused,
            box, c.columns, c.depth, flat, c.stages, _precision(x.dtype),
        )  # fmt: skip

    _launch(key, kernels.product_kernel, prepare, x.device)
    return y, z


def convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    spec: ConvSpec,
    groups: int,
    slope: float,
    gain: float,
    clamp: float | None,
    save_z: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order where it is asked for."""
    return _product(
        x, weights, False, bias, in_scale, out_scale, noise, spec, spec.transposed, spec.output_size(x.shape[2:]),
        groups, slope, gain, clamp, save_z,
    )  # fmt: skip


def input_grad(
    g: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, spec: ConvSpec, size: Sequence[int]
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order: the same kernel the other way round."""
    return _product(
        g, weights, True, None, None, in_scale, None, spec, not spec.transposed, size, 1, 1.0, 1.0, None, False
    )[0]


# -------------------------------------------------------------------------------------------------- weight gradient


def weight_grad(g: Tensor, x: Tensor, in_scale: Tensor | None, spec: ConvSpec) -> list[Tensor]:
    """Gradients of the weights, float32, one per branch that has one, for g in branch order."""
    count = len(spec.branches)
    in_scale = contiguous(in_scale)
    low, low_scale, high, high_scale = (x, in_scale, g, None) if spec.transposed else (g, None, x, in_scale)
    rows, columns = low.shape[1] // count, high.shape[1] // count
    before = _before(spec.branches)
    taps = before[-1]
    low_size = (low.shape[2], low.shape[3], low.shape[4])
    size = (low.shape[0], *low_size)
    sums = low.new_zeros((1, taps, rows, columns), dtype=torch.float32)
    if taps and low.numel() and high.numel():
        check_size(low.shape[2:])
        ready = spec.stride == (1, 1, 1) and _describable(low, rows) and _describable(high, columns)
        key = triton_table.Key.of("weights", architecture(x.device), arithmetic(x.dtype), 1, columns, ready)

        def prepare(c: Config) -> tuple[tuple[int, int, int], tuple[Any, ...]]:
            nonlocal sums
            box = choose_box(c.voxels, low_size)
            boxes = count_boxes(size, box)
            blocks = -(-rows // c.depth) * -(-columns // c.columns)
            share = -(-boxes // max(1, PROGRAMS // (blocks * taps)))
            splits = -(-boxes // share)
            sums = low.new_empty((splits, taps, rows, columns), dtype=torch.float32)
            descs: tuple[Any, Any] = (None, None)
            if c.descriptors:
                descs = (
                    _descriptor(low, 0, low.shape[1], (*box, c.depth)),
                    _descriptor(high, 0, high.shape[1], (*box, c.columns)),
                )
            return (blocks, taps, splits), (
                low, descs[0], low_scale, high, descs[1], high_scale, sums,
                *size, low.stride(), *high.shape[2:], high.stride(), rows, columns, boxes, share,
                spec.branches, before, first(spec), spec.stride,
                box, c.depth, c.columns, c.stages, _precision(x.dtype),
            )  # fmt: skip

        _launch(key, kernels.weight_kernel, prepare, x.device)
    total = sums[0] if sums.shape[0] == 1 else sums.sum(0)
    grads = []
    for s, branch in enumerate(spec.branches):
        if branch not in (IDENTITY, ABSENT):
            part = total[before[s] : before[s + 1]].view(*branch, rows, columns)
            grads.append(part.permute(4, 3, 0, 1, 2) if spec.transposed else part.permute(3, 4, 0, 1, 2))
    return grads


# -------------------------------------------------------------------------------------- the epilogue and its backward


def _dense(t: Tensor) -> bool:
    """Whether a sample's voxels follow each other at one distance."""
    _, _, d, h, w = t.stride()
    return (t.shape[3] == 1 or h == t.shape[4] * w) and (t.shape[2] == 1 or d == t.shape[3] * t.shape[4] * w)


def _row_stride(t: Tensor) -> tuple[int, ...]:
    """The strides, with one for W that is also the distance of voxels where `_dense` holds."""
    strides = list(t.stride())
    if t.shape[4] == 1:
        strides[4] = strides[3] if t.shape[3] > 1 else strides[2]
    return tuple(strides)


def _block_channels(channels: int, groups: int) -> int:
    return max(min(CHANNELS, power_of_two(channels)), groups if groups in FUSED else 1)


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    groups: int,
    slope: float,
    gain: float,
    clamp: float | None,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias))."""
    y = empty(z, z.shape[1], z.shape[2:])
    check_size(z.shape[2:])
    if y.numel() == 0:
        return y
    out_scale, noise, bias = (contiguous(t) for t in (out_scale, noise, bias))
    channels = z.shape[1]
    block = _block_channels(channels, groups)
    grid = (z.shape[0] * triton.cdiv(y[0, 0].numel(), VOXELS), triton.cdiv(channels, block))
    with on(z.device):
        arguments = (
            z, bias, out_scale, noise, y, *z.shape[2:], _row_stride(z), per_sample(noise), slope, gain, clamp,
            channels, groups, _dense(z), VOXELS, block,
        )  # fmt: skip
        _run(kernels.epilogue_kernel, grid, arguments)
    return y


def epilogue_backward(
    gy: Tensor,
    y: Tensor,
    z: Tensor | None,
    out_scale: Tensor | None,
    groups: int,
    slope: float,
    gain: float,
    clamp: float | None,
    bias_grad: bool,
    noise_batch: int,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for z (branch order), bias, noise and out_scale; as `reference.epilogue_backward`."""
    gz = empty(y, y.shape[1], y.shape[2:])
    check_size(y.shape[2:])
    batch, channels, *size = y.shape
    voxels = size[0] * size[1] * size[2]
    block = VOXELS // 2 if groups == 4 else VOXELS  # four branches take more registers
    blocks = triton.cdiv(voxels, block)
    wide = {"dtype": torch.float32, "device": y.device}
    bias_sums = torch.zeros((batch, blocks, channels), **wide) if bias_grad else None
    noise_sums = torch.zeros((batch, 1, *size), **wide) if noise_batch >= 0 else None
    scale_sums = torch.zeros((batch, blocks, channels), **wide) if z is not None else None
    if gz.numel():
        out_scale = contiguous(out_scale)
        bound = 0.0  # the output was rounded to its dtype, and so must the bound be that it is compared with
        if clamp is not None:
            bound = float(torch.tensor(clamp, dtype=y.dtype))
        other = y if z is None else z
        with on(y.device):
            arguments = (
                gy, y, z, out_scale, gz, bias_sums, noise_sums, scale_sums,
                *size, _row_stride(gy), _row_stride(y), _row_stride(other), slope, gain, bound, channels,
                groups, _dense(gy), _dense(y), _dense(other), clamp is not None, block,
                _block_channels(channels, groups),
            )  # fmt: skip
            _run(kernels.epilogue_backward_kernel, (batch * blocks,), arguments)
    gbias = None if bias_sums is None else bias_sums.sum((0, 1))
    if noise_sums is not None and noise_batch == 1 and batch != 1:
        noise_sums = noise_sums.sum(0, keepdim=True)
    return gz, gbias, noise_sums, None if scale_sums is None else scale_sums.sum(1)


# --------------------------------------------------------------------------------------------------------- resampling


def upfirdn(x: Tensor, taps: Sequence[Tensor | None], up: Triple, down: Triple, padding: Sequence[int]) -> Tensor:
    """Zero-insert, pad or crop, convolve with the separable FIR filter, keep every down-th sample.

    Where the taps that meet a sample are many, the filter along D goes first, in a pass of its own: one more tensor
    moved, and counts_d + counts_h * counts_w loads instead of their product.
    """
    dtype = x.dtype
    lengths = [1 if t is None else t.shape[0] for t in taps]
    counts = [-(-n // u) for n, u in zip(lengths, up, strict=True)]
    if counts[0] > 1 and counts[0] * counts[1] * counts[2] > 16:
        x = _upfirdn(
            x, (taps[0], None, None), (up[0], 1, 1), (down[0], 1, 1), (*padding[:2], 0, 0, 0, 0), torch.float32
        )
        taps, up, down, padding = (None, *taps[1:]), (1, *up[1:]), (1, *down[1:]), (0, 0, *padding[2:])
    return _upfirdn(x, taps, up, down, padding, dtype)


def _upfirdn(
    x: Tensor,
    taps: Sequence[Tensor | None],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    lengths = tuple(1 if t is None else t.shape[0] for t in taps)
    size = [
        (x.shape[2 + d] * up[d] + padding[2 * d] + padding[2 * d + 1] - lengths[d] + down[d]) // down[d]
        for d in range(3)
    ]
    y = empty(x, x.shape[1], size, dtype)
    check_size(size)
    if y.numel() == 0:
        return y
    channels = x.shape[1]
    block = min(CHANNELS, power_of_two(channels))
    voxels = min(VOXELS * CHANNELS // block, 128)  # sm_80 spills with fewer elements per thread
    grid = (x.shape[0] * triton.cdiv(y[0, 0].numel(), voxels), triton.cdiv(channels, block))
    filters = [contiguous(t) for t in taps]
    with on(x.device):
        arguments = (
            x, *filters, y, *x.shape[2:], x.stride(), *size, *padding[::2], channels, tuple(up), tuple(down), lengths,
            voxels, block,
        )  # fmt: skip
        _run(kernels.upfirdn_kernel, grid, arguments)
    return y
