"""The operator under torch.compile and torch.export, with fake tensors, and without reads of values by the host, which
a CUDA graph cannot contain."""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode  # as torch's own notes import it
from torch.export import Dim, ExportedProgram, export
from torch.func import grad, jacfwd, jvp, vmap
from torch.profiler import ProfilerActivity, profile

import ssconv

AVAILABLE = [name for name, state in ssconv.backends().items() if state == "available"]
DEVICE = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}
BATCHES = (7, 9, 8, 12)  # unlike every other extent: dynamic=True gives equal extents one symbol


@pytest.fixture(params=AVAILABLE)
def backend(request, monkeypatch):
    """Makes this backend serve all calls."""
    monkeypatch.setattr("ssconv.functional.resolve", lambda name, x: request.param)
    torch.compiler.reset()
    yield request.param
    torch.compiler.reset()


class Network(nn.Module):
    """Every op: layers strided and transposed, modulation with noise, both kinds of resampling, a clamp."""

    def __init__(self) -> None:
        super().__init__()
        self.down = ssconv.SplitShuffleConv3d(2, 8, stride=2, activation="lrelu")
        self.style = nn.Linear(3, 8)
        self.weights = nn.ParameterList(torch.randn(4, 4, *k) / 6 for k in ((3, 3, 3), (1, 3, 3)))
        self.bias = nn.Parameter(torch.randn(8))
        self.up = ssconv.SplitShuffleConv3d(8, 2, "dense", stride=2, transposed=True)
        self.register_buffer("taps", torch.tensor([0.25, 0.5, 0.25]))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x, style = self.down(x), self.style(z)
        noise = x.mean(1, keepdim=True)
        options = {"noise": noise, "activation": "lrelu", "gain": 2**0.5, "clamp": 3.0}
        x = ssconv.split_shuffle_conv3d(x, self.weights, self.bias, in_scale=style, out_scale=style, **options)
        x = ssconv.upfirdn3d(x, self.taps, padding=1, bias=self.bias, out_scale=style, activation="lrelu")
        return self.up(ssconv.upfirdn3d(x, self.taps, up=2, down=2, padding=(2, 1, 1), depth_border="replicate"))


def a_network(backend: str) -> Network:
    torch.manual_seed(0)
    return Network().to(DEVICE[backend])


def a_batch(size: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(size)
    x, z = torch.randn(size, 2, 4, 6, 5, generator=generator), torch.randn(size, 3, generator=generator)
    return x.to(device), z.to(device)


def result_and_gradients(function, model: nn.Module, x: Tensor, z: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x, z)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y, *torch.autograd.grad(y, [x, *model.parameters()], upstream)]


def assert_the_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# -------------------------------------------------------------------------------------------------- compile


def test_compiled_forward_and_backward(backend):
    model, batch = a_network(backend), a_batch(2, DEVICE[backend])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_the_same(result_and_gradients(compiled, model, *batch), result_and_gradients(model, model, *batch))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="Inductor needs a C++ compiler")
def test_compiled_by_inductor(backend):
    """Its own memory planning and layouts around the ops; channels_last_3d in and out."""
    model, (x, z) = a_network(backend), a_batch(2, DEVICE[backend])
    x = x.to(memory_format=torch.channels_last_3d)
    compiled = torch.compile(model, fullgraph=True)
    found = result_and_gradients(compiled, model, x, z)
    assert_the_same(found, result_and_gradients(model, model, x, z))
    assert found[0].is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("dynamic", [None, True], ids=["when-sizes-change", "from-the-start"])
def test_other_batch_sizes_do_not_compile_again(dynamic, backend):
    """The second size makes the batch a symbol; from then on nothing compiles, in training and in evaluation."""
    model, compilations = a_network(backend), []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=counting, fullgraph=True, dynamic=dynamic)
    for size in BATCHES:
        batch = a_batch(size, DEVICE[backend])
        assert_the_same(result_and_gradients(compiled, model, *batch), result_and_gradients(model, model, *batch))
    assert len(compilations) == (2 if dynamic is None else 1)
    with torch.no_grad():
        model.bias.mul_(2)
    with torch.compiler.set_stance("fail_on_recompile"):
        batch = a_batch(11, DEVICE[backend])
        assert_the_same(result_and_gradients(compiled, model, *batch), result_and_gradients(model, model, *batch))


# ---------------------------------------------------------------------------- torch.func within torch.compile


def a_compiled(function, fullgraph: bool):
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=fullgraph)


def test_vmap_within_compile():
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 6, activation="lrelu")
    x = torch.randn(3, 2, 4, 3, 2, 5)
    found = a_compiled(vmap(lambda x: layer(x)), True)(x)
    torch.testing.assert_close(found, torch.stack([layer(part) for part in x]))


