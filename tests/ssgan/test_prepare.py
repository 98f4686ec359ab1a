"""The command `ssgan prepare`: arguments, reasons, labels, a full disk, and the real volumes."""

import errno
import os
import pathlib
import subprocess
import sys

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset
from ssgan.data.writer import DatasetWriter
from ssgan.utils import pictures
from tests.support.nifti_cases import ARGUMENTS, SHARED_DATA, good, save, snapshot, voxels


@pytest.fixture
def source(tmp_path):
    for seed in range(3):
        good(tmp_path / "in" / f"{seed}.nii.gz", seed)
    return tmp_path / "in"


def run(source, out, *more, arguments=ARGUMENTS):
    return prepare.main([str(a) for a in ("--input", source, "--out", out, *arguments, *more)])


def failed(capfd, words):
    """The command printed one line, on stderr, with these words."""
    err = capfd.readouterr().err
    assert err.startswith("ssgan prepare: error: ") and err.count("\n") == 1
    assert all(word in err for word in words.split(" .. ")), err


def test_good_run(source, tmp_path, capfd):
    assert run(source, tmp_path / "out") == 0
    out, err = capfd.readouterr()
    assert err == "" and "3 volumes prepared (3 with a warning), 0 skipped" in out
    assert "shape 16 24 16 (arrays D, H, W: (16, 24, 16)), spacing 1 x 1 x 1 mm" in out and "contact_sheet.png" in out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contact_sheet.png", "dataset.json", "volumes.npy"]
    dataset = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in dataset.records] == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert np.ptp(np.asarray(sheet.convert("L"))) > 200
    assert run(source, tmp_path / "again") == 0
    assert VolumeDataset(tmp_path / "again").info == dataset.info


def in_a_shell(program, source, out):
    command = [sys.executable, "-m", *program, "--input", str(source), "--out", str(out), *ARGUMENTS]
    root = pathlib.Path(__file__).parents[2]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=root)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_the_terminal_cannot_write(encoding, tmp_path):
    """Names in other alphabets, and in Latin-1 bytes, in a terminal of each encoding: all are read, bad ones named."""
    source = tmp_path / "in"
    names = ["日本.nii.gz", os.fsdecode(b"caf\xe9.nii.gz"), "Größe.nii.gz"]
    for seed, name in enumerate(names):
        good(source / name, seed)
    for name in ("плохо.nii", os.fsdecode(b"b\xe9.nii")):
        (source / name).write_bytes(b"no volume")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [
        sys.executable,
        "-m",
        "ssgan.prepare",
        "--input",
        str(source),
        "--out",
        str(tmp_path / "out"),
        *ARGUMENTS,
    ]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"3 volumes prepared" in done.stdout and b"2 skipped" in done.stdout and done.stderr == b""
    bad = "skipped  плохо.nii".encode(encoding, "backslashreplace")
    assert bad in done.stdout and rb"skipped  b\udce9.nii" in done.stdout
    dataset = VolumeDataset(tmp_path / "out")
    assert sorted(r["source"] for r in dataset.records) == sorted(names)
    assert all((source / r["source"]).exists() for r in dataset.records)


