"""The CUDA backend: allocates, plans and launches the kernels in csrc/cuda.

The same functions as `reference` has, for float32, bfloat16 and float16 on NVIDIA GPUs from compute capability 8.0 on.
float32 products use TF32 where PyTorch's own convolutions may (`torch.backends.cudnn.conv.fp32_precision`, or
`torch.backends.cudnn.allow_tf32`), else exact float32. 16-bit products on cards of 9.0 have kernels of their own
(`cuda_halo`, `cuda_hopper`; SSCONV_HOPPER=0 in the environment turns them off).

Nothing here waits for the GPU, and a CUDA graph can capture every call. The kernels know nothing of torch: a call is a
list of numbers, `_C.cuda_call`, which `cuda_plans` works out once per kind of call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.backend.cuda import plan as plans
from ssconv.backend.cuda import sm90 as cuda_hopper
from ssconv.backend.cuda import sm90_halo as cuda_halo
from ssconv.backend.cuda.plan import Launch, Layout, Noise
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
from ssconv.spec import ABSENT, IDENTITY, Epilogue, Triple
from ssconv.spec import Geometry as ConvSpec

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES: tuple[str, ...] = ("cuda",)

Tensors = dict[str, Tensor | None]

# `_C.cuda_call`, set by `backends`; tests put the emulator's here.
call: Callable[[str, list[int], list[float]], None] | None = None
has_sm90a = True  # whether the module was compiled for it; set by `backends`, too


def _run(launch: Launch, tensors: Tensors, floats: Sequence[float] = ()) -> None:
    """Every launch goes through here, on the current stream of the tensors' device."""
    device = next(t.device for t in (tensors[n] for n in launch.writes) if t is not None)
    assert call is not None, "backends lets nobody through without"
    with on(device):
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        call(launch.kernel, launch.filled(tensors, stream), list(floats))


def _launch(key: Key, run: Callable[[Config], None], device: torch.device) -> None:
    """Runs a call with the table's configuration, or with SSCONV_AUTOTUNE=1 after a search for it."""

    def seconds(function: Callable[[], None]) -> float:
        return median_seconds(function, device)

    run(TABLE.choose(key, run, seconds))


def _floats(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def _noise(t: Tensor | None) -> Noise | None:
    return None if t is None else Noise(t.dtype, per_sample(t))


def _arrange(x: Tensor, scale: Tensor | None, count: int) -> Tensor:
    """x * scale as products can read it."""
    launch, padded = plans.arrange(Layout.of(x), count)
    out = empty(x, count * padded, x.shape[2:])
    _run(launch, {"source": x, "in_scale": _floats(scale), "arranged": out})
    return out


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
    settings: Epilogue,
    save_z: bool,
) -> tuple[Tensor, Tensor | None]:
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue."""
    groups, slope, gain, clamp = settings
    count = len(spec.branches)
    channels = x.shape[1] // count
    columns = weights[0].shape[1 if swap else 0] if len(weights) else channels
    check_size(size)
    y = empty(x, columns * count, size)
    z = torch.empty_like(y) if save_z else None
    if y.numel() == 0:
        return y, z
    kind = arithmetic(x.dtype)
    layout = Layout.of(x)
    key, apart = plans.product_key(
        layout, in_scale is not None, columns, spec, groups, architecture(x.device), kind
    )  # fmt: skip
    if apart:
        x, in_scale = _arrange(x, in_scale, count), None
        layout = Layout.of(x)
    noise = contiguous(noise)
    tensors: Tensors = {
        "x": x, "in_scale": _floats(in_scale), "out_scale": _floats(out_scale), "bias": _floats(bias), "noise": noise,
        "y": y, "z": z,
    }  # fmt: skip
    numbers = (n for n, kernel in enumerate(spec.branches) if kernel not in (IDENTITY, ABSENT))
    tensors |= {f"weight{n}": w for n, w in zip(numbers, weights, strict=True)}
    floats = [slope, gain, 0.0 if clamp is None else clamp]
    described = plans.Call(
        layout, channels, tuple(w.stride() for w in weights), swap, _noise(noise), spec, adjoint, tuple(size), columns,
        groups, clamp is not None, plans.arithmetic_kind(x.dtype, kind),
    )  # fmt: skip

    def launch(plan: plans.Product) -> None:
        for (pack, product), elements in zip(plan.launches, plan.packed, strict=True):
            tensors["packed"] = x.new_empty(elements)
            if pack is not None:
                _run(pack, tensors)
            _run(product, tensors, floats)

    if not key.singly and halo_refusal(x, spec, adjoint, size, columns, groups) is None:
        launch(cuda_halo.product(described, cuda_halo.layout() == "swizzled", multiprocessors(x.device)))
        return y, z
    if not key.singly and hopper_refusal(x, spec, adjoint, size, columns, groups) is None:
        launch(cuda_hopper.product(described, multiprocessors(x.device), cuda_hopper.cluster_wanted()))
        return y, z

    def run(config: Config) -> None:
        launch(plans.product(described, key, config))

    _launch(key, run, x.device)
    return y, z


def hopper_missing(device: torch.device) -> str | None:
    """Why no call on a device is computed by sm_90a's products, or None."""
    if reason := cuda_hopper.switched_off():
        return reason
    if not has_sm90a:
        return "the compiled module has no code for sm_90a"
    found = architecture(device)
    return None if found == cuda_hopper.ARCHITECTURE else f"compute capability {found // 10}.{found % 10}, not 9.0"


def hopper_refusal(
    x: Tensor, spec: ConvSpec, adjoint: bool, size: Sequence[int], columns: int, groups: int
) -> str | None:
    """Why not sm_90a's product but sm_80's computes a call, or None. x: as it is read; columns: outputs of a branch."""
    return hopper_missing(x.device) or cuda_hopper.refusal(Layout.of(x), spec, adjoint, tuple(size), columns, groups)


