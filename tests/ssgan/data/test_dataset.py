"""The data set on disk: what was written is read back, damage is named, other files are not touched."""

import hashlib
import json
import os

import numpy as np
import pytest
import torch

from ssgan.data.axes import ARRAY_AXES, to_array_axes, to_axial, to_world_axes
from ssgan.data.dataset import DatasetError, DatasetInfo, VolumeDataset, to_nifti
from ssgan.data.phantom import write_phantom_dataset
from ssgan.data.writer import DatasetWriter, check_destination
from tests.support.nifti_cases import snapshot

SHAPE = (3, 5, 4)
AFFINE = np.array([[1.5, 0, 0, -3], [0, 2, 0, 4], [0, 0, 0.5, 7], [0, 0, 0, 1]])


def volume(seed):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def write(path, count=3, overwrite=False, first=0):
    with DatasetWriter(path, SHAPE, overwrite) as writer:
        for i in range(first, first + count):
            writer.add(volume(i), {"source": f"{i}.nii", "intensity_low": 10.0 * i, "intensity_high": 100.0 + i})
        writer.skip({"file": "b", "reason": "c"})
        return writer.finish(spacing=(1.5, 2, 0.5), affine=AFFINE, slice_axis="axial", recipe="mri")


@pytest.mark.parametrize("count", [1, 3, 200])
def test_round_trip(count, tmp_path):
    """Read by numpy alone and by VolumeDataset, which maps the file and does not read it."""
    write(tmp_path / "set", count)
    expected = np.stack([volume(i) for i in range(count)])
    assert np.array_equal(np.load(tmp_path / "set" / "volumes.npy"), expected)
    dataset = VolumeDataset(tmp_path / "set")
    assert len(dataset) == count and isinstance(dataset.volumes, np.memmap) and dataset.volumes.mode == "r"
    assert dataset.volumes.dtype == np.float32 and np.array_equal(dataset.volumes, expected)
    assert [r["source"] for r in dataset.records] == [f"{i}.nii" for i in range(count)]
    assert dataset.skipped == [{"file": "b", "reason": "c"}]
    info = dataset.info
    assert info.shape == SHAPE and info.spacing == (1.5, 2, 0.5) and np.array_equal(info.affine, AFFINE)
    assert (info.slice_axis, info.recipe) == ("axial", "mri")
    assert info.intensity_low == np.median(10.0 * np.arange(count))
    assert info.intensity_high == 100 + np.median(np.arange(count))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]


def test_content_hash_is_that_of_the_voxels(tmp_path):
    info = write(tmp_path / "a").info
    data = np.load(tmp_path / "a" / "volumes.npy")
    assert info.content_hash == hashlib.sha256(data.tobytes()).hexdigest()
    assert info.content_hash == hashlib.sha256((tmp_path / "a" / "volumes.npy").read_bytes()[128:]).hexdigest()
    assert write(tmp_path / "b").info == info
    assert write(tmp_path / "c", first=1).info.content_hash != info.content_hash


def test_batches_are_the_volumes_and_slices(tmp_path):
    dataset = write(tmp_path / "set", 5)
    data = np.array(dataset.volumes)
    batch = dataset.volume_batch([4, 0, 4])
    assert batch.shape == (3, 1, *SHAPE) and batch.dtype == torch.float32
    assert np.array_equal(batch[:, 0].numpy(), data[[4, 0, 4]])
    volumes, slices = np.array([0, 3, 3, 1]), np.array([2, 0, 1, 2])
    batch = dataset.slice_batch(volumes, slices)
    assert batch.shape == (4, 1, 1, *SHAPE[1:]) and batch.dtype == torch.float32
    assert np.array_equal(batch[:, 0, 0].numpy(), data[volumes, slices])
    batch += 1  # of a copy; the file does not change
    assert np.array_equal(dataset.volumes, data)
    with pytest.raises(IndexError):
        dataset.volume_batch([5])
    with pytest.raises(IndexError):
        dataset.slice_batch([0], [3])
    with pytest.raises(ValueError):
        dataset.slice_batch([0, 1], [2])


def test_info_goes_through_json_unchanged(tmp_path):
    info = write(tmp_path / "set").info
    assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


@pytest.mark.parametrize(
    "change, words",
    [
        ({"colour": 1}, "expected the fields .*got .*colour"),
        ({"shape": None}, "shape, spacing or affine hold no numbers"),
        ({"spacing": ["x", 1, 1]}, "shape, spacing or affine hold no numbers"),
        ({"slice_axis": "diagonal"}, "slice_axis is 'diagonal'.*axial.*coronal.*sagittal"),
    ],
)
def test_bad_info_is_named(change, words, tmp_path):
    with pytest.raises(DatasetError, match=words):
        DatasetInfo.from_json({**write(tmp_path / "set").info.to_json(), **change})


