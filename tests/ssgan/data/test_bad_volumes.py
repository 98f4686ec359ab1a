"""Files that cannot be training volumes: each is named with its reason, and the others are prepared."""

import gzip
import math
import struct

import nibabel
import numpy as np
import pytest

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset
from ssgan.data.nifti import load_nifti
from ssgan.data.preprocessing import Recipe, prepare_volume
from ssgan.data.volume import VolumeError
from tests.support.nifti_cases import ARGUMENTS, HEADER, SHAPE, good, patch, save, voxels, with_sform

AFFINE = np.diag([1.0, 1.0, 1.0, 1.0])


def with_bad_voxels(path, values):
    data = voxels().astype(np.float32)
    data.reshape(-1)[: len(values)] = values
    return save(path, data)


def cut(path, keep):
    """Keeps the first `keep` bytes, or all but the last -`keep`, or that fraction."""
    raw = good(path).read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if isinstance(keep, float) else keep])
    return path


def rgb(path):
    data = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    data["R"] = voxels() % 256
    return save(path, data)


def analyze(path):
    """Header and voxels of the older format in one file, which has no magic."""
    other = path.parent / "analyze.img"
    nibabel.save(nibabel.AnalyzeImage(voxels(), AFFINE), other)
    path.write_bytes(other.with_suffix(".hdr").read_bytes() + other.read_bytes())
    other.unlink()
    other.with_suffix(".hdr").unlink()
    (path.parent / "analyze.mat").unlink(missing_ok=True)
    return path


def text(path):
    path.write_text("x,y,z\n1,2,3\n")
    return path


def compressed(path, data):
    path.write_bytes(gzip.compress(data))
    return path


def written(path, data):
    path.write_bytes(data)
    return path


def flipped_bit_in_the_stream(path):
    raw = bytearray(good(path).read_bytes())
    raw[-6] ^= 1  # in the checksum; every voxel can still be read
    path.write_bytes(bytes(raw))
    return path


