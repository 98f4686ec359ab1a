"""StyleGAN2 in two dimensions, written from the papers with torch's own 2D functions; shares no code with ssgan.

Weights are modulated and demodulated per sample and convolved with groups = N, resampling pads and filters as
StyleGAN2-ADA's reference does. Reads the state dict of a dense network of depth 1.
"""

import math

import torch
import torch.nn.functional as F

FIR = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1]))


def filtered(x, before, after, gain=1.0, down=1):
    """Pads (before, after) on both axes and convolves with the normalised 4x4 filter."""
    x = F.pad(x, (before, after, before, after))
    kernel = (FIR / FIR.sum() * gain).to(x).flip(0, 1)[None, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernel, groups=x.shape[1], stride=down)


def upsampled(image):
    n, c, h, w = image.shape
    stuffed = torch.zeros(n, c, 2 * h, 2 * w, dtype=image.dtype)
    stuffed[:, :, ::2, ::2] = image
    return filtered(stuffed, 2, 1, gain=4.0)


def dense(state, name, x, lr=1.0, act=False):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    y = x @ (weight * lr / math.sqrt(weight.shape[1])).t() + bias * lr
    return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2) if act else y


def modulated(x, weight, styles, demodulate=True, up=False):
    """(N, I, H, W), (O, I, k, k), (N, I) -> (N, O, ...), one group per sample."""
    n, cin, h, w = x.shape
    cout, _, k, _ = weight.shape
    per_sample = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        per_sample = per_sample * (per_sample.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * cin, h, w)
    if up:
        kernels = per_sample.transpose(1, 2).reshape(n * cin, cout, k, k)
        y = F.conv_transpose2d(x, kernels, stride=2, groups=n)
        y = y.reshape(n, cout, 2 * h + 1, 2 * w + 1)
        return filtered(y, 1, 1, gain=4.0)
    y = F.conv2d(x, per_sample.reshape(n * cout, cin, k, k), padding=k // 2, groups=n)
    return y.reshape(n, cout, h, w)


def lrelu(x, bias, gain=1.0):
    x = x + bias[None, :, None, None]
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2) * gain


def unit(x):
    """Scales to a mean square of 1 over the channels."""
    return x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()


def mapping(state, z, layers, onehot=None):
    x = [] if z is None else [unit(z)]
    if onehot is not None:
        x.append(unit(dense(state, "mapping.embed", onehot)))
    x = torch.cat(x, 1)
    for i in range(layers):
        x = dense(state, f"mapping.layers.{i}", x, lr=0.01, act=True)
    return x


def generator(state, z, layers, levels, noise, onehot=None, clamp=math.inf):
    """Images (N, C, H, W); noise: whether the constant noise images are added."""
    w = mapping(state, z, layers, onehot)
    x = state["synthesis.blocks.0.const"][None, :, 0].repeat(len(z), 1, 1, 1)
    image = None

    def synthesis_layer(x, name, up):
        styles = dense(state, f"{name}.affine", w)
        y = modulated(x, state[f"{name}.stages.0.weights.0"][:, :, 0], styles, up=up)
        if noise:
            y = y + state[f"{name}.noise_const"][None] * state[f"{name}.noise_strength"]
        return lrelu(y, state[f"{name}.bias"]).clamp(-clamp, clamp)

    for level in range(levels + 1):
        block = f"synthesis.blocks.{level}"
        if level:
            x = synthesis_layer(x, f"{block}.conv0", True)
        x = synthesis_layer(x, f"{block}.conv1", False)
        weight = state[f"{block}.to_image.weight"][:, :, 0]
        styles = dense(state, f"{block}.to_image.affine", w) / math.sqrt(weight.shape[1])
        y = modulated(x, weight, styles, demodulate=False) + state[f"{block}.to_image.bias"][None, :, None, None]
        y = y.clamp(-clamp, clamp)
        image = y if image is None else upsampled(image) + y
    return image


def discriminator(state, x, levels, group, onehot=None, label_layers=None, clamp=math.inf):
    """Logits (N, 1) of images (N, C, H, W)."""

    def weight(name):
        w = state[f"{name}.stages.0.weights.0"][:, :, 0]
        return w / math.sqrt(w.shape[1] * w.shape[2] * w.shape[3])

    def clamped(y, gain=1.0):
        return y.clamp(-clamp * gain, clamp * gain)

    half = math.sqrt(0.5)
    x = clamped(lrelu(F.conv2d(x, weight("from_image")), state["from_image.bias"]))
    for i in range(levels):
        block = f"blocks.{i}"
        skip = F.conv2d(filtered(x, 1, 1, down=2), weight(f"{block}.skip")) * half
        y = clamped(lrelu(F.conv2d(x, weight(f"{block}.conv0"), padding=1), state[f"{block}.conv0.bias"]))
        y = F.conv2d(filtered(y, 2, 2), weight(f"{block}.conv1"), stride=2)
        x = clamped(lrelu(y, state[f"{block}.conv1.bias"], half), half) + skip
    n, c, h, w = x.shape
    size = group if n % group == 0 else next(g for g in range(group, 0, -1) if n % g == 0)
    statistic = x.reshape(size, -1, c, h, w)
    statistic = (statistic.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    x = torch.cat([x, statistic.repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)
    x = clamped(lrelu(F.conv2d(x, weight("head.conv"), padding=1), state["head.conv.bias"]))
    y = dense(state, "head.out", dense(state, "head.fc", x.flatten(1), act=True))
    if onehot is None:
        return y
    cmap = mapping(state, None, label_layers, onehot)
    return torch.einsum("nk,nk->n", y, cmap)[:, None] / math.sqrt(y.shape[1])
