"""`ssgan evaluate` and `ssgan segmenter` of data sets and folders with masks."""

import json

import nibabel
import numpy as np
import pytest

from ssgan import evaluate, segmenter
from ssgan.data.dataset import VolumeDataset, to_nifti, to_nifti_mask
from ssgan.data.phantom import write_phantom_dataset
from ssgan.data.writer import DatasetWriter, MaskClasses
from ssgan.metrics import masks, volume_sets
from ssgan.metrics.extractors import deepbet
from ssgan.metrics.segmenter import Segmenter
from ssgan.utils.files import write_json_atomic

SHAPE = (8, 12, 10)
NAMES = ["grey matter", "white matter", "ventricles"]


@pytest.fixture(autouse=True)
def without_deepbet(monkeypatch):
    monkeypatch.setattr(deepbet, "is_installed", lambda: False)


def write_folder(data, folder, masked=True):
    """The volumes of a data set as a folder of seedN.nii.gz and seedN_seg.nii.gz, with nnU-Net's dataset.json."""
    folder.mkdir()
    for i, (volume, mask) in enumerate(zip(data.volumes, data.masks, strict=True)):
        nibabel.save(to_nifti(volume, data.info), folder / f"seed{i:04d}.nii.gz")
        if masked:
            nibabel.save(to_nifti_mask(mask, data.info), folder / f"seed{i:04d}_seg.nii.gz")
    write_json_atomic(folder / "dataset.json", {"labels": {"background": 0}, "training": []})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    for name, seed, count in (("real", 0, 30), ("fake", 1, 15), ("held", 2, 5)):
        write_phantom_dataset(root / name, count=count, shape=SHAPE, seed=seed, masks=True)
    write_phantom_dataset(root / "plain", count=30, shape=SHAPE, seed=0)
    assert segmenter.main(["--data", str(root / "real"), "--out", str(root / "s.safetensors"), "--steps", "40"]) == 0
    return root


def go(root, out, *more, real="real", fake="fake"):
    told = ["--real", str(root / real), "--fake", str(root / fake), "--out", str(out), "--repeats", "2"]
    return evaluate.main([*told, *map(str, more)])


def read(path):
    return json.loads(path.read_text())


def test_masks_are_measured_beside_the_volumes(root, tmp_path, capsys):
    more = ("--held-out", root / "held", "--segmenter", root / "s.safetensors")
    assert go(root, tmp_path / "a.json", *more) == 0
    record, shown = read(tmp_path / "a.json"), capsys.readouterr().out
    found = record["masks"]
    assert (found["count"], found["training"], found["reference"]) == (15, 30, "held-out masks")
    assert list(found["classes"]) == NAMES
    real, fake, held = (VolumeDataset(root / name) for name in ("real", "fake", "held"))
    order = np.random.Generator(np.random.PCG64(0)).permutation(30)
    spacing = real.info.spacing[::-1]
    for k, row in enumerate(found["classes"].values(), 1):
        own = [(np.asarray(real.masks[i]) == k).sum() * np.prod(spacing) / 1000 for i in order[:15]]
        assert row["volume_ml"]["real_mean"] == pytest.approx(np.mean(own), rel=1e-4)
        assert 0 < row["dice_to_closest"]["generated"] < 1 and row["surface_mm"]["generated"] > 0
        read_file = Segmenter(root / "s.safetensors")
        for side, data in (("generated", fake), ("real", held)):
            own, exchanged = read_file.dice(data.volumes, data.masks)
            assert row["segmenter_dice"][side] == own[k - 1]
            assert row["segmenter_dice_exchanged"][side] == exchanged[k - 1]
    assert found["segmenter"]["real"] == "held-out volumes" and found["segmenter"]["steps"] == 40
    (line,) = [line for line in shown.splitlines() if line.startswith("grey matter")]
    volume = found["classes"]["grey matter"]["volume_ml"]
    assert f"{volume['generated_mean']:.3g} / {volume['real_mean']:.3g}" in line
    table = shown.splitlines()[shown.splitlines().index(line) - 2 :][:5]
    assert table[0].startswith("masks: 15 generated / 15 real") and max(map(len, table)) <= 120
    plain = tmp_path / "b.json"
    assert go(root, plain, real="plain") == 0
    assert "masks" not in read(plain) and "masks: not compared, as --real has none" in capsys.readouterr().out
    assert read(plain)["metrics"] == record["metrics"]  # masks change nothing in the figures of the volumes


