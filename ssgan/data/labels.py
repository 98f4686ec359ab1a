"""Reads class labels from a CSV: the class of every file or subject, and the rows that do not fit the files."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from ssgan.utils.errors import UserError

FILE, SUBJECT, CLASS = ("file",), ("subject", "subject_id", "participant_id"), ("class", "group")
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
ADNI_SUBJECT = re.compile(r"(?<!\d)\d{3}_S_\d{4,5}(?!\d)")  # site, S, roster number


class LabelError(UserError):
    """A table that cannot be used; the message names the file, the line and what to do."""


@dataclass(frozen=True)
class Labels:
    """The classes that a table gives to volumes.

    classes: volume name -> class. missing: volume name -> reason why it has none. notes: rows without effect, and why.
    """

    classes: dict[str, str]
    missing: dict[str, str]
    notes: list[str]


def strip_suffix(name: str) -> str:
    """A volume's name without .nii.gz and the like; other suffixes stay."""
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def subjects(name: str) -> set[str]:
    """The names by which a `subject` column may call the volume `name` (its path below the input).

    These are the folders above it, its file name without the suffix, and an ADNI subject id (002_S_0413) anywhere in
    the path.
    """
    path = PurePath(name)
    return {*path.parts[:-1], strip_suffix(path.name), *ADNI_SUBJECT.findall(name)}


def read_labels(path: Path, names: Sequence[str], strict: bool = False) -> Labels:
    """Reads the classes of the volumes `names` (paths below the input) from a CSV with a header.

    The columns, in any order and with others beside them: `file` (a file's or a series' name, or its path below the
    input) or `subject` (see `subjects`; also `subject_id`, `participant_id`), which may name several volumes; and
    `class` (also `group`). The header is case-insensitive. Rows that match no volume, volumes without a row, rows
    without a class and repeated rows are returned for the caller to report, or raise an error with strict=True.

    Raises:
        LabelError: the CSV cannot be read, lacks a column, has a short row, names several files by one name, or gives
            a volume two classes.
    """
    rows = _rows(path)
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = {kind: next((i for i, c in enumerate(head) if c in kind), None) for kind in (FILE, SUBJECT, CLASS)}
    key_kind = FILE if column[FILE] is not None else SUBJECT
    key, value = column[key_kind], column[CLASS]
    if key is None or value is None:
        raise LabelError(
            f"--labels {path}, line 1: expected a header with the columns file (or subject) and class; got "
            f"{rows[0] if rows else 'an empty file'}"
        )
    by_name: dict[str, list[str]] = {}
    for name in names:
        for alias in {PurePath(name).name, name, PurePath(name).as_posix()} if key_kind is FILE else subjects(name):
            by_name.setdefault(alias, []).append(name)

    classes: dict[str, str] = {}
    lines: dict[str, int] = {}  # volume name -> number of its row
    missing: dict[str, str] = {}
    notes: list[str] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(key, value):
            raise LabelError(
                f"--labels {path}, line {number}: expected {len(head)} columns as in the header; got {row}"
            )
        who, label = row[key].strip(), row[value].strip()
        match = by_name.get(who, [])
        if not match:
            notes.append(f"line {number}: {who!r} is not among the input files")
        if key_kind is FILE and len(match) > 1:
            raise LabelError(
                f"--labels {path}, line {number}: {who!r} names several files; give the path below --input, such as "
                f"{match[0]!r}"
            )
        for name in match:
            if name in lines and classes.get(name, "") != label:
                raise LabelError(
                    f"--labels {path}, line {number}: {who!r} has the class {classes.get(name, '')!r} already, by line "
                    f"{lines[name]}; now {label!r}"
                )
        if match and all(name in lines for name in match):
            notes.append(f"line {number}: {who!r} stands there twice with the same class, as in line {lines[match[0]]}")
        for name in match:
            lines.setdefault(name, number)
            if label:
                classes[name] = label
            else:
                missing[name] = f"no class in {path.name}: line {number} leaves it empty"
    for name in names:
        if name not in lines:
            missing[name] = f"no class in {path.name}: no row names it"
    if strict and (notes or missing):
        first = notes[0] if notes else next(f"{name} has {reason}" for name, reason in missing.items())
        raise LabelError(f"--labels {path}: {first} (--strict stops at the first such row or file)")
    if not classes:
        raise LabelError(
            f"--labels {path}: none of its {len(rows) - 1} rows gives a class to one of the {len(names)} volumes, such "
            f"as {names[0]!r}"
        )
    return Labels(classes, missing, notes)


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.reader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LabelError(f"--labels {path} cannot be read as CSV: {error}") from error
