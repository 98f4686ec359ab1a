"""`ssgan prepare --masks`: what is written, said and accounted for; resuming; the contact sheet; real hippocampi."""

import itertools
import json
import os

import nibabel
import numpy as np
import pytest
from PIL import Image

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset, content_hash, to_nifti_mask
from ssgan.data.writer import DatasetWriter
from ssgan.utils.pictures import MASK_COLOURS
from tests.support.nifti_cases import ARGUMENTS, SHARED_DATA, good, save, snapshot, voxels

SHAPE = (20, 19, 22)


def labels(seed, values=(0, 1, 4)):
    rng = np.random.default_rng([seed, 5])
    data = np.zeros(SHAPE, np.uint8)
    for value in values[1:]:
        x, y, z = rng.integers(3, 9, 3)
        data[x : x + 8, y : y + 6, z : z + 9] = value
    return data


@pytest.fixture
def source(tmp_path):
    """Five images and their masks, in the Decathlon's folders."""
    for seed in range(5):
        good(tmp_path / "t" / "imagesTr" / f"{seed}.nii.gz", seed)
        save(tmp_path / "t" / "labelsTr" / f"{seed}.nii.gz", labels(seed))
    (tmp_path / "t" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "left", "4": "right"}}))
    return tmp_path / "t"


def run(source, out, *more, masks="labelsTr", images="imagesTr"):
    given = ["--masks", source / masks] if masks else []
    return prepare.main([str(a) for a in ("--input", source / images, "--out", out, *ARGUMENTS, *given, *more)])


def cropped(data):
    """A mask of SHAPE on the grid of 16 x 24 x 16, as arrays D, H, W: cropped in X and Z, padded in Y."""
    x, z = (20 - 16) // 2, (22 - 16) // 2
    padded = np.pad(data[x : x + 16, :, z : z + 16], ((0, 0), (3, 2), (0, 0)))  # Y begins at (19 - 24) // 2 = -3
    return padded.transpose(2, 1, 0)


def test_masks_are_written_beside_the_volumes(source, tmp_path, capfd):
    assert run(source, tmp_path / "out") == 0
    out, err = capfd.readouterr()
    assert err == "" and "5 volumes prepared" in out and "masks of 5 volumes: left (value 1) in 5, " in out
    names = ["contact_sheet.png", "dataset.json", "masks.npy", "volumes.npy"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names
    data = VolumeDataset(tmp_path / "out")
    assert data.info.mask_values == (0, 1, 4) and data.info.mask_names == ("background", "left", "right")
    numbers = {0: 0, 1: 1, 4: 2}
    for i, record in enumerate(data.records):
        expected = np.vectorize(numbers.get)(cropped(labels(i)))
        assert np.array_equal(data.masks[i], expected) and data.has_mask[i]
        assert record["mask"] == os.path.join("..", "labelsTr", f"{i}.nii.gz")
        assert record["mask_voxels"] == np.bincount(expected.ravel(), minlength=3).tolist()
        assert np.array_equal(np.asarray(to_nifti_mask(data.masks[i], data.info).dataobj).T, cropped(labels(i)))
    assert data.info.content_hash == content_hash(data.volumes, data.masks)
    assert run(source, tmp_path / "plain", masks=None) == 0
    plain = VolumeDataset(tmp_path / "plain")
    assert np.array_equal(plain.volumes, data.volumes) and plain.info.content_hash == content_hash(data.volumes)


def test_the_whole_task_as_input_gives_the_same(source, tmp_path, capfd):
    """labelsTr below --input: its files are masks, not volumes, in one line."""
    assert run(source, tmp_path / "a") == 0
    assert run(source, tmp_path / "b", images="") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("masks    ")]
    assert lines == [
        "masks    5 files below --input are masks, not volumes, such as " + os.path.join("labelsTr", "0.nii.gz")
    ]
    whole, apart = VolumeDataset(tmp_path / "b"), VolumeDataset(tmp_path / "a")
    assert whole.info == apart.info and np.array_equal(whole.masks, apart.masks) and not whole.skipped


def test_names_and_values(source, tmp_path, capfd):
    """--mask-names replaces the names of dataset.json; the numbers are consecutive in the order of the values."""
    save(source / "labelsTr" / "2.nii.gz", labels(2, (0, 200, 7)))
    assert run(source, tmp_path / "out", "--mask-names", "1=x,200=y z,9=w") == 0
    info = VolumeDataset(tmp_path / "out").info
    assert info.mask_values == (0, 1, 4, 7, 200) and info.mask_names == ("background", "x", "4", "7", "y z")
    out = capfd.readouterr().out
    assert "--mask-names has no name for the values 4, 7: they are their names" in out
    assert "no mask has the values 9, which --mask-names names" in out