def test_generated_masks_of_other_images_are_found_out(root, tmp_path):
    """Each mask belongs to the next volume: only the segmenter's Dice sees it."""
    fake = VolumeDataset(root / "fake")
    with DatasetWriter(tmp_path / "moved", SHAPE, masks=classes_of(fake)) as writer:
        for i, record in enumerate(fake.records):
            writer.add(fake.volumes[i], record, np.asarray(fake.masks[(i + 1) % len(fake)]))
        info = fake.info
        writer.finish(
            spacing=info.spacing, affine=np.array(info.affine), slice_axis=info.slice_axis, recipe=info.recipe
        )
    rows = []
    for place, name in ((root, "fake"), (tmp_path, "moved")):
        told = ["--real", str(root / "real"), "--fake", str(place / name), "--out", str(tmp_path / f"{name}.json")]
        assert evaluate.main([*told, "--repeats", "2", "--segmenter", str(root / "s.safetensors")]) == 0
        rows.append(read(tmp_path / f"{name}.json")["masks"]["classes"]["white matter"])
    right, wrong = rows
    assert all(wrong[name] == right[name] for name in right if not name.startswith("segmenter"))
    assert wrong["segmenter_dice"]["generated"] == right["segmenter_dice_exchanged"]["generated"]
    assert right["segmenter_dice_exchanged"]["real"] is None  # those that training held aside are not at hand
    assert wrong["segmenter_dice"]["generated"] < right["segmenter_dice"]["generated"] - 0.01
    assert wrong["segmenter_dice"]["real"] == right["segmenter_dice"]["real"]  # of the training's own held-aside ones


def classes_of(data):
    return MaskClasses(data.info.mask_values, data.info.mask_names)


def test_a_folder_of_pairs_gives_what_its_data_set_gives(root, tmp_path):
    data = VolumeDataset(root / "fake")
    write_folder(data, tmp_path / "folder")
    # On the real set's scale, which a folder gets.
    assert go(root, tmp_path / "a.json") == 0
    assert (
        evaluate.main(
            [
                "--real",
                str(root / "real"),
                "--fake",
                str(tmp_path / "folder"),
                "--out",
                str(tmp_path / "b.json"),
                "--repeats",
                "2",
            ]
        )
        == 0
    )
    a, b = (read(tmp_path / f"{n}.json") for n in "ab")
    assert b["fake"]["kind"] == "folder" and b["fake"]["volumes"] == 15
    assert b["masks"] == a["masks"]
    for name, row in a["metrics"].items():
        assert b["metrics"][name]["value"] == pytest.approx(row["value"], rel=1e-3, abs=1e-5), name
    told = ["--fake", str(root / "real"), "--out", str(tmp_path / "c.json"), "--repeats", "2", "--count", "12"]
    write_folder(VolumeDataset(root / "real"), tmp_path / "real")
    assert evaluate.main(["--real", str(tmp_path / "real"), *told]) == 0
    assert read(tmp_path / "c.json")["masks"]["training"] == 30


def test_which_files_are_masks(root, tmp_path):
    data = VolumeDataset(root / "held")
    write_folder(data, tmp_path / "pairs")
    found = volume_sets._folder_pairs(tmp_path / "pairs", "--fake")
    assert [(v.name, m and m.name) for v, m in found][:2] == [
        ("seed0000.nii.gz", "seed0000_seg.nii.gz"), ("seed0001.nii.gz", "seed0001_seg.nii.gz"),
    ]  # fmt: skip
    (tmp_path / "pairs" / "seed0001_seg.nii.gz").unlink()  # a volume without a mask
    like = volume_sets.load_volume_set(root / "real", "--real")
    loaded = volume_sets.load_volume_set(tmp_path / "pairs", "--fake", like)
    assert loaded.labelled.tolist() == [0, 2, 3, 4]
    np.testing.assert_array_equal(loaded.masks[[0, 2, 3, 4]], data.masks[[0, 2, 3, 4]])
    (tmp_path / "pairs" / "seed0002.nii.gz").unlink()  # a mask without its volume
    with pytest.raises(volume_sets.EvaluateError, match=r"seed0002_seg.nii.gz: a mask without its volume seed0002 "):
        volume_sets._folder_pairs(tmp_path / "pairs", "--fake")
    write_folder(data, tmp_path / "names", masked=False)
    for file in (tmp_path / "names").glob("*.nii.gz"):
        file.rename(file.with_name(file.name.replace(".nii", "_seg.nii")))  # segmented heads, perhaps: volumes
    assert [m for _, m in volume_sets._folder_pairs(tmp_path / "names", "--fake")] == [None] * 5


@pytest.mark.parametrize("fault", ["values", "grid", "damaged"])
def test_a_mask_that_does_not_fit_is_named(root, tmp_path, fault):
    write_folder(VolumeDataset(root / "held"), tmp_path / "folder")
    file = tmp_path / "folder" / "seed0003_seg.nii.gz"
    image = nibabel.load(file)
    data = np.asarray(image.dataobj)
    if fault == "values":
        nibabel.save(nibabel.Nifti1Image(data + np.uint8(4), image.affine), file)
    elif fault == "grid":
        nibabel.save(nibabel.Nifti1Image(data, image.affine @ np.diag([1, 1, 2, 1])), file)
    else:
        file.write_bytes(file.read_bytes()[:40])
    match = {
        "values": r"expected the values \[0, 1, 2, 3\] .* got \[4,", "grid": "expected the grid of its volume",
        "damaged": "not readable as NIfTI",
    }[fault]  # fmt: skip
    like = volume_sets.load_volume_set(root / "real", "--real")
    with pytest.raises(volume_sets.EvaluateError, match=f"--fake .*seed0003_seg.nii.gz: .*{match}"):
        volume_sets.load_volume_set(tmp_path / "folder", "--fake", like)


