"""The table of known faults: every metric moves as its page says, and the blind ones do not move."""

import numpy as np
import pytest

from benchmarks.metrics.faults import FAULTS, main, measure, table
from ssgan.data.phantom import make_phantom, write_phantom_dataset


@pytest.fixture(scope="module")
def found():
    volumes = np.stack([make_phantom((16, 24, 16), 5, i) for i in range(96)])
    volumes = np.roll(volumes, 2, 3)  # off the middle, so that a flip along W is one
    rows = measure(volumes, axis=3)
    none, blur, noise, collapse, copies, flip = (rows[name] for name in FAULTS)
    return {"none": none, "blur": blur, "noise": noise, "collapse": collapse, "copies": copies, "flip": flip}


@pytest.mark.parametrize("metric", ["frechet", "kid"])
def test_feature_distances_see_all_but_copies(found, metric):
    assert all(found[fault][metric] > found["none"][metric] for fault in ("blur", "noise", "collapse", "flip"))
    assert found["copies"][metric] < found["none"][metric]


def test_what_sees_which_fault(found):
    none = found["none"]
    for fault, metrics in {
        "blur": ("spectrum", "histogram"), "noise": ("spectrum", "histogram"),
        "collapse": ("profile_W", "msssim"), "flip": ("profile_W", "mmd"),
    }.items():  # fmt: skip
        assert all(found[fault][m] > none[m] for m in metrics), fault
    for fault, metrics in {
        "blur": ("recall",), "noise": ("precision", "density", "coverage"), "collapse": ("recall", "coverage"),
        "flip": ("precision", "recall", "density", "coverage"),
    }.items():  # fmt: skip
        assert all(found[fault][m] < none[m] for m in metrics), fault


def test_what_is_blind_to_which_fault(found):
    none = found["none"]
    assert found["noise"]["msssim"] < none["msssim"]
    for metric in ("histogram", "spectrum", "msssim", "profile_D", "profile_H"):
        assert found["flip"][metric] == pytest.approx(none[metric], rel=1e-3)


def test_only_memorisation_sees_copies(found):
    copies, none = found["copies"], found["none"]
    better = {"frechet", "kid", "mmd", "histogram", "spectrum", "profile_D", "profile_H", "profile_W"}
    assert all(copies[m] < none[m] for m in better)
    assert all(copies[m] >= none[m] for m in ("precision", "recall", "coverage"))
    assert copies["nearest / held out"] < 0.3 and copies["below 5 %"] == 1.0
    assert 0.7 < none["nearest / held out"] < 1.4 and none["below 5 %"] < 0.3


def test_the_command_writes_the_page(tmp_path, capsys):
    write_phantom_dataset(tmp_path / "data", count=24, shape=(8, 12, 8), seed=1)
    assert main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "faults.md")]) == 0
    text = (tmp_path / "faults.md").read_text()
    assert "8 volumes a side of 8x12x8 voxels" in text and all(f"| {fault} |" in text for fault in FAULTS)
    assert text.count("\n|") == len(FAULTS) + 2 and table(measure(np.ones((24, 8, 8, 8)) * 0.5, 3)).count("|") > 50
    with pytest.raises(SystemExit):
        write_phantom_dataset(tmp_path / "few", count=6, shape=(8, 12, 8), seed=1)
        main(["--data", str(tmp_path / "few")])
    assert "expected at least 24 volumes; got 6" in capsys.readouterr().err
