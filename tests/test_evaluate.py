"""`ssgan evaluate` from the command line: the record, the check for copies, the cache and its errors."""

import json

import nibabel
import numpy as np
import pytest

from ssgan import evaluate
from ssgan.data.dataset import VolumeDataset
from ssgan.phantom import main as phantom


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    for name, seed, shape in (("real", 0, "8 12 8"), ("fake", 1, "8 12 8"), ("other", 2, "8 8 8")):
        count = "48" if name == "real" else "24"
        assert (
            phantom(["--out", str(root / name), "--count", count, "--shape", *shape.split(), "--seed", str(seed)]) == 0
        )
    return root


def go(data, out, *more, fake="fake"):
    return evaluate.main(
        ["--real", str(data / "real"), "--fake", str(data / fake), "--out", str(out), "--repeats", "3", *more]
    )


def test_record_and_again_from_the_cache(data, tmp_path):
    more = ("--cache", str(tmp_path / "cache"), "--held-out", str(data / "fake"))
    assert go(data, tmp_path / "a.json", *more) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2  # held-out and fake are the same volumes
    assert go(data, tmp_path / "b.json", *more) == 0
    a, b = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    assert a["metrics"] == b["metrics"] and a["count"] == 24 and "24 against 24" in a["protocol"]
    assert set(a["metrics"]) == set(evaluate.BETTER)
    assert a["memorisation"]["voxels"]["ratio"] == 1  # the fakes are the held-out volumes themselves
    assert (tmp_path / "a.pairs.png").is_file()


def test_the_method_of_each_interval_is_stated(data, tmp_path):
    assert go(data, tmp_path / "a.json", "--interval", "bootstrap") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    methods = {name: row["method"] for name, row in record["metrics"].items()}
    assert methods["frechet"] == methods["spectrum"] == "bootstrap" and methods["msssim"] == "pairs"
    assert {methods[name] for name in evaluate.NEIGHBOUR_METRICS} == {"half"} and "bootstrap" in record["protocol"]


def test_what_is_computed_together_is_computed_once(monkeypatch):
    """Once for the value, once for the floor, once per half: not again for each of its names."""
    rng, calls = np.random.default_rng(0), []
    for module, name in ((evaluate.sets, "prdc"), (evaluate.voxels, "profile_distances")):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    sides = [(rng.normal(size=(16, 6)), rng.uniform(-1, 1, (16, 8, 8, 8)).astype(np.float32)) for _ in range(3)]
    found = evaluate.compare(*sides, repeats=4, seed=0)
    assert list(found) == list(evaluate.BETTER) and found["recall"]["better"] == "higher"
    assert calls.count("prdc") == calls.count("profile_distances") == 4 + 2
    real, fake = (features for features, _ in sides[:2])
    for name, value in evaluate.sets.prdc(real, fake, 5).items():
        assert found[name]["value"] == evaluate.significant(value)
    halves = [evaluate.sets.prdc(a, b, 5)["density"] for a, b in evaluate.sets.halves(real, fake, 4, 0)]
    low, high = found["density"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(halves), rel=1e-3)


def test_no_interval_leaves_what_its_metric_can_be(data, tmp_path):
    """Few volumes, wide intervals: a precision below 0 or above 1 would be no interval at all."""
    assert go(data, tmp_path / "a.json", "--count", "12") == 0
    metrics = json.loads((tmp_path / "a.json").read_text())["metrics"]
    for name, row in metrics.items():
        low, high = row["interval"]
        assert evaluate.RANGE[name][0] <= low <= row["value"] <= high <= evaluate.RANGE[name][1], name
    assert any(metrics[n]["interval"][1] == 1 for n in ("precision", "recall", "coverage"))


def test_copies_are_found():
    rng = np.random.default_rng(0)
    train, held = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    honest = evaluate.memorisation(rng.normal(size=(40, 8)), train, held)
    copied = evaluate.memorisation(train[:20] + 1e-3, train, held)
    assert 0.8 < honest["ratio"] < 1.25 and copied["ratio"] < 0.01 and copied["below_5_percent"] == 1
    late = evaluate.memorisation(train[-5:], train, held[:5])  # copies of volumes far down the training set
    assert late["ratio"] == 0
    assert evaluate.memorisation(train[:20] + 1e-3, train, None)["ratio"] < 0.01


@pytest.mark.parametrize(
    "fake, more, match",
    [
        ("other", (), "shape"),
        ("absent", (), "does not exist"),
        ("fake", ("--count", "25"), "expected at least 50 real"),
        ("fake", ("--count", "3"), "--count"),
        ("fake", ("--repeats", "1"), "--repeats"),
    ],
)
def test_errors(data, tmp_path, capsys, fake, more, match):
    assert go(data, tmp_path / "m.json", *more, fake=fake) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "m.json").exists()


def test_nan_is_named(data):
    source = evaluate.load_source(data / "real", "--real", None, 0)
    bad = np.array(VolumeDataset(data / "real").volumes)
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(evaluate.EvaluateError, match=r"--fake: volumes \[3\]"):
        evaluate._checked(evaluate.Source("dataset", bad, source.spacing, "axial", None), "--fake")


def test_a_folder_of_nifti_gives_what_its_data_set_gives(data, tmp_path):
    """The volumes as they would be on disk: RAS+ axes X, Y, Z, on the real set's intensity scale."""
    fake, real = VolumeDataset(data / "fake"), VolumeDataset(data / "real").info
    folder = tmp_path / "folder"
    folder.mkdir()
    affine = np.diag([*real.spacing[::-1], 1.0])
    for i, volume in enumerate(fake.volumes):
        raw = (np.asarray(volume, np.float32) + 1) / 2 * (real.intensity_high - real.intensity_low) + real.intensity_low
        nibabel.save(nibabel.Nifti1Image(raw.transpose(2, 1, 0), affine), folder / f"{i:02d}.nii.gz")
    assert go(data, tmp_path / "a.json") == 0 and go(data, tmp_path / "b.json", fake=folder) == 0
    a, b = (json.loads((tmp_path / f"{n}.json").read_text())["metrics"] for n in "ab")
    for name, row in a.items():
        assert b[name]["value"] == pytest.approx(row["value"], rel=1e-3, abs=1e-5), name
