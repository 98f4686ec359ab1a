"""Training steps do not wait for the device: the host reads with the rows of the log, and bad steps change nothing.

There is no GPU here. On the meta device a tensor has no value, so reading one is an error.
"""

import dataclasses
import math
import sys
import traceback
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from ssgan.config.augmentation import AugmentConfig, policy
from ssgan.config.training import StageConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs import checkpoint
from ssgan.training import dry_run, loop, losses
from ssgan.training.distributed import Group
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.precision import Execution
from ssgan.training.real_images import RealImages
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer
from tests.support.process_checks import CONFIG, SHAPE

CPU = torch.device("cpu")
BASE = dataclasses.replace(CONFIG, augment=policy("brain", p_start=0.3, interval=1000))
LABELLED = dataclasses.replace(BASE, network=dataclasses.replace(BASE.network, classes=3))
AWARE = dataclasses.replace(BASE, network=BASE.network.depth_aware())


class Pretended(Group):
    """The first of two processes; sums are its own."""

    def __init__(self):
        super().__init__(0, 2)

    def _call(self, collective, tensor):
        pass


CASES = {
    "fp32": (BASE, Execution()),
    "bf16": (dataclasses.replace(BASE, precision="bf16"), Execution()),
    "fp16": (dataclasses.replace(BASE, precision="fp16"), Execution()),
    "relativistic": (dataclasses.replace(BASE, loss="relativistic"), Execution()),
    "classes": (LABELLED, Execution()),
    "slice-index": (AWARE, Execution()),
    "micro-batches": (BASE, Execution(accumulate=3, recompute=True)),
    "two-processes": (dataclasses.replace(BASE, precision="fp16"), Execution()),
}


def on_meta(name, monkeypatch):
    cfg, execution = CASES[name]
    group = Pretended() if name == "two-processes" else Group()
    real = StageTrainer.__init__
    monkeypatch.setattr(dry_run, "_plain", lambda execution: execution)
    monkeypatch.setattr(StageTrainer, "__init__", lambda self, *rest: real(self, *rest, group=group))
    return dry_run.MetaTrainer(cfg, "2d" if cfg.network.depth_places else "3d", execution)


@pytest.mark.parametrize("name", CASES)
def test_no_step_reads_from_the_device(name, monkeypatch):
    trainer = on_meta(name, monkeypatch)
    seen = []
    for step in (0, 1, 2):  # R1 and path length at steps 0 and 2
        trainer.step = step
        seen.append(trainer.train_step(*dry_run.empty_batch(trainer)).keys())
    assert {"r1", "path_length"} <= seen[0] == seen[2] > seen[1]
    with pytest.raises(NotImplementedError, match="meta"):  # so it would have been noticed
        trainer.check()


@pytest.mark.faults
@pytest.mark.parametrize("phase", ["generator_loss", "discriminator_loss", "gradient_penalty", "path_length_penalty"])
def test_a_read_in_any_phase_is_noticed(phase, monkeypatch):
    real = getattr(losses, phase)

    def reading(*rest):
        found = real(*rest)
        float((found if isinstance(found, torch.Tensor) else found.penalty).sum())
        return found

    trainer = on_meta("fp32", monkeypatch)
    monkeypatch.setattr(losses, phase, reading)
    with pytest.raises(RuntimeError, match="meta"):
        trainer.train_step(*dry_run.empty_batch(trainer))


# ---- in a run ----


class Reads(TorchFunctionMode):
    """Notes where tensors' values are read: the function of `ssgan.training` that called `optimiser.read` or reads
    itself. The order of the real images, which is drawn on the host, is left out."""

    names = ("tolist", "item", "numpy", "cpu", "__float__", "__bool__", "__int__", "__index__")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in self.names:
            calls = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1))]
            own = [c for c in calls if Path(c.co_filename).parent == Path(loop.__file__).parent and c.co_name != "read"]
            if own and not own[0].co_filename.endswith("real_images.py"):
                self.found.append(own[0].co_name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("reads") / "data", count=7, shape=SHAPE, seed=1)


