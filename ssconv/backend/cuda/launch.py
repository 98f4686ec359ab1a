"""The CUDA backend: allocates results, plans and launches the kernels in csrc/cuda.

It has the functions of `reference`, for float32, bfloat16 and float16 on NVIDIA GPUs from compute capability 8.0 on.
float32 is multiplied as TF32 where PyTorch's own convolutions may do so (`torch.backends.cudnn.conv.fp32_precision`, or
`torch.backends.cudnn.allow_tf32`), else exactly. 16-bit convolutions on cards of 9.0 have kernels of their own
(`sm90_halo`, `sm90`; SSCONV_HOPPER=0 in the environment turns them off).

Nothing here waits for the GPU, and a CUDA graph can capture every call. The kernels know nothing of torch:
`_C.cuda_call` takes a kernel's name and its struct, which is planned once per kind of call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.backend.cuda import plan, sm80, sm90, sm90_halo
from ssconv.backend.cuda.plan import Launch, Layout, Noise
from ssconv.backend.cuda.sm80 import ConvCall, ConvPlan, WgradCall, WgradPlan
from ssconv.backend.cuda.table import TABLE, Config, Key
from ssconv.backend.gpu import (
    architecture,
    arithmetic,
    check_size,
    contiguous,
    empty,
    median_seconds,
    multiprocessors,
    on,
    per_sample,
)
from ssconv.spec import ABSENT, IDENTITY, Epilogue, Geometry, Triple

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES: tuple[str, ...] = ("cuda",)

Tensors = dict[str, Tensor | None]

# `_C.cuda_call`, set by `dispatch`; tests set the emulator's.
call: Callable[[str, bytes, int], None] | None = None
has_sm90a = True  # whether the module was compiled for it; set by `dispatch`, too


def _run(launch: Launch, tensors: Tensors, floats: Mapping[str, float] = {}) -> None:
    """Launches a kernel on the current stream of the tensors' device. Every launch goes through here."""
    device = next(t.device for t in (tensors[n] for n in launch.writes) if t is not None)
    assert call is not None, "dispatch lets no call through without it"
    with on(device):
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        call(launch.kernel, launch.filled(tensors, floats), stream)


def _configured(key: Key, run: Callable[[Config], None], device: torch.device) -> None:
    """Runs a call with the table's configuration; with SSCONV_AUTOTUNE=1 it is searched for before."""

    def seconds(function: Callable[[], None]) -> float:
        return median_seconds(function, device)

    run(TABLE.choose(key, run, seconds))


def _float32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _noise(t: Tensor | None) -> Noise | None:
    return None if t is None else Noise(t.dtype, per_sample(t))


def _epilogue_floats(slope: float, gain: float, clamp: float | None) -> dict[str, float]:
    return {"slope": slope, "gain": gain, "clamp": 0.0 if clamp is None else clamp}


def _pack_input(x: Tensor, scale: Tensor | None, branches: int) -> Tensor:
    """x * scale, as convolutions can read it in chunks."""
    launch, padded = plan.pack_input(Layout.of(x), branches)
    out = empty(x, branches * padded, x.shape[2:])
    _run(launch, {"source": x, "in_scale": _float32(scale), "packed_input": out})
    return out


# -------------------------------------------------------------------------------------- forward and input gradient


