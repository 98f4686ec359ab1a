"""The registered ops `torch.ops.ssconv.*`: schemas, fakes and derivatives.

Written with A for the linear map of the branches (without shuffle), s for in_scale and T for the trilinear form
T(g, x, W) = <g, A_W (s x)>, the closure under differentiation is short:

    forward      y = epilogue(A_W (s x));  d/dx = input_grad, d/dW = weight_grad, d/ds = sum x * A^T g
    input_grad   s A_W^T g                 the derivatives of T with x's place taken by the cotangent
    weight_grad  dT/dW                     the derivatives of T with W's place taken by the cotangents
    epilogue, epilogue_backward            pointwise and linear in the gradient, with sums
    upfirdn      its adjoint is an upfirdn

so derivatives of any order stay within these six ops on every backend. Tensors between them are in branch order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.backend.dispatch import implementation
from ssconv.ops.transforms import plus, transformable
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, upfirdn_size

_GEOMETRY = "int[] branches, int[] stride, bool valid, bool transposed"
_EPILOGUE = "int groups, float slope, float gain, float? clamp"

torch.library.define(
    "ssconv::forward",
    "(Tensor x, Tensor[] weights, Tensor? bias, Tensor? in_scale, Tensor? out_scale, Tensor? noise, "
    f"{_GEOMETRY}, {_EPILOGUE}, bool save_z, str backend) -> (Tensor, Tensor)",
)
torch.library.define(
    "ssconv::input_grad",
    f"(Tensor g, Tensor[] weights, Tensor? in_scale, {_GEOMETRY}, SymInt[] size, str backend) -> Tensor",
)
torch.library.define(
    "ssconv::weight_grad", f"(Tensor g, Tensor x, Tensor? in_scale, {_GEOMETRY}, str backend) -> Tensor[]"
)
torch.library.define(
    "ssconv::epilogue",
    f"(Tensor z, Tensor? bias, Tensor? out_scale, Tensor? noise, {_EPILOGUE}, str backend) -> Tensor",
)
torch.library.define(
    "ssconv::epilogue_backward",
    f"(Tensor gy, Tensor y, Tensor? z, Tensor? out_scale, {_EPILOGUE}, bool bias_grad, SymInt noise_batch, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
)
torch.library.define(
    "ssconv::upfirdn",
    "(Tensor x, Tensor? taps_d, Tensor? taps_h, Tensor? taps_w, int[] up, int[] down, SymInt[] padding, "
    "str backend) -> Tensor",
)


def _native(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.to(dtype).contiguous(memory_format=torch.channels_last_3d)


def _empty(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    t = like.new_empty(tuple(shape), dtype=dtype or like.dtype)
    return t.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else t


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fresh(t: Tensor, *inputs: Tensor | None) -> Tensor:
    """An op's result must not share memory with its inputs."""
    shares = any(i is not None and t.untyped_storage().data_ptr() == i.untyped_storage().data_ptr() for i in inputs)
    return t.clone(memory_format=torch.preserve_format) if shares else t


