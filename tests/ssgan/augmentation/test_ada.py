"""Adaptive augmentation: each part against an independent oracle, that it does not leak, p, policies."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from ssgan.augmentation import ada, resampling
from ssgan.augmentation.ada import AdaptiveProbability, Augment
from ssgan.config import augmentation
from ssgan.config.augmentation import FLIPS, PLANES, POLICIES, AugmentConfig, policy
from ssgan.utils.errors import ConfigError
from tests.support import augmentation_checks as checks

OURS = SimpleNamespace(ada=ada, resampling=resampling, config=augmentation)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda c: c.__name__)
def test_against_an_independent_oracle(check):
    check(OURS)


# Planted faults: (name, file, text, its replacement, the check that must fail).
FAULTS = [
    ("axes of the plane swapped", "resampling", "first, second = plane\n", "second, first = plane\n", "rotation"),
    ("rotation about a voxel's corner", "resampling", "(j - (m - 1) / 2)", "(j - m / 2)", "rotation"),
    ("scale about a voxel's corner", "resampling", "centre = (n - 1) / 2", "centre = n / 2", "scale"),
    ("shears without a frame", "resampling", "(m - 1) / 2) + LOBES", "(m - 1) / 2) * 0 + 1", "rotation_frame"),
    ("frame without the filter's reach", "resampling", "(m - 1) / 2) + LOBES", "(m - 1) / 2)", "rotation_frame"),
    ("filter not widened", "resampling", "distance / stretch.unsqueeze(-1)", "distance * 1", "weights"),
    ("weights not normalised", "resampling", "weight = weight / weight.sum(-1, keepdim=True)", "", "weights"),
    ("black outside is grey", "resampling", "keepdim=True)) * BACKGROUND", "keepdim=True)) * 0", "whole_shifts"),
    ("flip of another axis", "ada", "world.index(FLIPS[name])", "world[FLIPS[name]]", "flips"),
    ("turn in another plane", "ada", "sorted(world.index(a)", "sorted(world[a]", "quarter_turns"),
    ("spacing in the order of the file", "ada", "float(spacing[a]) for a in world", "float(s) for s in spacing",
     "rotation"),
    ("shift the other way", "resampling", "centre - shift[:, None]", "centre + shift[:, None]", "scale"),
    ("contrast about grey", "ada", "(y - BACKGROUND) * _each", "y * _each", "intensity"),
    ("bands exchanged", "ada", "gains[:, 1], x) * (fine", "gains[:, 0], x) * (fine", "intensity"),
    ("one noise for all samples", "ada", "device=device, dtype=dtype)\n        return",
     "device=device, dtype=dtype)[:1].expand(n, -1, -1, -1, -1)\n        return", "gates"),
    ("one parameter for all samples", "ada", "return torch.randn(n, *size,", "return torch.randn(1, *size,",
     "gates"),
    ("applied to too many", "ada", "uniform(*size) < p", "uniform(*size) < p ** 0.9", "gates"),
    ("one gate for all", "ada", "uniform(*size) < p", "gate.expand(n, *size)[:n]", "gates"),
    ("a part takes the first noise", "ada", "self.noise[rows.to(self.noise.device)]", "self.noise[: len(rows)]",
     "take"),
    ("no gradient through what is changed", "ada", "change(x.index_select(0, index), rows)",
     "change(x.index_select(0, index).detach(), rows)", "gradients"),
    ("no second derivative of midtones", "ada", "near = x.clamp(-8.0, 8.0)",
     "near = x.clamp(-8.0, 8.0).detach()\n    inner = torch.sinh(3 * near) + 3 * shift\n"
     "    return torch.asinh(inner) / 3 + (x - near) * torch.cosh(3 * near) / (1 + inner**2).sqrt()", "gradients"),
    ("p the other way", "ada", "(self.r > self.config.target)", "(self.r < self.config.target)", "adaptation"),
    ("sums never begin anew", "ada",
     "self.sums = torch.zeros(2, dtype=torch.float64)\n        self.steps = 0\n        return",
     "self.steps = 0\n        return", "adaptation"),
]  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f[0].replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(number, tmp_path, monkeypatch):
    _, file, old, new, check = FAULTS[number]
    name = f"augment_fault_{number}"
    package = tmp_path / name
    package.mkdir()
    for module in ("ada", "resampling"):
        text = Path(ada.__file__).with_name(f"{module}.py").read_text(encoding="utf-8")
        if module == file:
            assert old in text, f"{file}.py no longer has {old!r}: plant this fault elsewhere"
            text = text.replace(old, new, 1)
            if "gate.expand" in new:
                text = text.replace(
                    "        def applied(", "        gate = uniform(1, 1, 1)[:, 0, 0] < p\n\n        def applied("
                )
                text = text.replace("gate.expand(n, *size)[:n]", "gate.reshape(n, *(1 for _ in size)).expand(n, *size)")
        (package / f"{module}.py").write_text(
            text.replace("ssgan.augmentation.resampling", f"{name}.resampling"), encoding="utf-8"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    faulty = {m: importlib.import_module(f"{name}.{m}") for m in ("resampling", "ada")}
    with pytest.raises((AssertionError, GradcheckError)):
        getattr(checks, f"check_{check}")(SimpleNamespace(**faulty, config=augmentation))


# Identity


@pytest.mark.parametrize("shape", [(6, 7, 5), (1, 6, 8)])
def test_at_p_0_every_bit_stays(shape):
    pipeline = Augment(policy("full", flips=("left-right",)), shape)
    images = torch.randn(5, 2, *shape)
    images[0, 0, 0, 0, :4] = torch.tensor([-0.0, float("inf"), -float("inf"), 1e-42])
    got = pipeline(images, pipeline.draw(5, 0.0, rng(), channels=2))
    assert torch.equal(got.view(torch.int32), images.view(torch.int32))


def test_samples_for_which_nothing_was_drawn_keep_their_bits():
    pipeline = Augment(policy("full"), (6, 7, 5))
    images = torch.randn(60, 1, 6, 7, 5)
    draws = pipeline.draw(60, 0.1, rng())
    parameters = [getattr(draws, f.name) for f in dataclasses.fields(draws) if f.name not in ("cut_centre", "noise")]
    changed = torch.stack([v.reshape(60, -1).bool().any(1) for v in parameters]).any(0)
    got = pipeline(images, draws)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(got, images)])
    assert 5 < int(same.sum()) < 55
    assert torch.equal(same, ~changed)


def test_draws_depend_on_the_generator_alone():
    pipeline = Augment(policy("full"), (6, 7, 5))
    a, b, c = (pipeline.draw(20, 0.5, rng(s)) for s in (1, 1, 2))
    fields = [f.name for f in dataclasses.fields(a)]
    assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in fields)
    assert not torch.equal(a.brightness, c.brightness)
    assert not torch.equal(a.noise, c.noise)
    other = Augment(policy("hippocampus", contrast=1.0), (6, 7, 5)).draw(20, 0.5, rng(1))
    assert torch.equal(other.angle != 0, a.angle != 0), "another policy takes the same numbers"


def test_float32_is_close_to_float64():
    pipeline = Augment(policy("full"), (8, 9, 7))
    images = torch.rand(6, 1, 8, 9, 7, dtype=torch.float64) * 2 - 1
    draws = pipeline.draw(6, 1.0, rng())
    got, expected = pipeline(images.float(), draws), pipeline(images, draws)
    assert got.dtype == torch.float32
    checks.assert_close(got, expected.numpy(), 2e-5)


def test_slices_move_in_their_plane_only():
    """A slice gets what each slice of a volume that is constant along depth gets from the same draws."""
    pipeline, deep = Augment(policy("full"), (1, 9, 8)), Augment(policy("full"), (5, 9, 8))
    images = torch.rand(12, 1, 1, 9, 8, dtype=torch.float64) * 2 - 1
    draws = pipeline.draw(12, 1.0, rng(), dtype=torch.float64)
    assert list(pipeline.planes) == ["axial"]
    assert not draws.shift[:, 0].any() and not draws.log_scale[:, 0].any()
    got = pipeline(
        images, dataclasses.replace(draws, cut=torch.zeros(12, dtype=torch.bool), log_bands=torch.zeros(12, 2))
    )
    angle = torch.zeros(12, 3, dtype=torch.float64)
    angle[:, :1] = draws.angle
    given = {
        n: getattr(draws, n) for n in ("log_scale", "shift", "log_contrast", "brightness", "midtones", "noise_std")
    }
    same = checks.draws_for(OURS, deep, 12, angle=angle, noise=draws.noise.expand(-1, -1, 5, -1, -1), **given)
    checks.assert_close(got.expand(-1, -1, 5, -1, -1), deep(images.expand(-1, -1, 5, -1, -1), same).numpy(), 1e-9)
    cut = pipeline(images, checks.draws_for(OURS, pipeline, 12, cut=draws.cut, cut_centre=draws.cut_centre))
    assert ((cut == -1).flatten(1).sum(1) >= 4).all(), "a box in a slice is never beside it"


# Non-leaking: the operators on distributions can be undone


def elements(generators: list[np.ndarray]) -> list[tuple[int, ...]]:
    """The group of voxel permutations of a 2 x 2 x 2 cube that these generate; its unit first."""
    found, new = {tuple(range(8))}, [tuple(range(8))]
    while new:
        new = [n for g in generators for e in new if (n := tuple(np.array(e)[g.ravel()])) not in found]
        found |= set(new)
    return sorted(found)


def mixing(group: list[tuple[int, ...]], choices: list[np.ndarray], p: float) -> np.ndarray:
    """What "with p, one of these permutations at random" does to a distribution over the group: column to column."""
    place = {e: i for i, e in enumerate(group)}
    matrix = (1 - p) * np.eye(len(group))
    for element, column in place.items():
        for choice in choices:
            matrix[place[tuple(np.array(element)[choice.ravel()])], column] += p / len(choices)
    return matrix


CUBE = np.arange(8).reshape(2, 2, 2)
FLIP_CHOICES = [[CUBE, np.flip(CUBE, axis)] for axis in range(3)]
TURN_CHOICES = [[np.rot90(CUBE, k, axes) for k in range(4)] for axes in ((1, 2), (0, 2), (0, 1))]


@pytest.mark.parametrize("p", [0.2, 0.6, 0.8, 0.99])
def test_flips_and_quarter_turns_are_invertible_below_p_1(p):
    """Each has eigenvalues 1 and 1 - p alone, so all six together keep at least (1 - p)^6; at p = 1 all is lost."""
    choices = FLIP_CHOICES + TURN_CHOICES
    group = elements([c for each in choices for c in each])
    assert len(group) == 48
    matrices = [mixing(group, each, p) for each in choices]
    for matrix in matrices:
        assert np.allclose(matrix, matrix.T) and np.allclose(matrix.sum(0), 1)
        values = np.linalg.eigvalsh(matrix)
        assert np.all(np.isclose(values, 1) | np.isclose(values, 1 - p)) and np.isclose(values.min(), 1 - p)
    whole = np.linalg.multi_dot(matrices)
    assert np.linalg.svd(whole, compute_uv=False).min() >= (1 - p) ** 6 - 1e-15
    assert np.linalg.svd(mixing(group, TURN_CHOICES[0], 1.0), compute_uv=False).min() < 1e-12


def test_the_distribution_of_orientations_is_recovered():
    """The distribution of a cube's orientations becomes what the mixing matrices say; solving gives it back."""
    p, count = 0.5, 40000
    pipeline = Augment(AugmentConfig(tuple(FLIPS), ("axial",)), (2, 2, 2))
    choices = [*FLIP_CHOICES, TURN_CHOICES[0]]
    group = elements([c for each in choices for c in each])
    assert len(group) == 16
    place = {e: i for i, e in enumerate(group)}
    truth = np.zeros(16)
    truth[[0, 3, 9, 14]] = 0.5, 0.25, 0.2, 0.05
    start = np.random.default_rng(0).choice(16, count, p=truth)
    images = torch.tensor([group[s] for s in start], dtype=torch.float32).reshape(count, 1, 2, 2, 2)
    got = pipeline(images, pipeline.draw(count, p, rng(5))).reshape(count, 8).int().tolist()
    found = np.bincount([place[tuple(g)] for g in got], minlength=16) / count
    matrix = np.linalg.multi_dot([mixing(group, each, p) for each in reversed(choices)])
    expected = matrix @ truth
    chi2 = count * ((found - expected) ** 2 / expected).sum()
    assert chi2 < 40, "15 degrees of freedom"
    assert np.abs(found - truth).max() > 0.2
    assert np.abs(np.linalg.solve(matrix, found) - truth).max() < 0.06


