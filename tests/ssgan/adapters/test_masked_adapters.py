"""Pairs of image and mask for other programs: TorchIO's label maps, and MONAI's bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ssgan import export, generate
from ssgan.data.dataset import VolumeDataset
from ssgan.data.writer import DatasetWriter, MaskClasses
from ssgan.runs.pretrained import PretrainedGenerator, load_networks
from ssgan.utils.errors import UserError
from tests.support.tiny_runs import make_mask_run, make_run

ROOT = Path(__file__).parents[3]
NAMES = ("background", "grey matter", "white matter", "ventricles")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_mask_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ssgan generate` writes for the seeds 3, 0 and 7."""
    out = tmp_path_factory.mktemp("generated") / "out"
    assert generate.main(["--run", str(run), "--seeds", "3,0,7", "--out", str(out)]) == 0
    return out


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def test_torchio_reads_the_masks_of_a_data_set(run: Path) -> None:
    torchio = pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import dataset_subjects

    subjects = dataset_subjects(run.parent / "data", transform=torchio.Flip("LR"))
    for i, mask in enumerate(np.load(run.parent / "data" / "masks.npy")):
        before, after = subjects.dry_iter()[i], subjects[i]
        assert isinstance(before.mask, torchio.LabelMap) and isinstance(before.volume, torchio.ScalarImage)
        np.testing.assert_array_equal(before.mask.data[0].numpy(), mask.T)
        np.testing.assert_array_equal(after.mask.data[0].numpy(), mask.T[::-1])  # both were flipped
        np.testing.assert_allclose(before.mask.affine, before.volume.affine)
    loader = torchio.SubjectsLoader(subjects, batch_size=3)
    assert [tuple(batch["mask"]["data"].shape) for batch in loader] == [(3, 1, 12, 8, 6)] * 2


def test_a_volume_without_a_mask_is_a_subject_without_one(tmp_path: Path) -> None:
    pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import dataset_subjects

    mask = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)
    with DatasetWriter(tmp_path / "data", (4, 5, 6), masks=MaskClasses((0, 4, 9), ("background", "a", "b"))) as writer:
        for given in (None, mask):
            record = {"source": "x", "intensity_low": 0.0, "intensity_high": 1.0, "affine": np.eye(4).tolist()}
            writer.add(np.zeros((4, 5, 6), np.float32), record | {"warnings": []}, given)
        writer.finish(spacing=[1.0] * 3, affine=np.eye(4), slice_axis="axial", recipe="mri")
    first, second = dataset_subjects(tmp_path / "data").dry_iter()
    assert "mask" not in first
    np.testing.assert_array_equal(second.mask.data[0].numpy(), np.array([0, 4, 9])[mask].T)  # the source's values


def test_torchio_reads_a_run_and_a_folder_of_pairs_alike(run: Path, folder: Path) -> None:
    torchio = pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import folder_subjects, generated_subjects

    made, read = generated_subjects(run, (0, 3, 7)), folder_subjects(folder)
    assert len(read) == 3
    for one, other, seed in zip(made, read, (0, 3, 7), strict=True):
        assert one.name == other.name == f"seed{seed:04d}"
        assert isinstance(one.mask, torchio.LabelMap) and isinstance(other.mask, torchio.LabelMap)
        expected = voxels(folder / f"seed{seed:04d}_seg.nii.gz")
        for subject in (one, other):
            np.testing.assert_array_equal(subject.mask.data[0].numpy(), expected)
            np.testing.assert_allclose(subject.mask.affine, subject.volume.affine)
        scale = float(np.ptp(other.volume.data.numpy()))
        np.testing.assert_allclose(one.volume.data.numpy(), other.volume.data.numpy(), atol=1e-4 * scale)


def test_a_folder_without_pairs_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import folder_subjects

    with pytest.raises(UserError, match=r"expected a dataset\.json with pairs"):
        folder_subjects(tmp_path)


def test_an_exported_generator_makes_the_pairs_of_generate(run: Path, folder: Path, tmp_path: Path) -> None:
    assert export.main(["--run", str(run), "--out", str(tmp_path / "networks"), "--pretrained"]) == 0
    G = PretrainedGenerator.from_pretrained(tmp_path / "networks" / "generator")
    volumes, masks = G.pairs([3, 0, 7])
    for i, seed in enumerate((3, 0, 7)):
        np.testing.assert_array_equal(masks[i].T, voxels(folder / f"seed{seed:04d}_seg.nii.gz"))
    np.testing.assert_array_equal(G.volumes([3, 0, 7]), volumes)
    _, D = load_networks(run)
    assert D(torch.randn(2, 5, 6, 8, 12)).shape[0] == 2
    assert G.info.mask_names == NAMES


def test_a_generator_without_masks_gives_none(tmp_path: Path) -> None:
    G, _ = load_networks(make_run(tmp_path))
    assert G.pairs([1]).masks is None and G.volumes([1]).shape == (1, 6, 8, 12)


def test_monai_writes_pairs_with_the_bundle(run: Path, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fire")
    data = pytest.importorskip("monai.data")
    assert export.main(["--run", str(run), "--out", str(tmp_path / "b"), "--bundle"]) == 0
    output = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    output = output["network_data_format"]["outputs"]["pred"]
    assert output["num_channels"] == 5
    assert output["channel_def"] == {"0": "image"} | {str(i): name for i, name in enumerate(NAMES, 1)}
    assert "writes volumes and their masks as NIfTI" in (tmp_path / "b" / "docs" / "README.md").read_text()
    done = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--bundle_root", ".",
         "--seeds", "'3,0,7'", "--output_dir", str(tmp_path / "volumes")],
        cwd=tmp_path / "b", env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    stems = [f"seed000{seed}" for seed in (0, 3, 7)]
    names = {f"{stem}{ending}" for stem in stems for ending in (".nii.gz", "_seg.nii.gz")}
    assert {p.name for p in (tmp_path / "volumes").iterdir()} == names | {"dataset.json"}
    for stem in stems:
        np.testing.assert_array_equal(
            voxels(tmp_path / "volumes" / f"{stem}_seg.nii.gz"), voxels(folder / f"{stem}_seg.nii.gz")
        )
    assert len(data.load_decathlon_datalist(str(tmp_path / "volumes" / "dataset.json"), True, "training")) == 3


def test_the_bundle_of_a_run_without_masks_says_nothing_of_them(tmp_path: Path) -> None:
    assert export.main(["--run", str(make_run(tmp_path)), "--out", str(tmp_path / "b"), "--bundle"]) == 0
    text = (tmp_path / "b" / "docs" / "README.md").read_text() + (tmp_path / "b/configs/metadata.json").read_text()
    assert "mask" not in text and '"num_channels": 1' in text
    assert VolumeDataset(tmp_path / "data").masks is None
