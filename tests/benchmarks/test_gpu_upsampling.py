"""The two ways of an up-convolution give the same; their run on a GPU, tried on a CPU."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch.nn import functional

from benchmarks.gpu import upsampling as gpu_upsampling
from benchmarks.gpu.timing import HostDevice
from benchmarks.gpu.upsampling_floors import (
    FIR,
    LEVELS,
    PARITIES,
    Level,
    folded,
    in_order,
    phases,
    rows,
    taps_of_phases,
    two_steps,
)
from benchmarks.operator.cases import KERNELS, SLOPE
from ssgan.config.training import PRESETS, plan_levels

TINY = (Level("nowhere", 2, 4, 8, 3), Level("nowhere", 1, 8, 4, 2))


def by_torch(x, weights, bias):
    """With zeros inserted by hand; dense weights, branches interleaved as the shuffle does."""
    parts = []
    for part, w in zip(x.chunk(len(weights), 1), weights, strict=True):
        margins = [(3 - n) // 2 for n in w.shape[2:]]
        wide = functional.pad(w, [m for margin in margins[::-1] for m in (margin, margin)])
        parts.append(functional.conv_transpose3d(part, wide.transpose(0, 1), stride=2))
    z = torch.stack(parts, 2).flatten(1, 2)
    fir = torch.tensor(FIR, dtype=x.dtype) / 4
    kernel = (fir[:, None, None] * fir[:, None] * fir).expand(z.shape[1], 1, 4, 4, 4)
    y = functional.conv3d(z, kernel, padding=1, groups=z.shape[1])
    return functional.leaky_relu(y + bias[:, None, None, None], SLOPE)


@pytest.mark.parametrize("kernels", [*KERNELS.values(), ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))], ids=str)
def test_both_ways_are_torch_s(kernels):
    torch.manual_seed(1)
    count = len(kernels)
    x = torch.randn(2, 2 * count, 3, 4, 5, dtype=torch.float64)
    weights = [torch.randn(3, 2, *k, dtype=torch.float64) for k in kernels]
    bias = torch.randn(3 * count, dtype=torch.float64)
    expected = by_torch(x, weights, bias)
    assert torch.allclose(two_steps(x, weights, bias, "reference"), expected, atol=1e-6)
    found = in_order(phases(x, [folded(w) for w in weights], bias, "reference"), count)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), "summed in float32"


def test_weights_of_phases_are_zero_where_they_are_not_counted():
    for kernel in ((3, 3, 3), (1, 3, 3), (3, 1, 1)):
        taps = (folded(torch.ones(1, 1, *kernel)) != 0).sum((1, 2, 3, 4))
        assert (taps == taps_of_phases(kernel)).all() and len(taps) == PARITIES


def test_the_levels_are_those_of_the_presets():
    for name in ("heart", "brain"):
        preset = PRESETS[name]
        base, scales = plan_levels(preset.shape)
        assert all(s == (2, 2, 2) for s in scales)
        widths = [min(preset.width_fine << i, preset.width_max) for i in reversed(range(len(scales) + 1))]
        expected = [
            (preset.stage_3d.batch, cin, cout, base[0] << i) for i, (cin, cout) in enumerate(itertools.pairwise(widths))
        ]
        assert [(v.batch, v.channels, v.out, v.edge) for v in LEVELS if v.where == name] == expected


def test_the_expectation_has_every_level():
    assert len(rows().splitlines()) == 2 + len(LEVELS) * len(KERNELS)


def test_a_run_on_a_cpu(tmp_path, capsys):
    out = tmp_path / "upsampling.jsonl"
    options = {"head": {"commit": "none"}, "device": HostDevice(), "place": "cpu", "backend": "reference"}
    assert gpu_upsampling.run(TINY, out, **options, dtype=torch.float32, budget=0.01) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(r["level"], r["kernels"], r["way"]) for r in records} == {
        (level.name, kernels, way) for level in TINY for kernels in KERNELS for way in ("two steps", "phases")
    }
    assert all(r["seconds"]["median"] > 0 and r["commit"] == "none" for r in records)
    assert capsys.readouterr().out.count(" ms") == len(records)


def test_ways_that_differ_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_upsampling, "folded", lambda w: folded(w).flip(2))
    options = {"head": {}, "device": HostDevice(), "place": "cpu", "backend": "reference"}
    failed = gpu_upsampling.run(TINY[:1], tmp_path / "lines", **options, dtype=torch.float32, budget=0.01)
    assert failed == len(KERNELS) and "differ by" in (tmp_path / "lines").read_text()