def _convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    swap: bool,
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    geometry: Geometry,
    adjoint: bool,
    size: Sequence[int],
    settings: Epilogue,
    save_z: bool,
) -> tuple[Tensor, Tensor | None]:
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue."""
    groups, slope, gain, clamp = settings
    count = len(geometry.branches)
    in_channels = x.shape[1] // count
    out_channels = weights[0].shape[1 if swap else 0] if len(weights) else in_channels
    check_size(size)
    y = empty(x, out_channels * count, size)
    z = torch.empty_like(y) if save_z else None
    if y.numel() == 0:
        return y, z
    kind = arithmetic(x.dtype)
    key, packs_input = sm80.conv_key(
        Layout.of(x), in_scale is not None, out_channels, geometry, groups, architecture(x.device), kind
    )
    if packs_input:
        x, in_scale = _pack_input(x, in_scale, count), None
    noise = contiguous(noise)
    tensors: Tensors = {
        "x": x, "in_scale": _float32(in_scale), "out_scale": _float32(out_scale), "bias": _float32(bias),
        "noise": noise, "y": y, "z": z,
    }  # fmt: skip
    numbers = (n for n, kernel in enumerate(geometry.branches) if sm80.has_weights(kernel))
    tensors |= {f"weight{n}": w for n, w in zip(numbers, weights, strict=True)}
    floats = _epilogue_floats(slope, gain, clamp)
    described = ConvCall(
        x=Layout.of(x),
        in_channels=in_channels,
        weight_strides=tuple(w.stride() for w in weights),
        swap=swap,
        noise=_noise(noise),
        geometry=geometry,
        adjoint=adjoint,
        size=tuple(size),
        out_channels=out_channels,
        groups=groups,
        clamped=clamp is not None,
        arithmetic=sm80.arithmetic_of(x.dtype, kind),
    )

    def launch(planned: ConvPlan) -> None:
        for (pack, conv), elements in zip(planned.launches, planned.packed, strict=True):
            tensors["packed_weights"] = x.new_empty(elements)
            if pack is not None:
                _run(pack, tensors)
            _run(conv, tensors, floats)

    if not key.singly and halo_unsupported(x, geometry, adjoint, size, out_channels, groups) is None:
        swizzled = sm90_halo.layout() == "swizzled"
        launch(sm90_halo.conv_sm90_halo(described, swizzled, multiprocessors(x.device)))
    elif not key.singly and im2col_unsupported(x, geometry, adjoint, size, out_channels, groups) is None:
        launch(sm90.conv_sm90(described, multiprocessors(x.device), sm90.cluster_wanted()))
    else:
        _configured(key, lambda config: launch(sm80.conv_sm80(described, key, config)), x.device)
    return y, z


def sm90_unavailable(device: torch.device) -> str | None:
    """Why the kernels of sm_90a compute no call on a device, or None."""
    if reason := sm90.switched_off():
        return reason
    if not has_sm90a:
        return "the compiled module has no code for sm_90a"
    found = architecture(device)
    return None if found == sm90.ARCHITECTURE else f"compute capability {found // 10}.{found % 10}, not 9.0"


def im2col_unsupported(
    x: Tensor, geometry: Geometry, adjoint: bool, size: Sequence[int], out_channels: int, groups: int
) -> str | None:
    """Why conv_sm90 does not compute a call, or None. x: as it is read; out_channels: of a branch."""
    return sm90_unavailable(x.device) or sm90.conv_unsupported(
        Layout.of(x), geometry, adjoint, tuple(size), out_channels, groups
    )


def halo_unsupported(
    x: Tensor, geometry: Geometry, adjoint: bool, size: Sequence[int], out_channels: int, groups: int
) -> str | None:
    """Why conv_sm90_halo does not compute a call, or None. x: as it is read; out_channels: of a branch."""
    if reason := sm90_unavailable(x.device):
        return reason
    layout = sm90_halo.layout()
    if layout is None:
        return f"{sm90_halo.SWITCH}=0"
    return sm90_halo.unsupported(
        Layout.of(x),
        geometry,
        adjoint,
        tuple(size),
        out_channels,
        groups,
        layout == "swizzled",
        multiprocessors(x.device),
    )


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
) -> tuple[Tensor, Tensor | None]:
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order where it is asked for."""
    return _convolve(
        x, weights, False, bias, in_scale, out_scale, noise, geometry, geometry.transposed,
        geometry.output_size(x.shape[2:]), settings, save_z,
    )  # fmt: skip