def test_in_a_shell(tmp_path):
    """`python -m ssgan.prepare`: status 2 and one line, no traceback."""
    (tmp_path / "empty").mkdir()
    done = in_a_shell(["ssgan.prepare"], tmp_path / "empty", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ssgan prepare: error: --input") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("program", [["ssgan.prepare"], ["ssgan", "prepare"]], ids=" ".join)
def test_the_processes_print_nothing_of_their_own(program, source, tmp_path):
    """No warning that a module is run which has been imported, however the program was started."""
    done = in_a_shell(program, source, tmp_path / "out")
    assert done.returncode == 0 and done.stderr == "" and "3 volumes prepared" in done.stdout


@pytest.mark.parametrize(
    "more, words",
    [
        (["--input", "{nowhere}"], "--input .. does not exist; expected a folder"),
        (["--input", "{file}"], "--input .. is a file; expected a folder"),
        (["--input", "{empty}"], "holds no .nii, .nii.gz, .nrrd, .mha or .mhd file or DICOM series"),
        (
            ["--shape", 17, 24, 16],
            "--shape 17 24 16: expected sizes of 3 .. got X 17; the nearest that fit are X 16 or 20",
        ),
        (["--shape", 35, 50, 36], "got X 35, Y 50, Z 36; the nearest that fit are X 32 or 40, Y 48 or 56, Z 32 or 40"),
        (["--shape", 16, 2, 16], "got Y 2; the nearest that fit are Y 3\n"),
        (["--shape", 0, 24, 16], "--shape: expected three positive integers X Y Z; got (0, 24, 16)"),
        (["--shape", -16, 24, 16], "--shape: expected three positive integers X Y Z; got (-16, 24, 16)"),
        (["--shape", 16, 256, 16], "Y = 256 and X = 16 cannot be halved equally often"),
        (["--shape", 16, 16, 256], "Z = 256 needs more halvings than the 2 of Y = 16 and X = 16; choose a smaller Z"),
        (["--shape", 4, 4, 4], "Y = 4 and X = 4 is too small"),
        (["--shape", 256, 16, 16, "--slice-axis", "sagittal"], "X = 256 needs more halvings than the 2 of Z = 16"),
        (["--spacing", 1, 0, 1], "--spacing: expected millimetres above 0"),
        (["--spacing", 1, -1, 1], "--spacing: expected millimetres above 0"),
        (["--spacing", "nan", 1, 1], "--spacing: expected millimetres above 0"),
        (["--spacing", 1, 1, "inf"], "--spacing: expected millimetres above 0"),
        (["--spacing", 1e-9, 1e-9, 1e-9], "none of its 3 files can be used"),
        (["--recipe", "ct", "--window", 240, -160], "--window: expected LOW below HIGH; got 240 -160"),
        (["--recipe", "ct", "--window", 5, 5], "--window: expected LOW below HIGH"),
        (["--recipe", "ct", "--window", "nan", 5], "--window: expected LOW below HIGH"),
        (["--recipe", "ct", "--window", 5, "inf"], "--window: expected LOW below HIGH"),
        (["--recipe", "ct", "--window", 90000, 90001], "none of its 3 files can be used"),
        (["--window", 0, 100], "--window: only with --recipe ct or coca"),
    ],
)
def test_bad_arguments(more, words, source, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    places = {"nowhere": tmp_path / "nowhere", "file": source / "0.nii.gz", "empty": tmp_path / "empty"}
    before = snapshot(tmp_path)
    assert run(source, tmp_path / "out", *(str(a).format(**places) for a in more)) == 2
    failed(capfd, words)
    assert snapshot(tmp_path) == before


def test_only_hidden_files(tmp_path, capfd):
    """macOS leaves a "._" file beside every file on a foreign disk; these are no volumes, whatever their name."""
    for name in ("._a.nii.gz", ".Trash/b.nii"):
        good(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out") == 2
    failed(capfd, "holds no .nii, .nii.gz, .nrrd, .mha or .mhd file or DICOM series")
    good(tmp_path / "in" / "sub" / "a.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert "2 hidden files ignored" in capfd.readouterr().out
    dataset = VolumeDataset(tmp_path / "out")
    assert [r["source"] for r in dataset.records] == [os.path.join("sub", "a.nii.gz")] and not dataset.skipped


def test_label_maps_are_remarked_on(source, tmp_path, capfd):
    """By the name of a folder or file, or by values, in one line; a scan of many values is none."""
    good(source / "labelsTr" / "4.nii.gz", 4)
    good(source / "mask_5.nii.gz", 5)
    good(source / "6_seg.nii.gz", 6)
    good(source / "unmasked" / "t1_unlabelled.nii.gz", 7)
    values = np.random.default_rng(8).integers(0, 7, (20, 24, 22))
    save(source / "seven.nii", values.astype(np.uint8))
    save(source / "eight.nii", (values + (values == 6) * (np.arange(22) % 2)).astype(np.uint8))
    save(source / "halves.nii", values.astype(np.float32) / 2)
    assert run(source, tmp_path / "out") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "label map" in line]
    assert len(lines) == 1 and lines[0].startswith("warning  4 of 10 volumes: looks like a label map")
    assert "such as 6_seg.nii.gz; to leave them out, give --input the folder of the images alone" in lines[0]
    records = VolumeDataset(tmp_path / "out").records
    marked = {r["source"] for r in records if any("label map" in w for w in r["warnings"])}
    assert marked == {os.path.join("labelsTr", "4.nii.gz"), "mask_5.nii.gz", "6_seg.nii.gz", "seven.nii"}


def test_warnings_of_many_volumes_are_one_line(source, tmp_path, capfd):
    save(source / "wide.nii", voxels(9, (16, 24, 16)))
    assert run(source, tmp_path / "out") == 0
    out = capfd.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("warning")] == [
        "warning  3 of 4 volumes: smaller than the shape, padded with background, such as 0.nii.gz: Y by 5 of 24 voxels"
    ]
    assert "4 volumes prepared (3 with a warning)" in out
    assert sum("Y by 5 of 24" in w for r in VolumeDataset(tmp_path / "out").records for w in r["warnings"]) == 3


def test_the_intensity_line_says_whose_scale_it_is(source, tmp_path, capfd):
    for recipe, whose in (("mri", "medians of the volumes, of which each has its own"), ("ct", "the window of all")):
        assert run(source, tmp_path / recipe, "--recipe", recipe) == 0
        (line,) = [line for line in capfd.readouterr().out.splitlines() if line.startswith("shape")]
        assert whose in line and line.endswith("-> -1 .. 1")


def test_duplicates(source, tmp_path, capfd):
    """The same voxels are kept once, however they are compressed; a duplicate of a bad file has the same reason."""
    good(source / "copy.nii", 1)
    for name in ("x.nii", "y.nii"):
        data = np.ones((9, 9, 9), np.float32)
        data[0, 0, 0] = 0
        save(source / name, data)
    assert run(source, tmp_path / "out") == 0
    dataset = VolumeDataset(tmp_path / "out")
    assert len(dataset) == 3
    reasons = {s["file"]: s["reason"] for s in dataset.skipped}
    assert reasons["copy.nii"] == "the same voxels as 1.nii.gz, which is kept"
    assert "nearly constant" in reasons["x.nii"] and "nearly constant" in reasons["y.nii"]


def test_bad_file_is_skipped_or_strict_stops(source, tmp_path, capfd):
    (source / "1b.nii.gz").write_bytes(b"")
    before = snapshot(tmp_path)
    assert run(source, tmp_path / "out", "--strict") == 2
    failed(capfd, "1b.nii.gz: the file is empty .. --strict")
    assert snapshot(tmp_path) == before
    assert run(source, tmp_path / "out") == 0
    assert "skipped  1b.nii.gz: the file is empty (0 bytes)" in capfd.readouterr().out
    assert VolumeDataset(tmp_path / "out").skipped == [{"file": "1b.nii.gz", "reason": "the file is empty (0 bytes)"}]


def test_no_file_can_be_used(tmp_path, capfd):
    save(tmp_path / "in" / "a.nii", np.ones((9, 9, 9)))
    assert run(tmp_path / "in", tmp_path / "out") == 2
    failed(capfd, "none of its 1 files can be used")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_spacing_is_the_median_where_volumes_differ(source, tmp_path, capfd):
    """Bad files do not count, here five 4D ones."""
    for name in "abcde":
        save(source / f"{name}.nii", voxels(shape=(8, 9, 10, 2)), np.diag([3.0, 3, 3, 1]))
    save(source / "f.nii", voxels(9), np.diag([2.0, 1, 1, 1]))
    assert run(source, tmp_path / "out") == 0
    assert "spacing differs (1 x 1 x 1 mm to 2 x 1 x 1 mm); resampling to the median 1 x 1" in capfd.readouterr().out
    assert VolumeDataset(tmp_path / "out").info.spacing == (1, 1, 1)


def existing(path, what, source):
    """Something at --out before the run."""
    if what == "file":
        path.write_text("thesis")
        return
    path.mkdir()
    if what == "run":
        (path / "config.json").write_text("{}")
        (path / "checkpoints").mkdir()
    elif what == "foreign":
        (path / "dataset.json").write_text('{"name": "Hippocampus"}')
    elif what == "data set":
        assert run(source, path) == 0


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "what, words",
    [
        ("file", "--out .. is a file"),
        ("run", "--out .. is not empty and not a data set .. nothing was changed"),
        ("foreign", "--out .. is not empty and not a data set .. nothing was changed"),
        ("data set", "--out .. holds a data set already .. --overwrite"),
    ],
)
def test_out_holds_something(what, words, overwrite, source, tmp_path, capfd):
    existing(tmp_path / "out", what, source)
    good(source / "new.nii.gz", 7)
    before = snapshot(tmp_path)
    capfd.readouterr()
    status = run(source, tmp_path / "out", *(["--overwrite"] if overwrite else []))
    if overwrite and what == "data set":
        assert status == 0 and len(VolumeDataset(tmp_path / "out")) == 4
        assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]
    else:
        assert status == 2 and snapshot(tmp_path) == before
        failed(capfd, words)


