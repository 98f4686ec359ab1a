"""In export mode the operator is plain PyTorch: models go to ONNX, torch.export and TorchScript without ssconv."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ssconv
from tests.support.strategies import CONV_CASES, UPFIRDN_CASES, check_forward, check_gradients


def native(function):
    """In the layout that the other checks want; an exported program need not have it."""
    return lambda *args, **options: function(*args, **options).contiguous(memory_format=torch.channels_last_3d)


LIBRARY = SimpleNamespace(
    split_shuffle_conv3d=native(ssconv.split_shuffle_conv3d), upfirdn3d=native(ssconv.upfirdn3d)
)  # fmt: skip


@pytest.mark.parametrize("case", [*CONV_CASES.values(), *UPFIRDN_CASES.values()], ids=[*CONV_CASES, *UPFIRDN_CASES])
def test_values_and_gradients_are_the_operators(case):
    with ssconv.export_mode():
        check_forward(LIBRARY, case, torch.float32, "auto", "cpu")
        check_gradients(LIBRARY, case, torch.float32, "auto", "cpu")


class Network(nn.Module):
    """Every kind of layer, and the resampling of the GAN."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ssconv.SplitShuffleConv3d(2, 8, activation="lrelu")
        self.down = ssconv.SplitShuffleConv3d(8, 8, stride=2)
        self.up = ssconv.SplitShuffleConv3d(8, 4, "acs4", stride=2, transposed=True)
        self.register_buffer("taps", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.down(self.first(x)))
        return ssconv.upfirdn3d(y, self.taps, up=2, padding=(2, 1, 2, 1, 2, 1), gain=8.0, depth_border="replicate")


def exported(model: nn.Module, *inputs: Tensor) -> np.ndarray:
    """What onnxruntime makes of the model."""
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    with ssconv.export_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(model, inputs, dynamo=True, verbose=False)
    assert {node.domain for node in program.model_proto.graph.node} == {""}, "operators that are not ONNX's own"
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    return session.run(None, {name: t.numpy() for name, t in zip(names, inputs, strict=True)})[0]


def test_onnx():
    model, x = Network().eval(), torch.randn(1, 2, 4, 6, 8)
    np.testing.assert_allclose(exported(model, x), model(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_onnx_of_a_trained_generator():
    from ssgan.config.network import NetworkConfig
    from ssgan.models.networks import Generator

    cfg = NetworkConfig((8, 12, 8), (4, 6, 4), ((2, 2, 2),), (8, 4), z_dim=6, w_dim=6)
    network = Generator(cfg).eval()

    class Volumes(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            return network(z, noise="const")

    wrapped, z = Volumes(), torch.randn(2, 6)
    wrapped.network = network
    np.testing.assert_allclose(exported(wrapped, z), wrapped(z).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_torch_export_and_trace():
    model, x = Network().eval(), torch.randn(1, 2, 4, 6, 8)
    with ssconv.export_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # of the checks of shapes
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.export.export(model, (x,))
        traced = torch.jit.trace(model, x, check_trace=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "ssconv" in name] and "aten.conv3d.default" in called
    assert "ssconv::" not in str(traced.inlined_graph)
    for other in (program.module(), traced):
        torch.testing.assert_close(other(x), model(x))


def test_the_mode_ends_with_its_block():
    x, layer = torch.randn(1, 4, 3, 3, 3), ssconv.SplitShuffleConv3d(4, 4)

    def uses_the_op() -> bool:
        program = torch.export.export(layer, (x,))
        return any("ssconv" in str(node.target) for node in program.graph.nodes)

    with pytest.raises(ZeroDivisionError), ssconv.export_mode():
        with ssconv.export_mode():
            pass
        assert not uses_the_op(), "the inner block ended the outer one's mode"
        raise ZeroDivisionError
    assert uses_the_op()
