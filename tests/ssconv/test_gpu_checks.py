"""The checks of test_gpu.py, run on the CPU: they pass, and they notice faults."""

from __future__ import annotations

import pytest
import torch

import ssconv
from ssgan.training import cuda_graphs as graphs
from tests.support import gpu_checks
from tests.support.gpu_stand_ins import BACKENDS
from tests.support.strategies import CONV_CASES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["split-depth-full", "stride-2", "many-samples"])
def test_derivatives_against_float64(name, backend):
    case = {**gpu_checks.SMALL, **gpu_checks.LARGE}[name]
    gpu_checks.check_against_float64(case, torch.float32, backend, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_derivatives_against_float64_in_16_bit(dtype):
    gpu_checks.check_against_float64(gpu_checks.LARGE["many-samples"], dtype, BACKENDS[-1], "cpu")


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", [gpu_checks.split_depth, gpu_checks.smooth], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(1, 4, 19, 5, 7), (3, 4, 15, 4, 5)], ids=str)
def test_both_ends_of_a_volume(shape, operator, backend):
    gpu_checks.check_both_ends(operator, shape, torch.float32, backend, "cpu")


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph(backend):
    gpu_checks.check_compiled(backend, "cpu", "aot_eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_gives_output_and_gradients(backend):
    leaves, step = gpu_checks.step_of(CONV_CASES["split-depth-full"], torch.float32, backend, "cpu")
    y, *grads = step(*leaves)
    assert y.isfinite().all() and [g.shape for g in grads] == [t.shape for t in leaves]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs two backends on this machine")
def test_training_on_two_backends_stays_together():
    gpu_checks.check_training_together("cpu", "reference", 12, "cpu")


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
@pytest.mark.parametrize("case", gpu_checks.GRAPHED)
def test_replayed_training_stays_together(case):
    gpu_checks.check_replayed_training(case, BACKENDS[-1], 5, "cpu")


@pytest.mark.usefixtures("graphs_on_a_tape")
def test_a_replay_that_forgets_its_inputs_does_not(monkeypatch):
    monkeypatch.setattr(graphs.Recorded, "fill", lambda self, key, inputs: None)
    with pytest.raises(AssertionError, match="apart"):
        gpu_checks.check_replayed_training("plain", BACKENDS[-1], 5, "cpu")


def test_phantoms_differ_and_repeat():
    one, again = gpu_checks.phantoms(3, (8, 12, 8), 1), gpu_checks.phantoms(3, (8, 12, 8), 1)
    assert torch.equal(one, again) and not torch.equal(one[0], one[1])
    assert one.shape == (3, 1, 8, 12, 8) and one.unique().tolist() == pytest.approx([-1.0, -0.4, 0.4, 0.8])
