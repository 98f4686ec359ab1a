"""Checks of the augmentations against SciPy and NumPy loops, as functions of the modules they check.

`lib` has the modules .ada, .resampling and .config (ssgan.config.augmentation): ssgan's own, or copies with a fault
planted. The oracles share no code with them: SciPy's spline interpolation in one affine map, NumPy's flips, loops over
samples and lines.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

# Which patient axis (0 right, 1 front, 2 head) D, H, W are; written out again on purpose.
WORLD = {"axial": "ZYX", "coronal": "YZX", "sagittal": "XZY"}


def smooth_volume(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Blurred noise that fades to background at the border, so that interpolations agree closely."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    window = [np.cos(np.pi / 2 * np.linspace(-1, 1, n)) ** 2 for n in shape]
    return (noise / np.abs(noise).max() + 1) * np.einsum("i,j,k->ijk", *window) - 1


def draws_for(lib: SimpleNamespace, augment, count: int, **given: Tensor):
    """Draws in which nothing is applied but what is given."""
    draws = augment.draw(count, 0.0, torch.Generator().manual_seed(0))
    return lib.ada.Draws(**{**{k: getattr(draws, k) for k in draws.__dataclass_fields__}, **given})


def double(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def assert_close(got: Tensor | np.ndarray, expected: np.ndarray, atol: float) -> None:
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=atol)


def check_weights(lib: SimpleNamespace) -> None:
    """Interpolation weights, one by one from the formula."""
    rng = np.random.default_rng(1)
    size, lobes = 7, 4
    position = np.concatenate([rng.uniform(-6, 13, 40), [0, 3, 6, -1, 7, 2.5, -0.5, 6.5, -40, 90]])
    stretch = rng.uniform(1, 1.6, len(position)) * (rng.random(len(position)) < 0.6) + 0
    stretch = np.maximum(stretch, 1)
    for widened in (None, stretch):
        got = lib.resampling.interpolation_matrix(
            torch.from_numpy(position), size, None if widened is None else torch.from_numpy(widened), 1.6
        )
        for row, (u, s) in enumerate(zip(position, np.ones_like(stretch) if widened is None else widened)):
            lattice = np.arange(math.floor(u) - 20, math.floor(u) + 22)
            d = (lattice - u) / s
            w = np.where(np.abs(d) < lobes, np.sinc(d) * np.sinc(d / lobes), 0)
            w /= w.sum()
            expected = np.zeros(size)
            for place, value in zip(lattice, w):
                if 0 <= place < size:
                    expected[place] = value
            assert_close(got[row], expected, 1e-12)


def check_whole_shifts(lib: SimpleNamespace) -> None:
    """A shift by whole voxels moves bits, and background comes in."""
    augment = lib.ada.Augment(lib.config.AugmentConfig(shift=0.4), (5, 7, 6))
    images = torch.rand(3, 2, 5, 7, 6) * 2 - 1
    shift = double([[2, 0, -1], [0, -2, 0], [-1, 1, 2]])
    got = augment(images, draws_for(lib, augment, 3, shift=shift))
    for n in range(3):
        expected = np.full((2, 5, 7, 6), -1, np.float32)
        for index in np.ndindex(5, 7, 6):
            source = tuple(int(i - s) for i, s in zip(index, shift[n].tolist()))
            if all(0 <= a < b for a, b in zip(source, (5, 7, 6))):
                expected[(slice(None), *index)] = images[(n, slice(None), *source)]
        assert np.array_equal(got[n].numpy(), expected)


def check_flips(lib: SimpleNamespace) -> None:
    """Each allowed flip turns the axis of the patient that it names, and no other, for every slice axis."""
    names = {"left-right": "X", "front-back": "Y", "head-foot": "Z"}
    images = torch.rand(40, 1, 3, 4, 5)
    for slice_axis, world in WORLD.items():
        for name, letter in names.items():
            augment = lib.ada.Augment(lib.config.AugmentConfig((name,)), (3, 4, 5), slice_axis=slice_axis)
            got = augment(images, augment.draw(40, 1.0, torch.Generator().manual_seed(3)))
            flipped = np.flip(images.numpy(), 2 + world.index(letter))
            turned = [np.array_equal(g, f) for g, f in zip(got.numpy(), flipped)]
            kept = [np.array_equal(g, x) for g, x in zip(got.numpy(), images.numpy())]
            assert all(a != b for a, b in zip(turned, kept)), f"{slice_axis}, {name}"
            assert 8 <= sum(turned) <= 32


def check_quarter_turns(lib: SimpleNamespace) -> None:
    names = {"axial": "XY", "coronal": "XZ", "sagittal": "YZ"}
    images = torch.rand(60, 1, 4, 4, 4)
    for slice_axis, world in WORLD.items():
        for name, letters in names.items():
            config = lib.config.AugmentConfig(quarter_turns=(name,))
            augment = lib.ada.Augment(config, (4, 4, 4), slice_axis=slice_axis)
            got = augment(images, augment.draw(60, 1.0, torch.Generator().manual_seed(4)))
            axes = tuple(2 + world.index(letter) for letter in letters)
            found = [
                [k for k in range(4) if np.array_equal(g, np.rot90(x, k, tuple(a - 1 for a in axes)))]
                for g, x in zip(got.numpy(), images.numpy())
            ]
            assert all(len(f) == 1 for f in found), f"{slice_axis}, {name}"
            assert min(np.bincount([f[0] for f in found], minlength=4)) >= 5


def check_rotation(lib: SimpleNamespace) -> None:
    """Each plane against one affine map in mm, sizes and spacings all unequal."""
    shape, spacing = (21, 26, 17), {"X": 1.0, "Y": 1.3, "Z": 0.8}
    volumes = np.stack([smooth_volume(shape, s) for s in (0, 1)])
    centre = (np.array(shape) - 1) / 2
    angles = double([0.2, -0.3])
    letters = {"axial": "XY", "coronal": "XZ", "sagittal": "YZ"}
    for slice_axis, world in WORLD.items():
        config = lib.config.AugmentConfig(rotation=18.0)
        augment = lib.ada.Augment(config, shape, slice_axis=slice_axis, spacing=tuple(spacing.values()))
        size = [spacing[letter] for letter in world]
        for plane, (name, pair) in enumerate(letters.items()):
            assert list(augment.planes) == list(letters)
            i, j = sorted(world.index(letter) for letter in pair)
            angle = torch.zeros(2, 3, dtype=torch.float64)
            angle[:, plane] = angles
            got = augment(torch.from_numpy(volumes)[:, None], draws_for(lib, augment, 2, angle=angle))
            for n in range(2):
                matrix, a = np.eye(3), float(angles[n])
                matrix[i, i] = matrix[j, j] = math.cos(a)
                matrix[i, j], matrix[j, i] = -math.sin(a), math.sin(a)
                voxels = matrix * np.array(size)[None, :] / np.array(size)[:, None]
                expected = ndimage.affine_transform(
                    volumes[n], voxels, centre - voxels @ centre, order=5, mode="grid-constant", cval=-1
                )
                assert np.abs(expected - volumes[n]).max() > 0.08
                assert np.abs(got[n, 0].numpy() - expected).max() < 0.015, f"{slice_axis}, {name}"


def check_rotation_frame(lib: SimpleNamespace) -> None:
    """What the shears push out and call back is not lost: the same in a larger canvas of background."""
    torch.manual_seed(0)
    x = torch.rand(2, 1, 9, 7, 8, dtype=torch.float64) * 2 - 1
    angle = double([0.35, -0.35])
    for plane in ((0, 1), (1, 2), (0, 2)):
        wide = torch.nn.functional.pad(x, [12] * 6, value=-1.0)
        expected = lib.resampling.rotate_plane(wide, plane, angle, (1.0, 1.4), 0.36)[:, :, 12:-12, 12:-12, 12:-12]
        assert_close(lib.resampling.rotate_plane(x, plane, angle, (1.0, 1.4), 0.36), expected.numpy(), 1e-9)


def check_scale(lib: SimpleNamespace) -> None:
    """Scale and shift of all axes at once against one affine map."""
    shape = (21, 26, 17)
    volumes = np.stack([smooth_volume(shape, s) for s in (2, 3, 4)])
    centre = (np.array(shape) - 1) / 2
    octaves = np.array([[0.3, 0.1, -0.2], [-0.25, 0.2, 0.0], [0.0, 0.0, 0.0]])
    shift = np.array([[0.0, 1.3, 0.0], [0.5, -0.7, 2.2], [-1.4, 0.0, 0.6]])
    augment = lib.ada.Augment(lib.config.AugmentConfig(scale=0.3, stretch=0.2), shape)
    draws = draws_for(lib, augment, 3, log_scale=torch.from_numpy(octaves), shift=torch.from_numpy(shift))
    got = augment(torch.from_numpy(volumes)[:, None], draws)
    for n in range(3):
        matrix = np.diag(2 ** -octaves[n])
        expected = ndimage.affine_transform(
            volumes[n], matrix, centre - matrix @ (centre + shift[n]), order=5, mode="grid-constant", cval=-1
        )
        assert np.abs(expected - volumes[n]).max() > 0.15
        assert np.abs(got[n, 0].numpy() - expected).max() < 0.01


def check_intensity(lib: SimpleNamespace) -> None:
    """Contrast, brightness, midtones, bands, noise and cutout of one batch, sample by sample in NumPy."""
    rng = np.random.default_rng(7)
    images = rng.uniform(-1, 1, (4, 2, 7, 6, 5))
    config = lib.config.AugmentConfig(contrast=1, brightness=1, midtones=0.5, bands=1, noise=1, cutout=0.5)
    augment = lib.ada.Augment(config, (7, 6, 5))
    draws = augment.draw(4, 0.8, torch.Generator().manual_seed(8), channels=2, dtype=torch.float64)
    for name in ("log_contrast", "brightness", "midtones", "noise_std", "cut"):
        assert 0 < int((getattr(draws, name) != 0).sum()), name
    got = augment(torch.from_numpy(images), draws).numpy()
    for n in range(4):
        x = (images[n] + 1) * 2 ** float(draws.log_contrast[n]) - 1 + float(draws.brightness[n])
        k = float(draws.midtones[n])
        if k:
            x = np.arcsinh(np.sinh(3 * x) + 3 * k) / 3
        fine = x + 1
        for axis in (1, 2, 3):
            fine = ndimage.convolve1d(fine, np.array([1, 4, 6, 4, 1]) / 16, axis, mode="constant")
        coarse = fine
        for axis in (1, 2, 3):
            coarse = ndimage.convolve1d(coarse, np.array([1, 0, 4, 0, 6, 0, 4, 0, 1]) / 16, axis, mode="constant")
        high, middle = 2 ** draws.log_bands[n].numpy()
        x = coarse - 1 + middle * (fine - coarse) + high * (x + 1 - fine)
        x = x + float(draws.noise_std[n]) * draws.noise[n].numpy()
        if draws.cut[n]:
            for index in np.ndindex(7, 6, 5):
                if all(abs(i - c) < 0.25 * s for i, c, s in zip(index, draws.cut_centre[n].tolist(), (7, 6, 5))):
                    x[(slice(None), *index)] = -1
            assert (x == -1).any()
        assert_close(got[n], x, 1e-9)


def check_gates(lib: SimpleNamespace) -> None:
    """Each augmentation is applied to a share p of the samples, with parameters and noise of their own."""
    count, p = 4000, 0.3
    config = lib.config.policy("isotropic", bands=0.5, noise=0.1, cutout=0.5)
    augment = lib.ada.Augment(config, (6, 6, 6))
    draws = augment.draw(count, p, torch.Generator().manual_seed(9))

    def share(mask: Tensor) -> float:
        return float(mask.double().mean())

    bound = 5 * math.sqrt(p * (1 - p) / count)
    for axis in range(3):
        assert abs(share(draws.flip[:, axis]) - p / 2) < bound
        assert abs(share(draws.turns[:, axis] != 0) - p * 3 / 4) < bound
        assert abs(share(draws.angle[:, axis] != 0) - p) < bound
        assert abs(share(draws.log_scale[:, axis] != 0) - (1 - (1 - p) ** 2)) < bound
    for name in ("log_contrast", "brightness", "midtones", "noise_std"):
        values = getattr(draws, name)
        assert abs(share(values != 0) - p) < bound, name
        assert len(values.unique()) == int((values != 0).sum()) + 1, name
    assert abs(share(draws.cut) - p) < bound
    assert len(draws.cut_centre.unique(dim=0)) == count
    first = [getattr(draws, n) != 0 for n in ("log_contrast", "brightness", "midtones", "noise_std", "cut")]
    both = [share(a & b) for i, a in enumerate(first) for b in first[:i]]
    assert max(abs(b - p * p) for b in both) < bound
    noise = draws.noise[:50].flatten(1)
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.5
    assert abs(float(draws.noise.mean())) < 0.01
    assert abs(float(draws.noise.std()) - 1) < 0.01


def check_take(lib: SimpleNamespace) -> None:
    """A part of the batch with its share of the draws gets what it gets within the whole batch."""
    augment = lib.ada.Augment(lib.config.policy("full"), (6, 7, 5))
    images = torch.rand(6, 1, 6, 7, 5) * 2 - 1
    draws = augment.draw(6, 0.7, torch.Generator().manual_seed(2))
    whole = augment(images, draws)
    for rows in ([0, 1, 2], [5, 3], [4]):
        assert_close(augment(images[rows], draws.take(rows)), whole[rows].numpy(), 2e-6)


def check_gradients(lib: SimpleNamespace) -> None:
    """The whole pipeline, first and second order, in 3D and on slices."""
    for shape in ((3, 4, 4), (1, 5, 5)):
        config = lib.config.policy("full", flips=("left-right",), quarter_turns=("axial",))
        augment = lib.ada.Augment(config, shape)
        generator = torch.Generator().manual_seed(6)
        draws = augment.draw(2, 1.0, generator, dtype=torch.float64)
        draws.turns[:, 0] = double([1, 0])
        images = torch.rand(2, 1, *shape, generator=generator, dtype=torch.float64) * 1.6 - 0.8
        images.requires_grad_(True)
        assert gradcheck(lambda x, a=augment, d=draws: a(x, d), images)
        assert gradgradcheck(lambda x, a=augment, d=draws: a(x, d), images)


def check_adaptation(lib: SimpleNamespace) -> None:
    """p step by step, as ADA has it."""
    config = lib.config.AugmentConfig(rotation=5, kimg=1.0, interval=2, p_max=0.05)
    adaptive = lib.ada.AdaptiveProbability(config, 8, budget_kimg=100)
    change = 8 * 2 / 1000
    expected, seen = 0.0, []
    for step, positive in enumerate([8, 8, 8, 7, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8, 6, 7, 5, 5]):
        adaptive.observe(torch.tensor([1.0] * positive + [-1.0] * (8 - positive)).reshape(8, 1))
        seen.append(positive)
        due = adaptive.step()
        assert due == (step % 2 == 1)
        if due:
            r = (2 * sum(seen) - 16) / 16
            expected = min(max(expected + change * float(np.sign(r - 0.6)), 0), 0.05)
            assert adaptive.r == r
            seen = []
        assert adaptive.p == expected
    assert 0 < adaptive.p < 0.05


CHECKS = [
    check_weights, check_whole_shifts, check_flips, check_quarter_turns, check_rotation, check_rotation_frame,
    check_scale, check_intensity, check_gates, check_take, check_gradients, check_adaptation,
]  # fmt: skip
