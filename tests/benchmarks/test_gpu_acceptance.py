"""The acceptance script, its run and its report, as far as a machine without a GPU can show them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import ssconv
from benchmarks.gpu import environment as gpu_environment
from benchmarks.gpu import figures as gpu_figures
from benchmarks.gpu import layers as gpu_run
from benchmarks.gpu import memory_bound as gpu_memory_bound
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.cases import PASSES, gpu_contenders
from benchmarks.gpu.environment import cudnn_warning, folder
from benchmarks.gpu.timing import HostDevice
from benchmarks.operator import report
from benchmarks.operator.cases import Layer
from ssgan.config.training import PRESETS
from tests.support.gpu_stand_ins import BACKENDS, CEILING, TINY, FakeDevice, good_contender, tiny_contenders

ROOT = Path(__file__).parents[2]
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")


# ------------------------------------------------------------------------------------------------ refusal


@WITHOUT_GPU
@pytest.mark.parametrize("parts", [[], ["build"], ["tests"], ["layers"], ["training", "report"]], ids=str)
def test_without_a_gpu_the_script_says_so_and_does_nothing(parts, tmp_path):
    out = tmp_path / "results"
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "acceptance.sh"), *parts],
        env={**os.environ, "PYTHON": sys.executable, "OUT": str(out)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stdout == "" and not out.exists()
    (sentence,) = run.stderr.strip().splitlines()
    assert sentence.startswith("gpu_acceptance: ") and "no CUDA GPU" in sentence and sentence.endswith(".")


def test_the_script_knows_its_parts():
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "acceptance.sh"), "layers", "nonsense"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 64 and "no part 'nonsense'" in run.stderr


STUB = """#!/usr/bin/env bash
# Stands for the interpreter: says what it was called with, and fails where $FAILS says so.
echo "$*" >>"$CALLS"
case "$*" in
  *gpu_environment*--folder*) echo gpu-none-0 ;;
  *gpu_environment*--write*) echo '{}' >"$OUT/environment.json" ;;
esac
for word in $FAILS; do case "$*" in *"$word"*) exit 1 ;; esac; done
[ -z "${SLEEPS:-}" ] || case "$*" in *"$SLEEPS"*) sleep 30 ;; esac
"""


def run_with_stub(tmp_path: Path, *parts: str, fails: str = "", **environment: str):
    """The script with an interpreter that only pretends; gives the finished process and the calls."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    out = tmp_path / "out with a space"
    names = {"PYTHON": str(stub), "CALLS": str(calls), "OUT": str(out), "FAILS": fails}
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu" / "acceptance.sh"), *parts],
        env={**os.environ, **names, **environment},
        capture_output=True,
        text=True,
    )
    return run, calls.read_text()


def test_the_script_runs_every_part_and_its_limits_fit():
    text = (ROOT / "benchmarks" / "gpu" / "acceptance.sh").read_text()
    limits = [int(line.split(":-")[1].split("}")[0]) for line in text.splitlines() if "_SECONDS:-" in line]
    assert len(limits) == 5 and sum(limits) < 9 * 60


def test_the_script_calls_each_part(tmp_path):
    run, calls = run_with_stub(tmp_path, LAYERS_OPTIONS="--part 1/3 --dtype fp16")
    assert run.returncode == 0, run.stderr
    for call in ("pip install --quiet --no-build-isolation --no-deps -e .", "pytest -m gpu", "benchmarks.gpu.training"):
        assert call in calls
    assert (
        f"benchmarks.gpu.layers --out {tmp_path}/out with a space/layers.jsonl --budget 110 --part 1/3 --dtype fp16"
        in calls
    )
    assert f"benchmarks.gpu.upsampling --out {tmp_path}/out with a space/upsampling.jsonl --budget 10" in calls
    assert f"benchmarks.gpu.memory_bound --out {tmp_path}/out with a space/memory-bound.jsonl --budget 6" in calls
    assert "--budget 44 --presets brain --edges 64 128 --precision bf16 --backends cuda --compared" in calls
    assert "tests/ssconv/test_gpu.py" in calls and "tests/ssgan/training/test_loop.py" not in calls
    assert "benchmarks.operator.report" in calls


