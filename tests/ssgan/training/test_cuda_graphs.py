"""--cuda-graphs: the host decides nothing within a segment of a step, and replayed segments are the same training.

There is no GPU here: `tape` records a segment's operations and repeats them on the same tensors, as a graph does. The
capture itself is checked by test_gpu.py.
"""

import dataclasses

import pytest
import torch

from ssgan import train as train_command
from ssgan.config.augmentation import AugmentConfig
from ssgan.models.conditioning import Condition
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training import losses
from ssgan.training.cuda_graphs import Graphs
from ssgan.training.distributed import Group
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from tests.support.process_checks import CONFIG
from tests.support.steps import stepped
from tests.support.tape import HostDecides, TapeRecorder

CPU = torch.device("cpu")
BATCH, STEPS, WARMUP = 8, 6, 1
# R1 and path length at steps 0, 2, 4, ..: recorded at their second, replayed from then on. p changes every 2 steps.
BASE = dataclasses.replace(CONFIG, stage_3d=dataclasses.replace(CONFIG.stage_3d, batch=BATCH))
ALONE = dataclasses.replace(BASE.network, mbstd_group=1)
LABELLED = dataclasses.replace(BASE, network=dataclasses.replace(BASE.network, classes=3))
PLAIN = dataclasses.replace(BASE, augment=AugmentConfig())
CASES = {
    "plain": (PLAIN, Execution()),
    "ada": (BASE, Execution()),
    "accumulate": (BASE, Execution(accumulate=2)),
    "more-micro-batches-than-paths": (
        dataclasses.replace(BASE, pl_batch_shrink=8, network=ALONE),
        Execution(accumulate=4),
    ),
    "recompute": (PLAIN, Execution(recompute=True)),
    "classes": (LABELLED, Execution()),
    "slice-index": (dataclasses.replace(BASE, stage_2d=BASE.stage_3d, network=BASE.network.depth_aware()), Execution()),
    "bf16": (dataclasses.replace(BASE, precision="bf16"), Execution()),
    "fp16": (dataclasses.replace(BASE, precision="fp16"), Execution()),
    "frozen": (dataclasses.replace(PLAIN, freeze_d=1), Execution()),
    "relativistic": (dataclasses.replace(PLAIN, loss="relativistic"), Execution()),
    "relativistic-ada-classes": (dataclasses.replace(LABELLED, loss="relativistic"), Execution(accumulate=2)),
    "relativistic-fp16": (dataclasses.replace(BASE, loss="relativistic", precision="fp16"), Execution(recompute=True)),
}


class OneMemory(Graphs):
    """Graphs of one memory pool: when another phase begins, nothing of the phases before is left."""

    phase = ""

    def __call__(self, key, segment, *inputs):
        phase = key[0].split(":")[0]
        if phase != self.phase:
            self.phase = phase
            for tape in self.recorder.tapes:
                tape.forget()
        return super().__call__(key, segment, *inputs)


def made(cfg, execution=None, graphs=False):
    stage = "2d" if cfg.network.depth_places else "3d"
    trainer = StageTrainer(cfg, stage, CPU, execution, class_counts=(1, 4, 2) if cfg.network.classes else None)
    if graphs:
        trainer.phases.accumulator.call = OneMemory(TapeRecorder(), WARMUP)
    return trainer


def step(trainer, number):
    """A step on images and classes of this step's own."""
    generator = torch.Generator().manual_seed(number)
    images = torch.rand(BATCH, 1, *trainer.G.cfg.shape, generator=generator) * 2 - 1
    labels = torch.randint(3, (BATCH,), generator=generator) if trainer.class_counts else None
    slices = torch.randint(trainer.slice_count, (BATCH,), generator=generator) if trainer.slice_count else None
    return stepped(
        trainer, images[trainer.local_samples], Condition(labels, slices).map(lambda t: t[trainer.local_samples])
    )


