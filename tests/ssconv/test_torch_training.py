"""Training with the operator as with nn.Conv3d: autocast, checkpointing, two processes, modes, empty and odd inputs."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ssconv

AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}


def serve_all_calls_by(name: str, patch) -> None:
    """Makes this backend serve all calls from now on."""
    patch("ssconv.functional.resolve", lambda asked, x: name)


@pytest.fixture(params=AVAILABLE)
def device(request, monkeypatch):
    serve_all_calls_by(request.param, monkeypatch.setattr)
    return DEVICE[request.param]


class Network(nn.Module):
    """Strided, transposed and dense layers, a norm, resampling, and a style that modulates one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = ssconv.SplitShuffleConv3d(2, 8, stride=2, activation="lrelu")
        self.norm = nn.GroupNorm(2, 8)
        self.style = nn.Linear(3, 8)
        self.weights = nn.ParameterList(torch.randn(4, 4, *k) / 6 for k in ((3, 3, 3), (1, 3, 3)))
        self.up = ssconv.SplitShuffleConv3d(8, 2, "dense", stride=2, transposed=True)
        self.register_buffer("taps", torch.tensor([0.25, 0.5, 0.25]))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.norm(self.down(x))
        style = self.style(z)
        x = ssconv.split_shuffle_conv3d(x, self.weights, in_scale=style, out_scale=style, activation="lrelu")
        return self.up(ssconv.upfirdn3d(x, self.taps, padding=1, bias=style[0]))


def a_network(device: str) -> Network:
    torch.manual_seed(0)
    return Network().to(device)


def a_batch(size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, z = torch.randn(size, 2, 4, 6, 5, generator=generator), torch.randn(size, 3, generator=generator)
    return x.to(device), z.to(device)


def gradients(model: nn.Module, y: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    model.zero_grad()
    y.backward(torch.randn(y.shape, generator=generator).to(y))
    return {n: p.grad for n, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------------- autocast


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_autocast_treats_a_layer_as_it_treats_nn_conv3d(given, lower, device):
    torch.manual_seed(0)
    theirs, ours = nn.Conv3d(4, 6, 3, padding=1).to(device), ssconv.SplitShuffleConv3d(4, 6, "dense").to(device)
    ours.load_state_dict({"weights.0": theirs.weight, "bias": theirs.bias})
    x = torch.randn(2, 4, 3, 5, 4, device=device, dtype=given)
    outputs = []
    for layer in (theirs, ours):
        x_own = x.clone().requires_grad_()
        with torch.autocast(device, dtype=lower):
            y = layer(x_own)
        assert y.dtype == lower
        y.backward(torch.ones_like(y))
        assert x_own.grad.dtype == given
        assert all(p.grad.dtype == torch.float32 for p in layer.parameters())
        outputs.append((y.float(), x_own.grad.float(), *(p.grad for p in (layer.bias, next(layer.parameters())))))
    weights = [w.to(lower) for w in ours.weights]
    assert torch.equal(y, ssconv.split_shuffle_conv3d(x.to(lower), weights, ours.bias))
    for a, b in zip(outputs[0][:2], outputs[1][:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_autocast_takes_parameters_of_the_other_16_bit_type(device):
    torch.manual_seed(0)
    theirs, ours = nn.Conv3d(4, 6, 3, padding=1).to(device), ssconv.SplitShuffleConv3d(4, 6, "dense").to(device)
    ours.load_state_dict({"weights.0": theirs.weight, "bias": theirs.bias})
    x = torch.randn(2, 4, 3, 5, 4, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(ours.half()(x), theirs.half()(x), rtol=0.05, atol=0.05)


def test_autocast_through_a_network(device):
    """Float32 in and parameters, the lower type between; the gradients are near those without it."""
    model, (x, z) = a_network(device), a_batch(2, device)
    plain = model(x, z)
    expected = gradients(model, plain)
    seen = []
    model.norm.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0].dtype))
    with torch.autocast(device, dtype=torch.bfloat16):
        y = model(x, z)
        with torch.autocast(device, enabled=False):
            assert model.down(x).dtype == torch.float32
    assert seen == [torch.bfloat16] and y.dtype == torch.bfloat16
    assert not torch.equal(y.float(), plain)
    for name, g in gradients(model, y).items():
        assert g.dtype == torch.float32, name
        # Three digits, and some voxels that these move across the kink of the activation.
        assert (g - expected[name]).norm() < 0.2 * expected[name].norm(), name


def test_autocast_leaves_filters_and_float64_alone(monkeypatch):
    serve_all_calls_by("reference", monkeypatch.setattr)
    x = torch.randn(2, 4, 3, 5, 4, dtype=torch.float64)
    layer = ssconv.SplitShuffleConv3d(4, 4, dtype=torch.float64)
    taps, scale = torch.ones(3), torch.randn(2, 4, dtype=torch.bfloat16)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), expected)
        for dtype in (torch.float32, torch.bfloat16):
            assert ssconv.upfirdn3d(x.to(dtype), taps, padding=1, out_scale=scale).dtype == dtype
        with pytest.raises(TypeError, match=r"weights\[0\]: expected dtype torch.float64"):
            layer.float()(x)
    with pytest.raises(TypeError, match=r"out_scale: expected dtype torch.float32"):
        ssconv.upfirdn3d(x.float(), taps, padding=1, out_scale=scale)


def test_autocast_within_compile(device):
    model, (x, z) = a_network(device), a_batch(2, device)

    def run(x, z):
        with torch.autocast(device, dtype=torch.bfloat16):
            return model(x, z)

    torch.compiler.reset()
    found = torch.compile(run, backend="aot_eager", fullgraph=True)(x, z)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, run(x, z), rtol=0.05, atol=0.05)
    torch.compiler.reset()


