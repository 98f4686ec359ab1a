"""Tests the operator's benchmark: the check finds wrong results, times are the clock's, ratios are right."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.operator import report
from benchmarks.operator.cases import KERNELS, SLOPE, Contender, Layer, contenders
from benchmarks.operator.check import WrongResult, check
from benchmarks.operator.memory import can_measure, peak_of
from benchmarks.operator.run import main as run_main
from benchmarks.operator.timing import measure, summarise

LAYER = Layer(2, 8, 5)
NAMES = [c.name for c in contenders(LAYER, compiled=False)]


def contender(name: str) -> Contender:
    return next(c for c in contenders(LAYER) if c.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_every_contender_computes_its_layer(name: str) -> None:
    check(LAYER, contender(name))


@pytest.mark.slow
def test_the_compiled_contender_computes_its_layer() -> None:
    check(LAYER, contender("grouped/nn.Conv3d channels_last compiled"))


@pytest.mark.skipif(not can_measure(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_holds_the_results_of_a_step() -> None:
    """At least the output and two gradients of its size; far below ten of them."""
    one = 4 * 2 * 32**4
    peak = peak_of("2x32x32^3", "dense/nn.Conv3d channels_last", 1)
    assert 2 * one < peak < 10 * one


def test_the_set_of_contenders() -> None:
    assert {n for n in NAMES if "nn." in n} == {
        f"{k}/nn.Conv3d {layout}" for k in ("dense", "grouped") for layout in ("contiguous", "channels_last")
    }
    assert {f"{k}/ssconv reference" for k in KERNELS} <= set(NAMES)


def test_expand_is_the_layer_as_one_dense_convolution() -> None:
    split = contender("split_depth/ssconv reference")
    x = torch.randn(LAYER.shape)
    *weights, bias = split.parameters
    expected = F.leaky_relu(F.conv3d(x, split.expand(weights), bias, padding=1), SLOPE)
    torch.testing.assert_close(split.forward(x), expected)


class _WrongWeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        return weight.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.flip(-1)


class _WrongInputGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.flip(1)


def _dense(forward: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Contender:
    """A dense contender that computes `forward(x, weight, bias)`."""
    good = contender("dense/nn.Conv3d contiguous")
    weight, bias = good.parameters
    return dataclasses.replace(good, forward=lambda x: forward(x, weight, bias))


def _layer(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.leaky_relu(F.conv3d(x, weight, bias, padding=1), SLOPE)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("forward", "quantity"),
    [
        pytest.param(lambda x, w, b: _layer(x, w, b) * 1.001, "output", id="scale"),
        pytest.param(lambda x, w, b: _layer(x, w, b).flip(1), "output", id="channel order"),
        pytest.param(lambda x, w, b: _layer(x, w.flip(2), b), "output", id="taps flipped"),
        pytest.param(
            lambda x, w, b: F.leaky_relu(F.conv3d(F.pad(x, [1] * 6, "replicate"), w, b), SLOPE), "output", id="padding"
        ),
        pytest.param(lambda x, w, b: _layer(x, w, b) * float("nan"), "output", id="nan"),
        pytest.param(lambda x, w, b: _layer(_WrongInputGradient.apply(x), w, b), "input gradient", id="input gradient"),
        pytest.param(
            lambda x, w, b: _layer(x, _WrongWeightGradient.apply(w), b), "weight gradient", id="weight gradient"
        ),
        pytest.param(lambda x, w, b: _layer(x, w, 2 * b - b.detach()), "bias gradient", id="bias gradient"),
    ],
)
def test_the_check_catches(forward: Callable[[Tensor, Tensor, Tensor], Tensor], quantity: str) -> None:
    check(LAYER, _dense(_layer))
    with pytest.raises(WrongResult, match=rf"2x8x5\^3, dense/.*: {quantity} differs"):
        check(LAYER, _dense(forward))


def test_measure_times_each_call_alone_and_in_turn() -> None:
    now = 0.0
    calls: list[str] = []

    def work(name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += seconds
            calls.append(name)

        return call

    times = measure({"a": work("a", 1.0), "b": work("b", 4.0)}, warmup=1, repeats=3, clock=lambda: now)
    assert calls == ["a", "b", "a", "b", "b", "a", "a", "b"]
    assert (times["a"].median, times["b"].median, times["a"].repeats) == (1.0, 4.0, 3)

    over_budget = measure({"a": work("a", 1.0)}, warmup=0, repeats=50, budget=6.5, clock=lambda: now)
    assert over_budget["a"].repeats == 7


def test_quantiles() -> None:
    timing = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (timing.minimum, timing.q25, timing.median, timing.q75) == (1.0, 2.0, 3.0, 4.0)
    assert (timing.q10, timing.q90) == pytest.approx((1.4, 4.6))
    with pytest.raises(ValueError, match="at least one"):
        summarise([])


def _records() -> report.Records:
    about = {"device": "cpu", "threads": 2, "cores": 2, "python": "3", "torch": "2", "commit": "c", "date": "d"}
    medians = {("L1", "dense", "nn.Conv3d a"): 0.030, ("L1", "dense", "nn.Conv3d b"): 0.020}
    medians |= {("L2", "dense", "nn.Conv3d a"): 0.080, ("L2", "dense", "nn.Conv3d b"): 0.100}
    medians |= {("L1", "split_depth", "ssconv x"): 0.005, ("L2", "split_depth", "ssconv x"): 0.080}
    # The ratios are against PyTorch's dense layer, however fast ours is.
    medians |= {("L1", "dense", "ssconv x"): 0.001, ("L2", "dense", "ssconv x"): 0.001}
    return [
        {**about, "layer": n, "pass": "forward", "kernels": k, "implementation": i, "seconds": {"median": m}}
        for (n, k, i), m in medians.items()
    ]


def test_ratios_are_against_the_better_dense_layout_per_layer() -> None:
    table = report.speedups(_records(), "forward")
    assert table["split_depth, ssconv x"] == pytest.approx({"L1": 4.0, "L2": 1.0})
    assert table["dense, nn.Conv3d a"] == pytest.approx({"L1": 2 / 3, "L2": 1.0})
    text = report.markdown(_records())
    assert "| best dense, ms | 20.00 | 80.00 | |" in text
    assert "| split_depth, ssconv x | 4.00 | 1.00 | 2.00 |" in text


def test_memory_is_reported_in_its_own_unit() -> None:
    records = [{**r, "pass": "memory", "bytes": int(r["seconds"]["median"] * 2**30)} for r in _records()]
    text = report.markdown(records)
    assert "| best dense, MiB | 20.48 | 81.92 | |" in text
    assert "| split_depth, ssconv x | 4.00 | 1.00 | 2.00 |" in text


def test_run_writes_lines_that_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.operator.run.LAYERS", (LAYER,))
    threads = torch.get_num_threads()
    try:
        assert (
            run_main(["--repeats", "3", "--threads", "1", "--no-compile", "--no-memory", "--out", str(tmp_path)]) == 0
        )
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    timed = [r for r in records if r["pass"] != "memory"]
    assert len(timed) == 3 * len(NAMES)
    assert len(records) - len(timed) == 0
    for key in ("device", "threads", "python", "torch", "ssconv", "commit", "date"):
        assert records[0][key], key
    assert all(0 < r["seconds"]["q10"] <= r["seconds"]["median"] <= r["seconds"]["q90"] for r in records)

    assert report.main([str(path)]) == 0
    assert path.with_suffix(".png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.with_suffix(".md").read_text() in capsys.readouterr().out


def test_report_names_the_broken_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(SystemExit):
        report.main([str(path)])
    assert "x.jsonl, line 2: not JSON" in capsys.readouterr().err


def test_a_peak_that_was_not_seen_has_no_ratio():
    """A process that has freed more than a step takes shows no peak; that is neither a ratio nor an error."""
    common = {"layer": "a", "pass": "memory", "kernels": "dense"}
    records = [
        {**common, "implementation": "nn.Conv3d contiguous", "bytes": 200},
        {**common, "implementation": "ssconv cpu", "bytes": 100},
        {**common, "implementation": "ssconv reference", "bytes": -1},
    ]
    assert report.speedups(records, "memory") == {
        "dense, nn.Conv3d contiguous": {"a": 1.0},
        "dense, ssconv cpu": {"a": 2.0},
    }
