"""SplitShuffleConv3d among torch.nn's modules: parametrizations, pruning, states, the meta device, memory layouts."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import ssconv
from tests.support.strategies import is_native

AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}


@pytest.fixture(params=AVAILABLE)
def device(request, monkeypatch):
    """Makes each backend in turn serve all calls, and gives its device."""
    monkeypatch.setattr("ssconv.functional.resolve", lambda name, x: request.param)
    return DEVICE[request.param]


def a_layer(device: str, seed: int = 0) -> ssconv.SplitShuffleConv3d:
    torch.manual_seed(seed)
    return ssconv.SplitShuffleConv3d(4, 6, activation="lrelu").to(device)


def an_input(device: str) -> Tensor:
    return torch.randn(2, 4, 3, 5, 4, device=device)


def with_weights(layer: ssconv.SplitShuffleConv3d, x: Tensor, *weights: Tensor) -> Tensor:
    return ssconv.split_shuffle_conv3d(x, weights, layer.bias, activation="lrelu")


def a_step(model: nn.Module, x: Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    optimiser.step()
    optimiser.zero_grad()


# ----------------------------------------------------------------------- parametrizations and hooks on weights


def test_weight_norm(device):
    layer, x = a_layer(device), an_input(device)
    plain = layer(x)
    parametrizations.weight_norm(layer.weights, "0")
    torch.testing.assert_close(layer(x), plain)
    assert {n for n, _ in layer.named_parameters()} == {
        "bias", "weights.1", "weights.parametrizations.0.original0", "weights.parametrizations.0.original1"
    }  # fmt: skip
    a_step(layer, x)
    magnitude, direction = (getattr(layer.weights.parametrizations["0"], f"original{i}") for i in range(2))
    normed = magnitude * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    expected = with_weights(layer, x, normed, layer.weights[1])
    assert not torch.allclose(expected, plain)
    torch.testing.assert_close(layer(x), expected)

    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    other = a_layer(device, seed=1)
    parametrizations.weight_norm(other.weights, "0")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    parametrize.remove_parametrizations(layer.weights, "0")
    torch.testing.assert_close(layer(x), expected)
    assert {n for n, _ in layer.named_parameters()} == {"bias", "weights.0", "weights.1"}


def test_spectral_norm(device):
    """The largest singular value of each branch's matrix is one, while training goes on."""
    layer, x = a_layer(device), an_input(device)
    for number in ("0", "1"):
        parametrizations.spectral_norm(layer.weights, number, n_power_iterations=30)
    for _ in range(3):
        a_step(layer, x)
    weights = [w.detach() for w in layer.weights]
    for weight in weights:
        assert torch.linalg.matrix_norm(weight.flatten(1), 2).item() == pytest.approx(1, rel=1e-3)
    layer.eval()
    torch.testing.assert_close(layer(x), with_weights(layer, x, *layer.weights))


def test_any_parametrization_of_weight_and_bias(device):
    class Mirrored(nn.Module):
        def forward(self, t: Tensor) -> Tensor:
            return (t + t.flip(-1)) / 2

    layer, x = a_layer(device), an_input(device)
    parametrize.register_parametrization(layer.weights, "1", Mirrored())
    parametrize.register_parametrization(layer, "bias", Mirrored())
    a_step(layer, x)
    weight = layer.weights.parametrizations["1"].original
    expected = with_weights(layer, x, layer.weights[0], (weight + weight.flip(-1)) / 2)
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.bias, layer.bias.flip(0))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    torch.compiler.reset()


def test_pruning(device):
    """Pruned weights stay zero while the others train."""
    layer, x = a_layer(device), an_input(device)
    prune.l1_unstructured(layer.weights, "0", amount=0.5)
    prune.ln_structured(layer.weights, "1", amount=1, n=2, dim=0)
    before = layer(x)
    for _ in range(2):
        a_step(layer, x)
    after = layer(x)
    assert not torch.allclose(before, after)
    masks = [layer.weights.get_buffer(f"{i}_mask") for i in range(2)]
    assert [int((m == 0).sum()) for m in masks] == [masks[0].numel() // 2, masks[1][0].numel()]
    originals = [layer.weights.get_parameter(f"{i}_orig") for i in range(2)]
    torch.testing.assert_close(after, with_weights(layer, x, *(o * m for o, m in zip(originals, masks))))
    for number in ("0", "1"):
        prune.remove(layer.weights, number)
    torch.testing.assert_close(layer(x), after)
    assert set(layer.state_dict()) == {"weights.0", "weights.1", "bias"}


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm], ids=["weight_norm", "spectral_norm"])
def test_the_older_norms_based_on_hooks(norm, device):
    layer, x = a_layer(device), an_input(device)
    norm(layer.weights, "0")
    first = layer(x)
    for _ in range(2):
        a_step(layer, x)
    assert not torch.allclose(layer(x), first)


# --------------------------------------------------------------------------------------------------- states


def test_a_state_is_copied_or_assigned(device):
    source, x = a_layer(device), an_input(device)
    expected = source(x)
    copied, assigned = a_layer(device, seed=1), a_layer(device, seed=2)
    state = source.state_dict()
    copied.load_state_dict(state)
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(copied(x), expected) and torch.equal(assigned(x), expected)
    assert copied.weights[0].data_ptr() != source.weights[0].data_ptr()
    assert assigned.weights[0].data_ptr() == source.weights[0].data_ptr()
    a_step(assigned, x)
    assert torch.equal(copied(x), expected)


