"""Augmentation of images with masks: geometry moves both, everything else changes the intensity alone."""

import dataclasses

import pytest
import torch

from ssgan.augmentation.ada import Augment
from ssgan.config.augmentation import policy
from ssgan.models.masks import encode_masks

K = 3
SHAPE = (9, 12, 12)
ALL = policy("brain", (), adapt=False, p_start=0.8)
GEOMETRY = dataclasses.replace(ALL, contrast=0, brightness=0, midtones=0, bands=0, noise=0)


def batch(shape, count=6):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 1, *shape, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.randint(K, (count, *shape), generator=generator, dtype=torch.uint8)
    return x, encode_masks(labels, K).double()


def augmented(config, shape, images, mask_classes):
    augment = Augment(config, shape, mask_classes=mask_classes)
    draws = augment.draw(len(images), 1.0, torch.Generator().manual_seed(1), channels=1, dtype=torch.float64)
    return augment(images, draws)


@pytest.mark.parametrize("shape", [SHAPE, (1, 12, 12)], ids=str)
def test_intensities_are_augmented_as_without_a_mask(shape):
    x, encoded = batch(shape)
    both = augmented(ALL, shape, torch.cat([x, encoded], 1), K)
    torch.testing.assert_close(both[:, :1], augmented(ALL, shape, x, 0), rtol=0, atol=1e-12)
    assert (both[:, :1] - x).abs().max() > 0.1


@pytest.mark.parametrize("shape", [SHAPE, (1, 12, 12)], ids=str)
def test_classes_are_moved_like_images_of_their_own_and_not_recoloured(shape):
    x, encoded = batch(shape)
    both = augmented(ALL, shape, torch.cat([x, encoded], 1), K)
    for k in range(K):
        own = encoded[:, k : k + 1]
        sign = -1 if k == 0 else 1  # outside the volume is the background: +1 in its channel, -1 in the others
        expected = sign * augmented(GEOMETRY, shape, sign * own, 0)
        torch.testing.assert_close(both[:, 1 + k : 2 + k], expected, rtol=0, atol=1e-12)
        assert (expected - own).abs().max() > 0.1


def test_probabilities_go_on_summing_to_one_at_and_beyond_the_border():
    x, encoded = batch(SHAPE)
    moved = augmented(ALL, SHAPE, torch.cat([x, encoded], 1), K)[:, 1:]
    torch.testing.assert_close(((moved + 1) / 2).sum(1), torch.ones(6, *SHAPE, dtype=torch.float64))


def test_gradients_pass_to_every_channel():
    x, encoded = batch((3, 6, 6), 2)
    images = torch.cat([x, encoded], 1).requires_grad_(True)
    augment = Augment(ALL, (3, 6, 6), mask_classes=K)
    draws = augment.draw(2, 1.0, torch.Generator().manual_seed(1), channels=1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t: augment(t, draws), images, fast_mode=True)
