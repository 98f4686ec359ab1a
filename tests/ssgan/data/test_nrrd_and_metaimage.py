"""NRRD and MetaImage: geometry and voxels against independent readers, and every defect by name."""

import numpy as np
import pytest

from ssgan.data import itk
from ssgan.data.sources import find_files
from ssgan.data.volume import VolumeError
from tests.ssgan.data.test_dicom import LPS_TO_RAS, lps, stored
from tests.support import dicom_cases as cases

SPACES = {"left-posterior-superior": (-1, -1), "right-anterior-superior": (1, 1), "left-anterior-superior": (-1, 1)}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("encoding", ["raw", "gzip"])
@pytest.mark.parametrize("dtype", ["i2", "f4", "u1"])
def test_nrrd(space, encoding, dtype, tmp_path):
    data = stored().astype(dtype)
    affine = lps((12, -20, 33))
    path = cases.write_nrrd(
        tmp_path / "a.nrrd", data, affine, space=space, encoding=encoding, endian="big" if dtype == "f4" else "little"
    )
    volume = itk.load_itk(path)
    ras = np.diag([*SPACES[space], 1, 1]) @ affine
    assert cases.same_volume(volume, data.astype(float), ras) and not volume.warnings
    assert np.allclose(itk.header_spacing(path), volume.spacing)
    assert cases.same_volume(volume, *cases.read_nrrd(path.read_bytes()))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["i2", "f4", "u1"])
@pytest.mark.parametrize("turn", [(0, 0, 0), (12, -20, 33)], ids=str)
def test_mha_and_mhd(compressed, dtype, turn, tmp_path):
    data = stored().astype(dtype)
    path = cases.write_mha(tmp_path / "a.mha", data, lps(turn), compressed=compressed, big=dtype == "i2")
    volume = itk.load_itk(path)
    assert cases.same_volume(volume, data.astype(float), LPS_TO_RAS @ lps(turn)) and not volume.warnings
    head, _, body = path.read_bytes().partition(b"LOCAL\n")
    (tmp_path / "a.raw").write_bytes(body)
    (tmp_path / "a.mhd").write_bytes(head + b"a.raw\n")
    path.unlink()
    detached = itk.load_itk(tmp_path / "a.mhd")
    assert np.array_equal(detached.data, volume.data) and np.array_equal(detached.affine, volume.affine)
    assert list(find_files(tmp_path).files) == [tmp_path / "a.mhd"]


def nrrd(folder, **more):
    return cases.write_nrrd(folder / "a.nrrd", stored(), lps(), **more)


def mha(folder, **more):
    return cases.write_mha(folder / "a.mha", stored(), lps(), **more)


def edited(path, old, new, keep=None):
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new, 1)[:keep])
    return path


TEXT_DEFECTS = {
    "nrrd without space": (lambda f: nrrd(f, drop=("space",)), "no space; expected one of left-posterior-superior"),
    "nrrd of another space": (lambda f: nrrd(f, space="scanner-xyz"), "the space 'scanner-xyz'"),
    "nrrd of spacings in micrometres": (
        lambda f: nrrd(
            f, drop=("space", "space directions", "space origin"), extra=["spacings: 5 5 5", 'units: "um" "um" "um"']
        ),
        "units um; expected mm",
    ),
    "nrrd in metres": (lambda f: nrrd(f, extra=['space units: "m" "m" "m"']), "space units m; expected mm"),
    "nrrd without spacing": (
        lambda f: nrrd(f, drop=("space directions", "space", "space origin")),
        "voxel size is unknown",
    ),
    "nrrd with a field twice": (lambda f: nrrd(f, extra=["sizes: 9 8 7"]), "gives 'sizes' twice"),
    "nrrd cut off": (lambda f: edited(nrrd(f), b"NRRD", b"NRRD", -5), "1003 bytes of voxels .* declares 1008"),
    "nrrd gzip cut off": (lambda f: edited(nrrd(f, encoding="gzip"), b"NRRD", b"NRRD", -60), "voxels cannot be read"),
    "nrrd of no kind": (lambda f: edited(nrrd(f), b"NRRD", b"NERD"), "does not begin with NRRD000"),
    "nrrd of colours": (
        lambda f: edited(edited(nrrd(f), b"domain domain domain", b"RGB-color domain domain"),
                         b"space directions: (", b"space directions: none ("),
        "numbers per voxel|not readable as NRRD|expected three vectors",
    ),
    "nrrd that claims more": (lambda f: edited(nrrd(f), b"sizes: 9 8 7", b"sizes: 90000 80000 7"), "header claims"),
    "nrrd elsewhere": (lambda f: nrrd(f, extra=["data file: ../../etc/passwd"]), "in another folder"),
    "mha elsewhere": (lambda f: edited(mha(f), b"LOCAL", b"/etc/passwd"), "in another folder"),
    "mha in a list": (lambda f: edited(mha(f), b"LOCAL", b"LIST"), "in several files"),
    "mha whose voxels are missing": (lambda f: edited(mha(f), b"LOCAL", b"b.raw"), "b.raw, is missing"),
    "mha without spacing": (lambda f: mha(f, drop=("ElementSpacing",)), "no ElementSpacing"),
    "mha with a field twice": (lambda f: mha(f, extra=["DimSize = 9 8 7"]), "gives 'dimsize' twice"),
    "mha cut off": (lambda f: edited(mha(f), b"NDims", b"NDims", -5), "1003 bytes of voxels .* declares 1008"),
    "mha that claims more": (lambda f: edited(mha(f), b"9 8 7", b"900 8 7"), "header claims"),
    "mha of text": (lambda f: edited(mha(f), b"NDims = 3", b"hello"), "no line of its header"),
    "mha without end": (lambda f: edited(mha(f), b"DataFile", b"DataFire"), "no end|no text|unknown field"),
    "mha with a damaged name": (
        lambda f: edited(mha(f), b"BinaryDataByteOrderMSB", b"BinaryDataBytxOrderMSB"),
        "no BinaryDataByteOrderMSB; the byte order is unknown",
    ),
    "mha with a capital in a name": (
        lambda f: edited(mha(f), b"CompressedData", b"CompresseDdata"),
        "the field CompresseDdata, not CompressedData: damaged",
    ),
    "mha without its compressed size": (
        lambda f: edited(mha(f, compressed=True), b"CompressedDataSize", b"Comment"),
        "CompressedDataSize is missing, but .* bytes are there",
    ),
    "mha empty": (lambda f: edited(mha(f), b"ObjectType", b"ObjectType", 0), r"empty \(0 bytes\)"),
    "mha spacing 0": (lambda f: edited(mha(f), b"ElementSpacing = 0.8", b"ElementSpacing = 0.0"), "not read|spacing 0"),
    "mha of vectors": (
        lambda f: edited(mha(f), b"DimSize = 9 8 7", b"ElementNumberOfChannels = 2\nDimSize = 9 4 7"),
        "2 numbers per voxel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXT_DEFECTS)
def test_defect_of_a_text_header_is_named(case, tmp_path):
    make_file, words = TEXT_DEFECTS[case]
    with pytest.raises(VolumeError, match=words) as caught:
        itk.load_itk(make_file(tmp_path))
    assert "\n" not in str(caught.value)


def test_no_orientation_is_a_warning(tmp_path):
    path = cases.write_mha(tmp_path / "a.mha", stored(), lps(), drop=("TransformMatrix",))
    assert "no orientation in the header" in itk.load_itk(path).warnings[0]