def test_parameters_have_characteristic_functions_above_1_minus_p():
    """That of the law of each one-parameter group: E cos(w v) >= 1 - p for every w, so no frequency is lost."""
    p, count = 0.5, 20000
    noise = 5 / math.sqrt(2 * count)
    laws = {
        name: getattr(Augment(AugmentConfig(**strength), (9, 48, 40)).draw(count, p, rng(11)), field).reshape(count, -1)
        for name, field, strength in [
            ("rotation", "angle", {"rotation": 12}), ("scale", "log_scale", {"scale": 0.3}),
            ("stretch", "log_scale", {"stretch": 0.2}), ("shift", "shift", {"shift": 0.125}),
            ("drift", "shift", {"drift": 0.125}), ("contrast", "log_contrast", {"contrast": 0.3}),
            ("brightness", "brightness", {"brightness": 0.2}), ("midtones", "midtones", {"midtones": 0.1}),
        ]
    }  # fmt: skip
    laws["uniform"] = ((torch.rand(count, generator=rng(1)) * 2 - 1) * (torch.rand(count, generator=rng(2)) < p))[
        :, None
    ]
    lowest = {}
    for name, law in laws.items():
        w = torch.linspace(0.1, 12, 60) / law[:, -1].std()
        lowest[name] = float(torch.cos(w[:, None] * law[:, -1].float()).mean(1).min())
    assert lowest.pop("uniform") < 1 - p - noise, "ADA's uniform laws fall below"
    assert min(lowest.values()) > 1 - p - noise, lowest


