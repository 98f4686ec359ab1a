"""DICOM series, NRRD and MetaImage: geometry and voxels against independent readers, and every defect by name."""

import gzip
import importlib.util
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ssgan import prepare
from ssgan.data import itk
from ssgan.data.dataset import VolumeDataset
from ssgan.data.dicom import load_series, scan_folder
from ssgan.data.nifti import load_nifti
from ssgan.data.sources import find_files
from ssgan.data.volume import VolumeError
from tests.support import dicom_cases as cases
from tests.support.nifti_cases import SHARED_DATA, good

pytest.importorskip("SimpleITK", reason="DICOM, NRRD and MetaImage need the extra `dicom`")
pytest.importorskip("pydicom", reason="DICOM needs the extra `dicom`")

SHAPE = (9, 8, 7)  # I, J, K
LPS_TO_RAS = np.diag([-1.0, -1, 1, 1])


def stored(dtype=np.int16, shape=SHAPE, seed=0):
    limits = (0, 250) if np.dtype(dtype).itemsize == 1 else (-1000, 3000) if np.dtype(dtype).kind == "i" else (0, 60000)
    return np.random.default_rng(seed).integers(*limits, shape).astype(dtype)


def lps(turn=(0, 0, 0), spacing=(0.8, 1.1, 2.5), origin=(-31.0, 12.5, 70.25)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() * spacing
    affine[:3, 3] = origin
    return affine


def only(folder):
    series, outside = scan_folder(sorted(p for p in folder.iterdir() if p.is_file()))
    assert len(series) == 1 and not outside
    return series[0]


@pytest.mark.parametrize("turn", [(0, 0, 0), (90, 0, 0), (0, 90, 90), (12, -20, 33)], ids=str)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8])
def test_series_is_where_and_what_its_headers_say(turn, dtype, tmp_path):
    """Axial, coronal, sagittal and oblique; the files' names do not sort in slice order."""
    data = stored(dtype)
    paths = cases.write_series(tmp_path, data, lps(turn), rescale=(2, -1024), modality="PT")
    assert paths != sorted(paths)
    volume = load_series(only(tmp_path))
    assert cases.same_volume(volume, data * 2.0 - 1024, LPS_TO_RAS @ lps(turn))
    assert not cases.same_volume(volume, data[::-1] * 2.0 - 1024, LPS_TO_RAS @ lps(turn))  # the check can fail
    assert (np.diag(volume.affine)[:3] > 0).all()


def test_each_slice_has_its_own_rescale(tmp_path):
    data = stored(np.uint16)
    pairs = [(0.5 + 0.25 * k, -10.0 * k) for k in range(SHAPE[2])]
    cases.write_series(tmp_path, data, lps(), rescale=pairs, modality="PT")
    wanted = data * np.array([p[0] for p in pairs]) + np.array([p[1] for p in pairs])
    assert cases.same_volume(load_series(only(tmp_path)), wanted, LPS_TO_RAS @ lps())


def test_twelve_bits_of_sixteen(tmp_path):
    """Stored bits below a high bit of 11, signed: the upper four bits of a word are no part of the number."""
    data = stored(np.int16) % 2048 - 1024
    bits = {0x00280101: ("US", [12]), 0x00280102: ("US", [11])}
    cases.write_series(tmp_path, data & 0xFFF, lps(), changes={k: bits for k in range(SHAPE[2])})
    assert cases.same_volume(load_series(only(tmp_path)), data, LPS_TO_RAS @ lps())


@pytest.mark.parametrize("name", ["hippocampus_a", "hippocampus_b"])
def test_real_series(name):
    folder = SHARED_DATA / "dicom" / name
    if not folder.exists():
        pytest.skip(f"the real volumes are not there: {folder}")
    files = sorted(folder.iterdir())
    series, outside = scan_folder(files)
    assert len(series) == 1 and not outside and list(series[0].files) != files
    voxels, affine = cases.read_planes([f.read_bytes() for f in files])
    volume = load_series(series[0])
    assert cases.same_volume(volume, voxels, affine) and volume.data.shape == voxels.shape
    assert np.allclose(np.diag(volume.affine)[:3], 1) and not volume.warnings


