"""`ssgan evaluate` from the command line: the record, the check for copies, the cache and its errors."""

import json

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from ssgan import evaluate
from ssgan.data.dataset import VolumeDataset, to_nifti
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics import evaluation, intervals, memorisation, prdc, volume_sets, voxels
from ssgan.metrics.extractors import deepbet
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.registry import METRICS
from ssgan.models.sampling import latents, synthesise
from ssgan.phantom import main as phantom
from ssgan.runs import checkpoint
from ssgan.runs.generator import load_generator
from tests.support.tiny_runs import SHAPE, make_run

COMPARED = [
    "frechet", "kid", "precision", "recall", "density", "coverage", "mmd", "msssim", "histogram", "spectrum",
    "profile_D", "profile_H", "profile_W",
]  # fmt: skip


@pytest.fixture(autouse=True)
def without_deepbet(monkeypatch):
    """What is beside random3d is in test_deepbet.py."""
    monkeypatch.setattr(deepbet, "is_installed", lambda: False)


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
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    assert go(data, tmp_path / "b.json", *more[2:]) == 0
    torch.set_num_threads(threads)
    uncached = json.loads((tmp_path / "b.json").read_text())
    assert go(data, tmp_path / "a.json", *more) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2  # held-out and fake are the same volumes
    assert go(data, tmp_path / "b.json", *more) == 0
    a, b = (json.loads((tmp_path / f"{n}.json").read_text()) for n in "ab")
    a["memorisation"].pop("picture")
    for other in (b, uncached):  # with and without the cache, by one thread or two: the whole record
        other["memorisation"].pop("picture")
        assert other == a
    assert a["count"] == 24 and "24 against 24 volumes of 8x12x8 voxels" in a["protocol"]
    assert list(a["metrics"]) == COMPARED
    assert a["memorisation"]["voxels"]["ratio"] == 1  # the fakes are the held-out volumes themselves
    assert (tmp_path / "a.pairs.png").is_file()
    assert [len(a["memorisation"][space]["closest"]) for space in ("voxels", "features")] == [8, 8]


def test_the_method_of_each_interval_is_stated(data, tmp_path):
    assert go(data, tmp_path / "a.json", "--interval", "bootstrap") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    methods = {name: row["method"] for name, row in record["metrics"].items()}
    assert methods["frechet"] == methods["spectrum"] == "bootstrap" and methods["msssim"] == "pairs"
    neighbours = ("precision", "recall", "density", "coverage")
    assert {methods[name] for name in neighbours} == {"half"} and "bootstrap" in record["protocol"]


def test_what_is_computed_together_is_computed_once(monkeypatch):
    """Once for the value, once for the floor, once per half: not again for each of its names."""
    rng, calls = np.random.default_rng(0), []
    for module, name in ((prdc, "compute_prdc"), (voxels, "profile_distances")):
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, own=own, name=name: calls.append(name) or own(*a))
    sides = [(rng.normal(size=(16, 6)), rng.uniform(-1, 1, (16, 8, 8, 8)).astype(np.float32)) for _ in range(3)]
    found = evaluation.compare_sets(*sides, repeats=4, seed=0)
    assert list(found) == COMPARED and found["recall"]["better"] == "higher"
    assert calls.count("compute_prdc") == calls.count("profile_distances") == 4 + 2
    real, fake = (features for features, _ in sides[:2])
    for name, value in prdc.compute_prdc(real, fake, 5).items():
        assert found[name]["value"] == memorisation.significant(value)
    halves = [prdc.compute_prdc(a, b, 5)["density"] for a, b in intervals.halves(real, fake, 4, 0)]
    low, high = found["density"]["interval"]
    assert high - low == pytest.approx(2 * 1.96 * np.std(halves), rel=1e-3)


def test_distances_in_blocks_and_a_part_of_the_training_volumes(monkeypatch):
    """Blocks change nothing; of many training volumes some, evenly spaced, are the reference, each without itself."""
    a, b = np.random.default_rng(0).normal(size=(2, 23, 4))
    np.testing.assert_array_equal(memorisation.pairwise_distances(a, b[:9], block=5), cdist(a, b[:9]))
    monkeypatch.setattr(memorisation, "REFERENCE_ROWS", 3)
    own = cdist(b, b) + np.diag([np.inf] * 23)
    expected = np.median(own.min(1)[[0, 11, 22]])
    assert memorisation.memorisation(a, b, None)["median_reference"] == memorisation.significant(expected)


