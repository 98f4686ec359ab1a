"""Data sets with masks: written, resumed, split, read by numpy alone, and as NIfTI; those without stay as they were."""

import hashlib
import json
import os
import zlib

import numpy as np
import pytest
import torch

from ssgan.data.axes import ARRAY_AXES
from ssgan.data.dataset import DatasetError, DatasetInfo, VolumeDataset, content_hash, to_nifti, to_nifti_mask
from ssgan.data.phantom import make_labelled_phantom, make_phantom, write_phantom_dataset
from ssgan.data.split import copy_part
from ssgan.data.writer import DatasetWriter, MaskClasses
from ssgan.phantom import main as phantom
from ssgan.split import main as split
from tests.support.nifti_cases import snapshot

SHAPE = (3, 5, 4)
CLASSES = MaskClasses((0, 2, 7), ("background", "anterior", "posterior"))
AFFINE = np.diag([1.5, 2.0, 0.5, 1.0])


def volume(seed):
    return np.random.default_rng(seed).uniform(-1, 1, SHAPE).astype(np.float32)


def mask(seed):
    return np.random.default_rng([seed, 1]).integers(0, 3, SHAPE).astype(np.uint8)


def write(path, count=4, unlabelled=(2,), stop=None, **more):
    with DatasetWriter(path, SHAPE, masks=CLASSES, **more) as writer:
        begun = writer.done
        for i in range(begun, count):
            if i == stop:
                raise KeyboardInterrupt
            record = {"source": f"{i}.nii", "intensity_low": 0.0, "intensity_high": 1.0, "mask": f"labels/{i}.nii"}
            writer.add(volume(i), record, None if i in unlabelled else mask(i))
        assert np.array_equal(writer.read_masks(1)[0], mask(0))
        return writer.finish(spacing=(1.5, 2, 0.5), affine=AFFINE, slice_axis="axial", recipe="mri"), begun


def test_round_trip(tmp_path):
    """By numpy alone and by VolumeDataset, which maps the file; 255 where there is no mask."""
    write(tmp_path / "set")
    expected = np.stack([mask(0), mask(1), np.full(SHAPE, 255, np.uint8), mask(3)])
    stored = np.load(tmp_path / "set" / "masks.npy")
    assert stored.dtype == np.uint8 and np.array_equal(stored, expected)
    data = VolumeDataset(tmp_path / "set")
    assert isinstance(data.masks, np.memmap) and data.masks.mode == "r" and np.array_equal(data.masks, expected)
    assert data.has_mask.tolist() == [True, True, False, True] and data.has_mask.dtype == bool
    assert (data.info.mask_values, data.info.mask_names, data.info.mask_classes) == (*CLASSES, 3)
    assert [r["mask"] for r in data.records] == ["labels/0.nii", "labels/1.nii", None, "labels/3.nii"]
    for i, record in enumerate(data.records):
        assert record["mask_voxels"] == [int((expected[i] == k).sum()) for k in range(3)]
    assert np.array_equal(data.volumes, np.stack([volume(i) for i in range(4)]))
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["dataset.json", "masks.npy", "volumes.npy"]


def test_batches(tmp_path):
    data = write(tmp_path / "set")[0]
    batch = data.mask_batch([3, 0, 3])
    assert batch.dtype == torch.uint8 and np.array_equal(batch.numpy(), np.stack([mask(3), mask(0), mask(3)]))
    slices = data.mask_slice_batch([1, 3], np.array([2, 0]))
    assert slices.shape == (2, 1, 5, 4) and slices.dtype == torch.uint8
    assert np.array_equal(slices[:, 0].numpy(), np.stack([mask(1)[2], mask(3)[0]]))
    slices += 1  # of a copy
    assert np.array_equal(data.masks[1], mask(1))
    with pytest.raises(ValueError):
        data.mask_slice_batch([0, 1], [2])
    assert data.volume_batch([0]).shape == (1, 1, *SHAPE)


def test_without_masks_all_is_as_before(tmp_path):
    """No file, no field and no hash more, so that runs on old data sets go on."""
    data = write_phantom_dataset(tmp_path / "set", 2, (8, 12, 8))
    assert data.masks is None and data.has_mask is None and data.info.mask_classes == 0
    head = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert not [k for k in (*head["info"], *head["volumes"][0]) if "mask" in k]
    assert data.info.content_hash == hashlib.sha256(np.load(data.path / "volumes.npy").tobytes()).hexdigest()
    for read in (lambda: data.mask_batch([0]), lambda: data.mask_slice_batch([0], [0])):
        with pytest.raises(DatasetError, match="has no masks; prepare the data set with --masks"):
            read()
    with pytest.raises(DatasetError, match="class numbers below 0"):
        to_nifti_mask(np.zeros((8, 12, 8), np.uint8), data.info)
    with pytest.raises(ValueError, match="this data set has none"):
        with DatasetWriter(tmp_path / "b", SHAPE) as writer:
            writer.add(volume(0), {}, mask(0))


