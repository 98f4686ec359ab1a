"""Phantoms: seeded, independent of how many are made, and with the structure of a head."""

import json

import numpy as np
import pytest

from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.data.phantom import make_phantom, make_phantoms, write_phantom_dataset
from ssgan.phantom import main
from ssgan.utils.errors import UserError

SHAPES = [(16, 24, 16), (12, 20, 28), (5, 16, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_range_shape_and_variety(shape):
    phantoms = make_phantoms(6, shape, seed=3)
    assert phantoms.shape == (6, *shape)
    assert phantoms.dtype == np.float32
    assert np.abs(phantoms).max() <= 1
    for i in range(6):
        for j in range(i):
            assert np.abs(phantoms[i] - phantoms[j]).mean() > 0.01


def test_a_phantom_depends_on_seed_and_index_alone():
    few, many = make_phantoms(2, (8, 12, 8), seed=7), make_phantoms(5, (8, 12, 8), seed=7)
    assert np.array_equal(few, many[:2])
    assert np.array_equal(many[4], make_phantom((8, 12, 8), 7, 4))
    assert not np.array_equal(few, make_phantoms(2, (8, 12, 8), seed=8))


def test_a_head_has_its_parts():
    """From the left: dark air, bright scalp, dark skull, bright brain, dark ventricles near the middle."""
    found = 0
    for volume in make_phantoms(30, (32, 48, 32), seed=0):
        assert volume[:3, :3, :3].mean() < -0.9
        half = volume[14:19, 24].mean(0)[:16]
        start = int(np.flatnonzero(half > -0.5)[0])
        scalp = start + int(half[start : start + 3].argmax())
        skull = scalp + int(half[scalp : scalp + 4].argmin())
        brain = skull + int(half[skull:].argmax())
        ventricle = volume[16:21, 24, 10:22].min()
        found += half[scalp] > half[skull] + 0.2 and half[brain] > half[skull] + 0.4 and half[brain] > ventricle + 0.4
    assert found >= 27


def test_a_head_is_nearly_mirror_symmetric_and_longer_than_wide():
    mean = make_phantoms(60, (24, 32, 24), seed=1).mean(0)
    assert np.abs(mean - mean[:, :, ::-1]).mean() < 0.08
    inside = mean > -0.7
    length = np.ptp(np.flatnonzero(inside.any((0, 2))))
    width = np.ptp(np.flatnonzero(inside.any((0, 1))))
    assert length > width


def test_the_data_set_is_complete(tmp_path):
    data = write_phantom_dataset(tmp_path / "heads", 3, (8, 12, 8), seed=5)
    assert np.array_equal(np.array(data.volumes), make_phantoms(3, (8, 12, 8), 5))
    assert data.info.recipe == "phantom"
    centre = np.asarray(data.info.affine) @ [3.5, 5.5, 3.5, 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-9)
    assert data.info.spacing == (15.0, 15.0, 15.0)
    with pytest.raises(DatasetError, match="holds a data set already"):
        write_phantom_dataset(tmp_path / "heads", 3, (8, 12, 8))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "heads"
    assert main(["--out", str(out), "--count", "4", "--shape", "8", "12", "16", "--seed", "2"]) == 0
    assert "4 phantoms" in capsys.readouterr().out
    assert VolumeDataset(out).volumes.shape == (4, 16, 12, 8)
    assert json.loads((out / "dataset.json").read_text())["info"]["shape"] == [16, 12, 8]
    assert (out / "contact_sheet.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "at least one phantom"),
        (["--shape", "16", "17", "16"], "shape: axis Y has 17 voxels"),
        (["--seed", "-1"], "--seed: expected 0 or more"),
    ],
    ids=["none", "shape", "seed"],
)
def test_bad_arguments_of_the_command(tmp_path, capsys, arguments, message):
    assert main(["--out", str(tmp_path / "heads"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "heads").exists()


def test_bad_arguments_of_the_functions():
    with pytest.raises(UserError, match="at least one phantom"):
        make_phantoms(0, (8, 8, 8))
    with pytest.raises(UserError, match="at least 4 voxels"):
        make_phantoms(1, (8, 3, 8))