def input_grad(
    g: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, geometry: Geometry, size: Sequence[int]
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order: the same kernels with the adjoint."""
    return _convolve(
        g, weights, True, None, None, in_scale, None, geometry, not geometry.transposed, size, Epilogue(), False
    )[0]


# -------------------------------------------------------------------------------------------------- weight gradient


def weight_grad(g: Tensor, x: Tensor, in_scale: Tensor | None, geometry: Geometry) -> list[Tensor]:
    """Gradients of the weights, float32, one per branch that has one, for g in branch order."""
    count = len(geometry.branches)
    rows = (x if geometry.transposed else g).shape[1] // count
    columns = (g if geometry.transposed else x).shape[1] // count
    extents = (columns, rows) if geometry.transposed else (rows, columns)
    with_weights = [n for n, kernel in enumerate(geometry.branches) if kernel not in (IDENTITY, ABSENT)]
    if not x.numel() or not g.numel():
        return [x.new_zeros((*extents, *geometry.branches[n]), dtype=torch.float32) for n in with_weights]
    out = [x.new_empty((*extents, *geometry.branches[n]), dtype=torch.float32) for n in with_weights]
    if in_scale is not None or not Layout.of(x).in_chunks(x.shape[1] // count):
        x = _pack_input(x, in_scale, count)
    if not Layout.of(g).in_chunks(g.shape[1] // count):
        g = _pack_input(g, None, count)
    low, high = (x, g) if geometry.transposed else (g, x)
    check_size(low.shape[2:])
    for start in range(0, len(with_weights), sm80.BRANCHES):
        group = slice(start, start + sm80.BRANCHES)
        _weight_grad(low, high, tuple(with_weights[group]), geometry, rows, columns, out[group])
    return out


def _weight_grad(
    low: Tensor,
    high: Tensor,
    numbers: tuple[int, ...],
    geometry: Geometry,
    rows: int,
    columns: int,
    out: Sequence[Tensor],
) -> None:
    """Fills the gradients of the branches `numbers`. low: the tensor that has a voxel per window; rows, columns:
    channels of a branch of low and of high."""
    if low.shape[0] * low[0, 0].numel() > plan.MAX_BATCH_VOXELS:  # numbered with 32 bits: two halves, added in order
        half = low.shape[0] // 2
        halves = [[torch.empty_like(t) for t in out] for _ in range(2)]
        for sums, at in zip(halves, (slice(0, half), slice(half, None)), strict=True):
            _weight_grad(low[at], high[at], numbers, geometry, rows, columns, sums)
        for t, a, b in zip(out, *halves, strict=True):
            torch.add(a, b, out=t)
        return
    kind = arithmetic(low.dtype)
    described = WgradCall(
        Layout.of(low), Layout.of(high), numbers, geometry, rows, columns, sm80.arithmetic_of(low.dtype, kind)
    )
    tensors: Tensors = {"low": low, "high": high, **{f"out{i}": t for i, t in enumerate(out)}}

    def launch(planned: WgradPlan) -> None:
        tensors["workspace"] = low.new_empty(planned.workspace, dtype=torch.float32)
        _run(planned.multiply, tensors)
        _run(planned.reduce, tensors)

    unsupported = sm90_unavailable(low.device) or sm90.wgrad_unsupported(*described[:4])
    if unsupported is None:
        launch(sm90.wgrad_sm90(described, multiprocessors(low.device)))
        return
    key = sm80.wgrad_key(rows, architecture(low.device), kind)
    _configured(key, lambda config: launch(sm80.wgrad_sm80(described, config)), low.device)


# -------------------------------------------------------------------------------------- the epilogue and its backward


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    settings: Epilogue,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias))."""
    groups, slope, gain, clamp = settings
    check_size(z.shape[2:])
    y = empty(z, z.shape[1], z.shape[2:])
    if y.numel() == 0:
        return y
    noise = contiguous(noise)
    launch = plan.epilogue(Layout.of(z), _noise(noise), groups, clamp is not None)
    tensors = {"z": z, "out_scale": _float32(out_scale), "bias": _float32(bias), "noise": noise, "y": y}
    _run(launch, tensors, _epilogue_floats(slope, gain, clamp))
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
    groups, slope, gain, clamp = settings
    check_size(y.shape[2:])
    gz = empty(y, y.shape[1], y.shape[2:])
    batch, channels, *size = y.shape
    if gz.numel() == 0:
        return (
            gz,
            y.new_zeros(channels, dtype=torch.float32) if bias_grad else None,
            y.new_zeros((noise_batch, 1, *size), dtype=torch.float32) if noise_batch >= 0 else None,
            y.new_zeros((batch, channels), dtype=torch.float32) if z is not None else None,
        )
    layouts = Layout.of(gy), Layout.of(y), None if z is None else Layout.of(z)
    launch, blocks = plan.epilogue_backward(*layouts, groups, clamp is not None)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": y.device}
    bias_sums = torch.empty((batch, blocks, channels), **wide) if bias_grad else None
    noise_sums = torch.empty((batch, 1, *size), **wide) if noise_batch >= 0 else None
    scale_sums = torch.empty((batch, blocks, channels), **wide) if z is not None else None
    if clamp is not None:  # the output was rounded to its dtype, and so must the bound be that it is compared with
        clamp = float(torch.tensor(clamp, dtype=y.dtype))
    tensors = {
        "gy": gy, "y": y, "z": z, "out_scale": _float32(out_scale), "gz": gz, "bias_sums": bias_sums,
        "scale_sums": scale_sums, "noise_sums": noise_sums,
    }  # fmt: skip
    _run(launch, tensors, _epilogue_floats(slope, gain, clamp))
    gbias = None if bias_sums is None else bias_sums.sum((0, 1))
    if noise_sums is not None and noise_batch == 1 and batch != 1:
        noise_sums = noise_sums.sum(0, keepdim=True)
    return gz, gbias, noise_sums, None if scale_sums is None else scale_sums.sum(1)


# --------------------------------------------------------------------------------------------------------- resampling


def upfirdn(x: Tensor, taps: Sequence[Tensor | None], up: Triple, down: Triple, padding: Sequence[int]) -> Tensor:
    """Zero-insert, pad or crop, convolve with the separable FIR filter, keep every down-th sample.

    One pass; filters so long that a block's shared memory does not hold what they reach go one dimension after the
    other, through float32.
    """
    lengths = [1 if t is None else t.shape[0] for t in taps]
    size = tuple(
        (x.shape[2 + d] * up[d] + padding[2 * d] + padding[2 * d + 1] - lengths[d] + down[d]) // down[d]
        for d in range(3)
    )
    check_size(size)
    y = empty(x, x.shape[1], size)
    if y.numel() == 0:
        return y
    filters = [contiguous(t) for t in taps]
    described = tuple(None if t is None else (t.shape[0], t.dtype) for t in filters)
    launch = plan.upfirdn(Layout.of(x), described, tuple(up), tuple(down), tuple(padding), size)
    if launch is None:
        return _one_after_the_other(x, taps, up, down, padding)
    _run(launch, {"x": x, "y": y, **{f"taps{d}": t for d, t in enumerate(filters)}})
    return y


def _one_after_the_other(
    x: Tensor, taps: Sequence[Tensor | None], up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """A pass per dimension, through float32."""
    filtered = [n for n in range(3) if taps[n] is not None or up[n] > 1 or down[n] > 1]
    if len(filtered) <= 1 and x.dtype == torch.float32:
        longest = max(1 if t is None else t.shape[0] for t in taps)
        raise ValueError(f"taps: a filter of {longest} taps does not fit into shared memory; use a shorter one")
    y = x.to(torch.float32)
    for d in range(3):
        y = upfirdn(
            y,
            [taps[i] if i == d else None for i in range(3)],
            _only(d, up),
            _only(d, down),
            [padding[i] if i // 2 == d else 0 for i in range(6)],
        )
    return y.to(x.dtype)


def _only(d: int, factors: Sequence[int]) -> Triple:
    """The factor of dimension d, 1 elsewhere."""
    first, second, third = (factors[i] if i == d else 1 for i in range(3))
    return first, second, third
