"""Invalid calls raise, with the same message from every backend; the messages stand here word for word."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ssconv

AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
by_backend = pytest.mark.parametrize("backend", AVAILABLE)


def a_call(backend: str) -> dict:
    """A valid call; each case makes one thing in it invalid."""
    device = DEVICE[backend]
    return {
        "x": torch.zeros(2, 4, 3, 4, 5, device=device),
        "weights": [torch.zeros(3, 2, 3, 3, 3, device=device), torch.zeros(3, 2, 1, 3, 3, device=device)],
        "bias": torch.zeros(6, device=device),
        "in_scale": torch.zeros(2, 4, device=device),
        "out_scale": torch.zeros(2, 6, device=device),
        "noise": torch.zeros(2, 1, 3, 4, 5, device=device),
        "backend": backend,
    }


def second_weight(change):
    return lambda c: c | {"weights": [c["weights"][0], change(c["weights"][1])]}


CALLS = {
    "x of twice the weights' channels": (
        lambda c: c | {"x": c["x"].new_zeros(2, 8, 3, 4, 5)},
        "x: expected 4 channels; got 8",
    ),
    "five channels where both weights have two": (
        lambda c: c | {"x": c["x"].new_zeros(2, 5, 3, 4, 5)},
        "x: expected 4 channels; got 5",
    ),
    "five channels in two branches": (
        lambda c: c | {"x": c["x"].new_zeros(2, 5, 3, 4, 5), "weights": [None, None]},
        "channels of x: expected a positive multiple of the 2 branches; got 5; use a multiple of 2 or fewer branches",
    ),
    "x without channels dimension": (
        lambda c: c | {"x": c["x"][0]},
        "x: expected five dimensions (N, C, D, H, W); got shape (4, 3, 4, 5)",
    ),
    "x of integers": (
        lambda c: c | {"x": c["x"].long()},
        "x: expected float16, bfloat16, float32 or float64; got torch.int64",
    ),
    "x no tensor": (lambda c: c | {"x": 3}, "x: expected a tensor (N, C, D, H, W); got int"),
    "even extent": (
        second_weight(lambda w: w.new_zeros(3, 2, 1, 2, 3)),
        "weights[1]: expected three odd positive extents (kd, kh, kw) of at most 63, or None for the "
        "identity; got (1, 2, 3)",
    ),
    "weight of other channels": (
        second_weight(lambda w: w.new_zeros(3, 1, 1, 3, 3)),
        "weights[1]: expected shape (Cout/S, Cin/S, kd, kh, kw) = (3, 2, 1, 3, 3); got (3, 1, 1, 3, 3)",
    ),
    "weight of another dtype": (
        second_weight(lambda w: w.double()),
        "weights[1]: expected dtype torch.float32 as x has; got torch.float64; convert one of them",
    ),
    "float32 weights beside bfloat16": (
        lambda c: c | {"x": c["x"].bfloat16()},
        "weights[0]: expected dtype torch.bfloat16 as x has; got torch.float32; convert one of them",
    ),
    "weight on another device": (
        second_weight(lambda w: w.to("meta")),
        "weights[1]: expected device {device} as x has; got meta; move one of them",
    ),
    "x on another device": (
        lambda c: c | {"x": c["x"].to("meta")},
        "weights[0]: expected device meta as x has; got {device}; move one of them",
    ),
    "identity that changes channels": (
        second_weight(lambda w: None),
        "weights: an identity branch (None) needs as many output as input channels; got 4 in and 6 out",
    ),
    "no weights": (lambda c: c | {"weights": []}, "weights: expected at least one branch; got none"),
    "bias of another length": (
        lambda c: c | {"bias": c["bias"][:5]},
        "bias: expected shape (Cout,) = (6,); got (5,)",
    ),
    "bias on another device": (
        lambda c: c | {"bias": c["bias"].to("meta")},
        "bias: expected device {device} as x has; got meta; move one of them",
    ),
    "bias of bfloat16": (
        lambda c: c | {"bias": c["bias"].bfloat16()},
        "bias: expected dtype torch.float32 as x has; got torch.bfloat16; convert one of them",
    ),
    "in_scale of Cout": (
        lambda c: c | {"in_scale": c["out_scale"]},
        "in_scale: expected shape (N, Cin) = (2, 4); got (2, 6)",
    ),
    "out_scale of another dtype": (
        lambda c: c | {"out_scale": c["out_scale"].half()},
        "out_scale: expected dtype torch.float32 as x has; got torch.float16; convert one of them",
    ),
    "noise of the input's size under stride 2": (
        lambda c: c | {"stride": 2},
        "noise: expected shape (N or 1, 1, D, H, W) of the output = (2, 1, 2, 2, 3) or (1, 1, 2, 2, 3); "
        "got (2, 1, 3, 4, 5)",
    ),
    "stride 3": (lambda c: c | {"stride": (1, 3, 1)}, "stride: expected 1 or 2 in each dimension; got (1, 3, 1)"),
    "stride of two numbers": (
        lambda c: c | {"stride": (1, 2)},
        "stride: expected an int or three of them for D, H, W; got (1, 2)",
    ),
    "stride of a fraction": (
        lambda c: c | {"stride": 1.5},
        "stride: expected an int or three of them for D, H, W; got 1.5",
    ),
    "padding of a number": (
        lambda c: c | {"padding": 1},
        'padding: expected "same" or "valid"; got 1; use "same" for extents // 2 zeros on each side, "valid" for none',
    ),
    "valid on too few voxels": (
        lambda c: c | {"x": c["x"][:, :, :2], "padding": "valid"},
        'x: padding="valid" needs extents of at least (3, 3, 3); got (2, 4, 5)',
    ),
    "unknown activation": (
        lambda c: c | {"activation": "gelu"},
        "activation: expected one of linear, lrelu; got 'gelu'",
    ),
    "clamp of zero": (lambda c: c | {"clamp": 0.0}, "clamp: expected a positive bound or None; got 0.0"),
}


def the_message(raising, *args, **kwargs) -> str:
    with pytest.raises((ValueError, TypeError)) as caught:
        raising(*args, **kwargs)
    return str(caught.value)


@by_backend
@pytest.mark.parametrize(("spoil", "sentence"), CALLS.values(), ids=CALLS)
def test_every_backend_raises_the_same_error(spoil, sentence, backend):
    expected = sentence.replace("{device}", str(a_call(backend)["x"].device))
    assert the_message(ssconv.split_shuffle_conv3d, **spoil(a_call(backend))) == expected


@by_backend
def test_the_unchanged_call_is_valid(backend):
    assert ssconv.split_shuffle_conv3d(**a_call(backend)).shape == (2, 6, 3, 4, 5)


FILTERS = {
    "taps on another device": (
        {"taps": torch.ones(3, device="meta")},
        "taps: expected device {device} as x has; got meta; move one of them",
    ),
    "taps that want a gradient": (
        {"taps": torch.ones(3, requires_grad=True)},
        "taps: expected constants, filters get no gradient; got requires_grad=True; pass taps.detach()",
    ),
    "factor of zero": ({"up": (1, 0, 1)}, "up: expected factors of at least 1; got (1, 0, 1)"),
    "padding of a fraction": (
        {"padding": 0.5},
        "padding: expected an int, three or six of them (d0, d1, h0, h1, w0, w1); got 0.5",
    ),
    "bias of another length": ({"bias": torch.zeros(3)}, "bias: expected shape (C,) = (4,); got (3,)"),
    "border": ({"depth_border": "reflect"}, 'depth_border: expected "zero" or "replicate"; got \'reflect\''),
}


@by_backend
@pytest.mark.parametrize(("options", "sentence"), FILTERS.values(), ids=FILTERS)
def test_every_backend_raises_the_same_error_for_filters(options, sentence, backend):
    device = DEVICE[backend]
    x = torch.zeros(2, 4, 3, 4, 5, device=device)
    call = {"taps": torch.ones(3, device=device)} | options
    expected = sentence.replace("{device}", str(x.device))
    assert the_message(ssconv.upfirdn3d, x, call.pop("taps"), backend=backend, **call) == expected


LAYERS = {
    "dilation": (
        (4, 4),
        {"dilation": 2},
        "dilation: expected 1, the operator does not support dilation; got 2; keep nn.Conv3d for this layer",
    ),
    "dilation along depth": (
        (4, 4),
        {"dilation": (2, 1, 1)},
        "dilation: expected 1, the operator does not support dilation; got (2, 1, 1); keep nn.Conv3d for this layer",
    ),
    "groups": (
        (4, 4),
        {"groups": 2},
        "groups: expected 1, the branches are the groups; got 2; use one branch per group, such as "
        "kernel_sizes=((3, 3, 3),) * 2, with shuffle=False for nn.Conv3d's channel order",
    ),
    "padding mode": (
        (4, 4),
        {"padding_mode": "reflect"},
        'padding_mode: expected "zeros"; got \'reflect\'; pad x with torch.nn.functional.pad and use padding="valid"',
    ),
    "odd in_channels": (
        (5, 4),
        {},
        "in_channels: expected a positive multiple of the 2 branches; got 5; use a multiple of 2 or fewer branches",
    ),
    "odd out_channels": (
        (4, 6, "acs4"),
        {},
        "out_channels: expected a positive multiple of the 4 branches; got 6; use a multiple of 4 or fewer branches",
    ),
    "even extent": (
        (4, 4, ((3, 3, 3), (3, 2, 3))),
        {},
        "kernel_sizes[1]: expected three odd positive extents (kd, kh, kw) of at most 63, or None for the "
        "identity; got (3, 2, 3)",
    ),
    "more taps than fit": (
        (4, 4, ((3, 3, 65),)),
        {},
        "kernel_sizes[0]: expected three odd positive extents (kd, kh, kw) of at most 63, or None for the "
        "identity; got (3, 3, 65)",
    ),
    "nn.Conv3d's kernel size": (
        (4, 4, 3),
        {},
        "kernel_sizes: expected extents (kd, kh, kw) for each branch, such as ((3, 3, 3), (1, 3, 3)); got 3",
    ),
    "one triple": (
        (4, 4, (3, 3, 3)),
        {},
        "kernel_sizes[0]: expected three odd positive extents (kd, kh, kw) of at most 63, or None for the "
        "identity; got 3",
    ),
    "unknown set": (
        (4, 4, "acs3"),
        {},
        "kernel_sizes: expected extents or one of dense, grouped, split_depth, acs4; got 'acs3'",
    ),
}


@pytest.mark.parametrize(("arguments", "options", "sentence"), LAYERS.values(), ids=LAYERS)
def test_an_invalid_layer_raises_when_it_is_built(arguments, options, sentence):
    assert the_message(ssconv.SplitShuffleConv3d, *arguments, **options) == sentence


def test_the_advice_in_the_error_on_groups_works():
    torch.manual_seed(0)
    theirs = nn.Conv3d(4, 6, 3, padding=1, groups=2)
    ours = ssconv.SplitShuffleConv3d(4, 6, kernel_sizes=((3, 3, 3),) * 2, shuffle=False)
    with torch.no_grad():
        ours.bias.copy_(theirs.bias)
        for weight, part in zip(ours.weights, theirs.weight.chunk(2), strict=True):
            weight.copy_(part)
    x = torch.randn(2, 4, 3, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_keywords_of_nn_conv3d_are_accepted_at_their_defaults():
    defaults = {"dilation": 1, "groups": 1, "padding_mode": "zeros", "bias": True, "stride": 1, "device": None}
    assert ssconv.SplitShuffleConv3d(4, 6, **defaults, dtype=torch.float64).bias.dtype == torch.float64
    assert "dilation" not in repr(ssconv.SplitShuffleConv3d(4, 6, dilation=(1, 1, 1)))


@by_backend
def test_float64_is_computed_or_raises_by_name(backend):
    call = a_call(backend)
    wide = {
        n: [w.double() for w in v] if n == "weights" else v.double() if isinstance(v, torch.Tensor) else v
        for n, v in call.items()
    }
    if backend == "reference":
        assert ssconv.split_shuffle_conv3d(**wide).dtype == torch.float64
    else:
        with pytest.raises(RuntimeError, match=f"backend: '{backend}' serves .*; got torch.float64 .*"):
            ssconv.split_shuffle_conv3d(**wide)
