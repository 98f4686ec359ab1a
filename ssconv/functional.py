"""The operator as functions. Each checks its arguments, then calls registered ops."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ssconv import ops
from ssconv.backend import reference
from ssconv.backend.dispatch import resolve
from ssconv.spec import (
    Activation,
    Backend,
    DepthBorder,
    Epilogue,
    Padding,
    check_call,
    check_companion,
    check_epilogue,
    check_input,
    check_noise,
    triple,
    upfirdn_size,
)

_TensorOrNone = TypeVar("_TensorOrNone", Tensor, Tensor | None)
_EXPORTING = False  # whether the operator is PyTorch's own operators now


@contextlib.contextmanager
def export_mode() -> Iterator[None]:
    """Makes the operator plain PyTorch within a `with` block: convolutions, concatenation, channel shuffle, activation.

    For torch.onnx.export, torch.export and torch.jit.trace: what they write needs no ssconv. The results are the same
    to rounding, at the speed of PyTorch's own operators. It holds for all threads of the process.

    Example:
        >>> layer, x = ssconv.SplitShuffleConv3d(4, 4), torch.zeros(1, 4, 4, 4, 4)
        >>> with ssconv.export_mode():
        ...     program = torch.export.export(layer, (x,))
    """
    global _EXPORTING
    before, _EXPORTING = _EXPORTING, True
    try:
        yield
    finally:
        _EXPORTING = before


def split_shuffle_conv3d(
    x: Tensor,
    weights: Sequence[Tensor | None],
    bias: Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: Padding = "same",
    transposed: bool = False,
    shuffle: bool = True,
    in_scale: Tensor | None = None,
    out_scale: Tensor | None = None,
    noise: Tensor | None = None,
    activation: Activation = "linear",
    negative_slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Channel-split 3D convolution with channel shuffle and fused epilogue (Liu et al. 2022).

    The Cin channels are split into S equal consecutive branches. Branch s convolves its channels with weights[s]:

        z[:, j*S + s] = conv_s(in_scale * x)[:, j]         with shuffle, else branch after branch
        y = clamp(gain * act(out_scale * z + noise + bias))

    It is differentiable to any order in every tensor argument, also in forward mode and under torch.func.
    Under torch.autocast x and the weights are cast to the autocast dtype, as for nn.Conv3d.

    Args:
        x: (N, Cin, D, H, W), float16, bfloat16, float32 or float64; native layout torch.channels_last_3d.
        weights: one (Cout/S, Cin/S, kd, kh, kw) per branch, odd extents, x's dtype; None is the identity branch
            (needs Cin == Cout, stride 1, not transposed).
        bias: (Cout,).
        stride: 1 or 2, one number or three for D, H, W.
        padding: "same": window centres at 0, stride, ..; output ceil(n / stride); outside reads zero.
            "valid": output (n - K) // stride + 1, K the largest extent over the branches.
        transposed: compute the adjoint of the strided convolution. Taps are not flipped, weights have the same shape;
            output n * stride ("same") or (n - 1) * stride + K ("valid").
        shuffle: interleave the branches' output channels.
        in_scale: (N, Cin), multiplies x. StyleGAN2's modulation.
        out_scale: (N, Cout), multiplies z. StyleGAN2's demodulation.
        noise: (N, 1, D', H', W') or (1, 1, D', H', W'), added to all channels.
        activation: "linear", or "lrelu" with `negative_slope`.
        gain: factor after the activation.
        clamp: bound of the absolute output after that, or None.
        backend: "auto", or a name in `ssconv.backends()`.

    Returns:
        (N, Cout, D', H', W') in torch.channels_last_3d, dtype of x.

    Raises:
        ValueError, TypeError: the message names the argument, what was expected and what was given.
        RuntimeError: the named backend cannot serve this call; the message says why.

    Example:
        >>> x = torch.randn(2, 8, 16, 24, 16)
        >>> w = [torch.randn(4, 4, 3, 3, 3), torch.randn(4, 4, 1, 3, 3)]
        >>> split_shuffle_conv3d(x, w, torch.zeros(8), activation="lrelu").shape
        torch.Size([2, 8, 16, 24, 16])
    """
    weights = list(weights) if not isinstance(weights, Tensor) and hasattr(weights, "__iter__") else weights
    check_input(x)
    if (dtype := _autocast_dtype(x)) is not None:
        x = _autocast(x, dtype)
        weights = [_autocast(w, dtype) for w in weights] if isinstance(weights, list) else weights
        bias, in_scale, out_scale, noise = (_autocast_like(x, t) for t in (bias, in_scale, out_scale, noise))
    geometry = check_call(x, weights, bias, stride, padding, transposed, in_scale, out_scale, noise)
    check_epilogue(activation, negative_slope, clamp)
    epilogue = _epilogue(len(geometry.branches) if shuffle else 1, activation, negative_slope, gain, clamp)
    present = [w for w in weights if w is not None]
    if _EXPORTING:
        exact, _ = reference.convolve(x, present, bias, in_scale, out_scale, noise, geometry, epilogue, False)
        return exact.to(x.dtype)
    chosen = resolve(backend, x)
    # The gradient of out_scale is a sum over z, which cannot be recovered from the output.
    save_z = out_scale is not None and out_scale.requires_grad and torch.is_grad_enabled()
    y: Tensor
    y, _ = ops.forward(x, present, bias, in_scale, out_scale, noise, geometry, epilogue, save_z, chosen)
    return y


