"""Sliced Wasserstein distance against brute force and closed forms."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ssgan.metrics import sliced
from ssgan.utils.errors import UserError


def volumes(n, shape=(3, 5, 4), seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape))


def block_means(volume, factors):
    d, h, w = volume.shape
    fd, fh, fw = factors
    return np.array(
        [
            volume[i : i + fd, j : j + fh, k : k + fw].mean()
            for i in range(0, d, fd)
            for j in range(0, h, fh)
            for k in range(0, w, fw)
        ]
    )


@pytest.mark.parametrize(
    ("shape", "factors"), [((3, 5, 4), (1, 1, 1)), ((17, 2, 40), (2, 1, 3))], ids=["small", "pooled"]
)
def test_agrees_with_optimal_assignment(shape, factors):
    a, b = volumes(7, shape, 1), 0.5 * volumes(7, shape, 2) + 0.3
    fa, fb = (np.stack([block_means(v, factors) for v in x]) for x in (a, b))
    directions = np.random.Generator(np.random.PCG64(5)).standard_normal((fa.shape[1], 11))
    directions /= np.sqrt((directions**2).sum(0))
    squares = []
    for u in directions.T:
        cost = ((fa @ u)[:, None] - (fb @ u)[None]) ** 2
        squares.append(cost[linear_sum_assignment(cost)].mean())
    expected = np.sqrt(np.mean(squares))
    assert sliced.sliced_wasserstein(a, b, projections=11, seed=5) == pytest.approx(expected, rel=1e-10)


def test_a_shift_measures_its_root_mean_square():
    a, shift = volumes(6), np.random.default_rng(9).standard_normal((3, 5, 4))
    distance = sliced.sliced_wasserstein(a, a + shift, projections=4096)
    assert distance == pytest.approx(np.sqrt((shift**2).mean()), rel=0.05)


def test_zero_symmetry_order_and_reproducibility():
    a, b = volumes(6, seed=1), volumes(6, seed=2)
    assert sliced.sliced_wasserstein(a, a[::-1]) == 0.0
    assert sliced.sliced_wasserstein(a, b) == sliced.sliced_wasserstein(b, a) == sliced.sliced_wasserstein(a, b)
    assert sliced.sliced_wasserstein(a, b, seed=1) != sliced.sliced_wasserstein(a, b, seed=2)


def test_float32_volumes_are_measured_in_float64():
    a, b = (volumes(5, seed=s).astype(np.float32) for s in (1, 2))
    assert sliced.sliced_wasserstein(a, b) == sliced.sliced_wasserstein(a.astype(np.float64), b.astype(np.float64))


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        (volumes(3), volumes(4), "same shape"),
        (volumes(3)[:, 0], volumes(3)[:, 0], "same shape"),
        (volumes(0), volumes(0), "N >= 1"),
        (volumes(3), volumes(3) * np.nan, "set b"),
    ],
    ids=["counts", "dims", "empty", "nan"],
)
def test_bad_sets_are_refused(a, b, match):
    with pytest.raises(UserError, match=match):
        sliced.sliced_wasserstein(a, b)


@pytest.mark.parametrize("slices", [False, True], ids=["volumes", "slices"])
def test_distance_to_data_uses_equal_disjoint_sets(slices):
    # Every slice has a value of its own, so a set shows which items it holds.
    real = np.arange(9 * 3, dtype=np.float32).reshape(9, 3, 1, 1) * np.ones((1, 1, 2, 2), np.float32)
    meter = sliced.DistanceToData(real, slices=slices, seed=3)
    assert meter.count == (13 if slices else 4)
    seen = []

    def generate(count):
        seen.append(count)
        return meter._real.copy()

    assert meter(generate) == 0.0 and seen == [meter.count]
    assert meter._real.shape == ((13, 1, 2, 2) if slices else (4, 3, 2, 2))
    assert len(np.unique(meter._real[:, 0, 0, 0])) == meter.count
    assert meter.floor > 0
    assert f"{meter.count} against {meter.count}" in meter.protocol
    again = sliced.DistanceToData(real, slices=slices, seed=3)
    assert again.floor == meter.floor and np.array_equal(again._real, meter._real)


def test_floor_is_far_below_the_distance_of_other_data():
    meter = sliced.DistanceToData(volumes(200))
    assert meter.count == 100
    assert meter(lambda n: volumes(n, seed=5) + 1) > 3 * meter.floor


def test_no_more_than_128_and_a_single_volume_has_no_floor():
    assert sliced.DistanceToData(volumes(600, (1, 2, 2))).count == 128
    single = sliced.DistanceToData(volumes(1))
    assert single.count == 1 and single.floor is None
