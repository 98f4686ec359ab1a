"""Runs planned launches of the CUDA kernels: fills in addresses, on the stream of the tensors' device.

The kernels know nothing of torch: `_C.cuda_call` takes a kernel's name and its struct.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ssconv.backend.cuda.plan import Launch, Noise
from ssconv.backend.gpu import on, per_sample
from ssconv.spec import Epilogue

Tensors = dict[str, Tensor | None]

# `_C.cuda_call`, set by `dispatch`; tests set the emulator's.
call: Callable[[str, bytes, int], None] | None = None
has_sm90a = True  # whether the module was compiled for it; set by `dispatch`, too


def run(launch: Launch, tensors: Tensors, floats: Mapping[str, float] = {}) -> None:
    """Launches a kernel on the current stream of the tensors' device. Every launch goes through here."""
    device = next(t.device for t in (tensors[n] for n in launch.writes) if t is not None)
    assert call is not None, "dispatch lets no call through without it"
    with on(device):
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        call(launch.kernel, launch.filled(tensors, floats), stream)


def float32(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.to(torch.float32).contiguous()


def noise_of(t: Tensor | None) -> Noise | None:
    return None if t is None else Noise(t.dtype, per_sample(t))


def epilogue_floats(settings: Epilogue) -> dict[str, float]:
    clamp = settings.clamp
    return {"slope": settings.negative_slope, "gain": settings.gain, "clamp": 0.0 if clamp is None else clamp}
