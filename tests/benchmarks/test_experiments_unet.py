"""The U-Net of the experiments: batches, augmentation and Hausdorff distance, against code that shares none with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from benchmarks.experiments import unet
from benchmarks.experiments.unet import Batches, Labelled

SHAPE = (6, 9, 7)
SPACING = (2.0, 1.0, 1.5)


def pairs(count: int, first: int = 0, shape=SHAPE, classes: int = 3) -> Labelled:
    """Noise with random masks; the first voxel of image i is first + i."""
    rng = np.random.default_rng(first)
    images, masks = rng.normal(size=(count, *shape)), rng.integers(0, classes, (count, *shape))
    images[:, 0, 0, 0] = first + np.arange(count)
    return Labelled.of(images, masks)


def numbers(batch: Labelled) -> list[int]:
    return batch.images[:, 0, 0, 0, 0].int().tolist()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_every_batch_is_generated_and_the_real_pairs_keep_their_order(share):
    real, made = pairs(6), pairs(5, 100)
    plain, mixed = Batches(real, None, 0.0, 4, 7), Batches(real, made, share, 4, 7)
    drawn, seen = [], set()
    for _ in range(30):
        expected, got = plain.next(), mixed.next()
        count = round(4 * share)
        assert numbers(got)[: 4 - count] == numbers(expected)[: 4 - count]
        assert all(n >= 100 for n in numbers(got)[4 - count :]) and len(numbers(got)) == 4
        for n, image, mask in zip(numbers(got), got.images, got.masks, strict=True):
            source, i = (made, n - 100) if n >= 100 else (real, n)
            assert torch.equal(image, source.images[i]) and torch.equal(mask, source.masks[i])
        drawn += numbers(expected)
        seen |= set(numbers(got)[4 - count :])
    assert len(seen) == (5 if share else 0)
    assert all(sorted(drawn[i : i + 6]) == list(range(6)) for i in range(0, 120, 6))  # each once an epoch


def test_batches_need_generated_pairs_for_a_share_and_differ_by_seed():
    with pytest.raises(ValueError, match=r"share: 0.5 of each batch is generated"):
        Batches(pairs(4), None, 0.5, 4, 0)
    rows = [numbers(Batches(pairs(40), None, 0.0, 4, seed).next()) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


def resampled(volume: np.ndarray, angles, factor: float, shift, spacing) -> np.ndarray:
    """Rotates by scipy's code in mm about the centre, scales, and shifts by shares of the extents."""
    cosine, sine = np.cos(angles), np.sin(angles)
    about = [
        np.array([[1, 0, 0], [0, cosine[0], -sine[0]], [0, sine[0], cosine[0]]]),
        np.array([[cosine[1], 0, sine[1]], [0, 1, 0], [-sine[1], 0, cosine[1]]]),
        np.array([[cosine[2], -sine[2], 0], [sine[2], cosine[2], 0], [0, 0, 1]]),
    ]
    forward = factor * about[2] @ about[1] @ about[0]
    shape, step = np.array(volume.shape), np.array(spacing)
    out = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    mm = (out - (shape - 1) / 2) * step
    source = mm @ np.linalg.inv(forward).T / step + (shape - 1) / 2 + np.array(shift) * shape
    return ndimage.map_coordinates(volume.astype(float), np.moveaxis(source, -1, 0), order=1, mode="nearest")


def test_geometry_moves_image_and_mask_alike_in_mm():
    x = pairs(4)
    rng = torch.Generator().manual_seed(3)
    angles = torch.rand(4, 3, generator=rng) - 0.5
    factors, shifts = torch.tensor([0.7, 1.0, 1.3, 1.0]), torch.rand(4, 3, generator=rng) * 0.4 - 0.2
    moved = torch.tensor([True, True, True, False])
    images, masks = unet._moved(x, angles, factors, shifts, moved, SPACING, 3)
    assert masks.dtype == torch.uint8
    assert torch.equal(images[3], x.images[3]) and torch.equal(masks[3], x.masks[3])
    for i in range(3):
        how = angles[i].numpy(), float(factors[i]), shifts[i].numpy(), SPACING
        np.testing.assert_allclose(images[i, 0], resampled(x.images[i, 0].numpy(), *how), atol=1e-4)
        shares = np.stack([resampled(x.masks[i, 0].numpy() == c, *how) for c in range(3)])
        clear = np.diff(np.sort(shares, 0)[1:], axis=0)[0] > 1e-4  # the largest is not a draw
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(masks[i, 0].numpy()[clear], shares.argmax(0)[clear])


