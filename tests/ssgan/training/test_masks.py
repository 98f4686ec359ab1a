"""Training on pairs of image and mask, some of them without a mask, against the losses written out in float64."""

import dataclasses

import pytest
import torch

from ssgan.config.augmentation import AugmentConfig, policy
from ssgan.config.training import StageConfig
from ssgan.models.conditioning import Condition
from ssgan.models.masks import encode_masks
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training.accumulation import GeneratorInputs, ImageBatch
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from tests.support.process_checks import CONFIG, SHAPE

CPU, K, BATCH = torch.device("cpu"), 3, 8
PAIRS = dataclasses.replace(
    CONFIG,
    augment=AugmentConfig(),
    network=dataclasses.replace(CONFIG.network, classes=0).with_masks(K),
    stage_3d=StageConfig(kimg=0.06, batch=BATCH, r1_gamma=1.5, r2_gamma=0.7, pl_weight=2.0),
    stage_2d=StageConfig(kimg=0.06, batch=BATCH, r1_gamma=1.5),
)
SHOWN = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0])  # half of the masks are missing


def made(loss="logistic", execution=None, **changes):
    return StageTrainer(dataclasses.replace(PAIRS, loss=loss, **changes), "3d", CPU, execution)


def real_pairs(seed=0, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(BATCH, 1, *shape, generator=generator) * 2 - 1
    masks = torch.randint(K, (BATCH, *shape), generator=generator, dtype=torch.uint8)
    return torch.cat([x, encode_masks(masks, K)], 1)


def without(images, shown=SHOWN):
    """The images with zeros in place of the masks that are not shown: nothing of ssgan.models.masks is used."""
    hidden = images.clone()
    for i, one in enumerate(shown):
        if not one:
            hidden[i, 1:] = 0
    return hidden


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loss", ["logistic", "relativistic"])
def test_gradients_are_those_of_the_loss_on_images_without_the_missing_masks(loss, accumulate):
    """The mask of a generated image is hidden where that of the real image in its place is missing."""
    trainer = made(loss, Execution(accumulate=accumulate))
    G, D, phases, one = trainer.G.double(), trainer.D.double(), trainer.phases, torch.ones((), dtype=torch.float64)
    x = real_pairs().double()
    x[SHOWN == 0, 1:] = torch.randn(4, K, *SHAPE, dtype=torch.float64)  # of no influence
    drawn = trainer.draw("d_main", BATCH)
    noise = [[n.double() for n in block] for block in drawn.noise]
    inputs = GeneratorInputs(drawn.z.double(), drawn.z_mixed.double(), drawn.crossover, noise, drawn.condition)
    reals = [ImageBatch(x[m.samples], Condition(mask_shown=SHOWN[m.samples])) for m in phases.micro_batches]

    def fakes():
        w = [G.mapping(z) for z in (inputs.z, inputs.z_mixed)]
        return G.synthesis(torch.stack([w[i >= int(inputs.crossover)] for i in range(G.num_ws)], 1), inputs.noise)

    def minus_log_sigmoid(y):
        return torch.log1p(torch.exp(-y)).mean()

    real, fake = D(without(x)), D(without(fakes()))
    if loss == "relativistic":
        loss_g, loss_d = minus_log_sigmoid(fake - real), minus_log_sigmoid(real - D(without(fakes().detach())))
    else:
        loss_g = minus_log_sigmoid(fake)
        loss_d = minus_log_sigmoid(real) + minus_log_sigmoid(-D(without(fakes().detach())))
    leaf = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(D(without(leaf)).sum(), leaf, create_graph=True)
    expected = {
        "G": torch.autograd.grad(loss_g, list(G.parameters()), retain_graph=True, allow_unused=True),
        "D": torch.autograd.grad(loss_d, list(D.parameters()), retain_graph=True, allow_unused=True),
        "R1": torch.autograd.grad(
            slope.square().sum((1, 2, 3, 4)).mean() * 1.5 / 2 * PAIRS.d_reg_interval, list(D.parameters()),
            allow_unused=True,
        ),
    }  # fmt: skip

    def check(net, name):
        for p, g in zip(net.parameters(), expected[name], strict=True):
            got = torch.zeros_like(p) if p.grad is None else p.grad
            torch.testing.assert_close(got, torch.zeros_like(p) if g is None else g, rtol=1e-8, atol=1e-10)
            p.grad = None

    D.requires_grad_(False)
    phases.generator(inputs, reals, None, None, one)
    D.requires_grad_(True)
    check(G, "G")
    G.requires_grad_(False)
    phases.discriminator(inputs, reals, None, None, one)
    check(D, "D")
    phases.penalty_at("r1", reals, None, 1.5, one)
    check(D, "R1")


def test_the_discriminator_sees_as_many_masks_of_real_as_of_generated_images(monkeypatch):
    """In every phase and call, augmented too: what is missing cannot tell it what is real."""
    trainer, seen = made("logistic", augment=policy("brain", adapt=False, p_start=0.5)), []
    first = trainer.D.first

    def watched(x, slice_index=None):
        seen.append((x[:, 1:].detach().flatten(1) != 0).any(1))
        return first(x, slice_index)

    monkeypatch.setattr(trainer.D, "first", watched)
    trainer.train_step(real_pairs()[trainer.local_samples], Condition(mask_shown=SHOWN[trainer.local_samples]))
    shown = SHOWN[trainer.local_samples].bool()
    assert len(seen) == 5  # generator; real, generated; R1, R2
    assert all(torch.equal(one, shown) for one in seen)


@pytest.mark.parametrize("stage", ["2d", "3d"])
@pytest.mark.parametrize("loss", ["logistic", "relativistic"])
def test_a_step_trains_every_channel_and_resumes_exactly(stage, loss):
    cfg = dataclasses.replace(PAIRS, loss=loss, augment=policy("brain", adapt=False, p_start=0.5))
    shape = SHAPE if stage == "3d" else (1, *SHAPE[1:])
    trainer, other = (StageTrainer(cfg, stage, CPU) for _ in range(2))
    before = {n: p.clone() for n, p in trainer.G.named_parameters()}
    condition = Condition(mask_shown=SHOWN)
    for i in range(3):
        if i == 2:
            meta = CheckpointMeta(stage, trainer.step, trainer.images, "", 0)
            other.load({n: t.clone() for n, t in trainer.state().items()}, meta, "test")
        trainer.train_step(real_pairs(i, shape), condition)
    other.train_step(real_pairs(2, shape), condition)
    for name, tensor in trainer.state().items():
        torch.testing.assert_close(other.state()[name], tensor, rtol=0, atol=0, equal_nan=True)
    last = "synthesis.blocks.1.to_image.weight"
    moved = (dict(trainer.G.named_parameters())[last] - before[last]).abs().amax((1, 2, 3, 4))
    assert moved.shape == (1 + K,) and moved.min() > 0


def test_masks_are_not_expected_of_images_without_and_have_one_entry_an_image():
    trainer = made()
    with pytest.raises(ValueError, match="mask_shown: expected 8, one for each image; got 3"):
        trainer.train_step(real_pairs(), Condition(mask_shown=torch.ones(3)))
    plain = StageTrainer(dataclasses.replace(PAIRS, network=PAIRS.network.with_masks(0)), "3d", CPU)
    with pytest.raises(ValueError, match="mask_shown: expected none"):
        plain.train_step(real_pairs()[:, :1], Condition(mask_shown=torch.ones(BATCH)))
