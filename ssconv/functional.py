"""The operator as functions: validation, then one registered op (two where the border of upfirdn3d is replicated)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssconv import ops
from ssconv.backend.dispatch import resolve
from ssconv.spec import (
    Epilogue,
    check_call,
    check_companion,
    check_epilogue,
    check_input,
    check_noise,
    triple,
    upfirdn_size,
)


def split_shuffle_conv3d(
    x: Tensor,
    weights: Sequence[Tensor | None],
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: str = "same",
    transposed: bool = False,
    shuffle: bool = True,
    in_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    noise: Tensor | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Channel-split 3D convolution with channel shuffle and fused epilogue (Liu et al. 2022).

    The Cin channels are split into S equal consecutive branches; branch s convolves its own with weights[s], and

        z[:, j*S + s] = conv_s(in_scale * x)[:, j]         (shuffle=True; branch after branch otherwise)
        y = clamp(gain * act(out_scale * z + noise + bias))

    Differentiable to any order in every tensor argument, in forward mode and under the transforms of torch.func too.
    Under torch.autocast x and the weights are brought to the autocast dtype, as for nn.Conv3d.

    Args:
        x: (N, Cin, D, H, W), float16, bfloat16, float32 or float64; native layout torch.channels_last_3d.
        weights: one (Cout/S, Cin/S, kd, kh, kw) per branch, odd extents, x's dtype; None is the identity branch
            (needs Cin == Cout, stride 1, not transposed).
        bias: (Cout,).
        stride: 1 or 2, one number or three for D, H, W.
        padding: "same": window centres at 0, stride, ..; output ceil(n / stride); outside reads zero.
            "valid": output (n - K) // stride + 1, K the largest extent over the branches.
        transposed: the adjoint of the strided convolution, taps not flipped, weights of the same shape. Output
            n * stride ("same") or (n - 1) * stride + K ("valid").
        in_scale: (N, Cin), multiplies x: StyleGAN2's modulation. out_scale: (N, Cout): its demodulation.
        noise: (N, 1, D', H', W') or (1, 1, D', H', W') of the output.
        activation: "linear" or "lrelu" with `negative_slope`.
        gain, clamp: factor after the activation, then a symmetric bound (None: unbounded).
        backend: "auto" or a name of `ssconv.backends()`.

    Returns:
        (N, Cout, D', H', W') in torch.channels_last_3d, dtype of x.

    Raises:
        ValueError, TypeError: the message names the argument, what was expected and what came.
        RuntimeError: the backend asked for cannot serve; the message says why.

    Example:
        >>> x = torch.randn(2, 8, 16, 24, 16)
        >>> w = [torch.randn(4, 4, 3, 3, 3), torch.randn(4, 4, 1, 3, 3)]
        >>> split_shuffle_conv3d(x, w, torch.zeros(8), activation="lrelu").shape
        torch.Size([2, 8, 16, 24, 16])
    """
    weights = list(weights) if not isinstance(weights, Tensor) and hasattr(weights, "__iter__") else weights
    check_input(x)
    if (dtype := _autocast_dtype(x)) is not None:
        x, weights = _lowered(x, dtype), [_lowered(w, dtype) for w in weights] if isinstance(weights, list) else weights
        bias, in_scale, out_scale, noise = (_beside(x, t) for t in (bias, in_scale, out_scale, noise))
    geometry = check_call(x, weights, bias, stride, padding, transposed, in_scale, out_scale, noise)
    check_epilogue(activation, negative_slope, clamp)
    epilogue = _epilogue(len(geometry.branches) if shuffle else 1, activation, negative_slope, gain, clamp)
    chosen = resolve(backend, x)
    # The gradient of out_scale is a sum over z, which the output alone cannot give back.
    save_z = out_scale is not None and out_scale.requires_grad and torch.is_grad_enabled()
    present = [w for w in weights if w is not None]
    y, _ = ops.forward(x, present, bias, in_scale, out_scale, noise, geometry, epilogue, save_z, chosen)
    return y