# ------------------------------------------------------------------------------------ memory, modes, empty inputs


@pytest.mark.parametrize("lower", [False, True], ids=["float32", "autocast"])
def test_gradient_checkpointing(lower, device):
    model, (x, z) = a_network(device), a_batch(2, device)
    calls = []
    model.down.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=lower):
        expected = {n: g.clone() for n, g in gradients(model, model(x, z)).items()}
        assert len(calls) == 1
        found = gradients(model, checkpoint(model, x, z, use_reentrant=False))
    assert len(calls) == 3
    for name, g in found.items():
        assert torch.equal(g, expected[name]), name


def test_deterministic_algorithms_only(device):
    """No op uses a non-deterministic algorithm, also in a gradient penalty, and the bits repeat."""
    model, (x, z) = a_network(device), a_batch(2, device)
    before = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=False)
    try:
        results = []
        for _ in range(2):
            leaf = x.clone().requires_grad_()
            (g,) = torch.autograd.grad(model(leaf, z).square().sum(), leaf, create_graph=True)
            results.append([g, *torch.autograd.grad(g.square().sum(), model.parameters(), allow_unused=True)])
    finally:
        torch.use_deterministic_algorithms(True, warn_only=before)
    for a, b in zip(*results, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_inference_mode(device):
    model, (x, z) = a_network(device), a_batch(2, device)
    expected = model(x, z)
    with torch.inference_mode():
        y = model(x, z)
        inner = x + 0
    assert y.is_inference() and not y.requires_grad
    torch.testing.assert_close(y, expected)
    with torch.no_grad():
        torch.testing.assert_close(model(inner, z), expected)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        model(inner, z)


def test_an_empty_batch_through_a_network(device):
    model, (x, z) = a_network(device), a_batch(2, device)
    leaf = x[:0].clone().requires_grad_()
    y = model.up(ssconv.upfirdn3d(model.down(leaf), model.taps, padding=1, bias=model.style(z)[0]))
    assert y.shape == (0, 2, 4, 6, 6)
    y.sum().backward()
    assert leaf.grad.shape == leaf.shape
    for parameter in (*model.down.parameters(), *model.up.parameters()):
        assert parameter.grad.shape == parameter.shape and not parameter.grad.any()


def test_expanded_and_strided_tensors_get_their_gradients(device):
    """Stride 0 in the input, in a weight and in the upstream gradient: sums over what they share."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 3, 1, 4, device=device, requires_grad=True)
    w = [torch.randn(1, 2, k, 3, 3, device=device, requires_grad=True) for k in (3, 1)]
    g = torch.randn(2, 1, 1, 5, 4, device=device).expand(2, 6, 3, 5, 4)

    def run(copy):
        wide = copy(x.expand(2, 4, 3, 5, 4)), [copy(t.expand(3, -1, -1, -1, -1)) for t in w]
        return torch.autograd.grad(ssconv.split_shuffle_conv3d(*wide), [x, *w], copy(g))

    for a, b in zip(run(lambda t: t), run(lambda t: t.contiguous()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- two processes


def steps(model: nn.Module, x: Tensor, z: Tensor) -> list[Tensor]:
    """Two steps of SGD; the gradients of the first and the parameters after the second."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    result = []
    for step in range(2):
        optimiser.zero_grad()
        model(x, z).square().mean().backward()
        result += [p.grad.clone() for p in model.parameters()] if step == 0 else []
        optimiser.step()
    return result + [p.detach().clone() for p in model.parameters()]


def one_of_two(rank: int, backend: str, folder: str) -> None:
    from unittest import mock

    torch.set_num_threads(1)
    serve_all_calls_by(backend, lambda target, value: mock.patch(target, value).start())
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    x, z = a_batch(4)
    z = z[:1].expand(2, 3)  # the network takes a bias off its first style: the same in both halves
    # The second copy is initialised differently: DistributedDataParallel broadcasts the first one's parameters.
    torch.manual_seed(rank)
    model = DistributedDataParallel(Network())
    found = steps(model, x[2 * rank : 2 * rank + 2], z)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("backend", [name for name in AVAILABLE if DEVICE[name] == "cpu"])
def test_two_processes_train_as_one_with_the_whole_batch(backend, tmp_path: Path, monkeypatch):
    serve_all_calls_by(backend, monkeypatch.setattr)
    workers = mp.spawn(one_of_two, (backend, str(tmp_path)), nprocs=2, join=False)
    deadline = time.monotonic() + 900
    try:
        while not workers.join(timeout=5):
            assert time.monotonic() < deadline, "the processes do not end"
    finally:
        for process in workers.processes:
            process.kill()
    x, z = a_batch(4)
    expected = steps(a_network("cpu"), x, z[:1].expand(4, 3))
    names = [n for n, _ in Network().named_parameters()]
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, a, b in zip(names * 2, found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
