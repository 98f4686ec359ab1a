"""What a GPU run consists of, as far as a machine without a GPU can show it: everything but the GPU's own times."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gpu_checks
import ssconv
from benchmarks import gpu_environment, gpu_report, gpu_run, gpu_training, report
from benchmarks.cases import KERNELS, Contender, Layer
from benchmarks.check import WrongResult, check
from benchmarks.gpu_cases import GPU_LAYERS, PASSES, Work, gpu_contenders, part, serving, work
from benchmarks.gpu_environment import cudnn_warning, folder
from benchmarks.gpu_timing import Ceilings, CudaDevice, HostDevice, ceilings, measure_on
from ssgan import gan as gan_module
from ssgan import graphs
from ssgan.config import PRESETS
from strategies import CONV_CASES
from tests.tape import TapeRecorder

ROOT = Path(__file__).parent.parent
WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
BACKENDS = [name for name in serving("cpu")]
CEILING = Ceilings(operations_per_second=1e12, bytes_per_second=1e11)

# The kinds of layer of a GPU run, in extents that a CPU does at once; odd edges, channels that differ.
TINY = [
    dataclasses.replace(layer, scaled=scaled)
    for scaled in (False, True)
    for layer in (
        Layer(2, 8, 5),
        Layer(2, 8, 5, out_channels=4, stride=2),
        Layer(3, 4, 4, out_channels=8, stride=2),
        Layer(2, 8, 3, out_channels=4, stride=2, transposed=True),
    )
]


def all_variants(backends: list[str]) -> list[tuple[str, str]]:
    return list(itertools.chain(*gpu_training.variants(backends)))


def tiny_contenders(layer: Layer, dtype: torch.dtype = torch.float32) -> list[Contender]:
    return gpu_contenders(layer, dtype, "cpu", BACKENDS, compiled=False)


# ------------------------------------------------------------------------------------------------ refusal


@WITHOUT_GPU
@pytest.mark.parametrize("parts", [[], ["build"], ["tests"], ["layers"], ["training", "report"]], ids=str)
def test_without_a_gpu_the_script_says_so_and_does_nothing(parts, tmp_path):
    out = tmp_path / "results"
    run = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu_acceptance.sh"), *parts],
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
        ["bash", str(ROOT / "benchmarks" / "gpu_acceptance.sh"), "layers", "nonsense"], capture_output=True, text=True
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
        ["bash", str(ROOT / "benchmarks" / "gpu_acceptance.sh"), *parts],
        env={**os.environ, **names, **environment},
        capture_output=True,
        text=True,
    )
    return run, calls.read_text()


def test_the_script_runs_every_part_and_its_limits_fit():
    text = (ROOT / "benchmarks" / "gpu_acceptance.sh").read_text()
    limits = [int(line.split(":-")[1].split("}")[0]) for line in text.splitlines() if "_SECONDS:-" in line]
    assert len(limits) == 5 and sum(limits) < 9 * 60


def test_the_script_calls_each_part(tmp_path):
    run, calls = run_with_stub(tmp_path, LAYERS_OPTIONS="--part 1/3 --dtype fp16")
    assert run.returncode == 0, run.stderr
    for call in ("pip install --quiet --no-build-isolation --no-deps -e .", "pytest -m gpu", "benchmarks.gpu_training"):
        assert call in calls
    assert (
        f"benchmarks.gpu_run --out {tmp_path}/out with a space/layers.jsonl --budget 140 --part 1/3 --dtype fp16"
        in calls
    )
    assert "tests/test_gpu.py" in calls and "tests/test_trainer.py" not in calls
    assert "benchmarks.report" in calls


@pytest.mark.parametrize(
    ("fails", "named"),
    [
        ("benchmarks.gpu_run", "layers"),
        ("-m\\ pytest", "tests"),
        ("'hypothesis'", "tests"),
        ("install setup.py", "build"),
    ],
)
def test_a_failing_part_is_named_and_the_others_still_run(fails, named, tmp_path):
    run, calls = run_with_stub(tmp_path, fails=fails.replace("-m\\ pytest", "junitxml"))
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == f"gpu_acceptance: failed: {named}"
    assert "benchmarks.report" in calls
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
@pytest.mark.parametrize("main", [gpu_run.main, gpu_training.main], ids=["gpu_run", "gpu_training"])
def test_each_measurement_refuses_too(main, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--out", str(tmp_path / "x.jsonl")])
    assert caught.value.code == 2 and "no CUDA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cudnn_is_warned_about_by_release():
    assert cudnn_warning(91501) is None and cudnn_warning(91500) is None and cudnn_warning(100000) is None
    assert "9.10" in cudnn_warning(91002) and "no cuDNN" in cudnn_warning(None)
    assert folder("NVIDIA H100 80GB HBM3", "abc-dirty") == "gpu-nvidia-h100-80gb-hbm3-abc-dirty"


# ------------------------------------------------------------------------------------------------- layers


def test_the_layers_are_those_of_the_plan():
    plain = [layer.name for layer in GPU_LAYERS if not layer.scaled]
    assert plain == [
        "8x128x64^3", "8x64x64^3", "4x32x128^3", "16x256x32^3", "32x512x8^3", "8x256x16^3", "8x64->128x64^3 stride 2",
        "8x128->64x32^3 transposed 2",
    ]  # fmt: skip
    assert [f"{name} scaled" for name in plain] == [layer.name for layer in GPU_LAYERS if layer.scaled]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 20])
def test_the_parts_are_all_layers_each_once(count):
    parts = [part(GPU_LAYERS, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(layer.name for p in parts for layer in p) == sorted(layer.name for layer in GPU_LAYERS)


@pytest.mark.parametrize("which", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_a_part_that_is_none_is_refused(which):
    with pytest.raises(ValueError, match="expected i/n"):
        part(GPU_LAYERS, which)


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_every_contender_computes_its_layer(layer):
    entrants = tiny_contenders(layer)
    kinds = {(c.kernels, c.implementation.split()[0]) for c in entrants}
    assert kinds >= {("dense", "nn.Conv3d"), ("grouped", "nn.Conv3d"), *((k, "ssconv") for k in KERNELS)}
    assert (("dense", "modulated,") in kinds) == layer.scaled
    for contender in entrants:
        check(layer, contender, twice=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layer", [TINY[0], TINY[7]], ids=lambda layer: layer.name)
def test_every_contender_computes_its_layer_in_16_bit(layer, dtype):
    for contender in tiny_contenders(layer, dtype):
        check(layer, contender, twice=True)


def test_contenders_of_one_kernel_set_with_one_weight_agree():
    """Beside the check at points: the whole outputs of the dense ones, which are given the same numbers."""
    layer = TINY[7]
    x = torch.randn(layer.shape)
    outputs = []
    for c in tiny_contenders(layer):
        if c.kernels == "dense":
            weight, bias = c.parameters
            with torch.no_grad():
                dense = torch.linspace(-1, 1, weight.numel()).view(layer.out, layer.channels, 3, 3, 3)
                weight.copy_(dense.transpose(0, 1) if weight.shape[:2] != dense.shape[:2] else dense)
                bias.copy_(torch.linspace(-1, 1, layer.out))
            outputs.append(c.forward(x).detach())
    assert len(outputs) == 3 + len(BACKENDS)
    for y in outputs[1:]:
        torch.testing.assert_close(y, outputs[0], rtol=1e-4, atol=1e-4)


class _Tampered(torch.autograd.Function):
    """The identity, with another gradient."""

    @staticmethod
    def forward(ctx, t: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.change = change
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.change(grad), None


class _OnlySecondOrder(torch.autograd.Function):
    """The identity with the right gradient, whose own gradient is twice what it should be."""

    @staticmethod
    def forward(ctx, t: Tensor) -> Tensor:
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad * 2 - grad.detach()


def _good(layer: Layer) -> Contender:
    return next(c for c in tiny_contenders(layer) if c.name == "split_depth/ssconv reference")


def _with(contender: Contender, x_of: Callable[[Tensor], Tensor], y_of: Callable[[Tensor], Tensor]) -> Contender:
    return dataclasses.replace(contender, forward=lambda x: y_of(contender.forward(x_of(x))))


@pytest.mark.parametrize("layer", TINY, ids=lambda layer: layer.name)
def test_the_check_notices_planted_errors(layer):
    good = _good(layer)
    same = lambda t: t  # noqa: E731
    faults = {
        "output": (same, lambda y: y * 1.001),
        "output|input gradient": (lambda x: x.flip(4), same),
        "input gradient": (lambda x: _Tampered.apply(x, lambda g: g * 1.001), same),
        "second": (lambda x: _OnlySecondOrder.apply(x), same),
    }
    check(layer, good, twice=True)
    for what, (x_of, y_of) in faults.items():
        with pytest.raises(WrongResult, match=what):
            check(layer, _with(good, x_of, y_of), twice=True)


@pytest.mark.parametrize("which", [0, 1], ids=["in_scale", "out_scale"])
def test_the_check_notices_a_wrong_gradient_of_a_scale(which):
    layer = TINY[4]
    good = _good(layer)
    scales = list(good.scales)
    leaf = scales[which].detach().clone().requires_grad_()
    tampered = list(scales)
    tampered[which] = _Tampered.apply(leaf, lambda g: g * 1.01)
    *weights, bias = good.parameters

    def forward(x: Tensor) -> Tensor:
        return ssconv.split_shuffle_conv3d(
            x, weights, bias, in_scale=tampered[0], out_scale=tampered[1], activation="lrelu", backend="reference"
        )

    scales[which] = leaf
    bad = dataclasses.replace(good, forward=forward, scales=tuple(scales))
    name = ("in_scale", "out_scale")[which]
    with pytest.raises(WrongResult, match=f"{name} gradient"):
        check(layer, bad)


def test_the_check_notices_another_stride():
    layer = TINY[2]
    conv = nn.Conv3d(layer.channels, layer.out, 3, stride=2, padding=1)
    good = Contender(
        "dense", "x", lambda x: nn.functional.leaky_relu(conv(x), 0.2), (conv.weight, conv.bias), lambda t: t[0],
        torch.contiguous_format,
    )  # fmt: skip
    check(layer, good)
    shifted = dataclasses.replace(good, forward=lambda x: nn.functional.leaky_relu(conv(x.roll(1, 2)), 0.2))
    with pytest.raises(WrongResult, match="output"):
        check(layer, shifted)
    with pytest.raises(WrongResult, match="shape"):
        check(layer, dataclasses.replace(good, forward=lambda x: good.forward(x)[:, :, :1]))


# -------------------------------------------------------------------------------------------------- floor


def test_the_floor_by_hand():
    """(2, 8, 4^3) -> 8: 512 voxels of 8 channels in and out, 128 centres; dense has 1,728 weights, split_depth 576."""
    layer = Layer(2, 8, 4)
    assert work(layer, "dense", "forward", 2) == Work(2 * 128 * 1728, 2 * (1024 + 1728 + 1024))
    assert work(layer, "split_depth", "forward", 2) == Work(2 * 128 * 576, 2 * (1024 + 576 + 1024))
    assert work(layer, "grouped", "input gradient", 4) == Work(2 * 128 * 864, 4 * (1024 + 1024 + 864 + 1024))
    assert work(layer, "dense", "weight gradient", 2) == Work(2 * 128 * 1728, 2 * (1024 + 1024 + 1024 + 1728))
    assert work(layer, "dense", "full step", 2) == Work(
        3 * 2 * 128 * 1728, 2 * (4 * 1024 + 2 * 1024 + 3 * 1728 - 0) - 0
    )
    twice = work(layer, "dense", "double backward", 2)
    assert twice.operations == 4 * 2 * 128 * 1728
    assert Work(100, 10).floor(50.0, 10.0) == 2.0 and Work(100, 30).floor(50.0, 10.0) == 3.0


def test_the_work_of_strided_layers_counts_the_coarse_side():
    down = work(Layer(1, 2, 4, out_channels=4, stride=2), "dense", "forward", 2)
    up = work(Layer(1, 4, 2, out_channels=2, stride=2, transposed=True), "dense", "forward", 2)
    weights = 2 * 4 * 27
    assert down == Work(2 * 8 * weights, 2 * (2 * 64 + weights + 4 * 8)) and up == down


def test_all_passes_have_their_work():
    for what in PASSES:
        for kernels in KERNELS:
            assert work(GPU_LAYERS[0], kernels, what, 2).operations > 0


# ------------------------------------------------------------------------------------------------- timing


class FakeDevice:
    """A device whose queue is a number of seconds; what a call takes on the host and on the device is told to it."""

    def __init__(self) -> None:
        self.host = self.queue = 0.0
        self.events: list[tuple[str, float]] = []

    def work(self, name: str, host: float, device: float) -> Callable[[], Callable[[], None]]:
        def prepare() -> Callable[[], None]:
            self.events.append((f"prepare {name}", 0.0))

            def call() -> None:
                self.events.append((name, 0.0))
                self.queue = max(self.queue, self.host)
                self.host += host
                self.queue = max(self.queue + device, self.host)

            return call

        return prepare

    def flush(self, seconds: float) -> None:
        self.events.append(("flush", seconds))
        self.queue = max(self.queue, self.host) + max(seconds, 0.001)

    def mark(self) -> float:
        self.queue = max(self.queue, self.host)
        return self.queue

    def between(self, start: float, stop: float) -> float:
        return stop - start

    def synchronise(self) -> None:
        self.host = max(self.host, self.queue)

    def reset_peak(self) -> int:
        return 100

    def peak(self) -> int:
        return 350


def test_calls_are_timed_on_the_device_in_turn_behind_a_flush():
    device = FakeDevice()
    found = measure_on(
        device,
        {"slow to launch": device.work("a", 0.004, 0.001), "slow to run": device.work("b", 0.0001, 0.5)},
        warmup=1,
        repeats=3,
        budget=100.0,
        clock=lambda: device.host,
    )
    # The launch of 4 ms hides behind 6 ms of flushing: what is left is the device's millisecond.
    assert found["slow to launch"][0].median == pytest.approx(0.001)
    assert found["slow to launch"][1] == pytest.approx(0.004)
    assert found["slow to run"][0].median == pytest.approx(0.5)
    timed = [name for name, _ in device.events][4:]
    turn_a, turn_b = ["prepare a", "flush", "a"], ["prepare b", "flush", "b"]
    assert timed == turn_a + turn_b + turn_b + turn_a + turn_a + turn_b
    assert {round(s, 6) for name, s in device.events if name == "flush"} == {0.006, 0.00015}


def test_the_budget_ends_the_rounds_but_leaves_the_least():
    device = FakeDevice()
    functions = {"a": device.work("a", 0.0, 1.0)}
    measured = measure_on(device, functions, warmup=0, repeats=50, budget=10.5, clock=lambda: device.host)
    assert measured["a"][0].repeats == 11
    measured = measure_on(device, functions, warmup=0, repeats=50, least=4, budget=0.0, clock=lambda: device.host)
    assert measured["a"][0].repeats == 4


def test_the_cuda_device_writes_until_the_head_start_is_covered(monkeypatch):
    """With a card that is made up: 8 writes take 0.8 ms, so that 0.35 ms take four."""
    writes = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return 0.8  # ms

    class Buffer:
        def zero_(self) -> None:
            writes.append(1)

    def empty(size: int, dtype: torch.dtype, device: str) -> Buffer:
        assert (size, dtype, device) == (4 * 10**8, torch.uint8, "cuda")
        return Buffer()

    card = SimpleNamespace(L2_cache_size=10**8)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch, "empty", empty)
    device = CudaDevice()
    for seconds, count in ((0.0, 1), (0.00035, 4), (0.0001, 1)):
        writes.clear()
        device.flush(seconds)
        assert len(writes) == count
    assert device.between(device.mark(), device.mark()) == pytest.approx(0.0008)


def test_ceilings_are_operations_and_bytes_over_the_median():
    class Clockwork(FakeDevice):
        def between(self, start: float, stop: float) -> float:
            return 0.5

    found = ceilings(Clockwork(), "cpu", torch.float32, edge=16, copied=4096)
    assert found == Ceilings(2 * 16**3 / 0.5, 2 * 4096 / 0.5)


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
def graphs_on_a_tape(monkeypatch) -> None:
    """CUDA graphs without a GPU, after a single warm-up."""
    monkeypatch.setattr(gan_module, "Graphs", functools.partial(graphs.Graphs, warmup=1))
    monkeypatch.setattr(gan_module, "check_graphs", lambda device, processes: None)
    monkeypatch.setattr(gan_module, "CudaRecorder", lambda device: TapeRecorder())


@pytest.fixture
def a_card(monkeypatch, graphs_on_a_tape) -> None:
    """Lets the commands believe in a GPU and compute on the CPU."""
    card = SimpleNamespace(
        name="Fictitious GPU", major=9, minor=0, multi_processor_count=1, total_memory=2**30, L2_cache_size=1
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    for module in (gpu_run, gpu_training, gpu_environment):
        monkeypatch.setattr(module, "refuse_without_gpu", lambda program: None)
    for module in (gpu_run, gpu_training):
        monkeypatch.setattr(module, "PLACE", "cpu")
        monkeypatch.setattr(module, "CudaDevice", HostDevice)
        monkeypatch.setattr(module, "gpu_backends", lambda: BACKENDS[-1:])
    monkeypatch.setattr(gpu_run, "ceilings", lambda *arguments: CEILING)
    monkeypatch.setattr(gpu_run, "GPU_LAYERS", tuple(TINY[:3]))
    monkeypatch.setenv("COMMIT", "c0ffee")


def test_the_products_of_sm_80_are_contenders_of_their_own_where_those_of_sm_90a_serve(monkeypatch):
    layer = TINY[0]
    monkeypatch.setattr("benchmarks.gpu_cases.hopper_state", lambda device: "available")
    found = gpu_contenders(layer, torch.bfloat16, "cpu", ("cuda",), compiled=False)
    names = [c.implementation for c in found if c.implementation.startswith("ssconv")]
    assert names == ["ssconv cuda"] * 3 + ["ssconv cuda, sm_80"] * 3
    assert not any("sm_80" in c.implementation for c in gpu_contenders(layer, torch.float32, "cpu", ("cuda",), False))

    said = []
    plain = _good(layer)
    contender = dataclasses.replace(
        plain,
        forward=lambda x: (said.append(os.environ.get("SSCONV_HOPPER")), plain.forward(x))[1],
        environment=found[-1].environment,
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
    small = dataclasses.replace(PRESETS["demo"], shape=(8, 12, 8))
    monkeypatch.setitem(PRESETS, "demo", small)
    monkeypatch.setattr("benchmarks.gpu_cases.serving", lambda device: BACKENDS)
    out = tmp_path / "gpu"
    options = ["--out", str(out / "layers.jsonl"), "--no-compile", "--no-profile", "--dtype", "fp32", "--repeats", "3"]
    assert gpu_run.main([*options, "--part", "1/2"]) == 0
    first = gpu_report.lines(out / "layers.jsonl")
    assert {r["layer"] for r in first} == {TINY[0].name, TINY[2].name}
    assert {(r["device"], r["commit"], r["kind"]) for r in first} == {("Fictitious GPU", "c0ffee", "gpu layer")}
    assert gpu_run.main([*options, "--part", "2/2"]) == 0
    assert gpu_training.main(["--out", str(out / "training.jsonl"), "--presets", "demo", "--budget", "30"]) == 0
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
    assert f"split_depth | {BACKENDS[-1]} | 4 |" in text and "Not there: tests.xml." in text
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
    assert gpu_run.passes_of(_good(TINY[0])) == list(PASSES)


def test_the_passes_give_the_gradients_they_are_named_after():
    layer = TINY[4]
    contender = _good(layer)
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


# ----------------------------------------------------------------------------------------------- training


@pytest.mark.usefixtures("graphs_on_a_tape")
@pytest.mark.parametrize("arch_and_implementation", all_variants(["reference"]), ids=str)
def test_a_training_step_of_the_demo_preset(arch_and_implementation):
    arch, implementation = arch_and_implementation
    cfg = gpu_training.with_batch(PRESETS["demo"].train_config("demo", arch=arch), 1)
    r = gpu_training.measure_step(cfg, implementation, HostDevice(), "cpu", warmup=0, repeats=1)
    assert (r["batch"], r["repeats"]) == (1, 1)
    phases = r["phases"]
    assert list(phases) == ["generator", "path length", "discriminator", "R1", "average"]
    assert min(phases.values()) > 0
    g = phases["generator"] + phases["path length"] / cfg.g_reg_interval
    d = phases["discriminator"] + phases["R1"] / cfg.d_reg_interval
    assert (r["g_step_seconds"], r["d_step_seconds"]) == pytest.approx((g, d))
    assert r["step_seconds"] == pytest.approx(g + d + phases["average"])
    assert r["images_per_second"] == pytest.approx(1 / r["step_seconds"])


def test_the_plain_networks_compute_what_ours_do():
    """PyTorch's convolutions in the networks' place: the same losses as the reference backend gives, step by step."""
    stats = []
    for implementation in ("reference", gpu_training.PLAIN, f"{gpu_training.PLAIN}, upfirdn {BACKENDS[-1]}"):
        cfg = gpu_training.with_batch(PRESETS["demo"].train_config("demo", shape=(8, 12, 8), arch="dense"), 2)
        with gpu_training.computed_by(implementation):
            gan = gpu_training.TimedGan(cfg, "cpu", HostDevice())
            reals = gpu_checks.phantoms(2, (8, 12, 8), seed=0)
            stats.append([gan.train_step(reals) for _ in range(2)])
    assert {"path_length", "r1"} <= stats[0][0].keys()
    for other in stats[1:]:
        for found, expected in zip(other, stats[0], strict=True):
            assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("case", [c for c in CONV_CASES.values() if len(c.kernels) == 1 and None not in c.kernels])
def test_the_plain_convolution_is_the_operator(case):
    tensors = {n: torch.tensor(a) for n, a in case.arrays().items()}
    torch.testing.assert_close(case.call(_Plain, tensors), case.call(ssconv, tensors))


class _Plain:
    """`gpu_training.plain_conv3d` where a case expects a package."""

    @staticmethod
    def split_shuffle_conv3d(x, weights, bias, *, shuffle, backend, **options) -> Tensor:
        return gpu_training.plain_conv3d(x, weights, bias, **options)


@pytest.fixture
def networks_as_they_were() -> Iterator[None]:
    import ssgan.layers

    before = ssgan.layers.split_shuffle_conv3d, ssgan.layers.upfirdn3d
    yield
    assert (ssgan.layers.split_shuffle_conv3d, ssgan.layers.upfirdn3d) == before


@pytest.mark.usefixtures("graphs_on_a_tape")
def test_a_run_records_figures_errors_and_what_it_did_not_reach(tmp_path, networks_as_they_were, monkeypatch):
    path = tmp_path / "training.jsonl"
    small = dataclasses.replace(PRESETS["demo"], shape=(8, 12, 8))
    monkeypatch.setitem(
        PRESETS, "demo", dataclasses.replace(small, stage_3d=dataclasses.replace(small.stage_3d, batch=2))
    )
    head = {"device": "here", "commit": "c"}
    options = {"head": head, "device": HostDevice(), "place": "cpu", "dtype": "fp32", "budget": 60.0}
    assert gpu_training.run(["demo"], path, backends=["nonsense"], **options) == 4
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert records[0]["images_per_second"] > 0 and records[0]["shape"] == [8, 12, 8]
    assert [(r["arch"], r["implementation"]) for r in records] == all_variants(["nonsense"])
    replayed = ("dense", gpu_training.PLAIN + gpu_training.GRAPHS)
    assert all("nonsense" in r["error"] for r in records[1:] if (r["arch"], r["implementation"]) != replayed)
    assert sum("images_per_second" in r for r in records) == 2
    gpu_training.run(["demo"], path, backends=[], **options)
    assert len(path.read_text().splitlines()) == 6, "what has a figure is not measured again"


def test_variants_are_ordered_by_what_is_compared(tmp_path, networks_as_they_were):
    path = tmp_path / "training.jsonl"
    head = {"device": "here", "commit": "c"}
    options = {"head": head, "device": HostDevice(), "place": "cpu", "dtype": "fp32"}
    assert gpu_training.run(["demo"], path, backends=["nonsense"], budget=0.0, **options) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["skipped"] for r in records] == ["out of time"] * 6
    assert [(r["arch"], r["implementation"]) for r in records] == all_variants(["nonsense"])


def test_the_batch_shrinks_until_it_fits():
    cfg = PRESETS["hippocampus"].train_config("hippocampus")
    tried, forgotten = [], []

    def measure(smaller) -> dict:
        tried.append(smaller.stage_3d.batch)
        if smaller.stage_3d.batch > 2:
            raise torch.OutOfMemoryError("no room")
        return {"batch": smaller.stage_3d.batch}

    assert gpu_training.fitting(cfg, measure, lambda: forgotten.append(1)) == {"asked_batch": 8, "batch": 2}
    assert tried == [8, 4, 2] and len(forgotten) == 2

    def never(smaller) -> dict:
        raise torch.OutOfMemoryError("no room")

    assert "batch of 1" in gpu_training.fitting(cfg, never, lambda: None)["error"]


def test_lazy_phases_count_by_their_share():
    cfg = PRESETS["demo"].train_config("demo")
    seconds = {"generator": 1.0, "path length": 4.0, "discriminator": 2.0, "R1": 16.0, "average": 0.5}
    assert gpu_training.amortised(seconds, cfg) == pytest.approx(1 + 4 / 4 + 2 + 16 / 16 + 0.5)


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
        '<testcase classname="tests.test_gpu" name="test_bad"><failure/></testcase>'
        '<testcase classname="tests.test_gpu" name="test_good"/></testsuite></testsuites>'
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
        "* demo, dense, x: out of time",
        "2 passed, 1 failed, 0 could not start, 2 skipped.",
        "* tests.test_gpu::test_bad",
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
    assert "Not there: environment.json, tests.xml, layers.jsonl, training.jsonl" in capsys.readouterr().out
    (empty / "layers.jsonl").write_text('{"commit": 1, "device": 2}\n{"a"\n')
    with pytest.raises(SystemExit):
        report.main([str(empty)])
    assert "layers.jsonl, line 2: not JSON" in capsys.readouterr().err


def test_only_the_last_commits_figures_are_reported(tmp_path):
    path = tmp_path / "layers.jsonl"
    old = [{**r, "commit": "old"} for r in layer_records()[:2]]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*old, *layer_records()]))
    assert {r["commit"] for r in gpu_report.lines(path)} == {"abc"}


# --------------------------------------------------------------------- what test_gpu.py runs, on this machine


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["split-depth-full", "stride-2", "many-samples"])
def test_derivatives_against_float64(name, backend):
    case = {**gpu_checks.SMALL, **gpu_checks.LARGE}[name]
    gpu_checks.check_against_float64(case, torch.float32, backend, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_derivatives_against_float64_in_16_bit(dtype):
    gpu_checks.check_against_float64(gpu_checks.LARGE["many-samples"], dtype, BACKENDS[-1], "cpu")


@pytest.mark.parametrize("fault", ["output", "gradient of x", "second gradient of weights"])
def test_the_comparison_with_float64_notices_errors(fault, monkeypatch):
    real = gpu_checks.derivatives

    def wrong(case, tensors, *rest):
        found = real(case, tensors, *rest)
        if tensors["x"].dtype == torch.float32:
            name = next(n for n in found if n.startswith(fault))
            found[name] = found[name] * 1.001
        return found

    monkeypatch.setattr(gpu_checks, "derivatives", wrong)
    with pytest.raises(AssertionError, match=fault):
        gpu_checks.check_against_float64(CONV_CASES["split-depth-full"], torch.float32, "reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operator", [gpu_checks.split_depth, gpu_checks.smooth], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(1, 4, 19, 5, 7), (3, 4, 15, 4, 5)], ids=str)
def test_both_ends_of_a_volume(shape, operator, backend):
    gpu_checks.check_both_ends(operator, shape, torch.float32, backend, "cpu")


@pytest.mark.parametrize("end", [0, -1])
def test_both_ends_are_looked_at(end):
    def wrong(x, weights, backend):
        y = gpu_checks.smooth(x, weights, backend)
        broken = torch.ones_like(y)
        if x.dtype == torch.float32:  # what it is compared with is computed in float64
            broken[end, :, end] = 0
        return y * broken

    with pytest.raises(AssertionError, match="off by"):
        gpu_checks.check_both_ends(wrong, (2, 4, 19, 5, 7), torch.float32, "reference", "cpu")


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_in_one_graph(backend):
    gpu_checks.check_compiled(backend, "cpu", "aot_eager")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_gives_output_and_gradients(backend):
    leaves, step = gpu_checks.step_of(CONV_CASES["split-depth-full"], torch.float32, backend, "cpu")
    y, *grads = step(*leaves)
    assert y.isfinite().all() and [g.shape for g in grads] == [t.shape for t in leaves]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="needs two backends on this machine")
def test_training_on_two_backends_stays_together():
    gpu_checks.check_training_together("cpu", "reference", 12, "cpu")


def test_training_on_a_wrong_backend_does_not(monkeypatch):
    real = gpu_checks.train

    def train(backend, *rest):
        if backend != "wrong":
            return real(backend, *rest)
        convolve = ssconv.split_shuffle_conv3d
        with monkeypatch.context() as patch:
            patch.setattr(ssconv, "split_shuffle_conv3d", lambda *a, **k: convolve(*a, **k) * 1.01)
            return real("reference", *rest)

    monkeypatch.setattr(gpu_checks, "train", train)
    with pytest.raises(AssertionError, match="apart"):
        gpu_checks.check_training_together("wrong", "reference", 8, "cpu")


@pytest.mark.usefixtures("graphs_on_a_tape")
@pytest.mark.parametrize("case", gpu_checks.GRAPHED)
def test_replayed_training_stays_together(case):
    gpu_checks.check_replayed_training(case, BACKENDS[-1], 5, "cpu")


@pytest.mark.usefixtures("graphs_on_a_tape")
def test_a_replay_that_forgets_its_inputs_does_not(monkeypatch):
    monkeypatch.setattr(graphs.Recorded, "fill", lambda self, key, inputs: None)
    with pytest.raises(AssertionError, match="apart"):
        gpu_checks.check_replayed_training("plain", BACKENDS[-1], 5, "cpu")


def test_phantoms_differ_and_repeat():
    one, again = gpu_checks.phantoms(3, (8, 12, 8), 1), gpu_checks.phantoms(3, (8, 12, 8), 1)
    assert torch.equal(one, again) and not torch.equal(one[0], one[1])
    assert one.shape == (3, 1, 8, 12, 8) and one.unique().tolist() == pytest.approx([-1.0, -0.4, 0.4, 0.8])
