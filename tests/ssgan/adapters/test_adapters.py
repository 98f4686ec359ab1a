"""Networks and volumes for other programs: each is read by the program itself, or by a library that is not ours."""

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
from safetensors.torch import load_file, save_file

from ssgan import export, generate
from ssgan.runs.checkpoint import CheckpointError
from ssgan.runs.config import RunError
from ssgan.runs.pretrained import PretrainedDiscriminator, PretrainedGenerator, load_networks
from tests.support.tiny_runs import make_run

ROOT = Path(__file__).parents[3]
SEEDS = (3, 0, 7)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def volumes(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, nibabel.Nifti1Image]:
    """What `ssgan generate` writes for SEEDS."""
    out = tmp_path_factory.mktemp("generated")
    assert generate.main(["--run", str(run), "--seeds", "3,0,7", "--truncation", "0.8", "--out", str(out)]) == 0
    return {seed: nibabel.load(out / f"seed{seed:04d}.nii.gz") for seed in SEEDS}


def same_image(tensor: np.ndarray, affine: np.ndarray, expected: nibabel.Nifti1Image) -> None:
    assert tensor.shape == expected.shape == (12, 8, 6)
    assert np.abs(tensor - expected.get_fdata()).max() <= 1e-4 * np.ptp(expected.get_fdata())
    assert np.allclose(affine, expected.affine)


# --------------------------------------------------------------------------------------------------- pretrained


@pytest.fixture
def exported(run: Path, tmp_path: Path) -> Path:
    assert export.main(["--run", str(run), "--out", str(tmp_path / "networks"), "--pretrained"]) == 0
    return tmp_path / "networks"


def test_a_generator_read_from_its_folder_makes_the_volumes_of_generate(
    exported: Path, volumes: dict[int, nibabel.Nifti1Image]
) -> None:
    G = PretrainedGenerator.from_pretrained(exported / "generator")
    assert not G.training
    for seed, volume in zip(SEEDS, G.volumes(SEEDS, truncation=0.8), strict=True):
        raw = (volume.T + 1) / 2 * (G.info.intensity_high - G.info.intensity_low) + G.info.intensity_low
        same_image(raw, np.array(G.info.affine), volumes[seed])


def test_the_folders_hold_the_tensors_of_the_checkpoint(exported: Path, run: Path) -> None:
    checkpoint = load_file(run / "checkpoints" / "3d-final.safetensors")
    for name, prefix in (("generator", "G_ema."), ("discriminator", "D.")):
        written = load_file(exported / name / "model.safetensors")
        expected = {key.removeprefix(prefix): t for key, t in checkpoint.items() if key.startswith(prefix)}
        assert written.keys() == expected.keys() and len(written) > 10
        assert all(torch.equal(written[key], t) for key, t in expected.items())


def test_a_discriminator_survives_its_folder(run: Path, tmp_path: Path) -> None:
    _, D = load_networks(run)
    D.save_pretrained(tmp_path / "one" / "D")
    again = PretrainedDiscriminator.from_pretrained(str(tmp_path / "one" / "D"))
    x = torch.randn(3, 1, 6, 8, 12)
    assert torch.equal(again(x), D(x)) and again.cfg == D.cfg and again.info == D.info