@pytest.mark.parametrize(
    ("fails", "named"),
    [
        ("benchmarks.gpu.layers", "layers"),
        ("benchmarks.gpu.upsampling", "layers"),
        ("benchmarks.gpu.memory_bound", "layers"),
        ("--compared", "training"),
        ("-m\\ pytest", "tests"),
        ("'hypothesis'", "tests"),
        ("install setup.py", "build"),
    ],
)
def test_a_failing_part_is_named_and_the_others_still_run(fails, named, tmp_path):
    run, calls = run_with_stub(tmp_path, fails=fails.replace("-m\\ pytest", "junitxml"))
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == f"gpu_acceptance: failed: {named}"
    assert "benchmarks.operator.report" in calls
    if "hypothesis" in fails:
        assert "hypothesis is not installed" in run.stderr


def test_a_build_that_pip_cannot_do_is_done_by_setup_py(tmp_path):
    run, calls = run_with_stub(tmp_path, "build", fails="install")
    assert run.returncode == 0 and "setup.py build_ext --inplace" in calls


def test_a_part_that_takes_too_long_is_stopped(tmp_path):
    run, _ = run_with_stub(tmp_path, "layers", SLEEPS="gpu_run", LAYERS_SECONDS="1")
    assert run.returncode == 1
    assert "stopped at its limit of 1 s" in run.stderr and "failed: layers" in run.stderr


@WITHOUT_GPU
@pytest.mark.parametrize(
    "main", [m.main for m in (gpu_run, gpu_training, gpu_memory_bound)], ids=lambda m: m.__module__
)
def test_each_measurement_refuses_too(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "x.jsonl")])
    assert caught.value.code == 2 and "no CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cudnn_is_warned_about_by_release():
    assert cudnn_warning(91501) is None and cudnn_warning(91500) is None and cudnn_warning(100000) is None
    assert "9.10" in cudnn_warning(91002) and "no cuDNN" in cudnn_warning(None)
    assert folder("NVIDIA H100 80GB HBM3", "abc-dirty") == "gpu-nvidia-h100-80gb-hbm3-abc-dirty"


# --------------------------------------------------------------------------------- the run, on this machine


def run_layers(path: Path, layers: list[Layer], **changes) -> int:
    options = {
        "head": {"device": "here", "commit": "c1", "torch": "t"}, "device": HostDevice(), "place": "cpu",
        "ceiling": CEILING, "dtype": "fp32", "backends": BACKENDS, "budget": 60.0, "repeats": 3, "compiled": False,
        "profiled": False,
    }  # fmt: skip
    return gpu_run.run(layers, path, **{**options, **changes})


def test_a_run_measures_every_contender_and_pass_and_goes_on_where_it_was(tmp_path):
    path = tmp_path / "layers.jsonl"
    layers = [TINY[0], TINY[7]]
    assert run_layers(path, layers[:1]) == 0
    first = path.read_text()
    assert run_layers(path, layers) == 0
    assert path.read_text().startswith(first)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(r["layer"], f"{r['kernels']}/{r['implementation']}", r["pass"]) for r in records]
    expected = [(n.name, c.name, what) for n in layers for c in tiny_contenders(n) for what in PASSES]
    assert sorted(found) == sorted(expected)
    for r in records:
        assert r["kind"] == "gpu layer" and r["device"] == "here" and r["ceilings"] == vars(CEILING)
        assert 0 < r["seconds"]["q10"] <= r["seconds"]["median"] and r["seconds"]["repeats"] == 3
        assert r["floor_seconds"] == max(r["operations"] / 1e12, r["bytes"] / 1e11)
        assert ("peak_bytes" in r) == (r["pass"] == "full step")

    assert run_layers(path, layers[:1], head={"device": "here", "commit": "c2"}) == 0
    assert len(path.read_text().splitlines()) > len(records), "another commit is measured anew"


