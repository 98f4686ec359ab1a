"""SplitShuffleConv3d: parameters, initialisation, state, and use in place of nn.Conv3d."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ssconv

CONFIGURATIONS = {
    "default": ((4, 6), {}),
    "dense": ((3, 5, ((3, 3, 3),)), {}),
    "by-name": ((8, 4, "acs4"), {"activation": "lrelu"}),
    "identity": ((6, 6, ((3, 1, 3), None, (1, 1, 1))), {"shuffle": False}),
    "strided-valid": ((4, 2), {"stride": (1, 2, 2), "padding": "valid", "bias": False}),
    "transposed": ((4, 2), {"stride": 2, "transposed": True}),
    "double": ((4, 2), {"dtype": torch.float64}),
}
by_configuration = pytest.mark.parametrize(("arguments", "options"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def an_input(layer: nn.Module, arguments: tuple) -> torch.Tensor:
    return torch.randn(2, arguments[0], 4, 5, 3, dtype=next(layer.parameters()).dtype)


@by_configuration
def test_the_layer_is_the_operator_with_its_parameters(arguments, options):
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(*arguments, **options)
    x = an_input(layer, arguments)
    kernels = arguments[2] if len(arguments) > 2 else ((3, 3, 3), (1, 3, 3))
    kernels = ssconv.KERNEL_SETS[kernels] if isinstance(kernels, str) else kernels
    shapes = [(arguments[1] // len(kernels), arguments[0] // len(kernels), *k) for k in kernels if k]
    assert [tuple(w.shape) for w in layer.weights] == shapes
    own = iter(layer.weights)
    weights = [next(own) if k else None for k in kernels]
    call = {k: v for k, v in options.items() if k not in ("bias", "dtype")}
    expected = ssconv.split_shuffle_conv3d(x, weights, layer.bias, **call)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    assert (layer.bias is None) == (options.get("bias") is False)


@pytest.mark.parametrize("name", ["dense", "grouped", "split_depth", "acs4"])
def test_named_kernel_sets(name):
    extents = {
        "dense": ((3, 3, 3),),
        "grouped": ((3, 3, 3), (3, 3, 3)),
        "split_depth": ((3, 3, 3), (1, 3, 3)),
        "acs4": ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)),
    }
    assert ssconv.KERNEL_SETS[name] == extents[name]
    layer = ssconv.SplitShuffleConv3d(8, 16, name, bias=False)
    s = len(extents[name])
    assert sum(p.numel() for p in layer.parameters()) == sum(16 // s * 8 // s * a * b * c for a, b, c in extents[name])


def test_the_default_has_a_third_of_the_dense_weights():
    split = ssconv.SplitShuffleConv3d(12, 24, bias=False)
    dense = nn.Conv3d(12, 24, 3, bias=False)
    assert 3 * sum(p.numel() for p in split.parameters()) == dense.weight.numel()


@pytest.mark.parametrize("stride", [1, 2, (1, 2, 2)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 5)], ids=str)
def test_one_branch_is_nn_conv3d(kernel, padding, stride):
    half = tuple(k // 2 for k in kernel) if padding == "same" else 0
    theirs = nn.Conv3d(4, 6, kernel, stride, half, dtype=torch.float64)
    ours = ssconv.SplitShuffleConv3d(4, 6, (kernel,), stride=stride, padding=padding, dtype=torch.float64)
    with torch.no_grad():
        ours.weights[0].copy_(theirs.weight)
        ours.bias.copy_(theirs.bias)
    x = torch.randn(2, 4, 5, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)
    assert ours.float()(x.float()).dtype == torch.float32


def test_one_transposed_branch_is_nn_conv_transpose3d():
    theirs = nn.ConvTranspose3d(4, 6, 3, 2, 1, output_padding=1, dtype=torch.float64)
    ours = ssconv.SplitShuffleConv3d(4, 6, "dense", stride=2, transposed=True, dtype=torch.float64)
    with torch.no_grad():
        ours.weights[0].copy_(theirs.weight.transpose(0, 1))
        ours.bias.copy_(theirs.bias)
    x = torch.randn(2, 4, 3, 4, 2, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-13, atol=1e-13)


def test_the_fused_activation_is_leaky_relu():
    torch.manual_seed(0)
    plain, fused = ssconv.SplitShuffleConv3d(4, 4), ssconv.SplitShuffleConv3d(4, 4, activation="lrelu")
    fused.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 3, 4, 5)
    torch.testing.assert_close(fused(x), F.leaky_relu(plain(x), 0.2))


def test_initialisation_keeps_the_variance_that_nn_conv3d_keeps():
    """Uniform within 1/sqrt(fan_in) of each branch, so both halves of the output have nn.Conv3d's variance, 1/3."""
    torch.manual_seed(0)
    x = torch.randn(4, 32, 9, 9, 9)
    dense = nn.Conv3d(32, 64, 3, bias=False)(x).var().item()
    layer = ssconv.SplitShuffleConv3d(32, 64, padding="valid", shuffle=False, bias=False)
    y = layer(x)
    for branch, weight in zip(y.chunk(2, 1), layer.weights, strict=True):
        assert 0.8 * dense < branch.var().item() < 1.25 * dense
        bound = weight[0].numel() ** -0.5
        assert 0.95 * bound < weight.abs().max().item() <= bound
    assert abs(dense - 1 / 3) < 0.05