def test_the_hash_covers_the_masks(tmp_path):
    info = write(tmp_path / "a")[0].info
    volumes, masks = (np.load(tmp_path / "a" / f"{name}.npy") for name in ("volumes", "masks"))
    joined = b"".join(v.tobytes() + m.tobytes() for v, m in zip(volumes, masks))
    assert info.content_hash == hashlib.sha256(joined).hexdigest() == content_hash(volumes, masks)
    masks[1, 0, 0, 0] ^= 1
    assert content_hash(volumes, masks) != info.content_hash != content_hash(volumes)
    assert write(tmp_path / "b", unlabelled=())[0].info.content_hash != info.content_hash


def test_info_goes_through_json(tmp_path):
    info = write(tmp_path / "set")[0].info
    assert DatasetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


@pytest.mark.parametrize(
    "change",
    [
        {"mask_values": [0, 7, 2]},
        {"mask_values": [1, 2, 7]},
        {"mask_values": [0, 2, 256]},
        {"mask_values": [0, 2]},
        {"mask_values": None},
        {"mask_names": ["background", "a", "a"]},
        {"mask_names": ["a", "b", "c"]},
        {"mask_names": 3},
    ],
    ids=str,
)
def test_bad_classes_are_named(change, tmp_path):
    data = write(tmp_path / "set")[0].info.to_json() | change
    with pytest.raises(DatasetError, match="data set description: shape, spacing"):
        DatasetInfo.from_json(data)
    if change.get("mask_values"):
        with pytest.raises(ValueError, match="masks: expected increasing values"):
            DatasetWriter(tmp_path / "b", SHAPE, masks=MaskClasses(tuple(change["mask_values"]), CLASSES.names))


@pytest.mark.parametrize("how", ["missing", "cut", "fewer", "float"])
def test_damage_is_named(how, tmp_path):
    write(tmp_path / "set")
    file = tmp_path / "set" / "masks.npy"
    array = np.load(file)
    match how:
        case "missing":
            file.unlink()
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "fewer":
            np.save(file, array[:3])
        case "float":
            np.save(file, array.astype(np.float32))
    words = {"missing": "is missing", "cut": "damaged or cut off"}.get(how, "expected uint8 of shape .*got ")
    with pytest.raises(DatasetError, match=rf"masks\.npy.* {words}|masks\.npy: {words}"):
        VolumeDataset(tmp_path / "set")


@pytest.mark.parametrize(
    "bad",
    [np.full(SHAPE, 3), np.full(SHAPE, -1), np.zeros((3, 4, 5), np.uint8), np.zeros(SHAPE), np.full(SHAPE, 255)],
    ids=["class", "negative", "axes", "float", "none"],
)
def test_bad_mask_is_refused(bad, tmp_path):
    with pytest.raises(ValueError, match=r"mask: expected class numbers below 3 of shape \(3, 5, 4\)"):
        with DatasetWriter(tmp_path / "set", SHAPE, masks=CLASSES) as writer:
            writer.add(volume(0), {"source": "a", "intensity_low": 0.0, "intensity_high": 1.0}, bad)
    assert list(tmp_path.iterdir()) == []


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(bytes(raw))


PARTIAL_DAMAGE = {  # -> how many volumes are left
    "none": (lambda f: None, 5),
    "masks lost": (lambda f: (f / "masks.npy").unlink(), 0),
    "masks cut": (lambda f: os.truncate(f / "masks.npy", 128 + 3 * 60 + 10), 3),
    "masks beyond": (lambda f: (f / "masks.npy").open("ab").write(b"\0" * 99) and None, 5),
    "mask damaged": (lambda f: flip(f / "masks.npy", 128 + 60 + 3), 1),
    "volume damaged": (lambda f: flip(f / "volumes.npy", 128 + 2 * 240 + 3), 2),
    "half a line": (lambda f: (f / "journal.jsonl").open("a").write('{"crc": 12, "mask_cr') and None, 5),
}


@pytest.mark.parametrize("case", PARTIAL_DAMAGE)
def test_an_unfinished_run_goes_on_from_what_is_intact(case, tmp_path):
    write(tmp_path / "calm", 7, plan={"a": 1})
    damage, left = PARTIAL_DAMAGE[case]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", 7, plan={"a": 1}, stop=5)
    partial = tmp_path / ".out.partial"
    entry = json.loads((partial / "journal.jsonl").read_text().splitlines()[1])
    assert (entry["crc"], entry["mask_crc"]) == (zlib.crc32(volume(1).tobytes()), zlib.crc32(mask(1).tobytes()))
    damage(partial)
    assert write(tmp_path / "out", 7, plan={"a": 1})[1] == left
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "calm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm", "out"]


