"""inflate_model: a 2D network on volumes. The oracle is the 2D network itself, slice by slice."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssconv
from ssconv import convert, inflate_model

PROFILES = ("average", "centre", "triangle")
SHARES = {  # by taps and profile, written out
    (3, "average"): [1 / 3, 1 / 3, 1 / 3],
    (3, "centre"): [0, 1, 0],
    (3, "triangle"): [1 / 4, 1 / 2, 1 / 4],
    (5, "average"): [1 / 5] * 5,
    (5, "centre"): [0, 0, 1, 0, 0],
    (5, "triangle"): [1 / 9, 2 / 9, 3 / 9, 2 / 9, 1 / 9],
}
CONVOLUTIONS = {
    "3x3": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "valid": lambda: nn.Conv2d(4, 6, (3, 2), padding="valid", bias=False),
    "same": lambda: nn.Conv2d(4, 6, (5, 3), padding="same"),
    "strided": lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    "strided in one dimension": lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=1),
    "stride 3": lambda: nn.Conv2d(4, 6, 4, stride=3),
    "1x1": lambda: nn.Conv2d(4, 6, 1),
    "1x1 strided": lambda: nn.Conv2d(4, 6, 1, stride=2),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=(2, 3), padding=2),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1),
    "reflecting": lambda: nn.Conv2d(4, 6, 3, padding=(0, 2), padding_mode="reflect"),
}
TRANSPOSED = {
    "up 3x3": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    "up 2x2": lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
    "up 4x4": lambda: nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, bias=False),
    "up by 3": lambda: nn.ConvTranspose2d(4, 6, 5, stride=3, padding=1),
    "up by 1": lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2),
    "up, dilated": lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, dilation=2, padding=2, output_padding=1),
}
OTHERS = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "batch norm without state": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "dropout": lambda: nn.Dropout2d(0.5),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool 3x3": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "max pool 3x3, unpadded": lambda: nn.MaxPool2d(3, stride=2),
    "max pool up": lambda: nn.MaxPool2d((3, 2), stride=2, ceil_mode=True),
    "max pool dilated": lambda: nn.MaxPool2d(3, stride=1, dilation=2),
    "average pool": lambda: nn.AvgPool2d(2),
    "average pool 3x3": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "average pool 3x3, inside": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    "average pool by 5": lambda: nn.AvgPool2d(2, divisor_override=5),
    "average pool of stride 1": lambda: nn.AvgPool2d((3, 1), stride=1, ceil_mode=True),
    "power pool": lambda: nn.LPPool2d(2, 2),
    "power pool of stride 1": lambda: nn.LPPool2d(4, (2, 3), stride=1),
    "to one": lambda: nn.AdaptiveAvgPool2d(1),
    "to two by three": lambda: nn.AdaptiveAvgPool2d((2, 3)),
    "to two by as many": lambda: nn.AdaptiveMaxPool2d((2, None)),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(scale_factor=2, mode="bilinear"),
    "bilinear, aligned": lambda: nn.UpsamplingBilinear2d(scale_factor=(2, 3)),
    "reflection": lambda: nn.ReflectionPad2d((1, 2, 3, 0)),
    "replication": lambda: nn.ReplicationPad2d(2),
    "circular": lambda: nn.CircularPad2d((0, 1, 2, 1)),
    "zeros": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "constant": lambda: nn.ConstantPad2d((1, 0, 2, 1), 3.5),
    "softmax": lambda: nn.Softmax2d(),
    "relu": lambda: nn.ReLU(),
}  # fmt: skip
EVERY = CONVOLUTIONS | TRANSPOSED | OTHERS
by_layer = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
by_profile = pytest.mark.parametrize("profile", PROFILES)

HEIGHT, WIDTH = 13, 11


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """In float64 and eval mode, with statistics and affine parameters that are not 0 and 1."""
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return model


def an_image(channels: int = 4, height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    return torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def constant(image: Tensor, depth: int) -> Tensor:
    return image[:, :, None].expand(-1, -1, depth, -1, -1).contiguous()


def first(result: Tensor | tuple) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


# ----------------------------------------------------------- checks, also run on versions with planted faults


def check_constant_volumes(lib: ModuleType, make: Callable[[], nn.Module], slices: int = 24) -> None:
    """Each slice for a volume constant along depth is the 2D network's; all, or those that no border reaches."""
    model, image = built(make), an_image()
    with torch.no_grad():
        expected = first(model(image))
        for depth in (3, 5):
            for profile in PROFILES:
                for stride in (True, False):
                    for border in ("zero", "replicate"):
                        options = {"depth_stride": stride, "depth_border": border}
                        new, _ = lib.inflate_model(model, depth, profile, **options)
                        y = first(new(constant(image, slices)))
                        whole = border == "replicate" or profile == "centre" or y.shape[2] == 1
                        inner = y if whole else y[:, :, reach(model, depth) : y.shape[2] - reach(model, depth)]
                        assert inner.shape[2] > 0
                        torch.testing.assert_close(inner, constant(expected, inner.shape[2]), rtol=1e-9, atol=1e-9)