def test_the_bias_is_initialised_and_small():
    torch.manual_seed(0)
    bias = ssconv.SplitShuffleConv3d(32, 256).bias
    assert 0 < bias.abs().max().item() <= (16 * 9) ** -0.5
    assert bias.std() > 0


@by_configuration
def test_state_dict_goes_through_a_file(arguments, options):
    first, second = (ssconv.SplitShuffleConv3d(*arguments, **options) for _ in range(2))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    x = an_input(first, arguments)
    assert torch.equal(first(x), second(x))
    names = {f"weights.{i}" for i in range(len(first.weights))} | ({"bias"} if first.bias is not None else set())
    assert set(first.state_dict()) == names


@by_configuration
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_are_independent_and_equal(how, arguments, options):
    layer = ssconv.SplitShuffleConv3d(*arguments, **options)
    twin = how(layer)
    x = an_input(layer, arguments)
    assert torch.equal(layer(x), twin(x))
    with torch.no_grad():
        twin.weights[0].add_(1.0)
    assert not torch.equal(layer(x), twin(x))
    assert repr(twin) == repr(layer)


def test_dtype_and_device_reach_every_parameter():
    layer = ssconv.SplitShuffleConv3d(4, 4, device="meta", dtype=torch.bfloat16)
    assert all(p.device.type == "meta" and p.dtype == torch.bfloat16 for p in layer.parameters())
    moved = ssconv.SplitShuffleConv3d(4, 4).to(torch.bfloat16)
    assert moved(torch.randn(1, 4, 3, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_channels_last_conversion_of_a_model_changes_no_value():
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 6)
    x = torch.randn(2, 4, 3, 4, 5)
    expected = layer(x)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last_3d)(x), expected)


def test_repr_names_settings_that_are_not_defaults():
    plain = repr(ssconv.SplitShuffleConv3d(4, 6))
    assert "4, 6" in plain and "(3, 3, 3), (1, 3, 3)" in plain
    assert "stride" not in plain and "bias" not in plain
    odd = repr(
        ssconv.SplitShuffleConv3d(
            4, 4, (None, (3, 3, 1)), padding="valid", shuffle=False, bias=False, activation="lrelu"
        )
    )
    for part in ("None", "padding='valid'", "shuffle=False", "bias=False", "activation='lrelu'"):
        assert part in odd, part
    assert "stride=(2, 2, 2)" in repr(ssconv.SplitShuffleConv3d(4, 4, stride=2))
    assert "transposed=True" in repr(ssconv.SplitShuffleConv3d(4, 4, transposed=True))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((5, 4), {}, "in_channels"),
        ((4, 5), {}, "out_channels"),
        ((0, 4), {}, "in_channels"),
        ((4, 4, "acs3"), {}, "kernel_sizes: expected extents or one of"),
        ((4, 4, ((3, 3, 3), (2, 3, 3))), {}, r"kernel_sizes\[1\].*odd"),
        ((4, 4, ((3, 3),)), {}, r"kernel_sizes\[0\]"),
        ((4, 4, ()), {}, "at least one"),
        ((4, 6, ((3, 3, 3), None)), {}, "identity"),
        ((4, 4, ((3, 3, 3), None)), {"stride": 2}, "identity"),
        ((4, 4), {"stride": 4}, "stride"),
        ((4, 4), {"padding": 1}, "padding"),
        ((4, 4), {"activation": "silu"}, "activation"),
    ],
)
def test_invalid_arguments_raise_when_it_is_built(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ssconv.SplitShuffleConv3d(*arguments, **options)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.SiLU])
def test_an_activation_in_place_may_follow(activation):
    """As after nn.Conv3d: the backward of a linear layer must not need its own output."""
    torch.manual_seed(0)
    layer, x = ssconv.SplitShuffleConv3d(4, 6), torch.randn(2, 4, 3, 4, 5)
    results = []
    for inplace in (False, True):
        loss = nn.Sequential(layer, activation(inplace=inplace))(x).square().sum()
        results.append(torch.autograd.grad(loss, list(layer.parameters())))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_small_model_learns():
    """Two layers learn a fixed blur along all three dimensions, which needs depth and the mixing of channels."""
    torch.manual_seed(0)
    target = nn.Conv3d(2, 2, 3, padding=1)
    model = nn.Sequential(
        ssconv.SplitShuffleConv3d(2, 16, activation="lrelu"),
        ssconv.SplitShuffleConv3d(16, 16, activation="lrelu"),
        ssconv.SplitShuffleConv3d(16, 2),
    )
    x = torch.randn(4, 2, 5, 6, 4)
    y = target(x).detach()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 2, "transposed": True}], ids=str)
def test_a_sample_without_a_batch_is_taken_as_conv3d_takes_it(options):
    layer, x = (
        ssconv.SplitShuffleConv3d(4, 6, activation="lrelu", **options),
        torch.randn(4, 5, 6, 7, requires_grad=True),
    )
    y = layer(x)
    assert torch.equal(y, layer(x[None])[0])
    (gx,) = torch.autograd.grad(y.square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x[None]).square().sum(), x)
    assert gx.shape == x.shape and torch.equal(gx, expected)
    conv = torch.nn.Conv3d(4, 6, 3, padding=1)
    assert torch.allclose(ssconv.from_conv3d(conv, "dense")(x), conv(x), atol=1e-5)
    for shape in ((5, 6, 7), (1, 1, 4, 5, 6, 7)):
        with pytest.raises(ValueError, match="x: expected five dimensions"):
            layer(torch.randn(shape))