@pytest.fixture
def quick(monkeypatch):
    """Runs without pictures and metrics, with a row every 4 steps."""
    blank = Path(__file__)
    for name in ("snapshot", "draw", "plot_curves", "log_start", "write_result"):
        monkeypatch.setattr(Run, name, lambda self, *rest: blank)
    monkeypatch.setattr(Run, "measure", lambda self, *rest: {"distance": 1.0})
    monkeypatch.setattr(loop, "LOG_STEPS", 4)
    board = type("Board", (), {"image": lambda *rest: None, "scalars": lambda *rest: None, "close": lambda *rest: None})
    monkeypatch.setattr(loop, "TensorBoardWriter", lambda *rest: board())


RUN = dataclasses.replace(
    CONFIG, stage="3d", stage_3d=StageConfig(kimg=0.04, batch=4), snapshot_kimg=1.0, augment=AugmentConfig()
)


def go(data, folder, cfg=RUN, **options):
    return loop.train(cfg, data, folder, progress=False, echo=lambda text: None, **options)


def test_the_host_reads_once_with_each_row(data, tmp_path, monkeypatch, quick):
    monkeypatch.setattr(losses, "draw_crossover", lambda count, *rest: count)  # draws on the host, and reads that
    step, save, by_step = StageTrainer.train_step, Run.save, {}
    reads = Reads()

    def train_step(self, *batch):
        by_step[self.step] = reads.found = []
        return step(self, *batch)

    def saved(self, *rest, **named):
        reads.found = []  # a checkpoint reads every weight
        return save(self, *rest, **named)

    monkeypatch.setattr(StageTrainer, "train_step", train_step)
    monkeypatch.setattr(Run, "save", saved)
    with reads:
        assert go(data, tmp_path) == 0
    rows = {3, 7, 9}  # the last of 10 steps too
    assert by_step == {n: ["check", "row"] if n in rows else [] for n in range(10)}


# ---- what is not finite ----


def reals(step):
    return torch.rand(12, 1, *SHAPE, generator=torch.Generator().manual_seed(step)) * 2 - 1


def parts(trainer):
    """Copies of everything that training changes, also after a bad step."""
    tensors = {"pl_mean": trainer.pl_mean, "scale_g": trainer.scale_g.state(), "scale_d": trainer.scale_d.state()}
    for name in ("G", "D", "G_ema"):
        tensors |= checkpoint.with_prefix(name, getattr(trainer, name).state_dict())
    for name, net in (("opt_g", trainer.G), ("opt_d", trainer.D)):
        tensors |= checkpoint.with_prefix(name, checkpoint.adam_tensors(getattr(trainer, name), net))
    tensors |= {"p": torch.tensor(trainer.ada.p), "sums": trainer.ada.sums}
    return {name: t.clone() for name, t in tensors.items()}


def changed(before, after):
    """Groups of `parts` that differ."""
    names = {n for n in before.keys() | after.keys() if n not in before or not torch.equal(before[n], after[n])}
    return {("w_avg " if n.endswith("w_avg") else "") + n.split(".")[0] for n in names}


def nan_loss(trainer, monkeypatch, name):
    real = getattr(losses, name)
    monkeypatch.setattr(losses, name, lambda *rest: real(*rest) * (math.nan if trainer.step == 2 else 1.0))


def inf_gradient(trainer, monkeypatch, p):
    p.requires_grad_(True).register_hook(lambda gradient: gradient * (math.inf if trainer.step == 2 else 1.0))


