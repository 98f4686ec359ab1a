"""The registered ops `ssconv::epilogue` and `ssconv::epilogue_backward`.

With z in branch order,

    pre = out_scale * shuffle(z) + noise + bias
    y   = clamp(gain * act(pre))                         epilogue
    dz  = unshuffle(out_scale * act'(y) * dy), and sums  epilogue_backward

act'(y) stands for dy / dpre, which the output tells. It is piecewise constant, so both ops are linear in z and in the
gradient, and each one's derivatives are made of the two.
"""

from __future__ import annotations

import torch

from ssconv.backend.dispatch import implementation
from ssconv.ops.registration import Op, empty_result, own_result, sum_dtype
from ssconv.ops.transforms import plus, transformable
from ssconv.spec import Epilogue

EPILOGUE = Op(
    "epilogue",
    "Tensor z, Tensor? bias, Tensor? out_scale, Tensor? noise, Epilogue epilogue, str backend",
    "Tensor",
)
EPILOGUE_BACKWARD = Op(
    "epilogue_backward",
    "Tensor gy, Tensor y, Tensor? z, Tensor? out_scale, Epilogue epilogue, bool bias_grad, SymInt noise_batch, "
    "str backend",
    "(Tensor, Tensor, Tensor, Tensor)",
)

# --------------------------------------------------------------------------------------------------- epilogue


@EPILOGUE.kernel
def _epilogue(z, bias, out_scale, noise, settings, backend):
    y = implementation(backend).epilogue(z, bias, out_scale, noise, settings)
    return own_result(y, z.dtype, z)


@EPILOGUE.fake
def _epilogue_fake(z, bias, out_scale, noise, settings, backend):
    return empty_result(z, z.shape)


def save_epilogue(ctx, settings, bias, noise, backend):
    """Keeps what `epilogue_grads` needs, but for tensors."""
    ctx.epilogue, ctx.backend = settings, backend
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.noise_batch, ctx.noise_dtype = (-1, None) if noise is None else (noise.shape[0], noise.dtype)


def output_to_save(y, settings):
    """The output, where the epilogue's backward reads it; else None, for an in-place activation may follow the
    layer."""
    return y if settings.negative_slope != 1 or settings.clamp is not None else None


def epilogue_grads(ctx, gy, y, z, out_scale, need_bias, need_noise, need_scale):
    """Gradients of z, bias, noise and out_scale from that of y, in the dtypes of what they belong to."""
    gz, gbias, gnoise, gout = epilogue_backward(
        gy,
        gy if y is None else y,
        z if need_scale else None,
        out_scale,
        ctx.epilogue,
        bool(need_bias),
        ctx.noise_batch if need_noise else -1,
        ctx.backend,
    )
    return (
        gz,
        gbias.to(ctx.bias_dtype) if need_bias else None,
        gnoise.to(ctx.noise_dtype) if need_noise else None,
        gout.to(out_scale.dtype) if need_scale else None,
    )


def _epilogue_setup(ctx, inputs, output):
    z, bias, out_scale, noise, settings, backend = inputs
    ctx.save_for_backward(z if out_scale is not None else None, out_scale, output_to_save(output, settings))
    save_epilogue(ctx, settings, bias, noise, backend)


def _epilogue_vjp(ctx, need, gy):
    z, out_scale, y = ctx.saved_tensors
    gz, gbias, gnoise, gout = epilogue_grads(ctx, gy, y, z, out_scale, need[1], need[3], need[2])
    return gz, gbias, gout, gnoise


def epilogue_tangent(y, z, out_scale, tz, tbias, tnoise, tscale, settings, backend):
    """act'(y) * e with e = out_scale * shuffle(tz) + tnoise + tbias + tscale * shuffle(z), in y's order; each part may
    be None. For the backward of epilogue_backward the t's are cotangents: the op is linear, the adjoint the same."""
    only_shuffle = Epilogue(settings.groups)
    e = None
    if tz is not None:
        e = epilogue(tz, tbias, out_scale, tnoise, only_shuffle, backend)
    elif tbias is not None or tnoise is not None:
        e = epilogue(torch.zeros_like(y), tbias, None, tnoise, Epilogue(), backend)
    if tscale is not None and z is not None:
        e = plus(e, epilogue(z, None, tscale, None, only_shuffle, backend))
    if e is None or (settings.negative_slope == 1 and settings.gain == 1 and settings.clamp is None):
        return e
    return epilogue_backward(e, y, None, None, settings._replace(groups=1), False, -1, backend)[0]