def reach(model: nn.Module, depth: int) -> int:
    """Number of output slices at either end that may see beyond the volume."""
    dilation = min(getattr(model, "dilation", (1,))) if isinstance(model, nn.Conv2d) else 1
    stride = min(model.stride) if isinstance(model, nn.ConvTranspose2d) else 1
    return max(dilation * (depth // 2), stride)


def check_single_slices(lib: ModuleType, make: Callable[[], nn.Module]) -> None:
    """With "centre" and depth_stride=False the slices of any volume are treated one by one."""
    model = built(make)
    new, _ = lib.inflate_model(model, profile="centre", depth_stride=False)
    volume = torch.stack([an_image(), an_image() * 2, an_image().flip(2), an_image().exp()], 2)
    with torch.no_grad():
        y = first(new(volume))
        over_all = isinstance(model, (nn.InstanceNorm2d, nn.GroupNorm)) or getattr(model, "running_mean", 0) is None
        if y.shape[2] == 1 or over_all:
            return  # pools or normalises over the volume
        for z in range(4):
            torch.testing.assert_close(y[:, :, z], first(model(volume[:, :, z])), rtol=1e-9, atol=1e-9)


def check_depths(lib: ModuleType, make: Callable[[], nn.Module]) -> None:
    """ceil(n / s) slices of n, or n * s, s the smaller in-plane stride; n with depth_stride=False; 1 if adaptive."""
    model = built(make)
    if isinstance(model, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        assert first(lib.inflate_model(model)[0](constant(an_image(), 6))).shape[2] == 1
        return
    value = next(
        (v for n in ("stride", "scale_factor", "kernel_size") if (v := getattr(model, n, None)) is not None), 1
    )
    stride = int(min(value) if isinstance(value, tuple) else value)
    up = isinstance(model, (nn.ConvTranspose2d, nn.Upsample))
    for slices in (6, 12, 18) if "Pool" in type(model).__name__ else (6, 7, 11, 12):
        for depth in (3, 5):
            for border in ("zero", "replicate"):
                volume = constant(an_image(), slices)
                new, _ = lib.inflate_model(model, depth, depth_border=border)
                assert first(new(volume)).shape[2] == (slices * stride if up else math.ceil(slices / stride))
                new, _ = lib.inflate_model(model, depth, depth_border=border, depth_stride=False)
                assert first(new(volume)).shape[2] == slices


def check_weights(lib: ModuleType, make: Callable[[], nn.Module]) -> None:
    """Tap by tap the 2D weight times the profile; the same bias."""
    model = built(make)
    if not isinstance(model, nn.Conv2d):
        return
    for (taps, profile), shares in SHARES.items():
        new, _ = lib.inflate_model(model, taps, profile)
        if model.kernel_size == (1, 1):
            shares = [1.0]
        assert new.weight.shape == (*model.weight.shape[:2], len(shares), *model.weight.shape[2:])
        for t, share in enumerate(shares):
            torch.testing.assert_close(new.weight[:, :, t], model.weight * share, rtol=1e-12, atol=0)
        assert (new.bias is None) == (model.bias is None)
        if model.bias is not None:
            assert torch.equal(new.bias, model.bias)


CHECKS = (check_constant_volumes, check_single_slices, check_depths, check_weights)


@by_layer
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__.removeprefix("check_"))
def test_each_layer(check, make):
    check(ssconv, make)


# ---------------------------------------------------------------------------------------- transposed convolutions


@pytest.mark.parametrize("profile", PROFILES)
def test_transposed_weights_that_meet_sum_to_one(profile):
    """Stride 3, 5 taps: those at 0 and 3 meet in one slice, 1 and 4 in the next, 2 is alone."""
    model = built(lambda: nn.ConvTranspose2d(2, 3, 5, stride=3, padding=1))
    new, _ = inflate_model(model, profile=profile)
    assert new.weight.shape == (2, 3, 5, 5, 5)
    for taps in ((0, 3), (1, 4), (2,)):
        torch.testing.assert_close(sum(new.weight[:, :, t] for t in taps), model.weight, rtol=1e-12, atol=0)


def test_transposed_centre_repeats_each_slice():
    model = built(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1))
    new, _ = inflate_model(model, profile="centre")
    volume = torch.stack([an_image(), -an_image(), an_image() * 3], 2)
    y = new(volume)
    for z in range(6):
        torch.testing.assert_close(y[:, :, z], model(volume[:, :, z // 2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("profile", ["average", "triangle"])
def test_transposed_others_interpolate(profile):
    model = built(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1))
    new, _ = inflate_model(model, profile=profile)
    volume = torch.stack([an_image(), -an_image(), an_image() * 3], 2)
    y = new(volume)
    for z in range(2):
        torch.testing.assert_close(y[:, :, 2 * z], model(volume[:, :, z]), rtol=1e-9, atol=1e-9)
        between = (volume[:, :, z] + volume[:, :, z + 1]) / 2
        torch.testing.assert_close(y[:, :, 2 * z + 1], model(between), rtol=1e-9, atol=1e-9)


def test_a_replicating_transposed_convolution_takes_no_output_size():
    model = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1)
    new, _ = inflate_model(model, depth_border="replicate")
    with pytest.raises(ValueError, match="output_size: expected None"):
        new(torch.zeros(1, 4, 3, 4, 4), output_size=[5, 8, 8])


# -------------------------------------------------------------------------------------------------- whole networks


class Residual(nn.Module):
    """A typical 2D network: a stem, a strided block with a 1x1 shortcut, upsampling and a skip connection."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(width))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.shortcut = nn.Conv2d(width, 2 * width, 1, 2)
        self.norm = nn.InstanceNorm2d(2 * width, affine=True)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Sequential(nn.Upsample(scale_factor=4, mode="bilinear"), nn.Conv2d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        y = torch.relu(self.norm(self.down(torch.relu(self.one(x))) + self.shortcut(x)))
        return self.last(self.up(y) + x)


@by_profile
@pytest.mark.parametrize("stride", [True, False])
def test_a_network_on_constant_volumes(profile, stride):
    model, image = built(Residual), an_image(3, 32, 24)
    new, report = inflate_model(model, profile=profile, depth_stride=stride, depth_border="replicate")
    with torch.no_grad():
        torch.testing.assert_close(new(constant(image, 16)), constant(model(image), 16), rtol=1e-8, atol=1e-8)
    assert report.before == sum(p.numel() for p in model.parameters())
    assert report.after == sum(p.numel() for p in new.parameters())


@by_profile
@pytest.mark.parametrize("name", ["centre only", "zeros outside"])
def test_a_network_with_zeros_outside(profile, name):
    """ "centre" sees no border; the others differ from the 2D network there, and nowhere else."""
    make = lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))  # noqa: E731
    model, image = built(make), an_image(3)
    new, _ = inflate_model(model, profile=profile)
    with torch.no_grad():
        y, expected = new(constant(image, 9)), constant(model(image), 9)
    if profile == "centre":
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    else:
        torch.testing.assert_close(y[:, :, 2:-2], expected[:, :, 2:-2], rtol=1e-9, atol=1e-9)
        assert all((y[:, :, z] - expected[:, :, z]).abs().max() > 1e-3 for z in (0, 1, -2, -1))


def a_monai_resnet(dims: int) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI's models; it is in the extra `test`")
    more = {} if dims == 2 else {"conv1_t_size": (3, 7, 7), "conv1_t_stride": (1, 1, 1)}
    return nets.resnet18(spatial_dims=dims, n_input_channels=3, num_classes=5, widen_factor=0.125, **more)


def a_monai_unet(dims: int) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI's models; it is in the extra `test`")
    return nets.UNet(dims, 3, 2, (8, 16, 32), (2, 2), num_res_units=2)


def a_monai_segresnet(dims: int) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI's models; it is in the extra `test`")
    return nets.SegResNet(dims, 8, 3, 2, blocks_down=(1, 2, 1), blocks_up=(1, 1))


def a_monai_densenet(dims: int) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", reason="MONAI's models; it is in the extra `test`")
    return nets.DenseNet(dims, 3, 5, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


MODELS = {
    "ResNet-18": a_monai_resnet,
    "UNet": a_monai_unet,
    "SegResNet": a_monai_segresnet,
    "DenseNet": a_monai_densenet,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@by_profile
def test_networks_of_other_libraries(make, profile):
    """On volumes constant along depth they compute the same as on images."""
    model, image = built(lambda: make(2)), an_image(3, 32, 40)
    new, _ = inflate_model(model, profile=profile, depth_border="replicate")
    with torch.no_grad():
        expected = model(image)
        y = new(constant(image, 16))
    if expected.dim() == 4:
        expected = constant(expected, 16)
    torch.testing.assert_close(y, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("make", [a_monai_resnet, a_monai_unet, a_monai_segresnet])
def test_the_3d_network_is_the_one_that_its_author_would_build(make):
    """MONAI's own 3D version takes the inflated weights and computes the same: strides and padding are as there."""
    new, _ = inflate_model(built(lambda: make(2)), profile="triangle")
    native = make(3).double().eval()
    # MONAI's 3D ResNet makes stem and pooling of its own extents; only there may names differ.
    native.load_state_dict(new.state_dict())
    volume = torch.randn(1, 3, 16, 32, 24, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(new(volume), native(volume), rtol=1e-9, atol=1e-9)


@by_profile
def test_it_trains_and_can_be_converted(profile):
    torch.manual_seed(0)
    model, _ = inflate_model(Residual(), profile=profile)
    report = convert(model)
    assert {row.name for row in report.swapped} == {"one", "down"}
    assert report.after < report.before
    x = torch.randn(2, 3, 8, 16, 16)
    target = x.mean(1, keepdim=True).repeat(1, 2, 1, 1, 1)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = F.mse_loss(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    assert losses[-1] < 0.7 * losses[0]


# --------------------------------------------------------------------------------------------- what stays as it was


def test_the_2d_network_is_untouched():
    model = built(Residual)
    before = copy.deepcopy(model.state_dict())
    kinds = [type(m) for m in model.modules()]
    new, _ = inflate_model(model)
    with torch.no_grad():
        for p in new.parameters():
            p.add_(1)
        new.train()(torch.randn(2, 3, 16, 32, 32, dtype=torch.float64))
    assert [type(m) for m in model.modules()] == kinds and not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_mode_dtype_device_and_requires_grad(training, dtype, device):
    model = Residual().to(device, dtype).train(training)
    model.stem.requires_grad_(False)
    model.one.eval()
    new, _ = inflate_model(model)
    for name, p in new.named_parameters():
        assert (p.dtype, p.device.type, p.requires_grad) == (dtype, device, not name.startswith("stem")), name
    for name, m in new.named_modules():
        assert m.training == model.get_submodule(name).training, name


def test_names_of_the_state_dict_are_kept():
    model = Residual()
    assert list(inflate_model(model)[0].state_dict()) == list(model.state_dict())


def test_shared_modules_and_tied_weights_stay_shared():
    model = nn.Module()
    model.a = nn.Conv2d(4, 4, 3, padding=1)
    model.b = model.a
    model.c = nn.Conv2d(4, 4, 3, padding=1, stride=2)
    model.c.weight = model.a.weight
    model.n = nn.ModuleList([nn.BatchNorm2d(4)] * 2)
    new, report = inflate_model(model)
    assert new.a is new.b and new.c is not new.a and new.c.weight is new.a.weight
    assert new.a.weight is not model.a.weight
    assert new.n[0] is new.n[1] and isinstance(new.n[0], nn.BatchNorm3d)
    assert [row.name for row in report.layers] == ["a", "c", "n.0"]


def test_tied_weights_that_would_differ_raise():
    model = nn.Module()
    model.a = nn.ConvTranspose2d(4, 4, 4, stride=2)
    model.b = nn.ConvTranspose2d(4, 4, 4, stride=4)
    model.b.weight = model.a.weight
    with pytest.raises(ValueError, match=r"model2d: b, .* shares its weight with a layer that needs other taps"):
        inflate_model(model)


def test_hooks_of_a_norm_are_kept_and_its_statistics_are_its_own():
    model = nn.Sequential(nn.BatchNorm2d(4))
    seen = []
    model[0].register_forward_hook(lambda m, args, y: seen.append(tuple(y.shape)))
    new, _ = inflate_model(model)
    new(torch.randn(2, 4, 3, 5, 5))
    assert seen == [(2, 4, 3, 5, 5)]
    assert new[0].num_batches_tracked == 1 and model[0].num_batches_tracked == 0


def test_a_single_layer():
    new, report = inflate_model(nn.Conv2d(1, 2, 3))
    assert isinstance(new, nn.Conv3d) and report.layers[0].name == "(the model)"


# -------------------------------------------------------------------------------------------------- planted faults

SOURCE = Path(ssconv.__file__).with_name("inflate_model.py")
FAULTS = {
    "the profile is not applied": (
        "* taps.to(old)[None, None, :, None, None]", "* (taps.to(old) * 0 + 1)[None, None, :, None, None]",
    ),
    "the profile is off its middle": (
        "taps = how.taps(conv.kernel_size)\n    kd", "taps = how.taps(conv.kernel_size).roll(1)\n    kd",
    ),
    "1x1 kernels get taps along depth": ("1 if tuple(kernel) == (1, 1) else self.depth", "self.depth"),
    "no padding along depth": ("(0 if replicate else border, *padding)", "(0, *padding)"),
    "border without dilation": ("border = dilation * (kd - 1) // 2", "border = (kd - 1) // 2"),
    "depth never strides": ("return min(_pair(in_plane)) if self.depth_stride else 1", "return 1"),
    "depth always strides": ("min(_pair(in_plane)) if self.depth_stride else 1", "min(_pair(in_plane))"),
    "the larger stride": ("return min(_pair(in_plane))", "return max(_pair(in_plane))"),
    "groups forgotten": (
        "conv.groups,\n        conv.bias is not None,\n        conv.padding",
        "1,\n        conv.bias is not None,\n        conv.padding",
    ),
    "padding mode forgotten": ("conv.padding_mode,", '"zeros",'),
    "the bias is left behind": ("conv3d.bias = weight, conv2d.bias", "conv3d.bias = weight, conv3d.bias"),
    "meeting taps unscaled": ("taps[phase::stride] /= taps[phase::stride].sum()", "pass"),
    "centre of a transposed one is a single tap": ("taps[middle : middle + stride] = 1", "taps[middle] = 1"),
    "crop of the replicated border": ("y[:, :, border * stride : (", "y[:, :, border * stride - 1 : ("),
    "max pool without depth padding": ("(padding, *_pair(pool.padding))", "(0, *_pair(pool.padding))"),
    "average pool of one slice in two": ("(stride, *_pair(pool.kernel_size)),\n", "(1, *_pair(pool.kernel_size)),\n"),
    "divisor for a plane": ("pool.divisor_override * stride", "pool.divisor_override"),
    "power pool over depth": ("(1, *_pair(pool.kernel_size)), (how", "(2, *_pair(pool.kernel_size)), (how"),
    "adaptive pool keeps depth": ("nn.AdaptiveAvgPool3d((1,", "nn.AdaptiveAvgPool3d((None,"),
    "upsampling leaves depth": ("(float(how.stride(factors)), *factors)", "(1.0, *factors)"),
    "padding on the wrong side": ("nn.ZeroPad3d((*m.padding, 0, 0))", "nn.ZeroPad3d((0, 0, *m.padding))"),
    "the constant forgotten": ("(*m.padding, 0, 0), m.value)", "(*m.padding, 0, 0), 0.0)"),
    "softmax over depth": ("nn.Softmax(dim=1)", "nn.Softmax(dim=2)"),
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("what", FAULTS)
def test_a_planted_fault_is_noticed(what):
    old, new = FAULTS[what]
    text = SOURCE.read_text(encoding="utf-8")
    assert old in text, f"inflate_model.py no longer has {old!r}: plant this fault elsewhere"
    faulty = ModuleType("faulty")
    faulty.__dict__["__name__"] = "ssconv.inflate_model"
    exec(compile(text.replace(old, new, 1), "faulty", "exec"), vars(faulty))
    for check in CHECKS:
        for make in EVERY.values():
            try:
                check(faulty, make)
            except (AssertionError, RuntimeError):
                return
    pytest.fail(f"every check passes although: {what}")