@pytest.fixture
def a_card(monkeypatch, graphs_on_a_tape) -> None:
    """Lets the commands believe in a GPU and compute on the CPU."""
    card = SimpleNamespace(
        name="Fictitious GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**30, L2_cache_size=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    for module in (gpu_run, gpu_training, gpu_memory_bound, gpu_environment):
        monkeypatch.setattr(module, "refuse_without_gpu", lambda program: None)
    for module in (gpu_run, gpu_training, gpu_memory_bound):
        monkeypatch.setattr(module, "PLACE", "cpu")
        monkeypatch.setattr(module, "CudaDevice", HostDevice)
        monkeypatch.setattr(module, "gpu_backends", lambda: BACKENDS[-1:])
    for module in (gpu_run, gpu_memory_bound):
        monkeypatch.setattr(module, "ceilings", lambda *arguments: CEILING)
    monkeypatch.setattr(gpu_memory_bound, "SIZES", ((2, 4, 6),))
    monkeypatch.setattr(gpu_run, "GPU_LAYERS", tuple(TINY[:3]))
    monkeypatch.setenv("COMMIT", "c0ffee")


def test_the_other_products_are_contenders_of_their_own_where_those_of_sm_90a_serve(monkeypatch):
    layer = TINY[0]
    monkeypatch.setattr("benchmarks.gpu.cases.hopper_state", lambda device: "available")
    found = gpu_contenders(layer, torch.bfloat16, "cpu", ("cuda",), compiled=False)
    names = [c.implementation for c in found if c.implementation.startswith("ssconv")]
    kinds = [f"ssconv cuda{v}" for v in (", halo swizzled", ", im2col", "", ", sm_80") for _ in range(3)]
    assert names == [*kinds, "ssconv cuda, cluster 1", "ssconv cuda, cluster 2"]
    strided = gpu_contenders(dataclasses.replace(layer, stride=2), torch.bfloat16, "cpu", ("cuda",), compiled=False)
    assert not any("halo" in c.implementation or "im2col" in c.implementation for c in strided)
    assert not any("sm_80" in c.implementation for c in gpu_contenders(layer, torch.float32, "cpu", ("cuda",), False))

    said = []
    plain = good_contender(layer)
    contender = dataclasses.replace(
        plain,
        forward=lambda x: (said.append(os.environ.get("SSCONV_HOPPER")), plain.forward(x))[1],
        environment=next(c for c in found if "sm_80" in c.implementation).environment,
    )
    data = gpu_run.inputs(layer, contender)
    for what in PASSES:
        said.clear()
        gpu_run.prepared(contender, what, data)()()
        assert set(said) == {"0"} and "SSCONV_HOPPER" not in os.environ
    monkeypatch.setenv("SSCONV_HOPPER", "1")
    gpu_run.prepared(contender, "forward", data)()()
    assert os.environ["SSCONV_HOPPER"] == "1"


def test_the_commands_from_end_to_end(a_card, tmp_path, monkeypatch, capsys):
    hyper = dataclasses.replace(PRESETS["demo"].stage_3d, batch=4)
    small = dataclasses.replace(PRESETS["demo"], shape=(8, 12, 8), stage_3d=hyper)
    monkeypatch.setitem(PRESETS, "demo", small)
    monkeypatch.setattr("benchmarks.gpu.cases.serving", lambda device: BACKENDS)
    out = tmp_path / "gpu"
    options = ["--out", str(out / "layers.jsonl"), "--no-compile", "--no-profile", "--dtype", "fp32", "--repeats", "3"]
    assert gpu_run.main([*options, "--part", "1/2"]) == 0
    first = gpu_figures.lines(out / "layers.jsonl")
    assert {r["layer"] for r in first} == {TINY[0].name, TINY[2].name}
    assert {(r["device"], r["commit"], r["kind"]) for r in first} == {("Fictitious GPU", "c0ffee", "gpu layer")}
    assert gpu_run.main([*options, "--part", "2/2"]) == 0
    assert gpu_training.main(["--out", str(out / "training.jsonl"), "--presets", "demo", "--budget", "30"]) == 0
    assert gpu_memory_bound.main(["--out", str(out / "memory-bound.jsonl"), "--budget", "0.1"]) == 0
    assert gpu_environment.main(["--write", str(out / "environment.json"), "--build", "none"]) == 0
    about = json.loads((out / "environment.json").read_text())
    assert about["backends"] == ssconv.backends() and about["build"] == "none" and about["driver"]
    capsys.readouterr()
    assert gpu_environment.main(["--folder"]) == 0
    assert capsys.readouterr().out == "gpu-fictitious-gpu-c0ffee\n"
    assert report.main([str(out)]) == 0
    text = (out / "summary.md").read_text()
    for layer in TINY[:3]:
        assert layer.name in text
    assert f"split_depth | {BACKENDS[-1]} | 4 |" in text and "Not there: tests.xml, upsampling.jsonl." in text
    assert "| filter and halve | " in text and "memory-bound kernels, share of a copy's bandwidth" in text
    assert (out / "layers.png").exists() and (out / "training.png").exists()


@pytest.mark.parametrize("options", [["--part", "3/2"], ["--dtype", "int8"], ["--layers", "nonsense"]], ids=str)
def test_options_that_cannot_be(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu_run.main(["--out", str(tmp_path / "x"), *options])
    assert caught.value.code == 2 and "error:" in capsys.readouterr().err


def test_what_the_budget_does_not_reach_is_recorded(tmp_path):
    path = tmp_path / "layers.jsonl"
    run_layers(path, TINY[:2], budget=0.0)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["layer"], r["skipped"]) for r in records] == [(n.name, "out of time") for n in TINY[:2]]