def test_the_mean_image_is_recovered():
    """All but midtones and noise act on the mean of images as an affine map; at p = 0.5 it can be inverted."""
    shape, p, voxels = (3, 5, 4), 0.5, 60
    pipeline = Augment(policy("full", midtones=0.0, noise=0.0), shape)
    basis = torch.cat([torch.eye(voxels, dtype=torch.float64), torch.zeros(1, voxels, dtype=torch.float64)])
    total = torch.zeros_like(basis)
    for seed in range(5):  # channels share a sample's draws
        images = basis.reshape(1, -1, *shape).expand(200, -1, -1, -1, -1)
        total += pipeline(images, pipeline.draw(200, p, rng(100 + seed))).mean(0).reshape(-1, voxels)
    total /= 5
    offset = total[-1].numpy()
    matrix = (total[:-1] - total[-1]).numpy().T
    assert np.linalg.svd(matrix, compute_uv=False).min() > 0.4
    count = 6000
    mean = np.random.default_rng(1).uniform(-0.8, 0.8, shape)
    data = torch.from_numpy(mean + np.random.default_rng(2).normal(0, 0.1, (count, 1, *shape)))
    blurred = pipeline(data, pipeline.draw(count, p, rng(7))).mean((0, 1)).numpy()
    recovered = np.linalg.solve(matrix, blurred.ravel() - offset).reshape(shape)
    lost, left = np.abs(blurred - mean).max(), np.abs(recovered - mean).max()
    print(
        np.linalg.svd(matrix, compute_uv=False).min(),
        lost,
        left,
        np.abs(blurred - mean).mean(),
        np.abs(recovered - mean).mean(),
    )
    assert lost > 0.25
    assert left < 0.1, left


