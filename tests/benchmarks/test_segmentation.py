"""The segmentation benchmark: reading, splitting, scoring, and a run of a few steps on made-up volumes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("monai", reason="MONAI's U-Net; it is in the extra `test`")

from benchmarks.experiments import segmentation

REAL = Path(__file__).parents[3] / "shared" / "data" / "msd-hippocampus"


def write(folder: Path, name: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray | None = None) -> None:
    for kind, volume in (("images", image), ("labels", label)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4) if affine is None else affine), folder / kind / name)


def a_volume(seed: int, shape: tuple[int, int, int] = (30, 40, 27)) -> tuple[np.ndarray, np.ndarray]:
    """Two boxes, one brighter, one darker than the noise around them."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    x, y, z = rng.integers(4, 10, 3)
    label[x : x + 9, y : y + 8, z : z + 9] = 1
    label[x : x + 9, y + 8 : y + 20, z : z + 9] = 2
    image = rng.normal(100, 10, shape) + 60.0 * (label == 1) - 60.0 * (label == 2)
    return image.astype(np.int16), label


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("volumes")
    for seed in range(5):
        write(folder, f"v{seed}.nii.gz", *a_volume(seed))
    return folder


def test_volumes_are_centred_normalised_and_kept_with_their_labels(folder):
    images, labels = segmentation.load(folder)
    assert images.shape == labels.shape == (5, 1, *segmentation.SHAPE)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    image, label = a_volume(2)
    inside = (slice(5, 35), slice(8, 48), slice(6, 33))  # (40 - 30) / 2, (56 - 40) / 2, (40 - 27) // 2
    expected = (image - image.mean()) / image.std()
    np.testing.assert_allclose(images[2, 0][inside].numpy(), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(labels[2, 0][inside].numpy(), label)
    assert labels[2].sum() == label.sum()
    assert images[2, 0, 0].unique().item() == pytest.approx(expected.min(), rel=1e-4)


def test_large_volumes_lose_their_borders(tmp_path):
    image, label = a_volume(0, (50, 60, 44))
    write(tmp_path, "v.nii.gz", image, label)
    images, _ = segmentation.load(tmp_path)
    expected = ((image - image.mean()) / image.std())[5:45, 2:58, 2:42]
    np.testing.assert_allclose(images[0, 0].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_volumes_are_turned_to_ras(tmp_path):
    image, label = a_volume(3)
    write(tmp_path / "a", "v.nii.gz", image, label)
    write(tmp_path / "b", "v.nii.gz", image[::-1], label[::-1], np.diag([-1.0, 1, 1, 1]))
    for one, other in zip(segmentation.load(tmp_path / "a"), segmentation.load(tmp_path / "b"), strict=True):
        assert torch.equal(one, other)


def test_the_names_that_the_decathlon_gives(folder, tmp_path):
    for kind in ("images", "labels"):
        shutil.copytree(folder / kind, tmp_path / f"{kind}Tr")
    (tmp_path / "imagesTr" / "._v0.nii.gz").write_bytes(b"what macOS puts beside a file")
    for one, other in zip(segmentation.load(tmp_path), segmentation.load(folder), strict=True):
        assert torch.equal(one, other)


def test_the_split_is_disjoint_and_always_the_same():
    train, held_out = segmentation.split(199)
    assert (len(train), len(held_out)) == (160, 39)
    assert sorted([*train, *held_out]) == list(range(199))
    again, _ = segmentation.split(199)
    np.testing.assert_array_equal(train, again)
    with pytest.raises(segmentation.BadData, match=r"data: 160 volumes; expected more than the 160 that train"):
        segmentation.split(160)


def test_dice_by_hand():
    predicted = torch.tensor([[[[[0, 1, 1, 2, 2, 2]]]], [[[[0, 0, 0, 1, 1, 0]]]]])
    truth = torch.tensor([[[[[1, 1, 1, 2, 0, 0]]]], [[[[0, 0, 0, 0, 0, 1]]]]])
    # class 1: 2 of 2 and 3 in common; class 2: 1 of 3 and 1. Then nothing in common, and class 2 in neither.
    torch.testing.assert_close(segmentation.dice(predicted, truth), torch.tensor([[4 / 5, 2 / 4], [0, 1]]))


def test_variants_start_from_the_same_weights():
    dense, split, again = (segmentation.network((4, 8, 8), 3, v) for v in ("dense", "split_depth", "split_depth"))
    assert all(torch.equal(a, b) for a, b in zip(split.parameters(), again.parameters(), strict=True))
    assert sum(p.numel() for p in split.parameters()) < 0.6 * sum(p.numel() for p in dense.parameters())
    kept = dict(split.named_parameters())
    same = [n for n, p in dense.named_parameters() if n in kept and torch.equal(kept[n], p)]
    assert any(n.endswith("weight") for n in same)  # the first layer, of one channel


def run(folder: Path, out: Path, *more: str) -> int:
    args = ["--data", str(folder), "--out", str(out), "--train", "3", "--batch", "2", "--channels", "4", "8", "8"]
    return segmentation.main([*args, "--threads", "1", *more])


def test_a_run_leaves_records_a_table_and_a_picture(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "results", "--steps", "3", "--seeds", "0", "1") == 0
    records = [json.loads(line) for line in (tmp_path / "results" / "segmentation.jsonl").read_text().splitlines()]
    assert [(r["variant"], r["seed"]) for r in records] == [
        (v, s) for s in (0, 1) for v in ("dense", "split_depth", "acs4")
    ]
    for r in records:
        assert r["dice"] == pytest.approx((r["dice_anterior"] + r["dice_posterior"]) / 2)
        assert 0 <= r["dice"] <= 1 and r["seconds_per_step"] > 0 and r["validation_volumes"] == 2
        assert r["curve"][-1] == [3, r["dice"]]
        assert r["commit"] and r["device"] and r["torch"]
    parameters = {r["variant"]: r["parameters"] for r in records}
    assert parameters["dense"] > parameters["split_depth"] > parameters["acs4"]
    table = (tmp_path / "results" / "segmentation.md").read_text()
    assert table in capsys.readouterr().out
    for variant, count in parameters.items():
        assert f"| {variant} (" in table and f"| {count:,} |" in table
    assert Image.open(tmp_path / "results" / "segmentation.png").size == (840, 480)


@pytest.mark.slow
def test_it_learns(folder, tmp_path):
    run(folder, tmp_path, "--steps", "80", "--seeds", "0", "--lr", "0.01")
    for line in (tmp_path / "segmentation.jsonl").read_text().splitlines():
        assert json.loads(line)["dice"] > 0.5, line


def empty(folder: Path) -> None:
    (folder / "images").mkdir()


def without_label(folder: Path) -> None:
    write(folder, "v.nii.gz", *a_volume(0))
    (folder / "labels" / "v.nii.gz").unlink()


def of_another_shape(folder: Path) -> None:
    write(folder, "v.nii.gz", a_volume(0)[0], a_volume(0)[1][1:])


def of_four_classes(folder: Path) -> None:
    write(folder, "v.nii.gz", a_volume(0)[0], np.minimum(a_volume(0)[1] * 2, 3))


def not_nifti(folder: Path) -> None:
    write(folder, "v.nii.gz", *a_volume(0))
    (folder / "images" / "v.nii.gz").write_bytes(b"no volume")


BAD = {
    empty: "images: expected NIfTI files",
    without_label: "v.nii.gz: the file is missing; each image needs a label",
    of_another_shape: r"has shape \(29, 40, 27\); its image has \(30, 40, 27\)",
    of_four_classes: r"expected labels 0, 1, 2; got \[0, 2, 3\]",
    not_nifti: "v.nii.gz: cannot be read as NIfTI",
}


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__)
def test_bad_folders_are_named(spoil, tmp_path):
    spoil(tmp_path)
    with pytest.raises(segmentation.BadData, match=BAD[spoil]):
        segmentation.load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "0"), "expected at least 1"),
        (("--batch", "4"), "--batch: expected at most the 3 volumes that train; got 4"),
        (("--train", "5"), "5 volumes; expected more than the 5 that train (--train)"),
        (("--channels", "4"), "--channels: expected at least two widths"),
        (("--variants", "half"), "invalid choice: 'half'"),
    ],
)
def test_bad_options(folder, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        run(folder, tmp_path, *options)
    assert caught.value.code == 2 and message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not REAL.is_dir(), reason=f"the real volumes are not here ({REAL})")
def test_the_real_volumes():
    images, labels = segmentation.load(REAL)
    assert images.shape == (199, 1, *segmentation.SHAPE)
    assert labels.unique().tolist() == [0, 1, 2]
    assert images.isfinite().all()
