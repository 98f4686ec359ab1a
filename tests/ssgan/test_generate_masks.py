"""`ssgan generate` of a run with masks: pairs of files on one grid, and a list of them that other programs read."""

import dataclasses
import json
import shutil

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from ssgan import evaluate, generate
from ssgan.data.dataset import VolumeDataset, is_dataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics.extractors import deepbet
from ssgan.models.sampling import latents
from ssgan.runs.datalist import find_pairs, nnunet_obstacle, write_datalist
from ssgan.runs.generator import load_generator
from ssgan.view import FileBrowser, open_source
from tests.support.tiny_runs import SHAPE, make_mask_run

VALUES = {"background": 0, "grey matter": 1, "white matter": 2, "ventricles": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_mask_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """What `ssgan generate` writes for the seeds 0 to 4."""
    out = tmp_path_factory.mktemp("generated") / "out"
    go(run, out, "0-4")
    return out


def go(run, out, seeds, *more):
    assert generate.main(["--run", str(run), "--out", str(out), "--device", "cpu", "--seeds", seeds, *more]) == 0


def voxels(path):
    return np.asarray(nibabel.load(path).dataobj)


def expected_masks(run, seeds):
    """The class of the largest of the network's channels after the first."""
    G = load_generator(run).G
    with torch.no_grad():
        return G(latents(seeds, 6), noise="const")[:, 1:].numpy().argmax(1)


def test_each_volume_has_its_mask_on_its_grid(run, made):
    stems = [f"seed000{s}" for s in range(5)]
    names = {f"{s}{e}" for s in stems for e in (".nii.gz", "_seg.nii.gz", ".png", ".gif")}
    assert {p.name for p in made.iterdir()} == names | {"montage.png", "generate.json", "dataset.json"}
    for stem, mask in zip(stems, expected_masks(run, range(5)), strict=True):
        image, written = nibabel.load(made / f"{stem}.nii.gz"), nibabel.load(made / f"{stem}_seg.nii.gz")
        assert written.get_data_dtype() == np.uint8 and written.shape == image.shape == SHAPE[::-1]
        np.testing.assert_array_equal(written.affine, image.affine)
        np.testing.assert_array_equal(written.get_qform(), image.get_qform())
        np.testing.assert_array_equal(voxels(made / f"{stem}_seg.nii.gz"), mask.T)
    assert len(np.unique(expected_masks(run, range(5)))) == 4


def test_the_pictures_show_the_masks_in_colour(made):
    def coloured(name):
        with Image.open(made / name) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        return (pixels.max(-1) - pixels.min(-1) > 60).mean()

    for name in ("seed0000.png", "seed0000.gif", "montage.png"):
        assert coloured(name) > 0.05, name


def test_the_masks_have_the_values_of_the_data_set(run, tmp_path, capsys):
    """Classes 0 .. 3 are written as what they were in the source files; where those have gaps, it is said."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    record = json.loads((other / "config.json").read_text())
    record["data"]["info"]["mask_values"] = [0, 2, 5, 41]
    (other / "config.json").write_text(json.dumps(record))
    go(other, tmp_path / "out", "0,1")
    for i, mask in enumerate(expected_masks(run, [0, 1])):
        np.testing.assert_array_equal(
            voxels(tmp_path / "out" / f"seed000{i}_seg.nii.gz"), np.array([0, 2, 5, 41])[mask].T
        )
    labels = json.loads((tmp_path / "out" / "dataset.json").read_text())["labels"]
    assert labels == dict(zip(VALUES, (0, 2, 5, 41)))
    out = capsys.readouterr().out
    assert "note: the masks have the values 0, 2, 5, 41" in out and "nnU-Net takes 0, 1, .. 3 alone" in out


def test_the_list_is_what_nnu_net_v2_asks_for(made, capsys):
    """The rules of nnU-Net's `verify_dataset_integrity`, from its code."""
    found = json.loads((made / "dataset.json").read_text())
    assert {"labels", "channel_names", "numTraining", "file_ending"} <= set(found)
    assert found["labels"] == VALUES and sorted(found["labels"].values()) == list(range(4))
    assert list(found["channel_names"]) == ["0"] and found["numTraining"] == len(found["dataset"]) == 5
    for name, pair in found["dataset"].items():
        assert pair == {"images": [f"{name}.nii.gz"], "label": f"{name}_seg.nii.gz"}
        for file in (*pair["images"], pair["label"]):
            assert file.endswith(found["file_ending"]) and (made / file).is_file()
        assert set(np.unique(voxels(made / pair["label"]))) <= set(VALUES.values())


def test_nnu_net_itself_accepts_the_folder(made):
    pytest.importorskip("nnunetv2")
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    verify_dataset_integrity(str(made), 1)


def test_monai_reads_the_folder(made):
    data = pytest.importorskip("monai.data")
    transforms = pytest.importorskip("monai.transforms")
    listed = data.load_decathlon_datalist(str(made / "dataset.json"), is_segmentation=True, data_list_key="training")
    assert len(listed) == 5
    for i, item in enumerate(listed):
        loaded = transforms.LoadImaged(["image", "label"])(item)
        np.testing.assert_array_equal(np.asarray(loaded["label"]), voxels(made / f"seed000{i}_seg.nii.gz"))
        np.testing.assert_allclose(np.asarray(loaded["image"]), voxels(made / f"seed000{i}.nii.gz"), rtol=1e-6)
        np.testing.assert_array_equal(loaded["image"].affine, loaded["label"].affine)


def test_more_seeds_are_added_to_the_list(run, made, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(made, out)
    go(run, out, "3,10-11")
    found = json.loads((out / "dataset.json").read_text())
    names = [f"seed{s:04d}" for s in (0, 1, 2, 3, 4, 10, 11)]
    assert list(found["dataset"]) == names and found["numTraining"] == 7
    assert [item["label"] for item in found["training"]] == [f"{name}_seg.nii.gz" for name in names]
    (out / "seed0003.nii.gz").unlink()
    (out / ".seed0099_seg.nii.gz").write_bytes(b"half written")
    (out / ".seed0099.nii.gz").write_bytes(b"half written")
    assert find_pairs(out) == [name for name in names if name != "seed0003"]


def test_ct_is_told_to_nnu_net(run, tmp_path):
    """By the channel's name nnU-Net chooses how it normalises."""
    info = load_generator(run).info
    for recipe, name in (("mri", "MRI"), ("adni", "MRI"), ("phantom", "MRI"), ("ct", "CT"), ("coca", "CT")):
        assert write_datalist(tmp_path, dataclasses.replace(info, recipe=recipe), "a run") == 0
        assert json.loads((tmp_path / "dataset.json").read_text())["channel_names"] == {"0": name}
    assert nnunet_obstacle(info) == ""


def test_the_list_is_no_data_set_of_ours(run, made):
    """So that `ssgan view` and `ssgan evaluate` take the folder for what it is."""
    assert not is_dataset(made) and is_dataset(run.parent / "data")
    arguments = type("Arguments", (), {"paths": [made], "checkpoint": None, "data": None, "device": "cpu"})
    assert isinstance(open_source(arguments), FileBrowser)


def test_a_damaged_data_set_stays_one(tmp_path):
    for name, text in (("damaged", "{"), ("other", "[1]"), ("older", '{"format": "ssgan-dataset", "labels": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text(text)
        assert is_dataset(tmp_path / name)
    assert not is_dataset(tmp_path / "absent")


def test_a_run_and_its_folder_are_evaluated_alike(run, tmp_path, monkeypatch):
    monkeypatch.setattr(deepbet, "is_installed", lambda: False)
    go(run, tmp_path / "out", "0-11", "--batch", "4")
    write_phantom_dataset(tmp_path / "real", count=24, shape=SHAPE, seed=0, masks=True)
    records = []
    for fake in (run, tmp_path / "out"):
        told = ["--real", str(tmp_path / "real"), "--fake", str(fake), "--out", str(tmp_path / "m.json")]
        assert evaluate.main([*told, "--repeats", "2"]) == 0
        records.append(json.loads((tmp_path / "m.json").read_text()))
    assert records[0]["fake"]["kind"] == "run" and records[1]["fake"]["kind"] == "folder"
    assert records[0]["masks"] == records[1]["masks"] and records[0]["masks"]["count"] == 12
    white = records[0]["masks"]["classes"]["white matter"]["volume_ml"]["generated_mean"]
    ml = np.prod(VolumeDataset(tmp_path / "real").info.spacing) / 1000
    assert white == pytest.approx((expected_masks(run, range(12)) == 2).sum() / 12 * ml, rel=1e-4)


def test_slices_of_a_2d_run_have_no_list(tmp_path, capsys):
    run = make_mask_run(tmp_path, stage="2d")
    go(run, tmp_path / "out", "0-1")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "seed0000.png", "seed0001.png", "montage.png", "generate.json",
    }  # fmt: skip