def test_every_file_is_accounted_for(source, tmp_path, capfd):
    """Volumes without a mask, with a bad one or one on another grid, an empty mask, masks of no volume, a duplicate."""
    good(source / "imagesTr" / "5.nii.gz", 5)
    good(source / "imagesTr" / "6.nii.gz", 0)
    for name, data, affine in (
        ("0", labels(0) * 0, None),
        ("1", labels(1) * 0.3, None),
        ("2", labels(2)[:-1], None),
        ("3", labels(3), np.diag([1, 1, 2.0, 1])),
        ("6", labels(6), None),
        ("8", labels(8), None),
        ("9", labels(9), None),
    ):
        save(source / "labelsTr" / f"{name}.nii.gz", data.astype(np.float32), affine)
    assert run(source, tmp_path / "out") == 0
    out = capfd.readouterr().out
    data = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in data.records] == ["0.nii.gz", "4.nii.gz"]
    assert data.records[0]["warnings"][-1] == "the mask is empty (every voxel is 0)" and data.records[0]["mask_voxels"][
        1:
    ] == [0, 0]
    assert "warning  1 of 2 volumes: the mask is empty (every voxel is 0), such as 0.nii.gz" in out
    reasons = {s["file"]: s["reason"] for s in data.skipped}
    assert reasons["1.nii.gz"].startswith(
        "its mask ../labelsTr/1.nii.gz: values that are not whole numbers, such as 0.3"
    )
    assert reasons["2.nii.gz"].startswith("its mask 2.nii.gz: it lies on another grid: 19 x 19 x 22 voxels")
    assert "[0 0 2 0]; the image has 20 x 19 x 22 voxels, affine [1 0 0 0]" in reasons["3.nii.gz"]
    assert reasons["5.nii.gz"].startswith("no mask below")
    assert reasons["6.nii.gz"] == "the same voxels as 0.nii.gz, which is kept"
    assert [f for f in reasons if "labelsTr" in f] == [os.path.join("..", "labelsTr", f"{i}.nii.gz") for i in (8, 9)]
    assert all(f"skipped  {name}: {reason}" in out for name, reason in reasons.items() if "labelsTr" not in name)
    assert "masks    2 files are no volume's mask (dataset.json names each): ../labelsTr/8.nii.gz, ../labels" in out
    assert run(source, tmp_path / "again", "--masks-optional") == 0
    data = VolumeDataset(tmp_path / "again")
    assert [r["source"] for r in data.records] == ["0.nii.gz", "4.nii.gz", "5.nii.gz"]


def test_optional_masks(source, tmp_path, capfd):
    (source / "labelsTr" / "1.nii.gz").unlink()
    assert run(source, tmp_path / "out", "--masks-optional") == 0
    assert "masks    1 volumes have none, such as 1.nii.gz, and are kept" in capfd.readouterr().out
    data = VolumeDataset(tmp_path / "out")
    assert data.has_mask.tolist() == [True, False, True, True, True] and (data.masks[1] == 255).all()
    assert data.records[1]["mask"] is None and data.records[1]["mask_voxels"] == [0, 0, 0]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert np.ptp(np.asarray(sheet.convert("RGB")).astype(int), axis=2).max() > 100


def test_the_contact_sheet_shows_the_masks(source, tmp_path):
    """In the colours of the classes, whatever the slice axis; grey without masks."""
    areas = []
    for axis in ("axial", "coronal", "sagittal"):
        assert run(source, tmp_path / axis, "--slice-axis", axis) == 0
        page = np.asarray(Image.open(tmp_path / axis / "contact_sheet.png").convert("RGB")).astype(int)
        outlines = [(page == colour).all(2).sum() for colour in MASK_COLOURS[:3]]
        assert min(outlines[:2]) > 500 and outlines[2] == 0
        areas.append(outlines)
    assert areas[0] == areas[1] == areas[2]
    assert run(source, tmp_path / "plain", masks=None) == 0
    page = np.asarray(Image.open(tmp_path / "plain" / "contact_sheet.png").convert("RGB")).astype(int)
    assert np.ptp(page, axis=2).max() < 10