@pytest.mark.parametrize("p", [0.0, 0.4, 0.8, 1.0])
def test_two_mirrored_distributions_stay_apart_below_p_1(p):
    """Left-right flips take the difference of two mirrored means to 1 - p of itself: told apart unless p = 1."""
    pipeline = Augment(AugmentConfig(("left-right",)), (2, 3, 4))
    count = 20000
    image = torch.rand(1, 1, 2, 3, 4, generator=rng(1), dtype=torch.float64)
    a, b = image.expand(count, -1, -1, -1, -1), image.flip(4).expand(count, -1, -1, -1, -1)
    apart = pipeline(a, pipeline.draw(count, p, rng(2))).mean(0) - pipeline(b, pipeline.draw(count, p, rng(3))).mean(0)
    checks.assert_close(apart, ((1 - p) * (image - image.flip(4)))[0].numpy(), 5 / math.sqrt(count))


# p


def make_ada(**changes) -> AdaptiveProbability:
    return AdaptiveProbability(AugmentConfig(rotation=5, **changes), 8, budget_kimg=40)


def test_p_goes_from_0_to_1_in_the_images_it_says():
    """A tenth of the budget, and p_max is the end; the paper's 500 thousand where the budget is large."""
    probability = make_ada(p_max=0.8)
    steps = 0
    while probability.p < 0.8:
        probability.observe(torch.ones(8, 1))
        probability.step()
        steps += 1
    assert steps * 8 == pytest.approx(0.8 * 4000, rel=0.02)
    assert AugmentConfig().images_to_one(25000) == 500_000
    assert AugmentConfig(kimg=3).images_to_one(25000) == 3000


