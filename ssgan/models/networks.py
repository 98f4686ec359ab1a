"""StyleGAN2's mapping network, generator and discriminator for volumes (N, C, D, H, W) of any depth.

The 2D GAN is the 3D one with depth 1 (`NetworkConfig.flat`): the same classes and parameter names, so a 2D state
inflates into a 3D one name by name (`ssgan.models.inflation`). Level 0 is the coarsest.

Two attributes of `Synthesis` and `Discriminator` change how they compute, not what:
conv_dtype: of convolutions and of the features between them; None for the dtype of the weights. Weights, styles,
    demodulation, minibatch std, fully connected layers and images have the dtype of the weights.
recompute: blocks keep only their inputs for the backward pass and are computed again there (activation checkpointing).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssgan.config.network import NetworkConfig
from ssgan.models.checks import check_images, check_latents, check_styles
from ssgan.models.conditioning import UNCONDITIONAL, Condition, check_slice_index, check_slice_range, one_hot
from ssgan.models.layers import Conv, FullyConnected, MinibatchStd, ModulatedConv, Resampler, ToImage, kernel_stages
from ssgan.models.masks import hide_masks, softmax_masks

ONE = (((1, 1, 1),),)  # a dense 1x1x1 convolution
IN_PLANE = (((1, 3, 3),),)  # a dense convolution within the slice

NoiseImages = Sequence[Sequence[Tensor | None]]  # per block and convolution: (N or 1, 1, D, H, W), None for no noise


def normalised(x: Tensor) -> Tensor:
    """Scales (N, C) to a mean square of 1 over the channels."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def run_block(block: nn.Module, recompute: bool, *inputs: Any) -> Any:
    if not recompute:
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