def _epilogue_jvp(args, output, tangents):
    z, _, out_scale, _, settings, backend = args
    tz, tbias, tout, tnoise, *_ = tangents
    return epilogue_tangent(output, z, out_scale, tz, tbias, tnoise, tout, settings, backend)


epilogue = transformable(EPILOGUE, _epilogue_setup, _epilogue_vjp, _epilogue_jvp, lambda *args: (0, 2, 3))


# ------------------------------------------------------------------------------------------ epilogue_backward


@EPILOGUE_BACKWARD.kernel
def _epilogue_backward(gy, y, z, out_scale, settings, bias_grad, noise_batch, backend):
    gz, *sums = implementation(backend).epilogue_backward(gy, y, z, out_scale, settings, bias_grad, noise_batch)
    sums = [y.new_empty(0, dtype=sum_dtype(y.dtype)) if t is None else t.contiguous() for t in sums]
    return own_result(gz, y.dtype, gy), *sums


@EPILOGUE_BACKWARD.fake
def _epilogue_backward_fake(gy, y, z, out_scale, settings, bias_grad, noise_batch, backend):
    def sums(wanted, *shape):
        return y.new_empty(shape if wanted else 0, dtype=sum_dtype(y.dtype))

    return (
        empty_result(y, y.shape),
        sums(bias_grad, y.shape[1]),
        sums(not (isinstance(noise_batch, int) and noise_batch < 0), noise_batch, 1, *y.shape[2:]),
        sums(z is not None, *y.shape[:2]),
    )


def _epilogue_backward_setup(ctx, inputs, output):
    gy, y, z, out_scale, ctx.epilogue, ctx.bias_grad, ctx.noise_batch, ctx.backend = inputs
    ctx.save_for_backward(gy, y, z, out_scale)
    ctx.set_materialize_grads(False)


def _epilogue_backward_vjp(ctx, need, cz, cbias, cnoise, cscale):
    """With e = out_scale * shuffle(cz) + cnoise + cbias + cscale * shuffle(z), all outputs together are <e, pre>,
    where pre = act'(y) * gy; act' is piecewise constant, so y takes no gradient."""
    gy, y, z, out_scale = ctx.saved_tensors
    settings, backend = ctx.epilogue, ctx.backend
    cbias = cbias if ctx.bias_grad else None
    cnoise = cnoise if ctx.noise_batch >= 0 else None
    ggy = gz = gout = None
    if need[0]:
        ggy = epilogue_tangent(y, z, out_scale, cz, cbias, cnoise, cscale, settings, backend)
        ggy = None if ggy is None else ggy.to(gy.dtype)
    if need[2] and cscale is not None:
        gz = epilogue_backward(gy, y, None, cscale, settings, False, -1, backend)[0]
    if need[3] and cz is not None:
        # d/d out_scale <cz, unshuffle(out_scale * pre)> is what the op computes for its own out_scale, with z = cz.
        gout = epilogue_backward(gy, y, cz, None, settings, False, -1, backend)[3].to(out_scale.dtype)
    return ggy, None, gz, gout


def _epilogue_backward_jvp(args, output, tangents):
    gy, y, _, _, settings, *_, backend = args
    tgy, _, tz, tout, *_ = tangents
    result = [torch.zeros_like(t) for t in output]
    if tgy is not None:
        result = list(epilogue_backward(tgy, *args[1:]))
    if tout is not None:
        result[0] = plus(result[0], epilogue_backward(gy, y, None, tout, settings, False, -1, backend)[0])
    if tz is not None:
        result[3] = plus(result[3], epilogue_backward(gy, y, tz, None, settings, False, -1, backend)[3])
    return tuple(result)


def _epilogue_backward_per_sample(gy, y, z, out_scale, settings, bias_grad, noise_batch, backend):
    return () if bias_grad or noise_batch >= 0 else (0, 1, 2, 3)


epilogue_backward = transformable(
    EPILOGUE_BACKWARD,
    _epilogue_backward_setup,
    _epilogue_backward_vjp,
    _epilogue_backward_jvp,
    _epilogue_backward_per_sample,
)
