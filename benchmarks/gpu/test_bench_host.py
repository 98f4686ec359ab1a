"""What a call of the CUDA backend costs the host, without the kernels: planning that was done before, addresses filled
in, results allocated. It can be measured without a GPU, and is the floor of a layer that is small."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ssconv.backend.cuda import launch as cuda_backend
from ssconv.spec import KERNEL_SETS, ConvSpec

SPEC = ConvSpec(KERNEL_SETS["split_depth"])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    """The functions of a training step on (2, 64, 8, 8, 8), whose launches do nothing."""
    monkeypatch.setattr(cuda_backend, "call", lambda kernel, params, stream: None)
    x = torch.zeros(2, 64, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    weights = [torch.zeros(32, 32, *k) for k in SPEC.branches]
    bias, size = torch.zeros(64), (8, 8, 8)
    return {
        "forward": lambda: cuda_backend.convolve(x, weights, bias, None, None, None, SPEC, 2, 0.2, 1.4, None, False),
        "epilogue backward": lambda: cuda_backend.epilogue_backward(x, x, None, None, 2, 0.2, 1.4, None, True, -1),
        "input gradient": lambda: cuda_backend.input_grad(x, weights, None, SPEC, size),
        "weight gradient": lambda: cuda_backend.weight_grad(x, x, None, SPEC),
    }


@pytest.mark.parametrize("name", ["forward", "epilogue backward", "input gradient", "weight gradient"])
def test_host_time_of_a_call(benchmark, calls, name):
    calls[name]()  # plans it
    benchmark.group = "host time of a CUDA call"
    benchmark(calls[name])