def test_a_wrong_or_failing_contender_is_named_and_not_timed(tmp_path, monkeypatch):
    def with_bad(*args):
        good, *others = tiny_contenders(TINY[0])
        wrong = dataclasses.replace(others[-1], forward=lambda x: others[-1].forward(x) * 1.01)

        def full(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no room")

        return [good, wrong, dataclasses.replace(others[0], forward=full)]

    monkeypatch.setattr(gpu_run, "gpu_contenders", with_bad)
    path = tmp_path / "layers.jsonl"
    assert run_layers(path, TINY[:1]) == 1
    records = [json.loads(line) for line in path.read_text().splitlines()]
    errors = [r["error"] for r in records if "error" in r]
    assert len(errors) == 2 and "WrongResult" in errors[0] and "output differs" in errors[0]
    assert errors[1] == "out of memory"
    assert {r["implementation"] for r in records if "seconds" in r} == {"nn.Conv3d contiguous"}


def test_the_compiled_contender_is_timed_as_a_whole_only():
    compiled = gpu_contenders(TINY[0], torch.float32, "cpu", (), compiled=True)[-1]
    assert compiled.implementation.endswith("compiled")
    assert gpu_run.passes_of(compiled) == ["forward", "full step"]
    assert gpu_run.passes_of(good_contender(TINY[0])) == list(PASSES)


def test_the_passes_give_the_gradients_they_are_named_after():
    layer = TINY[4]
    contender = good_contender(layer)
    data = gpu_run.inputs(layer, contender)
    shapes = {w: [tuple(t.shape) for t in gpu_run.prepared(contender, w, data)()()] for w in PASSES[1:]}
    weights = [tuple(p.shape) for p in contender.parameters]
    assert shapes["input gradient"] == [layer.shape] and shapes["weight gradient"] == weights
    assert shapes["full step"] == [layer.shape, *weights, (2, 8), (2, 8)]
    assert shapes["double backward"] == [*weights[:-1], layer.out_shape]
    assert gpu_run.prepared(contender, "forward", data)()().shape == layer.out_shape
    assert gpu_run.peak_bytes(contender, data, FakeDevice()) == 250


def test_the_switches_of_a_run_are_put_back():
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    with gpu_run.precision("tf32"):
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, True, True)
    with gpu_run.precision("bf16"):
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (True, False, False)
    assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == before


# ------------------------------------------------------------------------------------------------- report

ABOUT = {
    "device": "Fictitious GPU", "commit": "abc", "torch": "2", "memory_bytes": 80 * 2**30, "driver": "1", "cuda": "13",
    "cudnn": 91501, "python": "3.12", "triton": "3", "date": "today",
}  # fmt: skip


def layer_records() -> list[dict]:
    """Two layers, forward and full step. Milliseconds by contender, and a floor of 1 ms for all."""
    milliseconds = {
        ("dense", "nn.Conv3d contiguous"): (10.0, 20.0),
        ("dense", "nn.Conv3d channels_last"): (8.0, 24.0),
        ("dense", "modulated, groups=N"): (1.0, 1.0),  # not the yardstick, however fast
        ("split_depth", "ssconv x"): (2.0, 40.0),
    }
    records = []
    for (kernels, implementation), times in milliseconds.items():
        for layer, t in zip(("L1", "L2"), times, strict=True):
            common = {
                "kind": "gpu layer", **ABOUT, "layer": layer, "kernels": kernels, "implementation": implementation,
                "dtype": "bf16", "ceilings": {"operations_per_second": 5e14, "bytes_per_second": 3e12},
                "floor_seconds": 1e-3,
            }  # fmt: skip
            records.append({**common, "pass": "forward", "seconds": {"median": t / 1e3}})
            whole = {**common, "pass": "full step", "seconds": {"median": 3 * t / 1e3}}
            records.append({**whole, "peak_bytes": int(t * 2**20), "device_kernels": ["sm90_kernel"]})
    records.append({**records[0], "seconds": None, "kernels": "grouped", "error": "WrongResult: x"})
    del records[-1]["seconds"]
    return [*records, {"kind": "gpu layer", **ABOUT, "layer": "L3", "dtype": "bf16", "skipped": "out of time"}]