def test_a_mask_stored_in_another_orientation_is_turned_with_its_volume(root, tmp_path):
    data = VolumeDataset(root / "held")
    write_folder(data, tmp_path / "folder")
    for file in (tmp_path / "folder").glob("*.nii.gz"):
        image = nibabel.load(file)
        nibabel.save(image.as_reoriented(np.array([[1, -1], [2, 1], [0, -1]])), file)
    like = volume_sets.load_volume_set(root / "real", "--real")
    loaded = volume_sets.load_volume_set(tmp_path / "folder", "--fake", like)
    np.testing.assert_array_equal(loaded.masks, data.masks)


def test_other_classes_are_refused(root, tmp_path, capsys):
    fake = VolumeDataset(root / "fake")
    with DatasetWriter(
        tmp_path / "other", SHAPE, masks=MaskClasses((0, 1, 2, 5), ("background", "a", "b", "c"))
    ) as writer:
        for i, record in enumerate(fake.records):
            writer.add(fake.volumes[i], record, np.asarray(fake.masks[i]))
        info = fake.info
        writer.finish(
            spacing=info.spacing, affine=np.array(info.affine), slice_axis=info.slice_axis, recipe=info.recipe
        )
    told = ["--real", str(root / "real"), "--fake", str(tmp_path / "other"), "--out", str(tmp_path / "m.json")]
    assert evaluate.main(told) == 2
    assert "--fake: expected the classes of the other masks, {'background': 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "real", "match"),
    [
        (["--segmenter", "s.safetensors"], "plain", "--real has no masks to compare with; leave it out"),
        (["--segmenter", "real/volumes.npy"], "real", "expected a file that `ssgan segmenter` has written"),
        (["--segmenter", "s.safetensors", "--held-out", "real"], "another", "was trained on volumes ["),
    ],
    ids=["no masks", "no segmenter", "held-out volumes that the segmenter has seen"],
)
def test_errors(root, tmp_path, capsys, more, real, match):
    if real == "another":
        write_phantom_dataset(root / real, count=24, shape=SHAPE, seed=7, masks=True)
        assert len(Segmenter(root / "s.safetensors").seen(VolumeDataset(root / "real").volumes)) == 24
    more = [word if word.startswith("--") else root / word for word in more]
    assert go(root, tmp_path / "m.json", *more, real=real) == 2
    assert match in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_segmenter_command(root, tmp_path, capsys):
    def fails(match, *more, data="real"):
        assert segmenter.main(["--data", str(root / data), "--steps", "1", *more]) == 2
        assert match in capsys.readouterr().err

    fails("has no masks; prepare it with --masks", "--out", str(tmp_path / "a.safetensors"), data="plain")
    fails("expected a name that ends in .safetensors", "--out", str(tmp_path / "a.pt"))
    fails("exists already", "--out", str(root / "s.safetensors"))
    fails("--steps, --seed", "--out", str(tmp_path / "a.safetensors"), "--seed", "-1")
    record = Segmenter(root / "s.safetensors").record
    data = VolumeDataset(root / "real")
    assert record.data == data.info.content_hash and record.classes == data.info.mask_names and record.shape == SHAPE
    assert record.spacing == pytest.approx(data.info.spacing[::-1])
    assert not list(tmp_path.iterdir())


def test_volumes_without_masks_are_left_out_of_the_masks_figures(tmp_path):
    """With --masks-optional some volumes have none: masks are compared where they are, volumes all."""
    whole = write_phantom_dataset(tmp_path / "whole", count=24, shape=SHAPE, seed=0, masks=True)
    with DatasetWriter(tmp_path / "some", SHAPE, masks=classes_of(whole)) as writer:
        for i, record in enumerate(whole.records):
            has = i % 3 == 0
            writer.add(whole.volumes[i], record, np.asarray(whole.masks[i]) if has else None)
        info = whole.info
        writer.finish(
            spacing=info.spacing, affine=np.array(info.affine), slice_axis=info.slice_axis, recipe=info.recipe
        )
    write_phantom_dataset(tmp_path / "fake", count=12, shape=SHAPE, seed=5, masks=True)
    assert go(tmp_path, tmp_path / "m.json", real="some") == 0
    record = read(tmp_path / "m.json")
    assert record["count"] == 12 and (record["masks"]["count"], record["masks"]["training"]) == (4, 8)
    assert record["masks"]["reference"] == "other training masks"
    near = masks.closest_masks(whole.masks[::3], whole.masks[::3], 4, info.spacing[::-1], own=range(8))
    expected = np.nanmean(near.surface[:, 1])
    assert record["masks"]["classes"]["white matter"]["surface_mm"]["reference"] == pytest.approx(expected, rel=1e-4)
