"""A user's program, for mypy: nothing here runs. A wrong value is an error, so that `type: ignore` is needed for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ssconv


class Block(nn.Module):
    def __init__(self, channels: int, padding: ssconv.spec.Padding = "same") -> None:
        super().__init__()
        self.conv = ssconv.SplitShuffleConv3d(channels, 2 * channels, "split_depth", stride=(1, 2, 2), padding=padding)
        self.own = ssconv.SplitShuffleConv3d(channels, channels, ((3, 3, 3), None), activation="lrelu", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x + self.own(x))
        return y


def modulated(x: Tensor, weights: list[Tensor | None], scale: Tensor) -> Tensor:
    y = ssconv.split_shuffle_conv3d(x, weights, in_scale=scale, activation="lrelu", clamp=256.0, backend="reference")
    return ssconv.upfirdn3d(y, torch.ones(4) / 4, up=2, padding=(2, 1), depth_border="replicate")


def smaller(model: nn.Module) -> float:
    report: ssconv.ConvertReport = ssconv.convert(model, "acs4", skip=lambda name, module: name.startswith("head"))
    ssconv.convert(model, ((3, 3, 3), (1, 3, 3)), skip=["head.*"])
    kernels: list[str] = [row.kind for row in report.swapped]
    return report.after / report.before + len(kernels)


def deeper(model2d: nn.Module, weight: Tensor) -> tuple[nn.Module, Tensor]:
    model3d, report = ssconv.inflate_model(model2d, profile="centre", depth_border="replicate")
    print(report, ssconv.backends()["cpu"], ssconv.verify("cuda:0").failed)
    with ssconv.export_mode():
        model3d(torch.zeros(1, 1, 8, 8, 8))
    return model3d, ssconv.inflate_weight(weight, 3, "triangle") * ssconv.depth_profile(3, "average").sum()


def mistakes(x: Tensor, weights: list[Tensor], model: nn.Module) -> None:
    ssconv.SplitShuffleConv3d(8, 8, "split-depth")  # type: ignore[arg-type]
    ssconv.SplitShuffleConv3d(8, 8, padding="zeros")  # type: ignore[arg-type]
    ssconv.split_shuffle_conv3d(x, weights, activation="relu")  # type: ignore[arg-type]
    ssconv.split_shuffle_conv3d(x, weights, backend="gpu")  # type: ignore[arg-type]
    ssconv.upfirdn3d(x, None)  # type: ignore[arg-type]
    ssconv.convert(model, "separable")  # type: ignore[arg-type]
    ssconv.inflate_model(model, profile="center")  # type: ignore[arg-type]
    ssconv.inflate_weight(x, "3")  # type: ignore[arg-type]