def _kernel(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers an op's implementation, for every device. Autocast stays outside."""

    def register(compute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute)
        def run(x: Tensor, *args: Any) -> Any:
            device = x.device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return compute(x, *args)
            return compute(x, *args)

        torch.library.impl(name, "CompositeExplicitAutograd", run)
        return run

    return register


# ---------------------------------------------------------------------------------------------------- forward


@_kernel("ssconv::forward")
def _forward(
    x, weights, bias, in_scale, out_scale, noise, branches, stride, valid, transposed, groups, slope, gain, clamp,
    save_z, backend,
):  # fmt: skip
    impl = implementation(backend)
    spec = ConvSpec.decode(branches, stride, valid, transposed, groups > 1)
    epilogue = (groups, slope, gain, clamp)
    y, z = impl.convolve(x, weights, bias, in_scale, out_scale, noise, spec, *epilogue, save_z)
    y = _fresh(_native(y, x.dtype), x)
    return y, _fresh(_native(z, x.dtype), x, y) if save_z else x.new_empty(0)


@torch.library.register_fake("ssconv::forward")
def _forward_fake(
    x, weights, bias, in_scale, out_scale, noise, branches, stride, valid, transposed, groups, slope, gain, clamp,
    save_z, backend,
):  # fmt: skip
    spec = ConvSpec.decode(branches, stride, valid, transposed, groups > 1)
    channels = weights[0].shape[0] * len(spec.branches) if len(weights) else x.shape[1]
    y = _empty(x, (x.shape[0], channels, *spec.output_size(x.shape[2:])))
    return y, _empty(x, y.shape) if save_z else x.new_empty(0)


def _any(need: Any) -> bool:
    return any(need) if isinstance(need, (list, tuple)) else bool(need)


def _forward_setup(ctx, inputs, output):
    (x, weights, bias, in_scale, out_scale, noise, branches, stride, valid, transposed, groups, slope, gain, clamp,
     save_z, backend) = inputs  # fmt: skip
    y, z = output
    ctx.save_for_backward(x, in_scale, out_scale, _needed(y, slope, clamp), z if save_z else None, *weights)
    ctx.geometry = (branches, stride, valid, transposed)
    ctx.epilogue = (groups, slope, gain, clamp)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.noise = None if noise is None else (noise.shape[0], noise.dtype)
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def _needed(y: Tensor, slope: float, clamp: float | None) -> Tensor | None:
    """The output, where the epilogue's backward reads it. Else not: an in-place activation may follow the layer."""
    return y if slope != 1 or clamp is not None else None


def _forward_vjp(ctx, need, gy, gz_saved):
    x, in_scale, out_scale, y, z, *weights = ctx.saved_tensors
    if gy is None and gz_saved is None:
        return (None, [None] * len(weights)) + (None,) * 14
    gz = gbias = gnoise = gout = None
    saved = z is not None
    if gy is not None:
        if need[4] and z is None:  # within vmap and jvp the caller did not see that out_scale wants a gradient
            z = _linear(x, weights, in_scale, ctx.geometry, ctx.backend)
        gz, gbias, gnoise, gout = _epilogue_grads(ctx, gy, y, z, out_scale, need[2], need[5], need[4])
    if gz_saved is not None and saved:
        gz = gz_saved if gz is None else gz + gz_saved
    gx = gin = None
    gw: Any = [None] * len(weights)
    if need[0] or need[3]:
        gx, gin = _input_grads(gz, weights, in_scale, x, ctx, need[0], need[3])
        gx = _laid_out(gx, x.is_contiguous())
    if _any(need[1]):
        gw = list(weight_grad(gz, x, in_scale, *ctx.geometry, ctx.backend))
    return (gx, gw, gbias, gin, gout, gnoise) + (None,) * 10


def _laid_out(gx: Tensor | None, contiguous: bool) -> Tensor | None:
    """A gradient in its tensor's own layout: where these differ, torch's InstanceNorm with a batch of one gives wrong
    gradients (torch 2.13)."""
    return gx.contiguous() if gx is not None and contiguous else gx


def _epilogue_grads(ctx, gy, y, z, out_scale, need_bias, need_noise, need_scale):
    """Gradients of z, bias, noise and out_scale from that of y, in the dtypes of what they belong to."""
    batch = ctx.noise[0] if need_noise else -1
    gz, gbias, gnoise, gout = epilogue_backward(
        gy,
        gy if y is None else y,
        z if need_scale else None,
        out_scale,
        *ctx.epilogue,
        bool(need_bias),
        batch,
        ctx.backend,
    )
    return (
        gz,
        gbias.to(ctx.bias_dtype) if need_bias else None,
        gnoise.to(ctx.noise[1]) if need_noise else None,
        gout.to(out_scale.dtype) if need_scale else None,
    )


def _input_grads(g, weights, in_scale, x, ctx, need_x, need_scale):
    """Gradients of x and in_scale of T(g, x, W)."""
    size = list(x.shape[2:])
    if not need_scale:
        return input_grad(g, weights, in_scale, *ctx.geometry, size, ctx.backend), None
    plain = input_grad(g, weights, None, *ctx.geometry, size, ctx.backend)
    gx = plain * in_scale[:, :, None, None, None].to(plain.dtype) if need_x else None
    wide = _wide(x.dtype)
    return gx, (plain.to(wide) * x.to(wide)).sum((2, 3, 4)).to(in_scale.dtype)


def _forward_jvp(args, output, tangents):
    x, weights, _, in_scale, out_scale, _, *geometry, groups, slope, gain, clamp, save_z, backend = args
    tx, tw, tbias, tin, tout, tnoise, *_ = tangents
    tw = _filled(weights, tw)
    tz = plus(
        None if tx is None else _linear(tx, weights, in_scale, geometry, backend),
        None if tin is None else _linear(x, weights, tin, geometry, backend),
        None if tw is None else _linear(x, tw, in_scale, _without_identity(geometry), backend),
    )
    z = None if tout is None else _linear(x, weights, in_scale, geometry, backend)
    act = (slope, gain, clamp)
    ty = _epilogue_tangent(output[0], z, out_scale, tz, tbias, tnoise, tout, groups, act, backend)
    return ty, torch.zeros_like(output[1]) if not save_z or tz is None else tz


def _filled(weights: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor] | None:
    """Tangents of all weights; None if there is none."""
    if all(t is None for t in tangents):
        return None
    return [torch.zeros_like(w) if t is None else t for w, t in zip(weights, tangents, strict=True)]


forward = transformable("ssconv::forward", _forward_setup, _forward_vjp, _forward_jvp, lambda *args: (0, 3, 4, 5))


def _linear(x: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, geometry: Any, backend: str) -> Tensor:
    """A_W (s x) in branch order."""
    return forward(x, weights, None, in_scale, None, None, *geometry, 1, 1.0, 1.0, None, False, backend)[0]


# ------------------------------------------------------------------------------------------------- input_grad


@_kernel("ssconv::input_grad")
def _input_grad(g, weights, in_scale, branches, stride, valid, transposed, size, backend):
    spec = ConvSpec.decode(branches, stride, valid, transposed, False)
    gx = implementation(backend).input_grad(g, weights, in_scale, spec, size)
    return _fresh(_native(gx, g.dtype), g)


@torch.library.register_fake("ssconv::input_grad")
def _input_grad_fake(g, weights, in_scale, branches, stride, valid, transposed, size, backend):
    channels = weights[0].shape[1] * (len(branches) // 3) if len(weights) else g.shape[1]
    return _empty(g, (g.shape[0], channels, *size))


def _input_grad_setup(ctx, inputs, output):
    g, weights, in_scale, branches, stride, valid, transposed, _, backend = inputs
    ctx.save_for_backward(g, in_scale, *weights)
    ctx.geometry = (branches, stride, valid, transposed)
    ctx.backend = backend


def _input_grad_vjp(ctx, need, c):
    g, in_scale, *weights = ctx.saved_tensors
    gg = gs = None
    gw: Any = [None] * len(weights)
    if need[0]:
        gg = _linear(c, weights, in_scale, ctx.geometry, ctx.backend)
    if _any(need[1]):
        gw = list(weight_grad(g, c, in_scale, *ctx.geometry, ctx.backend))
    if need[2]:
        gs = _input_grads(g, weights, in_scale, c, ctx, False, True)[1]
    return (gg, gw, gs) + (None,) * 6


def _input_grad_jvp(args, output, tangents):
    g, weights, in_scale, *geometry, size, backend = args
    tg, tw, tin, *_ = tangents
    rest = (*geometry, size, backend)
    tw = _filled(weights, tw)
    return plus(
        None if tg is None else input_grad(tg, weights, in_scale, *rest),
        None if tin is None else input_grad(g, weights, tin, *rest),
        None if tw is None else input_grad(g, tw, in_scale, *_without_identity(geometry), size, backend),
    )


input_grad = transformable(
    "ssconv::input_grad", _input_grad_setup, _input_grad_vjp, _input_grad_jvp, lambda *args: (0, 2)
)


# ------------------------------------------------------------------------------------------------ weight_grad


@_kernel("ssconv::weight_grad")
def _weight_grad(g, x, in_scale, branches, stride, valid, transposed, backend):
    spec = ConvSpec.decode(branches, stride, valid, transposed, False)
    grads = implementation(backend).weight_grad(g, x, in_scale, spec)
    return [w.to(x.dtype).contiguous() for w in grads]


@torch.library.register_fake("ssconv::weight_grad")
def _weight_grad_fake(g, x, in_scale, branches, stride, valid, transposed, backend):
    spec = ConvSpec.decode(branches, stride, valid, transposed, False)
    count = len(spec.branches)
    shape = (g.shape[1] // count, x.shape[1] // count)
    return [x.new_empty((*shape, *b)) for b in spec.branches if b not in (IDENTITY, ABSENT)]


def _weight_grad_setup(ctx, inputs, output):
    g, x, in_scale, branches, stride, valid, transposed, backend = inputs
    ctx.save_for_backward(g, x, in_scale)
    ctx.geometry = _without_identity((branches, stride, valid, transposed))
    ctx.backend = backend


def _without_identity(geometry: Sequence[Any]) -> tuple[Any, ...]:
    """An identity branch has no weight: T's derivatives with respect to the weights do not see it."""
    branches, *rest = geometry
    return ([-1 if extent == 0 else extent for extent in branches], *rest)


def _weight_grad_vjp(ctx, need, *cotangents):
    g, x, in_scale = ctx.saved_tensors
    cotangents = list(cotangents)
    gg = gx = gs = None
    if need[0]:
        gg = _linear(x, cotangents, in_scale, ctx.geometry, ctx.backend)
    if need[1] or need[2]:
        gx, gs = _input_grads(g, cotangents, in_scale, x, ctx, need[1], need[2])
    return (gg, gx, gs) + (None,) * 5


def _weight_grad_jvp(args, output, tangents):
    g, x, in_scale, *rest = args
    tg, tx, tin, *_ = tangents
    terms = [
        None if tg is None else weight_grad(tg, x, in_scale, *rest),
        None if tx is None else weight_grad(g, tx, in_scale, *rest),
        None if tin is None else weight_grad(g, x, tin, *rest),
    ]
    return tuple(plus(*parts) for parts in zip(*(t for t in terms if t is not None), strict=True))


weight_grad = transformable(
    "ssconv::weight_grad", _weight_grad_setup, _weight_grad_vjp, _weight_grad_jvp, lambda *args: ()
)


# --------------------------------------------------------------------------------------------------- epilogue


@_kernel("ssconv::epilogue")
def _epilogue(z, bias, out_scale, noise, groups, slope, gain, clamp, backend):
    y = implementation(backend).epilogue(z, bias, out_scale, noise, groups, slope, gain, clamp)
    return _fresh(_native(y, z.dtype), z)


@torch.library.register_fake("ssconv::epilogue")
def _epilogue_fake(z, bias, out_scale, noise, groups, slope, gain, clamp, backend):
    return _empty(z, z.shape)


def _epilogue_setup(ctx, inputs, output):
    z, bias, out_scale, noise, groups, slope, gain, clamp, backend = inputs
    ctx.save_for_backward(z if out_scale is not None else None, out_scale, _needed(output, slope, clamp))
    ctx.epilogue = (groups, slope, gain, clamp)
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.noise = None if noise is None else (noise.shape[0], noise.dtype)
    ctx.backend = backend


def _epilogue_vjp(ctx, need, gy):
    z, out_scale, y = ctx.saved_tensors
    gz, gbias, gnoise, gout = _epilogue_grads(ctx, gy, y, z, out_scale, need[1], need[3], need[2])
    return (gz, gbias, gout, gnoise) + (None,) * 5


def _epilogue_tangent(y, z, out_scale, tz, tbias, tnoise, tscale, groups, act, backend):
    """act'(y) * e with e = out_scale * shuffle(tz) + tnoise + tbias + tscale * shuffle(z), in y's order; each part may
    be None. For the backward of epilogue_backward the t's are cotangents: the op is linear, the adjoint the same."""
    e = None
    if tz is not None:
        e = epilogue(tz, tbias, out_scale, tnoise, groups, 1.0, 1.0, None, backend)
    elif tbias is not None or tnoise is not None:
        zero = torch.zeros_like(y)
        e = epilogue(zero, tbias, None, tnoise, 1, 1.0, 1.0, None, backend)
    if tscale is not None and z is not None:
        e = plus(e, epilogue(z, None, tscale, None, groups, 1.0, 1.0, None, backend))
    return None if e is None else epilogue_backward(e, y, None, None, 1, *act, False, -1, backend)[0]


def _epilogue_jvp(args, output, tangents):
    z, _, out_scale, _, groups, *act, backend = args
    tz, tbias, tout, tnoise, *_ = tangents
    return _epilogue_tangent(output, z, out_scale, tz, tbias, tnoise, tout, groups, act, backend)


epilogue = transformable("ssconv::epilogue", _epilogue_setup, _epilogue_vjp, _epilogue_jvp, lambda *args: (0, 2, 3))


@_kernel("ssconv::epilogue_backward")
def _epilogue_backward(gy, y, z, out_scale, groups, slope, gain, clamp, bias_grad, noise_batch, backend):
    grads = implementation(backend).epilogue_backward(
        gy, y, z, out_scale, groups, slope, gain, clamp, bias_grad, noise_batch
    )
    gz, *sums = grads
    sums = [y.new_empty(0, dtype=_wide(y.dtype)) if t is None else t.contiguous() for t in sums]
    return _fresh(_native(gz, y.dtype), gy), *sums


@torch.library.register_fake("ssconv::epilogue_backward")
def _epilogue_backward_fake(gy, y, z, out_scale, groups, slope, gain, clamp, bias_grad, noise_batch, backend):
    wide = _wide(y.dtype)
    none = y.new_empty(0, dtype=wide)
    return (
        _empty(y, y.shape),
        y.new_empty(y.shape[1], dtype=wide) if bias_grad else none,
        none.clone() if isinstance(noise_batch, int) and noise_batch < 0
        else y.new_empty((noise_batch, 1, *y.shape[2:]), dtype=wide),
        none.clone() if z is None else y.new_empty(y.shape[:2], dtype=wide),
    )  # fmt: skip


def _epilogue_backward_setup(ctx, inputs, output):
    gy, y, z, out_scale, groups, slope, gain, clamp, bias_grad, noise_batch, backend = inputs
    ctx.save_for_backward(gy, y, z, out_scale)
    ctx.epilogue = (groups, slope, gain, clamp)
    ctx.wants = (bias_grad, noise_batch)
    ctx.backend = backend
    ctx.set_materialize_grads(False)


def _epilogue_backward_vjp(ctx, need, cz, cbias, cnoise, cscale):
    """With e = out_scale * shuffle(cz) + cnoise + cbias + cscale * shuffle(z), all outputs together are <e, pre>,
    where pre = act'(y) * gy; act' is piecewise constant, so y takes no gradient."""
    gy, y, z, out_scale = ctx.saved_tensors
    groups, *act = ctx.epilogue
    bias_grad, noise_batch = ctx.wants
    cbias = cbias if bias_grad else None
    cnoise = cnoise if noise_batch >= 0 else None
    ggy = gz = gout = None
    if need[0]:
        ggy = _epilogue_tangent(y, z, out_scale, cz, cbias, cnoise, cscale, groups, act, ctx.backend)
        ggy = None if ggy is None else ggy.to(gy.dtype)
    if need[2] and cscale is not None:
        gz = epilogue_backward(gy, y, None, cscale, groups, *act, False, -1, ctx.backend)[0]
    if need[3] and cz is not None:
        # d/d out_scale <cz, unshuffle(out_scale * pre)> is what the op computes for its own out_scale, with z = cz.
        gout = epilogue_backward(gy, y, cz, None, groups, *act, False, -1, ctx.backend)[3].to(out_scale.dtype)
    return (ggy, None, gz, gout) + (None,) * 7


def _epilogue_backward_jvp(args, output, tangents):
    gy, y, z, out_scale, groups, *rest, backend = args
    act = rest[:3]
    tgy, _, tz, tout, *_ = tangents
    result = [torch.zeros_like(t) for t in output]
    if tgy is not None:
        result = list(epilogue_backward(tgy, y, z, out_scale, groups, *rest, backend))
    if tout is not None:
        result[0] = plus(result[0], epilogue_backward(gy, y, None, tout, groups, *act, False, -1, backend)[0])
    if tz is not None:
        result[3] = plus(result[3], epilogue_backward(gy, y, tz, None, groups, *act, False, -1, backend)[3])
    return tuple(result)


def _epilogue_backward_samples(gy, y, z, out_scale, groups, slope, gain, clamp, bias_grad, noise_batch, backend):
    return () if bias_grad or noise_batch >= 0 else (0, 1, 2, 3)


epilogue_backward = transformable(
    "ssconv::epilogue_backward",
    _epilogue_backward_setup,
    _epilogue_backward_vjp,
    _epilogue_backward_jvp,
    _epilogue_backward_samples,
)


# ---------------------------------------------------------------------------------------------------- upfirdn


def _lengths(taps: Sequence[Tensor | None]) -> list[int]:
    return [1 if t is None else t.shape[0] for t in taps]


@_kernel("ssconv::upfirdn")
def _upfirdn(x, taps_d, taps_h, taps_w, up, down, padding, backend):
    y = implementation(backend).upfirdn(x, (taps_d, taps_h, taps_w), up, down, padding)
    return _fresh(_native(y, x.dtype), x)


@torch.library.register_fake("ssconv::upfirdn")
def _upfirdn_fake(x, taps_d, taps_h, taps_w, up, down, padding, backend):
    size = upfirdn_size(x.shape[2:], _lengths((taps_d, taps_h, taps_w)), up, down, padding)
    return _empty(x, (*x.shape[:2], *size))


def _upfirdn_setup(ctx, inputs, output):
    x, *taps, up, down, padding, backend = inputs
    ctx.save_for_backward(*taps)
    ctx.args = (list(x.shape[2:]), list(output.shape[2:]), up, down, padding, backend)
    ctx.contiguous = x.is_contiguous()


def _upfirdn_vjp(ctx, need, g):
    taps = ctx.saved_tensors
    size, out, up, down, padding, backend = ctx.args
    adjoint = []
    for d, length in enumerate(_lengths(taps)):
        p0 = padding[2 * d]
        adjoint += [length - p0 - 1, size[d] * up[d] - out[d] * down[d] + p0 - up[d] + 1]
    flipped = [None if t is None else t.flip(0) for t in taps]
    gx = upfirdn(g, *flipped, down, up, adjoint, backend)
    return (_laid_out(gx, ctx.contiguous),) + (None,) * 7


def _upfirdn_jvp(args, output, tangents):
    return upfirdn(tangents[0], *args[1:])


upfirdn = transformable("ssconv::upfirdn", _upfirdn_setup, _upfirdn_vjp, _upfirdn_jvp, lambda *args: (0,))
