"""Files whose names or headers mislead: each is read, or named by what it is, once a series."""

import gzip

import nibabel
import numpy as np
import pytest

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset
from ssgan.data.nifti import header_spacing, load_nifti
from ssgan.data.preprocessing import Recipe, prepare_volume
from ssgan.data.sources import find_files
from ssgan.data.volume import VolumeError
from tests.support import dicom_cases as cases
from tests.support.nifti_cases import ARGUMENTS, SHAPE, good, save, voxels

AFFINE = np.diag([1.5, 1.0, 2.0, 1.0])


def run(folder, out, *more):
    return prepare.main([str(a) for a in ("--input", folder, "--out", out, *ARGUMENTS, *more)])


def pair(folder, kind=nibabel.Nifti1Pair, name="a"):
    folder.mkdir(exist_ok=True)
    nibabel.save(kind(voxels(), AFFINE), folder / f"{name}.img")
    return folder / f"{name}.hdr"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_of_header_and_image_is_read(kind, tmp_path, capfd):
    path = pair(tmp_path / "in", kind)
    assert np.array_equal(load_nifti(path).data, voxels()) and np.allclose(header_spacing(path), (1.5, 1, 2))
    good(tmp_path / "in" / "b.nii", 1)
    (tmp_path / "in" / "envi.hdr").write_text("ENVI\nsamples = 3\n")
    (tmp_path / "in" / "envi.img").write_bytes(b"123")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert [r["source"] for r in VolumeDataset(tmp_path / "out").records] == ["a.hdr", "b.nii"]
    assert "2 files that are no volumes ignored, such as envi.hdr" in capfd.readouterr().out


def test_what_is_wrong_with_a_pair_is_named(tmp_path, capfd):
    good(tmp_path / "in" / "z.nii")
    pair(tmp_path / "in", name="lost").with_suffix(".img").unlink()
    pair(tmp_path / "in", nibabel.AnalyzeImage, "old")
    short = pair(tmp_path / "in", name="short").with_suffix(".img")
    short.write_bytes(short.read_bytes()[:-2])
    pair(tmp_path / "in", name="alone").unlink()
    assert run(tmp_path / "in", tmp_path / "out") == 0
    reasons = {s["file"]: s["reason"] for s in VolumeDataset(tmp_path / "out").skipped}
    assert sorted(reasons) == ["lost.hdr", "old.hdr", "short.hdr"]
    assert "lost.img, is missing" in reasons["lost.hdr"] and "Analyze, whose orientation" in reasons["old.hdr"]
    assert "cut off" in reasons["short.hdr"]
    assert "1 volumes in formats that are not read ignored, such as alone.img" in capfd.readouterr().out


def test_volumes_in_other_formats_are_counted(tmp_path, capfd):
    good(tmp_path / "in" / "z.nii")
    for name in ("T1.mgz", "a.mnc", "b.nii.bz2", ".hidden.mgz"):
        (tmp_path / "in" / name).write_bytes(b"x")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert "3 volumes in formats that are not read ignored, such as T1.mgz; convert to NIfTI" in out


def nifti_bytes():
    return nibabel.Nifti1Image(voxels(), AFFINE).to_bytes()


DICOM_FILE = b"\0" * 128 + b"DICM" + b"\0" * 300
MISNAMED = {
    "plain .nii.gz": ("a.nii.gz", nifti_bytes, "it is NIfTI without compression: name it .nii"),
    "plain .nii.gz of NIfTI-2": (
        "a.nii.gz",
        lambda: nibabel.Nifti2Image(voxels(), AFFINE).to_bytes(),
        "it is NIfTI without compression: name it .nii",
    ),
    "gzip .nii": ("a.nii", lambda: gzip.compress(nifti_bytes()), "it is compressed by gzip; name it .nii.gz"),
    "zip .nii": ("a.nii", lambda: b"PK\x03\x04" + b"\0" * 400, "it is a zip archive; unpack it"),
    "zip .nii.gz": ("a.nii.gz", lambda: b"PK\x03\x04" + b"\0" * 400, "it is a zip archive; unpack it"),
    "DICOM .nii": ("a.nii", lambda: DICOM_FILE, "it is DICOM: name it .dcm"),
    "DICOM .nii.gz": ("a.nii.gz", lambda: DICOM_FILE, "it is DICOM: name it .dcm"),
    "NRRD .nii": ("a.nii", lambda: b"NRRD0004\ntype: short\n" + b"\n" * 400, "it is NRRD; name it .nrrd"),
    "HDF5 .nii": ("a.nii", lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 400, "it is HDF5"),
}


@pytest.mark.parametrize("name", MISNAMED)
def test_a_misnamed_file_is_named_by_what_it_is(name, tmp_path):
    file, contents, words = MISNAMED[name]
    (tmp_path / file).write_bytes(contents())
    with pytest.raises(VolumeError, match="not readable as NIfTI") as caught:
        load_nifti(tmp_path / file)
    assert words in str(caught.value)


