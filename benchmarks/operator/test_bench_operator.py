"""The same contenders under pytest-benchmark: `pytest benchmarks`, with its --benchmark-compare and the like."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.operator.cases import LAYERS, Contender, Layer, contenders
from benchmarks.operator.check import check
from benchmarks.operator.run import PASSES, step

THREADS = 2


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


CASES = [
    pytest.param(layer, contender, id=f"{layer.name}-{contender.name}".replace(" ", "-"))
    for layer in LAYERS
    for contender in contenders(layer)
]


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize(("layer", "contender"), CASES)
def test_layer(benchmark, layer: Layer, contender: Contender, what: str) -> None:
    if what == "double backward" and not contender.twice:
        pytest.skip("torch.compile differentiates once")
    check(layer, contender)
    benchmark.group = f"{layer.name} {what}"
    benchmark.pedantic(step(layer, contender, what), rounds=7, warmup_rounds=2)
