"""Building blocks of both networks, for any depth: a 2D layer is the same layer with depth 1.

Sources: Karras et al. 2020 (StyleGAN2: modulation, demodulation, resampling), Karras et al. 2018 (equalised learning
rate, minibatch standard deviation). With dense kernels and depth 1 every layer computes what its namesake in
NVIDIA's StyleGAN2-ADA computes.

The dtype of a convolution is that of its input: with 16-bit features its weights are cast to 16 bits, while the styles,
bias and noise beside them stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ssconv import replicate_depth, split_shuffle_conv3d, upfirdn3d
from ssgan.config.fields import Triple
from ssgan.config.network import ARCHITECTURES

Kernels = tuple[Triple, ...]

SQRT2 = math.sqrt(2)
FIR = (1.0, 3.0, 3.0, 1.0)  # StyleGAN2's resampling filter, normalised to sum 1 per dimension


def kernel_stages(arch: str, flat: bool) -> tuple[Kernels, ...]:
    """Branch kernels of each stage of a 3x3x3 convolution; `flat` gives those of its 2D counterpart."""
    stages = ARCHITECTURES[arch]
    return tuple(tuple((1, k[1], k[2]) for k in stage) for stage in stages) if flat else stages


def window(kernels: Kernels) -> Triple:
    """Largest extent over the branches in each dimension."""
    return tuple(max(k[d] for k in kernels) for d in range(3))  # type: ignore[return-value]


def is_16_bit(x: Tensor) -> bool:
    return x.dtype.itemsize == 2


def cast_weights(x: Tensor, weights: Iterable[Tensor]) -> list[Tensor]:
    """Weights for features x: cast to 16 bits where x has 16 bits."""
    return [w.to(x.dtype) if is_16_bit(x) else w for w in weights]


class FullyConnected(nn.Module):
    """(N, in) -> (N, out); equalised learning rate with a multiplier. Computes in the dtype of the weights."""

    def __init__(
        self, fin: int, fout: int, activation: str = "linear", lr_multiplier: float = 1.0, bias_init: float = 0.0
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fout, fin) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((fout,), bias_init))
        self.activation = activation
        self.weight_gain, self.bias_gain = lr_multiplier / math.sqrt(fin), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype) if is_16_bit(x) else x
        bias = self.bias if self.bias_gain == 1 else self.bias * self.bias_gain
        y = torch.addmm(bias, x, (self.weight * self.weight_gain).t())
        return nn.functional.leaky_relu(y, 0.2) * SQRT2 if self.activation == "lrelu" else y


class BranchWeights(nn.Module):
    """Weights of one set of branches, (Cout/S, Cin/S, kd, kh, kw) each, N(0, 1) with a gain at run time.

    depth_gain (S,): the factor that demodulation needs after inflation. A depth profile p keeps the response of a 2D
    weight to features constant along depth, but its sum of squares shrinks by sum(p^2), and demodulation would amplify
    the branch by 1/sqrt(sum(p^2)). The buffer holds sqrt(sum(p^2)), which is 1 for a fresh weight.
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
        """Weights with equalised learning rate."""
        return [w * (g * gain) for w, g in zip(self.weights, self.gains, strict=True)]

    def demodulation(self, styles: Tensor) -> Tensor:
        """(N, Cin) -> (N, Cout) in shuffled order: 1 / |w * s| per output channel (StyleGAN2, equation 3)."""
        count = len(self.kernels)
        energy = [
            s @ w.square().sum((2, 3, 4)).t()
            for w, s in zip(self.weights, styles.square().chunk(count, 1), strict=True)
        ]
        d = (torch.stack(energy, 2) + 1e-8).rsqrt() * self.depth_gain
        return d.flatten(1)


def conv_stages(cin: int, cout: int, stages: tuple[Kernels, ...]) -> nn.ModuleList:
    return nn.ModuleList(BranchWeights(cin if i == 0 else cout, cout, k) for i, k in enumerate(stages))


class Resampler(nn.Module):
    """Holds the FIR taps; `up` and `down` change the size by a triple of 1s and 2s.

    Along depth the low-resolution input is extended by repeating its border slices, so that features constant along
    depth stay constant; height and width pad with zeros as in StyleGAN2.
    """

    fir: Tensor
    fir_up: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fir", torch.tensor(FIR) / sum(FIR), persistent=False)
        self.register_buffer("fir_up", self.fir * 2, persistent=False)  # every other sample it sees is a zero

    def down_taps(self, scale: Triple) -> list[Tensor | None]:
        return [self.fir if s == 2 else None for s in scale]

    def up_taps(self, scale: Triple) -> list[Tensor | None]:
        return [self.fir_up if s == 2 else None for s in scale]

    def up(self, x: Tensor, scale: Triple) -> Tensor:
        padding = [p for s in scale for p in ((2, 1) if s == 2 else (0, 0))]
        return upfirdn3d(x, self.up_taps(scale), up=scale, padding=padding, depth_border="replicate")

    def down(self, x: Tensor, scale: Triple) -> Tensor:
        padding = [1 if s == 2 else 0 for s in scale]
        return upfirdn3d(x, self.down_taps(scale), down=scale, padding=padding, depth_border="replicate")


