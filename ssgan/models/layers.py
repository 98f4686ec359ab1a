"""Building blocks of both networks, for any depth: a 2D layer is the same layer with depth 1.

Sources: Karras et al. 2020 (StyleGAN2: modulation, demodulation, resampling), Karras et al. 2018 (equalised learning
rate, minibatch standard deviation). With dense kernels and depth 1 every layer computes what its namesake in
NVIDIA's StyleGAN2-ADA computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ssconv import replicate_depth, split_shuffle_conv3d, upfirdn3d
from ssgan.config.fields import Triple
from ssgan.config.network import ARCHITECTURES

Kernels = tuple[Triple, ...]

SQRT2 = math.sqrt(2)
FIR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's resampling filter, normalised to sum 1 per dimension


def kernel_stages(arch: str, flat: bool) -> tuple[Kernels, ...]:
    """The branch kernels of each stage of a 3x3x3 convolution; `flat` gives those of its 2D counterpart."""
    stages = ARCHITECTURES[arch]
    return tuple(tuple((1, k[1], k[2]) for k in stage) for stage in stages) if flat else stages


def window(kernels: Kernels) -> Triple:
    """Largest extent over the branches in each dimension."""
    return tuple(max(k[d] for k in kernels) for d in range(3))  # type: ignore[return-value]


class FullyConnected(nn.Module):
    """(N, in) -> (N, out); equalised learning rate with a multiplier."""

    def __init__(
        self, fin: int, fout: int, activation: str = "linear", lr_multiplier: float = 1.0, bias_init: float = 0.0
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fout, fin) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((fout,), bias_init))
        self.activation = activation
        self.weight_gain, self.bias_gain = lr_multiplier / math.sqrt(fin), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        y = torch.addmm(self.bias * self.bias_gain, x, (self.weight * self.weight_gain).t())
        return nn.functional.leaky_relu(y, 0.2) * SQRT2 if self.activation == "lrelu" else y


class BranchWeights(nn.Module):
    """The weights of one set of branches, (Cout/S, Cin/S, kd, kh, kw) each, N(0, 1) with a gain at run time.

    depth_gain (S,): the factor that demodulation needs after inflation. A profile p spreads a 2D weight so that its
    response to what is constant along depth is kept, but the sum of squares shrinks by sum(p^2); demodulating by
    it would amplify the branch by 1/sqrt(sum(p^2)). The buffer holds sqrt(sum(p^2)), 1 for a fresh weight.
    """

    depth_gain: Tensor

    def __init__(self, cin: int, cout: int, kernels: Kernels):
        super().__init__()
        count = len(kernels)
        self.kernels = kernels
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(cout // count, cin // count, *k)) for k in kernels)
        self.gains = tuple(1 / math.sqrt(cin // count * math.prod(k)) for k in kernels)
        self.register_buffer("depth_gain", torch.ones(count))

    def scaled(self, gain: float = 1.0) -> list[Tensor]:
        """The weights with equalised learning rate."""
        return [w * (g * gain) for w, g in zip(self.weights, self.gains, strict=True)]

    def demodulation(self, styles: Tensor) -> Tensor:
        """(N, Cin) -> (N, Cout) in shuffled order: 1 / |w * s| per output channel (StyleGAN2, equation 3)."""
        count = len(self.kernels)
        energy = [
            s.square() @ w.square().sum((2, 3, 4)).t()
            for w, s in zip(self.weights, styles.chunk(count, 1), strict=True)
        ]
        d = (torch.stack(energy, 2) + 1e-8).rsqrt() * self.depth_gain
        return d.flatten(1)


def conv_stages(cin: int, cout: int, stages: tuple[Kernels, ...]) -> nn.ModuleList:
    return nn.ModuleList(BranchWeights(cin if i == 0 else cout, cout, k) for i, k in enumerate(stages))


class Resampler(nn.Module):
    """Holds the FIR taps; `up` and `down` change the size by a triple of 1s and 2s.

    Along depth the low-resolution input is extended by repeating its border slices, so that what is constant along
    depth stays so; height and width pad with zeros as StyleGAN2 does.
    """

    fir: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fir", torch.tensor(FIR) / sum(FIR), persistent=False)

    def taps(self, scale: Triple, gain: float = 1.0) -> list[Tensor | None]:
        return [self.fir * gain if s == 2 else None for s in scale]

    def up(self, x: Tensor, scale: Triple) -> Tensor:
        padding = [p for s in scale for p in ((2, 1) if s == 2 else (0, 0))]
        return upfirdn3d(x, self.taps(scale, 2.0), up=scale, padding=padding, depth_border="replicate")

    def down(self, x: Tensor, scale: Triple) -> Tensor:
        padding = [1 if s == 2 else 0 for s in scale]
        return upfirdn3d(x, self.taps(scale), down=scale, padding=padding, depth_border="replicate")


def strides(kernels: Kernels, scale: Triple) -> Triple:
    """A stage resamples the dimensions that its window spans; the separable stages share them out."""
    return tuple(s if k > 1 else 1 for s, k in zip(scale, window(kernels), strict=True))  # type: ignore[return-value]


class ModulatedConv(nn.Module):
    """Style-modulated, demodulated convolution, then noise, bias, leaky ReLU, gain and clamp.

    (N, Cin, D, H, W), (N, w_dim) -> (N, Cout, D*sd, H*sh, W*sw). The styles scale the input channels and the
    demodulation the output channels of one convolution with shared weights.
    """

    noise_const: Tensor

    def __init__(
        self, cin: int, cout: int, w_dim: int, stages: tuple[Kernels, ...], size: Triple, scale: Triple = (1, 1, 1),
        clamp: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.scale, self.size, self.clamp = scale, size, clamp
        self.affine = FullyConnected(w_dim, cin, bias_init=1.0)
        self.stages = conv_stages(cin, cout, stages)
        self.resampler = Resampler() if max(scale) > 1 else None
        self.register_buffer("noise_const", torch.randn(size))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(cout))

    def noise(self, batch: int, mode: str | Iterator[Tensor], generator: torch.Generator | None) -> Tensor | None:
        if not isinstance(mode, str):  # drawn already, layer by layer
            return next(mode) * self.noise_strength
        if mode == "none":
            return None
        if mode == "const":
            return self.noise_const[None, None] * self.noise_strength
        if mode != "random":
            raise ValueError(f"noise: expected random, const or none; got {mode!r}")
        device = self.bias.device
        if generator is not None and generator.device.type != device.type:
            drawn = torch.randn(batch, 1, *self.size, generator=generator, device=generator.device).to(device)
        else:
            drawn = torch.randn(batch, 1, *self.size, generator=generator, device=device)
        return drawn * self.noise_strength

    def forward(self, x: Tensor, w: Tensor, noise: str = "random", generator: torch.Generator | None = None) -> Tensor:
        styles = self.affine(w)
        first, *rest = self.stages
        epilogue = {
            "noise": self.noise(x.shape[0], noise, generator),
            "bias": self.bias,
            "activation": "lrelu",
            "gain": SQRT2,
            "clamp": self.clamp,
        }
        scales = {"in_scale": styles, "out_scale": first.demodulation(styles)}
        if self.resampler is None:
            for i, stage in enumerate((first, *rest)):
                last = epilogue if i == len(rest) else {}
                weights = list(stage.weights) if i == 0 else stage.scaled()
                x = split_shuffle_conv3d(x, weights, **(scales if i == 0 else {}), **last)
            return x
        doubled = self.scale[0] == 2
        if doubled:
            x = replicate_depth(x, 1, 1)
        grown = [1, 1, 1]
        for i, stage in enumerate((first, *rest)):
            weights = list(stage.weights) if i == 0 else stage.scaled()
            stride = strides(stage.kernels, self.scale)
            grown = [max(g, k) for g, k in zip(grown, window(stage.kernels), strict=True)]
            x = split_shuffle_conv3d(
                x, weights, stride=stride, padding="valid", transposed=True, **(scales if i == 0 else {})
            )
        # A doubled axis has 2n + 1 samples here and the filter brings them to 2n; the others give back K - 1.
        pads = [1 if s == 2 else -(k - 1) // 2 for s, k in zip(self.scale, grown, strict=True)]
        if doubled:
            pads[0] -= 2  # the two slices that the extension by one became on either side
        return upfirdn3d(x, self.resampler.taps(self.scale, 2.0), padding=pads, **epilogue)


class ToImage(nn.Module):
    """Modulated 1x1x1 convolution without demodulation: features -> image channels."""

    def __init__(self, cin: int, channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.affine = FullyConnected(w_dim, cin, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, cin, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain, self.clamp = 1 / math.sqrt(cin), clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        return split_shuffle_conv3d(x, [self.weight], self.bias, in_scale=styles, clamp=self.clamp)


class Conv(nn.Module):
    """Equalised convolution, optionally to half the size: (N, Cin, D, H, W) -> (N, Cout, D/sd, H/sh, W/sw)."""

    def __init__(
        self, cin: int, cout: int, stages: tuple[Kernels, ...], scale: Triple = (1, 1, 1), bias: bool = True,
        activation: str = "lrelu", clamp: float | None = None,
    ):  # fmt: skip
        super().__init__()
        self.scale, self.activation, self.clamp = scale, activation, clamp
        self.stages = conv_stages(cin, cout, stages)
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        self.resampler = Resampler() if max(scale) > 1 else None

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        whole = window(tuple(k for stage in self.stages for k in stage.kernels))
        padding = "same"
        if self.resampler is not None and max(whole) == 1:
            x = self.resampler.down(x, self.scale)
        elif self.resampler is not None:
            pads = [2 if s == 2 else (k - 1) // 2 for s, k in zip(self.scale, whole, strict=True)]
            border = "replicate" if self.scale[0] == 2 else "zero"
            x = upfirdn3d(x, self.resampler.taps(self.scale), padding=pads, depth_border=border)
            padding = "valid"
        for i, stage in enumerate(self.stages):
            last = {}
            if i == len(self.stages) - 1:
                act_gain = gain * (SQRT2 if self.activation == "lrelu" else 1.0)
                clamp = None if self.clamp is None else self.clamp * gain
                last = {"bias": self.bias, "activation": self.activation, "gain": act_gain, "clamp": clamp}
            stride = strides(stage.kernels, self.scale) if padding == "valid" else 1
            x = split_shuffle_conv3d(x, stage.scaled(), stride=stride, padding=padding, **last)
        return x


class MinibatchStd(nn.Module):
    """Appends one channel with the mean standard deviation over groups of samples (Karras et al. 2018, section 3).

    The group is the largest divisor of the batch that does not exceed `group`, so any batch size works.
    """

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        n, c, *size = x.shape
        group = next(g for g in range(min(self.group, n), 0, -1) if n % g == 0) if n else 1
        y = x.reshape(group, n // group, c, *size)
        y = (y - y.mean(0)).square().mean(0) + 1e-8
        y = y.sqrt().mean((1, 2, 3, 4)).repeat(group)
        return torch.cat([x, y[:, None, None, None, None].expand(n, 1, *size)], 1)