def test_info_that_is_no_description():
    for value in ([], None, {"shape": [1, 2, 3]}):
        with pytest.raises(DatasetError, match="expected the fields"):
            DatasetInfo.from_json(value)


def damage(path, how):
    npy, head = path / "volumes.npy", json.loads((path / "dataset.json").read_text())
    array = np.load(npy)
    match how:
        case "no volumes.npy":
            npy.unlink()
        case "empty volumes.npy":
            npy.write_bytes(b"")
        case "cut in the header":
            npy.write_bytes(npy.read_bytes()[:50])
        case "cut in the voxels":
            npy.write_bytes(npy.read_bytes()[:-1])
        case "text":
            npy.write_text("not an array" * 100)
        case "pickle":
            np.save(npy, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "fewer volumes":
            np.save(npy, array[:2])
        case "other shape":
            np.save(npy, array.transpose(0, 1, 3, 2))
        case "float64":
            np.save(npy, array.astype(np.float64))
        case "big-endian":
            np.save(npy, array.astype(">f4"))
        case "half a dataset.json":
            (path / "dataset.json").write_text((path / "dataset.json").read_text()[:100])
            return
        case "no dataset.json":
            (path / "dataset.json").unlink()
            return
        case "version 2":
            head["version"] = 2
        case "no format":
            del head["format"]
        case "no records":
            del head["volumes"]
        case "a list":
            head = [head]
    (path / "dataset.json").write_text(json.dumps(head))


@pytest.mark.parametrize(
    "how, words",
    [
        ("no volumes.npy", r"volumes\.npy is missing; prepare the data set again"),
        ("empty volumes.npy", r"volumes\.npy is damaged or cut off"),
        ("cut in the header", r"volumes\.npy is damaged or cut off"),
        ("cut in the voxels", r"volumes\.npy is damaged or cut off"),
        ("text", r"volumes\.npy is damaged or cut off"),
        ("pickle", r"volumes\.npy is damaged or cut off"),
        ("fewer volumes", r"expected float32 of shape \(3, 3, 5, 4\).*got float32 of shape \(2, 3, 5, 4\)"),
        ("other shape", r"expected float32 of shape \(3, 3, 5, 4\).*got float32 of shape \(3, 3, 4, 5\)"),
        ("float64", r"expected float32 of shape .*got float64"),
        ("big-endian", r"expected float32 of shape .*got >f4"),
        ("half a dataset.json", r"dataset\.json is not valid JSON"),
        ("no dataset.json", r"is not a data set \(it has no dataset\.json\).*ssgan prepare"),
        ("version 2", r"expected format 'ssgan-dataset', version 1; got \('ssgan-dataset', 2\)"),
        ("no format", r"expected format 'ssgan-dataset', version 1; got \(None, 1\)"),
        ("no records", r"dataset\.json lacks volumes"),
        ("a list", r"expected format 'ssgan-dataset', version 1; got list"),
    ],
)
def test_damage_is_named(how, words, tmp_path):
    write(tmp_path / "set")
    damage(tmp_path / "set", how)
    with pytest.raises(ValueError, match=words) as caught:
        VolumeDataset(tmp_path / "set")
    assert str(tmp_path / "set") in str(caught.value)


def test_absent_data_set(tmp_path):
    with pytest.raises(DatasetError, match="does not exist; make one with `ssgan prepare`"):
        VolumeDataset(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "bad",
    [np.full(SHAPE, np.nan), np.full(SHAPE, 1.01), np.zeros((3, 4, 5)), np.zeros((1, *SHAPE))],
    ids=["NaN", "above 1", "axes", "dimensions"],
)
def test_bad_volume_is_refused_and_nothing_stays(bad, tmp_path):
    with pytest.raises(ValueError, match=r"expected finite values in \[-1, 1\] of shape \(3, 5, 4\)"):
        with DatasetWriter(tmp_path / "set", SHAPE) as writer:
            writer.add(volume(0), {})
            writer.add(bad, {})
    assert list(tmp_path.iterdir()) == []


def test_leaving_without_finish_leaves_nothing(tmp_path):
    with DatasetWriter(tmp_path / "deep" / "set", SHAPE) as writer:
        writer.add(volume(0), {})
        assert np.array_equal(writer.read(1), volume(0)[None])
    assert list((tmp_path / "deep").iterdir()) == []


def make_destination(path, what):
    path.mkdir()
    match what:
        case "file":
            path.rmdir()
            path.write_text("thesis")
        case "run":
            (path / "checkpoints").mkdir()
            (path / "config.json").write_text("{}")
        case "other data set":  # the Medical Segmentation Decathlon's
            (path / "dataset.json").write_text('{"name": "Hippocampus", "training": []}')
        case "damaged data set":
            (path / "dataset.json").write_text('{"format": "ssgan-data')
        case "data set":
            path.rmdir()
            write(path)
        case "data set with a run":
            path.rmdir()
            write(path)
            (path / "run").mkdir()
            (path / "run" / "log.jsonl").write_text("{}")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "what, words",
    [
        ("file", "is a file; expected a folder"),
        ("run", "is not empty and not a data set"),
        ("other data set", "is not empty and not a data set"),
        ("damaged data set", "is not empty and not a data set"),
        ("data set with a run", "holds more than a data set, such as run"),
        ("data set", "holds a data set already; .*--overwrite"),
    ],
)
def test_what_is_there_is_not_touched(what, words, overwrite, tmp_path):
    make_destination(tmp_path / "out", what)
    before = snapshot(tmp_path)
    if overwrite and what == "data set":
        assert len(write(tmp_path / "out", 5, overwrite=True)) == 5
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
        return
    if what == "data set with a run" and not overwrite:
        words = "holds a data set already"
    with pytest.raises(DatasetError, match=words):
        write(tmp_path / "out", 5, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_what_came_there_in_the_meantime_is_not_touched(tmp_path):
    """Two runs with the same --out: the second to finish does not replace the first."""
    with pytest.raises(DatasetError, match="holds a data set already"):
        with DatasetWriter(tmp_path / "set", SHAPE) as writer:
            writer.add(volume(0), {"intensity_low": 0, "intensity_high": 1})
            write(tmp_path / "set", 2)
            writer.finish(spacing=(1, 1, 1), affine=np.eye(4), slice_axis="axial", recipe="mri")
    assert len(VolumeDataset(tmp_path / "set")) == 2 and len(list(tmp_path.iterdir())) == 1


def test_empty_folder_is_used(tmp_path):
    (tmp_path / "set").mkdir()
    check_destination(tmp_path / "set", False)
    assert len(write(tmp_path / "set")) == 3 and len(list(tmp_path.iterdir())) == 1


def test_a_link_stays_a_link(tmp_path):
    """Data often lies on another disk, with a link to it: that disk is written to."""
    write(tmp_path / "disk" / "set")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "set")
    write(tmp_path / "link", 4, overwrite=True)
    assert (tmp_path / "link").is_symlink() and len(VolumeDataset(tmp_path / "disk" / "set")) == 4
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["dataset.json", "disk", "link", "set", "volumes.npy"]