@pytest.mark.parametrize(
    "more, words",
    [
        (["--masks-optional"], "--masks-optional: only with --masks"),
        (["--mask-names", "1=a"], "--mask-names: only with --masks"),
        (["--masks", "nowhere"], "--masks nowhere does not exist; expected a folder, a pattern with {name}"),
        (["--masks", "{name}.nii"], "none of the 5 volumes has a mask"),
        (["--masks", "LABELS", "--mask-names", "a"], "--mask-names: expected values from 1 to 255"),
        (["--masks", "LABELS", "--mask-names", "1=a,4=a"], "the values 1 and 4 of the masks are both named 'a'"),
    ],
)
def test_bad_arguments(more, words, source, tmp_path, capfd):
    before = snapshot(tmp_path)
    more = [str(source / "labelsTr") if a == "LABELS" else a for a in more]
    assert run(source, tmp_path / "out", *more, masks=None) == 2
    err = capfd.readouterr().err
    assert err.startswith("ssgan prepare: error: ") and err.count("\n") == 1 and words in err
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "what, words",
    [
        ("empty", "2.nii.gz: its mask 2.nii.gz: the mask is empty"),
        ("grid", "2.nii.gz: its mask 2.nii.gz: it lies on another grid"),
        ("values", "imagesTr/2.nii.gz: its mask ../labelsTr/2.nii.gz: values from 0 to 400"),
        ("none", "imagesTr/2.nii.gz: no mask below"),
        ("region", "dataset.json: 'whole' is a region of the values [1, 4]"),
    ],
)
def test_strict(what, words, source, tmp_path, capfd):
    path = source / "labelsTr" / "2.nii.gz"
    match what:
        case "empty":
            save(path, labels(2) * 0)
        case "grid":
            save(path, labels(2)[1:])
        case "values":
            save(path, labels(2).astype(np.int16) * 100)
        case "none":
            path.unlink()
        case "region":
            (source / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "whole": [1, 4]}}))
    before = snapshot(tmp_path)
    assert run(source, tmp_path / "out", "--strict") == 2
    assert words in capfd.readouterr().err and snapshot(tmp_path) == before


def stop_after(patch, count):
    """Ctrl-C before the volume of that number is written."""
    add, calls = DatasetWriter.add, itertools.count()

    def stop(writer, *a):
        if next(calls) == count:
            raise KeyboardInterrupt
        add(writer, *a)

    patch.setattr(DatasetWriter, "add", stop)


def test_an_interrupted_run_goes_on_to_the_same_bits(source, tmp_path, capfd):
    good(source / "imagesTr" / "2b.nii.gz", 9)  # without a mask
    save(source / "labelsTr" / "7.nii.gz", labels(7))  # without a volume
    assert run(source, tmp_path / "calm") == 0
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        assert run(source, tmp_path / "out") == 130
    assert "4 of 6 volumes are kept in" in capfd.readouterr().out
    assert run(source, tmp_path / "out") == 0
    assert "going on after 4 of 6 volumes" in capfd.readouterr().out
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "calm")
    assert len(VolumeDataset(tmp_path / "out").skipped) == 2


@pytest.mark.parametrize("change", ["voxels", "names", "without", "one less", "one more", "nothing"])
def test_a_run_is_gone_on_with_only_by_the_same_masks(change, source, tmp_path, capfd):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        assert run(source, tmp_path / "out") == 130
    more, masks = [], "labelsTr"
    match change:
        case "voxels":
            save(source / "labelsTr" / "4.nii.gz", labels(11))
        case "names":
            more = ["--mask-names", "1=left,4=other"]
        case "without":
            masks = None
        case "one less":
            (source / "labelsTr" / "4.nii.gz").unlink()
        case "one more":
            save(source / "labelsTr" / "8.nii.gz", labels(8))
    assert run(source, tmp_path / "out", *more, masks=masks) == (0 if change == "nothing" else 2)
    if change != "nothing":
        err = capfd.readouterr().err
        assert "an unfinished run with other arguments is there" in err and "mask" in err.partition("; now ")[0]
        assert run(source, tmp_path / "out", *more, "--restart", masks=masks) == 0


def test_with_classes_of_volumes(source, tmp_path):
    """--labels and --masks together: a volume needs both."""
    (tmp_path / "l.csv").write_text("file,class\n" + "".join(f"{i}.nii.gz,{'ab'[i % 2]}\n" for i in range(4)))
    (source / "labelsTr" / "1.nii.gz").unlink()
    assert run(source, tmp_path / "out", "--labels", tmp_path / "l.csv") == 0
    data = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in data.records] == ["0.nii.gz", "2.nii.gz", "3.nii.gz"]
    assert data.labels.tolist() == [0, 0, 1] and data.has_mask.all() and len(data.skipped) == 2


def test_a_table_and_a_pattern(source, tmp_path):
    """The same data set by all three ways, but for the table's path."""
    rows = ["file,mask", *(f"{i}.nii.gz,labelsTr/{i}.nii.gz" for i in range(5))]
    (source / "m.csv").write_text("\n".join(rows))
    assert run(source, tmp_path / "a") == 0
    assert run(source, tmp_path / "b", masks="m.csv") == 0
    assert run(source, tmp_path / "c", "--masks", "../labelsTr/{name}.nii.gz", masks=None) == 0
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b") == snapshot(tmp_path / "c")