def assert_same(trainer, other):
    left, right = trainer.state(), other.state()
    assert left.keys() == right.keys()
    different = [n for n in left if not torch.equal(left[n].nan_to_num(7.0), right[n].nan_to_num(7.0))]
    assert not different, f"{len(different)} tensors differ, first {different[0]}"


@pytest.mark.parametrize("name", CASES)
def test_replayed_segments_are_the_same_training_bit_for_bit(name):
    trainer, graphed = made(*CASES[name]), made(*CASES[name], graphs=True)
    seen = set()
    for i in range(STEPS):
        stats = step(trainer, i)
        assert step(graphed, i) == stats
        seen.add(stats.get("augment_p"))
    assert_same(trainer, graphed)
    graphs = graphed.phases.accumulator.call
    assert graphs.recorder.recordings == len(graphs.captured) == len(graphs.calls)  # each segment once
    phases = {str(key[0]).split(":")[0] for key in graphs.captured}
    assert phases == {"generator", "path length", "discriminator", "R1"}
    assert len(seen) > 1 or not trainer.cfg.augment.active  # p moved


def test_what_changes_between_steps_is_seen():
    """Rates that rise and fall, another p, another scale, weights of a checkpoint, a longer freeze and back."""
    cfg = dataclasses.replace(BASE, precision="fp16", warmup_kimg=0.03, cooldown_kimg=0.05)
    trainer, graphed = made(cfg), made(cfg, graphs=True)
    for one in (trainer, graphed):
        one.images_before = 40  # so the rates warm up
    for i in range(5):
        assert step(graphed, i) == step(trainer, i)
    graphs = graphed.phases.accumulator.call
    captured = len(graphs.captured)
    kept = {n: t.clone() for n, t in trainer.state().items()}
    for i in range(5, 8):
        for one in (trainer, graphed):
            one.ada.p, one.rewinds = 0.1 * i, 1
            one.scale_d.load(torch.tensor([2.0**i, 0.0]))
            one.scale_g.load(torch.tensor([2.0 ** (i + 1), 0.0]))
        assert step(graphed, i) == step(trainer, i)
    assert len(graphs.captured) == captured  # none of these is captured anew
    for frozen in (1, 0):
        for one in (trainer, graphed):
            one.frozen = frozen
        for i in range(4):
            assert step(graphed, i) == step(trainer, i)
        assert all((p.grad is None) == bool(frozen) for p in graphed.D.from_image.parameters())
    assert len(graphs.captured) > captured  # other parameters train: captured anew
    for one in (trainer, graphed):
        one.load({n: t.clone() for n, t in kept.items()}, CheckpointMeta("3d", 5, 40, "", 40), "memory")
    for i in range(5, 8):
        assert step(graphed, i) == step(trainer, i)
    assert_same(trainer, graphed)


def test_overflow_and_nan_are_seen_in_replayed_segments():
    cfg = dataclasses.replace(BASE, precision="fp16")
    graphed = made(cfg, graphs=True)
    for i in range(4):
        step(graphed, i)
    before = [p.detach().clone() for p in graphed.D.parameters()]
    graphed.scale_d.load(torch.tensor([2.0**40, 0.0]))
    step(graphed, 4)
    assert graphed.scale_d.scale < 2.0**40 and all(map(torch.equal, before, graphed.D.parameters()))
    with torch.no_grad():
        graphed.D.head.fc.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"step 5, generator: .*weight D\.head\.fc\.weight"):
        step(graphed, 5)


# ---- planted faults: the tape notices what a graph cannot hold, and what it would hold wrongly ----


def plant_item(monkeypatch):
    real = losses.generator_loss
    monkeypatch.setattr(losses, "generator_loss", lambda logits: real(logits) * (1.0 if logits.sum().item() else 2.0))


def plant_mask(monkeypatch):
    monkeypatch.setattr(losses, "discriminator_loss", lambda fake, real: fake[fake > -1e9].mean() - real.mean())


