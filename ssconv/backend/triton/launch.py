"""The Triton backend: grids, configurations and launches of the kernels in `kernels`.

The same functions as `reference` has, for float32, bfloat16 and float16, on the GPUs that Triton reaches; with
TRITON_INTERPRET=1 in the environment before the first import, on CPU tensors (slow: for tests and for learning), where
bfloat16 is left out since Triton's interpreter multiplies it wrongly (triton#11584).

float32 products use TF32 where PyTorch's own convolutions may (`torch.backends.cudnn.conv.fp32_precision`, or
`torch.backends.cudnn.allow_tf32`), else exact float32. Nothing here waits for the GPU; a CUDA graph can capture
every call whose kernels an earlier call has compiled.
"""

from __future__ import annotations

import functools
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
    on,
    per_sample,
    power_of_two,
)
from ssconv.backend.triton import kernels
from ssconv.backend.triton.table import TABLE, Config, Key
from ssconv.spec import ABSENT, IDENTITY, Epilogue, Geometry, Triple, folded_slices, upfirdn_size

INTERPRETED = not isinstance(kernels.conv_kernel, triton.JITFunction)
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.bfloat16, torch.float16)
DEVICES = ("cpu",) if INTERPRETED else ("cuda", "xpu")
PROGRAMS = 512  # a weight gradient is split into about so many, for every multiprocessor to have work
VOXELS, CHANNELS = 32, 64  # tile of the memory-bound kernels

Arguments = dict[str, Any]


# ----------------------------------------------------------------------------------------------------- launch helpers


def _precision(dtype: torch.dtype) -> str:
    """tl.dot's input_precision; it has no effect on 16-bit tensors."""
    return "ieee" if arithmetic(dtype) == "ieee" else "tf32"


def _tap_offsets(branches: Sequence[Triple]) -> tuple[int, ...]:
    """Per branch, how many taps with weights come before its own; then how many there are."""
    taps = [max(0, b[0]) * max(0, b[1]) * max(0, b[2]) for b in branches]
    return tuple(itertools.accumulate(taps, initial=0))


@functools.lru_cache(maxsize=1024)
def _geometry_arguments(geometry: Geometry) -> Arguments:
    """The arguments of a kernel that describe the branches and their windows."""
    return {
        "EXTENTS": geometry.branches,
        "TAP_OFFSETS": _tap_offsets(geometry.branches),
        "FIRST": geometry.first_centre(),
        "STRIDE": geometry.stride,
    }