def test_a_data_set_with_masks_is_replaced_by_one_without(tmp_path):
    write(tmp_path / "set")
    write_phantom_dataset(tmp_path / "heads", 2, (8, 12, 8))
    with DatasetWriter(tmp_path / "set", SHAPE, overwrite=True) as writer:
        writer.add(volume(0), {"intensity_low": 0.0, "intensity_high": 1.0})
        writer.finish(spacing=(1, 1, 1), affine=np.eye(4), slice_axis="axial", recipe="mri")
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["dataset.json", "volumes.npy"]


@pytest.mark.parametrize("slice_axis", ARRAY_AXES)
def test_nifti_has_the_values_and_axes_of_the_source(slice_axis, tmp_path):
    """Each voxel against the class that was written at its place, by index arithmetic alone."""
    info = write(tmp_path / "set")[0].info
    info = DatasetInfo.from_json({**info.to_json(), "slice_axis": slice_axis})
    image = to_nifti_mask(torch.from_numpy(mask(1)), info)
    axes = {"axial": "zyx", "coronal": "yzx", "sagittal": "xzy"}[slice_axis]
    for place in np.ndindex(SHAPE):
        at = dict(zip(axes, place))
        assert image.dataobj[at["x"], at["y"], at["z"]] == {0: 0, 1: 2, 2: 7}[int(mask(1)[place])]
    assert image.get_data_dtype() == np.uint8 and np.array_equal(image.affine, AFFINE)
    like = to_nifti(volume(1), info)
    assert image.shape == like.shape and np.array_equal(image.get_qform(), like.get_qform())
    assert image.header.get_xyzt_units()[0] == "mm"


def test_nifti_refuses_what_is_no_mask(tmp_path):
    info = write(tmp_path / "set")[0].info
    for bad, words in (
        (np.zeros((4, 5, 3), np.uint8), r"expected shape \(D, H, W\) = \(3, 5, 4\); got \(4, 5, 3\)"),
        (np.full(SHAPE, 255, np.uint8), "class numbers below 3.* got uint8 from 255 to 255"),
        (np.zeros(SHAPE, np.float32), "class numbers below 3.* got float32"),
    ):
        with pytest.raises(DatasetError, match=words):
            to_nifti_mask(bad, info)


def test_a_split_carries_masks_along(tmp_path, capsys):
    """All masks, also where a volume has none, and all classes, also those that a part has not."""
    whole = write(tmp_path / "whole", 9, unlabelled=(2, 5))[0]
    assert split(["--data", str(tmp_path / "whole"), "--out", str(tmp_path / "p"), "--hold-out", "4"]) == 0
    parts = VolumeDataset(tmp_path / "p" / "train"), VolumeDataset(tmp_path / "p" / "held")
    found = {r["source"]: (p.volumes[i], p.masks[i], r) for p in parts for i, r in enumerate(p.records)}
    for i, record in enumerate(whole.records):
        copied, labels, its = found[record["source"]]
        assert np.array_equal(copied, whole.volumes[i]) and np.array_equal(labels, whole.masks[i]) and its == record
    alone = copy_part(whole, [2], tmp_path / "alone")
    assert not alone.has_mask.any() and alone.info.mask_names == CLASSES.names and (alone.masks == 255).all()


def test_phantoms_have_masks(tmp_path, capsys):
    """The command's masks: white matter is brighter than grey, the ventricles darker, the brain lies in the middle."""
    arguments = ["--count", "6", "--shape", "24", "32", "24", "--seed", "3"]
    assert phantom(["--out", str(tmp_path / "a"), *arguments, "--masks"]) == 0
    assert phantom(["--out", str(tmp_path / "b"), *arguments]) == 0
    data, plain = VolumeDataset(tmp_path / "a"), VolumeDataset(tmp_path / "b")
    assert plain.masks is None and np.array_equal(data.volumes, plain.volumes) and data.has_mask.all()
    assert data.info.mask_names == ("background", "grey matter", "white matter", "ventricles")
    for image, labels, record in zip(data.volumes, data.masks, data.records):
        grey, white, ventricles = (np.median(image[labels == k]) for k in (1, 2, 3))
        assert white > grey + 0.2 and ventricles < grey - 0.2
        assert min(record["mask_voxels"]) > 20 and not labels[:, 0].any() and not labels[:, :, [0, -1]].any()
        assert record["mask_voxels"][1] + record["mask_voxels"][2] > 10 * record["mask_voxels"][3]
    image, labels = make_labelled_phantom((8, 12, 8), 1, 2)
    assert labels.dtype == np.uint8 and np.array_equal(image, make_phantom((8, 12, 8), 1, 2))
