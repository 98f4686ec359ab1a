"""torch.func on the operator: vmap, grad and jvp in any nesting, against loops, autograd, finite differences."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import ssconv
from tests.support.strategies import CONV_CASES, UPFIRDN_CASES, tensors_of

AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
ELEMENTS = 3
# vmap itself rejects a conversion to channels_last_3d within a function, so no case has one.
CASES = {
    name: dataclasses.replace({**CONV_CASES, **UPFIRDN_CASES}[name], layout="contiguous")
    for name in (
        "split-depth-full",
        "split-depth-stride-2",
        "transposed-valid-stride-212",
        "identity",
        "shared-noise-negative-gain",
        "replicate-up-2",
        "linear-shared-noise",
    )
}
BATCHED = {
    "everything": lambda name: True,
    "what-each-sample-has": lambda name: name in ("x", "in_scale", "out_scale", "noise"),
    "x": lambda name: name == "x",
    "scales-and-noise": lambda name: name in ("in_scale", "out_scale", "noise"),
    "weights": lambda name: name.startswith("weights"),
    "bias": lambda name: name == "bias",
    "weights[1]-and-x": lambda name: name in ("weights[1]", "x"),
}
by_backend = pytest.mark.parametrize("backend", AVAILABLE)
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def precision(backend: str) -> tuple[torch.dtype, dict[str, float]]:
    """float64 if the backend has it, else float32; and the tolerance between two orders of summation."""
    if backend == "reference":
        return torch.float64, {"rtol": 1e-10, "atol": 1e-10}
    return torch.float32, {"rtol": 1e-4, "atol": 1e-4}


def the_function(case, backend: str):
    """Returns a function of the case's tensors in order, their names, and the tensors."""
    dtype, _ = precision(backend)
    tensors = tensors_of(case, dtype, DEVICE[backend])
    names = list(tensors)
    return lambda *args: case.call(ssconv, dict(zip(names, args, strict=True)), backend), names, list(tensors.values())


def stacked(names: list[str], tensors: list[Tensor], which) -> tuple[list[Tensor], tuple[int | None, ...]]:
    """Random tensors with vmap's dimension where `which` says so, in a place that changes from one to the next."""
    torch.manual_seed(0)
    dims = tuple(i % t.dim() if which(n) else None for i, (n, t) in enumerate(zip(names, tensors, strict=True)))
    shapes = [[*t.shape[:d], ELEMENTS, *t.shape[d:]] if d is not None else 0 for t, d in zip(tensors, dims)]
    return [torch.randn(s, dtype=t.dtype, device=t.device) if s else t for t, s in zip(tensors, shapes)], dims


def elements(args: list[Tensor], dims: tuple[int | None, ...]) -> list[list[Tensor]]:
    return [[t if d is None else t.select(d, i) for t, d in zip(args, dims, strict=True)] for i in range(ELEMENTS)]


def stack_each(results: list[tuple[Tensor, ...]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*results, strict=True)]


def a_direction(tensors) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return tuple(torch.randn_like(t) for t in tensors)


# ----------------------------------------------------------------------------------------------------- vmap


@by_backend
@pytest.mark.parametrize("which", BATCHED.values(), ids=BATCHED)
@by_case
def test_vmap_is_a_loop(case, which, backend):
    """Values; gradients within each element; gradients through the whole, all for random upstream gradients."""
    function, names, tensors = the_function(case, backend)
    args, dims = stacked(names, tensors, which)
    if not any(d is not None for d in dims):
        pytest.skip("this case has none of these tensors")
    _, close = precision(backend)
    loop = torch.stack([function(*element) for element in elements(args, dims)])
    torch.testing.assert_close(vmap(function, dims)(*args), loop, **close)

    (upstream,) = a_direction([loop[0]])
    pull = lambda *element: vjp(function, *element)[1](upstream)  # noqa: E731
    expected = stack_each([pull(*element) for element in elements(args, dims)])
    torch.testing.assert_close(list(vmap(pull, dims)(*args)), expected, **close)

    leaves = [t.clone().requires_grad_() for t in args]
    (upstream,) = a_direction([loop])
    found = torch.autograd.grad(vmap(function, dims)(*leaves), leaves, upstream)
    loop = torch.stack([function(*element) for element in elements(leaves, dims)])
    torch.testing.assert_close(found, torch.autograd.grad(loop, leaves, upstream), **close)