def _epilogue(groups: int, activation: str, negative_slope: float, gain: float, clamp: float | None) -> Epilogue:
    """The options of a call as the Epilogue that ops take."""
    slope = 1.0 if activation == "linear" else float(negative_slope)
    return Epilogue(groups, slope, float(gain), None if clamp is None else float(clamp))


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of convolutions under torch.autocast on x's device; None outside of it."""
    device = x.device.type
    # torch.compile of 2.11 cannot trace is_autocast_available; these devices have it.
    on = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    on = on and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def _autocast(t: _TensorOrNone, dtype: torch.dtype) -> _TensorOrNone:
    """Casts an argument as autocast does for a convolution; float64 stays."""
    return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t


def _autocast_like(x: Tensor, t: Tensor | None) -> Tensor | None:
    """Casts a bias, scale or noise to a dtype allowed with x: x's own, or float32 with a 16-bit x."""
    if not isinstance(t, Tensor) or t.dtype == x.dtype or (t.dtype == torch.float32 and x.dtype.itemsize == 2):
        return t
    return _autocast(t, x.dtype)


def upfirdn3d(
    x: Tensor,
    taps: Tensor | Sequence[Tensor | None],
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 1.0,
    depth_border: DepthBorder = "zero",
    bias: Tensor | None = None,
    out_scale: Tensor | None = None,
    noise: Tensor | None = None,
    activation: Activation = "linear",
    negative_slope: float = 0.2,
    clamp: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Upsamples, filters and downsamples, then applies the operator's epilogue.

    StyleGAN2's `upfirdn2d` (Karras et al. 2020) in three dimensions: insert zeros, pad or crop, filter with a separable
    FIR, decimate. Then

        y = clamp(gain * act(out_scale * upfirdn(x) + noise + bias))

    It is differentiable to any order in x, bias, out_scale and noise; the taps are constants. It computes in x's dtype,
    also under torch.autocast.

    Args:
        x: (N, C, D, H, W), float16, bfloat16, float32 or float64.
        taps: one 1-D tensor for all three dimensions, or three of them (None: no filter) for D, H, W. The filter is a
            convolution: taps are applied in reverse order.
        up, down: insertion and decimation factors >= 1, one number or three for D, H, W.
        padding: one number, three for D, H, W, or six (d0, d1, h0, h1, w0, w1), in samples of the zero-inserted
            signal; negative crops.
        depth_border: "zero", or "replicate": along depth the border slices are repeated instead of padding with
            zeros, so that a volume that is constant along depth stays constant.
        bias, out_scale, noise, activation, negative_slope, gain, clamp, backend: as in `split_shuffle_conv3d`.

    Returns:
        (N, C, D', H', W') in torch.channels_last_3d, dtype of x; ceil((n * up + p0 + p1 - taps + 1) / down) samples per
        dimension.

    Raises:
        ValueError, TypeError, RuntimeError: as `split_shuffle_conv3d`.

    Example:
        >>> taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        >>> upfirdn3d(torch.randn(2, 8, 4, 6, 5), taps, up=2, padding=(2, 1, 2, 1, 2, 1), gain=8.0).shape
        torch.Size([2, 8, 8, 12, 10])
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
        bias, out_scale, noise = (_autocast_like(x, t) for t in (bias, out_scale, noise))
    check_companion(x, bias, "bias", [(x.shape[1],)], "(C,)")
    check_companion(x, out_scale, "out_scale", [(x.shape[0], x.shape[1])], "(N, C)")
    check_noise(x, noise, size)
    epilogue = _epilogue(1, activation, negative_slope, gain, clamp)
    if _EXPORTING:
        resampled = reference.upfirdn(x, per_dim, up, down, pads, depth_border)
        return reference.epilogue(resampled, bias, out_scale, noise, epilogue).to(x.dtype)
    chosen = resolve(backend, x)
    y: Tensor = ops.upfirdn(x, *per_dim, list(up), list(down), pads, chosen, depth_border)
    if bias is None and out_scale is None and noise is None and epilogue == Epilogue():
        return y
    y = ops.epilogue(y, bias, out_scale, noise, epilogue, chosen)
    return y


def replicate_depth(x: Tensor, before: int, after: int) -> Tensor:
    """Repeats the first slice of x (N, C, D, H, W) `before` times and the last one `after` times along depth.

    Example:
        >>> replicate_depth(torch.zeros(1, 2, 4, 5, 6), 1, 2).shape
        torch.Size([1, 2, 7, 5, 6])
    """
    if not before and not after:
        return x
    return upfirdn3d(x, (None, None, None), padding=(before, after, 0, 0, 0, 0), depth_border="replicate")


def _check_taps(x: Tensor, taps: Tensor | Sequence[Tensor | None]) -> list[Tensor | None]:
    """Checks the filters and returns one per dimension."""
    per_dim: list[Tensor | None] = []
    if isinstance(taps, Tensor):
        per_dim = [taps, taps, taps]
    elif isinstance(taps, (list, tuple)):
        per_dim = list(taps)
    if len(per_dim) != 3:
        raise ValueError(f"taps: expected one 1-D tensor, or three of them (or None) for D, H, W; got {taps!r}")
    for t in per_dim:
        if t is None:
            continue
        if not isinstance(t, Tensor) or t.dim() != 1 or t.shape[0] < 1:
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"taps: expected 1-D tensors with at least one tap; got {got}")
        if t.requires_grad:
            raise ValueError(
                "taps: expected constants, filters get no gradient; got requires_grad=True; pass taps.detach()"
            )
        if t.device != x.device:
            raise ValueError(f"taps: expected device {x.device} as x has; got {t.device}; move one of them")
    return per_dim


def _factors(value: int | Sequence[int], name: str) -> tuple[int, int, int]:
    """Checks the factors `up` or `down` and returns one per dimension."""
    factors = triple(value, name)
    if min(factors) < 1:
        raise ValueError(f"{name}: expected factors of at least 1; got {value!r}")
    return factors


def _paddings(value: int | Sequence[int]) -> list[int]:
    """Checks the padding and returns it as (d0, d1, h0, h1, w0, w1)."""
    if isinstance(value, int):
        return [value] * 6
    values = list(value) if isinstance(value, Sequence) else []
    if len(values) == 3:
        values = [v for v in values for _ in range(2)]
    if len(values) != 6 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"padding: expected an int, three or six of them (d0, d1, h0, h1, w0, w1); got {value!r}")
    return values
