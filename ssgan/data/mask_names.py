"""Names of the classes of masks: from --mask-names, or a dataset.json as the Decathlon and nnU-Net have it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ssgan.data.dataset import BACKGROUND
from ssgan.data.writer import MaskClasses
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json

EXAMPLE = "'1=anterior,2=posterior'"
IGNORE = "ignore"  # nnU-Net's name of voxels that nobody has labelled


class MaskNameError(UserError):
    """Names of classes that cannot be used; the message says where they stand."""


def parse_names(text: str) -> dict[int, str]:
    """Parses `--mask-names`: value -> name.

    Raises:
        MaskNameError: not of the form 1=NAME,2=NAME, or a value or name stands twice.
    """
    names: dict[int, str] = {}
    for part in text.split(","):
        value, separator, name = (word.strip() for word in part.partition("="))
        if not (separator and name and value.isascii() and value.isdigit() and 0 < int(value) < 256):
            raise MaskNameError(
                f"--mask-names: expected values from 1 to 255 with names, as in {EXAMPLE}; got {part!r}"
            )
        if int(value) in names:
            raise MaskNameError(f"--mask-names: the value {int(value)} stands twice")
        names[int(value)] = name
    return names


def find_description(folders: Sequence[Path]) -> tuple[Path, dict[int, str]] | None:
    """The first dataset.json with "labels" in the folders, and its names; None if there is none.

    Raises:
        MaskNameError: it has regions of several values, as nnU-Net's may, or "labels" of no known form.
    """
    for folder in folders:
        path = folder / "dataset.json"
        head = read_json(path) if path.is_file() else None
        if isinstance(head, dict) and "labels" in head:
            return path, _names_of(head["labels"], path)
    return None


def _names_of(labels: object, path: Path) -> dict[int, str]:
    """Value -> name, from {"0": "background", ...}, the Decathlon's form, or {"background": 0, ...}, nnU-Net's."""
    names: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, dict) else [("labels", labels)]:
        if isinstance(value, list) and isinstance(labels, dict):
            raise MaskNameError(
                f"{path}: {key!r} is a region of the values {value}; regions are not supported: name the values with "
                f"--mask-names, as in {EXAMPLE}"
            )
        decathlon = isinstance(value, str) and str(key).isascii() and str(key).isdigit()
        number, name = (int(key), value) if decathlon else (value, key)
        if isinstance(number, bool) or not isinstance(number, int) or not name.strip() or number in names:
            raise MaskNameError(
                f'{path}: "labels": expected a name for each value, as {{"1": "anterior"}} or {{"anterior": 1}}; got '
                f"{key!r}: {value!r}; give --mask-names, as in {EXAMPLE}"
            )
        names[number] = name.strip()
    return names


def name_classes(values: Sequence[int], names: dict[int, str], where: str) -> MaskClasses:
    """The classes of masks that have `values`, in their order from 0 on; a value without a name is its own.

    Raises:
        MaskNameError: two of them have one name, or one is nnU-Net's `ignore`.
    """
    ordered = sorted({0, *values})
    found = (BACKGROUND, *(names.get(value, str(value)) for value in ordered[1:]))
    for i, name in enumerate(found):
        if name in found[:i]:
            raise MaskNameError(
                f"{where}: the values {ordered[found.index(name)]} and {ordered[i]} of the masks are both named "
                f"{name!r}; expected different names"
            )
        if name == IGNORE:
            raise MaskNameError(
                f"{where}: the masks have nnU-Net's {IGNORE!r} (value {ordered[i]}), voxels that nobody has labelled; "
                "label them, or call them a class of their own with --mask-names"
            )
    return MaskClasses(tuple(ordered), found)
