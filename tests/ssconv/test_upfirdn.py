"""upfirdn3d: values and derivatives against the oracle, the replicated depth border, and errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import ssconv
from tests.support import oracle
from tests.support.strategies import (
    LAYOUTS,
    UPFIRDN_CASES,
    Epilogue,
    UpfirdnCase,
    check_forward,
    check_gradcheck,
    check_gradgradcheck,
    check_gradients,
    is_native,
    tensors_of,
    upfirdn_cases,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
by_name = pytest.mark.parametrize("case", UPFIRDN_CASES.values(), ids=UPFIRDN_CASES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_backend = pytest.mark.parametrize("backend", AVAILABLE)
BLUR = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8

# ---------------------------------------------------------------------------------------------- values


def test_the_oracle_agrees_with_numpys_convolution():
    """Checks the oracle itself: one dimension, no resampling, full padding, is numpy.convolve."""
    taps, x = np.array([1.0, 2.0, -3.0, 0.5]), np.arange(1.0, 7.0)
    np.testing.assert_allclose(oracle.filter_matrix(6, taps, 1, 1, 3, 3) @ x, np.convolve(x, taps))
    stuffed = np.zeros(12)
    stuffed[::2] = x
    np.testing.assert_allclose(oracle.filter_matrix(6, taps, 2, 3, 3, 3) @ x, np.convolve(stuffed, taps)[::3])


def test_the_oracles_replicated_border_is_that_of_an_input_that_goes_on():
    taps, x = np.array([1.0, 2.0, -3.0, 0.5]), np.arange(1.0, 7.0)
    longer = np.concatenate([[1.0] * 5, x, [6.0] * 5])
    padded = oracle.filter_matrix(16, taps, 2, 1, 0, 0) @ longer
    inner = oracle.filter_matrix(6, taps, 2, 1, 4, 3, replicate=True) @ x
    np.testing.assert_allclose(inner, padded[10 - 4 :][: len(inner)])


@by_backend
@by_dtype
@by_name
def test_named_cases(case, dtype, backend):
    if backend != "reference" and dtype == torch.float64:
        pytest.skip("float64 is the reference's alone")
    check_forward(ssconv, case, dtype, backend, DEVICE[backend])
    check_gradients(ssconv, case, dtype, backend, DEVICE[backend])


@given(case=upfirdn_cases())
@settings(max_examples=200)
def test_drawn_cases_in_float64(case):
    check_forward(ssconv, case, torch.float64)
    check_gradients(ssconv, case, torch.float64)


@by_backend
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_drawn_cases_in_the_other_dtypes(dtype, backend):
    @given(case=upfirdn_cases())
    @settings(max_examples=50)
    def check(case):
        check_forward(ssconv, case, dtype, backend, DEVICE[backend])
        check_gradients(ssconv, case, dtype, backend, DEVICE[backend])

    check()


@given(case=upfirdn_cases(max_channels=2, max_size=4))
@settings(max_examples=60)
def test_gradcheck_and_gradgradcheck(case):
    check_gradcheck(ssconv, case)
    check_gradgradcheck(ssconv, case)


@by_name
def test_gradcheck_and_gradgradcheck_of_named_cases(case):
    check_gradcheck(ssconv, case)
    check_gradgradcheck(ssconv, case)


def test_every_entry_of_both_jacobians():
    epilogue = Epilogue(True, True, "shared", "lrelu", 0.2, 2**0.5, 2.5)
    case = UpfirdnCase((3, None, 2), 1, 2, (2, 1, 3), (2, 1, 1), (1, 1, 2), (1, 1, 1), "replicate", epilogue, seed=50)
    check_gradcheck(ssconv, case, fast=False)
    check_gradgradcheck(ssconv, case, fast=False)


def test_third_derivatives():
    """Of the gradient's square, which for the non-linear epilogue needs the chain through both backward ops."""
    case = dataclasses.replace(UPFIRDN_CASES["replicate-up-2"], size=(2, 1, 2), channels=1)
    tensors = tensors_of(case, torch.float64, requires_grad=True)
    names = list(tensors)

    def first(*args):
        y = case.call(ssconv, dict(zip(names, args, strict=True)))
        return torch.autograd.grad(y.pow(3).sum(), args, create_graph=True)

    assert torch.autograd.gradgradcheck(first, list(tensors.values()), fast_mode=True)


