"""Augmentation in the training step: images that D sees, the gradient of R1, and p."""

import argparse
import dataclasses
import json

import pytest
import torch

from ssgan.config.augmentation import AugmentConfig, policy
from ssgan.config.training import TrainConfig
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training import losses, options
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from ssgan.utils.seeding import stream_seed
from tests.support.process_checks import CONFIG, SHAPE
from tests.support.steps import stepped

CPU = torch.device("cpu")
ONE = dataclasses.replace(CONFIG, stage_3d=dataclasses.replace(CONFIG.stage_3d, batch=4))


def reals(seed=0):
    return torch.rand(4, 1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def drawn(trainer, purpose, p, step=0):
    generator = torch.Generator().manual_seed(stream_seed(trainer.cfg.seed, "3d", step, purpose))
    return trainer.augment.draw(4, p, generator)


def test_the_discriminator_sees_augmented_images_in_every_phase(monkeypatch):
    cfg = dataclasses.replace(ONE, augment=policy("brain", adapt=False, p_start=0.8))
    trainer, plain = (StageTrainer(c, "3d", CPU) for c in (cfg, dataclasses.replace(ONE, augment=AugmentConfig())))
    assert trainer.cfg.augment.active and not plain.cfg.augment.active
    seen = {trainer: [], plain: []}
    penalised = []
    for net, inputs in seen.items():
        net.D.register_forward_pre_hook(lambda module, args, inputs=inputs: inputs.append(args[0].detach().clone()))
    real = losses.gradient_penalty
    monkeypatch.setattr(
        losses, "gradient_penalty", lambda logits, images: penalised.append(images) or real(logits, images)
    )
    for net in (plain, trainer):
        net.train_step(reals())
    # The order of a step: fakes for G, reals and fakes for D, reals for R1. Until G steps the networks are the same.
    purposes = ("aug_g", "aug_real", "aug_fake", "aug_r1")
    assert len(seen[trainer]) == len(seen[plain]) == 4
    for i, purpose in enumerate(purposes):
        expected = trainer.augment(seen[plain][i], drawn(trainer, purpose, 0.8))
        if purpose != "aug_fake":  # made by a generator that has taken another step
            torch.testing.assert_close(seen[trainer][i], expected)
        assert not torch.equal(seen[trainer][i], seen[plain][i])
    assert all(torch.equal(images, reals()) for images in penalised)  # the gradient is by the image before


@pytest.mark.parametrize(("target", "way"), [(0.0, 1), (1.0, -1)])
def test_p_follows_the_sign_of_the_real_logits(target, way):
    cfg = dataclasses.replace(ONE, augment=policy("brain", p_start=0.3, interval=2, kimg=0.1, target=target))
    trainer = StageTrainer(cfg, "3d", CPU)
    with torch.no_grad():
        trainer.D.head.out.bias.fill_(0.25 * (1 if way > 0 else -1))
    stats = [stepped(trainer, reals(i)) for i in range(3)]
    assert [s["augment_p"] for s in stats[:2]] == [0.3, 0.3]
    signs = sum(s["sign_real"] for s in stats[:2]) / 2
    moved = (signs > target) - (signs < target)
    assert moved == way
    assert stats[2]["augment_p"] == pytest.approx(0.3 + way * 4 * 2 / 100)


def test_p_and_its_counts_are_in_the_state_and_go_on_exactly():
    trainer = StageTrainer(ONE, "3d", CPU)
    for i in range(3):  # an odd number: the statistic is half full
        trainer.train_step(reals(i))
    state = {n: t.clone() for n, t in trainer.state().items()}
    assert {"augment.p", "augment.sums", "augment.steps"} <= state.keys()
    again = StageTrainer(ONE, "3d", CPU)
    again.load(state, CheckpointMeta("3d", 3, 12, ""), "memory")
    for i in (3, 4):
        assert stepped(trainer, reals(i)) == stepped(again, reals(i))
    assert all(
        torch.equal(a, b) or bool(a.isnan().all()) for a, b in zip(trainer.state().values(), again.state().values())
    )
    plain = StageTrainer(dataclasses.replace(ONE, augment=AugmentConfig()), "3d", CPU)
    assert not [n for n in plain.state() if n.startswith("augment")]


def arguments(line):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return parser.parse_args(["--out", "run", *line.split()])


def test_arguments_name_a_policy():
    chosen = options.augment_config
    assert chosen(arguments("")) == AugmentConfig()
    line = "--augment ada --preset heart --ada-target 0.5 --ada-kimg 50 --augment-flips front-back"
    assert chosen(arguments(line)) == policy("heart", ("front-back",), target=0.5, kimg=50.0)
    assert chosen(arguments("--augment ada --preset demo")) == policy("default")
    fixed = chosen(arguments("--augment fixed --augment-policy full --augment-p 0.4"))
    assert fixed == policy("full", adapt=False, p_start=0.4)
    cfg = options.config_from(arguments("--augment ada"), (16, 24, 16))
    assert cfg.augment == policy("default")
    assert TrainConfig.from_json(json.loads(json.dumps(cfg.to_json()))) == cfg
    with pytest.raises(ConfigError, match="--ada-target: has no effect with --augment fixed"):
        chosen(arguments("--augment fixed --ada-target 0.5"))
    with pytest.raises(ConfigError, match="--augment-p: has no effect with --augment ada"):
        chosen(arguments("--augment ada --augment-p 0.5"))
    with pytest.raises(ConfigError, match="flips: expected a list of left-right"):
        chosen(arguments("--augment ada --augment-flips sideways"))
    with pytest.raises(ConfigError, match=r"p_start: expected a number from 0 to 0\.8"):
        chosen(arguments("--augment fixed --augment-p 0.9"))