SHEARED = [[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
SINGULAR = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]
CASES = {
    "empty file": (lambda f: written(f / "bad.nii", b""), r"empty \(0 bytes\)"),
    "empty .gz": (lambda f: written(f / "bad.nii.gz", b""), r"empty \(0 bytes\)"),
    "compressed nothing": (lambda f: compressed(f / "bad.nii.gz", b""), "not readable as NIfTI"),
    "text named .nii.gz": (lambda f: text(f / "bad.nii.gz"), "not readable as NIfTI.*not a gzip file"),
    "text named .nii": (lambda f: text(f / "bad.nii"), "not readable as NIfTI"),
    "compressed text": (lambda f: compressed(f / "bad.nii.gz", b"hello " * 200), "not readable as NIfTI"),
    "wrong magic": (lambda f: patch(good(f / "bad.nii"), 344, b"n+9\0"), "not readable as NIfTI"),
    "Analyze": (lambda f: analyze(f / "bad.nii"), "not readable as NIfTI"),
    ".gz that is not compressed": (
        lambda f: good(f / "bad.nii").rename(f / "bad.nii.gz"),
        "not readable as NIfTI.*not a gzip file",
    ),
    ".gz cut after 1 byte": (lambda f: cut(f / "bad.nii.gz", 1), "not readable as NIfTI"),
    ".gz cut in its head": (lambda f: cut(f / "bad.nii.gz", 12), "not readable as NIfTI"),
    ".gz cut in the header": (lambda f: cut(f / "bad.nii.gz", 60), "not readable as NIfTI|cut off"),
    ".gz cut at half": (lambda f: cut(f / "bad.nii.gz", 0.5), "voxels cannot be read.*cut off"),
    ".gz cut at 99 %": (lambda f: cut(f / "bad.nii.gz", 0.99), "voxels cannot be read.*cut off"),
    ".gz without its checksum": (lambda f: cut(f / "bad.nii.gz", -8), "cut off.*stream ends early"),
    ".gz without its last byte": (lambda f: cut(f / "bad.nii.gz", -1), "cut off.*stream ends early"),
    ".gz with a wrong checksum": (lambda f: flipped_bit_in_the_stream(f / "bad.nii.gz"), "damaged.*incorrect data"),
    ".nii cut in the header": (lambda f: cut(f / "bad.nii", 200), "not readable as NIfTI"),
    ".nii without voxels": (lambda f: cut(f / "bad.nii", HEADER), "header claims 16720 bytes .* 352 bytes .*cut off"),
    ".nii cut at half": (lambda f: cut(f / "bad.nii", 0.5), "header claims 16720 bytes .*cut off"),
    ".nii without its last byte": (lambda f: cut(f / "bad.nii", -1), "voxels cannot be read.*cut off"),
    "huge extents": (
        lambda f: patch(good(f / "bad.nii"), 40, struct.pack("<4h", 3, 32767, 32767, 32767)),
        "header claims 70362301923326 bytes",
    ),
    "huge extents, compressed": (
        lambda f: patch(good(f / "bad.nii.gz"), 40, struct.pack("<4h", 3, 32767, 32767, 32767)),
        "header claims 70362301923326 bytes",
    ),
    "an extent more": (
        lambda f: patch(good(f / "bad.nii.gz"), 42, struct.pack("<h", SHAPE[0] + 1)),
        "voxels cannot be read.*cut off",
    ),
    "negative extent": (lambda f: patch(good(f / "bad.nii"), 42, struct.pack("<h", -20)), "empty axis"),
    "extent 0": (lambda f: patch(good(f / "bad.nii"), 44, struct.pack("<h", 0)), "empty axis"),
    "4D": (lambda f: save(f / "bad.nii.gz", voxels(shape=(8, 9, 10, 3))), "4D image .*split the series"),
    "5D": (lambda f: save(f / "bad.nii.gz", voxels(shape=(8, 9, 10)).reshape(8, 9, 2, 1, 5)), "5D image .*split"),
    "2D": (lambda f: save(f / "bad.nii.gz", voxels(shape=(20, 19, 1))[..., 0]), "2D image"),
    "one voxel thick": (lambda f: save(f / "bad.nii.gz", voxels(shape=(20, 1, 19))), "axis of one voxel"),
    "complex": (lambda f: save(f / "bad.nii.gz", voxels().astype(np.complex64)), "complex voxels.*magnitude"),
    "RGB": (lambda f: rgb(f / "bad.nii.gz"), "RGB voxels.*greyscale"),
    "NaN voxels": (lambda f: with_bad_voxels(f / "bad.nii.gz", [np.nan] * 3), "3 of 8360 voxels are NaN or infinite"),
    "infinite voxels": (
        lambda f: with_bad_voxels(f / "bad.nii.gz", [np.inf, -np.inf]),
        "2 of 8360 voxels are NaN or infinite",
    ),
    "float64 beyond float32": (lambda f: save(f / "bad.nii.gz", voxels() * 1e300), "6380 of 8360 voxels .* infinite"),
    "fill value": (lambda f: with_bad_voxels(f / "bad.nii.gz", [-3.4e38]), "-3.4e.38 .*fill value"),
    "constant": (lambda f: save(f / "bad.nii.gz", np.full(SHAPE, 7, np.uint8)), "constant volume: every voxel is 7"),
    "constant by its slope": (
        lambda f: patch(good(f / "bad.nii.gz"), 112, struct.pack("<2f", 1e-30, 5)),
        "constant volume: every voxel is 5",
    ),
    "nearly constant": (
        lambda f: save(f / "bad.nii.gz", (np.arange(8360).reshape(SHAPE) != 100).astype(np.float32)),
        r"nearly constant volume: percentiles \(0.5, 99.5\) are 1 and 0",
    ),
    "zero affine": (lambda f: with_sform(f / "bad.nii.gz", np.zeros((4, 4))), "affine is zero along an axis"),
    "one zero axis": (lambda f: with_sform(f / "bad.nii.gz", np.diag([1, 0, 1, 1])), "affine is zero along an axis"),
    "NaN affine": (lambda f: with_sform(f / "bad.nii.gz", AFFINE * np.nan), "affine holds NaN or infinite"),
    "infinite offset": (
        lambda f: with_sform(f / "bad.nii.gz", [[1, 0, 0, np.inf], *AFFINE[1:]]),
        "affine holds NaN or infinite",
    ),
    "singular affine": (lambda f: with_sform(f / "bad.nii.gz", SINGULAR), "affine is singular"),
    "orientation lost": (
        lambda f: patch(good(f / "bad.nii"), 252, struct.pack("<2h", 0, 258)),
        r"the orientation is lost \(damaged header: sform_code 258 not valid",
    ),
    "sheared affine": (lambda f: with_sform(f / "bad.nii.gz", SHEARED), "sheared affine: .* 16.7 degrees off"),
    "voxels of 5 m": (lambda f: with_sform(f / "bad.nii.gz", AFFINE * 5000), "spacing 5000 x 5000 x 5000 mm"),
    "voxels of 10 nm": (lambda f: with_sform(f / "bad.nii.gz", AFFINE * 1e-5), "spacing 1e-05 x 1e-05 x 1e-05 mm"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES)
def test_bad_file_is_named_with_its_reason(case, tmp_path):
    make, words = CASES[case]
    path = make(tmp_path)
    with pytest.raises(VolumeError, match=words) as caught:
        prepare_volume(load_nifti(path), Recipe("mri", (16, 24, 16), (1, 1, 1)))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_all_bad_files_at_once_beside_good_ones(tmp_path, capfd):
    """Every bad file has its reason on stdout and in dataset.json; the good ones are prepared; stderr is empty."""
    source = tmp_path / "in"
    source.mkdir()
    for number, (make, _) in enumerate(CASES.values()):
        folder = source / f"{number:02}"
        folder.mkdir()
        make(folder)
    for seed in range(2):
        good(source / f"good_{seed}.nii.gz", seed)
    assert prepare.main(["--input", str(source), "--out", str(tmp_path / "out"), *ARGUMENTS]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    dataset = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in dataset.records] == ["good_0.nii.gz", "good_1.nii.gz"]
    assert [s["file"][:2] for s in dataset.skipped] == [f"{n:02}" for n in range(len(CASES))]
    assert (
        out.count("skipped  ") == len(CASES) and f"2 volumes prepared (2 with a warning), {len(CASES)} skipped" in out
    )
    assert dataset.info.spacing == (1, 1, 1)  # bad files do not count


def mutated(rng, number):
    """A file with a flipped bit or a random byte or two in the header, cut at times, compressed at times."""
    dtype = [np.int16, np.float32, np.uint8][number % 3]
    image = nibabel.Nifti1Image(rng.integers(0, 200, (7, 9, 8)).astype(dtype), np.diag([1, 1.5, 2, 1]))
    image.set_qform(image.affine, 1)
    raw = bytearray(image.to_bytes())
    compress, in_stream = rng.random() < 0.4, rng.random() < 0.3
    if compress and in_stream:
        raw = bytearray(gzip.compress(bytes(raw), 1))
    for _ in range(rng.integers(1, 4)):
        place = rng.integers(len(raw) if compress and in_stream else HEADER)
        raw[place] = rng.integers(256) if rng.random() < 0.3 else raw[place] ^ (1 << rng.integers(8))
    if rng.random() < 0.1:
        raw = raw[: rng.integers(len(raw))]
    if compress and not in_stream:
        raw = bytearray(gzip.compress(bytes(raw), 1))
    return bytes(raw), ".nii.gz" if compress else ".nii"


@pytest.mark.filterwarnings("error")
def test_damaged_headers_never_get_through(tmp_path, capfd):
    """150 seeded mutations: each gives a finite volume or a reason, nothing on stderr, and none takes for ever."""
    rng, source = np.random.default_rng(20), tmp_path / "in"
    source.mkdir()
    for number in range(150):
        raw, suffix = mutated(rng, number)
        (source / f"{number:03}{suffix}").write_bytes(raw)
    arguments = ["--shape", "8", "8", "8", "--spacing", "1", "1.5", "2"]
    assert prepare.main(["--input", str(source), "--out", str(tmp_path / "out"), *arguments]) == 0
    assert capfd.readouterr().err == ""
    dataset = VolumeDataset(tmp_path / "out")
    assert len(dataset) + len(dataset.skipped) == 150
    assert not any("not read within" in str(entry) for entry in dataset.skipped)  # 10 minutes, for milliseconds of work
    assert len(dataset) > 50 and len(dataset.skipped) > 20  # some mutations do damage, some do not
    assert all(s["reason"] and "\n" not in s["reason"] for s in dataset.skipped)
    assert np.isfinite(dataset.volumes).all() and np.abs(dataset.volumes).max() <= 1
    assert all(math.isfinite(v) for r in dataset.records for row in r["affine"] for v in row)


def test_what_nibabel_mends_becomes_a_warning(tmp_path, capfd):
    path = patch(good(tmp_path / "a.nii"), 252, struct.pack("<h", 4097))
    volume = load_nifti(path)
    assert any("damaged header: qform_code 4097 not valid" in w for w in volume.warnings)
    assert capfd.readouterr().err == ""


def test_no_orientation_is_a_warning(tmp_path):
    path = patch(good(tmp_path / "a.nii"), 252, struct.pack("<2h", 0, 0))
    assert any("no orientation in the header" in w for w in load_nifti(path).warnings)


def test_trailing_axes_of_one_are_dropped_with_a_warning(tmp_path):
    path = save(tmp_path / "a.nii", voxels()[..., None, None])
    volume = load_nifti(path)
    assert volume.data.shape == SHAPE and any("trailing axes" in w for w in volume.warnings)
    assert np.array_equal(volume.data, voxels())


def test_compressed_members_in_a_row_and_padding_are_accepted(tmp_path):
    """As bgzip writes, and as tapes and some archives leave files."""
    raw = good(tmp_path / "a.nii").read_bytes()
    pieces = b"".join(gzip.compress(raw[i : i + 5000]) for i in range(0, len(raw), 5000))
    for tail in (b"", b"\0" * 512):
        path = written(tmp_path / "b.nii.gz", pieces + tail)
        assert np.array_equal(load_nifti(path).data, voxels())
    path = written(tmp_path / "b.nii.gz", pieces[:-3])
    with pytest.raises(VolumeError, match="cut off"):
        load_nifti(path)


def test_capital_suffixes_count(tmp_path):
    good(tmp_path / "A.NII")
    good(tmp_path / "b.nii.gz").rename(tmp_path / "B.NII.GZ")
    for name in ("A.NII", "B.NII.GZ"):
        assert np.array_equal(load_nifti(tmp_path / name).data, voxels())
