"""The registered ops: schemas, fakes and autograd as torch.library.opcheck sees them, and torch.compile."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings

import ssconv
from ssconv.spec import BORDERS
from tests.support.strategies import (
    CONV_CASES,
    UPFIRDN_CASES,
    ConvCase,
    Epilogue,
    conv_cases,
    tensors_of,
    upfirdn_cases,
)

OPS = torch.ops.ssconv
NAMES = ("forward", "input_grad", "weight_grad", "epilogue", "epilogue_backward", "upfirdn")
FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
CASES = {
    "split-depth-full": dataclasses.replace(CONV_CASES["split-depth-full"], size=(2, 3, 4)),
    "stride-2-shared-noise": ConvCase(
        size=(3, 4, 3), stride=(2, 1, 2), epilogue=Epilogue(True, False, "shared", "lrelu", 0.2, -0.7), seed=60
    ),
    "transposed-valid": dataclasses.replace(
        CONV_CASES["transposed-valid-stride-212"], epilogue=Epilogue(out_scale=True), layout="contiguous"
    ),
    "identity": dataclasses.replace(CONV_CASES["identity"], size=(2, 1, 3)),
    "one-channel-one-voxel": ConvCase(((1, 1, 1),), 1, 1, 1, (1, 1, 1), epilogue=Epilogue(True, True, "each")),
    "nothing-extra": ConvCase(((1, 3, 1), (3, 1, 1), (1, 1, 3)), 1, 2, 1, (2, 3, 2), shuffle=False, seed=61),
}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def geometry(case: ConvCase) -> tuple:
    """The schema's arguments branches, stride, valid, transposed."""
    branches = [extent for kernel in case.kernels for extent in (kernel or (0, 0, 0))]
    return branches, list(case.stride), case.padding == "valid", case.transposed


def epilogue(case: ConvCase) -> tuple:
    """The schema's arguments groups, slope, gain, clamp."""
    e = case.epilogue
    slope = 1.0 if e.activation == "linear" else e.negative_slope
    return len(case.kernels) if case.shuffle else 1, slope, e.gain, e.clamp


def leaves(case: ConvCase, requires_grad: bool = True) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    tensors = tensors_of(case, torch.float32, requires_grad=requires_grad)
    return tensors, [t for n, t in tensors.items() if n.startswith("weights")]


def an_output(case: ConvCase, seed: int, requires_grad: bool = True) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(case.batch, len(case.kernels) * case.cout, *case.out_size, requires_grad=requires_grad)


def test_the_six_ops_are_registered():
    for name in NAMES:
        assert hasattr(OPS, name), name


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
@by_case
def test_forward(case, grad):
    tensors, weights = leaves(case, grad)
    companions = [tensors.get(n) for n in ("bias", "in_scale", "out_scale", "noise")]
    save_z = grad and case.epilogue.out_scale
    torch.library.opcheck(
        OPS.forward.default, (tensors["x"], weights, *companions, *geometry(case), *epilogue(case), save_z, "reference")
    )


@by_case
def test_input_grad(case):
    tensors, weights = leaves(case)
    g, size = an_output(case, 0), list(case.size)
    torch.library.opcheck(
        OPS.input_grad.default, (g, weights, tensors.get("in_scale"), *geometry(case), size, "reference")
    )


@by_case
def test_weight_grad(case):
    tensors, _ = leaves(case)
    torch.library.opcheck(
        OPS.weight_grad.default,
        (an_output(case, 0), tensors["x"], tensors.get("in_scale"), *geometry(case), "reference"),
    )


@by_case
def test_epilogue(case):
    tensors, _ = leaves(case)
    torch.library.opcheck(
        OPS.epilogue.default,
        (an_output(case, 0), *(tensors.get(n) for n in ("bias", "out_scale", "noise")), *epilogue(case), "reference"),
    )


@by_case
def test_epilogue_backward(case):
    tensors, _ = leaves(case)
    scale, noise = tensors.get("out_scale"), tensors.get("noise")
    z = an_output(case, 2) if scale is not None else None
    noise_batch = -1 if noise is None else noise.shape[0]  # -1: no gradient of the noise
    torch.library.opcheck(
        OPS.epilogue_backward.default,
        (
            an_output(case, 0), an_output(case, 1, False), z, scale, *epilogue(case), case.epilogue.bias, noise_batch,
            "reference",
        ),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["up-2", "down-2", "crop", "up-122"])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no-grad"])
def test_upfirdn(name, border, grad):
    case = UPFIRDN_CASES[name]
    x = tensors_of(case, torch.float32, requires_grad=grad)["x"]
    taps = [None if f is None else torch.tensor(f, dtype=torch.float32) for f in case.filters()]
    arguments = (x, *taps, list(case.up), list(case.down), list(case.six), "reference", border)
    torch.library.opcheck(OPS.upfirdn.default, arguments)


def test_upfirdn_as_programs_from_before_it_had_a_border_call_it():
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    taps = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    y = OPS.upfirdn(x, taps, taps, taps, [1] * 3, [1] * 3, [1] * 6, "reference")
    torch.testing.assert_close(y, ssconv.upfirdn3d(x, taps, padding=1))
    grads = [torch.autograd.grad(t.square().sum(), x)[0] for t in (y, ssconv.upfirdn3d(x, taps, padding=1))]
    torch.testing.assert_close(*grads)


def assert_the_fake_agrees(case, dtype: torch.dtype) -> None:
    """On the meta device the fakes run: shape, dtype and strides must be those of the real op."""
    real = case.call(ssconv, tensors_of(case, dtype, requires_grad=True))
    fake = case.call(ssconv, tensors_of(case, dtype, "meta", requires_grad=True))
    assert (fake.shape, fake.dtype, fake.requires_grad) == (real.shape, real.dtype, real.requires_grad)
    # The stride of an extent of one is arbitrary: one channel is channels_last_3d and contiguous at once.
    strides = [[s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1] for t in (fake, real)]
    assert strides[0] == strides[1] or not real.numel()


@given(case=conv_cases())
@settings(max_examples=60)
def test_fakes_of_drawn_convolutions(case):
    assert_the_fake_agrees(case, torch.float32)
    assert_the_fake_agrees(dataclasses.replace(case, batch=0), torch.bfloat16)


@given(case=upfirdn_cases())
@settings(max_examples=60)
def test_fakes_of_drawn_filters(case):
    assert_the_fake_agrees(case, torch.float32)


@pytest.mark.parametrize("name", ["split-depth-full", "transposed-valid-stride-212", "identity"])
def test_compiled_without_graph_breaks(name):
    """The whole call is one graph, forward and backward, with the eager numbers."""
    case = CONV_CASES[name]

    def function(tensors):
        return case.call(ssconv, tensors).square().sum()

    results = []
    for f in (function, torch.compile(function, backend="aot_eager", fullgraph=True)):
        tensors = tensors_of(case, torch.float32, requires_grad=True)
        value = f(tensors)
        results.append((value, *torch.autograd.grad(value, list(tensors.values()))))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled)
    torch.compiler.reset()


@pytest.mark.parametrize("dynamic", [None, True], ids=["when-sizes-change", "from-the-start"])
def test_a_compiled_layer_meets_new_sizes(dynamic):
    layer = ssconv.SplitShuffleConv3d(4, 4, activation="lrelu")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for size in ((3, 4, 5), (4, 6, 5), (5, 3, 7)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()