def test_resampled(source, tmp_path):
    """Masks follow their images to another spacing: of a bright block, image and mask show the same voxels."""
    for i in range(5):
        data = labels(i, (0, 1))
        save(source / "imagesTr" / f"{i}.nii.gz", data.astype(np.int16) * 500 + (voxels(i) * 0.01).astype(np.int16))
        save(source / "labelsTr" / f"{i}.nii.gz", data)
    assert run(source, tmp_path / "out", "--spacing", "1.4", "0.8", "1.2") == 0
    data = VolumeDataset(tmp_path / "out")
    for image, mask in zip(data.volumes, data.masks):
        assert image[mask == 1].min() > -0.1 and image[mask == 0].max() < 0.1 and 50 < (mask == 1).sum() < 700


def test_a_class_that_no_volume_keeps(source, tmp_path, capfd):
    data = labels(2)
    data[0, 0, 0] = 9
    save(source / "labelsTr" / "2.nii.gz", data)
    assert run(source, tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert "warning  no volume has a voxel of the class 9" in out and "9 (value 9) in 0, 0 voxels on average" in out
    assert (
        "warning  1 of 5 volumes: a class of the mask vanishes by resampling and cropping, such as 2.nii.gz: 9" in out
    )
    assert VolumeDataset(tmp_path / "out").info.mask_values == (0, 1, 4, 9)


def test_masks_of_dicom_series_as_itk_writes_them(tmp_path):
    """Two real series; each mask is drawn on the series as SimpleITK reads it: bright voxels, above and below."""
    sitk = pytest.importorskip("SimpleITK")
    folder = SHARED_DATA / "dicom"
    if not folder.exists():
        pytest.skip(f"the real series are not there: {folder}")
    for series in sorted(p for p in folder.iterdir() if p.is_dir()):
        image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
        voxel = sitk.GetArrayFromImage(image)
        mask = sitk.GetImageFromArray((voxel > np.median(voxel)).astype(np.uint8) * 3)
        mask.CopyInformation(image)
        (tmp_path / "m").mkdir(exist_ok=True)
        sitk.WriteImage(mask, str(tmp_path / "m" / f"{series.name}.nii.gz"))
    command = ["--input", folder, "--masks", tmp_path / "m", "--out", tmp_path / "out", "--shape", 32, 32, 32]
    assert prepare.main([str(a) for a in command]) == 0
    data = VolumeDataset(tmp_path / "out")
    assert len(data) == 2 and data.has_mask.all() and not data.skipped
    for volume, mask in zip(data.volumes, data.masks):
        assert volume[mask == 1].min() > volume[mask == 0].max() - 0.01 and (mask == 1).sum() > 2000


def test_real_hippocampus(tmp_path, capfd):
    """Against nibabel's voxels: same volume in mm3 to 6 % at another spacing, all labels where nothing is resampled."""
    folder = SHARED_DATA / "msd-hippocampus"
    if not folder.exists():
        pytest.skip(f"the real volumes are not there: {folder}")
    names = sorted(p.name for p in (folder / "images").iterdir())[::20]
    for part in ("images", "labels"):
        (tmp_path / "t" / part).mkdir(parents=True)
        for name in names:
            (tmp_path / "t" / part / name).symlink_to(folder / part / name)
    names_of = ["--mask-names", "1=anterior,2=posterior"]
    for out, arguments in (
        ("a", ["--shape", *"48 64 48".split()]),
        ("b", "--shape 64 96 64 --spacing 0.7 0.6 0.8".split()),
    ):
        given = ["--input", tmp_path / "t", "--masks", tmp_path / "t" / "labels", "--out", tmp_path / out]
        assert prepare.main([str(a) for a in (*given, *names_of, *arguments)]) == 0
    assert f"{len(names)} files below --input are masks, not volumes" in capfd.readouterr().out
    whole, finer = VolumeDataset(tmp_path / "a"), VolumeDataset(tmp_path / "b")
    assert whole.info.mask_names == ("background", "anterior", "posterior") and len(whole) == len(names)
    for i, name in enumerate(names):
        data = np.asarray(nibabel.load(folder / "labels" / name).dataobj)
        counts = np.bincount(data.astype(int).ravel(), minlength=3)[1:]
        assert whole.records[i]["mask_voxels"][1:] == counts.tolist()
        volumes = np.array(finer.records[i]["mask_voxels"][1:]) * 0.7 * 0.6 * 0.8
        assert np.abs(volumes / counts - 1).max() < 0.06
        front = [np.argwhere(whole.masks[i] == k)[:, 1].mean() for k in (1, 2)]
        assert front[0] > front[1] + 5  # the anterior part lies in front, on the axis H = Y
