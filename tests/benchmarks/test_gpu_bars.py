"""What is asked of the kernels on a GPU is judged right, and what memory limits is measured; tried on a CPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu import memory_bound as gpu_memory_bound
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.cases import GPU_LAYERS
from benchmarks.gpu.timing import Ceilings, HostDevice
from benchmarks.operator.cases import KERNELS
from ssconv.backend import reference

ABOUT = {"device": "Fictitious GPU", "commit": "abc", "torch": "2"}
ENVIRONMENT = {
    **ABOUT, "memory_bytes": 2**37, "driver": "1", "cuda": "13", "cudnn": 91002, "warning": "cuDNN 9.10 is slow",
    "python": "3", "triton": "3", "date": "today",
}  # fmt: skip
CEILINGS = {"operations_per_second": 5e14, "bytes_per_second": 3e12}


def layer_records(times: dict[str, float], **changes: float) -> list[dict]:
    """Dense takes 12 ms; ours a `times`-th of it; the compiled rival 10 ms. changes: other milliseconds of ours in the
    first layer, by kernel set. The floor of all is 3 ms."""
    records = []
    for layer in GPU_LAYERS:
        costs = {("dense", "nn.Conv3d channels_last"): 12.0, ("dense", "nn.Conv3d contiguous"): 13.0}
        costs["grouped", "nn.Conv3d channels_last compiled"] = 10.0
        for kernels in KERNELS:
            own = changes.get(kernels) if layer is GPU_LAYERS[0] else None
            costs[kernels, "ssconv cuda"] = own or 12.0 / times[kernels]
            costs[kernels, "ssconv cuda, sm_80"] = 1e-3  # not what is asked about
        for (kernels, implementation), ms in costs.items():
            for what in ("forward", "full step"):
                records.append(
                    {**ABOUT, "layer": layer.name, "kernels": kernels, "implementation": implementation, "pass": what,
                     "dtype": "bf16", "seconds": {"median": ms / 1e3}, "floor_seconds": 3e-3, "ceilings": CEILINGS}
                )  # fmt: skip
    return records


GOOD = {"split_depth": 2.6, "grouped": 3.7, "dense": 1.1}


def by_name(bars) -> dict[str, gpu_bars.Bar]:
    return {bar.what: bar for bar in bars}


def test_bars_of_layers_that_hold():
    bars = by_name(gpu_bars.layer_bars(layer_records(GOOD)))
    split, rival = bars["split_depth, forward, against dense"], bars["grouped, forward, against its compiled rival"]
    assert split.found == pytest.approx(2.6) and split.held and split.wanted == ">= 2.5"
    assert rival.found == pytest.approx(10 / 12 * 3.7) and rival.held
    assert bars["dense, no layer slower than dense"].held
    # 3 ms of 12 / 2.6, 12 / 3.7 and 12 / 1.1 ms
    shares = {k: bars[f"{k}, share of the floor from 128 channels"] for k in KERNELS}
    assert shares["split_depth"].found == pytest.approx(0.65) and shares["split_depth"].held
    assert shares["dense"].found == pytest.approx(0.275) and shares["dense"].held is False
    assert len(bars) == 6 + 2 + 3 + 3


def test_one_slow_layer_misses_its_bars_and_is_named():
    bars = by_name(gpu_bars.layer_bars(layer_records(GOOD, split_depth=24.0)))
    slow = bars["split_depth, no layer slower than dense"]
    assert slow.held is False and slow.found == pytest.approx(0.5) and GPU_LAYERS[0].name in slow.note
    mean = bars["split_depth, forward, against dense"]
    assert mean.found == pytest.approx((2.6**15 * 0.5) ** (1 / 16)) and mean.held is False
    assert "scaled 2.60" in mean.note and "plain 2.1" in mean.note


def test_what_has_not_all_its_figures_is_not_judged():
    some = [r for r in layer_records(GOOD) if r["layer"] != GPU_LAYERS[3].name]
    bars = by_name(gpu_bars.layer_bars(some))
    assert {bar.held for bar in bars.values()} <= {None, False}
    assert bars["split_depth, forward, against dense"].held is None
    assert "15 of 16 layers" in bars["split_depth, forward, against dense"].note
    assert bars["dense, share of the floor from 128 channels"].held is False, "a least that fails, fails"
    nothing = gpu_bars.layer_bars([])
    assert all(bar.found is None and bar.held is None for bar in nothing)
    other = [{**r, "dtype": "fp16"} for r in layer_records(GOOD)]
    assert all(bar.held is None for bar in gpu_bars.layer_bars(other))


def training_records(images: float, gib: float, edge: int = 64, **changes) -> list[dict]:
    common = {**ABOUT, "preset": "brain", "shape": [edge] * 3, "precision": "bf16", "batch": 8, "step_seconds": 1.0}
    return [
        {**common, "arch": "dense", "implementation": "nn.Conv3d", "images_per_second": 5.0, "peak_bytes": 30 * 2**30},
        {**common, "arch": "dense", "implementation": "nn.Conv3d, upfirdn cuda", "images_per_second": 10.0,
         "peak_bytes": 20 * 2**30},
        {**common, "arch": "split_depth", "implementation": "cuda, CUDA graphs", "images_per_second": 99.0,
         "peak_bytes": 1},
        {**common, "arch": "split_depth", "implementation": "cuda", "images_per_second": images,
         "peak_bytes": gib * 2**30, **changes},
    ]  # fmt: skip


def test_bars_of_training_are_against_the_faster_dense():
    bars = gpu_bars.training_bars([*training_records(30.0, 11.0), *training_records(29.0, 12.0, edge=128, batch=4)])
    assert [(bar.found, bar.held) for bar in bars] == [
        (pytest.approx(3.0), True),
        (pytest.approx(0.55), True),
        (pytest.approx(2.9), False),
        (pytest.approx(0.6), False),
    ]  # fmt: skip
    assert "nn.Conv3d, upfirdn cuda" in bars[0].note and "batch 4 against 8" in bars[3].note
    assert [bar.held for bar in gpu_bars.training_bars(training_records(30.0, 11.0))] == [True, True, None, None]
    lower = [{**r, "precision": "tf32"} for r in training_records(30.0, 11.0)]
    assert {bar.held for bar in gpu_bars.training_bars(lower)} == {None}


def bound_record(milliseconds: float, **changes) -> dict:
    return {**ABOUT, "tensor": "8x64x64^3", "kernel": "filter", "implementation": "cuda", "ceilings": CEILINGS,
            "seconds": {"median": milliseconds / 1e3}, "bytes": 3e9, **changes}  # fmt: skip


def test_the_bar_of_memory_is_the_least_share_of_a_copy():
    good, slow = bound_record(1.25), bound_record(2.0, kernel="gradient")  # 3 GB at 3 TB/s are 1 ms
    other = bound_record(100.0, implementation="triton")
    assert (gpu_bars.memory_bound_bar([good, other]).found, gpu_bars.memory_bound_bar([good]).held) == (
        pytest.approx(0.8), True
    )  # fmt: skip
    missed = gpu_bars.memory_bound_bar([good, slow])
    assert missed.found == pytest.approx(0.5) and missed.held is False and "gradient, 8x64x64^3" in missed.note
    failed = {k: v for k, v in bound_record(1.0).items() if k != "seconds"} | {"error": "wrong"}
    assert gpu_bars.memory_bound_bar([good, failed]).held is None
    assert gpu_bars.memory_bound_bar([]).held is None


def test_the_summary_has_the_bars_and_the_further_tables(tmp_path, capsys):
    upsampling = [
        {
            **ABOUT,
            "level": "8x128->64x32^3",
            "of": "section 8",
            "kernels": "dense",
            "way": way,
            "seconds": {"median": s},
        }
        for way, s in (("two steps", 0.5e-3), ("phases", 1.5e-3))
    ] + [{**ABOUT, "level": "8x128->64x32^3", "of": "section 8", "kernels": "grouped", "error": "they differ"}]
    files = {
        "layers": layer_records(GOOD),
        "training": [],
        "memory-bound": [bound_record(1.25), bound_record(1.0, implementation="triton", tensor="1x2x3^3")],
        "upsampling": upsampling,
    }
    for name, records in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert gpu_report.write(tmp_path) == 0
    text = capsys.readouterr().out
    for line in (
        "| split_depth, forward, against dense | >= 2.5 | 2.60 | held | plain 2.60; scaled 2.60 |",
        "| training, brain at 128^3, peak memory against dense | <= 0.55 |  | no figure |  |",
        "| kernel | by | 8x64x64^3 | 1x2x3^3 |",
        "| filter | cuda | 80 % |  |",
        "| filter | triton |  | 100 % |",
        "| 8x128->64x32^3 | section 8 | dense | 0.500 | 1.500 | 3.00 |",
        "| 8x128->64x32^3 | section 8 | grouped | they differ |  |  |",
    ):
        assert line in text.splitlines(), line
    assert "14 held, 1 missed, 4 without enough figures" in text
    assert "Warning" not in text
    (tmp_path / "environment.json").write_text(json.dumps(ENVIRONMENT))
    assert gpu_report.write(tmp_path) == 0
    assert "Warning: cuDNN 9.10" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- what memory limits

SIZES = ((2, 4, 5), (1, 6, 4))


def run_bound(path, backends, dtype=torch.float32) -> list[dict]:
    failed = gpu_memory_bound.run(
        path, head=ABOUT, device=HostDevice(), place="cpu", ceiling=Ceilings(**CEILINGS), backends=backends,
        dtype=dtype, sizes=SIZES, budget=0.1,
    )  # fmt: skip
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert failed == sum("error" in r for r in records)
    return records


def test_kernels_that_memory_limits_are_measured_by_every_backend(tmp_path, capsys):
    records = run_bound(tmp_path / "lines", ["reference", "cpu"])
    kernels = [k.name for k in gpu_memory_bound.kernels(SIZES[0], "cpu", torch.float32)]
    found = [(r["tensor"], r["kernel"], r["implementation"]) for r in records]
    assert found == [(t, k, b) for t in ("2x4x5^3", "1x6x4^3") for k in kernels for b in ("reference", "cpu")]
    assert capsys.readouterr().out.count("of a copy's bytes") == len(records)
    least = {r["kernel"]: r["bytes"] for r in records if r["tensor"] == "1x6x4^3"}
    volume, grown, eighth = 4 * 6 * 64, 4 * 6 * 125, 4 * 6 * 8
    assert list(least.values()) == [
        3 * volume, 4 * volume, volume + grown, volume + grown, volume + eighth, volume + eighth
    ]  # fmt: skip


def test_a_kernel_that_is_wrong_or_fails_is_said_and_not_timed(tmp_path, monkeypatch):
    class Wrong:
        def __getattr__(self, name):
            if name == "upfirdn":
                return lambda x, taps, *rest: 1.05 * reference.upfirdn(x, taps, *rest)

            def gradient(*args):
                gz, gbias, *rest = reference.epilogue_backward(*args)
                return gz, 1.05 * gbias, *rest  # the sums count, too

            return gradient

    monkeypatch.setattr(gpu_memory_bound, "implementation", lambda name: {"wrong": Wrong()}[name])
    records = run_bound(tmp_path / "lines", ["wrong", "nonsense"])
    assert len(records) == 2 * 6 * 2 and all("error" in r for r in records)
    assert sum("differs from the reference by 0.05" in r["error"] for r in records) == 12


def test_a_reference_that_fails_takes_its_kernel_alone(tmp_path, monkeypatch):
    upfirdn = reference.upfirdn

    def fails(x, taps, up, down, padding):
        if max(up) > 1:
            raise torch.OutOfMemoryError("no room")
        return upfirdn(x, taps, up, down, padding)

    monkeypatch.setattr(gpu_memory_bound.reference, "upfirdn", fails)
    records = run_bound(tmp_path / "lines", ["cpu"])
    assert len(records) == 2 * 6
    assert {r["kernel"]: r["error"] for r in records if "error" in r} == {
        "double and filter": "OutOfMemoryError: no room"
    }


def test_shapes_of_kernels_are_those_of_a_network():
    """The filters give what the tensors of the bytes say: an edge more or less, half or twice."""
    edges = {}
    for kernel in gpu_memory_bound.kernels((1, 2, 8), "cpu", torch.float32):
        edges[kernel.name] = gpu_memory_bound.results(kernel, reference)[0].shape[2]
    assert list(edges.values()) == [8, 8, 8, 9, 4, 8]
