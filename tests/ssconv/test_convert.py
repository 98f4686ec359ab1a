"""convert and from_conv3d: which layers are replaced, which are left alone and why, and the new layers' weights."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from ssconv import SplitShuffleConv3d, convert, from_conv3d

SETS = {
    "dense": ((3, 3, 3),),
    "grouped": ((3, 3, 3), (3, 3, 3)),
    "split_depth": ((3, 3, 3), (1, 3, 3)),
    "acs4": ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)),
}
UP = {"stride": 2, "padding": 1, "output_padding": 1}
LAYERS = {
    "same": (nn.Conv3d, 3, {"padding": 1}),
    "same-by-name": (nn.Conv3d, 3, {"padding": "same", "bias": False}),
    "valid": (nn.Conv3d, 3, {}),
    "valid-by-name": (nn.Conv3d, (3, 5, 3), {"padding": "valid"}),
    "strided": (nn.Conv3d, 3, {"padding": 1, "stride": 2}),
    "strided-in-plane": (nn.Conv3d, (3, 5, 7), {"padding": (1, 2, 3), "stride": (1, 2, 2)}),
    "strided-valid": (nn.Conv3d, 3, {"stride": (2, 1, 2), "bias": False}),
    "stem": (nn.Conv3d, 7, {"padding": 3, "stride": 2}),
    "along-depth": (nn.Conv3d, (3, 1, 1), {"padding": (1, 0, 0)}),
    "up": (nn.ConvTranspose3d, 3, UP),
    "up-in-plane": (nn.ConvTranspose3d, 3, {"stride": (1, 2, 2), "padding": 1, "output_padding": (0, 1, 1)}),
    "up-valid": (nn.ConvTranspose3d, (3, 3, 5), {"stride": (2, 1, 2), "bias": False}),
    "up-by-one": (nn.ConvTranspose3d, (5, 3, 3), {"padding": (2, 1, 1)}),
}
by_layer = pytest.mark.parametrize(("kind", "kernel", "options"), LAYERS.values(), ids=LAYERS)
by_set = pytest.mark.parametrize("name", SETS)


def a_layer(kind: type, kernel, options: dict, channels: tuple[int, int] = (8, 12)) -> nn.Module:
    torch.manual_seed(0)
    return kind(*channels, kernel, **{"dtype": torch.float64} | options)


def an_input(channels: int = 8) -> Tensor:
    return torch.randn(2, channels, 8, 9, 7, dtype=torch.float64)


def restricted(conv: nn.Module, extents: tuple) -> Tensor:
    """The layer's own weight, zero at the inputs and taps that output channel o does not see, scaled; entry by entry.

    Output o belongs to branch o % S; that branch has the o-th run of Cin / S inputs, and its taps about the middle.
    """
    weight = conv.weight.detach().clone()
    up, count = isinstance(conv, nn.ConvTranspose3d), len(extents)
    cin, cout = conv.in_channels, conv.out_channels
    for o, i, *tap in itertools.product(range(cout), range(cin), *map(range, conv.kernel_size)):
        branch = o % count
        reach = [1 if up and s > 1 else e for e, s in zip(extents[branch], conv.stride)]
        seen = i // (cin // count) == branch and all(
            t == k // 2 or e > 1 or (up and s > 1) for t, k, e, s in zip(tap, conv.kernel_size, reach, conv.stride)
        )
        if not seen:
            weight[(i, o, *tap) if up else (o, i, *tap)] = 0
    dims = (0, 2, 3, 4) if up else (1, 2, 3, 4)
    scale = (conv.weight.detach().square().sum(dims) / weight.square().sum(dims)).sqrt()
    return weight * (scale[None, :, None, None, None] if up else scale[:, None, None, None, None])


def with_weight(conv: nn.Module, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(conv, nn.ConvTranspose3d):
        return F.conv_transpose3d(x, weight, conv.bias, conv.stride, conv.padding, conv.output_padding)
    return F.conv3d(x, weight, conv.bias, conv.stride, conv.padding)


# ------------------------------------------------------------------------------------------------- weights


@by_layer
def test_dense_keeps_the_function_and_its_gradients(kind, kernel, options):
    model = nn.Sequential(a_layer(kind, kernel, options))
    twin, x = copy.deepcopy(model), an_input().requires_grad_()
    (row,) = convert(twin, "dense").layers
    assert row.branches == (model[0].kernel_size,) and row.before == row.after
    assert type(twin[0]) is SplitShuffleConv3d
    y, expected = twin(x), model(x)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, twin[0].weights[0]], g)
    (gx, gw) = torch.autograd.grad(expected, [x, model[0].weight], g)
    torch.testing.assert_close(found[0], gx, rtol=1e-12, atol=1e-12)
    gw = gw.transpose(0, 1) if kind is nn.ConvTranspose3d else gw
    torch.testing.assert_close(found[1], gw, rtol=1e-11, atol=1e-11)


@by_layer
@by_set
def test_split_layers_are_the_dense_layer_with_zeros_scaled_back(name, kind, kernel, options):
    model = nn.Sequential(a_layer(kind, kernel, options))
    conv, x = model[0], an_input()
    expected = with_weight(conv, restricted(conv, SETS[name]), x)
    (row,) = convert(model, name).swapped
    assert row.after <= row.before / len(SETS[name]) + conv.out_channels
    assert len(row.branches) == len(SETS[name])
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


FITTED = {
    "another odd cube": ("split_depth", 5, ((5, 5, 5), (1, 5, 5))),
    "not a cube": ("acs4", (3, 5, 7), ((3, 5, 7), (1, 5, 7), (3, 1, 7), (3, 5, 1))),
    "a plane": ("acs4", (1, 3, 3), ((1, 3, 3), (1, 3, 3), (1, 1, 3), (1, 3, 1))),
    "a line": ("split_depth", (3, 1, 1), ((3, 1, 1), (1, 1, 1))),
    "grouped plane": ("grouped", (1, 3, 3), ((1, 3, 3), (1, 3, 3))),
    "dense point": ("dense", 1, ((1, 1, 1),)),
    "a set by extents": (((3, 3, 3), (1, 3, 3)), 5, ((5, 5, 5), (1, 5, 5))),
    "extents of 5 and 3 for 7": (((5, 5, 5), (3, 3, 3)), 7, ((7, 7, 7), (3, 3, 3))),
    "extents of 5 and 3 for 3": (((5, 5, 5), (1, 3, 3)), 3, ((3, 3, 3), (1, 3, 3))),
    "in plane only": (((1, 3, 3), (1, 3, 1)), 3, ((1, 3, 3), (1, 3, 1))),
    "lists": ([[3, 3, 3], [1, 3, 3]], 3, ((3, 3, 3), (1, 3, 3))),
}


@pytest.mark.parametrize(("kernel_sizes", "kernel", "expected"), FITTED.values(), ids=FITTED)
def test_a_set_takes_the_extents_of_the_layer(kernel_sizes, kernel, expected):
    conv = nn.Conv3d(8, 8, kernel, padding="same")
    layer = from_conv3d(conv, kernel_sizes)
    assert layer.kernel_sizes == expected
    x = torch.randn(1, 8, 4, 5, 6)
    assert layer(x).shape == conv(x).shape


def test_no_slice_of_a_strided_transposed_layer_stays_empty():
    """A branch of extent 1 would reach every other slice only."""
    conv = nn.ConvTranspose3d(8, 8, 3, bias=False, stride=(2, 1, 2), padding=1, output_padding=(1, 0, 1))
    layer = from_conv3d(conv, "acs4")
    assert layer.kernel_sizes == ((3, 3, 3), (3, 3, 3), (3, 1, 3), (3, 3, 3))
    assert (layer(torch.randn(1, 8, 3, 4, 5)).abs() > 0).all()


@by_set
@pytest.mark.parametrize("kind", [nn.Conv3d, nn.ConvTranspose3d])
def test_white_noise_keeps_its_variance(kind, name):
    """Measured, channel by channel: the dense weights of the channels differ in size by up to 100."""
    conv = a_layer(kind, 3, {"bias": False, "dtype": torch.float32})
    with torch.no_grad():
        shape = (1, -1, 1, 1, 1) if kind is nn.ConvTranspose3d else (-1, 1, 1, 1, 1)
        conv.weight.mul_(torch.logspace(-1, 1, conv.out_channels).view(shape))
    x = torch.randn(4, 8, 22, 24, 23)
    inner = (slice(None), slice(None), *[slice(2, -2)] * 3)
    before, after = conv(x)[inner], from_conv3d(conv, name)(x)[inner]
    ratio = after.var((0, 2, 3, 4)) / before.var((0, 2, 3, 4))
    assert ((ratio - 1).abs() < 0.1).all(), ratio


def test_weights_cut_to_zero_stay_zero_and_finite():
    conv = nn.Conv3d(4, 4, 3, padding=1)
    with torch.no_grad():
        conv.weight[0, :2] = 0  # output 0 is of branch 0: the first two inputs
        conv.weight[3, 2:, 1] = 0  # output 3 is of branch 1: the last two inputs, in plane
        conv.weight[2] = 0
    layer = from_conv3d(conv)
    first, second = layer.weights
    assert not first[0].any() and not second[1].any() and not first[1].any()
    assert first.isfinite().all() and second.isfinite().all() and second[0].all()
    y = layer(torch.randn(2, 4, 3, 4, 5))
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_squares_do_not_overflow_or_vanish_in_16_bit(dtype):
    conv = nn.Conv3d(64, 4, 3, bias=False, dtype=dtype)
    for size in (1e-5, 300.0):
        nn.init.normal_(conv.weight, std=size)
        layer = from_conv3d(conv)
        squares = [w.double().square().flatten(1).sum(1) for w in layer.weights]
        dense = conv.weight.double().square().flatten(1).sum(1)
        torch.testing.assert_close(torch.stack(squares, 1).flatten(), dense, rtol=0.05, atol=0)


# ------------------------------------------------------------------------------------------------- in place


class Net(nn.Module):
    """A convolution in each kind of container."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(2)])
        self.heads = nn.ModuleDict({"down": nn.Conv3d(4, 4, 3, 2, 1), "side": nn.Conv3d(4, 4, 1)})
        self.up = nn.ConvTranspose3d(4, 4, 3, **UP)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.up(self.heads["down"](x)) + self.heads["side"](x)


