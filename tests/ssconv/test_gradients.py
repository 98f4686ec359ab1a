"""Derivatives of split_shuffle_conv3d, of every order: against the oracle, finite differences and each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.autograd import gradcheck, gradgradcheck

import ssconv
from tests.support import oracle
from tests.support.strategies import (
    CONV_CASES,
    ConvCase,
    Epilogue,
    check_gradcheck,
    check_gradgradcheck,
    check_gradients,
    conv_cases,
    tensors_of,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
by_name = pytest.mark.parametrize("case", CONV_CASES.values(), ids=CONV_CASES)
by_backend = pytest.mark.parametrize("backend", AVAILABLE)
FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
TINY = {
    "split-depth": ConvCase(((3, 3, 3), (1, 3, 3)), 1, 1, 2, (2, 3, 1), in_scale=True, epilogue=FULL, seed=40),
    "identity-shared-noise": ConvCase(
        ((1, 3, 1), None),
        1,
        1,
        2,
        (1, 3, 2),
        in_scale=True,
        epilogue=dataclasses.replace(FULL, noise="shared"),
        seed=41,
    ),
    "strided-transposed": ConvCase(
        ((3, 1, 3), (1, 1, 1)), 1, 2, 2, (2, 1, 2), (2, 1, 2), transposed=True, in_scale=True, epilogue=FULL, seed=42
    ),
    "strided-valid": ConvCase(
        ((3, 1, 1), (1, 3, 1)), 2, 1, 1, (4, 3, 2), (2, 2, 1), "valid", in_scale=True, epilogue=FULL, seed=43
    ),
}

# ------------------------------------------------------------------------------------- first derivatives


@by_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@by_name
def test_named_cases(case, dtype, backend):
    if backend != "reference" and dtype == torch.float64:
        pytest.skip("float64 is the reference's alone")
    check_gradients(ssconv, case, dtype, backend, DEVICE[backend])


@given(case=conv_cases(max_size=4))
@settings(max_examples=100)
def test_drawn_cases_in_float64(case):
    check_gradients(ssconv, case, torch.float64)


@by_backend
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_drawn_cases_in_the_other_dtypes(dtype, backend):
    @given(case=conv_cases(max_size=4))
    @settings(max_examples=40)
    def check(case):
        check_gradients(ssconv, case, dtype, backend, DEVICE[backend])

    check()


@given(case=conv_cases(max_branches=3, max_channels=2, max_size=3))
@settings(max_examples=40)
def test_the_input_gradient_is_the_transpose_of_the_oracles_matrix(case):
    """The whole matrix: every unit vector of the output goes back through the op, as one batch."""
    case = dataclasses.replace(case, batch=1, in_scale=False, shuffle=False, epilogue=Epilogue())
    arrays = case.arrays()
    weights = [arrays.get(f"weights[{s}]") for s in range(len(case.kernels))]
    dense = oracle.dense_weight(weights, arrays["x"].shape[1], shuffle=False)
    forward = oracle.matrix(dense, case.size, case.stride, case.padding, case.transposed)
    rows = forward.shape[0] * forward.shape[1]
    units = torch.eye(rows, dtype=torch.float64).view(rows, forward.shape[0], *case.out_size)
    back = torch.ops.ssconv.input_grad(
        units,
        [torch.tensor(w) for w in weights if w is not None],
        None,
        [k for kernel in case.kernels for k in (kernel or (0, 0, 0))],
        list(case.stride),
        case.padding == "valid",
        case.transposed,
        list(case.size),
        "reference",
    )
    np.testing.assert_allclose(back.numpy().reshape(rows, -1), forward.reshape(rows, -1), rtol=0, atol=1e-12)


@given(case=conv_cases(max_size=4))
@settings(max_examples=60)
def test_the_weight_gradient_is_the_difference_of_the_bilinear_form(case):
    """<g, A_{W+E} x> - <g, A_W x> is exactly <dW, E>: the form is linear in W, so the step need not be small."""
    case = dataclasses.replace(case, epilogue=Epilogue(), frozen=())
    tensors = tensors_of(case, torch.float64, requires_grad=True)
    names = [n for n in tensors if n.startswith("weights")]
    if not names:
        return
    y = case.call(ssconv, tensors)
    rng = np.random.default_rng(case.seed)
    g = rng.normal(size=tuple(y.shape))
    grads = torch.autograd.grad(y, [tensors[n] for n in names], torch.tensor(g))
    base = case.arrays()
    for name, grad in zip(names, grads, strict=True):
        step = rng.normal(size=base[name].shape)
        difference = ((case.expected(base | {name: base[name] + step}) - case.expected(base)) * g).sum()
        magnitude = (case.expected({n: np.abs(a) for n, a in base.items()}) * np.abs(g)).sum() + 1
        assert abs((grad.numpy() * step).sum() - difference) < 1e-11 * magnitude


@pytest.mark.parametrize("wanted", ["x", "weights[0]", "weights[1]", "bias", "in_scale", "out_scale", "noise"])
def test_a_gradient_is_the_same_alone_and_among_all(wanted):
    """The value of a gradient must not depend on which others are computed."""
    case = dataclasses.replace(CONV_CASES["split-depth-full"], layout="contiguous")
    every = tensors_of(case, torch.float64, requires_grad=True)
    y = case.call(ssconv, every)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, every[wanted], g)[0]
    alone = {n: t.detach().requires_grad_(n == wanted) for n, t in every.items()}
    (found,) = torch.autograd.grad(case.call(ssconv, alone), [alone[wanted]], g)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@by_backend
@pytest.mark.parametrize("kind", ["expanded", "channels_last", "sliced"])
def test_the_layout_of_the_upstream_gradient_does_not_matter(kind, backend):
    case = CONV_CASES["split-depth-stride-2"]
    tensors = tensors_of(case, torch.float32, DEVICE[backend], requires_grad=True)
    y = case.call(ssconv, tensors, backend)
    if kind == "expanded":
        g = torch.randn(1, y.shape[1], 1, 1, y.shape[4], device=y.device).expand_as(y)
    elif kind == "channels_last":
        g = torch.randn_like(y)
    else:
        g = torch.randn(*y.shape[:4], 2 * y.shape[4], device=y.device)[..., ::2]
    inputs = list(tensors.values())
    found = torch.autograd.grad(y, inputs, g, retain_graph=True)
    expected = torch.autograd.grad(y, inputs, g.clone(memory_format=torch.contiguous_format))
    for name, a, b in zip(tensors, found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@by_backend
@pytest.mark.parametrize("noise", ["each", "shared"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_an_empty_batch_has_zero_gradients(transposed, noise, backend):
    epilogue = Epilogue(True, True, noise, "lrelu", clamp=1.0)
    case = ConvCase(batch=0, stride=(2, 1, 2), transposed=transposed, in_scale=True, epilogue=epilogue)
    tensors = tensors_of(case, torch.float32, DEVICE[backend], requires_grad=True)
    case.call(ssconv, tensors, backend).sum().backward()
    for name, tensor in tensors.items():
        assert tensor.grad is not None, name
        assert tensor.grad.shape == tensor.shape, name
        assert not tensor.grad.any(), name


@by_backend
def test_changing_a_saved_tensor_in_place_raises(backend):
    case = CONV_CASES["split-depth-full"]
    tensors = tensors_of(case, torch.float32, DEVICE[backend], requires_grad=True)
    tensors["x"] = tensors["x"].detach().contiguous(memory_format=torch.channels_last_3d)
    y = case.call(ssconv, tensors, backend)
    tensors["x"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ------------------------------------------------------------------- finite differences, higher derivatives


@given(case=conv_cases(max_size=4))
@settings(max_examples=100)
def test_gradcheck(case):
    check_gradcheck(ssconv, case)


@given(case=conv_cases(max_size=4))
@settings(max_examples=100)
def test_gradgradcheck(case):
    check_gradgradcheck(ssconv, case)


@by_name
def test_gradcheck_of_named_cases(case):
    check_gradcheck(ssconv, case)
    check_gradgradcheck(ssconv, case)


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_every_entry_of_both_jacobians(case):
    """The whole Jacobians, not random projections of them as above."""
    check_gradcheck(ssconv, case, fast=False)
    check_gradgradcheck(ssconv, case, fast=False)


@pytest.mark.parametrize("case", TINY.values(), ids=TINY)
def test_third_derivatives(case):
    """The second derivatives of the gradient of every tensor, in every tensor."""
    tensors = tensors_of(case, torch.float64, requires_grad=True)
    names = list(tensors)
    y = case.call(ssconv, tensors)
    torch.manual_seed(0)
    g = torch.randn_like(y).requires_grad_()

    def gradients(g, *args):
        y = case.call(ssconv, dict(zip(names, args, strict=True)))
        return torch.autograd.grad(y, args, g, create_graph=True)

    inputs = (g, *tensors.values())
    assert gradcheck(gradients, inputs, fast_mode=True)
    assert gradgradcheck(gradients, inputs, fast_mode=True)


@by_backend
def test_a_gradient_penalty_in_float32_agrees_with_float64(backend):
    """R1's pattern: the gradient of |dy/dx|^2 with respect to the weights and scales."""
    case = CONV_CASES["split-depth-stride-2"]
    results = []
    for dtype, where in ((torch.float32, backend), (torch.float64, "reference")):
        tensors = tensors_of(case, torch.float32, DEVICE[where], requires_grad=True)
        tensors = {n: t.detach().to(dtype).requires_grad_() for n, t in tensors.items()}
        y = case.call(ssconv, tensors, where)
        (gx,) = torch.autograd.grad(y.square().sum(), tensors["x"], create_graph=True)
        names = [n for n in tensors if n != "x"]
        results.append(torch.autograd.grad(gx.square().sum(), [tensors[n] for n in names]))
    for name, a, b in zip(names, *results, strict=True):
        scale = b.abs().max().item()
        assert scale > 0, f"{name}: the penalty does not depend on it, so this test shows nothing"
        torch.testing.assert_close(a.double().cpu(), b, rtol=1e-4, atol=1e-5 * scale)