class Mapping(nn.Module):
    """Maps z (N, z_dim) and labels to w (N, w_dim): normalise, then leaky fully connected layers at 1/100 of the rate.

    With classes, the linear embedding of the one-hot label, w_dim wide, is normalised by itself and appended to z
    (StyleGAN2-ADA). With z_dim 0 labels alone are mapped. w_avg is the running mean of w over all classes.
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

    def forward(self, z: Tensor | None, labels: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """truncation: w moves towards w_avg; 1 leaves it as it is, 0 gives w_avg (Karras et al. 2019, appendix B)."""
        parts = []
        if self.z_dim:
            check_latents(z, self.z_dim)
            parts.append(normalised(z))
        labels = one_hot(labels, self.classes, len(z) if self.z_dim else None)
        if labels is not None:
            parts.append(normalised(self.embed(labels.to(self.embed.weight.dtype))))
        w = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for layer in self.layers:
            w = layer(w)
        return w if truncation == 1.0 else self.w_avg.lerp(w, truncation)

    def update_w_avg(self, mean: Tensor) -> None:
        """Moves w_avg towards the mean w (w_dim,) of a batch."""
        self.w_avg.copy_(mean.lerp(self.w_avg, self.w_avg_beta))


class SynthesisBlock(nn.Module):
    """One level of the generator (skip architecture), at (D, H, W) = size:

        x      = conv1(conv0(x))               (N, Cin, size / scale) -> (N, Cout, size); conv0 upsamples
        image  = up(image) + to_image(x)       (N, C, size / scale) -> (N, C, size)

    Level 0 has conv1 alone, on the learned constant, and no image below it.
    """

    def __init__(self, cfg: NetworkConfig, level: int, size: tuple[int, int, int]):
        super().__init__()
        stages = kernel_stages(cfg.arch_at(level), cfg.is_flat)
        cout = cfg.widths[level]
        common = {"w_dim": cfg.w_dim, "stages": stages, "size": size, "clamp": cfg.conv_clamp}
        self.scale = cfg.scales[level - 1] if level else (1, 1, 1)
        if level == 0:
            # A 2D generator that is told slice indices holds the whole volume's constant.
            depth = cfg.depth_places[0] if cfg.depth_places else size[0]
            self.const = nn.Parameter(torch.randn(cout, depth, *size[1:]))
        else:
            self.conv0 = ModulatedConv(cfg.widths[level - 1], cout, scale=self.scale, **common)
            self.resampler = Resampler()
        self.conv1 = ModulatedConv(cout, cout, **common)
        self.to_image = ToImage(cout, cfg.image_channels, cfg.w_dim, cfg.conv_clamp)
        self.num_conv = 2 if level else 1

    @property
    def convs(self) -> list[ModulatedConv]:
        return [self.conv0, self.conv1] if self.num_conv == 2 else [self.conv1]

    def forward(
        self, x: Tensor, image: Tensor | None, ws: Tensor, noise: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor]:
        """ws: (N, num_conv + 1, w_dim). noise: one (N or 1, 1, *size) or None for each convolution."""
        *styles, image_style = ws.unbind(1)
        for conv, style, drawn in zip(self.convs, styles, noise, strict=True):
            x = conv(x, style, drawn)
        y = self.to_image(x, image_style)
        return x, y if image is None else y + self.resampler.up(image, self.scale)


def add_to_slices(x: Tensor, vectors: Tensor) -> Tensor:
    """Adds a vector to every slice of x (N, C, D, H, W); vectors: (N, D, C).

    Computed on (N, D, H * W, C), as channels_last_3d lies in memory: PyTorch's sum over D and over H and W at once, for
    the vectors' gradient, takes 16 times as long as a sum over H * W.
    """
    rows = x.movedim(1, -1).flatten(2, 3) + vectors[:, :, None]
    return rows.unflatten(2, x.shape[3:]).movedim(-1, 1)


def constant_at(const: Tensor, slice_index: Tensor, depth: int) -> Tensor:
    """Interpolates the constant (C, D0, H, W) at slices (N,) of a volume `depth` deep: (N, C, 1, H, W).

    Linear between the centres of the constant's slices, and equal to the outer slice beyond them, as upsampling would
    have it.
    """
    own = const.shape[1]
    at = (((slice_index + 0.5) * (own / depth)) - 0.5).clamp(0, own - 1)
    low = at.floor().long()
    share = (at - low).to(const.dtype)[:, None, None, None]
    slices = const.transpose(0, 1)
    return slices[low].lerp(slices[(low + 1).clamp(max=own - 1)], share).unsqueeze(2)


class Synthesis(nn.Module):
    """ws (N, num_ws, w_dim) -> volume (N, C, D, H, W); 2D networks with `depth_places` also take the slice index.

    With `mask_classes` the channels but the first are class probabilities (`ssgan.models.masks`).
    """

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
        self.conv_dtype: torch.dtype | None = None
        self.recompute = False

    def noise_images(
        self, batch: int, mode: str = "random", generator: torch.Generator | None = None
    ) -> list[list[Tensor | None]]:
        """Noise for `forward`: "random" (drawn from `generator`, block by block), "const" (buffers) or "none"."""
        return [[conv.noise_image(batch, mode, generator) for conv in block.convs] for block in self.blocks]

    def forward(
        self, ws: Tensor, noise: str | NoiseImages = "random", generator: torch.Generator | None = None,
        slice_index: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """noise: a mode of `noise_images`, or what that returns. slice_index: (N,) int64."""
        check_styles(ws, self.num_ws)
        check_slice_index(slice_index, self.cfg, len(ws))
        if isinstance(noise, str):
            noise = self.noise_images(len(ws), noise, generator)
        const, image = self.blocks[0].const, None
        if slice_index is None:
            x = const.expand(len(ws), *const.shape)
        else:
            x = constant_at(const, slice_index, self.cfg.depth_places[1])
        x = x.to(self.conv_dtype or x.dtype)
        first = 0
        for block, drawn in zip(self.blocks, noise, strict=True):
            styles = ws[:, first : first + block.num_conv + 1]
            x, image = run_block(block, self.recompute, x, image, styles, drawn)
            first += block.num_conv
        return softmax_masks(image) if self.cfg.mask_classes else image


class Generator(nn.Module):
    """z (N, z_dim), condition -> volume (N, C, D, H, W), nominally in [-1, 1] (Karras et al. 2020, skip generator)."""

    def __init__(self, cfg: NetworkConfig):
        super().__init__()
        self.cfg = cfg
        self.mapping = Mapping(cfg.z_dim, cfg.w_dim, cfg.mapping_layers, cfg.classes)
        self.synthesis = Synthesis(cfg)
        self.num_ws = self.synthesis.num_ws

    def forward(
        self, z: Tensor, condition: Condition = UNCONDITIONAL, truncation: float = 1.0, noise: str = "random",
        generator: torch.Generator | None = None,
    ) -> Tensor:  # fmt: skip
        """noise: "random" (drawn from `generator`), "const" (the buffers) or "none"."""
        slice_index = condition.slice_index
        if slice_index is not None and self.cfg.depth_places and slice_index.device.type == "cpu":
            check_slice_range(slice_index, self.cfg.depth_places[1])
        w = self.mapping(z, condition.labels, truncation)
        return self.synthesis(w[:, None].expand(-1, self.num_ws, -1), noise, generator, slice_index)


class DiscriminatorBlock(nn.Module):
    """Residual block to the next coarser level, (N, Cin, D, H, W) -> (N, Cout, D/sd, H/sh, W/sw):

    x = (conv1(conv0(x)) + skip(x)) / sqrt(2)        conv1 and skip downsample by scale (sd, sh, sw)
    """

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
    """Features (N, C, D, H, W) -> logits (N, 1):

        x = out(fc(flatten(conv(mbstd(mean over D of x)))))

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
        x = self.conv(self.mbstd(x.mean(2, keepdim=True)).to(x.dtype))
        return self.out(self.fc(x.contiguous().flatten(1)))