def test_sums_of_processes_give_the_p_of_one():
    signs = torch.randn(8, 8, generator=rng(3))
    one, parts = make_ada(), [make_ada(), make_ada()]
    for row in signs:
        one.observe(row)
        for part, share in zip(parts, (row[:3], row[3:])):
            part.observe(share)
        total = sum(part.sums for part in parts)
        due = [one.step(), *(part.step(lambda tensors, total=total: tensors[0].copy_(total)) for part in parts)]
        assert len(set(due)) == 1
        assert parts[0].p == parts[1].p == one.p
        assert parts[0].r == one.r


def test_a_mean_sign_counts_as_its_logits():
    a, b = make_ada(interval=1), make_ada(interval=1)
    a.observe(torch.tensor([1.0, 2.0, -3.0, 0.0]))
    b.observe_mean(0.25, 4)
    assert a.step() and b.step()
    assert a.r == b.r == 0.25


def test_resume_between_two_changes_is_exact():
    signs = torch.randn(23, 8, generator=rng(4)) + 1
    whole, first = make_ada(), make_ada()
    for row in signs:
        whole.observe(row)
        whole.step()
    for row in signs[:10]:
        first.observe(row)
        first.step()
    second = make_ada()
    second.load_state_dict(first.state_dict())
    for row in signs[10:]:
        second.observe(row)
        second.step()
    assert (second.p, second.r, second.steps) == (whole.p, whole.r, whole.steps)
    assert torch.equal(second.sums, whole.sums)
    fresh = make_ada()
    fresh.load_state_dict(make_ada().state_dict())
    assert fresh.r is None