def _epilogue(groups: int, activation: str, negative_slope: float, gain: float, clamp: float | None) -> Epilogue:
    """The epilogue that the options of a call ask for."""
    slope = 1.0 if activation == "linear" else float(negative_slope)
    return Epilogue(groups, slope, float(gain), None if clamp is None else float(clamp))


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of convolutions under torch.autocast on x's device; None outside of it."""
    device = x.device.type
    # torch.compile of 2.11 traces no question whether a device has autocast; these have it.
    on = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    on = on and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def _lowered(t: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What autocast does to an argument of a convolution; float64 it leaves alone."""
    return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t


def _beside(x: Tensor, t: Tensor | None) -> Tensor | None:
    """A companion that comes out of an autocast layer, in a dtype that x goes with: x's, or float32 beside 16 bit."""
    if not isinstance(t, Tensor) or t.dtype == x.dtype or (t.dtype == torch.float32 and x.dtype.itemsize == 2):
        return t
    return _lowered(t, x.dtype)


def upfirdn3d(
    x: Tensor,
    taps: Tensor | Sequence[Tensor | None],
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 1.0,
    depth_border: str = "zero",
    bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    noise: Tensor | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    clamp: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Zero-insert, pad or crop, filter with a separable FIR, decimate, then the operator's epilogue.

    StyleGAN2's `upfirdn2d` (Karras et al. 2020) in three dimensions, with

        y = clamp(gain * act(out_scale * upfirdn(x) + noise + bias))

    Differentiable to any order in x, bias, out_scale and noise; the taps are constants. The dtype of x decides, also
    under torch.autocast.

    Args:
        x: (N, C, D, H, W).
        taps: one 1-D tensor for all three dimensions, or three of them (None: no filter) for D, H, W. A true
            convolution: taps are applied in reverse order.
        up, down: insertion and decimation factors >= 1, one number or three for D, H, W.
        padding: one number, three for D, H, W, or six (d0, d1, h0, h1, w0, w1), in samples of the zero-inserted
            signal; negative crops.
        depth_border: "zero", or "replicate": along depth the input reads outside as its border slice, so that what
            is constant along depth stays so.
        bias, out_scale, noise, activation, negative_slope, gain, clamp, backend: as in `split_shuffle_conv3d`.

    Returns:
        (N, C, D', H', W') with ceil((n * up + p0 + p1 - taps + 1) / down) samples per dimension.
    """
    check_input(x)
    check_epilogue(activation, negative_slope, clamp)
    per_dim = _check_taps(x, taps)
    up, down = _factors(up, "up"), _factors(down, "down")
    pads = _paddings(padding)
    if depth_border not in ("zero", "replicate"):
        raise ValueError(f'depth_border: expected "zero" or "replicate"; got {depth_border!r}')
    lengths = [1 if t is None else t.shape[0] for t in per_dim]
    size = upfirdn_size(x.shape[2:], lengths, up, down, pads)
    if any(n < 1 for n in size) or any(n < 1 for n in x.shape[2:]):
        raise ValueError(
            f"x: extents {tuple(x.shape[2:])} with up {up}, down {down}, padding {tuple(pads)} and {lengths} taps "
            f"leave {tuple(size)} samples; expected at least one in each dimension"
        )
    if _autocast_dtype(x) is not None:
        bias, out_scale, noise = (_beside(x, t) for t in (bias, out_scale, noise))
    check_companion(x, bias, "bias", [(x.shape[1],)], "(C,)")
    check_companion(x, out_scale, "out_scale", [(x.shape[0], x.shape[1])], "(N, C)")
    check_noise(x, noise, size)
    chosen = resolve(backend, x)
    if depth_border == "replicate":
        x, pads = _extend_depth(x, up[0], pads)
    y = ops.upfirdn(x, *per_dim, list(up), list(down), pads, chosen)
    epilogue = _epilogue(1, activation, negative_slope, gain, clamp)
    if bias is None and out_scale is None and noise is None and epilogue == Epilogue():
        return y
    return ops.epilogue(y, bias, out_scale, noise, epilogue, chosen)


def replicate_depth(x: Tensor, before: int, after: int) -> Tensor:
    """x (N, C, D, H, W) with its first and last slice repeated `before` and `after` times along depth."""
    if not before and not after:
        return x
    n, c, _, h, w = x.shape
    parts = [x[:, :, :1].expand(n, c, before, h, w), x, x[:, :, -1:].expand(n, c, after, h, w)]
    return torch.cat(parts, 2)


def _extend_depth(x: Tensor, up: int, pads: list[int]) -> tuple[Tensor, list[int]]:
    """Replaces zero padding along depth by repeated border slices of the input, on the same output grid."""
    before, after = (max(0, -(-p // up)) for p in pads[:2])
    return replicate_depth(x, before, after), [pads[0] - before * up, pads[1] - after * up, *pads[2:]]


def _check_taps(x: Tensor, taps: Tensor | Sequence[Tensor | None]) -> list[Tensor | None]:
    per_dim = [taps] * 3 if isinstance(taps, Tensor) else list(taps) if isinstance(taps, (list, tuple)) else [taps]
    if len(per_dim) != 3:
        raise ValueError(f"taps: expected one 1-D tensor, or three of them (or None) for D, H, W; got {taps!r}")
    for t in per_dim:
        if t is None:
            continue
        if not isinstance(t, Tensor) or t.dim() != 1 or t.shape[0] < 1:
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"taps: expected 1-D tensors with at least one tap; got {got}")
        if t.requires_grad:
            raise ValueError("taps: are constants here and get no gradient; pass taps.detach()")
        if t.device != x.device:
            raise ValueError(f"taps: expected device {x.device} as x has; got {t.device}; move one of them")
    return per_dim


def _factors(value: int | Sequence[int], name: str) -> tuple[int, int, int]:
    factors = triple(value, name)
    if min(factors) < 1:
        raise ValueError(f"{name}: expected factors of at least 1; got {value!r}")
    return factors


def _paddings(value: int | Sequence[int]) -> list[int]:
    if isinstance(value, int):
        return [value] * 6
    values = list(value) if isinstance(value, Sequence) else []
    if len(values) == 3:
        values = [v for v in values for _ in range(2)]
    if len(values) != 6 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"padding: expected an int, three or six of them (d0, d1, h0, h1, w0, w1); got {value!r}")
    return values