def enhanced(folder, data, affine, *, order=None, rescale=None, spoil=None):
    """One multi-frame file; `order`: which slice each frame is. rescale: one pair, or one for each frame."""
    frames = list(range(data.shape[2])) if order is None else order
    first = cases.slice_elements(data[:, :, 0].T, affine[:3, 3], modality="CT")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)

    def transform(pair):
        return {0x00289145: ("SQ", [{0x00281052: ("DS", [pair[1]]), 0x00281053: ("DS", [pair[0]])}])}

    per_frame = [
        {0x00209113: ("SQ", [{0x00200032: ("DS", list(affine[:3, 3] + k * affine[:3, 2]))}]),
         **(transform(rescale[i]) if isinstance(rescale, list) else {})}
        for i, k in enumerate(frames)
    ]  # fmt: skip
    shared = {
        0x00209116: ("SQ", [{0x00200037: ("DS", [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])])}]),
        0x00289110: ("SQ", [{0x00280030: ("DS", [spacing[1], spacing[0]]), 0x00180050: ("DS", [spacing[2]])}]),
        **(transform(rescale) if isinstance(rescale, tuple) else {}),
    }
    elements = {
        **{t: v for t, v in first.items() if t not in (0x00200032, 0x00200037, 0x00280030)},
        0x00080016: ("UI", cases.ENHANCED_CT),
        0x00280008: ("IS", [len(frames)]),
        0x52009229: ("SQ", [shared]),
        0x52009230: ("SQ", per_frame),
        0x7FE00010: ("OW", np.ascontiguousarray(data.transpose(2, 1, 0)[frames]).tobytes()),
    }
    for tag in spoil or ():
        del elements[tag]
    return cases.write(folder / "multi.dcm", elements)


@pytest.mark.parametrize("order", [None, [3, 0, 6, 1, 5, 2, 4]], ids=["in order", "frames shuffled"])
@pytest.mark.parametrize("rescale", [(1, -1024), (0.5, 3)])
def test_enhanced_multi_frame(order, rescale, tmp_path):
    data = abs(stored())
    enhanced(tmp_path, data, lps((12, -20, 33)), order=order, rescale=rescale)
    wanted = data * float(rescale[0]) + rescale[1]
    assert cases.same_volume(load_series(only(tmp_path)), wanted, LPS_TO_RAS @ lps((12, -20, 33)))


def test_enhanced_multi_frame_that_cannot_be_read(tmp_path):
    enhanced(tmp_path, stored(), lps(), rescale=[(1 + i, 0) for i in range(7)])
    assert "different rescale slopes" in only(tmp_path).reason
    enhanced(tmp_path, stored(), lps(), rescale=(1, 0), order=[0, 1, 2, 3, 4, 4, 6])
    assert "missing slices" in only(tmp_path).reason or "one frame at each" in only(tmp_path).reason
    enhanced(tmp_path, stored(), lps(), rescale=(1, 0), spoil=[0x52009230])
    assert "7 frames without a position for each" in scan_folder([tmp_path / "multi.dcm"])[1][0][1]


def make(folder, data=None, affine=None, **more):
    return cases.write_series(folder, stored() if data is None else data, lps() if affine is None else affine, **more)


def every(change):
    return {k: change for k in range(SHAPE[2])}


def gap(folder, *gone):
    paths = make(folder)
    for k in gone:
        paths[k].unlink()


def moved(folder, by, k=3):
    at = lps()[:3, 3] + k * lps()[:3, 2] + np.asarray(by)
    make(folder, changes={k: {0x00200032: ("DS", list(at))}})