# ------------------------------------------------------------------------------------------ properties


@given(
    taps=st.integers(1, 6),
    up=st.integers(1, 3),
    down=st.integers(1, 3),
    pads=st.tuples(st.integers(-1, 6), st.integers(-1, 6)),
    depth=st.integers(1, 4),
)
@settings(max_examples=80)
def test_replicated_depth_keeps_constant_volumes_constant(taps, up, down, pads, depth):
    """A filter whose phases have equal sums gives every output slice the value that a slice alone gives in plane."""
    if depth * up + sum(pads) < taps * up or depth * up + min(pads) < 1:
        return
    row = torch.rand(taps, dtype=torch.float64).repeat_interleave(up)  # each phase sums to the same
    plane = torch.randn(2, 3, 1, 5, 4, dtype=torch.float64)
    options = {"down": (down, 1, 1), "up": (up, 1, 1), "padding": (*pads, 2, 1, 2, 1)}
    y = ssconv.upfirdn3d(plane.expand(2, 3, depth, 5, 4), [row, BLUR, BLUR], depth_border="replicate", **options)
    flat = ssconv.upfirdn3d(plane, [None, BLUR, BLUR], padding=(0, 0, 2, 1, 2, 1))
    torch.testing.assert_close(y, (flat * row.sum() / up).expand_as(y))


@pytest.mark.parametrize("up", [(2, 2, 2), (1, 2, 2), (3, 1, 2)], ids=str)
def test_downsampling_is_the_adjoint_of_upsampling(up):
    """<up(x), y> = <x, down(y)> with flipped taps and the complementary padding, as StyleGAN2 uses them."""
    x = torch.randn(2, 3, 3, 4, 5, dtype=torch.float64)
    taps = torch.tensor([1.0, -2.0, 3.0, 0.5, 0.25], dtype=torch.float64)
    higher = ssconv.upfirdn3d(x, taps, up=up, padding=(2, 2, 2, 2, 2, 2))
    assert higher.shape[2:] == tuple(n * u for n, u in zip(x.shape[2:], up, strict=True))
    y = torch.randn_like(higher)
    pads = [p for u in up for p in (2, 2 - u + 1)]
    lower = ssconv.upfirdn3d(y, taps.flip(0), down=up, padding=pads)
    torch.testing.assert_close((higher * y).sum(), (x * lower).sum())


def test_stylegan2s_upsampling_in_plane():
    """Of StyleGAN2's upsample_2d: zero insertion, [1, 3, 3, 1] blur, gain 4, by torch's own transposed convolution."""
    x = torch.randn(2, 3, 1, 5, 4, dtype=torch.float64)
    y = ssconv.upfirdn3d(x, [None, BLUR, BLUR], up=(1, 2, 2), padding=(0, 0, 2, 1, 2, 1), gain=4.0)
    kernel = (BLUR[:, None] * BLUR[None]).expand(3, 1, 4, 4) * 4
    expected = F.conv_transpose2d(x[:, :, 0], kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(y[:, :, 0], expected)


@pytest.mark.parametrize("bias", [None, torch.ones(3)], ids=["no-bias", "bias"])
def test_an_activation_in_place_may_follow(bias):
    x = torch.randn(1, 3, 4, 5, 3, requires_grad=True)
    results = []
    for inplace in (False, True):
        y = ssconv.upfirdn3d(x, torch.ones(3), padding=1, bias=bias)
        results.append(torch.autograd.grad(F.relu(y, inplace=inplace).square().sum(), x)[0])
    assert torch.equal(*results)


def test_equivalent_forms_of_options_agree():
    x = torch.randn(1, 2, 4, 5, 6)
    taps = torch.tensor([0.5, 0.25, 0.125])
    y = ssconv.upfirdn3d(x, taps, up=2, down=3, padding=1)
    assert torch.equal(y, ssconv.upfirdn3d(x, (taps,) * 3, up=(2, 2, 2), down=[3, 3, 3], padding=(1, 1, 1)))
    assert torch.equal(y, ssconv.upfirdn3d(x, [taps] * 3, up=2, down=3, padding=[1] * 6))


@by_backend
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_x_does_not_matter(layout, backend):
    case = UPFIRDN_CASES["replicate-up-2"]
    tensors = tensors_of(case, torch.float32, DEVICE[backend])
    y = dataclasses.replace(case, layout=layout).call(ssconv, tensors, backend)
    assert is_native(y)
    torch.testing.assert_close(y, case.call(ssconv, tensors, backend), rtol=1e-5, atol=1e-5)


@by_backend
@by_name
def test_the_output_is_new_memory_and_the_input_stays_as_it_was(case, backend):
    for layout in LAYOUTS:
        tensors = tensors_of(case, torch.float32, DEVICE[backend])
        if layout == "channels_last":
            tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last_3d)
        before = tensors["x"].clone()
        dataclasses.replace(case, layout=layout).call(ssconv, tensors, backend).fill_(7.0)
        assert torch.equal(tensors["x"], before)


