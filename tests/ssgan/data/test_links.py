"""Links below --input, and what cannot be opened: followed or named, never left out in silence."""

import errno
import os
import pathlib

import pytest

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset
from ssgan.data.sources import find_files, find_volumes, load
from ssgan.data.volume import VolumeError
from tests.support.nifti_cases import ARGUMENTS, good


@pytest.fixture
def source(tmp_path):
    for seed in range(3):
        good(tmp_path / "in" / f"{seed}.nii.gz", seed)
    return tmp_path / "in"


def run(source, out, *more):
    return prepare.main([str(a) for a in ("--input", source, "--out", out, *ARGUMENTS, *more)])


def test_links(source, tmp_path, capfd):
    """Linked folders are searched once and loops end; what a link does not reach is named, and --strict stops there.

    A data set under git-annex consists of links into .git, which are broken until the files are fetched.
    """
    good(tmp_path / "elsewhere" / "sub" / "b.nii.gz", 5)
    folders = {"linked": tmp_path / "elsewhere", "again": tmp_path / "elsewhere" / "sub", "up": "."}
    for name, target in folders.items():
        (source / name).symlink_to(target)
    (tmp_path / "elsewhere" / "sub" / "loop").symlink_to(source)
    run(source, tmp_path / "good", "--strict")
    assert [r["source"] for r in VolumeDataset(tmp_path / "good").records] == [
        "0.nii.gz", "1.nii.gz", "2.nii.gz", str(pathlib.Path("again") / "b.nii.gz"),
    ]  # fmt: skip
    notes = [line.split(" is a ")[0] for line in capfd.readouterr().out.splitlines() if line.startswith("note")]
    assert notes == ["note     up", "note     again/loop"]

    annex = pathlib.Path("../.git/annex/objects/MD5E-s1")
    for name in ("c.nii.gz", "d.nrrd", "scan/1.dcm", "scan/IM0002", "itself.nii"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).symlink_to("itself.nii" if name == "itself.nii" else annex)
    (source / "table.csv").symlink_to(annex)
    os.mkfifo(source / "pipe.nii")
    assert run(source, tmp_path / "out") == 0
    reasons = {s["file"]: s["reason"] for s in VolumeDataset(tmp_path / "out").skipped}
    assert sorted(reasons) == ["c.nii.gz", "d.nrrd", "itself.nii", "pipe.nii", "scan/1.dcm"]
    assert reasons["scan/1.dcm"].endswith("(and 1 files beside it)")
    assert "pipe" in reasons.pop("pipe.nii")
    assert all("a broken link to " in reason and "git annex get" in reason for reason in reasons.values())
    assert run(source, tmp_path / "strict", "--strict") == 2
    err = capfd.readouterr().err
    assert "c.nii.gz: a broken link to ../.git/annex/objects/MD5E-s1; fetch the file first" in err
    assert err.startswith("ssgan prepare: error: ") and err.count("\n") == 1
    assert not (tmp_path / "strict").exists()


def test_what_cannot_be_opened_is_named(source, tmp_path, capfd, monkeypatch):
    """Permission denied, simulated (root may open everything): a folder, a volume, and a file that may be DICOM."""
    good(source / "closed" / "a.nii", 7)
    (source / "IM1").write_bytes(bytes(200))
    scandir, opened = os.scandir, pathlib.Path.open

    def refuse(path, function, *args):
        if pathlib.Path(path).name in ("closed", "IM1", "1.nii.gz"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return function(path, *args)

    monkeypatch.setattr(os, "scandir", lambda path=".": refuse(path, scandir))
    monkeypatch.setattr(pathlib.Path, "open", lambda path, *args, **kw: refuse(path, opened, *args))
    found = find_files(source)
    assert [(path.name, why) for path, why in found.unreadable] == [
        ("closed", "the folder cannot be read: Permission denied")
    ]
    assert found.folders == {source: [source / "IM1"]} and len(found.files) == 3
    for sources in (find_volumes((source, [source / "IM1"])), find_volumes((source, [source / "1.nii.gz"]))):
        with pytest.raises(VolumeError, match="cannot be opened: Permission denied"):
            load(sources[0])
