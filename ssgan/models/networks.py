"""Mapping network, generator and discriminator of StyleGAN2 for volumes (N, C, D, H, W) of any depth.

The 2D GAN is the 3D one with depth 1 (`NetworkConfig.flat`): same classes, same parameter names, so that a 2D state
inflates into a 3D one name by name (`ssgan.models.inflation`).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssgan.config.network import NetworkConfig
from ssgan.models.layers import Conv, FullyConnected, MinibatchStd, ModulatedConv, Resampler, ToImage, kernel_stages

ONE = (((1, 1, 1),),)  # a dense 1x1x1 convolution
IN_PLANE = (((1, 3, 3),),)  # a dense convolution within the slice


def one_hot(c: Tensor | None, classes: int, batch: int | None = None) -> Tensor | None:
    """Labels as floating (N, classes): of class numbers (N,) int64, or of weights (N, classes) that are so already.

    None for a network without classes. Raises ValueError for labels that are missing, superfluous or no labels of
    `batch` images.
    """
    if classes == 0:
        if c is not None:
            raise ValueError("c: the network was made without classes and takes no labels; leave c out")
        return None
    expected = f"expected class numbers 0..{classes - 1} of shape (N,), int64, or weights (N, {classes}), floating"
    if not isinstance(c, Tensor):
        raise ValueError(f"c: the network has {classes} classes; {expected}; got {c!r}")
    numbers, weights = c.dim() == 1 and c.dtype == torch.int64, c.dim() == 2 and c.is_floating_point()
    if not (numbers or (weights and c.shape[1] == classes)):
        raise ValueError(f"c: {expected}; got {tuple(c.shape)}, {c.dtype}")
    if batch is not None and len(c) != batch:
        raise ValueError(f"c: expected a label for each of {batch} images; got {len(c)}")
    if weights:
        return c
    # On a GPU one_hot checks by itself, without waiting for the values.
    if c.device.type == "cpu" and not torch.compiler.is_compiling() and bool(((c < 0) | (c >= classes)).any()):
        raise ValueError(f"c: {expected}; got {c.unique().tolist()[:8]}")
    return F.one_hot(c, classes).float()


def check_places(place: Tensor | None, cfg: NetworkConfig, batch: int) -> Tensor | None:
    """Places along depth (N,) int64 of slices, which 2D networks with `depth_places` take and no others.

    Raises ValueError for places that are missing, superfluous or of another number. Their values are not read here, so
    that a GPU need not be waited for (`in_depth`).
    """
    if not (cfg.is_flat and cfg.depth_places):
        if place is not None:
            raise ValueError("place: only 2D networks made with depth_places take places; leave place out")
        return None
    depth = cfg.depth_places[1]
    if not isinstance(place, Tensor) or place.dtype != torch.int64 or place.shape != (batch,):
        got = f"{tuple(place.shape)}, {place.dtype}" if isinstance(place, Tensor) else repr(place)
        raise ValueError(f"place: expected places 0..{depth - 1} of shape ({batch},), int64; got {got}")
    return place


def in_depth(place: Tensor, depth: int) -> Tensor:
    """Places that were read and are 0 .. depth - 1; raises ValueError for others."""
    if bool(((place < 0) | (place >= depth)).any()):
        raise ValueError(f"place: expected places 0..{depth - 1}; got {place.unique().tolist()[:8]}")
    return place


def at_places(const: Tensor, place: Tensor, depth: int) -> Tensor:
    """The constant (C, D0, H, W) at slices `place` (N,) of a volume `depth` deep: (N, C, 1, H, W).

    Linear between the centres of its own slices and constant beyond the outer ones, as upsampling would have it.
    """
    own = const.shape[1]
    at = (((place + 0.5) * (own / depth)) - 0.5).clamp(0, own - 1)
    low = at.floor().long()
    share = (at - low).to(const.dtype)[:, None, None, None]
    slices = const.transpose(0, 1)
    return slices[low].lerp(slices[(low + 1).clamp(max=own - 1)], share).unsqueeze(2)


def normalised(x: Tensor) -> Tensor:
    """(N, C) to a mean square of 1 over the channels."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Mapping(nn.Module):
    """z (N, z_dim), labels c -> w (N, w_dim): normalise, then leaky fully connected layers at a hundredth of the rate.

    With classes, the linear embedding of the one-hot label, w_dim wide, is normalised by itself and appended to z
    (StyleGAN2-ADA). z_dim 0 maps labels alone. w_avg is the running mean of w, whatever its class.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, layers: int, classes: int = 0, w_avg_beta: float | None = 0.995):
        super().__init__()
        dims = [z_dim + (w_dim if classes else 0)] + [w_dim] * layers
        self.layers = nn.ModuleList(
            FullyConnected(a, b, "lrelu", lr_multiplier=0.01) for a, b in itertools.pairwise(dims)
        )
        self.z_dim, self.classes, self.w_avg_beta = z_dim, classes, w_avg_beta
        if classes:
            self.embed = FullyConnected(classes, w_dim)
        if w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(
        self, z: Tensor | None, c: Tensor | None = None, truncation: float = 1.0, update_w_avg: bool = False
    ) -> Tensor:
        """truncation: w moves towards the running mean, 1 leaves it and 0 gives the mean (Karras et al. 2019, B)."""
        parts = []
        if self.z_dim:
            if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != self.z_dim:
                got = tuple(z.shape) if isinstance(z, Tensor) else z
                raise ValueError(f"z: expected shape (N, {self.z_dim}); got {got}")
            parts.append(normalised(z))
        label = one_hot(c, self.classes, len(z) if self.z_dim else None)
        if label is not None:
            parts.append(normalised(self.embed(label.to(self.embed.weight.dtype))))
        w = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for layer in self.layers:
            w = layer(w)
        if update_w_avg:
            self.w_avg.copy_(w.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        return w if truncation == 1.0 else self.w_avg.lerp(w, truncation)


class SynthesisBlock(nn.Module):
    """One level: [up-convolution,] convolution, and its contribution to the image (skip architecture)."""

    def __init__(self, cfg: NetworkConfig, level: int, size: tuple[int, int, int]):
        super().__init__()
        stages = kernel_stages(cfg.arch_at(level), cfg.is_flat)
        cout = cfg.widths[level]
        common = {"w_dim": cfg.w_dim, "stages": stages, "size": size, "clamp": cfg.conv_clamp}
        self.scale = cfg.scales[level - 1] if level else (1, 1, 1)
        if level == 0:
            # A 2D generator that knows places holds the whole volume's constant.
            depth = cfg.depth_places[0] if cfg.depth_places else size[0]
            self.const = nn.Parameter(torch.randn(cout, depth, *size[1:]))
        else:
            self.conv0 = ModulatedConv(cfg.widths[level - 1], cout, scale=self.scale, **common)
            self.resampler = Resampler()
        self.conv1 = ModulatedConv(cout, cout, **common)
        self.to_image = ToImage(cout, cfg.image_channels, cfg.w_dim, cfg.conv_clamp)
        self.num_conv = 2 if level else 1

    def forward(
        self, x: Tensor, image: Tensor | None, ws: Tensor, noise: str, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """x (N, Cin, D, H, W), image (N, C, D, H, W) of the level below (x the constant at the coarsest, without an
        image), ws (N, num_conv + 1, w_dim)."""
        styles = iter(ws.unbind(1))
        if image is not None:
            x = self.conv0(x, next(styles), noise, generator)
        x = self.conv1(x, next(styles), noise, generator)
        y = self.to_image(x, next(styles))
        return x, y if image is None else y + self.resampler.up(image, self.scale)


class Synthesis(nn.Module):
    """ws (N, num_ws, w_dim), place (N,) of slices by 2D networks that know them -> volume (N, C, D, H, W)."""

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        size = cfg.base
        blocks = [SynthesisBlock(cfg, 0, size)]
        for level, scale in enumerate(cfg.scales, start=1):
            size = tuple(n * s for n, s in zip(size, scale, strict=True))
            blocks.append(SynthesisBlock(cfg, level, size))
        self.cfg = cfg
        self.blocks = nn.ModuleList(blocks)
        self.num_ws = sum(b.num_conv for b in blocks) + 1

    def forward(
        self, ws: Tensor, noise: str = "random", generator: torch.Generator | None = None, place: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        if ws.dim() != 3 or ws.shape[1] != self.num_ws:
            raise ValueError(f"ws: expected shape (N, {self.num_ws}, w_dim); got {tuple(ws.shape)}")
        place = check_places(place, self.cfg, len(ws))
        const, image = self.blocks[0].const, None
        x = const.expand(len(ws), *const.shape) if place is None else at_places(const, place, self.cfg.depth_places[1])
        first = 0
        for block in self.blocks:
            x, image = block(x, image, ws[:, first : first + block.num_conv + 1], noise, generator)
            first += block.num_conv
        return image


class Generator(nn.Module):
    """z (N, z_dim), labels c -> volume (N, C, D, H, W), nominally in [-1, 1] (Karras et al. 2020, skip generator).

    c: class numbers (N,) int64, or weights (N, classes), for a network with classes; None for one without.
    """

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        self.cfg = cfg
        self.mapping = Mapping(cfg.z_dim, cfg.w_dim, cfg.mapping_layers, cfg.classes)
        self.synthesis = Synthesis(cfg)
        self.num_ws = self.synthesis.num_ws

    def forward(
        self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0, noise: str = "random",
        generator: torch.Generator | None = None, place: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """noise: "random" (drawn from `generator`), "const" (the buffers) or "none". place: (N,) int64, where along
        depth the slices of a 2D network with `depth_places` lie."""
        if place is not None and self.cfg.depth_places and place.device.type == "cpu":
            in_depth(place, self.cfg.depth_places[1])
        w = self.mapping(z, c, truncation)
        return self.synthesis(w[:, None].expand(-1, self.num_ws, -1), noise, generator, place)


class DiscriminatorBlock(nn.Module):
    """Residual block to the next coarser level: (N, Cin, D, H, W) -> (N, Cout, D/sd, H/sh, W/sw)."""

    def __init__(self, cfg: NetworkConfig, level: int):
        super().__init__()
        stages = kernel_stages(cfg.arch_at(level, discriminator=True), cfg.is_flat)
        cin, cout, scale = cfg.widths[level], cfg.widths[level - 1], cfg.scales[level - 1]
        self.conv0 = Conv(cin, cin, stages, clamp=cfg.conv_clamp)
        self.conv1 = Conv(cin, cout, stages, scale, clamp=cfg.conv_clamp)
        self.skip = Conv(cin, cout, ONE, scale, bias=False, activation="linear")

    def forward(self, x: Tensor) -> Tensor:
        gain = math.sqrt(0.5)
        return self.conv1(self.conv0(x), gain) + self.skip(x, gain)


class Head(nn.Module):
    """Features (N, C, D, H, W) -> logits (N, 1): mean along depth, minibatch std, convolution, two dense layers.

    After the mean it works on one slice, so it is the same network for 2D and 3D and carries over whole. With classes
    it gives (N, widths[0]), which the discriminator projects on the label.
    """

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        width, (_, height, breadth) = cfg.widths[0], cfg.base
        self.mbstd = MinibatchStd(cfg.mbstd_group)
        self.conv = Conv(width + 1, width, IN_PLANE, clamp=cfg.conv_clamp)
        self.fc = FullyConnected(width * height * breadth, width, "lrelu")
        self.out = FullyConnected(width, width if cfg.classes else 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.mbstd(x.mean(2, keepdim=True)))
        return self.out(self.fc(x.contiguous().flatten(1)))


class Discriminator(nn.Module):
    """volume (N, C, D, H, W), labels c -> logits (N, 1) (Karras et al. 2020, residual discriminator).

    With classes the logit is <head(x), m(c)> / sqrt(widths[0]) with a mapping network m of the label's own
    (StyleGAN2-ADA; projection discriminator, Miyato and Koyama 2018). c, place: as in `Generator`. With `depth_places`
    every place along depth has a learned vector, 0 at first, that is added to its first features.
    """

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        self.cfg = cfg
        self.from_image = Conv(cfg.image_channels, cfg.widths[-1], ONE, clamp=cfg.conv_clamp)
        if cfg.depth_places:
            self.depth_embedding = nn.Parameter(torch.zeros(cfg.widths[-1], cfg.depth_places[1]))
        self.blocks = nn.ModuleList(DiscriminatorBlock(cfg, level) for level in range(len(cfg.scales), 0, -1))
        self.head = Head(cfg)
        if cfg.classes:
            layers = cfg.mapping_layers if cfg.label_layers is None else cfg.label_layers
            self.mapping = Mapping(0, cfg.widths[0], layers, cfg.classes, w_avg_beta=None)

    def first(self, x: Tensor, place: Tensor | None = None) -> Tensor:
        """Images (N, C, D, H, W) -> the finest features (N, widths[-1], D, H, W), which the blocks take."""
        expected = (self.cfg.image_channels, *self.cfg.shape)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(f"x: expected shape (N, {', '.join(map(str, expected))}); got {tuple(x.shape)}")
        place = check_places(place, self.cfg, len(x))
        x = self.from_image(x)
        if place is not None:
            return x + self.depth_embedding[:, place].t()[:, :, None, None, None].to(x.dtype)
        return x + self.depth_embedding[:, :, None, None].to(x.dtype) if self.cfg.depth_places else x

    def features(self, x: Tensor, place: Tensor | None = None) -> Tensor:
        """(N, C, D, H, W) -> (N, widths[0], *base), what the head sees."""
        x = self.first(x, place)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x: Tensor, c: Tensor | None = None, place: Tensor | None = None) -> Tensor:
        label = one_hot(c, self.cfg.classes, len(x))
        y = self.head(self.features(x, place))
        if label is None:
            return y
        return (y * self.mapping(None, label)).sum(1, keepdim=True) / math.sqrt(y.shape[1])