def test_each_image_is_blurred_by_its_own_width():
    x = pairs(3).images
    sigma = torch.tensor([0.5, 0.8, 1.0])
    blurred = unet._blurred(x, sigma)
    for i, width in enumerate(sigma.tolist()):
        expected = ndimage.gaussian_filter(x[i, 0].numpy().astype(float), width, mode="nearest", radius=2)
        np.testing.assert_allclose(blurred[i, 0], expected, atol=1e-5)


def test_augmentation_draws_by_the_generator_alone_and_leaves_some_pairs():
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    one, again, other = (unet.augment(pairs(64), g, SPACING, 3) for g in seeds)
    assert torch.equal(one.images, again.images) and torch.equal(one.masks, again.masks)
    assert not torch.equal(one.images, other.images)
    x = pairs(64)
    mixed = unet.augment(Labelled(pairs(64, 50).images, x.masks), torch.Generator().manual_seed(1), SPACING, 3)
    assert torch.equal(mixed.masks, one.masks)  # other images, the same draws
    same = one.masks.flatten(1).eq(x.masks.flatten(1)).all(1)
    # rotation, scale and shift leave (1 - 0.5)^3 of the masks
    assert 1 <= int(same.sum()) <= 20
    assert one.images.isfinite().all() and not torch.equal(one.images, x.images)


def test_intensities_alone_keep_masks_and_change_images(monkeypatch):
    monkeypatch.setattr(unet, "GEOMETRY_P", 0.0)
    x = pairs(64)
    y = unet.augment(x, torch.Generator().manual_seed(0), SPACING, 3)
    assert torch.equal(x.masks, y.masks)
    changed = (x.images - y.images).abs().flatten(1).amax(1) > 1e-4
    # nothing is left in about (0.9 * 0.8 * 0.85 * 0.85 * 0.7) = 0.36 of the images
    assert 25 <= int(changed.sum()) <= 55


def surface(volume: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with a neighbour outside, counted one by one."""
    inside, found = {tuple(v) for v in np.argwhere(volume)}, []
    for v in inside:
        near = [tuple(np.add(v, step)) for axis in np.eye(3, dtype=int) for step in (axis, -axis)]
        if any(n not in inside for n in near):
            found.append(v)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_hausdorff_distance_by_hand(seed):
    rng = np.random.default_rng(seed)
    a, b = (ndimage.gaussian_filter(rng.normal(size=SHAPE), 1.0) > 0.05 for _ in range(2))
    step = np.array(SPACING)
    directed = []
    for these, those in itertools.permutations((surface(a), surface(b))):
        nearest = [min(np.linalg.norm((np.array(v) - w) * step) for w in those) for v in these]
        directed.append(np.percentile(nearest, 95))
    assert unet.hausdorff95(a, b, SPACING) == pytest.approx(max(directed), rel=1e-6)
    assert unet.hausdorff95(b, a, SPACING) == pytest.approx(max(directed), rel=1e-6)


def test_hausdorff_distance_of_empty_volumes_and_a_shift():
    empty, box = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    box[1:4, 2:5, 1:4] = True
    assert unet.hausdorff95(empty, empty, SPACING) == 0 == unet.hausdorff95(box, box, SPACING)
    assert unet.hausdorff95(empty, box, SPACING) is None is unet.hausdorff95(box, empty, SPACING)
    assert unet.hausdorff95(box, np.roll(box, 2, 1), SPACING) == pytest.approx(2.0)
    assert unet.hausdorff95(box, np.roll(box, 2, 0), SPACING) == pytest.approx(4.0)
