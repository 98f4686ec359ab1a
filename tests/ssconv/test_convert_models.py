"""Models of MONAI and torchvision: converted, they run, train and have fewer parameters; "dense" computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssconv import SplitShuffleConv3d, convert
from ssconv.convert import ConvertReport

nets = pytest.importorskip("monai.networks.nets", reason="MONAI's models; it is in the extra `test`")

SIZE = (8, 16, 16)
STEPS = 20


def unet() -> nn.Module:
    """Residual units, strided and transposed convolutions of 3x3x3."""
    return nets.UNet(3, 1, 2, (8, 16, 32), (2, 2), num_res_units=1)


def dynunet() -> nn.Module:
    """nnU-Net's, here with planar layers among the cubes; every block stands in the tree twice."""
    kernels, strides = [(3, 3, 3), (1, 3, 3), (3, 3, 3)], [1, (1, 2, 2), 2]
    return nets.DynUNet(3, 1, 2, kernels, strides, strides[1:], filters=[8, 16, 16])


def segresnet() -> nn.Module:
    """Group norms, upsampling by interpolation."""
    return nets.SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1))


def resnet18() -> nn.Module:
    """The counterpart of torchvision's r3d_18: 18 layers, basic blocks, stem 3x7x7 with stride 1x2x2."""
    return nets.resnet18(
        spatial_dims=3, n_input_channels=1, num_classes=2, widen_factor=0.125, conv1_t_size=(3, 7, 7),
        conv1_t_stride=(1, 2, 2), bias_downsample=False,
    )  # fmt: skip


def video(name: str) -> Callable[[], nn.Module]:
    """torchvision's, of 31 and 11 million parameters as it has them."""

    def make() -> nn.Module:
        reason = f"torchvision is not installed, and with it {name}; MONAI's resnet18 and DynUNet stand for it"
        models = pytest.importorskip("torchvision.models.video", reason=reason)
        return getattr(models, name)(num_classes=2)

    return make


# By model: layers replaced with "split_depth", with "acs4", and all convolutions.
MODELS = {
    "UNet": (unet, 7, 5, 10),
    "DynUNet": (dynunet, 5, 9, 13),
    "SegResNet": (segresnet, 12, 12, 16),
    "ResNet-18": (resnet18, 16, 16, 20),
    "r3d_18": (video("r3d_18"), 16, 16, 20),
    "mc3_18": (video("mc3_18"), 4, 16, 20),
}
by_model = pytest.mark.parametrize(("make", "split", "acs", "total"), MODELS.values(), ids=MODELS)


def a_batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Two volumes with a bright box, and where it is or (for classifiers) whether it is in the upper half."""
    g = torch.Generator().manual_seed(1)
    channels = next(p for p in model.parameters() if p.dim() == 5).shape[1]
    where = torch.zeros(2, *SIZE, dtype=torch.int64)
    where[0, :3, 2:9, 3:12] = 1
    where[1, 5:, 6:14, 2:9] = 1
    x = where[:, None] + 0.3 * torch.randn(2, channels, *SIZE, generator=g)
    if any(isinstance(m, nn.Linear) for m in model.modules()):
        return x, torch.tensor([0, 1])
    return x, where


def trained(model: nn.Module) -> tuple[float, float]:
    """The loss before and after the steps, in the mode in which it was trained."""
    x, target = a_batch(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS + 1):
        loss = F.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters())
    return losses[0], losses[-1]


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def check(report: ConvertReport, model: nn.Module, swapped: int, total: int) -> None:
    assert (len(report.swapped), len(report.layers)) == (swapped, total), str(report)
    assert sum(isinstance(m, SplitShuffleConv3d) for m in model.modules()) == swapped
    assert report.after == sum(p.numel() for p in model.parameters())


@by_model
def test_dense_computes_the_same(make, split, acs, total):
    """In evaluation and in training, with the gradients of all parameters."""
    model = built(make)
    twin = copy.deepcopy(model)
    report = convert(twin, "dense")
    assert all(row.reason.endswith("has an even extent") for row in report.kept)
    check(report, twin, total - len(report.kept), total)
    assert report.after == report.before
    x, _ = a_batch(model)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    x, model, twin = x.double(), model.double(), twin.double()
    for training in (False, True):
        expected, y = model.train(training)(x), twin.train(training)(x)
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)
    g = torch.randn(y.shape, dtype=torch.float64)
    for output in (expected, y):
        (output * g).sum().backward()
    found = {name: p.grad for name, p in twin.named_parameters()}
    for name, p in model.named_parameters():
        layer, own = name.rpartition(".")[::2]
        swapped = own == "weight" and isinstance(twin.get_submodule(layer), SplitShuffleConv3d)
        gradient = found.pop(f"{layer}.weights.0" if swapped else name)
        if swapped and isinstance(model.get_submodule(layer), nn.ConvTranspose3d):
            gradient = gradient.transpose(0, 1)
        torch.testing.assert_close(gradient, p.grad, rtol=1e-7, atol=1e-7)
    assert not found


@by_model
@pytest.mark.parametrize("name", ["split_depth", "acs4"])
def test_it_trains_with_fewer_parameters(name, make, split, acs, total, record_property):
    model = built(make)
    report = convert(model, name)
    check(report, model, split if name == "split_depth" else acs, total)
    before, after = trained(model)
    record_property("loss", (before, after))
    assert after < 0.7 * before
