"""The CUDA backend: allocates results, plans and launches the kernels in csrc/cuda.

It has the functions of `reference`, for float32, bfloat16 and float16 on NVIDIA GPUs from compute capability 8.0 on.
float32 is multiplied as TF32 where PyTorch's own convolutions may do so (`torch.backends.cudnn.conv.fp32_precision`, or
`torch.backends.cudnn.allow_tf32`), else exactly. The convolutions are in `conv`.

Nothing here waits for the GPU, and a CUDA graph can capture every call. Launches are planned once per kind of call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.backend.cuda import plan, runner
from ssconv.backend.cuda.conv import convolve, input_grad, weight_grad
from ssconv.backend.cuda.plan import Layout
from ssconv.backend.gpu import check_size, contiguous, empty
from ssconv.spec import Epilogue, Triple

__all__ = ["convolve", "epilogue", "epilogue_backward", "input_grad", "upfirdn", "weight_grad"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
DEVICES: tuple[str, ...] = ("cuda",)


# -------------------------------------------------------------------------------------- the epilogue and its backward


def epilogue(
    z: Tensor,
    bias: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    settings: Epilogue,
) -> Tensor:
    """y = clamp(gain * act(out_scale * shuffle(z) + noise + bias))."""
    check_size(z.shape[2:])
    y = empty(z, z.shape[1], z.shape[2:])
    if y.numel() == 0:
        return y
    noise = contiguous(noise)
    launch = plan.epilogue(Layout.of(z), runner.noise_of(noise), settings.groups, settings.clamp is not None)
    tensors = {"z": z, "out_scale": runner.float32(out_scale), "bias": runner.float32(bias), "noise": noise, "y": y}
    runner.run(launch, tensors, runner.epilogue_floats(settings))
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
    launch, blocks = plan.epilogue_backward(*layouts, settings.groups, settings.clamp is not None)
    wide: dict[str, Any] = {"dtype": torch.float32, "device": y.device}
    bias_sums = torch.empty((batch, blocks, channels), **wide) if bias_grad else None
    noise_sums = torch.empty((batch, 1, *size), **wide) if noise_batch >= 0 else None
    scale_sums = torch.empty((batch, blocks, channels), **wide) if z is not None else None
    if settings.clamp is not None:  # y was rounded to its dtype, and so must the bound be that it is compared with
        settings = settings._replace(clamp=float(torch.tensor(settings.clamp, dtype=y.dtype)))
    tensors = {
        "gy": gy, "y": y, "z": z, "out_scale": runner.float32(out_scale), "gz": gz, "bias_sums": bias_sums,
        "scale_sums": scale_sums, "noise_sums": noise_sums,
    }  # fmt: skip
    runner.run(launch, tensors, runner.epilogue_floats(settings))
    gbias = None if bias_sums is None else bias_sums.sum((0, 1))
    if noise_sums is not None and noise_batch == 1 and batch != 1:
        noise_sums = noise_sums.sum(0, keepdim=True)
    return gz, gbias, noise_sums, None if scale_sums is None else scale_sums.sum(1)


# --------------------------------------------------------------------------------------------------------- resampling


def upfirdn(
    x: Tensor,
    taps: Sequence[Tensor | None],
    up: Triple,
    down: Triple,
    padding: Sequence[int],
    border: str = "zero",
) -> Tensor:
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
    launch = plan.upfirdn(Layout.of(x), described, tuple(up), tuple(down), tuple(padding), border, size)
    if launch is None:
        return _one_after_the_other(x, taps, up, down, padding, border)
    runner.run(launch, {"x": x, "y": y, **{f"taps{d}": t for d, t in enumerate(filters)}})
    return y


def _one_after_the_other(
    x: Tensor,
    taps: Sequence[Tensor | None],
    up: Sequence[int],
    down: Sequence[int],
    padding: Sequence[int],
    border: str,
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
            border if d == 0 else "zero",
        )
    return y.to(x.dtype)


def _only(d: int, factors: Sequence[int]) -> Triple:
    """The factor of dimension d, 1 elsewhere."""
    first, second, third = (factors[i] if i == d else 1 for i in range(3))
    return first, second, third