def test_no_interval_leaves_what_its_metric_can_be(data, tmp_path):
    """Few volumes, wide intervals: a precision below 0 or above 1 would be no interval at all."""
    assert go(data, tmp_path / "a.json", "--count", "12") == 0
    metrics = json.loads((tmp_path / "a.json").read_text())["metrics"]
    for name, row in metrics.items():
        low, high = row["interval"]
        least, most = METRICS[name].bounds
        assert least <= low <= row["value"] <= high <= most, name
    assert any(metrics[n]["interval"][1] == 1 for n in ("precision", "recall", "coverage"))


def test_copies_are_found():
    rng = np.random.default_rng(0)
    train, held = rng.normal(size=(30, 8)), rng.normal(size=(30, 8))
    honest = memorisation.memorisation(rng.normal(size=(40, 8)), train, held)
    copied = memorisation.memorisation(train[:20] + 1e-3, train, held)
    assert 0.8 < honest["ratio"] < 1.25 and copied["ratio"] < 0.01 and copied["below_5_percent"] == 1
    late = memorisation.memorisation(train[-5:], train, held[:5])  # copies of volumes far down the training set
    assert late["ratio"] == 0
    assert memorisation.memorisation(train[:20] + 1e-3, train, None)["ratio"] < 0.01


def test_the_cache_goes_by_voxels_and_extractor(tmp_path):
    """A changed voxel, preprocessing or weight is another file; a damaged file is named."""
    volumes = np.random.default_rng(0).uniform(-1, 1, (12, 8, 8, 8)).astype(np.float32)
    changed = volumes.copy()
    changed[5, 1, 2, 3] += 0.25

    def features(volumes, **attributes):
        extractor = Random3d()
        for name, value in attributes.items():
            setattr(extractor, name, value)
        source = volume_sets.VolumeSet(tmp_path, "folder", volumes, (1, 1, 1), "axial")
        found = evaluation.cached_features(extractor, source, tmp_path)
        return found, len(list(tmp_path.iterdir()))

    first, files = features(volumes)
    assert files == 1 and features(volumes.copy())[1] == 1
    other, files = features(changed)
    assert files == 2 and not np.array_equal(other[5], first[5]) and np.array_equal(other[:5], first[:5])
    assert features(volumes, protocol="another preprocessing")[1] == 3
    assert features(volumes, checksum="other weights")[1] == 4
    for file in tmp_path.iterdir():
        file.write_bytes(b"cut")
    with pytest.raises(volume_sets.EvaluateError, match=r"--cache: .*\.npy is damaged .*; delete it"):
        features(volumes)


def test_a_run_is_evaluated_by_the_checkpoint_that_is_named(tmp_path, capsys):
    run = make_run(tmp_path)
    write_phantom_dataset(tmp_path / "real", count=24, shape=SHAPE, seed=0)
    out, best = tmp_path / "m.json", tmp_path / "other.safetensors"
    (last,) = (run / "checkpoints").glob("3d-final*")
    tensors, meta = checkpoint.load(last)
    checkpoint.save(best, {n: t * 0 if n.startswith("G_ema") else t for n, t in tensors.items()}, meta)
    told = ["--real", str(tmp_path / "real"), "--fake", str(run), "--out", str(out), "--repeats", "2"]
    records = []
    for more in ([], ["--checkpoint", str(best)]):
        assert evaluate.main([*told, *more]) == 0
        records.append(json.loads(out.read_text()))
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("12 generated against 12 real volumes, features of random3d; floor: 12 other real")
    for name, better in (("frechet", "lower is"), ("recall", "higher is"), ("msssim", "better near the floor")):
        assert [better in line for line in shown if line.startswith(f"{name} ")] == [True, True]
    a, b = (r["fake"] for r in records)
    assert (a["kind"], a["volumes"], a["checkpoint"]) == ("run", 12, last.name)
    assert (b["checkpoint"], b["checkpoint_sha256"]) == (best.name, checkpoint.checksum(best))
    assert a["checkpoint_images"] == b["checkpoint_images"] == 8
    assert a["sha256"] != b["sha256"] and "generated by seeds 0 to 11, no truncation" in records[0]["protocol"]
    G = load_generator(run).G
    made = np.clip(synthesise(G, latents(range(12), G.cfg.z_dim), batch=4), -1, 1)
    assert a["sha256"] == volume_sets.VolumeSet(run, "run", made, (1, 1, 1), "axial").sha256
    assert evaluate.main([*told[:2], "--fake", told[1], *told[4:], "--checkpoint", str(best)]) == 2
    assert "is no run; leave --checkpoint out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fake, more, match",
    [
        ("fake", ("--held-out", "real"), "--held-out: volumes [0, 1, 2, 3, 4] (48 in all) are among those of --real"),
        ("fake", ("--cache", "real/dataset.json"), "--cache: "),
        ("real/dataset.json", (), "is a file; expected a data set"),
        ("other", (), "shape"),
        ("absent", (), "does not exist"),
        ("fake", ("--count", "25"), "expected at least 50 real"),
        ("fake", ("--count", "3"), "--count"),
        ("fake", ("--repeats", "1"), "--repeats"),
    ],
)
def test_errors(data, tmp_path, capsys, fake, more, match):
    more = [str(data / value) if value.startswith("real") else value for value in more]
    assert go(data, tmp_path / "m.json", *more, fake=fake) == 2
    assert match in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before_the_work(data, tmp_path, capsys):
    for out, match in ((tmp_path, "ends in .json"), (tmp_path / "m.txt", "ends in .json")):
        assert go(data, out) == 2
        assert f"--out {out}: expected a file name that {match}" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert go(data, tmp_path / "file" / "m.json") == 2
    assert "is a file; expected a folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_nan_is_named(data):
    source = volume_sets.load_volume_set(data / "real", "--real")
    bad = np.array(VolumeDataset(data / "real").volumes)
    bad[3, 0, 0, 0] = np.nan
    with pytest.raises(volume_sets.EvaluateError, match=r"--fake: volumes \[3\]"):
        volume_sets.check_finite(volume_sets.VolumeSet(data, "dataset", bad, source.spacing, "axial"), "--fake")


