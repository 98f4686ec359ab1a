"""The definition of the operator in plain PyTorch: any device, any dtype, no fusion.

All tensors that pass between the functions are in branch order (branch s owns channels s*C/S .. (s+1)*C/S);
only `epilogue` and `epilogue_backward` know the shuffle. 16-bit inputs are computed in float32 and rounded once; with
another `cast` than `wide` each step computes in that dtype. grouped: branches of equal extents are one grouped
convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssconv.spec import (
    ABSENT,
    IDENTITY,
    Epilogue,
    Geometry,
    Triple,
    folded_slices,
    replicated_slices,
    upfirdn_size,
    window_of,
)

SPATIAL = (2, 3, 4)

Cast = Callable[[Tensor], Tensor]


def wide(t: Tensor) -> Tensor:
    """Casts to the dtype of sums: float32, or float64 for float64."""
    return t if t.dtype == torch.float64 else t.float()


def per_channel(scale: Tensor, cast: Cast = wide) -> Tensor:
    """(N, C) -> (N, C, 1, 1, 1)."""
    return cast(scale)[:, :, None, None, None]


def shuffle(t: Tensor, groups: int) -> Tensor:
    """Branch order -> shuffled order: channel s*C/S + j becomes j*S + s. groups: S, or 1 for no shuffle."""
    return F.channel_shuffle(t, groups) if groups > 1 else t


def unshuffle(t: Tensor, groups: int) -> Tensor:
    """The inverse of `shuffle`."""
    return F.channel_shuffle(t, t.shape[1] // groups) if groups > 1 else t


# -------------------------------------------------------------------------------------------------- one branch
# Tensors here have the channels of one branch only, or of `groups` equal ones side by side.


def central(x: Tensor, geometry: Geometry, kernel: Sequence[int]) -> Tensor:
    """The part of x that a branch of extents `kernel` reads: with "valid" it lies in the middle of the window."""
    if geometry.padding == "valid":
        for dim, (outer, inner) in enumerate(zip(window_of(geometry.branches), kernel, strict=True), start=2):
            margin = (outer - inner) // 2
            x = x.narrow(dim, margin, x.shape[dim] - 2 * margin)
    return x


def conv(x: Tensor, weight: Tensor, geometry: Geometry, groups: int = 1) -> Tensor:
    """Strided correlation with the window's centre at 0, s, 2s, .. ("same") or at (K-1)/2, .. ("valid")."""
    kernel = weight.shape[2:]
    padding = [(k - 1) // 2 if geometry.padding == "same" else 0 for k in kernel]
    return F.conv3d(central(x, geometry, kernel), weight, stride=geometry.stride, padding=padding, groups=groups)


def conv_adjoint(g: Tensor, weight: Tensor, geometry: Geometry, size: Sequence[int], groups: int = 1) -> Tensor:
    """Adjoint of `conv` for an input of extents `size`: (N, Cout/S, ...) -> (N, Cin/S, *size)."""
    kernel = weight.shape[2:]
    if geometry.padding == "same":
        padding, frame = [(k - 1) // 2 for k in kernel], [0, 0, 0]
    else:
        padding, frame = [0, 0, 0], [(o - k) // 2 for o, k in zip(window_of(geometry.branches), kernel, strict=True)]
    dims = zip(size, g.shape[2:], geometry.stride, kernel, padding, frame, strict=True)
    extra = [n - 2 * f - ((m - 1) * s - 2 * p + k) for n, m, s, k, p, f in dims]
    y = F.conv_transpose3d(g, weight, stride=geometry.stride, padding=padding, output_padding=extra, groups=groups)
    return F.pad(y, [f for f in reversed(frame) for _ in range(2)]) if any(frame) else y


def conv_weight_grad(g: Tensor, x: Tensor, kernel: Triple, geometry: Geometry, groups: int = 1) -> Tensor:
    """Gradient of `conv` with respect to its weight: (Cout/S, Cin/S, kd, kh, kw)."""
    padding = [(k - 1) // 2 if geometry.padding == "same" else 0 for k in kernel]
    x = central(x, geometry, kernel)
    shape = (g.shape[1], x.shape[1] // groups, *kernel)
    return torch.nn.grad.conv3d_weight(x, shape, g, geometry.stride, padding, groups=groups)


# ------------------------------------------------------------------------------ all branches: the three linear maps


def can_group(geometry: Geometry) -> bool:
    """Whether several branches of equal extents can be one grouped convolution."""
    first, *others = geometry.branches
    return bool(others) and first not in (IDENTITY, ABSENT) and all(branch == first for branch in others)


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    in_scale: Tensor | None,
    geometry: Geometry,
    cast: Cast = wide,
    grouped: bool = False,
) -> Tensor:
    """z (N, Cout, D', H', W') in branch order, before the epilogue, in the dtype of `cast`."""
    x = cast(x) if in_scale is None else cast(x) * per_channel(in_scale, cast)
    size, count = geometry.output_size(x.shape[2:]), len(geometry.branches)
    weights = [cast(w) for w in weights]
    if grouped and geometry.transposed:
        return conv_adjoint(x, torch.cat([w.transpose(0, 1) for w in weights]), geometry, size, count)
    if grouped:
        return conv(x, torch.cat(weights), geometry, count)
    parts, remaining = [], iter(weights)
    width = weights[0].shape[0] if len(weights) else x.shape[1] // count
    for branch, part in zip(geometry.branches, x.chunk(count, 1), strict=True):
        if branch == IDENTITY:
            parts.append(central(part, geometry, (1, 1, 1)))
        elif branch == ABSENT:
            parts.append(part.new_zeros(part.shape[0], width, *size))
        elif geometry.transposed:
            parts.append(conv_adjoint(part, next(remaining).transpose(0, 1), geometry, size))
        else:
            parts.append(conv(part, next(remaining), geometry))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def input_grad(
    g: Tensor,
    weights: Sequence[Tensor],
    in_scale: Tensor | None,
    geometry: Geometry,
    size: Sequence[int],
    cast: Cast = wide,
    grouped: bool = False,
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order; A is the linear part of `forward`."""
    y = _input_grad(cast(g), [cast(w) for w in weights], geometry, size, grouped)
    return y if in_scale is None else y * per_channel(in_scale, cast)


def _input_grad(g: Tensor, weights: Sequence[Tensor], geometry: Geometry, size: Sequence[int], grouped: bool) -> Tensor:
    """A^T g."""
    count = len(geometry.branches)
    if grouped and geometry.transposed:
        return conv(g, torch.cat([w.transpose(0, 1) for w in weights]), geometry, count)
    if grouped:
        return conv_adjoint(g, torch.cat(list(weights)), geometry, size, count)
    parts, remaining = [], iter(weights)
    width = weights[0].shape[1] if len(weights) else g.shape[1] // count
    for branch, part in zip(geometry.branches, g.chunk(count, 1), strict=True):
        if branch == IDENTITY:
            margins = [(n - m) // 2 for n, m in zip(size, part.shape[2:], strict=True)]
            parts.append(F.pad(part, [m for m in reversed(margins) for _ in range(2)]) if any(margins) else part)
        elif branch == ABSENT:
            parts.append(part.new_zeros(part.shape[0], width, *size))
        elif geometry.transposed:
            parts.append(conv(part, next(remaining).transpose(0, 1), geometry))
        else:
            parts.append(conv_adjoint(part, next(remaining), geometry, size))
    return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


def weight_grad(
    g: Tensor, x: Tensor, in_scale: Tensor | None, geometry: Geometry, cast: Cast = wide, grouped: bool = False
) -> list[Tensor]:
    """Gradients of the weights, one per branch that has one, for g in branch order."""
    x = cast(x) if in_scale is None else cast(x) * per_channel(in_scale, cast)
    g, count = cast(g), len(geometry.branches)
    low, high = (x, g) if geometry.transposed else (g, x)
    if grouped:
        grads = conv_weight_grad(low, high, geometry.branches[0], geometry, count).chunk(count)
    else:
        branches = zip(geometry.branches, low.chunk(count, 1), high.chunk(count, 1), strict=True)
        grads = [conv_weight_grad(a, b, k, geometry) for k, a, b in branches if k not in (IDENTITY, ABSENT)]
    return [w.transpose(0, 1) if geometry.transposed else w for w in grads]


# ------------------------------------------------------------------------- the epilogue, which contains the shuffle


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    settings: Epilogue,
    cast: Cast = wide,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias)); slope 1 is the linear activation."""
    groups, slope, gain, clamp = settings
    y = shuffle(cast(z), groups)
    if out_scale is not None:
        y = y * per_channel(out_scale, cast)
    if noise is not None:
        y = y + cast(noise)
    if bias is not None:
        y = y + cast(bias)[:, None, None, None]
    if slope != 1:
        y = F.leaky_relu(y, slope)
    if gain != 1:
        y = y * gain
    return y if clamp is None else y.clamp(-clamp, clamp)


def activation_grad(g: Tensor, y: Tensor, settings: Epilogue, cast: Cast = wide) -> Tensor:
    """g * d clamp(gain * act(t)) / dt, from the output y: its sign tells on which side of 0 the activation was."""
    _, slope, gain, clamp = settings
    pre = cast(g) * gain if gain != 1 else cast(g)
    if slope != 1:
        pre = torch.where(y > 0 if gain > 0 else y < 0, pre, pre * slope)
    if clamp is not None:
        # The output was rounded to y's dtype, and so must the bound be that it is compared with.
        pre = torch.where(y.abs() < y.new_full((), clamp), pre, pre.new_zeros(()))
    return pre


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
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order if save_z."""
    z = forward(x, weights, in_scale, geometry)
    return epilogue(z, bias, out_scale, noise, settings), z if save_z else None


def epilogue_backward(
    gy: Tensor,
    y: Tensor,
    z: Tensor | None,
    out_scale: Tensor | None,
    settings: Epilogue,
    bias_grad: bool,
    noise_batch: int,
    cast: Cast = wide,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for z (branch order), bias (Cout,), noise (noise_batch, 1, ...) and out_scale (N, Cout).

    bias_grad: whether to compute that of the bias. noise_batch: batch size of the noise, or -1 for no noise gradient.
    z: given if the gradient of out_scale is to be computed, else None.
    """
    pre, groups = activation_grad(gy, y, settings, cast), settings.groups
    kind = torch.float64 if pre.dtype == torch.float64 else torch.float32  # of sums
    gz = unshuffle(pre if out_scale is None else pre * per_channel(out_scale, cast), groups)
    gbias = pre.sum((0, *SPATIAL), dtype=kind) if bias_grad else None
    gnoise = None
    if noise_batch >= 0:
        gnoise = pre.sum(1, keepdim=True, dtype=kind)
        if noise_batch == 1 and gnoise.shape[0] != 1:
            gnoise = gnoise.sum(0, keepdim=True)
    gscale = None if z is None else (pre * shuffle(cast(z), groups)).sum(SPATIAL, dtype=kind)
    return gz, gbias, gnoise, gscale


def zero_inserted(x: Tensor, up: Sequence[int], padding: Sequence[tuple[int, int]]) -> Tensor:
    """x with up - 1 zeros after every sample, and with the positive part of the padding around it."""
    around = [(max(a, 0), max(b, 0)) for a, b in padding]
    size = [n * u + a + b for n, u, (a, b) in zip(x.shape[2:], up, around, strict=True)]
    y = torch.empty((*x.shape[:2], *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    samples = [slice(a, a + n * u, u) for n, u, (a, _) in zip(x.shape[2:], up, around, strict=True)]
    y.zero_()[(slice(None), slice(None), *samples)] = x
    return y


def upfirdn(
    x: Tensor,
    taps: Sequence[Tensor | None],
    up: Triple,
    down: Triple,
    padding: Sequence[int],
    border: str = "zero",
    cast: Cast = wide,
) -> Tensor:
    """Zero-insert, pad or crop, convolve with the separable FIR filter, keep every down-th sample; `border` of
    `ssconv.spec.BORDERS`."""
    if border == "replicate":
        before, after = replicated_slices(up[0], padding)
        x = torch.cat([x[:, :, :1].expand(-1, -1, before, -1, -1), x, x[:, :, -1:].expand(-1, -1, after, -1, -1)], 2)
        padding = [padding[0] - before * up[0], padding[1] - after * up[0], *padding[2:]]
    elif border == "fold":
        length = 1 if taps[0] is None else taps[0].shape[0]
        outputs = upfirdn_size(x.shape[2:], [length, 1, 1], up, down, padding)[0]
        before, after = folded_slices(x.shape[2], outputs, length, up[0], down[0], padding[0])
        padding = [padding[0] + before * down[0], padding[1] + after * down[0], *padding[2:]]
        y = upfirdn(x, taps, up, down, padding, "zero", cast)
        inner = y[:, :, before : before + outputs].clone()
        inner[:, :, 0] += y[:, :, :before].sum(2)
        inner[:, :, -1] += y[:, :, before + outputs :].sum(2)
        return inner
    y, conv_padding = cast(x), [0, 0, 0]  # symmetric zeros the convolution adds itself, without a copy
    pairs = [(padding[2 * d], padding[2 * d + 1]) for d in range(3)]
    if max(up) > 1 or any(a != b for a, b in pairs) or all(t is None for t in taps):
        y = zero_inserted(y, up, pairs)
    else:
        conv_padding = [max(a, 0) for a, _ in pairs]
    for d, (before, after) in enumerate(pairs):
        first = max(-before, 0)
        y = y.narrow(2 + d, first, y.shape[2 + d] - first - max(-after, 0))
    if all(t is None for t in taps):
        return y[:, :, :: down[0], :: down[1], :: down[2]]
    kernel = y.new_ones(1, 1, 1)
    for dim, t in enumerate(taps):
        if t is not None:
            shape = [-1 if d == dim else 1 for d in range(3)]
            kernel = kernel * wide(t).to(y.dtype).flip(0).view(shape)
    # One depthwise convolution with the outer product: oneDNN has a fast path for it, but not for (4, 1, 1) taps.
    return F.conv3d(y, kernel.expand(y.shape[1], 1, -1, -1, -1), stride=down, padding=conv_padding, groups=y.shape[1])