@by_backend
@pytest.mark.parametrize("border", ["zero", "replicate"])
def test_an_empty_batch(border, backend):
    case = dataclasses.replace(UPFIRDN_CASES["replicate-up-2"], batch=0, depth_border=border)
    tensors = tensors_of(case, torch.float32, DEVICE[backend], requires_grad=True)
    y = case.call(ssconv, tensors, backend)
    assert tuple(y.shape) == (0, 3, *case.out_size)
    y.sum().backward()
    assert all(t.grad is not None and t.grad.shape == t.shape and not t.grad.any() for t in tensors.values())


# ---------------------------------------------------------------------------------------------- errors

X = torch.zeros(2, 4, 3, 4, 5)
T = torch.ones(3)
ERRORS = {
    "x of four dimensions": ((X[0], T), {}, ValueError, "x: expected five dimensions"),
    "x of integers": ((X.long(), T), {}, TypeError, "x: expected float"),
    "taps of two dimensions": ((X, torch.ones(3, 3)), {}, ValueError, "taps: expected 1-D"),
    "no taps": ((X, torch.ones(0)), {}, ValueError, "taps: expected 1-D"),
    "two filters": ((X, [T, T]), {}, ValueError, "taps: expected"),
    "taps of numbers": ((X, [1.0, 3.0, 1.0]), {}, ValueError, "taps"),
    "taps that want a gradient": ((X, T.clone().requires_grad_()), {}, ValueError, "taps.*gradient"),
    "taps on another device": ((X, T.to("meta")), {}, ValueError, "taps.*device"),
    "up 0": ((X, T), {"up": 0}, ValueError, "up: expected"),
    "down of two": ((X, T), {"down": (2, 2)}, ValueError, "down: expected"),
    "four paddings": ((X, T), {"padding": (1, 1, 1, 1)}, ValueError, "padding: expected"),
    "fractional padding": ((X, T), {"padding": (1, 1, 0.5)}, ValueError, "padding: expected"),
    "nothing left": ((X, torch.ones(6)), {}, ValueError, "leave"),
    "cropped away": ((X, [None] * 3), {"padding": -2}, ValueError, "leave"),
    "taps of None alone": ((X, None), {}, (ValueError, TypeError), "taps: expected"),
    "unknown border": ((X, T), {"depth_border": "reflect"}, ValueError, 'depth_border: expected "zero" or "replicate"'),
    "bias of another length": ((X, T), {"bias": torch.zeros(3)}, ValueError, r"bias.*\(4,\)"),
    "out_scale without batch": ((X, T), {"out_scale": torch.zeros(4)}, ValueError, r"out_scale.*\(2, 4\)"),
    "noise of the input's size": (
        (X, T), {"noise": torch.zeros(2, 1, 3, 4, 5)}, ValueError, r"noise.*\(2, 1, 1, 2, 3\)"
    ),
    "unknown activation": ((X, T), {"activation": "relu"}, ValueError, "activation"),
    "negative clamp": ((X, T), {"clamp": -1.0}, ValueError, "clamp"),
    "unknown backend": ((X, T), {"backend": "cudnn"}, ValueError, "backend: expected.*cudnn"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_invalid_arguments_raise(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ssconv.upfirdn3d(*arguments, **options)


def test_a_backend_that_is_not_available_gives_the_reason():
    for name, answer in ssconv.backends().items():
        if answer != "available":
            with pytest.raises(RuntimeError, match=name):
                ssconv.upfirdn3d(X, T, padding=1, backend=name)
