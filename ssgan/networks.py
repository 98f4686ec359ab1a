"""Mapping network, generator and discriminator of StyleGAN2 for volumes (N, C, D, H, W) of any depth.

The 2D GAN is the 3D one with depth 1 (`NetworkConfig.flat`): same classes, same parameter names, so that a 2D state
inflates into a 3D one name by name (`ssgan.inflation`).
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from ssgan.config import NetworkConfig
from ssgan.layers import Conv, FullyConnected, MinibatchStd, ModulatedConv, Resampler, ToImage, kernel_stages

ONE = (((1, 1, 1),),)  # a dense 1x1x1 convolution
IN_PLANE = (((1, 3, 3),),)  # a dense convolution within the slice


class Mapping(nn.Module):
    """z (N, z_dim) -> w (N, w_dim): normalise, then leaky fully connected layers at a hundredth of the rate."""

    w_avg: Tensor

    def __init__(self, cfg: NetworkConfig, w_avg_beta: float = 0.995):
        super().__init__()
        dims = [cfg.z_dim] + [cfg.w_dim] * cfg.mapping_layers
        self.layers = nn.ModuleList(
            FullyConnected(a, b, "lrelu", lr_multiplier=0.01) for a, b in itertools.pairwise(dims)
        )
        self.z_dim, self.w_avg_beta = cfg.z_dim, w_avg_beta
        self.register_buffer("w_avg", torch.zeros(cfg.w_dim))

    def forward(self, z: Tensor, truncation: float = 1.0, update_w_avg: bool = False) -> Tensor:
        """truncation: w moves towards the running mean, 1 leaves it and 0 gives the mean (Karras et al. 2019, B)."""
        if z.dim() != 2 or z.shape[1] != self.z_dim:
            raise ValueError(f"z: expected shape (N, {self.z_dim}); got {tuple(z.shape)}")
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            w = layer(w)
        if update_w_avg:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        return w if truncation == 1.0 else self.w_avg.lerp(w, truncation)


class SynthesisBlock(nn.Module):
    """One level: [up-convolution,] convolution, and its contribution to the image (skip architecture)."""

    def __init__(self, cfg: NetworkConfig, level: int, size: tuple[int, int, int]):
        super().__init__()
        stages = kernel_stages(cfg.arch, cfg.is_flat)
        cout = cfg.widths[level]
        common = {"w_dim": cfg.w_dim, "stages": stages, "size": size, "clamp": cfg.conv_clamp}
        self.scale = cfg.scales[level - 1] if level else (1, 1, 1)
        if level == 0:
            self.const = nn.Parameter(torch.randn(cout, *size))
        else:
            self.conv0 = ModulatedConv(cfg.widths[level - 1], cout, scale=self.scale, **common)
            self.resampler = Resampler()
        self.conv1 = ModulatedConv(cout, cout, **common)
        self.to_image = ToImage(cout, cfg.image_channels, cfg.w_dim, cfg.conv_clamp)
        self.num_conv = 2 if level else 1

    def forward(
        self, x: Tensor | None, image: Tensor | None, ws: Tensor, noise: str, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """x (N, Cin, D, H, W), image (N, C, D, H, W) of the level below, ws (N, num_conv + 1, w_dim)."""
        styles = iter(ws.unbind(1))
        if x is None:
            x = self.const[None].expand(ws.shape[0], -1, -1, -1, -1)
        else:
            x = self.conv0(x, next(styles), noise, generator)
        x = self.conv1(x, next(styles), noise, generator)
        y = self.to_image(x, next(styles))
        return x, y if image is None else y + self.resampler.up(image, self.scale)


class Synthesis(nn.Module):
    """ws (N, num_ws, w_dim) -> volume (N, C, D, H, W)."""

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        size = cfg.base
        blocks = [SynthesisBlock(cfg, 0, size)]
        for level, scale in enumerate(cfg.scales, start=1):
            size = tuple(n * s for n, s in zip(size, scale, strict=True))
            blocks.append(SynthesisBlock(cfg, level, size))
        self.blocks = nn.ModuleList(blocks)
        self.num_ws = sum(b.num_conv for b in blocks) + 1

    def forward(self, ws: Tensor, noise: str = "random", generator: torch.Generator | None = None) -> Tensor:
        if ws.dim() != 3 or ws.shape[1] != self.num_ws:
            raise ValueError(f"ws: expected shape (N, {self.num_ws}, w_dim); got {tuple(ws.shape)}")
        x = image = None
        first = 0
        for block in self.blocks:
            x, image = block(x, image, ws[:, first : first + block.num_conv + 1], noise, generator)
            first += block.num_conv
        return image


class Generator(nn.Module):
    """z (N, z_dim) -> volume (N, C, D, H, W), nominally in [-1, 1] (Karras et al. 2020, skip generator)."""

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        self.cfg = cfg
        self.mapping = Mapping(cfg)
        self.synthesis = Synthesis(cfg)
        self.num_ws = self.synthesis.num_ws

    def forward(
        self, z: Tensor, truncation: float = 1.0, noise: str = "random", generator: torch.Generator | None = None
    ) -> Tensor:
        """noise: "random" (drawn from `generator`), "const" (the buffers) or "none"."""
        w = self.mapping(z, truncation)
        return self.synthesis(w[:, None].expand(-1, self.num_ws, -1), noise, generator)


class DiscriminatorBlock(nn.Module):
    """Residual block to the next coarser level: (N, Cin, D, H, W) -> (N, Cout, D/sd, H/sh, W/sw)."""

    def __init__(self, cfg: NetworkConfig, level: int):
        super().__init__()
        stages = kernel_stages(cfg.arch, cfg.is_flat)
        cin, cout, scale = cfg.widths[level], cfg.widths[level - 1], cfg.scales[level - 1]
        self.conv0 = Conv(cin, cin, stages, clamp=cfg.conv_clamp)
        self.conv1 = Conv(cin, cout, stages, scale, clamp=cfg.conv_clamp)
        self.skip = Conv(cin, cout, ONE, scale, bias=False, activation="linear")

    def forward(self, x: Tensor) -> Tensor:
        gain = math.sqrt(0.5)
        return self.conv1(self.conv0(x), gain) + self.skip(x, gain)


class Head(nn.Module):
    """Features (N, C, D, H, W) -> logits (N, 1): mean along depth, minibatch std, convolution, two dense layers.

    After the mean it works on one slice, so it is the same network for 2D and 3D and carries over whole.
    """

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        width, (_, height, breadth) = cfg.widths[0], cfg.base
        self.mbstd = MinibatchStd(cfg.mbstd_group)
        self.conv = Conv(width + 1, width, IN_PLANE, clamp=cfg.conv_clamp)
        self.fc = FullyConnected(width * height * breadth, width, "lrelu")
        self.out = FullyConnected(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.mbstd(x.mean(2, keepdim=True)))
        return self.out(self.fc(x.contiguous().flatten(1)))


class Discriminator(nn.Module):
    """volume (N, C, D, H, W) -> logits (N, 1) (Karras et al. 2020, residual discriminator)."""

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        self.cfg = cfg
        self.from_image = Conv(cfg.image_channels, cfg.widths[-1], ONE, clamp=cfg.conv_clamp)
        self.blocks = nn.ModuleList(DiscriminatorBlock(cfg, level) for level in range(len(cfg.scales), 0, -1))
        self.head = Head(cfg)

    def features(self, x: Tensor) -> Tensor:
        """(N, C, D, H, W) -> (N, widths[0], *base), what the head sees."""
        expected = (self.cfg.image_channels, *self.cfg.shape)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: expected shape (N, {', '.join(map(str, expected))}); got {tuple(x.shape)}")
        x = self.from_image(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
