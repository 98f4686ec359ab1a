"""Checks in float64, at sampled points, that a contender computes its layer, before it is timed.

No convolution routine is used: a value of the output, or of the input's gradient, is one sum over a 3x3x3 patch; a
weight's gradient is one dot product of two shifted volumes. So the check costs little at any size and shares no code
with the contenders. The corners, which padding affects, are always among the points.

With W the dense weight of `Contender.expand`, s and d the scales of a `scaled` layer (else 1), m the slope of the leaky
ReLU and u the upstream gradient, the layer and what follows from it are

    y = lrelu(d * z + bias),  z[o, p] = sum over c, tap of W[o, c, tap] * s[c] * x[c, far]
    g = d * m * u,            far = stride * p + tap - 1

where p runs over the output, or over the input where the layer is transposed (then z is the adjoint sum).
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operator.cases import SLOPE, Contender, Layer, layer_input

POINTS = 24
SCALES = 3  # sampled gradients of scales; each takes a whole volume's work
# Of the largest value. float32: sums of up to 6,912 terms (256 channels, 27 taps). 16 bit: scaled input, sum and
# result are each rounded, by half an eps.
TOLERANCE = 2e-5
TOLERANCES = {torch.float32: TOLERANCE, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TOLERANCE_TF32 = 2e-3  # operands rounded to 11 bits


class WrongResult(AssertionError):
    """A contender's result differs from the definition."""


def check(layer: Layer, contender: Contender, tolerance: float | None = None, twice: bool = False) -> None:
    """Compares output and gradients of one step on random data with the definition.

    tolerance: of the largest value; by default that of the contender's dtype. twice: second derivatives too.

    Raises:
        WrongResult: names layer, contender, quantity and the largest difference.
    """
    tolerance = TOLERANCES[contender.parameters[-1].dtype] if tolerance is None else tolerance
    x, upstream = layer_input(layer, contender, seed=7)
    x.requires_grad_()
    y = contender.forward(x)
    if y.shape != layer.out_shape:
        raise WrongResult(f"{layer.name}, {contender.name}: output has shape {tuple(y.shape)}, not {layer.out_shape}")
    leaves = (*contender.parameters, x, *contender.scales)
    gradients = torch.autograd.grad(y, leaves, upstream)
    *weight_grads, bias_grad = gradients[: len(contender.parameters)]
    x_grad, *scale_grads = gradients[len(contender.parameters) :]
    y, x = y.detach(), x.detach()

    def compare(what: str, got: Tensor, expected: Tensor, size: Tensor | None = None) -> None:
        """size: the magnitude to compare with, where sums may cancel."""
        difference = float((got - expected).abs().max())
        bound = tolerance * float((expected if size is None else size).abs().max())
        if not difference <= bound:  # a NaN is not <= anything
            raise WrongResult(
                f"{layer.name}, {contender.name}: {what} differs by {difference:.3g}; allowed {bound:.3g}"
            )

    weight = contender.expand([p.detach() for p in contender.parameters[:-1]]).double()
    bias = contender.expand_bias(contender.parameters[-1].detach()).double()
    s, d = _scales(layer, contender)
    outside, inside = _points(layer, layer.out_edge), _points(layer, layer.edge)
    n_out, n_in = outside[:, 0].to(x.device), inside[:, 0].to(x.device)

    z = _sums(x, weight, outside, layer, forward=True, scale=s)
    pre = d[n_out] * z + bias
    compare("output", _at(y, outside), F.leaky_relu(pre, SLOPE))

    # leaky_relu keeps the sign, so the output, which has just been checked, tells the slope.
    slope = torch.where(y > 0, 1.0, SLOPE).double()
    gpre = upstream.double() * slope
    gz = gpre * d[:, :, None, None, None]
    compare("input gradient", _at(x_grad, inside), s[n_in] * _sums(gz, weight, inside, layer, forward=False))
    compare("bias gradient", contender.expand_bias(bias_grad).double(), gpre.sum((0, 2, 3, 4)))
    entries = _weight_entries(contender)
    got = torch.stack([contender.expand(weight_grads)[e].double() for e in entries])
    compare("weight gradient", got, torch.stack([_weight_gradient(layer, x, gz, s, e) for e in entries]))
    if contender.scales:
        pairs = _scale_entries(layer)
        products = [_by_tap(layer, x[n, i], gz[n]) for n, i, _ in pairs]  # (27, O): <g[o], x[i] shifted>
        terms = torch.stack([weight[:, i].flatten(1).t() * m for (_, i, _), m in zip(pairs, products)])
        compare("in_scale gradient", _picked(scale_grads[0], pairs, 1), terms.sum((1, 2)), terms.flatten(1).norm(dim=1))
        products = [_by_tap(layer, x[n], gpre[n, o], channels_of="x") for n, _, o in pairs]  # (27, I)
        terms = torch.stack([weight[o].flatten(1).t() * s[n] * m for (n, _, o), m in zip(pairs, products)])
        compare(
            "out_scale gradient", _picked(scale_grads[1], pairs, 2), terms.sum((1, 2)), terms.flatten(1).norm(dim=1)
        )
    del gpre
    if twice:
        v = layer_input(layer, contender, seed=17)[0]
        *weight_seconds, upstream_second = second_derivatives(contender, x, upstream, v)
        got = torch.stack([contender.expand(weight_seconds)[e].double() for e in entries])
        compare("second weight gradient", got, torch.stack([_weight_gradient(layer, v, gz, s, e) for e in entries]))
        z = _sums(v, weight, outside, layer, forward=True, scale=s)
        compare("second gradient of the upstream", _at(upstream_second, outside), _at(slope, outside) * d[n_out] * z)