def test_failed_rename_puts_the_earlier_data_set_back(tmp_path, monkeypatch):
    write(tmp_path / "set")
    before, replace = snapshot(tmp_path), os.replace

    def refuse(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Input/output"):
        write(tmp_path / "set", 5, overwrite=True)
    assert snapshot(tmp_path) == before


def test_axes_are_permuted_and_back():
    """Against coordinates written into the voxels: value 100 x + 10 y + z."""
    x, y, z = np.meshgrid(range(4), range(5), range(3), indexing="ij")
    world = 100 * x + 10 * y + z
    expected = {
        "axial": lambda d, h, w: 100 * w + 10 * h + d,
        "coronal": lambda d, h, w: 100 * w + 10 * d + h,
        "sagittal": lambda d, h, w: 100 * d + 10 * w + h,
    }
    for axis in ARRAY_AXES:
        array = to_array_axes(world, axis)
        assert all(array[i] == expected[axis](*i) for i in np.ndindex(array.shape))
        assert np.array_equal(to_world_axes(array, axis), world)
        assert np.array_equal(to_world_axes(np.stack([array, array + 1]), axis)[1], world + 1)
        assert np.array_equal(to_axial(array[None], axis)[0], world.transpose(2, 1, 0))


def test_to_nifti_refuses_another_shape(tmp_path):
    info = write(tmp_path / "set").info
    image = to_nifti(torch.from_numpy(volume(0)), info)
    assert image.shape == (4, 5, 3) and np.array_equal(image.affine, AFFINE)
    assert np.allclose(image.get_fdata()[1, 2, 0], (volume(0)[0, 2, 1] + 1) / 2 * (101 - 10) + 10, atol=1e-3)
    with pytest.raises(DatasetError, match=r"expected shape \(D, H, W\) = \(3, 5, 4\); got \(4, 5, 3\)"):
        to_nifti(np.zeros((4, 5, 3)), info)


def test_phantom_data_set_is_one(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "set", 2, (8, 12, 8), seed=1)
    assert len(dataset) == 2 and dataset.info.recipe == "phantom"
    with pytest.raises(DatasetError, match="holds a data set already"):
        write_phantom_dataset(tmp_path / "set", 2, (8, 12, 8), seed=1)
