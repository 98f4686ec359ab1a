"""What a GPU run measures of training steps."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import ssconv
from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.timing import HostDevice
from ssgan.config.training import PRESETS
from tests.support import gpu_checks
from tests.support.gpu_stand_ins import BACKENDS, all_variants, every_phase
from tests.support.strategies import CONV_CASES


@pytest.mark.usefixtures("graphs_on_a_tape")
@pytest.mark.parametrize("arch_and_implementation", all_variants(["reference"]), ids=str)
def test_a_training_step_of_the_demo_preset(arch_and_implementation):
    arch, implementation = arch_and_implementation
    cfg = every_phase(PRESETS["demo"].train_config("demo", arch=arch), 1)
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
        cfg = every_phase(PRESETS["demo"].train_config("demo", shape=(8, 12, 8), arch="dense"), 2)
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


def test_the_plain_networks_of_16_bits_store_16_bits(tmp_path, networks_as_they_were, monkeypatch):
    """As the operator does under autocast: else the rival would be slower and larger than it has to be."""
    found = []

    def noted(x, weights, *rest, **options):
        y = plain(x, weights, *rest, **options)
        found.append(y.dtype)
        return y

    plain = gpu_training.plain_conv3d
    monkeypatch.setattr(gpu_training, "plain_conv3d", noted)
    head = {"device": "here", "commit": "c"}
    options = {"head": head, "device": HostDevice(), "place": "cpu", "budget": 60.0}
    path = tmp_path / "training.jsonl"
    assert gpu_training.run(["demo"], path, backends=[], dtype="bf16", edges=[8], further=False, **options) == 0
    (record,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert record["precision"] == "bf16" and record["images_per_second"] > 0
    assert set(found) == {torch.bfloat16}


@pytest.fixture
def networks_as_they_were() -> Iterator[None]:
    import ssgan.models.layers

    before = ssgan.models.layers.split_shuffle_conv3d, ssgan.models.layers.upfirdn3d
    yield
    assert (ssgan.models.layers.split_shuffle_conv3d, ssgan.models.layers.upfirdn3d) == before


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
    gpu_training.run(["demo"], path, backends=[], edges=[8], further=False, **options)
    assert [json.loads(line)["shape"] for line in path.read_text().splitlines()[6:]] == [[8, 8, 8]]


def test_variants_are_ordered_by_what_is_compared(tmp_path, networks_as_they_were):
    path = tmp_path / "training.jsonl"
    head = {"device": "here", "commit": "c"}
    options = {"head": head, "device": HostDevice(), "place": "cpu", "dtype": "fp32"}
    assert gpu_training.run(["demo"], path, backends=["nonsense"], budget=0.0, **options) == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["skipped"] for r in records] == ["out of time"] * 6
    assert [(r["arch"], r["implementation"]) for r in records] == all_variants(["nonsense"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--edges", "64", "7"], "--edges 7, preset demo: shape: (7, 7, 7) is too small"),
        (["--backends", "cudnn"], "argument --backends: invalid choice: 'cudnn'"),
    ],
)
def test_options_that_cannot_be(options, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        gpu_training.main(["--out", str(tmp_path / "x"), "--presets", "demo", *options])
    assert caught.value.code == 2 and message in capsys.readouterr().err


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
