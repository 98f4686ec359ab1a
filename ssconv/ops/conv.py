"""The registered ops `ssconv::forward`, `ssconv::input_grad` and `ssconv::weight_grad`.

Let A_W be the linear map of the branches (without shuffle), s in_scale, and T(g, x, W) = <g, A_W (s x)>. T is linear in
each argument, so the ops differentiate into each other:

    forward      y = epilogue(A_W (s x));  d/dx = input_grad, d/dW = weight_grad, d/ds = sum x * A_W^T g
    input_grad   s A_W^T g = dT/dx         its derivatives are those of T with the cotangent for x
    weight_grad  dT/dW                     its derivatives are those of T with the cotangents for W

Derivatives of any order stay within these, `epilogue` and `epilogue_backward`, on every backend. Tensors between
them are in branch order: branch s of S owns the channels s*C/S .. (s+1)*C/S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.backend.dispatch import implementation
from ssconv.ops.epilogue import epilogue_backward, epilogue_grads, epilogue_tangent, output_to_save, save_epilogue
from ssconv.ops.registration import Op, any_needed, empty_result, input_gradient, own_result
from ssconv.ops.transforms import plus, transformable
from ssconv.spec import ABSENT, IDENTITY, Epilogue, Geometry

FORWARD = Op(
    "forward",
    "Tensor x, Tensor[] weights, Tensor? bias, Tensor? in_scale, Tensor? out_scale, Tensor? noise, "
    "Geometry geometry, Epilogue epilogue, bool save_z, str backend",
    "(Tensor, Tensor)",
)
INPUT_GRAD = Op(
    "input_grad",
    "Tensor g, Tensor[] weights, Tensor? in_scale, Geometry geometry, SymInt[] size, str backend",
    "Tensor",
)
WEIGHT_GRAD = Op(
    "weight_grad",
    "Tensor g, Tensor x, Tensor? in_scale, Geometry geometry, str backend",
    "Tensor[]",
)

# ---------------------------------------------------------------------------------------------------- forward


@FORWARD.kernel
def _forward(x, weights, bias, in_scale, out_scale, noise, geometry, epilogue, save_z, backend):
    y, z = implementation(backend).convolve(
        x, weights, bias, in_scale, out_scale, noise, geometry, epilogue, save_z
    )  # fmt: skip
    y = own_result(y, x.dtype, x)
    return y, own_result(z, x.dtype, x, y) if save_z else x.new_empty(0)


@FORWARD.fake
def _forward_fake(x, weights, bias, in_scale, out_scale, noise, geometry, epilogue, save_z, backend):
    channels = weights[0].shape[0] * len(geometry.branches) if len(weights) else x.shape[1]
    y = empty_result(x, (x.shape[0], channels, *geometry.output_size(x.shape[2:])))
    return y, empty_result(x, y.shape) if save_z else x.new_empty(0)


def _forward_setup(ctx, inputs, output):
    x, weights, bias, in_scale, out_scale, noise, ctx.geometry, epilogue, save_z, backend = inputs
    y, z = output
    ctx.save_for_backward(x, in_scale, out_scale, output_to_save(y, epilogue), z if save_z else None, *weights)
    save_epilogue(ctx, epilogue, bias, noise, backend)
    ctx.set_materialize_grads(False)


def _forward_vjp(ctx, need, gy, gz_saved):
    x, in_scale, out_scale, y, z, *weights = ctx.saved_tensors
    gx = gin = gz = gbias = gnoise = gout = None
    gw: Any = [None] * len(weights)
    if gy is None and gz_saved is None:
        return gx, gw, gbias, gin, gout, gnoise
    saved = z is not None
    if gy is not None:
        if need[4] and z is None:  # under vmap and jvp the caller cannot see that out_scale needs a gradient
            z = _linear(x, weights, in_scale, ctx.geometry, ctx.backend)
        gz, gbias, gnoise, gout = epilogue_grads(ctx, gy, y, z, out_scale, need[2], need[5], need[4])
    if gz_saved is not None and saved:
        gz = gz_saved if gz is None else gz + gz_saved
    if need[0] or need[3]:
        gx, gin = _input_grads(gz, weights, in_scale, x, ctx, need[0], need[3])
        gx = input_gradient(gx, x.is_contiguous())
    if any_needed(need[1]):
        gw = list(weight_grad(gz, x, in_scale, ctx.geometry, ctx.backend))
    return gx, gw, gbias, gin, gout, gnoise


def _input_grads(g, weights, in_scale, x, ctx, need_x, need_scale):
    """Gradients of x and in_scale of T(g, x, W)."""
    size = list(x.shape[2:])
    if not need_scale:
        return input_grad(g, weights, in_scale, ctx.geometry, size, ctx.backend), None
    plain = input_grad(g, weights, None, ctx.geometry, size, ctx.backend)
    # in_scale multiplies x as out_scale multiplies z: one pass gives both gradients.
    gx, *_, gs = epilogue_backward(plain, plain, x, in_scale, Epilogue(), False, -1, ctx.backend)
    return gx if need_x else None, gs.to(in_scale.dtype)


def _forward_jvp(args, output, tangents):
    x, weights, _, in_scale, out_scale, _, geometry, epilogue, save_z, backend = args
    tx, tw, tbias, tin, tout, tnoise, *_ = tangents
    tw = _filled(weights, tw)
    tz = plus(
        None if tx is None else _linear(tx, weights, in_scale, geometry, backend),
        None if tin is None else _linear(x, weights, tin, geometry, backend),
        None if tw is None else _linear(x, tw, in_scale, geometry.without_identity(), backend),
    )
    z = None if tout is None else _linear(x, weights, in_scale, geometry, backend)
    ty = epilogue_tangent(output[0], z, out_scale, tz, tbias, tnoise, tout, epilogue, backend)
    return ty, torch.zeros_like(output[1]) if not save_z or tz is None else tz


def _filled(weights: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor] | None:
    """Tangents of all weights; None if there is none."""
    if all(t is None for t in tangents):
        return None
    return [torch.zeros_like(w) if t is None else t for w, t in zip(weights, tangents, strict=True)]


forward = transformable(FORWARD, _forward_setup, _forward_vjp, _forward_jvp, lambda *args: (0, 3, 4, 5))


def _linear(x: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, geometry: Geometry, backend: str) -> Tensor:
    """A_W (s x) in branch order."""
    return forward(x, weights, None, in_scale, None, None, geometry, Epilogue(), False, backend)[0]


# ------------------------------------------------------------------------------------------------- input_grad


@INPUT_GRAD.kernel
def _input_grad(g, weights, in_scale, geometry, size, backend):
    return own_result(implementation(backend).input_grad(g, weights, in_scale, geometry, size), g.dtype, g)


@INPUT_GRAD.fake
def _input_grad_fake(g, weights, in_scale, geometry, size, backend):
    channels = weights[0].shape[1] * len(geometry.branches) if len(weights) else g.shape[1]
    return empty_result(g, (g.shape[0], channels, *size))


def _input_grad_setup(ctx, inputs, output):
    g, weights, in_scale, ctx.geometry, _, ctx.backend = inputs
    ctx.save_for_backward(g, in_scale, *weights)


def _input_grad_vjp(ctx, need, c):
    g, in_scale, *weights = ctx.saved_tensors
    gg = gs = None
    gw: Any = [None] * len(weights)
    if need[0]:
        gg = _linear(c, weights, in_scale, ctx.geometry, ctx.backend)
    if any_needed(need[1]):
        gw = list(weight_grad(g, c, in_scale, ctx.geometry, ctx.backend))
    if need[2]:
        gs = _input_grads(g, weights, in_scale, c, ctx, False, True)[1]
    return gg, gw, gs


def _input_grad_jvp(args, output, tangents):
    g, weights, in_scale, geometry, *rest = args
    tg, tw, tin, *_ = tangents
    tw = _filled(weights, tw)
    return plus(
        None if tg is None else input_grad(tg, weights, in_scale, geometry, *rest),
        None if tin is None else input_grad(g, weights, tin, geometry, *rest),
        None if tw is None else input_grad(g, tw, in_scale, geometry.without_identity(), *rest),
    )


input_grad = transformable(INPUT_GRAD, _input_grad_setup, _input_grad_vjp, _input_grad_jvp, lambda *args: (0, 2))


# ------------------------------------------------------------------------------------------------ weight_grad


@WEIGHT_GRAD.kernel
def _weight_grad(g, x, in_scale, geometry, backend):
    grads = implementation(backend).weight_grad(g, x, in_scale, geometry)
    return [w.to(x.dtype).contiguous() for w in grads]


@WEIGHT_GRAD.fake
def _weight_grad_fake(g, x, in_scale, geometry, backend):
    count = len(geometry.branches)
    channels = (g.shape[1] // count, x.shape[1] // count)
    return [x.new_empty((*channels, *b)) for b in geometry.branches if b not in (IDENTITY, ABSENT)]


def _weight_grad_setup(ctx, inputs, output):
    g, x, in_scale, geometry, ctx.backend = inputs
    ctx.save_for_backward(g, x, in_scale)
    ctx.geometry = geometry.without_identity()


def _weight_grad_vjp(ctx, need, *cotangents):
    g, x, in_scale = ctx.saved_tensors
    gg = gx = gs = None
    if need[0]:
        gg = _linear(x, list(cotangents), in_scale, ctx.geometry, ctx.backend)
    if need[1] or need[2]:
        gx, gs = _input_grads(g, list(cotangents), in_scale, x, ctx, need[1], need[2])
    return gg, gx, gs


def _weight_grad_jvp(args, output, tangents):
    g, x, in_scale, *rest = args
    tg, tx, tin, *_ = tangents
    terms = [
        None if tg is None else weight_grad(tg, x, in_scale, *rest),
        None if tx is None else weight_grad(g, tx, in_scale, *rest),
        None if tin is None else weight_grad(g, x, tin, *rest),
    ]
    return tuple(plus(*parts) for parts in zip(*(t for t in terms if t is not None), strict=True))


weight_grad = transformable(WEIGHT_GRAD, _weight_grad_setup, _weight_grad_vjp, _weight_grad_jvp, lambda *args: ())
