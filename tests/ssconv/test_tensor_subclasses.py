"""Tensor subclasses go through every op and come out as PyTorch's own Conv3d would give them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import ssconv

BACKENDS = [name for name in ("reference", "cpu") if ssconv.backends()[name] == "available"]


class Own(Tensor):
    """A subclass with methods of its own, in the way of MONAI's MetaTensor."""

    def new_empty(self, size, *, dtype=None):
        raise TypeError("new_empty of this class takes other arguments")

    contiguous = clone = new_zeros = new_empty


def meta_tensor(t: Tensor) -> Tensor:
    """MONAI's, with an affine and the name of a file."""
    monai = pytest.importorskip("monai.data")
    return monai.MetaTensor(t, affine=torch.eye(4) * 2, meta={"filename_or_obj": "a.nii.gz"})


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "own": lambda t: t.as_subclass(Own),
    "MetaTensor": meta_tensor,
    "parameter": lambda t: nn.Parameter(t, requires_grad=False),
}
by_kind = pytest.mark.parametrize("made", KINDS.values(), ids=KINDS)
by_backend = pytest.mark.parametrize("backend", BACKENDS)


def operator(x: Tensor, scale: Tensor, noise: Tensor, weights: list[Tensor], bias: Tensor, backend: str) -> Tensor:
    return ssconv.split_shuffle_conv3d(
        x, weights, bias, stride=(1, 2, 1), in_scale=scale, noise=noise, out_scale=scale, activation="lrelu",
        clamp=2.0, backend=backend,
    )  # fmt: skip


def resampling(x: Tensor, scale: Tensor, noise: Tensor, weights: list[Tensor], bias: Tensor, backend: str) -> Tensor:
    options = {"depth_border": "replicate", "activation": "lrelu", "backend": backend}
    return ssconv.upfirdn3d(
        x, torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8, up=(1, 1, 1), padding=(2, 1, 2, 1, 2, 1), bias=bias,
        out_scale=scale, **options,
    )  # fmt: skip


@by_kind
@by_backend
@pytest.mark.parametrize("call", [operator, resampling], ids=lambda f: f.__name__)
def test_values_types_and_derivatives_are_conv3ds(call, made, backend):
    """x alone, and every tensor, of the class; outputs, first and second derivatives."""
    rng = torch.Generator().manual_seed(1)
    shapes = {
        "x": (2, 4, 5, 6, 7),
        "scale": (2, 4),
        "noise": (2, 1, 5, 3, 7),
        "w0": (2, 2, 3, 3, 3),
        "w1": (2, 2, 1, 3, 3),
    }
    plain = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()} | {"bias": torch.randn(4)}
    conv = nn.Conv3d(4, 4, 3)
    for names in (("x",), ("x", "scale", "noise", "w0", "w1", "bias")):
        results = []
        for wrap in (lambda t: t, made):
            tensors = {n: (wrap(t.clone()) if n in names else t.clone()).requires_grad_() for n, t in plain.items()}
            weights = [tensors["w0"], tensors["w1"]]
            y = call(tensors["x"], tensors["scale"], tensors["noise"], weights, tensors["bias"], backend)
            wanted = [tensors["x"], tensors["bias"], tensors["scale"]]
            first = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
            results.append([y, *first, *second])
            theirs = conv(tensors["x"])
            assert type(y) is type(theirs), f"{type(y)}, and Conv3d gives {type(theirs)}"
            (expected,) = torch.autograd.grad(theirs.square().sum(), tensors["x"])
            assert type(first[0]) is type(expected)
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(other.detach().as_subclass(Tensor), one.detach())


@by_kind
def test_converted_and_inflated_models(made):
    """A model of the user's, converted or inflated, in the loop that its data loader feeds."""
    model = nn.Sequential(
        nn.Conv3d(2, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.PReLU(), nn.Conv3d(8, 8, 3, padding=1)
    )
    x = made(torch.randn(2, 2, 5, 6, 7))
    kind = type(model(x))
    assert ssconv.convert(model).swapped
    flat = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    inflated, _ = ssconv.inflate_model(flat, profile="average")
    for network in (model, inflated):
        y = network(x)
        y.square().mean().backward()
        assert type(y) is kind
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_a_meta_tensor_keeps_its_affine():
    layer, x = ssconv.SplitShuffleConv3d(2, 4), meta_tensor(torch.randn(1, 2, 4, 5, 6))
    y = layer(x)
    assert torch.equal(y.affine, x.affine) and y.meta["filename_or_obj"] == "a.nii.gz"