def test_the_advice_helps(tmp_path):
    (tmp_path / "a.nii").write_bytes(gzip.compress(nifti_bytes()))
    (tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii").write_bytes(nifti_bytes())
    for name in ("a.nii.gz", "b.nii"):
        assert np.array_equal(load_nifti(tmp_path / name).data, voxels())


def lps():
    affine = np.diag([1.0, 1.0, 2.5, 1.0])
    affine[:3, 3] = (-31.0, 12.5, 70.25)
    return affine


def headless(folder):
    """Files without preamble and file meta information, as old software writes them."""
    for path in folder.glob("*.dcm"):
        path.write_bytes(path.read_bytes()[132:])


@pytest.mark.parametrize(
    "change, words",
    [
        ({0x00200032: None}, "ImagePositionPatient: expected 3 numbers; got none (and 21 files beside it)"),
        ({0x00280004: ("CS", "MONOCHROME1")}, "inverted grey levels (MONOCHROME1); expected MONOCHROME2 (and 21 files"),
        ("headless", "no DICM after a preamble of 128 bytes; expected a DICOM file: convert it (and 21 files"),
        ("cut", "bytes of pixel data are there: cut off (and 21 files"),
    ],
    ids=["no positions", "inverted", "no preamble", "each cut off elsewhere"],
)
def test_a_series_of_bad_slices_is_one_line(change, words, tmp_path, capfd):
    pytest.importorskip("pydicom")
    changes = {k: change for k in range(SHAPE[2])} if isinstance(change, dict) else None
    paths = cases.write_series(tmp_path / "in" / "series", voxels(), lps(), changes=changes)
    if change == "headless":
        headless(tmp_path / "in" / "series")
    if change == "cut":
        for number, path in enumerate(paths):
            path.write_bytes(path.read_bytes()[: -2 - 2 * number])
    good(tmp_path / "in" / "z.nii", 2)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("skipped")]
    assert len(said) == 1 and words in said[0] and said[0].startswith("skipped  series/")
    assert run(tmp_path / "in", tmp_path / "strict", "--strict") == 2


def ct(folder, data, rescale=(1, -1024), modality="CT", change=None):
    pytest.importorskip("SimpleITK")
    changes = {k: change for k in range(data.shape[2])} if change else None
    cases.write_series(folder / "in" / "ct", data, lps(), rescale=rescale, modality=modality, changes=changes)
    good(folder / "in" / "z.nii", 2)
    assert run(folder / "in", folder / "out", "--spacing", 1, 1, 1) == 0
    found = VolumeDataset(folder / "out")
    return {**{s["file"]: s["reason"] for s in found.skipped}, **{r["source"]: r["warnings"] for r in found.records}}


def test_a_ct_with_the_wrong_sign_is_refused(tmp_path):
    """Signed HU that the header calls unsigned: -520 HU is read as 65,016."""
    data = voxels() - 520
    found = ct(tmp_path / "a", data, (1, 0), change={0x00280103: ("US", [0])})
    assert found["ct"].startswith("intensities from 0 to 65") and "no Hounsfield units" in found["ct"]
    assert "PixelRepresentation" in found["ct"]
    data = (voxels().astype(np.int32) * 40 + 1024).astype(np.uint16)  # unsigned, called signed
    assert "no Hounsfield units" in ct(tmp_path / "b", data, change={0x00280103: ("US", [1])})["ct"]


def test_a_ct_with_the_right_sign_is_read(tmp_path):
    assert not any("HU" in w for w in ct(tmp_path / "a", voxels() - 520, (1, 0))["ct"])


def test_padding_of_one_low_value_is_a_warning(tmp_path):
    data = voxels() - 1000
    data[:2] = -2000
    warnings = ct(tmp_path / "a", data, (1, -24))["ct"]
    assert f"{2 * SHAPE[1] * SHAPE[2]} voxels of -2024 HU: taken as padding" in warnings
    data[2, 0, 0] = -1900
    assert "no Hounsfield units" in ct(tmp_path / "b", data, (1, -24))["ct"]


def test_other_modalities_have_no_hounsfield_units(tmp_path):
    data = voxels().astype(np.uint16) + 40000
    assert isinstance(ct(tmp_path, data, (1, 0), modality="MR")["ct"], list)


def test_a_nifti_ct_with_the_wrong_sign_is_refused(tmp_path):
    volume = load_nifti(save(tmp_path / "a.nii", (voxels() - 520).astype(np.uint16)))
    with pytest.raises(VolumeError, match=r"up to 65\d\d\d are no Hounsfield units"):
        prepare_volume(volume, Recipe("ct", (16, 16, 16), None))


def test_hdr_and_img_are_found_whatever_their_case(tmp_path):
    pair(tmp_path).rename(tmp_path / "A.HDR")
    (tmp_path / "a.img").rename(tmp_path / "A.IMG")
    found = find_files(tmp_path)
    assert found.files == [tmp_path / "A.HDR"] and not found.unread
    assert np.array_equal(load_nifti(tmp_path / "A.HDR").data, voxels())
