"""The report of inflate_model, its rules, and modules that it cannot inflate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from ssconv import inflate_model

# -------------------------------------------------------------------------------------------------- report, rules


def test_the_report_as_a_table():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d((1, None)))
    expected = """\
layer  was                       becomes                     parameters  now
0      Conv2d 3x3 stride 2x2     Conv3d 3x3x3 stride 2x2x2           80  224
2      AdaptiveAvgPool2d to 1xn  AdaptiveAvgPool3d to 1x1xn           0    0
2 replaced, 1 as they were; parameters of the whole model: 80 -> 224"""
    assert str(inflate_model(model)[1]) == expected


class Attention(nn.Module):
    """Holds an image-shaped parameter: no rule."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.ones(1, 4, 5, 5))
        self.conv = nn.Conv2d(4, 4, 1)


class Everywhere(nn.Module):
    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.where = nn.Parameter(old.where.detach()[:, :, None])


def test_rules_come_first():
    model = nn.Sequential(Attention(), nn.Conv2d(4, 4, 3))
    new, report = inflate_model(model, rules={Attention: Everywhere})
    assert isinstance(new[0], Everywhere) and new[0].where.shape == (1, 4, 1, 5, 5)
    assert [row.name for row in report.layers] == ["0", "1"]
    new, report = inflate_model(model, rules={Attention: lambda m: m, nn.Conv2d: lambda m: nn.Identity()})
    assert isinstance(new[0].conv, nn.Conv2d) and isinstance(new[1], nn.Identity)
    assert [row.name for row in report.layers] == ["1"] and report.unchanged == 1


class Padded(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (1, 0, 1, 0)))


def with_hook() -> nn.Module:
    layer = nn.Conv2d(4, 4, 3)
    layer.register_forward_hook(lambda m, args, y: y)
    return layer


WITHOUT_RULE = {
    "a subclass": (lambda: Padded(4, 4, 3), "is a subclass of nn.Conv2d that overrides forward"),
    "hooks": (with_hook, "has forward hooks"),
    "a norm on weights": (lambda: parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "has a parametrization of weight"),
    "lazy": (lambda: nn.LazyConv2d(4, 3), "is lazy"),
    "same with even extents": (lambda: nn.Conv2d(4, 4, 2, padding="same"), 'has even extents and padding="same"'),
    "bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), "is bicubic"),
    "to a size": (lambda: nn.Upsample(size=(8, 8)), r"goes to size \(8, 8\), whatever the depth"),
    "pixel shuffle": (lambda: nn.PixelShuffle(2), "works on images, and there is no rule for it"),
    "fractional": (lambda: nn.FractionalMaxPool2d(2, output_size=3), "works on images, and there is no rule for it"),
    "unflatten": (lambda: nn.Unflatten(1, (4, 2, 2)), "makes an image, of unknown depth"),
    "image-shaped parameters": (Attention, r"holds where of shape \(1, 4, 5, 5\)"),
}


@pytest.mark.parametrize(("make", "reason"), WITHOUT_RULE.values(), ids=WITHOUT_RULE)
def test_a_module_that_cannot_be_inflated_is_named(make, reason):
    model = nn.Sequential(nn.ReLU(), nn.Sequential(make()))
    kind = type(model[1][0]).__name__
    with pytest.raises(ValueError, match=rf"model2d: 1\.0, .*{reason}") as caught:
        inflate_model(model)
    assert f"rules={{{kind}: a function that returns its 3D version}}" in str(caught.value)


ERRORS = {
    "no module": (("resnet",), {}, TypeError, "model2d: expected an nn.Module; got str"),
    "even depth": ((nn.ReLU(),), {"depth": 4}, ValueError, "depth: expected an odd positive number of taps; got 4"),
    "an unknown profile": ((nn.ReLU(),), {"profile": "mean"}, ValueError, "profile: expected one of average, centre"),
    "an unknown border": ((nn.ReLU(),), {"depth_border": "same"}, ValueError, "depth_border: expected .* got 'same'"),
    "a rule without a module": (
        (nn.ReLU(),), {"rules": {nn.ReLU: lambda m: torch.relu}}, TypeError, "rules: expected an nn.Module for",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("args", "options", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument(args, options, error, message):
    with pytest.raises(error, match=message):
        inflate_model(*args, **options)
