"""Metrics against closed forms, definitions written out anew, and faults planted in real ones."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from ssgan.metrics import distances, intervals, registry, voxels
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.prdc import compute_prdc
from ssgan.metrics.sliced import DistanceToData
from ssgan.utils.errors import UserError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n, m, dims", [(300, 200, 4), (9, 12, 30), (40, 7, 30)])
def test_frechet_is_the_formula_on_the_sample_moments(n, m, dims):
    x, y = rng().normal(size=(n, dims)), 2 * rng(1).normal(size=(m, dims)) + 1
    s, t = np.cov(x.T), np.cov(y.T)
    root = sqrtm(s) if n > dims else None
    if root is None:  # singular: the root by eigenvectors, tr sqrt(S T) = tr sqrt(S^1/2 T S^1/2)
        values, vectors = np.linalg.eigh(s)
        root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root.real @ t @ root.real).clip(0)).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t) - 2 * trace
    assert distances.frechet(x, y) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_known_gaussians():
    x = rng().normal(size=(200_000, 2))
    y = rng(1).normal(size=(200_000, 2)) * 3 + [2, 0]
    assert distances.frechet(x, y) == pytest.approx(4 + 2 * (3 - 1) ** 2, rel=0.02)
    assert distances.frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_on_equal_sets_and_positive_on_others():
    draws = [distances.kid(rng(2 * i).normal(size=(20, 8)), rng(2 * i + 1).normal(size=(20, 8))) for i in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20
    assert min(draws) < 0 < distances.kid(rng(0).normal(size=(50, 8)), rng(1).normal(size=(50, 8)) + 1)


def test_prdc_by_loops():
    x, y, k = rng().normal(size=(30, 3)), rng(1).normal(size=(25, 3)) * 0.7, 3

    def radius(points):
        return [sorted(np.linalg.norm(points - p, axis=1))[k] for p in points]

    rx, ry = radius(x), radius(y)
    near = [[np.linalg.norm(a - b) for b in y] for a in x]
    expected = {
        "precision": np.mean([any(near[i][j] < rx[i] for i in range(30)) for j in range(25)]),
        "recall": np.mean([any(near[i][j] < ry[j] for j in range(25)) for i in range(30)]),
        "density": sum(near[i][j] < rx[i] for i in range(30) for j in range(25)) / (k * 25),
        "coverage": np.mean([min(near[i]) < rx[i] for i in range(30)]),
    }
    assert compute_prdc(x, y, k) == pytest.approx(expected)


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_is_its_authors_package_s(k):
    theirs = pytest.importorskip("prdc").compute_prdc
    x, y = rng().normal(size=(60, 4)), rng(1).normal(size=(45, 4)) * 0.6 + 0.3
    assert compute_prdc(x, y, k) == pytest.approx(theirs(real_features=x, fake_features=y, nearest_k=k))


def test_mmd_of_a_shift_is_its_square():
    x = rng().normal(size=(24, 5))
    assert distances.mmd_linear(x, x + 0.5) == pytest.approx(0.25)


@pytest.mark.parametrize("draw", [intervals.halves, intervals.replicates])
def test_intervals_have_the_spread_of_the_mean(draw):
    x, y = rng().normal(size=(400, 1)), np.zeros((400, 1))
    drawn = [float(a.mean() - b.mean()) for a, b in draw(x, y, 400, 0)]
    low, high = intervals.interval(float(x.mean()), drawn)
    assert (high - low) / 2 / 1.96 == pytest.approx(1 / 20, rel=0.15)
    assert (high + low) / 2 == pytest.approx(x.mean())


@pytest.mark.parametrize(
    ("draw", "measure"),
    [
        (intervals.halves, distances.kid), (intervals.replicates, distances.kid),
        (intervals.halves, lambda a, b: compute_prdc(a, b)["coverage"]),
    ],
    ids=["halves-kid", "bootstrap-kid", "halves-coverage"],
)  # fmt: skip
def test_intervals_hold_what_they_promise(draw, measure):
    """Of 40 pairs of sets from the same two distributions, most intervals contain the mean over all pairs."""
    random, found = rng(3), []
    for _ in range(40):
        x, y = random.normal(size=(80, 8)), random.normal(size=(80, 8)) + 0.5
        value = measure(x, y)
        found.append((value, *intervals.interval(value, [measure(a, b) for a, b in draw(x, y, 30, 0)])))
    values, low, high = np.array(found).T
    held = np.mean((low <= values.mean()) & (values.mean() <= high))
    assert 0.85 <= held <= 1 and np.mean(high - low) < 6 * values.std()  # 95 % in truth; and not by being wide


def test_the_interval_of_a_mean_is_its_percentiles():
    x = rng().normal(size=(400, 1))
    low, high = intervals.mean_interval(x[:, 0], 1000, 0)
    assert (high - low) / 2 / 1.96 == pytest.approx(1 / 20, rel=0.15) and low < x.mean() < high


def test_percentiles_of_the_bootstrap_would_leave_the_frechet_distance_out():
    """Why only its spread is used: nearly every replicate lies above the value of the sets themselves."""
    x, y = rng().normal(size=(60, 10)), rng(1).normal(size=(60, 10))
    value, drawn = distances.frechet(x, y), [distances.frechet(a, b) for a, b in intervals.replicates(x, y, 200, 0)]
    assert np.quantile(drawn, 0.025) > value
    low, high = intervals.interval(value, drawn)
    assert low < value < high


@pytest.mark.parametrize("scales, shape", [(2, (16, 24, 16)), (3, (32, 48, 32)), (4, (64,) * 3), (5, (112,) * 3)])
def test_scales(scales, shape):
    assert voxels.msssim_scales(shape) == (scales, 7)


def test_msssim_is_monai_s():
    metric = pytest.importorskip("monai.metrics").MultiScaleSSIMMetric
    a = rng().uniform(-1, 1, (2, 28, 32, 30))
    b = 0.8 * a + 0.2 * rng(1).uniform(-1, 1, a.shape)
    weights = tuple(w / sum(voxels.WEIGHTS[:3]) for w in voxels.WEIGHTS[:3])
    theirs = metric(3, data_range=1.0, kernel_size=7, kernel_sigma=1.5, weights=weights)(
        *(torch.from_numpy((x[:, None] + 1) / 2) for x in (a, b))
    )
    np.testing.assert_allclose(voxels.ms_ssim(a, b), np.asarray(theirs).ravel(), rtol=1e-4)


def heads(count, seed):
    """Smooth random blobs with a bright left side: something with structure, left and right."""
    noise = gaussian_filter(rng(seed).normal(size=(count, 16, 24, 16)), (0, 2, 2, 2))
    x = np.tanh(8 * noise) * 0.5
    x[..., :8] += 0.3
    return x.astype(np.float32)


REAL, OTHER = heads(48, 0), heads(48, 1)
FAULTS = {
    "blur": gaussian_filter(OTHER, (0, 2, 2, 2)),
    "noise": (OTHER + rng(5).normal(0, 0.3, OTHER.shape)).astype(np.float32),
    "collapse": OTHER[np.arange(48) % 3],
    "flip": np.ascontiguousarray(OTHER[..., ::-1]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_frechet_and_kid_rise(fault):
    extract = Random3d()
    real, other, bad = map(extract, (REAL, OTHER, FAULTS[fault]))
    assert distances.frechet(real, bad) > 1.2 * distances.frechet(real, other)
    if fault != "collapse":
        assert distances.kid(real, bad) > distances.kid(real, other)


def test_collapse_lowers_coverage_and_raises_msssim():
    real, other, bad = map(Random3d(), (REAL, OTHER, FAULTS["collapse"]))
    assert compute_prdc(real, bad)["coverage"] < 0.7 * compute_prdc(real, other)["coverage"]
    assert voxels.pairwise_msssim(FAULTS["collapse"]).mean() > voxels.pairwise_msssim(OTHER).mean() + 0.1


def test_blur_and_noise_move_the_spectrum_and_flip_one_profile():
    floor = voxels.spectrum_distance(REAL, OTHER)
    assert voxels.spectrum_distance(REAL, FAULTS["blur"]) > 3 * floor
    assert voxels.spectrum_distance(REAL, FAULTS["noise"]) > 3 * floor
    before, after = (voxels.profile_distances(REAL, x) for x in (OTHER, FAULTS["flip"]))
    assert after["W"] > 5 * before["W"] and after["D"] == pytest.approx(before["D"], rel=1e-3)


def test_histogram_of_a_shift_is_the_shift():
    assert voxels.histogram_distance(REAL * 0.5, REAL * 0.5 + 0.25) == pytest.approx(0.25, abs=0.01)


def test_random3d_is_always_the_same():
    first, second = Random3d(), Random3d()
    assert first.checksum == second.checksum == "b492af501a8afe4596de076b56158d7640cecbe67076eba30e0a8ee2272fed97"
    np.testing.assert_allclose(
        first(REAL[:3]), np.concatenate([second(v[None]) for v in REAL[:3]]), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    "real, fake, match",
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "expected"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "fake.*NaN"),
    ],
)
def test_bad_features(real, fake, match):
    with pytest.raises(UserError, match=match):
        distances.frechet(real, fake)


class Data:
    """A data set, as far as metrics know it."""

    def __init__(self, volumes):
        self.volumes = volumes


def test_training_metrics_are_the_functions_on_the_subset():
    data = Data(REAL)
    measured = {
        name: registry.make_measure(name, data, "3d", 0)(lambda count: OTHER[:count])
        for name in registry.training_names()
        if not name.endswith("_deepbet")  # see test_deepbet.py
    }
    real, other = map(Random3d(), (REAL, OTHER))
    assert sorted(measured) == ["coverage", "density", "distance", "frechet", "kid", "msssim", "precision", "recall"]
    assert measured["frechet"] == pytest.approx(distances.frechet(real, other), rel=1e-4)
    assert measured["kid"] == pytest.approx(distances.kid(real, other), abs=1e-5)
    assert measured["msssim"] == pytest.approx(voxels.pairwise_msssim(OTHER).mean())
    assert measured["distance"] == DistanceToData(REAL)(lambda count: OTHER[:count])
    found = compute_prdc(real, other, 5)
    assert {n: measured[n] for n in found} == pytest.approx(found)
    with pytest.raises(UserError, match="coverage: expected at least 6 volumes in the data; got 5"):
        registry.make_measure("coverage", Data(REAL[:5]), "3d", 0)
    for name in ("frechet", "msssim"):
        with pytest.raises(UserError, match=f"{name}: expected at least 2 volumes in the data; got 1"):
            registry.make_measure(name, Data(REAL[:1]), "3d", 0)
    with pytest.raises(UserError, match="got 'fid'"):
        registry.check_names(["kid", "fid"])
    with pytest.raises(UserError, match="got 'spectrum'"):
        registry.check_names(["spectrum"])


def test_the_registry_says_which_way_is_better():
    higher = {name for name, metric in registry.METRICS.items() if not metric.lower_is_better}
    plain = {"precision", "recall", "density", "coverage"}
    assert higher == plain | {f"{name}_deepbet" for name in plain}
    assert registry.METRICS["msssim"].better == "as floor" and registry.METRICS["msssim"].lower_is_better
    together = [[metric.name for metric in metrics] for _, metrics in registry.comparisons()]
    assert ["precision", "recall", "density", "coverage"] in together and ["frechet"] in together
    assert [f"profile_{axis}" for axis in "DHW"] in together and len(together) == 8