def test_a_folder_that_is_not_such_a_network_is_told(exported: Path, tmp_path: Path) -> None:
    generator = exported / "generator"
    with pytest.raises(RunError, match=r"expected the config\.json of a PretrainedDiscriminator.* got PretrainedGen"):
        PretrainedDiscriminator.from_pretrained(generator)
    tensors = load_file(generator / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "mapping.w_avg"}, generator / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"mapping\.w_avg is missing"):
        PretrainedGenerator.from_pretrained(generator)
    (generator / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is absent or damaged"):
        PretrainedGenerator.from_pretrained(generator)


def test_a_folder_in_use_is_not_written_to(exported: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export.main(["--run", str(run), "--out", str(exported), "--bundle"]) == 2
    assert "exists and is not an empty folder" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- MONAI


def test_monai_generates_with_the_bundle(
    run: Path, volumes: dict[int, nibabel.Nifti1Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("monai")
    pytest.importorskip("fire")
    bundle = tmp_path / "bundle"
    assert export.main(["--run", str(run), "--out", str(bundle), "--bundle"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "monai.bundle" in line]
    assert line.split()[:4] == ["python", "-m", "monai.bundle", "run"]
    options = ["--seeds", "'3,0,7'", "--truncation", "0.8", "--output_dir", str(tmp_path / "volumes")]
    done = subprocess.run(
        [sys.executable, *line.split()[1:], *options],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.name: nibabel.load(path) for path in (tmp_path / "volumes").iterdir()}
    assert sorted(written) == ["seed0000.nii.gz", "seed0003.nii.gz", "seed0007.nii.gz"]
    for seed in SEEDS:
        image = written[f"seed{seed:04d}.nii.gz"]
        same_image(image.get_fdata(), image.affine, volumes[seed])


def test_the_bundles_metadata_has_the_entries_that_monai_asks_for(run: Path, tmp_path: Path) -> None:
    assert export.main(["--run", str(run), "--out", str(tmp_path / "b"), "--bundle"]) == 0
    metadata = json.loads((tmp_path / "b" / "configs" / "metadata.json").read_text())
    for name in ("version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task"):
        assert name in metadata
    formats = metadata["network_data_format"]
    assert formats["inputs"]["latent"]["num_channels"] == 6
    assert formats["outputs"]["pred"]["spatial_shape"] == [6, 8, 12]


def test_slices_are_not_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = make_run(tmp_path, stage="2d")
    assert export.main(["--run", str(flat), "--out", str(tmp_path / "bundle"), "--bundle"]) == 2
    assert "--bundle: the checkpoint is of stage 2d" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ TorchIO


def test_torchio_reads_the_volumes_of_a_data_set(run: Path) -> None:
    torchio = pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import dataset_subjects

    folder = run.parent / "data"
    info = json.loads((folder / "dataset.json").read_text())["info"]
    subjects = dataset_subjects(folder, transform=torchio.Flip("LR"))
    assert isinstance(subjects, torchio.SubjectsDataset) and len(subjects) == 6
    low, high = info["intensity_low"], info["intensity_high"]
    for i, voxels in enumerate(np.load(folder / "volumes.npy")):
        image = subjects.dry_iter()[i].volume  # before the transform
        raw = (voxels.T + 1) / 2 * (high - low) + low
        assert np.allclose(image.data[0].numpy(), raw, atol=1e-3) and np.allclose(image.affine, info["affine"])
        assert np.allclose(subjects[i].volume.data[0].numpy(), raw[::-1], atol=1e-3)
        assert subjects[i].name == f"phantom {i} of seed 1"


def test_torchio_loads_batches_in_other_processes(run: Path) -> None:
    torchio = pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import dataset_subjects

    subjects = dataset_subjects(run.parent / "data")
    loader = torchio.SubjectsLoader(subjects, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    shapes = [tuple(batch["volume"]["data"].shape) for batch in loader]
    assert shapes == [(3, 1, 12, 8, 6)] * 2


def test_torchio_reads_generated_volumes_of_a_run(run: Path, volumes: dict[int, nibabel.Nifti1Image]) -> None:
    torchio = pytest.importorskip("torchio")
    from ssgan.adapters.torchio_subjects import generated_subjects

    subjects = generated_subjects(run, SEEDS, truncation=0.8)
    assert isinstance(subjects, torchio.SubjectsDataset)
    for seed, subject in zip(SEEDS, subjects, strict=True):
        assert subject.name == f"seed{seed:04d}"
        same_image(subject.volume.data[0].numpy(), subject.volume.affine, volumes[seed])