def test_layers_in_every_container_are_replaced_and_the_rest_is_unchanged():
    torch.manual_seed(0)
    model = Net()
    others = {n: m for n, m in model.named_modules() if not isinstance(m, (nn.Conv3d, nn.ConvTranspose3d))}
    state = torch.get_rng_state()
    report = convert(model)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn"
    assert [r.name for r in report.swapped] == ["blocks.0.0", "blocks.1.0", "heads.down", "up"]
    assert [(r.name, r.reason) for r in report.kept] == [
        ("stem", "in_channels 1 is not a multiple of the 2 branches"),
        ("heads.side", "kernel 1x1x1 leaves nothing to split"),
    ]
    for row in report.layers:
        assert (type(model.get_submodule(row.name)) is SplitShuffleConv3d) == (row.branches is not None)
    assert all(model.get_submodule(n) is m for n, m in others.items())
    assert list(model.heads) == ["down", "side"] and len(model.blocks[0]) == 2
    x = torch.randn(2, 1, 4, 6, 8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    optimiser.step()
    twin = Net()
    convert(twin)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))
    again = convert(model)
    assert not again.swapped and [r.name for r in again.kept] == ["stem", "heads.side"]


@by_set
def test_mode_dtype_device_and_requires_grad_are_kept(name):
    model = nn.Sequential(*(nn.Conv3d(8, 8, 3, padding=1, bias=bias, dtype=torch.float64) for bias in (True, True, 0)))
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    model.train()
    model[1].eval()
    weights, biases = [m.weight for m in model], [m.bias for m in model]
    values = [w.detach().clone() for w in weights]
    assert len(convert(model, name).swapped) == 3
    assert [m.training for m in model] == [True, False, True]
    assert [{w.requires_grad for w in m.weights} for m in model] == [{False}, {True}, {True}]
    assert [b is None or b.requires_grad for b in biases] == [True, False, True]
    assert all(m.bias is b for m, b in zip(model, biases)), "the same Parameter, also for optimisers"
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert all((m.weights[0] is w) == (name == "dense") for m, w in zip(model, weights))
    with torch.no_grad():
        for p in itertools.chain(*(m.weights for m in model)):
            p.fill_(5)
    assert name == "dense" or all(torch.equal(w, v) for w, v in zip(weights, values)), "no memory is shared"