@by_backend
@by_case
def test_vmap_within_vmap_is_two_loops(case, backend):
    function, _, tensors = the_function(case, backend)
    args = [torch.randn(2, ELEMENTS, *t.shape, dtype=t.dtype, device=t.device) for t in tensors]
    _, close = precision(backend)
    expected = torch.stack(
        [torch.stack([function(*(t[i, j] for t in args)) for j in range(ELEMENTS)]) for i in range(2)]
    )
    torch.testing.assert_close(vmap(vmap(function))(*args), expected, **close)
    inner = (0,) + (None,) * (len(args) - 1)
    expected = torch.stack(
        [
            torch.stack([function(args[0][i, j], *(t[i, 0] for t in args[1:])) for j in range(ELEMENTS)])
            for i in range(2)
        ]
    )
    found = vmap(vmap(function, inner))(args[0], *(t[:, 0] for t in args[1:]))
    torch.testing.assert_close(found, expected, **close)


@by_backend
@by_case
def test_vmap_over_an_empty_dimension(case, backend):
    function, _, tensors = the_function(case, backend)
    empty = [t.new_zeros(0, *t.shape) for t in tensors]
    assert vmap(function)(*empty).shape == (0, *function(*tensors).shape)


class Network(nn.Module):
    """Two layers with norms and resampling between them."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        dtype, _ = precision(backend)
        self.first = ssconv.SplitShuffleConv3d(2, 6, activation="lrelu", dtype=dtype)
        self.norms = nn.Sequential(nn.GroupNorm(3, 6, dtype=dtype), nn.InstanceNorm3d(6, affine=True, dtype=dtype))
        self.second = ssconv.SplitShuffleConv3d(6, 4, "dense", stride=(1, 2, 2), dtype=dtype)
        self.register_buffer("taps", torch.tensor([0.25, 0.5, 0.25], dtype=dtype))
        self.to(DEVICE[backend])

    def forward(self, x: Tensor) -> Tensor:
        return self.second(ssconv.upfirdn3d(self.norms(self.first(x)), self.taps, padding=1))


@pytest.fixture(params=AVAILABLE)
def backend_of_layers(request, monkeypatch):
    """Makes this backend serve all calls."""
    monkeypatch.setattr("ssconv.functional.resolve", lambda name, x: request.param)
    return request.param


def test_an_ensemble_of_models(backend_of_layers):
    """A set of weights per model, inputs of its own or shared: outputs and gradients are those of each model alone."""
    torch.manual_seed(0)
    dtype, close = precision(backend_of_layers)
    models = [Network(backend_of_layers) for _ in range(ELEMENTS)]
    params, buffers = stack_module_state(models)
    skeleton = copy.deepcopy(models[0]).to("meta")
    x = torch.randn(ELEMENTS, 2, 2, 3, 5, 4, dtype=dtype, device=DEVICE[backend_of_layers])

    def call(p, b, x):
        return functional_call(skeleton, (p, b), (x,))

    together = vmap(call)(params, buffers, x)
    alone = torch.stack([model(part) for model, part in zip(models, x, strict=True)])
    torch.testing.assert_close(together, alone, **close)
    one = vmap(lambda x: models[0](x))(x)
    torch.testing.assert_close(one, torch.stack([models[0](part) for part in x]), **close)
    shared = vmap(call, in_dims=(0, 0, None))(params, buffers, x[0])
    torch.testing.assert_close(shared, torch.stack([model(x[0]) for model in models]), **close)

    upstream = torch.randn_like(together)
    found = torch.autograd.grad(together, list(params.values()), upstream)
    alone.backward(upstream)
    for name, g in zip(params, found, strict=True):
        expected = torch.stack([model.get_parameter(name).grad for model in models])
        torch.testing.assert_close(g, expected, **close, msg=lambda m, name=name: f"{name}: {m}")


def test_gradients_of_each_sample(backend_of_layers):
    """vmap(grad(..)), as differential privacy and influence functions take it."""
    torch.manual_seed(0)
    dtype, close = precision(backend_of_layers)
    model = Network(backend_of_layers)
    params = {n: p.detach() for n, p in model.named_parameters()}
    x = torch.randn(4, 2, 3, 5, 4, dtype=dtype, device=DEVICE[backend_of_layers])
    target = torch.randn_like(model(x))

    def loss(params, x, target):
        return (functional_call(model, params, (x[None],)) - target[None]).square().sum()

    found = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, target)
    for i in range(len(x)):
        model.zero_grad()
        (model(x[i : i + 1]) - target[i : i + 1]).square().sum().backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][i], parameter.grad, **close)


# ---------------------------------------------------------------------------------------------- grad and jvp


@by_backend
@by_case
def test_grad_agrees_with_autograd(case, backend):
    function, _, tensors = the_function(case, backend)
    _, close = precision(backend)
    leaves = [t.clone().requires_grad_() for t in tensors]
    y = function(*leaves)
    (upstream,) = a_direction([y])
    expected = torch.autograd.grad(y, leaves, upstream)
    wanted = tuple(range(len(tensors)))
    found = grad(lambda *args: (function(*args) * upstream).sum(), argnums=wanted)(*tensors)
    torch.testing.assert_close(found, expected, **close)


@by_case
def test_jvp_against_finite_differences(case):
    """Also what forward mode makes of the backward pass, which finite differences check too."""
    function, _, _ = the_function(case, "reference")
    inputs = list(tensors_of(case, torch.float64, requires_grad=True).values())
    assert gradcheck(function, inputs, fast_mode=True, check_forward_ad=True)
    torch.manual_seed(2)
    assert gradgradcheck(function, inputs, fast_mode=True, check_fwd_over_rev=True, gen_non_contig_grad_outputs=True)


@by_backend
@by_case
def test_jvp_is_the_transpose_of_vjp(case, backend):
    """<u, J t> = <J^T u, t>, in all tensors at once and in each alone."""
    function, names, tensors = the_function(case, backend)
    _, close = precision(backend)
    direction = a_direction(tensors)
    y, pull = vjp(function, *tensors)
    (upstream,) = a_direction([y])
    each = [(g * t).sum() for g, t in zip(pull(upstream), direction, strict=True)]
    found, tangent = jvp(function, tuple(tensors), direction)
    torch.testing.assert_close(found, y, **close)
    scale = max(1.0, max(e.abs().item() for e in each))
    torch.testing.assert_close((tangent * upstream).sum() / scale, sum(each) / scale, **close)
    for i, name in enumerate(names):
        one = lambda t, i=i: function(*tensors[:i], t, *tensors[i + 1 :])  # noqa: E731
        tangent = jvp(one, (tensors[i],), (direction[i],))[1]
        torch.testing.assert_close(
            (tangent * upstream).sum() / scale, each[i] / scale, **close, msg=lambda m, name=name: f"{name}: {m}"
        )


@by_case
def test_second_derivatives_agree_in_every_nesting(case):
    """The Hessian of a scalar in one direction: reverse over reverse by plain autograd, and the ways of torch.func.

    PyTorch switches forward mode off within the jvp of an autograd.Function: a sum there loses the outer tangent.
    """
    function, _, tensors = the_function(case, "reference")
    direction = a_direction(tensors)
    (upstream,) = a_direction([function(*tensors)])
    wanted = tuple(range(len(tensors)))

    def scalar(*args):
        return (function(*args) * upstream).square().sum()

    def slope(*args):
        return jvp(scalar, args, direction)[1]

    def slope_by_grad(*args):
        return sum((g * t).sum() for g, t in zip(grad(scalar, argnums=wanted)(*args), direction, strict=True))

    _, expected = torch.autograd.functional.hvp(scalar, tuple(tensors), direction)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(jvp(grad(scalar, argnums=wanted), tuple(tensors), direction)[1], expected, **close)
    torch.testing.assert_close(grad(slope, argnums=wanted)(*tensors), expected, **close)
    torch.testing.assert_close(grad(slope_by_grad, argnums=wanted)(*tensors), expected, **close)
    curvature = sum((h * t).sum() for h, t in zip(expected, direction, strict=True))
    torch.testing.assert_close(jvp(slope, tuple(tensors), direction)[1], curvature, **close)


def test_jacobians_and_hessians_of_a_layer():
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 4, activation="lrelu", dtype=torch.float64)
    x = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(jacrev(layer)(x), expected)
    torch.testing.assert_close(jacfwd(layer)(x), expected)
    loss = lambda x: layer(x).pow(3).sum()  # noqa: E731
    torch.testing.assert_close(hessian(loss)(x), torch.autograd.functional.hessian(loss, x))


def test_forward_mode_without_torch_func():
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 6, activation="lrelu", dtype=torch.float64).requires_grad_(False)
    x, direction = torch.randn(2, 2, 4, 3, 2, 5, dtype=torch.float64)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, direction))).tangent
    expected = torch.autograd.functional.jvp(layer, x, direction)[1]
    torch.testing.assert_close(tangent, expected)


def test_what_pytorch_does_not_support_raises():
    """Batched gradients by the older vmap, which takes no list of tensors."""
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 4, activation="lrelu", dtype=torch.float64)
    x = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    upstream = torch.randn(3, *y.shape, dtype=torch.float64)
    expected = torch.stack([torch.autograd.grad(y, x, g, retain_graph=True)[0] for g in upstream])
    try:
        (found,) = torch.autograd.grad(y, x, upstream, is_grads_batched=True)
    except RuntimeError as error:
        assert "Batching rule not implemented for ssconv::input_grad" in str(error)
    else:
        torch.testing.assert_close(found, expected)
