"""Smoke tests of the GPU benchmarks on a CPU: they start, check before they time, write records, and refuse."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import ssconv
from benchmarks.gpu import environment, figures, layers, memory_bound, questions, report, targets, training
from benchmarks.gpu.cases import GPU_LAYERS, gpu_contenders, serving
from benchmarks.gpu.roofline import PASSES, Peaks, Work, table, work
from benchmarks.gpu.timing import HostTimer
from benchmarks.operator.cases import KERNELS, Contender, Layer
from benchmarks.operator.check import WrongResult, check
from ssconv.backend import reference
from ssgan.config.presets import PRESETS
from tests.support.strategies import CONV_CASES

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "acceptance.sh"
HEAD = {"device": "here", "commit": "c1", "torch": "t"}
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")

BACKENDS = serving("cpu")
PEAKS = Peaks(operations_per_second=1e12, bytes_per_second=1e11)
# The kinds of layer of a GPU run, small; odd edges, channels that differ.
TINY = [
    dataclasses.replace(layer, scaled=scaled)
    for scaled in (False, True)
    for layer in (
        Layer(2, 8, 5),
        Layer(3, 4, 4, out_channels=8, stride=2),
        Layer(2, 8, 3, out_channels=4, stride=2, transposed=True),
    )
]


def tiny_contenders(layer: Layer) -> list[Contender]:
    return gpu_contenders(layer, torch.float32, "cpu", BACKENDS, compiled=False)


def records_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --------------------------------------------------------------------------------------------- the acceptance script


def run_script(*parts: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *parts], env={**os.environ, **variables}, capture_output=True, text=True
    )


STUB = """#!/usr/bin/env bash
# Replaces the interpreter: notes its arguments, and fails where $FAILS says so.
echo "$*" >>"$CALLS"
for word in $FAILS; do case "$*" in *"$word"*) exit 1 ;; esac; done
[ -z "${SLEEPS:-}" ] || case "$*" in *"$SLEEPS"*) sleep 30 ;; esac
"""


def run_stub(folder: Path, *parts: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """Runs the script with an interpreter that only notes its calls; gives the finished process and the calls."""
    stub, calls = folder / "python", folder / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)
    names = {"PYTHON": str(stub), "CALLS": str(calls), "OUT": str(folder / "out with a space"), "FAILS": ""}
    return run_script(*parts, **{**names, **variables}), calls.read_text()


@WITHOUT_GPU
def test_without_a_gpu_the_script_refuses_in_one_sentence(tmp_path):
    done = run_script("layers", PYTHON=sys.executable, OUT=str(tmp_path / "out"))
    (sentence,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "out").exists()
    assert sentence.startswith("acceptance: ") and "no CUDA GPU" in sentence and sentence.endswith(".")


def test_the_script_calls_each_part(tmp_path):
    done, calls = run_stub(tmp_path, LAYERS_OPTIONS="--part 1/3 --dtype fp16")
    out = f"{tmp_path}/out with a space"
    assert done.returncode == 0, done.stderr
    for call in (
        "pip install --quiet --no-build-isolation --no-deps -e .",
        f"ssconv verify --report {out}/verify.json",
        "pytest -m gpu",
        f"benchmarks.gpu.layers --out {out}/layers.jsonl --budget 90 --part 1/3 --dtype fp16",
        f"benchmarks.gpu.memory_bound --out {out}/memory-bound.jsonl --budget 6",
        "--budget 40 --presets brain --edges 64 128 --precision bf16 --backends auto --compared",
        f"benchmarks.gpu.report {out}",
    ):
        assert call in calls
    assert "tests/ssconv/test_gpu.py" in calls and "tests/ssgan/training/test_loop.py" not in calls
    limits = re.findall(r"_SECONDS:-(\d+)", SCRIPT.read_text())
    assert len(limits) == 6 and sum(map(int, limits)) < 9 * 60


@pytest.mark.parametrize(
    ("fails", "part"),
    [
        ("benchmarks.gpu.layers", "layers"),
        ("benchmarks.gpu.memory_bound", "layers"),
        ("--compared", "training"),
        ("junitxml", "tests"),
        ("install setup.py", "build"),
        ("verify.json", "verify"),
    ],
)
def test_a_failed_part_is_named_and_the_others_still_run(fails, part, tmp_path):
    done, calls = run_stub(tmp_path, FAILS=fails)
    assert done.returncode == 1 and "benchmarks.gpu.report" in calls
    assert done.stderr.strip().splitlines()[-1] == f"acceptance: failed: {part}"


def test_a_part_is_stopped_at_its_limit_and_must_exist(tmp_path):
    done, _ = run_stub(tmp_path, "layers", SLEEPS="gpu.layers", LAYERS_SECONDS="1")
    assert done.returncode == 1 and "stopped at its limit of 1 s" in done.stderr and "failed: layers" in done.stderr
    unknown = run_script("layers", "nonsense")
    assert unknown.returncode == 64 and "no part 'nonsense'" in unknown.stderr


# ------------------------------------------------------------------------------------------------------ the programs


@WITHOUT_GPU
@pytest.mark.parametrize("program", [layers, training, memory_bound], ids=lambda m: m.__name__)
def test_each_program_refuses_without_a_gpu(program, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        program.main(["--out", str(tmp_path / "x.jsonl")])
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and "no CUDA GPU" in sentence and not list(tmp_path.iterdir())


@pytest.fixture
def on_the_cpu(monkeypatch, graphs_on_a_tape) -> None:
    """Lets the programs find a GPU and compute on the CPU, on tiny layers."""
    card = SimpleNamespace(name="Some GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    for module in (layers, training, memory_bound, environment):
        monkeypatch.setattr(module, "refuse_without_gpu", lambda program: None)
    for module in (layers, training, memory_bound):
        monkeypatch.setattr(module, "DEVICE", "cpu")
        monkeypatch.setattr(module, "CudaTimer", HostTimer)
        monkeypatch.setattr(module, "gpu_backends", lambda: BACKENDS[-1:])
    for module in (layers, memory_bound):
        monkeypatch.setattr(module, "measure_peaks", lambda *arguments: PEAKS)
    monkeypatch.setattr(training, "measure_step", functools.partial(training.measure_step, warmup=1, repeats=1))
    monkeypatch.setattr(memory_bound, "SIZES", ((2, 4, 6),))
    monkeypatch.setattr(layers, "GPU_LAYERS", (TINY[0], TINY[5]))
    monkeypatch.setattr("benchmarks.gpu.cases.serving", lambda device: BACKENDS)
    hyper = dataclasses.replace(PRESETS["demo"].stage_3d, batch=2)
    monkeypatch.setitem(PRESETS, "demo", dataclasses.replace(PRESETS["demo"], shape=(8, 12, 8), stage_3d=hyper))
    monkeypatch.setenv("COMMIT", "c0ffee")


def test_a_run_writes_records_and_a_report(on_the_cpu, tmp_path, capsys):
    options = ["--out", str(tmp_path / "layers.jsonl"), "--no-compile", "--no-profile", "--dtype", "fp32"]
    assert layers.main([*options, "--repeats", "3", "--part", "1/2"]) == 0
    assert layers.main([*options, "--repeats", "3"]) == 0, "the first layer is not measured again"
    found = records_of(tmp_path / "layers.jsonl")
    expected = [
        (n.name, f"{c.kernels}, {c.implementation}", p)
        for n in (TINY[0], TINY[5])
        for c in gpu_contenders(n, torch.float32, "cpu", BACKENDS[-1:], compiled=False)
        for p in PASSES
    ]
    assert sorted((r["layer"], figures.contender(r), r["pass"]) for r in found) == sorted(expected)
    for r in found:
        assert (r["device"], r["commit"], r["kind"]) == ("Some GPU", "c0ffee", "gpu layer")
        assert 0 < r["seconds"]["q10"] <= r["seconds"]["median"] and r["seconds"]["repeats"] == 3
        assert r["roofline_seconds"] == max(r["operations"] / 1e12, r["bytes"] / 1e11)
        assert ("peak_bytes" in r) == (r["pass"] == "full step")

    assert training.main(["--out", str(tmp_path / "training.jsonl"), "--presets", "demo", "--budget", "9999"]) == 0
    lists = training.variants(BACKENDS[-1:])
    found = records_of(tmp_path / "training.jsonl")
    assert [(r["arch"], r["implementation"]) for r in found] == [*lists[0], *lists[1]]
    assert all(r["images_per_second"] > 0 and "average" in r["phases"] for r in found)

    assert memory_bound.main(["--out", str(tmp_path / "memory-bound.jsonl"), "--budget", "0.1"]) == 0
    assert environment.main(["--write", str(tmp_path / "environment.json"), "--build", "none"]) == 0
    about = json.loads((tmp_path / "environment.json").read_text())
    assert about["backends"] == ssconv.backends() and about["build"] == "none" and about["driver"]
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase classname="tests.gpu" name="test_bad"><failure/></testcase></testsuite></testsuites>'
    )
    capsys.readouterr()
    assert environment.main(["--folder"]) == 0
    assert capsys.readouterr().out == "gpu-some-gpu-c0ffee\n"
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "summary.md").read_text()
    for part in (
        TINY[0].name, TINY[5].name, f"split_depth | {BACKENDS[-1]} | 2 |", "| filter and halve | ",
        "memory-bound kernels, share of a copy's bandwidth", "1 passed, 1 failed", "* tests.gpu::test_bad",
    ):  # fmt: skip
        assert part in text
    assert "Missing" not in text and (tmp_path / "layers.png").exists() and (tmp_path / "training.png").exists()


def run_layers(path: Path, budget: float = 60.0) -> int:
    return layers.run(
        TINY[:1], path, head=HEAD, timer=HostTimer(), device="cpu", peaks=PEAKS, dtype="fp32", backends=BACKENDS,
        budget=budget, repeats=3, compiled=False, profiled=False,
    )  # fmt: skip


def test_a_wrong_or_failing_contender_is_named_and_not_timed(tmp_path, monkeypatch):
    def with_bad(*arguments):
        good, *others = tiny_contenders(TINY[0])
        wrong = dataclasses.replace(others[-1], forward=lambda x: others[-1].forward(x) * 1.01)

        def full(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("no room")

        return [good, wrong, dataclasses.replace(others[0], forward=full)]

    monkeypatch.setattr(layers, "gpu_contenders", with_bad)
    assert run_layers(tmp_path / "lines") == 1
    found = records_of(tmp_path / "lines")
    errors = [r["error"] for r in found if "error" in r]
    assert len(errors) == 2 and "output differs" in errors[0] and errors[1] == "out of memory"
    assert {r["implementation"] for r in found if "seconds" in r} == {"nn.Conv3d contiguous"}


def test_a_wrong_memory_bound_kernel_is_named_and_not_timed(tmp_path, monkeypatch):
    wrong = SimpleNamespace(
        upfirdn=lambda x, taps, *rest: 1.05 * reference.upfirdn(x, taps, *rest),
        epilogue_backward=lambda *rest: [None if t is None else 1.05 * t for t in reference.epilogue_backward(*rest)],
    )
    monkeypatch.setattr(memory_bound, "implementation", lambda name: {"wrong": wrong}[name])
    failed = memory_bound.run(
        tmp_path / "lines", head=HEAD, timer=HostTimer(), device="cpu", peaks=PEAKS, backends=["wrong", "missing"],
        dtype=torch.float32, sizes=((2, 4, 5),), budget=0.1,
    )  # fmt: skip
    found = records_of(tmp_path / "lines")
    assert failed == len(found) == 2 * 6 and not any("seconds" in r for r in found)


def test_layers_that_the_budget_does_not_reach_are_recorded(tmp_path):
    run_layers(tmp_path / "lines", budget=0.0)
    assert [(r["layer"], r["skipped"]) for r in records_of(tmp_path / "lines")] == [(TINY[0].name, "out of time")]


def test_the_batch_shrinks_until_it_fits():
    cfg = PRESETS["hippocampus"].train_config("hippocampus")

    def measure(smaller) -> dict:
        if smaller.stage_3d.batch > 2:
            raise torch.OutOfMemoryError("no room")
        return {"batch": smaller.stage_3d.batch}

    assert training.fitting(cfg, measure, lambda: None) == {"asked_batch": 8, "batch": 2}


# ----------------------------------------------------------------------------------------- what is checked and timed


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_every_contender_computes_its_layer(layer):
    for contender in tiny_contenders(layer):
        check(layer, contender, twice=True)


class _Tampered(torch.autograd.Function):
    """The identity, whose gradient is `change`d."""

    @staticmethod
    def forward(ctx, t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None


def _changed(good: Contender, x_of: Callable[[Tensor], Tensor], y_of: Callable[[Tensor], Tensor]) -> Contender:
    return dataclasses.replace(good, forward=lambda x: y_of(good.forward(x_of(x))))


@pytest.mark.faults
@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_the_check_finds_planted_faults(layer):
    good, same = tiny_contenders(layer)[-1], lambda t: t
    faults = {
        "output": (same, lambda y: y * 1.001),
        "output|input gradient": (lambda x: x.flip(4), same),
        "input gradient": (lambda x: _Tampered.apply(x, lambda g: g * 1.001), same),
        "second": (lambda x: _Tampered.apply(x, lambda g: 2 * g - g.detach()), same),
        "shape": (same, lambda y: y[:, :, :1]),
    }
    for what, (x_of, y_of) in faults.items():
        with pytest.raises(WrongResult, match=what):
            check(layer, _changed(good, x_of, y_of), twice=True)
    if not layer.scaled or layer.stride > 1:
        return
    for which, name in enumerate(("in_scale", "out_scale")):
        tampered = list(good.scales)
        tampered[which] = _Tampered.apply(good.scales[which], lambda g: g * 1.01)
        *weights, bias = good.parameters

        def forward(x: Tensor, weights=tuple(weights), bias=bias, scales=tuple(tampered)) -> Tensor:
            options = {"in_scale": scales[0], "out_scale": scales[1], "activation": "lrelu", "backend": "reference"}
            return ssconv.split_shuffle_conv3d(x, weights, bias, **options)

        with pytest.raises(WrongResult, match=f"{name} gradient"):
            check(layer, dataclasses.replace(good, forward=forward))


def test_the_other_kernels_are_contenders_too(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.cases.hopper_state", lambda device: "available")
    found = gpu_contenders(TINY[0], torch.bfloat16, "cpu", ("cuda",), compiled=False)
    names = {c.implementation for c in found if c.implementation.startswith("ssconv cuda, ")}
    assert names == {f"ssconv cuda, {v}" for v in ("sm_80", "im2col", "cluster", "halo", "halo swizzled")}


@pytest.mark.parametrize("case", [c for c in CONV_CASES.values() if len(c.kernels) == 1 and None not in c.kernels])
def test_the_plain_convolution_of_training_is_the_operator(case):
    plain = SimpleNamespace(
        split_shuffle_conv3d=lambda *a, shuffle, backend, **options: training.plain_conv3d(*a, **options)
    )
    tensors = {n: torch.tensor(a) for n, a in case.arrays().items()}
    torch.testing.assert_close(case.call(plain, tensors), case.call(ssconv, tensors))


def test_the_roofline_by_hand():
    """(2, 8, 4^3) -> 8: 1,024 values in and out, 128 centres; dense has 1,728 weights, split_depth 576."""
    layer = Layer(2, 8, 4)
    assert work(layer, "dense", "forward", 2) == Work(2 * 128 * 1728, 2 * (1024 + 1728 + 1024))
    assert work(layer, "split_depth", "forward", 2) == Work(2 * 128 * 576, 2 * (1024 + 576 + 1024))
    assert work(layer, "grouped", "input gradient", 4) == Work(2 * 128 * 864, 4 * (3 * 1024 + 864))
    up = work(Layer(1, 4, 2, out_channels=2, stride=2, transposed=True), "dense", "forward", 2)
    assert up == Work(2 * 8 * 216, 2 * (2 * 64 + 216 + 4 * 8))
    assert Work(100, 10).seconds(Peaks(50.0, 10.0)) == 2.0 and Work(100, 30).seconds(Peaks(50.0, 10.0)) == 3.0
    assert table().count("\n") == 1 + len(GPU_LAYERS) // 2 * len(KERNELS)


# ----------------------------------------------------------------------------------------------------------- targets


def target_records(ms: dict[str, float]) -> list[dict]:
    """Dense takes 12 ms, the compiled rival 10 ms, ours `ms` by kernel set; the roofline of all is 3 ms."""
    costs = {("dense", "nn.Conv3d channels_last"): 12.0, ("grouped", targets.COMPILED): 10.0}
    costs |= {(kernels, targets.OURS): value for kernels, value in ms.items()}
    return [
        {**HEAD, "layer": layer.name, "kernels": kernels, "implementation": implementation, "pass": what,
         "dtype": "bf16", "seconds": {"median": cost / 1e3}, "roofline_seconds": 3e-3}
        for layer in GPU_LAYERS
        for (kernels, implementation), cost in costs.items()
        for what in (targets.FORWARD, targets.STEP)
    ]  # fmt: skip


def test_targets_of_layers_are_judged():
    some = target_records({"split_depth": 4.0, "grouped": 3.0, "dense": 15.0})
    found = {t.what: t for t in targets.layer_targets(some)}
    for what, value, met in (
        ("split_depth, forward, against dense", 3.0, True),
        ("grouped, full step, against torch.compile", 10 / 3, True),
        ("dense, no layer slower than dense", 0.8, False),
        ("split_depth, share of the roofline from 128 channels", 0.75, True),
        ("dense, share of the roofline from 128 channels", 0.2, False),
    ):
        assert found[what].found == pytest.approx(value) and found[what].met is met
    less = [r for r in some if r["layer"] != GPU_LAYERS[3].name]
    found = {t.what: t for t in targets.layer_targets(less)}
    assert found["split_depth, forward, against dense"].met is None, "a layer is missing"
    assert found["dense, no layer slower than dense"].met is False, "a least that fails is judged"
    assert all(t.met is None for t in targets.layer_targets([]))


def test_the_first_table_answers_what_only_a_card_can_say(tmp_path):
    assert questions.report(tmp_path) == []
    ms = {"im2col": 4.0, "halo": 2.0, "halo swizzled": 1.0}
    layers_found = [
        {**r, "implementation": f"ssconv cuda, {label}", "seconds": {"median": cost / 1e3}}
        for label, cost in ms.items()
        for r in target_records({"split_depth": 1.0})
        if r["implementation"] == targets.OURS
    ]
    (tmp_path / "layers.jsonl").write_text("\n".join(map(json.dumps, layers_found)) + "\n")
    _, before = questions.report(tmp_path)
    assert before.splitlines()[2].count(questions.OPEN) == 1, "without a verdict"
    trusted = {"verdict": "trusted", "reason": "", "checks": 40, "largest_error": 0.0, "seconds": 1.0}
    wrong = trusted | {"verdict": "failed", "reason": "convolve, bf16: off"}
    verdicts = {"sm90_im2col": trusted, "sm90_halo": trusted, "sm90_halo_swizzled": wrong}
    (tmp_path / "verify.json").write_text(json.dumps({"identity": {}, "verdicts": verdicts}))
    _, text = questions.report(tmp_path)
    rows = text.splitlines()[2:]
    assert len(rows) == 5 and questions.OPEN not in text
    assert "trusted (40 checks)" in rows[0] and "halo 2.00 times im2col" in rows[0]
    assert "failed (convolve, bf16: off)" in rows[1] and "halo swizzled 4.00 times im2col" in rows[1]
    assert "halo 0.50 times halo swizzled" in rows[3] and "im2col: " in rows[4] and "75 %" in rows[4]