@by_set
def test_on_meta(name):
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.ConvTranspose3d(8, 4, 3, **UP))
    assert len(convert(model, name).swapped) == 2
    assert all(p.is_meta for p in model.parameters())
    assert model(torch.empty(2, 4, 3, 4, 5, device="meta")).shape == (2, 4, 6, 8, 10)


def test_from_conv3d_leaves_its_argument_alone():
    for conv in (nn.Conv3d(4, 8, 3), nn.ConvTranspose3d(4, 8, 3)):
        for name in ("dense", "split_depth"):
            before = copy.deepcopy(conv.state_dict())
            layer = from_conv3d(conv, name)
            assert layer.transposed == isinstance(conv, nn.ConvTranspose3d)
            with torch.no_grad():
                for p in layer.parameters():
                    p.zero_()
            assert all(torch.equal(v, before[k]) for k, v in conv.state_dict().items())


def test_a_compiled_model_sees_its_new_layers():
    torch.manual_seed(0)
    model = Net()
    compiled, x = torch.compile(model, backend="eager"), torch.randn(1, 1, 4, 6, 8)
    first = compiled(x)
    assert convert(compiled).swapped[0].name == "_orig_mod.blocks.0.0"
    assert not torch.allclose(compiled(x), first)
    torch.testing.assert_close(compiled(x), model(x))
    torch.compiler.reset()


