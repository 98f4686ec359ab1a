"""Reads a table that gives a class, or a mask's file, to every file or subject, and names the rows that fit none."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath

from ssgan.utils.errors import UserError

# Names of columns; BIDS' participants.tsv has participant_id, its scans.tsv filename.
FILE, SUBJECT, CLASS = ("file", "filename"), ("subject", "subject_id", "participant_id"), ("class", "group")
MASK = ("mask",)
DELIMITERS = ",;\t"
MISSING = ("", "n/a")  # n/a is BIDS' missing value
SUFFIXES = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
ADNI_SUBJECT = re.compile(r"(?<!\d)\d{3}_S_\d{4,5}(?!\d)")  # site, S, roster number
BIDS_SUBJECT = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")


class LabelError(UserError):
    """A table that cannot be used; the message names the file, the line and what to do."""


@dataclass(frozen=True)
class Labels:
    """The classes, or whatever else was asked for, that a table gives to volumes.

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

    These are the folders above it, its file name without the suffix, and a subject id of ADNI (002_S_0413) or BIDS
    (sub-01) anywhere in the path.
    """
    path = PurePath(name)
    return {*path.parts[:-1], strip_suffix(path.name), *ADNI_SUBJECT.findall(name), *BIDS_SUBJECT.findall(name)}


def _files(name: str) -> set[str]:
    """The names by which a `file` column may call the volume `name`: the end of its path, from any folder on, with or
    without the suffix."""
    parts = PurePath(name).parts
    ends = {name, *("/".join(parts[first:]) for first in range(len(parts)))}
    return ends | {strip_suffix(end) for end in ends}


def _spellings(cell: str, names: set[str]) -> list[str]:
    """A cell of a `file` column as it is; then, for tables made elsewhere, with / between folders as Windows does not
    have it, and without the folders above --input, if that leaves one of `names`, the paths below --input."""
    parts = PurePosixPath(cell.replace("\\", "/")).parts
    below = ("/".join(parts[first:]) for first in range(1, len(parts)))
    return [cell, "/".join(parts), *(path for path in below if path in names)]


def read_labels(path: Path, names: Sequence[str], strict: bool = False) -> Labels:
    """Reads the classes of the volumes `names` (paths below the input) from a UTF-8 table with a header.

    Cells are separated by commas, semicolons or tabs. The columns, in any order and with others beside them: `file`
    (a file's or a series' name, or its path, with or without the suffix; also `filename`) or `subject` (see
    `subjects`; also `subject_id`, `participant_id`), which may name several volumes; and `class` (also `group`; "n/a"
    is none). The header is case-insensitive. Rows that match no volume, volumes without a row, rows without a class and
    repeated rows are returned for the caller to report, or raise an error with strict=True.

    Raises:
        LabelError: the table cannot be read, lacks a column, has a row of another length, names several files by one
            name, or gives a volume two classes.
    """
    return read_table(path, names, "--labels", CLASS, strict)


def read_table(path: Path, names: Sequence[str], option: str, columns: Sequence[str], strict: bool = False) -> Labels:
    """`read_labels`, of the column that has one of the names `columns`, from the table that `option` gives."""
    word = columns[0]
    rows = read_rows(path, option)
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    key_kind = FILE if column_of(head, FILE) is not None else SUBJECT
    key, value = column_of(head, key_kind), column_of(head, columns)
    if key is None or value is None:
        raise LabelError(
            f"{option} {path}, line 1: expected a header with the columns file (or subject) and {word}; got "
            f"{rows[0] if rows else 'an empty file'}"
        )
    known = {*names, *map(strip_suffix, names)}
    by_name: dict[str, list[str]] = {}
    for name in names:
        for alias in _files(name) if key_kind is FILE else subjects(name):
            by_name.setdefault(alias, []).append(name)

    classes: dict[str, str] = {}
    lines: dict[str, int] = {}  # volume name -> number of its row
    missing: dict[str, str] = {}
    notes: list[str] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) <= max(key, value) or any(cell.strip() for cell in row[len(head) :]):
            raise LabelError(
                f"{option} {path}, line {number}: expected {len(head)} columns as in the header; got {row}"
            )
        who, label = row[key].strip(), row[value].strip()
        label = "" if label.lower() in MISSING else label
        spellings = _spellings(who, known) if key_kind is FILE else [who]
        match = next((by_name[spelling] for spelling in spellings if spelling in by_name), [])
        if not match:
            notes.append(f"line {number}: {who!r} is not among the input files")
        if key_kind is FILE and len(match) > 1:
            raise LabelError(
                f"{option} {path}, line {number}: {who!r} names several files; give the path below --input, such as "
                f"{match[0]!r}"
            )
        for name in match:
            if name in lines and classes.get(name, "") != label:
                raise LabelError(
                    f"{option} {path}, line {number}: {who!r} has the {word} {classes.get(name, '')!r} already, by "
                    f"line {lines[name]}; now {label!r}"
                )
        if match and all(name in lines for name in match):
            notes.append(
                f"line {number}: {who!r} stands there twice with the same {word}, as in line {lines[match[0]]}"
            )
        for name in match:
            lines.setdefault(name, number)
            if label:
                classes[name] = label
            else:
                missing[name] = f"no {word} in {path.name}: line {number} leaves it empty"
    for name in names:
        if name not in lines:
            missing[name] = f"no {word} in {path.name}: no row names it"
    if strict and (notes or missing):
        first = notes[0] if notes else next(f"{name} has {reason}" for name, reason in missing.items())
        raise LabelError(f"{option} {path}: {first} (--strict stops at the first such row or file)")
    if not classes:
        raise LabelError(
            f"{option} {path}: none of its {len(rows) - 1} rows gives a {word} to one of the {len(names)} volumes, "
            f"such as {names[0]!r}"
        )
    return Labels(classes, missing, notes)


def column_of(head: Sequence[str], names: Sequence[str]) -> int | None:
    """The number of the first column of a header that has one of the names."""
    return next((i for i, cell in enumerate(head) if cell.strip().lower() in names), None)


def read_rows(path: Path, option: str) -> list[list[str]]:
    """The cells of a table, its header first; raises LabelError where it is no table."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=first.count)
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n?|\n", raw[: error.start])) + 1
        raise LabelError(
            f"{option} {path} cannot be read as CSV: line {line} holds the byte 0x{raw[error.start]:02x}, which is not "
            "UTF-8; save the table as UTF-8 text"
        ) from error
    except (OSError, csv.Error) as error:
        raise LabelError(f"{option} {path} cannot be read as CSV: {error}") from error