def second_derivatives(contender: Contender, x: Tensor, upstream: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """Computes the derivatives of <v, input gradient> for the weights and the upstream gradient, as R1 needs them."""
    x, upstream = x.detach().requires_grad_(), upstream.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(contender.forward(x), x, upstream, create_graph=True)
    return torch.autograd.grad(gradient, (*contender.parameters[:-1], upstream), v)


def _scales(layer: Layer, contender: Contender) -> tuple[Tensor, Tensor]:
    """Gives in_scale and out_scale in float64, ones where the layer has none."""
    if contender.scales:
        return tuple(t.detach().double() for t in contender.scales)  # type: ignore[return-value]
    like = contender.parameters[-1]
    return tuple(  # type: ignore[return-value]
        torch.ones(layer.batch, c, dtype=torch.float64, device=like.device) for c in (layer.channels, layer.out)
    )


def _points(layer: Layer, edge: int) -> Tensor:
    """Draws points (P, 4) of n, d, h, w: the corners of the first and last sample, and random ones."""
    last = edge - 1
    corners = list(itertools.product((0, layer.batch - 1), (0, last), (0, last), (0, last)))
    extents = torch.tensor([layer.batch, edge, edge, edge])
    drawn = torch.rand(POINTS, 4, generator=torch.Generator().manual_seed(11))
    return torch.cat([torch.tensor(corners), (drawn * extents).long()])


def _at(t: Tensor, points: Tensor) -> Tensor:
    """Reads the values at the points, all channels: (P, C) float64."""
    n, d, h, w = points.to(t.device).unbind(1)
    return t[n, :, d, h, w].double()


def _sums(
    t: Tensor, weight: Tensor, points: Tensor, layer: Layer, *, forward: bool, scale: Tensor | None = None
) -> Tensor:
    """Sums z at points of the output from t = x (forward), or its adjoint at points of the input from t = g."""
    points = points.to(t.device)
    taps = torch.tensor(list(itertools.product(range(3), repeat=3)), device=t.device)
    edge = t.shape[2]
    if forward != layer.transposed:  # the points are the centres of windows that read t
        source = layer.stride * points[:, None, 1:] + taps - 1
        there = ((source >= 0) & (source < edge)).all(2)
    else:  # t's points are the centres, and the windows reach the points
        reached = points[:, None, 1:] + 1 - taps
        source = reached.div(layer.stride, rounding_mode="floor")
        there = ((reached % layer.stride == 0) & (source >= 0) & (source < edge)).all(2)
    d, h, w = source.clamp(0, edge - 1).unbind(2)
    patches = t[points[:, :1], :, d, h, w].double() * there[:, :, None]  # (P, 27, C)
    if scale is not None:
        patches = patches * scale[points[:, 0]][:, None]
    return torch.einsum("ptc,oct->po" if forward else "pto,oct->pc", patches, weight.flatten(2))


def _weight_entries(contender: Contender) -> list[tuple[int, ...]]:
    """Draws indices (o, c, kd, kh, kw) at which the layer has a weight."""
    nonzero = contender.expand([torch.ones_like(p) for p in contender.parameters[:-1]]).nonzero()
    drawn = torch.randint(len(nonzero), (POINTS,), generator=torch.Generator().manual_seed(13))
    return [tuple(int(i) for i in nonzero[k]) for k in drawn]


def _shifted(layer: Layer, tap: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Gives slices (d, h, w) of the centres whose tap lies inside, and of the positions that it reads."""
    stride = layer.stride
    near, far = (layer.edge, layer.out_edge) if layer.transposed else (layer.out_edge, layer.edge)
    here, there = [], []
    for t in tap:
        first = 1 if t == 0 else 0  # stride * p + t - 1 >= 0
        last = min(near - 1, (far - t) // stride)  # stride * p + t - 1 <= far - 1
        here.append(slice(first, last + 1))
        there.append(slice(stride * first + t - 1, stride * last + t, stride))
    return tuple(here), tuple(there)


def _weight_gradient(layer: Layer, x: Tensor, gz: Tensor, s: Tensor, entry: tuple[int, ...]) -> Tensor:
    """Sums g[n, o, p] * s[n, c] * x[n, c, far] over n and p, zero outside; a float64 scalar."""
    o, c, *tap = entry
    here, there = _shifted(layer, tuple(tap))
    of_g, of_x = (there, here) if layer.transposed else (here, there)
    xs = x[(slice(None), c, *of_x)].double() * s[:, c, None, None, None]
    return (gz[(slice(None), o, *of_g)] * xs).sum()


def _by_tap(layer: Layer, x: Tensor, g: Tensor, channels_of: str = "g") -> Tensor:
    """Computes per tap the dot products of one volume with every channel of the other, shifted: (27, C) float64.

    x and g are volumes (D, H, W) or (C, D, H, W); `channels_of` says which one has the channels.
    """
    rows = []
    for tap in itertools.product(range(3), repeat=3):
        here, there = _shifted(layer, tap)
        of_g, of_x = (there, here) if layer.transposed else (here, there)
        many, one = (g[(..., *of_g)], x[(..., *of_x)]) if channels_of == "g" else (x[(..., *of_x)], g[(..., *of_g)])
        rows.append((many.double() * one.double()).sum((1, 2, 3)))
    return torch.stack(rows)


def _scale_entries(layer: Layer) -> list[tuple[int, int, int]]:
    """Draws (n, input channel, output channel)."""
    limits = torch.tensor([layer.batch, layer.channels, layer.out])
    drawn = torch.rand(SCALES, 3, generator=torch.Generator().manual_seed(19))
    return [tuple(row) for row in (drawn * limits).long().tolist()]  # type: ignore[misc]


def _picked(gradient: Tensor, pairs: list[tuple[int, int, int]], which: int) -> Tensor:
    return torch.stack([gradient[pair[0], pair[which]].double() for pair in pairs])