def halo_refusal(
    x: Tensor, spec: ConvSpec, adjoint: bool, size: Sequence[int], columns: int, groups: int
) -> str | None:
    """Why sm_90a's product with the halo in shared memory does not compute a call, or None; as `hopper_refusal`."""
    if reason := hopper_missing(x.device):
        return reason
    layout = cuda_halo.layout()
    if layout is None:
        return f"{cuda_halo.SWITCH}=0"
    return cuda_halo.refusal(
        Layout.of(x), spec, adjoint, tuple(size), columns, groups, layout == "swizzled", multiprocessors(x.device)
    )


def convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    spec: ConvSpec,
    settings: Epilogue,
    save_z: bool,
) -> tuple[Tensor, Tensor | None]:
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order where it is asked for."""
    return _product(
        x, weights, False, bias, in_scale, out_scale, noise, spec, spec.transposed, spec.output_size(x.shape[2:]),
        settings, save_z,
    )  # fmt: skip


def input_grad(
    g: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, spec: ConvSpec, size: Sequence[int]
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order: the same kernel the other way round."""
    return _product(g, weights, True, None, None, in_scale, None, spec, not spec.transposed, size, Epilogue(), False)[0]


# -------------------------------------------------------------------------------------------------- weight gradient


def weight_grad(g: Tensor, x: Tensor, in_scale: Tensor | None, spec: ConvSpec) -> list[Tensor]:
    """Gradients of the weights, float32, one per branch that has one, for g in branch order."""
    count = len(spec.branches)
    rows = (x if spec.transposed else g).shape[1] // count
    columns = (g if spec.transposed else x).shape[1] // count
    extents = (columns, rows) if spec.transposed else (rows, columns)
    real = [n for n, kernel in enumerate(spec.branches) if kernel not in (IDENTITY, ABSENT)]
    if not x.numel() or not g.numel():
        return [x.new_zeros((*extents, *spec.branches[n]), dtype=torch.float32) for n in real]
    out = [x.new_empty((*extents, *spec.branches[n]), dtype=torch.float32) for n in real]
    if in_scale is not None or not Layout.of(x).in_chunks(x.shape[1] // count):
        x = _arrange(x, in_scale, count)
    if not Layout.of(g).in_chunks(g.shape[1] // count):
        g = _arrange(g, None, count)
    low, high = (x, g) if spec.transposed else (g, x)
    check_size(low.shape[2:])
    for start in range(0, len(real), plans.BRANCHES):
        group = slice(start, start + plans.BRANCHES)
        _weight_grad(low, high, tuple(real[group]), spec, rows, columns, out[group])
    return out


def _weight_grad(
    low: Tensor,
    high: Tensor,
    numbers: tuple[int, ...],
    spec: ConvSpec,
    rows: int,
    columns: int,
    out: Sequence[Tensor],
) -> None:
    """Fills the gradients of the branches `numbers`."""
    if low.shape[0] * low[0, 0].numel() > plans.MAX_BATCH_VOXELS:  # numbered with 32 bits: two parts, added in order
        half = low.shape[0] // 2
        parts = [[torch.empty_like(t) for t in out] for _ in range(2)]
        for part, at in zip(parts, (slice(0, half), slice(half, None)), strict=True):
            _weight_grad(low[at], high[at], numbers, spec, rows, columns, part)
        for t, a, b in zip(out, *parts, strict=True):
            torch.add(a, b, out=t)
        return
    kind = arithmetic(low.dtype)
    layouts = Layout.of(low), Layout.of(high)
    described = (*layouts, numbers, spec, rows, columns, plans.arithmetic_kind(low.dtype, kind))
    tensors: Tensors = {"low": low, "high": high, **{f"out{i}": t for i, t in enumerate(out)}}

    def launch(multiply: Launch, add: Launch, elements: int) -> None:
        tensors["workspace"] = low.new_empty(elements, dtype=torch.float32)
        _run(multiply, tensors)
        _run(add, tensors)

    if hopper_missing(low.device) is None and cuda_hopper.weights_refusal(*layouts, numbers, spec) is None:
        launch(*cuda_hopper.weights(*described, multiprocessors(low.device)))
        return
    key = plans.weights_key(rows, architecture(low.device), kind)

    def run(config: Config) -> None:
        launch(*plans.weights(*described, config))

    _launch(key, run, low.device)


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
    launch = plans.epilogue(Layout.of(z), _noise(noise), groups, clamp is not None)
    tensors = {"z": z, "out_scale": _floats(out_scale), "bias": _floats(bias), "noise": noise, "y": y}
    _run(launch, tensors, [slope, gain, 0.0 if clamp is None else clamp])
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
    launch, blocks = plans.epilogue_backward(*layouts, groups, clamp is not None)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": y.device}
    bias_sums = torch.empty((batch, blocks, channels), **wide) if bias_grad else None
    noise_sums = torch.empty((batch, 1, *size), **wide) if noise_batch >= 0 else None
    scale_sums = torch.empty((batch, blocks, channels), **wide) if z is not None else None
    bound = 0.0  # the output was rounded to its dtype, and so must the bound be that it is compared with
    if clamp is not None:
        bound = float(torch.tensor(clamp, dtype=y.dtype))
    tensors = {
        "gy": gy, "y": y, "z": z, "out_scale": _floats(out_scale), "gz": gz, "bias_sums": bias_sums,
        "scale_sums": scale_sums, "noise_sums": noise_sums,
    }  # fmt: skip
    _run(launch, tensors, [slope, gain, bound])
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
    launch = plans.upfirdn(Layout.of(x), described, tuple(up), tuple(down), tuple(padding), size)
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
