"""The segmenter of `ssgan evaluate`: it learns what a threshold could tell, twice the same, and records on what."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ssgan.metrics import own_networks, segmenter
from ssgan.metrics.extractors.weights import WeightsError

NAMES, SPACING = ("background", "dark", "bright"), (2.0, 1.0, 1.5)
SHAPE = (8, 12, 7)


def pairs(count, seed=0):
    """Grey volumes with a dark and a bright box, which are their classes."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, *SHAPE), np.uint8)
    for mask in masks:
        for k, half in ((1, 0), (2, 6)):
            z, y, x = rng.integers(0, 4), half + rng.integers(0, 2), rng.integers(0, 3)
            mask[z : z + 4, y : y + 4, x : x + 4] = k
    images = np.array([0.0, -0.8, 0.8])[masks] + rng.normal(0, 0.05, masks.shape)
    return np.clip(images, -1, 1).astype(np.float32), masks


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    images, masks = pairs(20)
    network, record = segmenter.train_segmenter(
        images, masks, NAMES, SPACING, "a hash", 60, 3, report=lambda text: None
    )
    file = tmp_path_factory.mktemp("segmenter") / "s.safetensors"
    own_networks.save_network(file, network, record)
    return file, network, record


def test_it_learns_and_its_file_gives_the_same_network(trained):
    file, network, record = trained
    assert min(record.dice) > 0.9 and len(record.trained_on) == 16 and record.steps == 60
    images, masks = pairs(6, seed=9)
    read = segmenter.Segmenter(file)
    made = segmenter.segment(network, images)
    np.testing.assert_array_equal(segmenter.segment(read.network, images), made)
    assert made.dtype == np.uint8 and read.record == record
    right, exchanged = read.dice(images, masks)
    assert min(right) > 0.9 and max(exchanged) < min(right) - 0.1
    assert read.dice(images, masks[[1, 2, 3, 4, 5, 0]])[0] == exchanged
    for k, value in enumerate(right, 1):
        p, q = made == k, masks == k
        each = 2 * (p & q).sum((1, 2, 3)) / (p.sum((1, 2, 3)) + q.sum((1, 2, 3)))
        assert value == pytest.approx(each.mean(), rel=1e-4)


def test_the_same_arguments_give_the_same_weights():
    images, masks = pairs(6)
    made = [
        segmenter.train_segmenter(images, masks, NAMES, SPACING, "", 3, seed, lambda text: None) for seed in (1, 1, 2)
    ]
    first, again, other = (torch.cat([p.flatten() for p in network.parameters()]) for network, _ in made)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert made[0][1] == made[1][1]


def test_what_it_was_trained_on_is_known(trained):
    images, _ = pairs(20)
    read = segmenter.Segmenter(trained[0])
    seen = read.seen(images)
    order = np.random.Generator(np.random.PCG64(3)).permutation(20)
    assert seen == sorted(order[4:].tolist()) and read.seen(images + np.float32(1e-3)) == []


@pytest.mark.parametrize("shape", [(5, 6, 7), (8, 8, 8), (9, 4, 11)], ids=str)
def test_any_extents(shape):
    network = segmenter.SegmentationNetwork(4)
    assert network(torch.randn(2, 1, *shape)).shape == (2, 4, *shape)


class Draws:
    """Draws that turn by a right angle around z and change nothing else."""

    def __init__(self, angle):
        self.turns = [np.array([0, 0, angle])]

    def normal(self, mean, deviation, size):
        return self.turns.pop() if self.turns and size == 3 else np.zeros(size)

    def uniform(self, low, high, size):
        return np.zeros(size)

    def standard_normal(self, shape, dtype):
        return np.zeros(shape, dtype)


