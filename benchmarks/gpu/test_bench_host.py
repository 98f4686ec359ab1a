"""Times a call of the CUDA backend on the host, without the kernels: addresses filled into a cached plan, results
allocated. It needs no GPU, and no small layer can take less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ssconv.backend.cuda import launch
from ssconv.spec import KERNEL_SETS, Epilogue, Geometry

GEOMETRY = Geometry(KERNEL_SETS["split_depth"])
EPILOGUE = Epilogue(2, 0.2, 1.4)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[], object]]:
    """Gives the functions of a training step on (2, 64, 8, 8, 8), whose launches do nothing."""
    monkeypatch.setattr(launch, "call", lambda kernel, params, stream: None)
    x = torch.zeros(2, 64, 8, 8, 8).contiguous(memory_format=torch.channels_last_3d)
    weights = [torch.zeros(32, 32, *k) for k in GEOMETRY.branches]
    bias, size = torch.zeros(64), (8, 8, 8)
    return {
        "forward": lambda: launch.convolve(x, weights, bias, None, None, None, GEOMETRY, EPILOGUE, False),
        "epilogue backward": lambda: launch.epilogue_backward(x, x, None, None, EPILOGUE, True, -1),
        "input gradient": lambda: launch.input_grad(x, weights, None, GEOMETRY, size),
        "weight gradient": lambda: launch.weight_grad(x, x, None, GEOMETRY),
    }


@pytest.mark.parametrize("name", ["forward", "epilogue backward", "input gradient", "weight gradient"])
def test_host_time_of_a_call(benchmark, calls, name):
    calls[name]()  # plans it
    benchmark.group = "host time of a CUDA call"
    benchmark(calls[name])