def test_a_folder_of_nifti_gives_what_its_data_set_gives(data, tmp_path, capsys):
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
    # The other way round: the folder is real, on the scale of the data set that it is compared with.
    told = ["--fake", str(data / "real"), "--repeats", "2", "--out"]
    assert evaluate.main(["--real", str(data / "fake"), *told, str(tmp_path / "a.json")]) == 0
    assert evaluate.main(["--real", str(folder), *told, str(tmp_path / "b.json")]) == 0
    a, b = (json.loads((tmp_path / f"{n}.json").read_text())["metrics"] for n in "ab")
    for name, row in a.items():
        assert b[name]["value"] == pytest.approx(row["value"], rel=1e-3, abs=1e-5), name
    capsys.readouterr()
    assert evaluate.main(["--real", str(folder), "--fake", str(folder), "--out", str(tmp_path / "c.json")]) == 2
    assert "no common intensity scale; prepare one of them" in capsys.readouterr().err


FEW = ("1", "2", "11", "23", "folder1", "folder23")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A run, data sets of 1 to 23 volumes and folders of 1 and 23."""
    root = tmp_path_factory.mktemp("few")
    make_run(root)
    for count in (1, 2, 11, 12, 23):
        data = write_phantom_dataset(root / f"{count}", count=count, shape=SHAPE, seed=count)
        if count in (1, 23):
            (root / f"folder{count}").mkdir()
            for i in range(count):
                nibabel.save(to_nifti(data.volumes[i], data.info), root / f"folder{count}" / f"{i}.nii")
    return root


@pytest.mark.parametrize(
    "real, fake, more, got",
    [
        *((real, "3d", (), f"{real.strip('folder')} and a run") for real in FEW),
        *((real, "12", (), f"{real.strip('folder')} and 12") for real in ("1", "2", "23", "folder1", "folder23")),
        *(("1", fake, (), f"1 and {fake[-1]}") for fake in ("1", "2", "folder1")),
        ("23", "3d", ("--count", "12"), "23 and a run"),
    ],
)  # fmt: skip
def test_too_few_volumes_are_counted_before_any_is_generated(real, fake, more, got, few, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(volume_sets, "synthesise_pairs", lambda *args, **kwargs: pytest.fail("generated"))
    told = ["--real", str(few / real), "--fake", str(few / fake), "--out", str(tmp_path / "a.json"), *more]
    assert evaluate.main(told) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        "ssgan evaluate: error: expected at least 24 real volumes (half are for the floor) and 12 gen"
    )
    assert f"; got {got}" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_one_held_out_volume_is_enough(data, few, tmp_path):
    one = write_phantom_dataset(tmp_path / "one", count=1, shape=(8, 12, 8), seed=9)
    assert go(data, tmp_path / "a.json", "--held-out", str(one.path)) == 0
