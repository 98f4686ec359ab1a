"""FlopCounterMode counts a converted layer as it counts PyTorch's convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import ssconv


def counted(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_dense_layer_counts_as_much_as_conv3d(stride, transposed):
    """Forward and both gradients; PyTorch counts them in the same way."""
    extra = {"output_padding": stride - 1} if transposed else {}
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    theirs = kind(4, 6, 3, stride=stride, padding=1, **extra)
    ours = ssconv.from_conv3d(theirs, "dense")
    x = torch.randn(2, 4, 6, 4, 8, requires_grad=True)
    for call in (lambda m: m(x), lambda m: m(x).sum().backward()):
        assert counted(lambda call=call: call(ours)) == counted(lambda call=call: call(theirs)) > 0


def test_a_converted_model_counts_its_third():
    model = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
    x = torch.randn(1, 8, 5, 6, 7)
    before = counted(lambda: model(x))
    ssconv.convert(model)
    assert counted(lambda: model(x)) * 3 == before