def tilted(folder):
    affine = lps()
    affine[1, 2] = affine[2, 2] * np.tan(np.radians(12))
    make(folder, affine=affine)


def copied(folder, change):
    paths = make(folder)
    raw = bytearray(paths[2].read_bytes())
    if change:
        raw[-1] ^= 1
    (folder / "copy.dcm").write_bytes(bytes(raw))


def two_echoes(folder):
    make(folder, names=range(7))
    make(folder, data=stored(seed=1), names=range(10, 17))


def scout(folder):
    for k, turn in enumerate([(0, 0, 0), (90, 0, 0), (0, 90, 0), (0, 0, 90)]):
        paths = make(folder / "all", affine=lps(turn))
        shutil.copy(paths[0], folder / f"{k}.dcm")
    shutil.rmtree(folder / "all")


DEFECTS = {
    "missing slice": (lambda f: gap(f, 3), r"1 missing slices, .* between \d.dcm and \d.dcm \(5 mm; usually 2.5\)"),
    "two gaps": (lambda f: gap(f, 2, 3, 5), "uneven slice spacing|3 missing slices, the first between"),
    "uneven spacing": (lambda f: moved(f, (0, 0, 0.4)), "uneven slice spacing, from 2.1 to 2.9 mm, most at"),
    "gantry tilt": (tilted, r"gantry tilt: the stack leans by 1[12]\.\d degrees"),
    "slice out of the row": (lambda f: moved(f, (1.0, 0, 0)), "do not lie in a row: .* is off by 1 mm"),
    "duplicate that differs": (lambda f: copied(f, True), "duplicate slices that differ: "),
    "two echoes": (two_echoes, "14 images at 7 positions: several echoes"),
    "two slices": (lambda f: gap(f, *range(2, 7)), "2 slices; expected at least 4"),
    "scout of three planes": (scout, "slices of . orientations: a localizer or a mixed series"),
    "localizer": (lambda f: make(f, changes=every({0x00080008: ("CS", "ORIGINAL\\LOCALIZER")})), "a localizer"),
    "mixed sizes": (
        lambda f: (make(f), make(f / "b", stored(shape=(9, 9, 7))), shutil.move(f / "b" / "0.dcm", f / "0.dcm")),
        r"mixed series: slices of different sizes \(rows, columns\): \(8, 9\) \(6\), \(9, 9\) \(1\)",
    ),
    "mixed spacings": (
        lambda f: make(f, changes={2: {0x00280030: ("DS", [2, 2])}}),
        "mixed series: slices of different PixelSpacing",
    ),
    "CT without rescale": (lambda f: make(f, modality="CT"), "no Hounsfield units"),
}  # fmt: skip


@pytest.mark.parametrize("case", DEFECTS)
def test_defect_of_a_series_is_named(case, tmp_path):
    write, words = DEFECTS[case]
    write(tmp_path)
    series, outside = scan_folder(sorted(p for p in tmp_path.iterdir() if p.is_file()))
    assert len(series) == 1 and not outside
    with pytest.raises(VolumeError, match=words):
        load_series(series[0])


def test_equal_duplicate_is_dropped_with_a_warning(tmp_path):
    copied(tmp_path, False)
    volume = load_series(only(tmp_path))
    assert any("duplicate slice dropped" in w for w in volume.warnings)
    assert cases.same_volume(volume, stored(), LPS_TO_RAS @ lps())


def test_padding_after_the_pixels_is_let_pass(tmp_path):
    make(tmp_path, changes=every({0xFFFCFFFC: ("OB", b"\0" * 10)}))
    assert cases.same_volume(load_series(only(tmp_path)), stored(), LPS_TO_RAS @ lps())