# ------------------------------------------------------------------------------------------------- sharing


def test_a_shared_module_stays_shared():
    model = nn.Module()
    model.first = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1))
    model.alias, model.again = model.first[0], model.first[0]
    model.around = model.first
    before = sum(p.numel() for p in model.parameters())
    (row,) = convert(model).layers
    assert (row.name, row.also) == ("first.0", ("alias", "again", "around.0"))
    assert type(model.alias) is SplitShuffleConv3d
    assert model.first[0] is model.alias is model.again is model.around[0]
    assert row.before == before and row.after == sum(p.numel() for p in model.parameters()) < before


@by_set
def test_tied_weights_stay_tied(name):
    model = nn.ModuleDict({n: nn.Conv3d(4, 4, 3, padding=1) for n in "abc"})
    model["b"].weight = model["a"].weight
    report = convert(model, name)
    assert [r.reason for r in report.layers] == ["its weight is tied to b.weight", "its weight is tied to a.weight", ""]
    assert model["a"].weight is model["b"].weight


def test_a_weight_shared_with_another_kind_of_module_is_tied_too():
    model = nn.Sequential(nn.Conv3d(4, 4, 3))
    model.penalised = nn.ParameterList([model[0].weight])
    (row,) = convert(model, "dense").layers
    assert row.reason == "its weight is tied to penalised.0"