def training_records() -> list[dict]:
    common = {
        "kind": "gpu training", **ABOUT, "preset": "demo", "shape": [16, 24, 16], "precision": "tf32", "batch": 4,
        "asked_batch": 4, "step_seconds": 1.0, "g_step_seconds": 0.25, "d_step_seconds": 0.5, "parameters": 1234567,
        "peak_bytes": 3 * 2**29,
    }  # fmt: skip
    return [
        {**common, "arch": "dense", "implementation": "nn.Conv3d", "images_per_second": 10.0},
        {**common, "arch": "split_depth", "implementation": "x", "images_per_second": 25.0, "batch": 2},
        {**common, "arch": "dense", "implementation": "x", "skipped": "out of time", "step_seconds": None},
    ]


def write_folder(path: Path) -> Path:
    path.mkdir()
    training = training_records()
    del training[-1]["step_seconds"]
    for name, records in (("layers.jsonl", layer_records()), ("training.jsonl", training)):
        (path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / "environment.json").write_text(json.dumps({**ABOUT, "build": "pip", "missing": ["nibabel"]}))
    (path / "tests.xml").write_text(
        '<testsuites><testsuite tests="5" failures="1" errors="0" skipped="2">'
        '<testcase classname="tests.ssconv.test_gpu" name="test_bad"><failure/></testcase>'
        '<testcase classname="tests.ssconv.test_gpu" name="test_good"/></testsuite></testsuites>'
    )
    return path


def test_the_report_is_the_table_computed_by_hand(tmp_path, capsys):
    source = write_folder(tmp_path / "gpu-x")
    assert report.main([str(source)]) == 0
    text = (source / "summary.md").read_text()
    assert text in capsys.readouterr().out
    for line in (
        "| forward | L1 | L2 | geometric mean |",
        "| best dense nn.Conv3d, ms | 8 (12 %) | 20 (5 %) |  |",
        "| dense, nn.Conv3d contiguous | 0.80 (10 %) | 1.00 (5 %) | 0.89 |",
        "| split_depth, ssconv x | 4.00 (50 %) | 0.50 (2 %) | 1.41 |",
        "| full step | L1 | L2 | geometric mean |",
        "| best dense nn.Conv3d, ms | 24 (4 %) | 60 (2 %) |  |",
        "| best dense nn.Conv3d, MiB | 8 | 20 |  |",
        "| split_depth, ssconv x | 4.00 | 0.50 | 1.41 |",
        "* L1, grouped, nn.Conv3d contiguous, forward: WrongResult: x",
        "* L3 in bf16: out of time",
        "* L1, dense, nn.Conv3d channels_last: `sm90_kernel`",
        "| demo | 16x24x16 | tf32 | dense | nn.Conv3d | 4 | 10.0 | 1.00 | 250.0 | 500.0 | 1.50 | 1,234,567 |",
        "| demo | 16x24x16 | tf32 | split_depth | x | 2 (4 did not fit) | 25.0 | 2.50 | 250.0 | 500.0 | 1.50 | 1,234,567 |",  # noqa: E501
        "* demo, 16x24x16, tf32, dense, x: out of time",
        "2 passed, 1 failed, 0 could not start, 2 skipped.",
        "* tests.ssconv.test_gpu::test_bad",
        "* not installed: nibabel",
    ):
        assert line in text.splitlines(), line
    assert "500 TFLOP/s" in text and "3.00 TB/s" in text
    # forward, full step and peak memory: three panels
    assert Image.open(source / "layers.png").size == (1600, round(100 * (1.6 + 3 * 3.0)))
    assert Image.open(source / "training.png").size == (1600, 460)
    assert np.asarray(Image.open(source / "layers.png").convert("L")).std() > 10, "an empty picture"


def test_a_file_of_a_gpu_run_is_known_by_its_records(tmp_path, capsys):
    source = write_folder(tmp_path / "gpu-x")
    assert report.main([str(source / "layers.jsonl")]) == 0
    assert (source / "summary.md").exists() and "Fictitious GPU" in capsys.readouterr().out


def test_what_is_missing_or_damaged_is_said(tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert report.main([str(empty)]) == 1
    files = "environment.json, tests.xml, layers.jsonl, memory-bound.jsonl, upsampling.jsonl, training.jsonl"
    assert f"Not there: {files}." in capsys.readouterr().out
    (empty / "layers.jsonl").write_text('{"commit": 1, "device": 2}\n{"a"\n')
    with pytest.raises(SystemExit):
        report.main([str(empty)])
    assert "layers.jsonl, line 2: not JSON" in capsys.readouterr().err


def test_only_the_last_commits_figures_are_reported(tmp_path):
    path = tmp_path / "layers.jsonl"
    old = [{**r, "commit": "old"} for r in layer_records()[:2]]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*old, *layer_records()]))
    assert {r["commit"] for r in gpu_figures.lines(path)} == {"abc"}