def strides(kernels: Kernels, scale: Triple) -> Triple:
    """Strides of a stage: it resamples the dimensions that its window spans, so separable stages divide them."""
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

    def noise_image(self, batch: int, mode: str, generator: torch.Generator | None = None) -> Tensor | None:
        """Noise for `forward`: "random" (N, 1, D, H, W), "const" (1, 1, D, H, W), the buffer, or "none"."""
        if mode == "none":
            return None
        if mode == "const":
            return self.noise_const[None, None]
        if mode != "random":
            raise ValueError(f"noise: expected random, const or none; got {mode!r}")
        device = self.bias.device
        if generator is not None and device.type not in (generator.device.type, "meta"):
            return torch.randn(batch, 1, *self.size, generator=generator, device=generator.device).to(device)
        return torch.randn(batch, 1, *self.size, generator=generator, device=device)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """noise: (N or 1, 1, D, H, W) of the output, standard normal before `noise_strength`."""
        styles = self.affine(w)
        scales = {"in_scale": styles, "out_scale": self.stages[0].demodulation(styles)}
        epilogue = {
            "noise": None if noise is None else noise * self.noise_strength,
            "bias": self.bias,
            "activation": "lrelu",
            "gain": SQRT2,
            "clamp": self.clamp,
        }
        return (self._same_size if self.resampler is None else self._upsampled)(x, scales, epilogue)

    def _stage_weights(self, x: Tensor) -> list[list[Tensor]]:
        """Weights of each stage; demodulation makes the gain of the first one superfluous."""
        first, *rest = self.stages
        return [cast_weights(x, first.weights), *(cast_weights(x, stage.scaled()) for stage in rest)]

    def _same_size(self, x: Tensor, scales: dict[str, Tensor], epilogue: dict[str, Any]) -> Tensor:
        last = len(self.stages) - 1
        for i, weights in enumerate(self._stage_weights(x)):
            x = split_shuffle_conv3d(x, weights, **(scales if i == 0 else {}), **(epilogue if i == last else {}))
        return x

    def _upsampled(self, x: Tensor, scales: dict[str, Tensor], epilogue: dict[str, Any]) -> Tensor:
        """Transposed convolutions, then the FIR filter (StyleGAN2's conv2d_resample)."""
        doubled = self.scale[0] == 2
        if doubled:
            x = replicate_depth(x, 1, 1)
        grown = [1, 1, 1]
        for i, (stage, weights) in enumerate(zip(self.stages, self._stage_weights(x), strict=True)):
            grown = [max(g, k) for g, k in zip(grown, window(stage.kernels), strict=True)]
            x = split_shuffle_conv3d(
                x, weights, stride=strides(stage.kernels, self.scale), padding="valid", transposed=True,
                **(scales if i == 0 else {}),
            )  # fmt: skip
        # A doubled axis has 2n + 1 samples here and the filter brings them to 2n; the others give back K - 1.
        pads = [1 if s == 2 else -(k - 1) // 2 for s, k in zip(self.scale, grown, strict=True)]
        if doubled:
            pads[0] -= 2  # the two slices that the extension by one became on either side
        return upfirdn3d(x, self.resampler.up_taps(self.scale), padding=pads, **epilogue)


class ToImage(nn.Module):
    """Modulated 1x1x1 convolution without demodulation: features (N, Cin, D, H, W) -> image (N, C, D, H, W)."""

    def __init__(self, cin: int, channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.affine = FullyConnected(w_dim, cin, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(channels, cin, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight_gain, self.clamp = 1 / math.sqrt(cin), clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        y = split_shuffle_conv3d(x, cast_weights(x, [self.weight]), self.bias, in_scale=styles, clamp=self.clamp)
        return y.to(self.weight.dtype)


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
            x = upfirdn3d(x, self.resampler.down_taps(self.scale), padding=pads, depth_border=border)
            padding = "valid"
        for i, stage in enumerate(self.stages):
            last = {}
            if i == len(self.stages) - 1:
                act_gain = gain * (SQRT2 if self.activation == "lrelu" else 1.0)
                clamp = None if self.clamp is None else self.clamp * gain
                last = {"bias": self.bias, "activation": self.activation, "gain": act_gain, "clamp": clamp}
            stride = strides(stage.kernels, self.scale) if padding == "valid" else 1
            x = split_shuffle_conv3d(x, cast_weights(x, stage.scaled()), stride=stride, padding=padding, **last)
        return x


class MinibatchStd(nn.Module):
    """Appends one channel with the mean standard deviation over groups of samples (Karras et al. 2018, section 3).

    The group is the largest divisor of the batch that does not exceed `group`, so any batch size works. Computes in
    float32 at least.
    """

    def __init__(self, group: int):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if is_16_bit(x) else x
        n, c, *size = x.shape
        group = next(g for g in range(min(self.group, n), 0, -1) if n % g == 0) if n else 1
        y = x.reshape(group, n // group, c, *size)
        y = (y - y.mean(0)).square().mean(0) + 1e-8
        y = y.sqrt().mean((1, 2, 3, 4)).repeat(group)
        return torch.cat([x, y[:, None, None, None, None].expand(n, 1, *size)], 1)