PLANTED = {
    "loss of G": (
        lambda t, m: nan_loss(t, m, "generator_loss"), set(), "step 2, generator: the loss is nan; gradient of G",
    ),
    "gradient of G": (
        lambda t, m: inf_gradient(t, m, t.G.synthesis.blocks[1].conv0.bias), set(),
        r"step 2, generator: the loss is [\d.]+; gradient of G\.synthesis\.blocks\.1\.conv0\.bias is not finite",
    ),
    "loss of D": (
        lambda t, m: nan_loss(t, m, "discriminator_loss"), {"G", "w_avg G", "opt_g", "pl_mean"},
        "step 2, discriminator: the loss is nan; gradient of D",
    ),
    "gradient of D": (
        lambda t, m: inf_gradient(t, m, t.D.head.fc.weight), {"G", "w_avg G", "opt_g", "pl_mean"},
        r"step 2, discriminator: the loss is [\d.]+; gradient of D\.head\.fc\.weight is not finite",
    ),
    "real images": (
        None, {"G", "w_avg G", "opt_g", "pl_mean"}, "step 2, discriminator: the loss is nan; gradient of D",
    ),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", PLANTED)
def test_nothing_changes_from_the_first_phase_that_is_not_finite(name, precision, monkeypatch):
    """Phases before it in its step have been taken. Later steps, which would be finite, change nothing either."""
    plant, before_it, message = PLANTED[name]
    trainer = StageTrainer(dataclasses.replace(BASE, precision=precision), "3d", CPU)
    for step in (0, 1):
        trainer.train_step(reals(step))
    trainer.check()
    good = parts(trainer)
    if plant is not None:
        plant(trainer, monkeypatch)
    images = reals(2)
    if name == "real images":
        images[7, 0, 1, 2, 3] = math.nan
    trainer.train_step(images)
    bad = parts(trainer)
    assert changed(good, bad) == before_it
    assert all(t.isfinite().all() for t in bad.values())
    for step in (3, 4):
        trainer.train_step(reals(step))
    assert changed(bad, parts(trainer)) == set()
    for call in (trainer.check, trainer.state, lambda: trainer.check_finite("before saving")):
        with pytest.raises(NonFiniteError, match=f"stage 3d, {message}"):
            call()


def test_an_overflow_of_fp16_changes_nothing_but_the_scale_and_training_goes_on():
    cfg = dataclasses.replace(BASE, precision="fp16", stage_3d=dataclasses.replace(BASE.stage_3d, pl_weight=0.0))
    trainer = StageTrainer(cfg, "3d", CPU)
    trainer.train_step(reals(0))
    good = parts(trainer)
    for scale in (trainer.scale_g, trainer.scale_d):
        scale.load(torch.tensor([2.0**40, 3.0]))
    trainer.step = 1  # no lazy phase
    trainer.train_step(reals(1))
    trainer.check()
    after = parts(trainer)
    assert changed(good, after) == {"scale_g", "scale_d", "sums"}
    assert after["scale_g"].tolist() == after["scale_d"].tolist() == [2.0**39, 0.0]
    for scale in (trainer.scale_g, trainer.scale_d):
        scale.load(torch.tensor([2.0**10, 0.0]))
    trainer.step = 1
    trainer.train_step(reals(1))
    trainer.check()
    assert {"G", "D", "opt_g", "opt_d", "w_avg G"} <= changed(after, parts(trainer))


def test_nan_voxels_stop_a_run_at_the_next_row_and_it_goes_on_without_them(data, tmp_path, monkeypatch, quick):
    cfg = dataclasses.replace(RUN, snapshot_kimg=0.016)
    assert go(data, tmp_path / "whole", cfg) == 0
    batch = RealImages.batch

    def damaged(self, first, *rest):
        images, condition = batch(self, first, *rest)
        if first == 20:  # step 5
            images[1, 0, 2, 3, 4] = math.nan
        return images, condition

    with monkeypatch.context() as patch:
        patch.setattr(RealImages, "batch", damaged)
        with pytest.raises(NonFiniteError, match=r"stage 3d, step 5, discriminator: the loss is nan; gradient of D\."):
            go(data, tmp_path / "run", cfg)
    kept = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")
    tensors, meta = checkpoint.load(kept[-1])
    assert meta.step == 4 and all(t.isfinite().all() for t in tensors.values())
    assert go(data, tmp_path / "run", cfg) == 0
    finals = (checkpoint.final_path(tmp_path / n / "checkpoints", "3d") for n in ("run", "whole"))
    left, right = (checkpoint.load(path)[0] for path in finals)
    assert left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)