def test_p_stays_where_it_does_not_adapt():
    probability = make_ada(adapt=False, p_start=0.3)
    for _ in range(9):
        probability.observe(torch.ones(8))
        probability.step()
    assert probability.p == 0.3 and probability.r == 1.0
    off = AdaptiveProbability(POLICIES["none"], 8, budget_kimg=40)
    assert not any(off.step() for _ in range(9))
    assert off.p == 0


@pytest.mark.parametrize(
    "act, message",
    [
        (lambda: make_ada(interval=1).step(), "no logits were observed"),
        (lambda: step_on_nan(), "not finite; p was not changed"),
        (lambda: make_ada().load_state_dict({"p": torch.zeros(())}), "expected tensors of shapes"),
        (lambda: make_ada().load_state_dict(make_ada().state_dict() | {"p": torch.tensor(0.9)}), "p = 0.9"),
        (lambda: make_ada().load_state_dict(make_ada().state_dict() | {"steps": torch.tensor(4.0)}), "after 4 steps"),
        (lambda: AdaptiveProbability(AugmentConfig(), 0, 1.0), "batch: expected at least 1; got 0"),
        (lambda: AdaptiveProbability(AugmentConfig(), 1, 0.0), "budget_kimg: expected a number above 0; got 0.0"),
    ],
)
def test_misuse_of_p_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def step_on_nan() -> None:
    probability = make_ada(interval=1)
    probability.observe(torch.tensor([float("nan"), 1.0]))
    probability.step()


# Policies