def plant_fresh(monkeypatch):
    real = losses.generator_loss
    monkeypatch.setattr(losses, "generator_loss", lambda logits: real(logits) + torch.tensor([0.0]).sum())


def plant_random(monkeypatch):
    real = losses.path_length_penalty
    monkeypatch.setattr(
        losses, "path_length_penalty", lambda images, ws, y, *rest: real(images, ws, torch.randn_like(y), *rest)
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("plant", "match"),
    [
        (plant_item, "aten._local_scalar_dense"),
        (plant_mask, "aten.index.Tensor"),
        (plant_fresh, "aten.lift_fresh"),
        (plant_random, "aten.randn_like"),
    ],
    ids=["item", "mask", "fresh", "random"],
)
def test_a_segment_in_which_the_host_decides_is_noticed(monkeypatch, plant, match):
    plant(monkeypatch)
    graphed = made(PLAIN, graphs=True)
    with pytest.raises(HostDecides, match=match):
        for i in range(3):
            step(graphed, i)


def plant_baked_number(trainer, monkeypatch):
    """A number that the host counts up goes into the loss."""
    real, count = losses.generator_loss, []
    monkeypatch.setattr(losses, "generator_loss", lambda logits: (count.append(0), real(logits) * len(count))[1])


def plant_stale_input(trainer, monkeypatch):
    """A tensor that is no input of its segment, and another one at every step."""
    real, box = losses.discriminator_loss, [torch.ones(())]

    def loss(fake, real_logits):
        return real(fake, real_logits) * box[0]

    original = trainer.train_step

    def train_step(*args):
        box[0] = box[0] + 1
        return original(*args)

    monkeypatch.setattr(losses, "discriminator_loss", loss)
    trainer.train_step = train_step


@pytest.mark.faults
@pytest.mark.parametrize("plant", [plant_baked_number, plant_stale_input])
def test_constants_baked_into_a_segment_show_in_the_comparison(monkeypatch, plant):
    stats = []
    for graphs in (False, True):
        trainer = made(PLAIN, graphs=graphs)
        with monkeypatch.context() as patch:
            plant(trainer, patch)
            stats.append([step(trainer, i) for i in range(5)])
    assert stats[0][:2] == stats[1][:2] and stats[0] != stats[1]


def test_a_graph_whose_inputs_change_their_shape_says_so():
    graphs = Graphs(TapeRecorder(), 0)
    assert float(graphs("twice", lambda x, none: x * 2, torch.ones(()), None)) == 2
    assert float(graphs("twice", lambda x, none: x * 3, torch.full((), 4.0), None)) == 8  # not called again
    with pytest.raises(
        RuntimeError, match=r"graph twice, input 0: captured with \(\(\), torch.float32\); got \(\(2,\)"
    ):
        graphs("twice", lambda x, none: x * 2, torch.ones(2), None)
    with pytest.raises(RuntimeError, match="graph twice, input 1: captured with None"):
        graphs("twice", lambda x, none: x * 2, torch.ones(()), torch.ones(()))


# ---- where graphs are refused ----


def test_a_cpu_and_several_processes_are_refused(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    arguments = ["--out", str(out), "--device", "cpu", "--cuda-graphs"]
    assert train_command.main(arguments) == 2
    said = capsys.readouterr().err
    assert "--cuda-graphs: expected --device cuda; got cpu; leave --cuda-graphs out" in said and not out.exists()
    with pytest.raises(ConfigError, match="--cuda-graphs: expected --device cuda"):
        StageTrainer(PLAIN, "3d", CPU, Execution(cuda_graphs=True))
    monkeypatch.setattr(train_command, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert train_command.main(arguments) == 2
    assert "--cuda-graphs: expected one process; got 2" in capsys.readouterr().err and not out.exists()
    assert Group(0, 2).size == 2
