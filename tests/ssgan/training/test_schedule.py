"""Warm-up, FreezeD, best checkpoint, early stop, going back after a NaN, and runs of earlier versions."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from ssgan import train as train_command
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics import registry
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.runs import checkpoint
from ssgan.runs import config as run_config
from ssgan.training import loop, schedule
from ssgan.training.monitor import Monitor
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from tests.support import process_checks
from tests.support.process_checks import CONFIG, SHAPE

CPU = torch.device("cpu")
SMALL = dataclasses.replace(
    CONFIG, stage="3d", stage_3d=StageConfig(kimg=0.032, batch=4), snapshot_kimg=0.008, adam_eps=1e-8
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms") / "data", count=5, shape=SHAPE, seed=1)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, tmp_path_factory):
    process_checks.blank_picture(tmp_path_factory.getbasetemp())
    for name in ("snapshot", "draw", "plot_curves"):
        monkeypatch.setattr(Run, name, lambda self, *rest: process_checks.BLANK)


def go(data, folder, cfg=SMALL, said=None, **options):
    echo = (lambda text: None) if said is None else said.append
    return loop.train(cfg, data, folder, progress=False, echo=echo, **options)


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_rates_rise_after_inflation_and_halve_with_every_rewind():
    cfg = dataclasses.replace(CONFIG, warmup_kimg=0.04)
    assert schedule.rate_factor(cfg, "3d", 10, True, 0) == pytest.approx(0.25)
    assert schedule.rate_factor(cfg, "3d", 100, True, 2) == 0.25
    assert schedule.rate_factor(cfg, "3d", 10, False, 0) == schedule.rate_factor(cfg, "2d", 10, True, 0) == 1.0
    trainer = StageTrainer(cfg, "3d", CPU)
    trainer.images_before = 40
    full = trainer.opt_d.param_groups[0]["lr"]
    trainer.train_step(torch.zeros(12, 1, *SHAPE))
    assert trainer.opt_d.param_groups[0]["lr"] == pytest.approx(full * 12 / 40)


def test_rates_fall_to_the_end_of_the_3d_stage():
    """Linearly over the last 0.04 thousand images; the last step still has a rate."""
    cfg = dataclasses.replace(CONFIG, cooldown_kimg=0.04, stage_3d=StageConfig(kimg=0.096, batch=8))
    factors = [schedule.rate_factor(cfg, "3d", 8 * (step + 1), False, 0) for step in range(12)]
    assert factors == pytest.approx([1.0] * 8 + [0.8, 0.6, 0.4, 0.2])
    assert schedule.rate_factor(cfg, "3d", 104, False, 0) == 0.0  # a dry run may ask beyond
    assert schedule.rate_factor(cfg, "2d", 96, False, 0) == 1.0
    longer = dataclasses.replace(cfg, stage_3d=StageConfig(kimg=0.2, batch=8))
    assert schedule.rate_factor(longer, "3d", 96, True, 1) == 0.5
    both = dataclasses.replace(cfg, warmup_kimg=0.08)
    assert schedule.rate_factor(both, "3d", 72, True, 0) == pytest.approx(0.9 * 0.8)
    trainer = StageTrainer(cfg, "3d", CPU)
    full, trainer.step = trainer.opt_g.param_groups[0]["lr"], 11
    trainer.train_step(torch.zeros(8, 1, *SHAPE))
    assert trainer.opt_g.param_groups[0]["lr"] == pytest.approx(0.2 * full)
    with pytest.raises(ConfigError, match="cooldown_kimg: expected a number of at least 0; got -1"):
        dataclasses.replace(CONFIG, cooldown_kimg=-1)


def test_the_average_goes_on_after_inflation_or_begins_anew():
    """Without ramp-up 12 images of a half-life of 2,000 change little; with it the average at first is the copy."""
    steps = {}
    for carries in (False, True):
        cfg = dataclasses.replace(CONFIG, ema_carries_over=carries)
        for before in (0, 4000):
            trainer = StageTrainer(cfg, "3d", CPU)
            trainer.images_before = before
            start = [p.clone() for p in trainer.G_ema.parameters()]
            trainer.train_step(torch.zeros(12, 1, *SHAPE))
            moved = [torch.cat([(a - b).flatten() for a, b in zip(g, start, strict=True)])
                     for g in (list(trainer.G_ema.parameters()), list(trainer.G.parameters()))]  # fmt: skip
            steps[carries, before] = (moved[0] @ moved[1] / moved[1].square().sum()).item()
    assert steps.pop((True, 4000)) == pytest.approx(1 - 0.5 ** (12 / (1000 * CONFIG.stage_3d.ema_kimg)), rel=1e-3)
    assert list(steps.values()) == pytest.approx([1.0] * 3)


def test_frozen_blocks_stay_and_the_rest_trains():
    trainer = StageTrainer(dataclasses.replace(CONFIG, freeze_d=1), "3d", CPU)
    before = {n: p.detach().clone() for n, p in trainer.D.named_parameters()}
    trainer.train_step(torch.rand(12, 1, *SHAPE))
    still = {n for n, p in trainer.D.named_parameters() if torch.equal(p, before[n])}
    assert still == {n for n in before if n.startswith(("from_image.", "blocks.0."))}
    again = StageTrainer(trainer.cfg, "3d", CPU)  # a state without Adam's moments of what is frozen
    again.load(trainer.state(), checkpoint.CheckpointMeta("3d", 1, 12, ""), "memory")
    with pytest.raises(ConfigError, match="freeze_d: expected 0 to 1, the blocks of D; got 2"):
        dataclasses.replace(CONFIG, freeze_d=2)


@pytest.fixture
def planned():
    """A metric whose values are given beforehand."""
    values = iter([1.0, 0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    make = lambda data, stage, seed: lambda generate: next(values)  # noqa: E731
    registry.register(registry.Metric("planned", better="higher", in_training=make))
    yield "planned"
    del registry.METRICS["planned"]


def test_the_best_checkpoint_is_kept_and_a_stage_without_progress_ends(data, tmp_path, planned):
    cfg = dataclasses.replace(SMALL, metrics=("planned",), best_metric="planned", early_stop=2, metrics_every=4)
    said = []
    assert go(data, tmp_path, cfg, said) == 0
    assert any("planned has not improved in 2 measurements" in text for text in said)
    best, final = (checkpoint.load(p)[1] for p in (checkpoint.best_path(tmp_path / "checkpoints", "3d"),
                                                   checkpoint.final_path(tmp_path / "checkpoints", "3d")))  # fmt: skip
    assert best.images == 8 and final.images == 16  # higher is better; the untrained networks' 1.0 is no checkpoint
    assert [r["planned"] for r in rows(tmp_path) if "planned" in r] == [1.0, 0.5, 0.9, 0.8, 0.7]
    said.clear()
    assert go(data, tmp_path, cfg, said) == 0 and "is finished: 16 images" in said[0]
    # Patience may be changed; the run then goes on from where it stopped.
    assert go(data, tmp_path, dataclasses.replace(cfg, early_stop=0), said) == 0
    assert checkpoint.load(checkpoint.final_path(tmp_path / "checkpoints", "3d"))[1].images == 32


def test_unknown_and_unmeasured_metrics_are_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"metrics: expected of coverage, density, distance, frechet, .*; got 'fid'"):
        go(data, tmp_path, dataclasses.replace(SMALL, metrics=("fid",)))
    with pytest.raises(ConfigError, match="best_metric: expected one of the measured distance; got 'fid'"):
        go(data, tmp_path, dataclasses.replace(SMALL, best_metric="fid"))
    with pytest.raises(ConfigError, match="registered already"):
        registry.register(registry.METRICS["distance"])


def planted(monkeypatch, at, times):
    """Puts a NaN into a gradient of D at step `at`, the first `times` times."""
    step, count = StageTrainer.train_step, []

    def train_step(self, *batch):
        hook = None
        if self.step == at and len(count) < times:
            count.append(0)
            hook = self.D.head.out.bias.register_hook(lambda gradient: gradient * float("nan"))
        try:
            return step(self, *batch)
        finally:
            if hook:
                hook.remove()

    monkeypatch.setattr(StageTrainer, "train_step", train_step)


def test_rewind_goes_back_halves_the_rates_and_survives_a_resume(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        planted(patch, at=5, times=2)
        said = []
        killed = RuntimeError("killed after the second rewind")

        def save(self, trainer, final, best=False, real=Run.save):
            path = real(self, trainer, final, best)
            if trainer.rewinds == 2:
                raise killed
            return path

        patch.setattr(Run, "save", save)
        with pytest.raises(RuntimeError, match="second rewind"):
            go(data, tmp_path, said=said, on_nan="rewind")
    assert "step 5, discriminator" in said[0] and "gradient of D.head.out.bias" in said[0]
    assert "Going back to 16 images of stage 3d, with learning rates times 0.5" in said[0]
    assert go(data, tmp_path) == 0
    tensors, meta = checkpoint.load(checkpoint.final_path(tmp_path / "checkpoints", "3d"))
    assert int(tensors["rewinds"]) == 2 and meta.images == 32
    events = [r for r in rows(tmp_path) if r.get("event") == "rewind"]
    assert [r["rewinds"] for r in events] == [1, 2] and all(r["step"] == 4 for r in events)
    steps = [r["step"] for r in rows(tmp_path) if "event" not in r]
    assert steps == sorted(set(steps))


def test_rewind_before_the_first_checkpoint_starts_the_stage_again_and_is_bounded(data, tmp_path, monkeypatch):
    planted(monkeypatch, at=1, times=99)
    with pytest.raises(NonFiniteError, match=r"the stage went back 5 times before"):
        go(data, tmp_path, on_nan="rewind")
    newest = checkpoint.load_newest(tmp_path / "checkpoints")
    assert newest[1].images == 0 and int(newest[0]["rewinds"]) == 5
    assert [r["event"] for r in rows(tmp_path)] == ["floor", "start"] + ["rewind"] * 5


def test_changed_voxels_are_noticed_when_a_run_goes_on(data, tmp_path):
    own = write_phantom_dataset(tmp_path / "data", count=5, shape=SHAPE, seed=1)
    short = dataclasses.replace(SMALL, stage_3d=StageConfig(kimg=0.004, batch=4))
    assert go(own, tmp_path / "run", short) == 0
    voxels = np.load(tmp_path / "data" / "volumes.npy", mmap_mode="r+")
    voxels[3, 1, 2, 3] += 0.25
    voxels.flush()
    with pytest.raises(run_config.RunError, match=r"its voxels have changed since it was made"):
        go(own, tmp_path / "run", SMALL)


# The identity of tests/support/process_checks.py's networks from before the fields of `run_config.ADDED_LATER`.
EARLIER = "8a4b32b248c981c584c5da6cefbf3a526ab1d94b8e81c5d24eb6d2f667bc190b"


def test_runs_of_earlier_versions_go_on(data, tmp_path):
    cfg = TrainConfig(
        network=dataclasses.replace(CONFIG.network, mbstd_group=4),
        stage_2d=StageConfig(kimg=0.04, batch=8),
        stage_3d=StageConfig(kimg=0.024, batch=4),
        d_reg_interval=3,
        g_reg_interval=2,
    )
    assert run_config.identity(cfg.to_json()) == EARLIER
    later = ("augment", "precision", "freeze_d", "warmup_kimg", "metrics", "metrics_every", "early_stop", "best_metric",
             "cooldown_kimg", "ema_carries_over", "loss")  # fmt: skip
    record = {k: v for k, v in json.loads(json.dumps(cfg.to_json())).items() if k not in later}
    for stage in ("stage_2d", "stage_3d"):
        del record[stage]["r2_gamma"]
    assert TrainConfig.from_json(record) == cfg and cfg.loss == "logistic"
    info = {"path": "", "content_hash": data.info.content_hash, "info": data.info.to_json()}
    run_config.record_config(tmp_path, record, info, None, None)
    run_config.record_config(tmp_path, cfg.to_json(), info, None, None)
    (tmp_path / "config.json").write_text(json.dumps({"format": 1, "config": record, "data": info, "init": None}))
    with pytest.raises(run_config.RunError, match="freeze_d was 0, now 1"):
        run_config.record_config(tmp_path, dataclasses.replace(cfg, freeze_d=1).to_json(), info, None, None)
    with pytest.raises(run_config.RunError, match="loss was logistic, now relativistic"):
        run_config.record_config(tmp_path, dataclasses.replace(cfg, loss="relativistic").to_json(), info, None, None)


def test_arguments_become_the_configuration():
    parser = __import__("argparse").ArgumentParser()
    train_command.add_arguments(parser)
    line = "--out run --warmup-kimg 3 --freeze-d 1 --mbstd-group 2 --metrics planned,distance --metrics-every 500"
    line += " --precision bf16 --cooldown-kimg 2"
    cfg = train_command.config_from(parser.parse_args(line.split()), (16, 24, 16))
    assert (cfg.cooldown_kimg, cfg.warmup_kimg, cfg.freeze_d, cfg.network.mbstd_group, cfg.precision) == (
        2.0,
        3.0,
        1,
        2,
        "bf16",
    )
    assert (cfg.metrics, cfg.best_metric, cfg.metrics_every) == (("planned", "distance"), "planned", 500)
    for bad in ("--metrics a,,b", "--metrics a,a", "--freeze-d -1", "--accumulate 0", "--on-nan skip"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", "run", *bad.split()])


def test_metrics_of_a_run_share_their_features(data, monkeypatch):
    """The data's are computed once, the generated images' once a measurement, for all names together."""
    calls = []
    real = Random3d.__call__
    monkeypatch.setattr(Random3d, "__call__", lambda self, volumes: calls.append(len(volumes)) or real(self, volumes))
    names = ("distance", "frechet", "kid", "msssim")
    monitor, trainer = Monitor(data, seed=5), StageTrainer(SMALL, "3d", CPU)
    first = monitor.measure(trainer, names)
    assert tuple(first) == names and calls == [len(data), len(data)]
    assert monitor.measure(trainer, names) == first and calls == [len(data)] * 3
    alone = Monitor(data, seed=5).measure(trainer, ("kid",))
    assert alone["kid"] == first["kid"]


def test_a_wrong_metric_costs_no_phantoms(tmp_path, capsys):
    assert train_command.main(["--out", str(tmp_path / "run"), "--metrics", "fid"]) == 2
    assert "got 'fid'" in capsys.readouterr().err
    assert train_command.main(["--out", str(tmp_path / "run"), "--conditional"]) == 2
    assert "the phantoms have none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