def test_a_slice_under_a_damaged_uid_is_missed(tmp_path):
    """The last slice has another SeriesInstanceUID: the others alone would be a volume that is cut short."""
    make(tmp_path, changes={6: {0x0020000E: ("UI", "1.2.3.5")}})
    series, _ = scan_folder(sorted(tmp_path.iterdir()))
    assert sorted(s.reason.partition(" ")[2][:39] for s in series) == [
        "continues it under another SeriesInstan",
        "slices; expected at least 4: a localize",
    ]


def test_announced_slices_that_are_not_there_are_a_warning(tmp_path):
    make(tmp_path, changes=every({0x00201002: ("IS", [9])}))
    assert load_series(only(tmp_path)).warnings == ["7 slices of 9 that the header announces (ImagesInAcquisition)"]


FILE_DEFECTS = {
    "colour": ({0x00280002: ("US", [3]), 0x00280004: ("CS", "RGB")}, r"colour \(RGB\)"),
    "palette": ({0x00280004: ("CS", "PALETTE COLOR")}, r"colour \(PALETTE COLOR\)"),
    "inverted": ({0x00280004: ("CS", "MONOCHROME1")}, "MONOCHROME1"),
    "no position": ({0x00200032: None}, "ImagePositionPatient: expected 3 numbers; got none"),
    "no orientation": ({0x00200037: None}, "ImageOrientationPatient: expected 6 numbers"),
    "orientation of no length": ({0x00200037: ("DS", [0] * 6)}, "no pair of unit vectors"),
    "no spacing": ({0x00280030: None}, "PixelSpacing: expected 2 numbers"),
    "spacing 0": ({0x00280030: ("DS", [0, 1])}, "millimetres above 0"),
    "position in words": ({0x00200032: ("DS", "a\\b\\c")}, "not readable as DICOM|ImagePositionPatient"),
    "slope 0": ({0x00281053: ("DS", [0]), 0x00281052: ("DS", [1])}, "RescaleSlope is 0"),
    "slope alone": ({0x00281053: ("DS", [2])}, "only one of RescaleSlope and RescaleIntercept"),
    "table": ({0x00283000: ("SQ", [{}])}, "ModalityLUTSequence"),
    "no series": ({0x0020000E: None}, "no SeriesInstanceUID"),
    "more rows than pixels": ({0x00280010: ("US", [80])}, "144 bytes of pixel data; rows, columns and bits need 1440"),
    "no pixels": ({0x7FE00010: None}, "no pixel data"),
    "rubbish after the pixels": ({0x7FE10010: ("OB", b"abcd")}, "16 bytes after the pixel data that are no element"),
}


@pytest.mark.parametrize("case", FILE_DEFECTS)
def test_defect_of_a_file_is_named_and_laid_to_its_series(case, tmp_path):
    change, words = FILE_DEFECTS[case]
    paths = make(tmp_path, changes={3: change})
    series, outside = scan_folder(sorted(tmp_path.iterdir()))
    assert [p for p, _ in outside] == [paths[3]]
    with pytest.raises(VolumeError, match=words):
        raise VolumeError(outside[0][1])
    assert series[0].reason.startswith(f"a slice may be missing: {paths[3].name} beside it is damaged")


def test_series_are_split_and_what_is_no_image_is_said(tmp_path):
    """Two series in one folder, a report beside them."""
    make(tmp_path, names=range(7), uid="1.2.9")
    make(tmp_path, stored(seed=1), lps((90, 0, 0)), names=range(10, 17), uid="1.2.10", suffix="")
    report = cases.slice_elements(stored()[:, :, 0], (0, 0, 0), change={0x00280010: None, 0x00280011: None})
    report[0x00080016] = ("UI", "1.2.840.10008.5.1.4.1.1.88.11")
    cases.write(tmp_path / "report.dcm", {t: v for t, v in report.items() if t != 0x7FE00010})
    found = find_files(tmp_path)
    assert list(found.folders) == [tmp_path] and len(found.folders[tmp_path]) == 15  # without a suffix too
    series, outside = scan_folder(found.folders[tmp_path])
    assert [s.uid for s in series] == ["1.2.10", "1.2.9"] and not any(s.reason for s in series)
    assert cases.same_volume(load_series(series[0]), stored(seed=1), LPS_TO_RAS @ lps((90, 0, 0)))
    assert cases.same_volume(load_series(series[1]), stored(), LPS_TO_RAS @ lps())
    assert [(p.name, why) for p, why in outside] == [("report.dcm", "no picture but Basic Text SR Storage")]


