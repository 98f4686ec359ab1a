"""A dense checkpoint loads into the converted model as if it had been converted itself, and never in silence."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import ssconv


class Network(nn.Module):
    """Layers that are swapped, left alone, transposed, strided, without bias, and used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 8, 3, padding=1)
        self.down = nn.Conv3d(8, 12, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(12)
        self.twice = nn.Conv3d(12, 12, (5, 3, 1), padding=(2, 1, 0))
        self.again = self.twice
        self.up = nn.ConvTranspose3d(12, 8, 3, stride=2, padding=1, output_padding=1)
        self.head = nn.Conv3d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.twice(self.norm(self.down(self.stem(x))).relu()))
        return self.head(self.up(y))


@pytest.mark.parametrize("kernels", ["split_depth", "grouped", "acs4", "dense"])
def test_it_loads_what_convert_would_have_made(kernels):
    trained, fresh = Network().eval(), Network().eval()
    before = copy.deepcopy(trained.state_dict())
    ssconv.convert(trained, kernels)
    ssconv.convert(fresh, kernels)
    mapped = ssconv.convert_state_dict(before, fresh)
    fresh.load_state_dict(mapped)
    x = torch.randn(2, 1, 6, 8, 10)
    assert torch.equal(fresh(x), trained(x))
    assert set(mapped) == set(trained.state_dict())
    assert all(torch.equal(before[n], t) for n, t in Network.state_dict(trained).items() if n in before)


@pytest.mark.parametrize("strict", [True, False])
def test_a_dense_checkpoint_is_an_error_that_names_the_function(strict):
    model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
    before = copy.deepcopy(model.state_dict())
    ssconv.convert(model)
    with pytest.raises(RuntimeError, match=r"2\.weight is the weight of the nn\.Conv3d .* ssconv\.convert_state_dict"):
        model.load_state_dict(before, strict=strict)


def test_other_weights_are_named_and_other_models_left_alone():
    model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1))
    ssconv.convert(model)
    for shape in ((8, 6, 3, 3, 3), (8, 4, 1, 3, 3), (8, 4, 4, 3, 3), (8, 4, 3, 3)):
        with pytest.raises(
            ValueError, match=r"state_dict: 0\.weight: expected the weight of a layer of 4 to 8 channels"
        ):
            ssconv.convert_state_dict({"0.weight": torch.zeros(shape)}, model)
    own = model.state_dict()
    assert ssconv.convert_state_dict(own, model).keys() == own.keys()
    layer = ssconv.SplitShuffleConv3d(4, 4)
    dense = nn.Conv3d(4, 4, 3)
    layer.load_state_dict(ssconv.convert_state_dict(dense.state_dict(), layer))
    assert torch.equal(layer.bias, dense.bias)