def without(name: str):
    return lambda state: {n: t for n, t in state.items() if n != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("weights.1"), r'Missing key\(s\) in state_dict: "weights.1"'),
        (without("bias"), r'Missing key\(s\) in state_dict: "bias"'),
        (lambda s: s | {"weight": s["weights.0"]}, r'Unexpected key\(s\) in state_dict: "weight"'),
        (lambda s: s | {"weights.0": s["weights.1"]}, "size mismatch for weights.0"),
    ],
    ids=["a weight is missing", "the bias is missing", "one too many", "another shape"],
)
def test_a_state_that_does_not_fit_raises(change, message):
    layer = a_layer("cpu")
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict(change(layer.state_dict()))


def test_a_model_is_built_on_meta_and_filled_afterwards(device):
    source, x = a_layer(device), an_input(device)
    with torch.device("meta"):
        hollow = ssconv.SplitShuffleConv3d(4, 6, activation="lrelu")
        assert hollow(torch.empty(2, 4, 3, 5, 4)).shape == (2, 6, 3, 5, 4)
    assert all(p.is_meta for p in hollow.parameters())
    filled = copy.deepcopy(hollow)
    filled.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(filled(x), source(x))
    emptied = hollow.to_empty(device=device)
    torch.manual_seed(0)
    emptied.reset_parameters()
    if device == "cpu":  # the source drew its weights there
        assert torch.equal(emptied(x), source(x))
    skipped = nn.utils.skip_init(ssconv.SplitShuffleConv3d, 4, 6, activation="lrelu", device=device)
    skipped.load_state_dict(source.state_dict())
    assert torch.equal(skipped(x), source(x))


def test_a_whole_module_goes_through_a_file(device):
    layer, x = a_layer(device), an_input(device)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), layer(x))


# --------------------------------------------------------------------------------------------------- layouts


def a_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        ssconv.SplitShuffleConv3d(4, 8, activation="lrelu"),
        nn.BatchNorm3d(8),
        ssconv.SplitShuffleConv3d(8, 8, "grouped", stride=2),
        nn.PReLU(),
        nn.MaxPool3d((1, 2, 1)),
        ssconv.SplitShuffleConv3d(8, 4, stride=2, transposed=True),
        nn.Dropout3d(0.1),
        ssconv.SplitShuffleConv3d(4, 6, ((3, 1, 3),)),
    )


@pytest.mark.parametrize("converted", [False, True], ids=["as-built", "to-channels_last_3d"])
def test_channels_last_is_kept_through_a_network_and_back(converted, device):
    """Every tensor between layers and every gradient; with these extents the layouts differ."""
    model = a_network().to(device)
    if converted:
        model.to(memory_format=torch.channels_last_3d)
    layouts = {}

    def note(name):
        def hook(module, inputs, output):
            layouts[name] = is_native(output)
            output.register_hook(lambda g: layouts.update({f"gradient of {name}": is_native(g)}))

        return hook

    for name, module in model.named_children():
        module.register_forward_hook(note(f"{name}: {type(module).__name__}"))
    x = torch.randn(2, 4, 4, 8, 6, device=device).to(memory_format=torch.channels_last_3d).requires_grad_()
    y = model(x)
    y.backward(torch.randn_like(y))
    assert len(layouts) == 16
    assert not [name for name, native in layouts.items() if not native]
    assert is_native(x.grad) and not x.grad.is_contiguous()


@pytest.mark.parametrize("operator", ["layer", "filter"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_the_gradient_of_x_has_the_layout_of_x(layout, operator, device):
    x = an_input(device).contiguous(memory_format=layout).requires_grad_()
    taps = torch.tensor([1.0, 2.0], device=device)
    y = a_layer(device)(x) if operator == "layer" else ssconv.upfirdn3d(x, taps, down=2)
    (g,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert g.is_contiguous(memory_format=layout)


def test_after_an_instance_norm_with_a_batch_of_one(device):
    """Where the gradient of its contiguous output is not contiguous, this norm (torch 2.13) returns a wrong one."""
    norm, layer = nn.InstanceNorm3d(4), a_layer(device)
    x = torch.randn(1, 4, 3, 5, 4, device=device, requires_grad=True)
    y = layer(norm(x))
    g = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, g)
    mean, variance = x.mean((2, 3, 4), keepdim=True), x.var((2, 3, 4), correction=0, keepdim=True)
    (expected,) = torch.autograd.grad(layer((x - mean) / (variance + norm.eps).sqrt()), x, g)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_symbolic_tracing_keeps_the_call_whole(device):
    """torch.fx runs the forward with proxies, which have no shape to check; the traced model trains as the model."""
    model = nn.Sequential(a_layer(device), nn.ReLU(), ssconv.SplitShuffleConv3d(6, 4, stride=2, bias=False).to(device))
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes].count("call_function") == 2
    for x in (an_input(device), torch.randn(1, 4, 5, 3, 6, device=device)):
        assert torch.equal(traced(x), model(x))
    g = torch.randn_like(model(x))
    found, expected = (torch.autograd.grad(m(x), [*model.parameters()], g) for m in (traced, model))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