class FullFile:
    """A file on a disk with so many bytes left."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def write(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


def fill_disk(monkeypatch, at):
    """Makes the disk full at one step of the run."""

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def when(owner, name, condition):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: full() if condition(*a) else original(*a, **k))

    if at.startswith("volumes.npy"):
        left = {"header": 10, "first volume": 200, "last volume": 128 + 2 * 16 * 24 * 16 * 4 + 100}
        path_open = pathlib.Path.open
        if at == "volumes.npy, open":
            when(pathlib.Path, "open", lambda path, *a: path.name == "volumes.npy")
        else:
            monkeypatch.setattr(
                pathlib.Path,
                "open",
                lambda path, *a, **k: (
                    FullFile(path_open(path, *a, **k), left[at.split(", ")[1]])
                    if path.name == "volumes.npy"
                    else path_open(path, *a, **k)
                ),
            )
    elif at == "sync":
        when(os, "fsync", lambda *a: True)
    elif at == "dataset.json":
        when(pathlib.Path, "write_bytes", lambda path, *a: "dataset.json" in path.name)
    elif at == "contact sheet":
        when(Image.Image, "save", lambda *a: True)
    elif at == "rename":
        when(os, "replace", lambda a, b: str(a).endswith(".partial"))
    elif at == "interrupt":
        add = DatasetWriter.add

        def stop(writer, *a):
            if writer.count == 2:
                raise KeyboardInterrupt
            add(writer, *a)

        monkeypatch.setattr(DatasetWriter, "add", stop)


@pytest.mark.parametrize("earlier", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize(
    "at",
    [
        "volumes.npy, open",
        "volumes.npy, header",
        "volumes.npy, first volume",
        "volumes.npy, last volume",
        "contact sheet",
        "sync",
        "dataset.json",
        "rename",
        "interrupt",
    ],
)
def test_full_disk_and_ctrl_c_lose_nothing(at, earlier, source, tmp_path, capfd, monkeypatch):
    """Nothing at --out, an earlier data set as it was; then the same command ends as an uninterrupted run."""
    if earlier:
        assert run(source, tmp_path / "out") == 0
        capfd.readouterr()
    more = ["--overwrite"] if earlier else []
    good(source / "new.nii.gz", 7)
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
        fill_disk(patch, at)
        status = run(source, tmp_path / "out", *more)
    left = {k: v for k, v in snapshot(tmp_path).items() if not k.startswith(".out.partial")}
    assert left == before
    if at in ("volumes.npy, open", "volumes.npy, header", "volumes.npy, first volume"):
        assert not (tmp_path / ".out.partial").exists()
    out, err = capfd.readouterr()
    assert ("volumes are kept in" in out) == (tmp_path / ".out.partial").exists()
    if at == "interrupt":
        assert status == 130 and err == "ssgan prepare: stopped\n"
    else:
        assert status == 2 and "the disk is full" in err and "what was saved before is intact" in err
    assert run(source, tmp_path / "out", *more) == 0 and len(VolumeDataset(tmp_path / "out")) == 4
    assert run(source, tmp_path / "calm") == 0
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "calm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm", "in", "out"]


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_contact_sheet_shows_head_and_front_up(slice_axis, tmp_path):
    """Volumes that grow brighter to the head, the front and the right, whatever the slice axis."""
    x, y, z = np.meshgrid(*(np.arange(16.0),) * 3, indexing="ij")
    for number, data in enumerate((z, y, x)):
        save(tmp_path / "in" / f"{number}.nii", data + 0.01 * x + 0.001 * y)
    assert (
        run(tmp_path / "in", tmp_path / "out", "--slice-axis", slice_axis, arguments=["--shape", *"16 16 16".split()])
        == 0
    )
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        page = np.asarray(sheet.convert("L")).astype(float)
    side, step = pictures.CELL, pictures.CELL + pictures.GAP
    found = {}
    lines = [top for top in range(pictures.MARGIN, page.shape[0] - side, side + 14 + pictures.MARGIN)]
    cells = [
        (top, left)
        for top in lines
        for left in range(pictures.MARGIN, page.shape[1], 3 * step + pictures.MARGIN - pictures.GAP)
    ]
    for brighter, (top, left) in zip(("head", "front", "right"), cells, strict=False):
        for number, plane in enumerate(("axial", "coronal", "sagittal")):
            square = page[top : top + side, left + number * step : left + number * step + side]
            assert square.shape == (side, side)
            up, right = square[:30].mean() - square[-30:].mean(), square[:, -30:].mean() - square[:, :30].mean()
            found[brighter, plane] = "up" if up > 60 else "right" if right > 60 else "flat"
    assert found == {
        ("head", "axial"): "flat",
        ("head", "coronal"): "up",
        ("head", "sagittal"): "up",
        ("front", "axial"): "up",
        ("front", "coronal"): "flat",
        ("front", "sagittal"): "right",
        ("right", "axial"): "right",
        ("right", "coronal"): "right",
        ("right", "sagittal"): "flat",
    }


def real(*parts):
    path = SHARED_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the real volumes are not there: {path}")
    return path


def test_real_hippocampus(tmp_path, capfd):
    """All 199 volumes: raw maxima differ 10,000-fold, prepared ones look alike."""
    folder = real("msd-hippocampus", "images")
    assert run(folder, tmp_path / "out", arguments=["--shape", "16", "24", "16"]) == 0
    assert "199 volumes prepared" in capfd.readouterr().out
    dataset = VolumeDataset(tmp_path / "out")
    assert len(dataset) == 199 and not dataset.skipped and dataset.info.spacing == (1, 1, 1)
    highs = np.array([r["intensity_high"] for r in dataset.records])
    assert highs.max() > 1000 * highs.min()
    volumes = dataset.volumes.reshape(199, -1)
    assert np.abs(volumes).max() <= 1
    assert volumes.mean(1).min() > -0.4 and volumes.mean(1).max() < 0.6
    assert volumes.std(1).min() > 0.15 and volumes.std(1).max() < 0.6
    assert (np.abs(volumes) == 1).mean() < 0.03


def sample(path, points):
    """The file's intensities, blurred by 2.5 mm, at world positions (N, 3), in the axes and by the affine it has."""
    image = nibabel.load(path)
    blurred = ndimage.gaussian_filter(image.get_fdata(), 2.5 / np.linalg.norm(image.affine[:3, :3], axis=0))
    inverse = np.linalg.inv(image.affine)
    return ndimage.map_coordinates(blurred, (points @ inverse[:3, :3].T + inverse[:3, 3]).T, order=1, mode="nearest")