class Discriminator(nn.Module):
    """volume (N, C, D, H, W) and condition -> logits (N, 1) (Karras et al. 2020, residual discriminator).

    With classes the logit is <head(x), m(labels)> / sqrt(widths[0]) with a mapping network m of the label's own
    (StyleGAN2-ADA; projection discriminator, Miyato and Koyama 2018). With `depth_places` each slice of a volume has a
    learned vector, 0 at first, that is added to the finest features.
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
        self.conv_dtype: torch.dtype | None = None
        self.recompute = False

    def first(self, x: Tensor, slice_index: Tensor | None = None) -> Tensor:
        """Images (N, C, D, H, W) -> the finest features (N, widths[-1], D, H, W), which the blocks take."""
        check_images(x, self.cfg)
        check_slice_index(slice_index, self.cfg, len(x))
        x = self.from_image(x.to(self.conv_dtype or x.dtype))
        if not self.cfg.depth_places:
            return x
        embedding = self.depth_embedding.t().to(x.dtype)  # (slices, C)
        if slice_index is not None:
            return add_to_slices(x, embedding[slice_index][:, None])
        return add_to_slices(x, embedding.expand(len(x), -1, -1))

    def features(self, x: Tensor, slice_index: Tensor | None = None) -> Tensor:
        """(N, C, D, H, W) -> the coarsest features (N, widths[0], *base), which the head takes."""
        x = self.first(x, slice_index)
        for block in self.blocks:
            x = run_block(block, self.recompute, x)
        return x

    def forward(self, x: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        labels = one_hot(condition.labels, self.cfg.classes, len(x))
        y = self.head(self.features(hide_masks(x, condition.mask_shown), condition.slice_index))
        if labels is None:
            return y
        return (y * self.mapping(None, labels)).sum(1, keepdim=True) / math.sqrt(y.shape[1])