def test_no_policy_flips_unless_asked():
    for name, chosen in POLICIES.items():
        assert not chosen.flips or name == "isotropic"
        assert chosen.active == (name != "none")
        assert AugmentConfig.from_json(json.loads(json.dumps(chosen.to_json()))) == chosen
    assert policy("brain", flips=("left-right",)).flips == ("left-right",)
    assert policy("isotropic", flips=("left-right",)) == POLICIES["isotropic"]
    assert policy("heart", noise=0.2) == dataclasses.replace(POLICIES["heart"], noise=0.2)
    assert not AugmentConfig(noise=0.1, adapt=False).active


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: policy("liver"), "augment: expected one of none, default, .*; got 'liver'"),
        (lambda: policy("brain", flips=("up-down",)), r"augment.flips: expected a list of left-right, .*up-down"),
        (lambda: AugmentConfig(flips="left-right"), "augment.flips: expected a list"),
        (lambda: AugmentConfig(quarter_turns=("XY",)), "augment.quarter_turns: expected a list of axial"),
        (lambda: policy("brain", rotation=45), "augment.rotation: expected a number from 0 to 30; got 45"),
        (lambda: AugmentConfig(scale=-0.1), "augment.scale: expected a number from 0 to 1; got -0.1"),
        (lambda: AugmentConfig(noise=float("nan")), "augment.noise: expected a number"),
        (lambda: AugmentConfig(p_max=1.0), "augment.p_max: expected a number from 0 to 0.99; got 1.0"),
        (lambda: AugmentConfig(p_start=0.9), "augment.p_start: expected a number from 0 to 0.8; got 0.9"),
        (lambda: AugmentConfig(kimg=0), "augment.kimg: expected a number"),
        (lambda: AugmentConfig(interval=0), "augment.interval: expected a whole number of steps, at least 1; got 0"),
        (lambda: AugmentConfig(interval=2.5), "augment.interval: .*got 2.5"),
        (lambda: AugmentConfig(adapt=1), "augment.adapt: expected true or false; got 1"),
        (lambda: policy("brain", gamma=2), r"augment: unknown fields \['gamma'\]; expected some of"),
        (lambda: AugmentConfig.from_json([]), "augment: unknown fields list"),
        (lambda: Augment(AugmentConfig(), (4, 4, 4), slice_axis="oblique"), "slice_axis: expected one of axial"),
        (lambda: Augment(AugmentConfig(), (4, 4)), "shape, spacing: expected three numbers above 0"),
        (lambda: Augment(AugmentConfig(), (4, 4, 4), spacing=(1, 0, 1)), "shape, spacing: expected three numbers"),
        (lambda: Augment(POLICIES["isotropic"], (4, 6, 4)), "the axial plane has 6 x 4 voxels of 1 x 1 mm; expected"),
        (
            lambda: Augment(POLICIES["isotropic"], (4, 4, 4), spacing=(1, 1, 2)),
            "the coronal plane has 4 x 4 voxels of 2 x 1 mm; expected equal ones",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_quarter_turns_of_planes_that_slices_lack_are_left_out():
    pipeline = Augment(POLICIES["isotropic"], (1, 6, 6))
    images = torch.rand(3, 1, 1, 6, 6)
    assert pipeline(images, pipeline.draw(3, 1.0, rng())).shape == images.shape


def test_images_that_do_not_fit_are_refused():
    pipeline = Augment(POLICIES["default"], (4, 6, 5))
    draws = pipeline.draw(2, 0.5, rng())
    for images, message in [
        (torch.zeros(2, 1, 4, 5, 6), r"images: expected shape \(2, 'C', 4, 6, 5\)"),
        (torch.zeros(3, 1, 4, 6, 5), "images: expected shape"),
        (torch.zeros(2, 4, 6, 5), "images: expected shape"),
        (torch.zeros(2, 1, 4, 6, 5, dtype=torch.float16), "expected float32 or float64; got torch.float16"),
    ]:
        with pytest.raises(ValueError, match=message):
            pipeline(images, draws)
    with pytest.raises(ValueError, match=r"p: expected a probability; got 1\.5"):
        pipeline.draw(2, 1.5, rng())


def test_midtones_are_a_group_of_bijections():
    """Shifts add up, far values stay and keep finite gradients, also where sinh would overflow."""
    x = torch.linspace(-3, 3, 301, dtype=torch.float64)
    once = ada.shift_midtones(ada.shift_midtones(x, torch.tensor(0.2)), torch.tensor(-0.35))
    checks.assert_close(once, ada.shift_midtones(x, torch.tensor(-0.15)).numpy(), 1e-7)
    assert (once.diff() > 0).all()
    far = torch.tensor([-1e30, -100.0, -8.0, 0.0, 8.0, 60.0], requires_grad=True)
    moved = ada.shift_midtones(far, torch.tensor(0.3))
    (gradient,) = torch.autograd.grad(moved.sum(), far)
    assert torch.isfinite(gradient).all()
    assert torch.equal(moved[[0, 1, 5]], far[[0, 1, 5]])
    checks.assert_close(moved[[2, 4]].detach(), np.array([-8, 8.0]), 1e-5)


def test_cutout_boxes_reach_every_voxel():
    pipeline = Augment(AugmentConfig(cutout=0.5), (6, 7, 5))
    images = torch.zeros(400, 1, 6, 7, 5)
    got = pipeline(images, pipeline.draw(400, 1.0, rng()))
    assert ((got == 0) | (got == -1)).all()
    assert ((got == -1).any(0)).all()
    assert 0.02 < float((got == -1).double().mean()) < 0.125 + 0.02


def test_names_of_axes_cover_the_patient():
    assert sorted(FLIPS.values()) == [0, 1, 2]
    assert sorted(PLANES.values()) == list(itertools.combinations(range(3), 2))


def test_the_benchmark_draws_every_augmentation(tmp_path, capsys):
    from benchmarks.training import augmentation as benchmark

    numbers = [f.name for f in dataclasses.fields(AugmentConfig) if f.type == "float" or f.name in benchmark.EACH]
    assert set(benchmark.EACH) == set(numbers) - {"target", "p_start", "p_max"}
    assert benchmark.picture(tmp_path / "each.png", edge=8).stat().st_size > 10_000
    with pytest.raises(SystemExit):
        benchmark.main([])
    assert "nothing to do" in capsys.readouterr().err