def test_jvp_within_compile_is_right_or_raises():
    """PyTorch drops the tangent at a registered op; a derivative of zero would be wrong in silence."""
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 6, activation="lrelu")
    x, direction = torch.randn(2, 2, 4, 3, 2, 5)
    function = lambda x: jvp(layer, (x,), (direction,))[1]  # noqa: E731
    torch.testing.assert_close(a_compiled(function, False)(x), function(x))
    with pytest.raises(Exception, match=r"forward-mode AD .* is not traced by torch.compile"):
        a_compiled(function, True)(x)


@pytest.mark.parametrize("transform", [grad, vmap, jacfwd], ids=["grad", "vmap", "jacfwd"])
def test_transforms_of_a_compiled_function(transform):
    """PyTorch runs the function uncompiled then."""
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 4, activation="lrelu")
    x = torch.randn(2, 1, 4, 2, 3, 2)
    function = (lambda x: layer(x[0]).square().sum()) if transform is grad else layer
    argument = x[0] if transform is jacfwd else x
    torch.testing.assert_close(
        transform(a_compiled(function, False))(argument), transform(function)(argument), rtol=1e-4, atol=1e-5
    )


def test_grad_within_compile_is_right_or_raises():
    torch.manual_seed(0)
    layer = ssconv.SplitShuffleConv3d(4, 4, activation="lrelu")
    x = torch.randn(2, 4, 3, 2, 5)
    function = grad(lambda x: layer(x).square().sum())
    try:
        found = a_compiled(function, False)(x)
    except RuntimeError as error:
        assert "autograd.Function with functorch transforms" in str(error)
    else:
        torch.testing.assert_close(found, function(x), rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------------- export


@pytest.fixture(params=[False, True], ids=["not-strict", "strict"])
def program(request, backend) -> tuple[ExportedProgram, Network]:
    model = a_network(backend)
    batch = Dim("batch", min=1, max=64)
    arguments = a_batch(2, DEVICE[backend])
    return export(model, arguments, dynamic_shapes=({0: batch}, {0: batch}), strict=request.param), model


def test_an_exported_program_runs_with_any_batch(program, backend):
    exported, model = program
    for size in (1, *BATCHES):
        batch = a_batch(size, DEVICE[backend])
        torch.testing.assert_close(exported.module()(*batch), model(*batch), rtol=1e-5, atol=1e-5)
    called = [str(node.target) for node in exported.graph.nodes if "ssconv" in str(node.target)]
    assert set(called) == {"ssconv.forward.default", "ssconv.upfirdn.default", "ssconv.epilogue.default"}
    assert called.count("ssconv.forward.default") == 3 and called.count("ssconv.upfirdn.default") == 2


def test_an_exported_program_is_saved_decomposed_and_trained(program, backend):
    exported, model = program
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    batch = a_batch(3, DEVICE[backend])
    expected = result_and_gradients(model, model, *batch)
    for other in (torch.export.load(file), exported.run_decompositions()):
        torch.testing.assert_close(other.module()(*batch), expected[0], rtol=1e-5, atol=1e-5)
    module = exported.module()
    found = dict(zip(dict(module.named_parameters()), result_and_gradients(module, module, *batch)[2:], strict=True))
    for (name, _), g in zip(model.named_parameters(), expected[2:], strict=True):
        torch.testing.assert_close(found[name], g, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- fake tensors and host reads


def second_order(model: Network, x: Tensor, z: Tensor) -> list[Tensor]:
    """Output, gradients, and those of a penalty on the input's gradient."""
    x = x.requires_grad_()
    y = model(x, z)
    first = torch.autograd.grad(y.square().sum(), [x, *model.parameters()], create_graph=True)
    wanted = [p for n, p in model.named_parameters() if n != "up.bias"]
    return [y, *first, *torch.autograd.grad(first[0].square().sum(), wanted)]


def test_fake_tensors_pass_through_forward_backward_and_a_penalty(backend):
    """With the shapes, dtypes and layouts that real ones have. A read of a value would raise here."""
    real = second_order(a_network(backend), *a_batch(2, DEVICE[backend]))
    with FakeTensorMode(), torch.device(DEVICE[backend]):
        fake = second_order(Network(), torch.empty(2, 2, 4, 6, 5), torch.empty(2, 3))
    for a, b in zip(fake, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_fake_tensors_raise_when_a_value_is_read():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(3).sum().item()


READS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal", "aten::_to_cpu"}


def reads_by_the_host(function) -> set[str]:
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    names = {event.name for event in recorded.events()}
    assert any(name.startswith("ssconv::") for name in names) and "aten::empty" in names
    return names & READS


# The CPU's own backend is in no CUDA graph; it reads one constant of its own.
@pytest.mark.parametrize("backend", [name for name in AVAILABLE if name != "cpu"], indirect=True)
def test_no_value_is_read_by_the_host(backend):
    """Fake tensors do not enter the kernels; a profile of real ones sees every op, also within them."""
    model, batch = a_network(backend), a_batch(2, DEVICE[backend])
    assert not reads_by_the_host(lambda: second_order(model, *batch))
    assert reads_by_the_host(lambda: second_order(model, *batch)[0].sum().item())