def _pack(weights: Sequence[Tensor], swap: bool) -> Tensor:
    """The weights as (tap, input channel, output channel), branch after branch, in one contiguous tensor.

    swap: the kernel's input channels are the weights' output channels, as in an input gradient.
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


def _run(kernel: Any, grid: tuple[int, ...], arguments: Arguments, **options: Any) -> None:
    """Launches a kernel; every launch goes through here."""
    kernel[grid](**arguments, **options)


def _launch(
    key: Key,
    kernel: Any,
    prepare: Callable[[Config], tuple[tuple[int, int, int], Arguments]],
    device: torch.device,
    config: Config | None,
) -> None:
    """Launches a kernel with a configuration, or with the table's.

    prepare: a configuration -> grid and arguments.
    """
    config = config or TABLE.lookup(key)
    grid, arguments = prepare(config)
    with on(device):
        _run(kernel, grid, arguments, num_warps=config.warps)


# -------------------------------------------------------------------------------------- forward and input gradient


def conv_key(x: Tensor, geometry: Geometry, groups: int, adjoint: bool, out_channels: int) -> Key:
    """The class of a convolution's configuration. out_channels: of a branch."""
    count = len(geometry.branches)
    fused = count in FUSED and (count == 1 or groups > 1)
    unstrided = adjoint or geometry.stride == (1, 1, 1)  # neighbouring outputs read neighbouring inputs
    describable = unstrided and _describable(x, x.shape[1] // count)
    together = count if fused else 1
    return Key.of("conv", architecture(x.device), arithmetic(x.dtype), together, out_channels, describable)


def _conv(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    geometry: Geometry,
    settings: Epilogue,
    *,
    size: Sequence[int],
    adjoint: bool,
    swap: bool = False,
    save_z: bool = False,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue.

    swap: the channels of the weights change places, as in an input gradient.
    """
    count = len(geometry.branches)
    cin = x.shape[1] // count
    cout = weights[0].shape[1 if swap else 0] if len(weights) else cin
    y = empty(x, cout * count, size)
    z = torch.empty_like(y) if save_z else None
    check_size(size)
    if y.numel() == 0:
        return y, z
    packed = _pack(weights, swap) if len(weights) else x.new_empty(0)
    noise = contiguous(noise)
    phases = geometry.stride if adjoint else (1, 1, 1)
    counts = tuple(-(-n // p) for n, p in zip(size, phases, strict=True))  # voxels of one phase
    key = conv_key(x, geometry, settings.groups, adjoint, cout)
    fused = key.branches == count
    arguments = {
        "x_ptr": x, "w_ptr": packed, "in_scale_ptr": contiguous(in_scale), "bias_ptr": contiguous(bias),
        "out_scale_ptr": contiguous(out_scale), "noise_ptr": noise, "y_ptr": y, "z_ptr": z,
        "N": x.shape[0], "D": x.shape[2], "H": x.shape[3], "W": x.shape[4], "x_stride": x.stride(),
        "YD": size[0], "YH": size[1], "YW": size[2], "noise_stride": per_sample(noise),
        "slope": settings.negative_slope, "gain": settings.gain, "clamp": settings.clamp, "CIN": cin, "COUT": cout,
        **_geometry_arguments(geometry), "ADJOINT": adjoint, "SHUFFLE": settings.groups > 1, "FUSED": fused,
        "PRECISION": _precision(x.dtype),
    }  # fmt: skip

    def prepare(c: Config) -> tuple[tuple[int, int, int], Arguments]:
        box = choose_box(c.block_m, counts)
        blocks = count_boxes((x.shape[0], *counts), box) * -(-cout // c.block_n)
        descs = None
        if c.descriptors:
            descs = tuple(_descriptor(x, s * cin, cin, (*box, c.block_k)) for s in range(count))
        return (blocks, phases[0] * phases[1] * phases[2], 1 if fused else count), {
            **arguments,
            "x_descs": descs,
            "BOX": box,
            "BN": c.block_n,
            "BK": c.block_k,
            "FLAT": cin < c.block_k and not c.descriptors,
            "STAGES": c.stages,
        }

    _launch(key, kernels.conv_kernel, prepare, x.device, config)
    return y, z


def convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    geometry: Geometry,
    settings: Epilogue,
    save_z: bool,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor | None]:
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order if save_z."""
    return _conv(
        x, weights, bias, in_scale, out_scale, noise, geometry, settings,
        size=geometry.output_size(x.shape[2:]), adjoint=geometry.transposed, save_z=save_z, config=config,
    )  # fmt: skip


def input_grad(
    g: Tensor,
    weights: Sequence[Tensor],
    in_scale: Tensor | None,
    geometry: Geometry,
    size: Sequence[int],
    *,
    config: Config | None = None,
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order: the same kernel in the other direction."""
    gx, _ = _conv(
        g, weights, None, None, in_scale, None, geometry, Epilogue(),
        size=size, adjoint=not geometry.transposed, swap=True, config=config,
    )  # fmt: skip
    return gx


# -------------------------------------------------------------------------------------------------- weight gradient


def weight_grad(
    g: Tensor, x: Tensor, in_scale: Tensor | None, geometry: Geometry, *, config: Config | None = None
) -> list[Tensor]:
    """Gradients of the weights, float32, one per branch that has one, for g in branch order."""
    count = len(geometry.branches)
    in_scale = contiguous(in_scale)
    low, low_scale, high, high_scale = (x, in_scale, g, None) if geometry.transposed else (g, None, x, in_scale)
    low_channels, high_channels = low.shape[1] // count, high.shape[1] // count
    offsets = _geometry_arguments(geometry)["TAP_OFFSETS"]
    sums = low.new_zeros((1, offsets[-1], low_channels, high_channels), dtype=torch.float32)
    if sums.numel() and low.numel() and high.numel():
        sums = _wgrad(low, low_scale, high, high_scale, geometry, config)
    total = sums[0] if sums.shape[0] == 1 else sums.sum(0)
    grads = []
    for s, branch in enumerate(geometry.branches):
        if branch not in (IDENTITY, ABSENT):
            grad = total[offsets[s] : offsets[s + 1]].view(*branch, low_channels, high_channels)
            grads.append(grad.permute(4, 3, 0, 1, 2) if geometry.transposed else grad.permute(3, 4, 0, 1, 2))
    return grads


def wgrad_key(low: Tensor, high: Tensor, geometry: Geometry) -> Key:
    """The class of a weight gradient's configuration."""
    low_channels, high_channels = (t.shape[1] // len(geometry.branches) for t in (low, high))
    describable = geometry.stride == (1, 1, 1) and _describable(low, low_channels) and _describable(high, high_channels)
    return Key.of("wgrad", architecture(low.device), arithmetic(low.dtype), 1, high_channels, describable)


def _wgrad(
    low: Tensor,
    low_scale: Tensor | None,
    high: Tensor,
    high_scale: Tensor | None,
    geometry: Geometry,
    config: Config | None,
) -> Tensor:
    """(splits, taps of all branches, channels of a branch of low, of high), float32, to be summed over the splits."""
    count = len(geometry.branches)
    low_channels, high_channels = low.shape[1] // count, high.shape[1] // count
    taps = _geometry_arguments(geometry)["TAP_OFFSETS"][-1]
    low_size = (low.shape[2], low.shape[3], low.shape[4])
    check_size(low_size)
    key = wgrad_key(low, high, geometry)
    arguments = {
        "low_ptr": low, "low_scale_ptr": low_scale, "high_ptr": high, "high_scale_ptr": high_scale,
        "N": low.shape[0], "LOW_D": low.shape[2], "LOW_H": low.shape[3], "LOW_W": low.shape[4],
        "low_stride": low.stride(), "HIGH_D": high.shape[2], "HIGH_H": high.shape[3], "HIGH_W": high.shape[4],
        "high_stride": high.stride(), "LOW_CHANNELS": low_channels, "HIGH_CHANNELS": high_channels,
        **_geometry_arguments(geometry), "PRECISION": _precision(low.dtype),
    }  # fmt: skip
    sums = low.new_empty(0)

    def prepare(c: Config) -> tuple[tuple[int, int, int], Arguments]:
        nonlocal sums
        box = choose_box(c.block_k, low_size)
        boxes = count_boxes((low.shape[0], *low_size), box)
        blocks = -(-low_channels // c.block_m) * -(-high_channels // c.block_n)
        boxes_per_split = -(-boxes // max(1, PROGRAMS // (blocks * taps)))
        splits = -(-boxes // boxes_per_split)
        sums = low.new_empty((splits, taps, low_channels, high_channels), dtype=torch.float32)
        low_desc = high_desc = None
        if c.descriptors:
            low_desc = _descriptor(low, 0, low.shape[1], (*box, c.block_m))
            high_desc = _descriptor(high, 0, high.shape[1], (*box, c.block_n))
        return (blocks, taps, splits), {
            **arguments,
            "low_desc": low_desc,
            "high_desc": high_desc,
            "out_ptr": sums,
            "boxes": boxes,
            "boxes_per_split": boxes_per_split,
            "BOX": box,
            "BM": c.block_m,
            "BN": c.block_n,
            "STAGES": c.stages,
        }

    _launch(key, kernels.wgrad_kernel, prepare, low.device, config)
    return sums


# -------------------------------------------------------------------------------------- the epilogue and its backward


def _dense(t: Tensor) -> bool:
    """Whether neighbouring voxels of a sample have one distance in memory throughout."""
    _, _, d, h, w = t.stride()
    return (t.shape[3] == 1 or h == t.shape[4] * w) and (t.shape[2] == 1 or d == t.shape[3] * t.shape[4] * w)


def _row_stride(t: Tensor) -> tuple[int, ...]:
    """The strides, that of W being the distance between neighbouring voxels wherever `_dense` holds."""
    strides = list(t.stride())
    if t.shape[4] == 1:
        strides[4] = strides[3] if t.shape[3] > 1 else strides[2]
    return tuple(strides)


def _block_channels(channels: int, groups: int) -> int:
    """Channels of a tile of the epilogue's kernels."""
    return max(min(CHANNELS, power_of_two(channels)), groups if groups in FUSED else 1)


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    settings: Epilogue,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias))."""
    y = empty(z, z.shape[1], z.shape[2:])
    check_size(z.shape[2:])
    if y.numel() == 0:
        return y
    noise = contiguous(noise)
    channels = z.shape[1]
    block = _block_channels(channels, settings.groups)
    grid = (z.shape[0] * triton.cdiv(y[0, 0].numel(), VOXELS), triton.cdiv(channels, block))
    arguments = {
        "z_ptr": z, "bias_ptr": contiguous(bias), "scale_ptr": contiguous(out_scale), "noise_ptr": noise, "y_ptr": y,
        "D": z.shape[2], "H": z.shape[3], "W": z.shape[4], "z_stride": _row_stride(z),
        "noise_stride": per_sample(noise), "slope": settings.negative_slope, "gain": settings.gain,
        "clamp": settings.clamp, "C": channels, "S": settings.groups, "DENSE": _dense(z), "BV": VOXELS, "BC": block,
    }  # fmt: skip
    with on(z.device):
        _run(kernels.epilogue_kernel, grid, arguments)
    return y


def epilogue_backward(
    gy: Tensor,
    y: Tensor,
    z: Tensor | None,
    out_scale: Tensor | None,
    settings: Epilogue,
    bias_grad: bool,
    noise_batch: int,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for z (branch order), bias, noise and out_scale; as `reference.epilogue_backward`."""
    gz = empty(y, y.shape[1], y.shape[2:])
    check_size(y.shape[2:])
    batch, channels, *size = y.shape
    block = VOXELS // 2 if settings.groups == 4 else VOXELS  # four branches take more registers
    blocks = triton.cdiv(size[0] * size[1] * size[2], block)
    wide = {"dtype": torch.float32, "device": y.device}
    bias_sums = torch.zeros((batch, blocks, channels), **wide) if bias_grad else None
    noise_sums = torch.zeros((batch, 1, *size), **wide) if noise_batch >= 0 else None
    scale_sums = torch.zeros((batch, blocks, channels), **wide) if z is not None else None
    if gz.numel():
        bound = 0.0  # the output was rounded to its dtype, and so must the bound be that it is compared with
        if settings.clamp is not None:
            bound = float(torch.tensor(settings.clamp, dtype=y.dtype))
        y_layout = _row_stride(y), _dense(y)
        z_layout = y_layout if z is None else (_row_stride(z), _dense(z))
        arguments = {
            "gy_ptr": gy, "y_ptr": y, "z_ptr": z, "scale_ptr": contiguous(out_scale), "gz_ptr": gz,
            "bias_sums_ptr": bias_sums, "noise_sums_ptr": noise_sums, "scale_sums_ptr": scale_sums,
            "D": size[0], "H": size[1], "W": size[2], "gy_stride": _row_stride(gy), "y_stride": y_layout[0],
            "z_stride": z_layout[0], "slope": settings.negative_slope, "gain": settings.gain, "clamp": bound,
            "C": channels, "S": settings.groups, "GY_DENSE": _dense(gy), "Y_DENSE": y_layout[1],
            "Z_DENSE": z_layout[1], "CLAMPED": settings.clamp is not None, "BV": block,
            "BC": _block_channels(channels, settings.groups),
        }  # fmt: skip
        with on(y.device):
            _run(kernels.epilogue_backward_kernel, (batch * blocks,), arguments)
    gbias = None if bias_sums is None else bias_sums.sum((0, 1))
    if noise_sums is not None and noise_batch == 1 and batch != 1:
        noise_sums = noise_sums.sum(0, keepdim=True)
    return gz, gbias, noise_sums, None if scale_sums is None else scale_sums.sum(1)


# --------------------------------------------------------------------------------------------------------- resampling


def upfirdn(
    x: Tensor, taps: Sequence[Tensor | None], up: Triple, down: Triple, padding: Sequence[int], border: str = "zero"
) -> Tensor:
    """Zero-insert, pad or crop, convolve with the separable FIR filter, keep every down-th sample.

    Where the taps that meet a sample are many, the filter along D goes first, in a pass of its own: one more tensor
    moved, and counts_d + counts_h * counts_w loads instead of their product.
    """
    dtype = x.dtype
    lengths = [1 if t is None else t.shape[0] for t in taps]
    counts = [-(-n // u) for n, u in zip(lengths, up, strict=True)]
    if counts[0] > 1 and counts[0] * counts[1] * counts[2] > 16:
        x = _upfirdn(
            x, (taps[0], None, None), (up[0], 1, 1), (down[0], 1, 1), (*padding[:2], 0, 0, 0, 0), border, torch.float32
        )
        taps, up, down, padding = (None, *taps[1:]), (1, *up[1:]), (1, *down[1:]), (0, 0, *padding[2:])
        border = "zero"
    return _upfirdn(x, taps, up, down, padding, border, dtype)


def _upfirdn(
    x: Tensor,
    taps: Sequence[Tensor | None],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    border: str,
    dtype: torch.dtype,
) -> Tensor:
    """One pass over all dimensions, with a result of `dtype`."""
    lengths = tuple(1 if t is None else t.shape[0] for t in taps)
    size = upfirdn_size(x.shape[2:], lengths, up, down, padding)
    y = empty(x, x.shape[1], size, dtype)
    check_size(size)
    if y.numel() == 0:
        return y
    channels, folded = x.shape[1], (0, 0)
    if border == "fold":
        folded = folded_slices(x.shape[2], size[0], lengths[0], up[0], down[0], padding[0])
    block = min(CHANNELS, power_of_two(channels))
    voxels = min(VOXELS * CHANNELS // block, 128)  # sm_80 spills with fewer elements per thread
    grid = (x.shape[0] * triton.cdiv(y[0, 0].numel(), voxels), triton.cdiv(channels, block))
    taps_d, taps_h, taps_w = (contiguous(t) for t in taps)
    arguments = {
        "x_ptr": x, "taps_d_ptr": taps_d, "taps_h_ptr": taps_h, "taps_w_ptr": taps_w, "y_ptr": y,
        "D": x.shape[2], "H": x.shape[3], "W": x.shape[4], "x_stride": x.stride(), "YD": size[0], "YH": size[1],
        "YW": size[2], "PD": padding[0], "PH": padding[2], "PW": padding[4],
        "C": channels, "UP": tuple(up), "DOWN": tuple(down), "LENGTHS": lengths,
        "REPLICATE": border == "replicate", "FOLDED": folded, "BV": voxels, "BC": block,
    }  # fmt: skip
    with on(x.device):
        _run(kernels.upfirdn_kernel, grid, arguments)
    return y
