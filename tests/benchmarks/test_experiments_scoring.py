"""benchmarks.experiments: the split into volumes that train and those held out, and the metrics between them."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.linalg

from benchmarks.experiments import data, scoring, segmentation
from ssgan.data.dataset import DatasetError
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics.extractors.random3d import Random3d
from tests.support.experiment_stand_ins import TINY

# ---- the split ----


def test_the_split_is_disjoint_fixed_and_that_of_the_segmentation():
    names = [f"hippocampus_{i:03d}.nii.gz" for i in range(199)]
    train, held = data.split_indices(names)
    assert (len(train), len(held)) == (160, 39) and sorted(train + held) == list(range(199))
    theirs = segmentation.split(199)
    assert sorted(theirs[0]) == train and sorted(theirs[1]) == held
    shuffled = list(names)
    random.Random(5).shuffle(shuffled)
    again, _ = data.split_indices(shuffled)
    assert {shuffled[i] for i in again} == {names[i] for i in train}
    with pytest.raises(DatasetError, match="167 volumes; expected at least 160 to train and 8 held out"):
        data.split_indices(names[:167])
    with pytest.raises(DatasetError, match="two volumes have the same source name"):
        data.split_indices([*names, names[0]])


def test_a_data_set_is_split_on_the_disk_without_a_voxel_in_both(tmp_path):
    whole = write_phantom_dataset(tmp_path / "whole", 20, (8, 8, 8), seed=4)
    split = data.open_split(str(tmp_path / "whole"), TINY, tmp_path / "split", train=11)
    rows = [{v.tobytes() for v in part.volumes} for part in (split.train, split.held)]
    assert [len(r) for r in rows] == [11, 9] and not rows[0] & rows[1]
    assert rows[0] | rows[1] == {v.tobytes() for v in whole.volumes}
    assert split.train.info.affine == whole.info.affine and split.train.info.recipe == "phantom"
    again = data.open_split(str(tmp_path / "whole"), TINY, tmp_path / "split", train=11)
    assert again.hashes == split.hashes
    with pytest.raises(DatasetError, match="holds other volumes than --data"):
        data.open_split(str(tmp_path / "whole"), TINY, tmp_path / "split", train=12)


# ---- metrics ----


class Means:
    """Four numbers of a volume: enough dimensions for a distance by another way."""

    name, protocol, checksum = "means", "means", ""

    def __call__(self, volumes):
        x = np.asarray(volumes, np.float64)
        return np.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), x[:, 0].mean((1, 2)), x[:, :, 0].mean((1, 2))], 1)


def by_roots(a, b):
    """Frechet distance by the matrix square root."""
    s1, s2 = np.cov(a.T), np.cov(b.T)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real))


def test_distances_are_taken_at_equal_counts_and_averaged():
    rng = np.random.default_rng(0)
    train, held, fake = (rng.normal(m, 1, (n, 8, 8, 8)) for m, n in ((0, 25), (0.1, 8), (0.3, 24)))
    real = scoring.Reference(train, held, Means())
    assert (real.groups, real.count) == (3, 24)
    features = Means()
    f, h = features(fake), features(held)
    row = real.quick(fake)
    expected = np.mean([by_roots(h, f[i : i + 8]) for i in (0, 8, 16)])
    assert row["frechet_held"] == pytest.approx(expected, rel=1e-6)
    t = features(train)[real.order]
    halves = [by_roots(t[:12], f[:12]), by_roots(t[12:24], f[:12])]
    assert row["frechet_train"] == pytest.approx(np.mean(halves), rel=1e-6)
    floors = real.floors()
    assert floors["frechet_train"] == pytest.approx(by_roots(t[:12], t[12:24]), rel=1e-6)
    assert floors["frechet_held"] == pytest.approx(np.mean([by_roots(h, t[i : i + 8]) for i in (0, 8, 16)]), rel=1e-6)
    assert sorted(real.order) == list(range(25))


def test_other_features_are_measured_beside_and_change_nothing():
    rng = np.random.default_rng(2)
    train, held, fake = (rng.uniform(-1, 1, (n, 8, 8, 8)) for n in (25, 8, 24))
    alone, other = scoring.Reference(train, held, Random3d()), scoring.Reference(train, held, Means())
    both = scoring.Reference(train, held, Random3d(), other)
    assert alone.other_features(fake) == {} and both.protocol == alone.protocol
    assert both.whole(fake) == alone.whole(fake) and both.floors() == alone.floors()
    found = both.other_features(fake)["means"]
    names = ("frechet_held", "frechet_train", "kid", "precision", "recall")
    assert found["protocol"] == "means"
    assert found["floors"] == {name: other.floors()[name] for name in names}
    assert found["final"] == {name: other.whole(fake)[name] for name in names}


def test_a_copying_generator_is_told_from_a_good_one():
    rng = np.random.default_rng(1)
    train, held, good = (rng.normal(0, 0.3, (n, 8, 8, 8)).clip(-1, 1) for n in (24, 8, 24))
    real = scoring.Reference(train, held, Means())
    copies = train + rng.normal(0, 1e-3, train.shape)
    assert real.whole(copies)["copies"] < 0.05
    assert real.whole(good)["copies"] == pytest.approx(1, abs=0.1)
    same = real.whole(np.repeat(good[:1], 24, 0) + rng.normal(0, 1e-3, good.shape))
    assert same["msssim"] > 0.9 > real.floors()["msssim"] and same["recall"] < 0.2
