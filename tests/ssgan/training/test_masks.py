"""Training on pairs of image and mask, some of them without a mask, against the losses written out in float64."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from ssgan import inflate, train
from ssgan.config.augmentation import AugmentConfig, policy
from ssgan.config.training import StageConfig
from ssgan.data.dataset import NO_MASK, VolumeDataset
from ssgan.data.phantom import MASK_CLASSES, write_phantom_dataset
from ssgan.data.writer import DatasetWriter
from ssgan.models.conditioning import Condition
from ssgan.models.masks import encode_masks
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.generator import load_generator
from ssgan.training.accumulation import GeneratorInputs, ImageBatch
from ssgan.training.precision import Execution
from ssgan.training.real_images import RealImages
from ssgan.training.step import StageTrainer
from tests.support.process_checks import CONFIG, SHAPE
from tests.support.steps import run_phase

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
    run_phase(phases, G, phases.generator, inputs, reals, None, None, one)
    D.requires_grad_(True)
    check(G, "G")
    G.requires_grad_(False)
    run_phase(phases, D, phases.discriminator, inputs, reals, None, None, one)
    check(D, "D")
    run_phase(phases, D, phases.penalty_at, "r1", reals, None, 1.5, one)
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


def phantoms(folder, missing=()):
    """A data set of 6 phantoms with masks but for those in `missing`."""
    whole = write_phantom_dataset(folder / "whole", count=6, shape=(8, 12, 8), masks=True)
    if not missing:
        return whole
    with DatasetWriter(folder / "partly", whole.info.shape, masks=MASK_CLASSES) as writer:
        for i, record in enumerate(whole.records):
            writer.add(whole.volumes[i], record, None if i in missing else whole.masks[i])
        return writer.finish(spacing=whole.info.spacing, affine=np.eye(4), slice_axis="axial", recipe="phantom")


@pytest.mark.parametrize("stage", ["2d", "3d"])
def test_real_images_come_with_the_masks_of_their_own_volumes_and_slices(tmp_path, stage):
    data = phantoms(tmp_path, missing=(1, 4))
    assert (np.array(data.masks[[1, 4]]) == NO_MASK).all()
    real = RealImages(data, stage, 3, PAIRS.network.with_masks(4))
    images, condition = real.batch(5, 7)
    for i, item in enumerate(real.items(5, 7)):
        volume, d = (
            (int(item), slice(None)) if stage == "3d" else (int(item) // 8, slice(int(item) % 8, int(item) % 8 + 1))
        )
        assert np.array_equal(images[i, 0], data.volumes[volume][d])
        assert bool(condition.mask_shown[i]) == (volume not in (1, 4))
        if volume in (1, 4):
            assert not images[i, 1:].any()
        else:
            assert np.array_equal(images[i, 1:].argmax(0), data.masks[volume][d])
    assert (
        RealImages(phantoms(tmp_path / "all"), stage, 3, PAIRS.network.with_masks(4)).batch(0, 2)[1].mask_shown is None
    )
    assert (
        RealImages(data, stage, 3, PAIRS.network.with_masks(0)).batch(0, 2)[0].shape[1] == 1
    )  # networks of intensities alone


def command(data, out, *more):
    options = ("--kimg-2d", "0.016", "--kimg-3d", "0.016", "--batch-2d", "4", "--batch-3d", "4", "--threads", "1")
    return train.main(["--data", str(data), "--out", str(out), *options, "--no-progress", *more])


def test_from_masks_to_a_run_and_back(tmp_path, capsys):
    """The masks of a data set are trained on unless --no-masks; such a run continues, and does not mix with another."""
    data = phantoms(tmp_path, missing=(2,))
    assert command(data.path, tmp_path / "run", "--loss", "relativistic", "--augment", "ada") == 0
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["config"]["network"]["mask_classes"] == 4 and config["data"]["info"]["mask_names"][0] == "background"
    G = load_generator(tmp_path / "run").G
    assert G.cfg.image_channels == 5
    for name in ("reals.png", "3d-000000016.png"):
        assert (tmp_path / "run/snapshots" / name).is_file()
    assert command(data.path, tmp_path / "run", "--loss", "relativistic", "--augment", "ada", "--kimg-3d", "0.02") == 0
    capsys.readouterr()
    assert command(data.path, tmp_path / "run", "--loss", "relativistic", "--augment", "ada", "--no-masks") == 2
    assert "network.mask_classes was 4, now 0" in capsys.readouterr().err

    assert command(data.path, tmp_path / "plain", "--no-masks", "--stage", "2d") == 0
    assert load_generator(tmp_path / "plain").G.cfg.image_channels == 1
    source, start = str(tmp_path / "plain/checkpoints/2d-final.safetensors"), str(tmp_path / "start.safetensors")
    capsys.readouterr()
    assert command(data.path, tmp_path / "deep", "--stage", "3d", "--init", source) == 2
    assert "its run had classes of the masks 0, this one has 4" in capsys.readouterr().err
    assert inflate.main(["--source", source, "--out", start, "--mask-classes", "4"]) == 0
    assert "to_image.weight widened (1, 64, 1, 1, 1) -> (5, 64, 1, 1, 1)" in " ".join(capsys.readouterr().out.split())
    shutil.rmtree(tmp_path / "deep")
    assert command(data.path, tmp_path / "deep", "--stage", "3d", "--init", start) == 0
    assert load_generator(tmp_path / "deep").G.cfg.mask_classes == 4
    assert inflate.main(["--source", source, "--out", str(tmp_path / "one.safetensors"), "--mask-classes", "1"]) == 2
    assert "mask_classes: expected 0, or at least 2" in capsys.readouterr().err
    paired = str(tmp_path / "run/checkpoints/2d-final.safetensors")
    assert inflate.main(["--source", paired, "--out", str(tmp_path / "two.safetensors"), "--mask-classes", "4"]) == 2
    assert "this one has masks of 4 classes; leave it out" in capsys.readouterr().err


def test_masks_that_changed_after_training_began_are_noticed(tmp_path, capsys):
    data = phantoms(tmp_path)
    assert command(data.path, tmp_path / "run", "--stage", "2d") == 0
    file = data.path / "masks.npy"
    changed = np.load(file)
    changed[0, 0, 0, 0] ^= 1
    np.save(file, changed)
    capsys.readouterr()
    assert command(VolumeDataset(data.path).path, tmp_path / "run", "--stage", "2d", "--kimg-2d", "0.02") == 2
    assert "restore volumes.npy and masks.npy" in capsys.readouterr().err