def test_real_brains_stay_in_place(tmp_path):
    """Both at 32 x 32 x 32 with 5 mm voxels, and one of them stored LAS: as the file says at the same world points."""
    folder = real("brain")
    (tmp_path / "in").mkdir()
    names = ["avg152T1_RL.nii.gz", "mni152_2009_template.nii.gz"]
    for name in names:
        (tmp_path / "in" / name).symlink_to(folder / name)
    mirrored = nibabel.load(folder / names[0]).as_reoriented([[0, -1], [1, 1], [2, 1]])
    assert nibabel.aff2axcodes(mirrored.affine) == ("L", "A", "S")
    nibabel.save(mirrored, tmp_path / "in" / "las.nii.gz")
    arguments = ["--shape", "32", "32", "32", "--spacing", "5", "6", "5"]
    assert run(tmp_path / "in", tmp_path / "out", arguments=arguments) == 0
    dataset = VolumeDataset(tmp_path / "out")
    assert not dataset.skipped and [r["source"] for r in dataset.records] == [names[0], "las.nii.gz", names[1]]
    index = np.stack(np.meshgrid(*(np.arange(6, 26),) * 3, indexing="ij"), -1).reshape(-1, 3)
    for number, record in enumerate(dataset.records):
        affine = np.array(record["affine"])
        values = dataset.volumes[number].transpose(2, 1, 0)[tuple(index.T)]
        path = tmp_path / "in" / record["source"]
        points = index @ affine[:3, :3].T + affine[:3, 3]
        bounds = record["intensity_low"], record["intensity_high"]
        agreement, *wrong = (
            np.corrcoef(values, np.clip(sample(path, points * signs), *bounds))[0, 1]
            for signs in ([1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1])
        )
        assert agreement > 0.99 and agreement > max(wrong) + 0.02, (agreement, wrong)
    assert np.abs(dataset.volumes[0] - dataset.volumes[1]).max() < 1e-5
