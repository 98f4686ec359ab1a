"""Writes files atomically: a reader never sees half of one.

Every file is written under a temporary name in the same folder, flushed to the disk, and renamed over the final
name. A crash, a full disk or Ctrl-C leaves the earlier file as it was.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ssgan.utils.errors import UserError

__all__ = ["FileError", "atomic_path", "atomic_write_bytes", "fsync_path", "read_json", "write_json_atomic"]


class FileError(UserError):
    """A file that is absent, unreadable or not what its name says."""


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Pushes a file's contents (or a folder's list of names) to the disk.

    Folders cannot be synced on some file systems (Windows, some network shares); that is not an error, because the
    rename itself is still atomic there.
    """
    path = Path(path)
    if path.is_dir():
        with suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path in the folder of ``path``; on success it becomes ``path``, on failure it is removed.

    The temporary name is hidden, unique to this call, and keeps the suffix of ``path`` because many writers choose
    the format by it. The folder is created when absent.

    Raises:
        FileError: the body ended without writing the temporary file, or ``path`` is a folder.
        OSError: whatever the file system says (a full disk included).
    """
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder; a file is to be written there. Give a file name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Path.suffixes would split "run1.5.npz" wrongly; the last suffix (with .gz before it kept) is what writers look at.
    suffix = ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix
    temporary = path.parent / f".{path.name[:80]}.{os.getpid()}.{secrets.token_hex(4)}.tmp{suffix}"
    try:
        yield temporary
        if not temporary.is_file():
            raise FileError(f"nothing was written for {path}: the temporary file {temporary.name} is absent")
        fsync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    fsync_path(path.parent)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes ``data`` as the whole of ``path``, all or nothing. Raises OSError when the file system refuses."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Writes ``value`` as indented UTF-8 JSON, all or nothing.

    Names of files that are not UTF-8 have characters (surrogates) that it cannot hold; then all but ASCII is escaped.

    Raises:
        ValueError: ``value`` holds NaN or an infinity, which JSON has no notation for.
        TypeError: ``value`` holds something JSON cannot express.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = json.dumps(value, indent=2, allow_nan=False).encode("ascii")
    atomic_write_bytes(path, data + b"\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Raises:
        FileError: the file is absent, unreadable, not UTF-8 or not JSON; the message names the file, line and column.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not a text file in UTF-8 (byte {error.start}): it is damaged or not JSON") from None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}); it is damaged or cut"
        ) from None