def test_augmentation_turns_image_and_mask_alike():
    mask = np.random.default_rng(0).integers(0, 3, (1, 3, 6, 6)).astype(np.uint8)
    image = torch.from_numpy(mask[:, None] / np.float32(2))
    moved, turned = segmenter.augment(image, torch.from_numpy(mask).long(), (5.0, 1.0, 1.0), Draws(np.pi / 2))
    # Rows are y and columns x: what lies at x comes to lie at y, or the other way round.
    sense = [np.rot90(mask[0], k, axes=(1, 2)) for k in (1, -1)]
    assert any(np.array_equal(turned[0].numpy(), s) for s in sense)
    np.testing.assert_allclose(moved[0, 0].numpy() * 2, turned[0].numpy(), atol=1e-4)


def test_augmentation_turns_in_millimetres():
    """A block of 8 x 8 mm turned by a right angle stays one, in voxels of 1 x 2 mm, at its distance from the middle."""
    mask = torch.zeros(1, 2, 24, 12, dtype=torch.long)
    mask[:, :, 12:20, 4:8] = 1  # y from 0 to 8 mm, x from -4 to 4 mm
    _, turned = segmenter.augment(mask[:, None].float(), mask, (1.0, 1.0, 2.0), Draws(np.pi / 2))
    _, y, x = np.nonzero(turned[0].numpy())
    assert len(y) == 2 * 32 and (y.min(), y.max()) == (8, 15)  # -4 to 4 mm
    assert (x.min(), x.max()) in ((2, 5), (6, 9))  # -8 to 0 mm, or 0 to 8


def test_augmentation_keeps_the_classes_and_is_small():
    images, masks = pairs(8)
    x, y = segmenter.augment(
        torch.from_numpy(images)[:, None], torch.from_numpy(masks).long(), SPACING, np.random.default_rng(0)
    )
    assert set(y.unique().tolist()) == {0, 1, 2} and not torch.equal(y, torch.from_numpy(masks).long())
    assert 0.6 < float((y == torch.from_numpy(masks)).float().mean()) < 1
    bright, dark = (x[:, 0][y == k].mean() for k in (2, 1))
    assert bright - dark > 1  # image and mask moved together


def test_the_loss_is_cross_entropy_and_dice_by_hand():
    logits, masks = torch.randn(2, 3, 2, 3, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 2, 3, 2)
    masks[0, 0], masks[1, 1, 2] = 1, 2
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    truth = np.stack([masks.numpy() == k for k in range(3)], 1)
    entropy = -np.log(p[truth]).mean()
    dice = [(2 * p[:, k][truth[:, k]].sum() + 1) / (p[:, k].sum() + truth[:, k].sum() + 1) for k in (1, 2)]
    assert float(segmenter.segmentation_loss(logits, masks.long())) == pytest.approx(
        entropy + 1 - np.mean(dice), rel=1e-5
    )


def test_errors(trained, tmp_path):
    file = trained[0]
    images, masks = pairs(4)
    with pytest.raises(WeightsError, match=r"at least 5 volumes with masks.* got 4"):
        segmenter.train_segmenter(images, masks, NAMES, SPACING, "", 1, 0)
    read = segmenter.Segmenter(file)
    with pytest.raises(WeightsError, match=r"other classes: expected .*'liver'"):
        read.check(("background", "liver"), SHAPE)
    with pytest.raises(WeightsError, match=r"other shape: expected \(8, 8, 8\); got \(8, 12, 7\)"):
        read.check(NAMES, (8, 8, 8))
    read.check(NAMES, SHAPE)
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()[segmenter.SegmenterRecord.format])
    newer = {segmenter.SegmenterRecord.format: json.dumps(record | {"version": 2})}
    save_file({"a": torch.zeros(1)}, tmp_path / "newer.safetensors", newer)
    for name, match in (("other", "has written"), ("absent", "has written"), ("newer", "version 2; .* reads 1")):
        with pytest.raises(WeightsError, match=f"--segmenter .*{name}.safetensors: .*{match}"):
            segmenter.Segmenter(tmp_path / f"{name}.safetensors")