def run(source, out, *more, shape=(16, 16, 16)):
    return prepare.main([str(a) for a in ("--input", source, "--out", out, "--shape", *shape, *more)])


def coca(root):
    """As the archive comes: numbered patients with one series folder each, calcium outlines beside, non-gated scans."""
    affine = lps(spacing=(8.0, 8.0, 8.0))
    for patient in range(3):
        folder = root / "Gated_release_final" / "patient" / str(patient) / "Pro_Gated_CS_3.0_I30f_3_70%"
        data = stored(np.int16, (24, 24, 16), seed=patient)
        cases.write_series(folder, data, affine, modality="CT", rescale=(1, 0), uid=f"1.2.{patient + 1}")
        (root / "Gated_release_final" / "calcium_xml").mkdir(exist_ok=True)
        (root / "Gated_release_final" / "calcium_xml" / f"{patient}.xml").write_text("<plist></plist>")
    short = root / "Gated_release_final" / "patient" / "2" / "short"
    cases.write_series(short, stored(np.int16, (24, 24, 5)), affine, modality="CT", rescale=(1, 0), uid="1.2.77")
    other = root / "deidentified_nongated" / "0" / "chest"
    cases.write_series(other, stored(np.int16, (24, 24, 16)), affine, modality="CT", rescale=(1, 0), uid="1.2.88")
    return root


def test_recipe_coca(tmp_path, capfd):
    """One command on the whole download: HU window, field of view, one series for each patient, gated alone."""
    source = coca(tmp_path / "cocacoronarycalciumandchestcts-2")
    table = tmp_path / "scores.csv"
    table.write_text("subject,class\n0,none\n1,some\n2,some\n")
    assert run(source, tmp_path / "out", "--recipe", "coca", "--labels", table) == 0
    assert "3 files that are no volumes ignored, such as 0.xml" in capfd.readouterr().out
    dataset = VolumeDataset(tmp_path / "out")
    assert [Path(r["source"]).parts[2] for r in dataset.records] == ["0", "1", "2"]
    assert dataset.labels.tolist() == [0, 1, 1] and dataset.info.classes == ("none", "some")
    reasons = {Path(s["file"]).name: s["reason"] for s in dataset.skipped}
    assert reasons["chest"] == "not a gated scan (recipe coca)"
    assert reasons["short"].startswith("another series of patient 2 has as many slices or more")
    assert dataset.info.spacing == (12, 12, 8) and dataset.info.recipe == "coca"
    assert (dataset.info.intensity_low, dataset.info.intensity_high) == (-200, 800)


def test_ct_windows_hold_hounsfield_units(tmp_path):
    """At the volume's own spacing a voxel is its HU within the window, -1 below and +1 above."""
    data = stored(np.uint16, (16, 16, 16)) % 3000
    cases.write_series(tmp_path / "in", data, lps(spacing=(1, 1, 1)), modality="CT", rescale=(1, -1024))
    for recipe, low, high in (("ct", -160, 240), ("coca", -200, 800)):
        assert run(tmp_path / "in", tmp_path / recipe, "--recipe", recipe, "--spacing", 1, 1, 1) == 0
        volume = VolumeDataset(tmp_path / recipe).volumes[0].transpose(2, 1, 0)[::-1, ::-1]  # to I, J, K of LPS
        assert np.allclose(volume, np.clip((data - 1024.0 - low) / (high - low) * 2 - 1, -1, 1), atol=1e-6)


