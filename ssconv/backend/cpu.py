"""The CPU backend: allocates results and calls the compiled kernels of csrc/cpu.

It has the functions of `reference`, for float32, bfloat16 and float16. A convolution reads x once and writes y once:
branches, shuffle and epilogue are one pass over (Cin + Cout) * voxels * item size bytes, plus the packed weights.
Layouts other than channels_last_3d are read without a copy, but more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssconv.spec import ABSENT, BORDERS, IDENTITY, Epilogue, Geometry, Triple, upfirdn_size

_OPS = torch.ops.ssconv_kernels


def _empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    return torch.empty((like.shape[0], channels, *size), dtype=like.dtype, memory_format=torch.channels_last_3d)


def _floats(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.float().contiguous()


def _window_arguments(geometry: Geometry) -> tuple[list[int], list[int], list[int]]:
    """The kernels' arguments branches (three extents each), stride and first (the first window's centre)."""
    extents = [extent for branch in geometry.branches for extent in branch]
    return extents, list(geometry.stride), list(geometry.first_centre())


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
    count = len(geometry.branches)
    channels = weights[0].shape[0] * count if len(weights) else x.shape[1]
    y = _empty(x, channels, geometry.output_size(x.shape[2:]))
    z = torch.empty_like(y) if save_z else None
    _OPS.convolve(
        x, list(weights), _floats(in_scale), _floats(out_scale), _floats(bias), _floats(noise),
        *_window_arguments(geometry), geometry.transposed, False, *settings, y, z,
    )  # fmt: skip
    return y, z


def input_grad(
    g: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, geometry: Geometry, size: Sequence[int]
) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order."""
    count = len(geometry.branches)
    channels = weights[0].shape[1] * count if len(weights) else g.shape[1]
    gx = _empty(g, channels, size)
    _OPS.convolve(
        g, list(weights), None, _floats(in_scale), None, None,
        *_window_arguments(geometry), not geometry.transposed, True, *Epilogue(), gx, None,
    )  # fmt: skip
    return gx


def weight_grad(g: Tensor, x: Tensor, in_scale: Tensor | None, geometry: Geometry) -> list[Tensor]:
    """Gradients of the weights, one per branch that has one, for g in branch order."""
    count = len(geometry.branches)
    rows, columns = g.shape[1] // count, x.shape[1] // count
    grads = [
        torch.empty((rows, columns, *branch), dtype=torch.float32)
        for branch in geometry.branches
        if branch not in (IDENTITY, ABSENT)
    ]
    scale = _floats(in_scale)
    high, high_scale, low, low_scale = (g, None, x, scale) if geometry.transposed else (x, scale, g, None)
    _OPS.weight_gradient(
        high, high_scale, low, low_scale, *_window_arguments(geometry), geometry.transposed, grads
    )  # fmt: skip
    return grads


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    settings: Epilogue,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias))."""
    y = _empty(z, z.shape[1], z.shape[2:])
    _OPS.epilogue(z, _floats(out_scale), _floats(bias), _floats(noise), *settings, y)
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
    gz = _empty(y, y.shape[1], y.shape[2:])
    gbias = torch.empty(y.shape[1]) if bias_grad else None
    gnoise = torch.empty((noise_batch, 1, *y.shape[2:])) if noise_batch >= 0 else None
    gscale = None if z is None else torch.empty(y.shape[:2])
    if settings.clamp is not None:  # y was rounded to its dtype, and so must the bound be that it is compared with
        settings = settings._replace(clamp=float(torch.tensor(settings.clamp, dtype=y.dtype)))
    _OPS.epilogue_backward(gy, y, z, _floats(out_scale), *settings, gz, gbias, gnoise, gscale)
    return gz, gbias, gnoise, gscale


def upfirdn(
    x: Tensor, taps: Sequence[Tensor | None], up: Triple, down: Triple, padding: Sequence[int], border: str = "zero"
) -> Tensor:
    """Zero-insert, pad or crop, convolve with the separable FIR filter, keep every down-th sample; float32 sums.

    border: of `ssconv.spec.BORDERS`.
    """
    lengths = [1 if t is None else t.shape[0] for t in taps]
    y = _empty(x, x.shape[1], upfirdn_size(x.shape[2:], lengths, up, down, padding))
    _OPS.upfirdn(x, *(_floats(t) for t in taps), list(up), list(down), list(padding[::2]), BORDERS.index(border), y)
    return y
