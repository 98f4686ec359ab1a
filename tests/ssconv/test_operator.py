"""split_shuffle_conv3d: values against the oracle over the whole option space, layouts, edge cases and errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

import ssconv
from tests.support import oracle
from tests.support.strategies import (
    CONV_CASES,
    LAYOUTS,
    ConvCase,
    Epilogue,
    check_forward,
    conv_cases,
    is_native,
    tensors_of,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
by_name = pytest.mark.parametrize("case", CONV_CASES.values(), ids=CONV_CASES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_backend = pytest.mark.parametrize("backend", AVAILABLE)


# ------------------------------------------------------------------------------------- the oracle itself


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 1, 2), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_the_oracle_agrees_with_torch_on_a_dense_convolution(transposed, stride, padding):
    """Checks the oracle itself: where PyTorch has the operation, the oracle and its matrix agree with it."""
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 3, 5, 4, 6)), rng.normal(size=(2, 3, 3, 1, 5))
    z = oracle.linear(x, weight, stride, padding, transposed)
    tx, tw = torch.tensor(x), torch.tensor(weight)
    half = (1, 0, 2) if padding == "same" else (0, 0, 0)
    if transposed:
        extra = [s - 1 for s in stride] if padding == "same" else 0
        expected = F.conv_transpose3d(tx, tw.transpose(0, 1), None, stride, half, extra)
    else:
        expected = F.conv3d(tx, tw, None, stride, half)
    np.testing.assert_allclose(z, expected.numpy(), atol=1e-12)
    rows = oracle.matrix(weight, x.shape[2:], stride, padding, transposed)
    np.testing.assert_allclose(
        np.einsum("opiq,niq->nop", rows, x.reshape(2, 3, -1)).reshape(z.shape), z, rtol=0, atol=1e-12
    )


def test_the_oracle_puts_branches_into_one_dense_weight():
    a, b = np.full((2, 1, 3, 1, 3), 5.0), np.full((2, 1, 1, 1, 1), 7.0)
    dense = oracle.dense_weight([a, b, None], 3 * 1, shuffle=False)
    assert dense.shape == (6, 3, 3, 1, 3)
    assert dense[0, 0].sum() == 45 and dense[1, 0].sum() == 45
    assert dense[2, 1].sum() == 7 and dense[2, 1, 1, 0, 1] == 7
    assert dense[4, 2].sum() == 1 and dense[4, 2, 1, 0, 1] == 1
    assert dense.sum() == 2 * 45 + 2 * 7 + 1
    shuffled = oracle.dense_weight([a, b], 2, shuffle=True)
    assert [int(shuffled[row].sum()) for row in range(4)] == [45, 7, 45, 7]


# ---------------------------------------------------------------------------------------------- values


@by_backend
@by_dtype
@by_name
def test_named_cases(case, dtype, backend):
    if backend != "reference" and dtype == torch.float64:
        pytest.skip("float64 is the reference's alone")
    check_forward(ssconv, case, dtype, backend, DEVICE[backend])


@given(case=conv_cases())
@settings(max_examples=300)
def test_drawn_cases_in_float64(case):
    check_forward(ssconv, case, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@by_backend
def test_drawn_cases_in_the_other_dtypes(dtype, backend):
    @given(case=conv_cases())
    @settings(max_examples=80)
    def check(case):
        check_forward(ssconv, case, dtype, backend, DEVICE[backend])

    check()


@pytest.mark.parametrize("branches", [1, 2, 3, 4])
def test_shuffle_is_channel_shuffle_of_the_concatenated_branches(branches):
    x = torch.randn(2, 2 * branches, 3, 4, 5, dtype=torch.float64)
    weights = [torch.randn(5, 2, 3, 1, 3, dtype=torch.float64) for _ in range(branches)]
    parts = [F.conv3d(part, w, padding=(1, 0, 1)) for part, w in zip(x.chunk(branches, 1), weights, strict=True)]
    whole = torch.cat(parts, 1)
    torch.testing.assert_close(ssconv.split_shuffle_conv3d(x, weights, shuffle=False), whole)
    torch.testing.assert_close(ssconv.split_shuffle_conv3d(x, weights), F.channel_shuffle(whole, branches))


def test_the_default_backend_is_one_of_the_available():
    case = CONV_CASES["split-depth-full"]
    check_forward(ssconv, case, torch.float32, backend="auto")
    check_forward(ssconv, case, torch.float64, backend="auto")


def test_an_int_stride_and_a_generator_of_weights_are_accepted():
    x, w = torch.randn(1, 2, 4, 5, 3), [torch.randn(1, 1, 3, 3, 3), torch.randn(1, 1, 1, 3, 3)]
    expected = ssconv.split_shuffle_conv3d(x, w, stride=(2, 2, 2))
    assert torch.equal(ssconv.split_shuffle_conv3d(x, tuple(w), stride=2), expected)
    assert torch.equal(ssconv.split_shuffle_conv3d(x, torch.nn.ParameterList(w), stride=[2, 2, 2]), expected)


def test_clamp_bounds_both_sides_and_comes_after_gain():
    x = torch.tensor([-3.0, -0.1, 0.1, 3.0]).view(1, 1, 1, 1, 4)
    y = ssconv.split_shuffle_conv3d(x, [None], gain=2.0, clamp=1.5)
    torch.testing.assert_close(y.flatten(), torch.tensor([-1.5, -0.2, 0.2, 1.5]))


def test_nan_and_infinity_reach_the_output():
    """A clamp must not hide that training has gone wrong."""
    x = torch.zeros(1, 2, 3, 4, 5)
    x[0, 0, 1, 2, 3] = float("nan")
    w = [torch.ones(1, 1, 3, 3, 3), torch.ones(1, 1, 1, 3, 3)]
    y = ssconv.split_shuffle_conv3d(x, w, activation="lrelu", clamp=1.0)
    assert y[0, 0].isnan().sum() == 3 * 3 * 3 and not y[0, 1].isnan().any()


# --------------------------------------------------------------------------------------------- layouts


@by_backend
@pytest.mark.parametrize("name", ["split-depth-full", "transposed-valid-stride-212", "identity", "acs4"])
def test_the_layout_of_x_does_not_matter(name, backend):
    tensors = tensors_of(CONV_CASES[name], torch.float32, DEVICE[backend])
    outputs = [
        dataclasses.replace(CONV_CASES[name], layout=layout).call(ssconv, tensors, backend) for layout in LAYOUTS
    ]
    for y in outputs:
        assert is_native(y)
        torch.testing.assert_close(y, outputs[0], rtol=1e-5, atol=1e-5)


@by_backend
def test_expanded_and_strided_arguments(backend):
    """Views with stride 0, scales and weights that are slices or transposes of something larger."""
    device = DEVICE[backend]
    x = torch.randn(1, 4, 3, 1, 5, device=device).expand(3, 4, 3, 6, 5)
    weights = [torch.randn(3, 3, 3, 2, 6, device=device).permute(4, 3, 0, 1, 2)[::2], torch.ones(1, 1, 1, 1, 1)]
    weights[1] = weights[1].to(device).expand(3, 2, 1, 3, 3)
    scale_in, scale_out = torch.randn(4, 3, device=device).t(), torch.randn(1, 6, device=device).expand(3, 6)
    noise, bias = torch.randn(3, 1, 1, 6, 1, device=device).expand(3, 1, 3, 6, 5), torch.randn(12, device=device)[::2]
    arguments = {"bias": bias, "in_scale": scale_in, "out_scale": scale_out, "noise": noise, "backend": backend}
    y = ssconv.split_shuffle_conv3d(x, weights, **arguments)
    dense = {k: v.contiguous() if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    expected = ssconv.split_shuffle_conv3d(x.contiguous(), [w.contiguous() for w in weights], **dense)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@by_backend
@by_name
def test_the_output_is_new_memory_and_inputs_stay_as_they_were(case, backend):
    for layout in ("contiguous", "channels_last"):
        tensors = tensors_of(case, torch.float32, DEVICE[backend])
        tensors["x"] = tensors["x"].contiguous(
            memory_format=torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
        )
        before = {n: t.clone() for n, t in tensors.items()}
        y = dataclasses.replace(case, layout=layout).call(ssconv, tensors, backend)
        y.fill_(7.0)
        for name, tensor in tensors.items():
            assert torch.equal(tensor, before[name]), f"{name} changed"


@by_backend
@by_name
def test_a_repeated_call_gives_the_same_bits(case, backend):
    tensors = tensors_of(case, torch.float32, DEVICE[backend])
    assert torch.equal(case.call(ssconv, tensors, backend), case.call(ssconv, tensors, backend))


@by_backend
@by_name
def test_an_empty_batch(case, backend):
    empty = dataclasses.replace(case, batch=0)
    tensors = tensors_of(empty, torch.float32, DEVICE[backend])
    y = empty.call(ssconv, tensors, backend)
    assert tuple(y.shape) == (0, len(case.kernels) * case.cout, *case.out_size)
    assert y.dtype == torch.float32


@by_backend
def test_samples_are_independent(backend):
    """Each sample of a batch alone gives what it gives in the batch."""
    case = ConvCase(batch=3, in_scale=True, epilogue=Epilogue(True, True, "each", "lrelu"), seed=30)
    tensors = tensors_of(case, torch.float32, DEVICE[backend])
    together = case.call(ssconv, tensors, backend)
    for i in range(3):
        alone = {n: t[i : i + 1] if n in ("x", "in_scale", "out_scale", "noise") else t for n, t in tensors.items()}
        torch.testing.assert_close(case.call(ssconv, alone, backend), together[i : i + 1], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------------------------------- errors

X = torch.zeros(2, 4, 3, 4, 5)
W = [torch.zeros(3, 2, 3, 3, 3), torch.zeros(3, 2, 1, 3, 3)]
SQUARE = [torch.zeros(2, 2, 3, 3, 3), None]
ERRORS = {
    "channels not divisible": ((torch.zeros(2, 5, 3, 4, 5), W), {}, ValueError, "channels"),
    "x of four dimensions": ((X[0], W), {}, ValueError, "x: expected five dimensions"),
    "x of integers": ((X.long(), W), {}, TypeError, "x: expected float"),
    "x an array": ((X.numpy(), W), {}, TypeError, "x: expected a tensor"),
    "x without voxels": ((torch.zeros(2, 4, 0, 4, 5), W), {}, ValueError, "x: expected at least one voxel"),
    "no branch": ((X, []), {}, ValueError, "at least one branch"),
    "one tensor as weights": ((X, W[0]), {}, TypeError, "weights: expected a sequence"),
    "weight of four dimensions": ((X, [W[0][0], W[1]]), {}, ValueError, r"weights\[0\]"),
    "even extent": ((X, [W[0], torch.zeros(3, 2, 1, 2, 3)]), {}, ValueError, r"\[1\].*odd"),
    "other in channels": ((X, [W[0], torch.zeros(3, 1, 1, 3, 3)]), {}, ValueError, r"weights\[1\]"),
    "other out channels": ((X, [W[0], torch.zeros(2, 2, 1, 3, 3)]), {}, ValueError, r"weights\[1\]"),
    "weight of another dtype": ((X, [W[0], W[1].double()]), {}, TypeError, r"weights\[1\].*dtype"),
    "weight of float32 beside bfloat16": ((X.bfloat16(), W), {}, TypeError, r"weights\[0\].*dtype"),
    "weight on another device": ((X, [W[0], W[1].to("meta")]), {}, ValueError, r"weights\[1\].*device"),
    "identity with Cin != Cout": ((X, [W[0], None]), {}, ValueError, "identity"),
    "identity with stride": ((X, SQUARE), {"stride": (1, 1, 2)}, ValueError, "identity"),
    "identity transposed": ((X, SQUARE), {"transposed": True}, ValueError, "identity"),
    "stride 3": ((X, W), {"stride": 3}, ValueError, "stride"),
    "stride 0": ((X, W), {"stride": (1, 0, 1)}, ValueError, "stride"),
    "two strides": ((X, W), {"stride": (1, 2)}, ValueError, "stride"),
    "unknown padding": ((X, W), {"padding": "full"}, ValueError, 'padding: expected "same" or "valid"'),
    "valid on too few voxels": ((X[:, :, :2], W), {"padding": "valid"}, ValueError, "x:.*valid"),
    "bias of another length": ((X, W, torch.zeros(5)), {}, ValueError, r"bias: expected shape .*\(6,\)"),
    "bias of another dtype": ((X, W, torch.zeros(6).double()), {}, TypeError, "bias.*dtype"),
    "bias not a tensor": ((X, W, 1.0), {}, TypeError, "bias"),
    "in_scale without batch": ((X, W), {"in_scale": torch.zeros(4)}, ValueError, r"in_scale.*\(2, 4\)"),
    "in_scale of another dtype": ((X, W), {"in_scale": torch.zeros(2, 4).half()}, TypeError, "in_scale.*dtype"),
    "out_scale of Cin": ((X, W), {"out_scale": torch.zeros(2, 4)}, ValueError, r"out_scale.*\(2, 6\)"),
    "noise of another size": ((X, W), {"noise": torch.zeros(2, 1, 3, 4, 4)}, ValueError, "noise"),
    "noise with channels": ((X, W), {"noise": torch.zeros(2, 6, 3, 4, 5)}, ValueError, "noise"),
    "noise of another batch": ((X, W), {"noise": torch.zeros(3, 1, 3, 4, 5)}, ValueError, "noise"),
    "noise of the input's size": (
        (X, W), {"noise": torch.zeros(2, 1, 3, 4, 5), "stride": 2}, ValueError, r"noise.*\(2, 1, 2, 2, 3\)"
    ),
    "unknown activation": ((X, W), {"activation": "gelu"}, ValueError, "activation: expected one of linear, lrelu"),
    "negative slope": ((X, W), {"activation": "lrelu", "negative_slope": -0.1}, ValueError, "negative_slope"),
    "clamp of zero": ((X, W), {"clamp": 0.0}, ValueError, "clamp"),
    "negative clamp": ((X, W), {"clamp": -1.0}, ValueError, "clamp"),
    "unknown backend": ((X, W), {"backend": "cudnn"}, ValueError, "backend: expected.*cudnn"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_invalid_arguments_raise(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ssconv.split_shuffle_conv3d(*arguments, **options)


def test_the_unchanged_call_is_valid():
    assert ssconv.split_shuffle_conv3d(X, W, torch.zeros(6), noise=torch.zeros(1, 1, 3, 4, 5)).shape == (2, 6, 3, 4, 5)
    assert ssconv.split_shuffle_conv3d(X, SQUARE).shape == X.shape


def test_every_backend_is_available_or_gives_the_reason():
    state = ssconv.backends()
    assert set(state) == {"reference", "cpu", "triton", "cuda"}
    assert state["reference"] == "available"
    for name, answer in state.items():
        if answer == "available":
            continue
        assert len(answer) > len("not available: ")
        with pytest.raises(RuntimeError, match=f"backend.*{name}") as caught:
            ssconv.split_shuffle_conv3d(X, W, backend=name)
        reason = answer.removeprefix("not available: ")
        assert reason in str(caught.value), "the error does not give the reason that backends() gives"
