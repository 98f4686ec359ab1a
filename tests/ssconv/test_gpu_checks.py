"""Runs the checks of test_gpu.py on the CPU: they hold, and they find planted faults."""

from __future__ import annotations

import pytest
import torch

import ssconv
from benchmarks.gpu.cases import serving
from ssgan.training import cuda_graphs
from tests.support import gpu_checks
from tests.support.strategies import CONV_CASES

BACKENDS = serving("cpu")


@pytest.mark.parametrize(
    ("name", "dtype"), [("split-depth-full", torch.float32), ("many-samples", torch.bfloat16)], ids=str
)
def test_derivatives_against_float64(name, dtype):
    case = {**gpu_checks.SMALL, **gpu_checks.LARGE}[name]
    gpu_checks.check_against_float64(case, dtype, BACKENDS[-1], "cpu")


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["output", "gradient of x", "second gradient of weights"])
def test_the_comparison_with_float64_notices_errors(fault, monkeypatch):
    real = gpu_checks.derivatives

    def wrong(case, tensors, *rest):
        found = real(case, tensors, *rest)
        if tensors["x"].dtype == torch.float32:
            name = next(n for n in found if n.startswith(fault))
            found[name] = found[name] * 1.001
        return found

    monkeypatch.setattr(gpu_checks, "derivatives", wrong)
    with pytest.raises(AssertionError, match=fault):
        gpu_checks.check_against_float64(CONV_CASES["split-depth-full"], torch.float32, "reference", "cpu")


@pytest.mark.parametrize("operator", [gpu_checks.split_depth, gpu_checks.smooth], ids=lambda f: f.__name__)
def test_both_ends_of_a_volume(operator):
    gpu_checks.check_both_ends(operator, (3, 4, 15, 4, 5), torch.float32, BACKENDS[-1], "cpu")


@pytest.mark.faults
@pytest.mark.parametrize("end", [0, -1])
def test_both_ends_are_compared(end):
    def wrong(x, weights, backend):
        y = gpu_checks.smooth(x, weights, backend)
        broken = torch.ones_like(y)
        if x.dtype == torch.float32:  # what it is compared with is computed in float64
            broken[end, :, end] = 0
        return y * broken

    with pytest.raises(AssertionError, match="off by"):
        gpu_checks.check_both_ends(wrong, (2, 4, 19, 5, 7), torch.float32, "reference", "cpu")


def test_compiled_in_one_graph():
    gpu_checks.check_compiled(BACKENDS[-1], "cpu", "aot_eager")


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs two backends on this machine")
def test_training_on_two_backends_stays_together():
    gpu_checks.check_training_together("cpu", "reference", 12, "cpu")


@pytest.mark.faults
def test_training_on_a_wrong_backend_does_not(monkeypatch):
    real = gpu_checks.train

    def train(backend, *rest):
        if backend != "wrong":
            return real(backend, *rest)
        convolve = ssconv.split_shuffle_conv3d
        with monkeypatch.context() as patch:
            patch.setattr(ssconv, "split_shuffle_conv3d", lambda *a, **k: convolve(*a, **k) * 1.01)
            return real("reference", *rest)

    monkeypatch.setattr(gpu_checks, "train", train)
    with pytest.raises(AssertionError, match="apart"):
        gpu_checks.check_training_together("wrong", "reference", 8, "cpu")


@pytest.mark.usefixtures("graphs_on_a_tape")
def test_replayed_training_stays_together():
    gpu_checks.check_replayed_training("plain", BACKENDS[-1], 5, "cpu")


@pytest.mark.faults
@pytest.mark.usefixtures("graphs_on_a_tape")
def test_a_replay_that_forgets_its_inputs_does_not(monkeypatch):
    monkeypatch.setattr(cuda_graphs.Captured, "fill", lambda self, key, inputs: None)
    with pytest.raises(AssertionError, match="apart"):
        gpu_checks.check_replayed_training("plain", BACKENDS[-1], 5, "cpu")