def test_a_tied_bias_stays_tied_through_the_swap():
    model = nn.Sequential(nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3))
    model[1].bias = model[0].bias
    assert len(convert(model).swapped) == 2
    assert model[0].bias is model[1].bias


# --------------------------------------------------------------------------------------- what is left alone


class Standardised(nn.Conv3d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Counted(nn.Conv3d):
    calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x)


class Built(nn.Conv3d):
    """A subclass as in torchvision's video ResNets: it overrides only the constructor."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, (1, 3, 3), padding=(0, 1, 1), bias=False)

    @staticmethod
    def downsample_stride(stride: int) -> tuple[int, int, int]:
        return (1, stride, stride)


def hooked(register: str) -> nn.Module:
    conv = nn.Conv3d(4, 4, 3, padding=1)
    getattr(conv, register)(lambda *args: None)
    return conv


def pruned() -> nn.Module:
    conv = nn.Conv3d(4, 4, 3)
    prune.l1_unstructured(conv, "weight", 0.5)
    return conv


def patched() -> nn.Module:
    conv = nn.Conv3d(4, 4, 3)
    conv.forward = lambda x: x
    return conv


def extended() -> nn.Module:
    conv = nn.Conv3d(4, 4, 3)
    conv.scale = nn.Parameter(torch.ones(1))
    conv.register_buffer("mask", torch.ones(1))
    conv.inner = nn.Conv3d(4, 4, 1)
    return conv


def with_plain_weight() -> nn.Module:
    conv = nn.Conv3d(4, 4, 3)
    del conv.weight
    conv.weight = torch.zeros(4, 4, 3, 3, 3)
    return conv


LEFT = {
    "lazy": (lambda: nn.LazyConv3d(4, 3), "is lazy, its weights are not there yet; run the model once first"),
    "parametrized": (
        lambda: parametrizations.weight_norm(nn.Conv3d(4, 4, 3)), "has a parametrization of weight"
    ),
    "subclass-forward": (
        lambda: Standardised(4, 4, 3), "is a subclass of nn.Conv3d that overrides forward"
    ),
    "subclass-call": (lambda: Counted(4, 4, 3), "is a subclass of nn.Conv3d that overrides __call__"),
    "patched": (patched, "has a forward of its own, set on the object"),
    "hook": (lambda: hooked("register_forward_hook"), "has forward hooks"),
    "pre-hook": (lambda: hooked("register_forward_pre_hook"), "has forward pre hooks"),
    "backward-hook": (lambda: hooked("register_full_backward_hook"), "has backward hooks"),
    "state-hook": (lambda: hooked("register_state_dict_post_hook"), "has state dict hooks"),
    "pruned": (pruned, "has forward pre hooks"),
    "extended": (extended, "holds scale, inner.weight, inner.bias, mask, inner besides weight and bias"),
    "plain-weight": (with_plain_weight, "its weight is a Tensor, not an nn.Parameter"),
    "complex": (lambda: nn.Conv3d(4, 4, 3, dtype=torch.complex64), "dtype is torch.complex64"),
    "padding-mode": (
        lambda: nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"), "padding_mode is 'replicate', not 'zeros'"
    ),
    "dilation": (lambda: nn.Conv3d(4, 4, 3, dilation=(1, 2, 2), padding=1), "dilation is 1x2x2, not 1"),
    "groups": (lambda: nn.Conv3d(4, 4, 3, groups=4, padding=1), "groups is 4, not 1"),
    "even": (lambda: nn.Conv3d(4, 4, (3, 2, 3)), "kernel 3x2x3 has an even extent"),
    "stride": (lambda: nn.Conv3d(4, 4, 3, stride=(3, 1, 1)), "stride is 3x1x1, not 1 or 2"),
    "padding": (
        lambda: nn.Conv3d(4, 4, 3, padding=(0, 1, 1)),
        "padding 0x1x1 is neither (k - 1) / 2 everywhere nor 0 everywhere",
    ),
    "padding-wide": (
        lambda: nn.Conv3d(4, 4, 3, padding=2), "padding 2x2x2 is neither (k - 1) / 2 everywhere nor 0 everywhere"
    ),
    "up-cropped": (
        lambda: nn.ConvTranspose3d(4, 4, 3, 2, 1),
        "padding 1x1x1 with output_padding 0x0x0 is neither (k - 1) / 2 with stride - 1, nor 0 with 0",
    ),
    "up-even": (lambda: nn.ConvTranspose3d(4, 4, 2, 2), "kernel 2x2x2 has an even extent"),
    "in-channels": (lambda: nn.Conv3d(3, 4, 3), "in_channels 3 is not a multiple of the 2 branches"),
    "out-channels": (lambda: nn.ConvTranspose3d(4, 5, 3), "out_channels 5 is not a multiple of the 2 branches"),
    "point": (lambda: nn.Conv3d(4, 4, 1), "kernel 1x1x1 leaves nothing to split"),
    "plane": (lambda: nn.Conv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), "kernel 1x3x3 leaves nothing to split"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), LEFT.values(), ids=LEFT)
def test_left_alone_with_its_reason(make, reason):
    model = nn.Sequential(nn.Identity(), make())
    conv, before = model[1], set(model.state_dict(keep_vars=True))
    report = convert(model)
    row = next(r for r in report.layers if r.name == "1")
    assert row.reason == reason and row.branches is None and row.before == row.after
    assert model[1] is conv and set(model.state_dict(keep_vars=True)) == before
    with pytest.raises(ValueError, match=r"^conv: expected a layer that SplitShuffleConv3d can stand for") as error:
        from_conv3d(conv)
    assert str(error.value).endswith(f": {reason}")
    assert f"left alone: {reason}" in str(report)


def test_padding_0_needs_branches_that_span_the_kernel():
    """Narrower ones would give more slices than the layer does."""
    model = nn.Sequential(nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3, padding=1), nn.Conv3d(4, 4, (1, 3, 3)))
    report = convert(model, ((1, 3, 3),))
    assert [r.reason for r in report.layers] == [
        "padding 0 needs branches that span the kernel; they span 1x3x3",
        "",
        "",
    ]


def test_a_subclass_that_only_builds_itself_is_swapped():
    torch.manual_seed(0)
    model = nn.Sequential(Built(4))
    x = torch.randn(1, 4, 3, 4, 5)
    expected = model(x)
    (row,) = convert(model, "dense").swapped
    assert row.kind == "Built"
    torch.testing.assert_close(model(x), expected)


SKIPS = {
    "a name": (["blocks.1.0"], ["blocks.1.0"]),
    "a bare string": ("up", ["up"]),
    "a pattern": (["*.0"], ["blocks.0.0", "blocks.1.0"]),
    "all within": (["blocks", "up"], ["blocks.0.0", "blocks.1.0", "up"]),
    "a callable": (lambda name, m: isinstance(m, nn.ConvTranspose3d), ["up"]),
    "a callable, by name": (lambda name, m: name.startswith("heads"), ["heads.down", "heads.side"]),
    "none": ((), []),
}


@pytest.mark.parametrize(("skip", "expected"), SKIPS.values(), ids=SKIPS)
def test_skip(skip, expected):
    model = Net()
    report = convert(model, skip=skip)
    assert [r.name for r in report.layers if r.reason == "skip asks for it"] == expected
    assert all(isinstance(model.get_submodule(n), (nn.Conv3d, nn.ConvTranspose3d)) for n in expected)
    swappable = {"blocks.0.0", "blocks.1.0", "heads.down", "up"}
    assert {r.name for r in report.swapped} == swappable - set(expected)


def test_skip_by_any_of_a_modules_names():
    model = nn.Module()
    model.one = model.two = nn.Conv3d(4, 4, 3)
    assert not convert(model, skip="two").swapped
    assert model.one is model.two and type(model.one) is nn.Conv3d