def test_recipe_of_another_modality(tmp_path, capfd):
    make(tmp_path / "in")
    assert run(tmp_path / "in", tmp_path / "out", "--recipe", "ct") == 2
    assert "modality MR; --recipe ct is for CT" in capfd.readouterr().out


def adni(root):
    """subject/sequence/date/image with NIfTI and DICOM: a repeat, a less corrected image, other sequences."""
    best, raw = "MPR__GradWarp__B1_Correction__N3__Scaled", "MPR____N3__Scaled"

    def nifti(subject, sequence, date, image, seed):
        name = f"ADNI_{subject}_MR_{sequence}_Br_20070713121420365_S{seed}_{image}.nii"
        good(root / "ADNI" / subject / sequence / date / image / name, seed)

    nifti("002_S_0413", best, "2006-05-19_16_17_47.0", "I45117", 1)
    nifti("002_S_0413", raw, "2006-05-19_16_17_47.0", "I45000", 2)
    nifti("002_S_0413", best.replace("MPR_", "MPR-R_"), "2006-05-19_16_17_47.0", "I44000", 3)
    nifti("002_S_0413", best, "2007-06-01_07_04_09.0", "I60008", 4)
    nifti("002_S_0413", "Double_TSE", "2007-06-01_07_04_09.0", "I60009", 5)
    folder = root / "ADNI" / "123_S_4096" / "MPRAGE" / "2012-01-02_10_11_12.0" / "I277777"
    make(folder, stored(np.int16, (16, 16, 16)), lps((90, 90, 0), spacing=(8, 8, 8)))
    folder = root / "ADNI" / "123_S_4096" / "Axial_3TE_T2_STAR" / "2012-01-02_10_11_12.0" / "I277778"
    make(folder, stored(np.int16, (16, 16, 16), seed=5), lps(spacing=(8, 8, 8)), uid="1.2.5")
    good(root / "stray.nii.gz", 8)
    return root


def test_recipe_adni(tmp_path):
    """One command on the archive's tree; ADNI's own table of images gives the classes."""
    source, table = adni(tmp_path / "download"), tmp_path / "ADNI1.csv"
    table.write_text('"Image Data ID","Subject","Group"\n"I1","002_S_0413","CN"\n"I2","123_S_4096","AD"\n')
    assert run(source, tmp_path / "out", "--recipe", "adni", "--labels", table, shape=(16, 16, 16)) == 0
    dataset = VolumeDataset(tmp_path / "out")
    images = [next(p for p in Path(r["source"]).parts if p[0] == "I" and p[1:].isdigit()) for r in dataset.records]
    assert images == ["I45117", "I60008", "I277777"]
    assert [dataset.info.classes[n] for n in dataset.labels] == ["CN", "CN", "AD"]
    reasons = sorted(s["reason"][:36] for s in dataset.skipped)
    assert reasons == sorted(
        ["another image of 002_S_0413 at 2006-"] * 2
        + ["sequence Double_TSE: no T1 MPRAGE or", "sequence Axial_3TE_T2_STAR: no T1 MP"]
        + ["no ADNI subject id such as 002_S_041"]
    )
    assert dataset.info.spacing == (12, 14, 12)


def test_adni_files_without_their_folders(tmp_path):
    for number, sequence in enumerate(["MPR__GradWarp__B1_Correction__N3__Scaled", "MPR____N3__Scaled", "FLAIR"]):
        name = f"ADNI_002_S_0413_MR_{sequence}_Br_20070713121420365_S32938_I6000{number}.nii"
        good(tmp_path / "in" / name, number)
    good(tmp_path / "in" / "ADNI_002_S_0559_MR_IR-SPGR_br_raw_20070713121420365_1_S32939_I60009.nii.gz", 7)
    assert run(tmp_path / "in", tmp_path / "out", "--recipe", "adni") == 0
    first, second = (r["source"] for r in VolumeDataset(tmp_path / "out").records)
    assert first.endswith("I60000.nii") and second.endswith("I60009.nii.gz")


