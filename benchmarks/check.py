"""Is what a contender computes right? Checked in float64 at sampled points, before it is timed.

No convolution routine is used: a value of the output, or of the input's gradient, is one sum over a 3x3x3 patch; a
weight's gradient is one dot product of two shifted volumes. So the check costs little at any size and shares no code
with what it checks. Corners, where the padding shows, are always among the points.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import SLOPE, Contender, Layer, layer_input

POINTS = 24
TOLERANCE = 2e-5  # of the largest value: float32 sums of up to 6,912 terms (256 channels, 27 taps)


class WrongResult(AssertionError):
    """A contender's result is not what its weights say."""


def check(layer: Layer, contender: Contender) -> None:
    """Compares output and gradients of one step on random data with the definition.

    Raises:
        WrongResult: names layer, contender, quantity and the largest difference.
    """
    x, upstream = layer_input(layer, contender, seed=7)
    x.requires_grad_()
    y = contender.forward(x)
    *weight_grads, bias_grad, x_grad = torch.autograd.grad(y, (*contender.parameters, x), upstream)
    y, x = y.detach(), x.detach()

    weight = contender.expand([p.detach() for p in contender.parameters[:-1]]).double()
    bias = contender.expand_bias(contender.parameters[-1].detach()).double()
    points = _points(layer)

    z = _correlate(x, weight, points) + bias
    _compare(layer, contender, "output", _at(y, points), F.leaky_relu(z, SLOPE))

    # leaky_relu keeps the sign, so the output that has just been checked tells its slope.
    gz = upstream.double() * torch.where(y > 0, 1.0, SLOPE).double()
    adjoint = weight.transpose(0, 1).flip(2, 3, 4)
    _compare(layer, contender, "input gradient", _at(x_grad, points), _correlate(gz, adjoint, points))
    _compare(layer, contender, "bias gradient", contender.expand_bias(bias_grad).double(), gz.sum((0, 2, 3, 4)))
    entries = _weight_entries(contender)
    got = torch.stack([contender.expand(weight_grads)[e].double() for e in entries])
    _compare(layer, contender, "weight gradient", got, torch.stack([_weight_gradient(x, gz, e) for e in entries]))


def _points(layer: Layer) -> list[tuple[int, int, int, int]]:
    """(n, d, h, w): the corners of the first and last sample, and random ones."""
    last = layer.edge - 1
    corners = list(itertools.product((0, layer.batch - 1), (0, last), (0, last), (0, last)))
    extents = torch.tensor([layer.batch, layer.edge, layer.edge, layer.edge])
    drawn = torch.rand(POINTS, 4, generator=torch.Generator().manual_seed(11))
    return [*corners, *map(tuple, (drawn * extents).long().tolist())]


def _at(t: Tensor, points: list[tuple[int, int, int, int]]) -> Tensor:
    """Values at the points, all channels: (P, C) float64."""
    return torch.stack([t[n, :, d, h, w] for n, d, h, w in points]).double()


def _correlate(t: Tensor, weight: Tensor, points: list[tuple[int, int, int, int]]) -> Tensor:
    """sum over channels and taps of weight[o, c, tap] * t[n, c, point + tap - 1], zero outside: (P, O) float64."""
    edge = t.shape[2]
    patches = torch.zeros(len(points), t.shape[1], 3, 3, 3, dtype=torch.float64)
    for patch, (n, *centre) in zip(patches, points):
        low = [max(c - 1, 0) for c in centre]
        high = [min(c + 2, edge) for c in centre]
        inside = (slice(a - c + 1, b - c + 1) for a, b, c in zip(low, high, centre))
        source = (slice(a, b) for a, b in zip(low, high))
        patch[(slice(None), *inside)] = t[(n, slice(None), *source)].double()
    return torch.einsum("pcdhw,ocdhw->po", patches, weight)


def _weight_entries(contender: Contender) -> list[tuple[int, ...]]:
    """Random indices (o, c, kd, kh, kw) at which the layer has a weight."""
    places = contender.expand([torch.ones_like(p) for p in contender.parameters[:-1]]).nonzero()
    drawn = torch.randint(len(places), (POINTS,), generator=torch.Generator().manual_seed(13))
    return [tuple(int(i) for i in places[k]) for k in drawn]


def _weight_gradient(x: Tensor, gz: Tensor, entry: tuple[int, ...]) -> Tensor:
    """sum over n, p of gz[n, o, p] * x[n, c, p + tap - 1], zero outside; a float64 scalar."""
    o, c, *tap = entry
    edge = x.shape[2]
    here = tuple(slice(max(1 - t, 0), min(edge + 1 - t, edge)) for t in tap)
    there = tuple(slice(max(t - 1, 0), min(edge + t - 1, edge)) for t in tap)
    return (gz[(slice(None), o, *here)] * x[(slice(None), c, *there)].double()).sum()


def _compare(layer: Layer, contender: Contender, what: str, got: Tensor, expected: Tensor) -> None:
    difference = float((got - expected).abs().max())
    bound = TOLERANCE * float(expected.abs().max())
    if not difference <= bound:  # a NaN is not <= anything
        raise WrongResult(f"{layer.name}, {contender.name}: {what} differs by {difference:.3g}; allowed {bound:.3g}")
