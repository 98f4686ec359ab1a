"""Atomic writes: the earlier file or the new one, never a part, nothing beside it; and how commands report errors."""

import argparse
import errno
import json
import os

import pytest

from ssgan.utils.errors import UserError, run_command
from ssgan.utils.files import FileError, atomic_path, atomic_write_bytes, fsync_path, read_json, write_json_atomic


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    for data in (b"one", b"", b"three" * 1000):
        atomic_write_bytes(path, data)
        assert path.read_bytes() == data and names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("name", ["a.png", "b.nii.gz", "c.1.5.npz", "plain", "x" * 250 + ".gif", "ä ö.json"])
def test_temporary_name(name, tmp_path):
    """In the same folder (rename works), hidden, and with the suffix by which writers choose the format."""
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path and temporary.name.startswith(".")
        suffix = ".nii.gz" if name.endswith(".nii.gz") else os.path.splitext(name)[1]
        assert temporary.name.endswith(suffix) and not temporary.exists()
        temporary.write_bytes(b"x")
        assert not (tmp_path / name).exists()
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, OSError])
def test_failure_leaves_the_earlier_file(stop, tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(stop), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise stop
    assert (tmp_path / "a.txt").read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_at_every_step(step, tmp_path, monkeypatch):
    """Some file systems report it only at fsync."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.json").write_text("1")
    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_json_atomic(tmp_path / "a.json", 2)
    assert (tmp_path / "a.json").read_text() == "1" and names(tmp_path) == ["a.json"]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileError, match=r"nothing was written for .*a\.txt"), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_folder_is_not_replaced(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileError, match=r"run is a folder.*Give a file name"):
        atomic_write_bytes(tmp_path / "run", b"x")
    assert names(tmp_path) == ["run"]


def test_data_is_synced_before_the_rename(tmp_path, monkeypatch):
    """Otherwise a power cut may leave an empty file under the final name."""
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("replace") or replace(a, b))
    atomic_write_bytes(tmp_path / "a", b"x")
    assert order == ["fsync", "replace", "fsync"]  # the file, the rename, the folder
    fsync_path(tmp_path)


def test_json_round_trip(tmp_path):
    value = {"name": "Größe", "list": [1, 2.5, None, True], "nested": {"a": {}}}
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "Größe" in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value


def test_json_of_a_file_name_that_is_not_utf_8(tmp_path):
    """As os.fsdecode gives it; the file stays UTF-8, and the name still opens its file."""
    value = {"name": os.fsdecode(b"caf\xe9.nii"), "other": "Größe"}
    write_json_atomic(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert os.fsencode(read_json(tmp_path / "a.json")["name"]) == b"caf\xe9.nii"
    (tmp_path / "a.json").read_bytes().decode("utf-8")


@pytest.mark.parametrize(
    "value, error", [(float("nan"), ValueError), (float("inf"), ValueError), (object(), TypeError)]
)
def test_what_json_cannot_say_keeps_the_earlier_file(value, error, tmp_path):
    write_json_atomic(tmp_path / "a.json", {"loss": 1.0})
    with pytest.raises(error):
        write_json_atomic(tmp_path / "a.json", {"loss": value})
    assert read_json(tmp_path / "a.json") == {"loss": 1.0} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "data, words",
    [
        (b'{"a": [1, 2', "not valid JSON.*line 1.*damaged or cut"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_bad_json_is_named(data, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(FileError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_absent_json_is_named(tmp_path):
    with pytest.raises(FileError, match=r"a\.json does not exist"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileError, match="cannot be read"):
        read_json(tmp_path)


@pytest.mark.parametrize(
    "error, status, words",
    [
        (UserError("--x: expected 1; got 2"), 2, "ssgan try: error: --x: expected 1; got 2"),
        (FileError("a.json does not exist"), 2, "ssgan try: error: a.json does not exist"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/a"),
            2,
            "error: the disk is full (out/a); what was saved",
        ),
        (OSError(errno.EDQUOT, "Quota exceeded"), 2, "error: the disk is full; what was saved"),
        (PermissionError(errno.EACCES, "Permission denied", "out/a"), 2, "error: Permission denied (out/a)"),
        (KeyboardInterrupt(), 130, "ssgan try: stopped"),
    ],
)
def test_commands_report_in_one_line(error, status, words, capsys):
    def command(_):
        raise error

    assert run_command("ssgan try", command, argparse.Namespace()) == status
    out, err = capsys.readouterr()
    assert out == "" and words in err and err.count("\n") == 1


def test_faults_of_ours_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command("ssgan try", lambda _: 1 // 0, argparse.Namespace())
    assert run_command("ssgan try", lambda args: args.status, argparse.Namespace(status=0)) == 0