def test_formats_side_by_side(tmp_path):
    """One folder with all of them; each is a volume of the data set."""
    data, affine = stored(np.int16, (16, 16, 16)), lps(spacing=(1, 1, 1))
    good(tmp_path / "in" / "a.nii.gz", 1)
    cases.write_nrrd(tmp_path / "in" / "b.nrrd", data, affine)
    cases.write_mha(tmp_path / "in" / "c.mha", data + 1, affine)
    make(tmp_path / "in" / "d", data + 2, affine)
    make(tmp_path / "in", data + 3, affine, uid="1.2.44")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    dataset = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in dataset.records] == ["1.2.44", "a.nii.gz", "b.nrrd", "c.mha", "d"]
    assert np.abs(dataset.volumes[2] - dataset.volumes[4]).max() < 1e-6  # the recipe removes the offset


@pytest.mark.parametrize("name, package", [("a.nrrd", "SimpleITK"), ("s/1.dcm", "pydicom"), ("s/1.dcm", "SimpleITK")])
def test_without_the_extra_it_is_named(name, package, tmp_path, capfd, monkeypatch):
    good(tmp_path / "in" / "good.nii")
    (cases.write_nrrd if name.endswith("nrrd") else lambda p, *a: make(p.parent, names=range(7)))(
        tmp_path / "in" / name, stored(), lps()
    )
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else real(n, *a))
    assert run(tmp_path / "in", tmp_path / "out") == 2
    err = capfd.readouterr().err
    assert f"files such as {'0.dcm' if 's/' in name else name} need {package}: pip install" in err
    assert not (tmp_path / "out").exists() and not os.listdir(tmp_path) == []


def test_bombs_stay_small(tmp_path):
    """Archives of a few kilobytes that unpack to far more than their headers declare, or declare far too much."""
    bomb = gzip.compress(b"\0" * (1 << 28), 9)
    raw = good(tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(raw) + bomb)
    with pytest.raises(VolumeError, match="bytes come out where the header declares 16720"):
        load_nifti(tmp_path / "a.nii.gz")
    path = cases.write_mha(tmp_path / "a.mha", stored(), lps(), compressed=True)
    big = zlib.compress(b"\0" * (1 << 24), 9)
    head = path.read_bytes().partition(b"LOCAL\n")[0].replace(b"9 8 7", b"4000 4000 4000")
    path.write_bytes(re.sub(rb"(DataSize =) \d+", rb"\1 %d" % len(big), head) + b"LOCAL\n" + big)
    with pytest.raises(VolumeError, match=r"header claims|at most"):
        itk.load_itk(path)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_what_simpleitk_writes_is_read(name, packed, tmp_path):
    """Files written by another program, with its own fields."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(stored().transpose(2, 1, 0))
    affine = lps((12, -20, 33))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetMetaData("Comment", "made by a test")
    sitk.WriteImage(image, str(tmp_path / name), packed)
    volume = itk.load_itk(tmp_path / name)
    assert cases.same_volume(volume, stored().astype(float), LPS_TO_RAS @ affine) and not volume.warnings


def test_a_real_brain_is_the_same_volume_in_every_format(tmp_path):
    """NIfTI read by nibabel against NRRD and MetaImage that SimpleITK converted from it."""
    import SimpleITK as sitk

    path = SHARED_DATA / "brain" / "avg152T1_RL.nii.gz"
    if not path.exists():
        pytest.skip(f"the real volumes are not there: {path}")
    image = sitk.ReadImage(str(path))
    wanted = load_nifti(path)
    for name in ("a.nrrd", "a.mha"):
        sitk.WriteImage(image, str(tmp_path / name), True)
        volume = itk.load_itk(tmp_path / name)
        assert np.array_equal(volume.data, wanted.data) and np.allclose(volume.affine, wanted.affine, atol=1e-3)
