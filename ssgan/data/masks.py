"""Finds the mask of each volume, its label map, by name, pattern or table; and the classes that the masks have."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.data import itk, nifti
from ssgan.data.dataset import BACKGROUND
from ssgan.data.labels import MASK, column_of, read_rows, read_table, strip_suffix
from ssgan.data.mask_names import find_description, name_classes
from ssgan.data.sources import Source, find_files, read_stored
from ssgan.data.volume import Failure, StoredVolume, VolumeError
from ssgan.data.writer import MaskClasses
from ssgan.utils.errors import UserError

ENDINGS = ("_seg", "-seg", "_mask", "_label", "_labels", "_dseg")  # of a mask's name, behind its volume's
CHANNEL = "_0000"  # behind the name of nnU-Net's images, and not of their masks
FORMATS = ".nii, .nii.gz, .nrrd, .mha or .mhd"
MAX_CLASSES = 32  # with the background; a map of more is an image, or an atlas, of which no GAN has been tried
DICOM_SEG = "DICOM (a DICOM-SEG is not read); convert it to NIfTI"
Found = tuple[dict[str, list[Path]], list[Source]]  # files that may be a volume's mask, by its name; the volumes


class MaskError(UserError):
    """Masks that cannot be used; the message names the option, the file and what to do."""


@dataclass
class Masks:
    """The masks of a data set to be made.

    files: volume name -> its mask. missing: volumes without one, with the reasons. refused: volumes whose mask cannot
    be used, with the reasons. unused: masks of no volume (below --input or relative to it), with the reasons.
    optional: whether volumes without a mask are kept. problems: rows of a table without effect. notes: other lines for
    the user. classes: of all masks.
    """

    optional: bool = False
    files: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    classes: MaskClasses = field(default_factory=lambda: MaskClasses((0,), (BACKGROUND,)))

    @property
    def excluded(self) -> dict[str, str]:
        """The volumes that are left out because of their masks, with the reasons."""
        return self.refused if self.optional else {**self.missing, **self.refused}


def load_masks(
    given: str,
    sources: Sequence[Source],
    root: Path,
    imap: Callable[..., Iterator[Any]],
    *,
    optional: bool = False,
    names: dict[int, str] | None = None,
    strict: bool = False,
) -> tuple[Masks, list[Source]]:
    """Finds the masks of the volumes `sources` (below `root`) and their classes; also returns the volumes alone.

    given: as in `find_masks`. imap: as in `ssgan.data.preparation`. names: of the values of the masks; without them
    those in a dataset.json beside or above the masks are taken.

    Raises:
        MaskError: as `find_masks`; no mask can be used, all are empty, or they have too many classes; with strict=True
            also where a volume has no mask that can be used, or a mask has no volume.
        MaskNameError: names that cannot be used.
    """
    masks, volumes = find_masks(given, sources, root, optional)
    values = _read_values(masks, root, imap)
    if strict:
        _refuse_problems(masks, given, root)
    if not masks.files:
        name, reason = next(iter(masks.refused.items()))
        raise MaskError(f"--masks {given}: no mask can be used; {name}: {reason}")
    if values <= {0}:
        raise MaskError(f"--masks {given}: all {len(masks.files)} masks are empty (every voxel is 0)")
    if len(values | {0}) > MAX_CLASSES:
        raise MaskError(
            f"--masks {given}: {len(values | {0})} different values; expected at most {MAX_CLASSES} classes"
        )
    found = None if names is not None else find_description(_description_folders(given, masks))
    where, known = ("--mask-names", names or {}) if found is None else (str(found[0]), found[1])
    masks.classes = name_classes(sorted(values), known, where)
    unnamed, absent = sorted(values - {0, *known}), sorted(set(known) - {0, *values})
    if known and unnamed:
        masks.notes.append(f"{where} has no name for the values {', '.join(map(str, unnamed))}: they are their names")
    if absent:
        masks.notes.append(f"no mask has the values {', '.join(map(str, absent))}, which {where} names")
    return masks, volumes


def _read_values(masks: Masks, root: Path, imap: Callable[..., Iterator[Any]]) -> set[int]:
    """The values of all masks; those that cannot be used are refused."""
    values: set[int] = set()
    items = list(masks.files.items())
    results = imap(mask_values, [path for _, path in items])
    for (name, path), result in tqdm(zip(items, results), desc="masks", unit="mask", total=len(items), disable=None):
        if isinstance(result, Failure):
            masks.refused[name] = f"its mask {relative(path, root)}: {result.reason}"
            del masks.files[name]
        else:
            values.update(result)
    return values


def _description_folders(given: str, masks: Masks) -> list[Path]:
    """Where a dataset.json may describe the masks: their common folder, --masks, and the folders above these."""
    folders = [Path(os.path.commonpath([os.path.abspath(path.parent) for path in masks.files.values()]))]
    folders += [Path(os.path.abspath(given))] if Path(given).is_dir() else []
    return list(dict.fromkeys(folder for found in folders for folder in (found, found.parent)))


def _refuse_problems(masks: Masks, given: str, root: Path) -> None:
    """Raises MaskError for the first volume, mask or row that is left out, as --strict asks for."""
    for name, reason in {**masks.excluded, **masks.unused}.items():
        raise MaskError(f"{os.path.normpath(root / name)}: {reason} (--strict stops at the first such file)")
    for problem in masks.problems:
        raise MaskError(f"--masks {given}: {problem} (--strict stops at the first such row)")


def find_masks(given: str, sources: Sequence[Source], root: Path, optional: bool = False) -> tuple[Masks, list[Source]]:
    """Finds the mask of each volume of `sources` (below `root`); also returns the volumes, which are no masks.

    given: a folder, a pattern with {name} (and {dir}) for a volume's name without suffix (and its folder), or a table.

    Raises:
        MaskError: `given` is none of these, no volume has a mask, or a package that reads them is not installed.
        LabelError: the table cannot be used.
    """
    masks = Masks(optional)
    if "{name}" in given:
        found, volumes = _by_pattern(given, sources, root, masks)
    elif Path(given).is_dir():
        found, volumes = _by_name(Path(given), sources, root, masks)
    elif Path(given).is_file() and not given.lower().endswith(nifti.SUFFIXES + itk.SUFFIXES):
        found, volumes = _by_table(Path(given), sources, root, masks)
    else:
        what = "is a volume" if Path(given).exists() else "does not exist"
        raise MaskError(
            f"--masks {given} {what}; expected a folder, a pattern with {{name}} such as 'labels/{{name}}.nii.gz', or "
            "a table with the columns file (or subject) and mask"
        )
    if len(volumes) < len(sources):
        first = min({s.name for s in sources} - {v.name for v in volumes})
        masks.notes.append(f"{len(sources) - len(volumes)} files below --input are masks, not volumes, such as {first}")
    _settle(found, volumes, root, masks)
    if not masks.files:
        reason = next(iter({**masks.missing, **masks.refused}.items()), ("", "there is no volume"))
        raise MaskError(
            f"--masks {given}: none of the {len(volumes)} volumes has a mask; {': '.join(reason).strip(': ')}"
        )
    if any(f.name.lower().endswith(itk.SUFFIXES) for f in masks.files.values()) and itk.missing_packages("SimpleITK"):
        raise MaskError(f"--masks {given}: NRRD and MetaImage need SimpleITK: {itk.INSTALL}")
    return masks, volumes


def _settle(found: dict[str, list[Path]], volumes: Sequence[Source], root: Path, masks: Masks) -> None:
    """Fills in the files of the volumes that have one mask, which no other has, and the reasons of the others."""
    owners: dict[str, list[str]] = {}
    for volume in volumes:
        for path in found.get(volume.name, []):
            owners.setdefault(_real(path), []).append(volume.name)
    for volume in volumes:
        paths = found.get(volume.name, [])
        if len(paths) > 1:
            masks.refused[volume.name] = (
                f"{len(paths)} files may be its mask, such as {relative(paths[0], root)} and "
                f"{relative(paths[1], root)}; say which in a table for --masks"
            )
        for path in paths[:1] if len(paths) == 1 else []:
            others = [name for name in owners[_real(path)] if name != volume.name]
            if others:
                masks.refused[volume.name] = (
                    f"its mask {relative(path, root)} is that of {others[0]} too; give each volume a mask of its own"
                )
            elif _real(path) in {_real(file) for file in volume.files}:
                masks.refused[volume.name] = "the file that --masks names as its mask is the volume itself"
            elif not os.path.lexists(path):
                masks.refused[volume.name] = f"its mask {relative(path, root)} does not exist"
            else:
                masks.files[volume.name] = path


def _by_name(folder: Path, sources: Sequence[Source], root: Path, masks: Masks) -> Found:
    """Each volume's masks below a folder: at its path, or else with its file name anywhere, if they are at no other
    volume's path; the name as it is, or else with an ending.

    Files of --input are masks if `folder` is below --input and they are in it, or if they have the name of another
    volume with an ending.
    """
    below, above = (Path(os.path.realpath(path)) for path in (folder, root))
    if below != above and below.is_relative_to(above):
        sources = [s for s in sources if not Path(_real(s.files[0])).is_relative_to(below)]
    own = {_real(file) for s in sources for file in s.files}
    listed = find_files(folder)
    paths: dict[str, list[Path]] = {}  # path below the folder without suffix -> files
    names: dict[str, list[Path]] = {}  # file name without suffix -> files
    for path in listed.files:
        stem = PurePath(strip_suffix(str(path.relative_to(folder))))
        paths.setdefault(stem.as_posix(), []).append(path)
        names.setdefault(stem.name, []).append(path)

    found: dict[str, list[Path]] = {source.name: [] for source in sources}
    claimed: set[str] = set()
    for index, key in ((paths, PurePath.as_posix), (names, lambda stem: stem.name)):
        for source in [s for s in sources if not found[s.name]]:
            stem = PurePath(strip_suffix(source.name))
            exact = [stem] + ([stem.with_name(stem.name.removesuffix(CHANNEL))] if stem.name.endswith(CHANNEL) else [])
            ended = [stem.with_name(stem.name + ending) for ending in ENDINGS]
            free = [
                [f for s in stems for f in index.get(key(s), []) if _real(f) not in claimed] for stems in (exact, ended)
            ]
            found[source.name] = [f for f in free[0] if _real(f) not in own] or free[1]
        claimed = {_real(path) for files in found.values() for path in files}
    volumes = [s for s in sources if not any(_real(f) in claimed for f in s.files)]
    for path in listed.files:
        if _real(path) not in claimed and _real(path) not in own:
            masks.unused[relative(path, root)] = "a mask of no volume (below --masks)"
    for path in listed.unread:
        if _real(path) not in own:
            masks.unused[relative(path, root)] = f"not read as a mask; expected {FORMATS}"
    dicom = [f for files in listed.folders.values() for f in files if _real(f) not in own]
    if dicom:
        more = f" (and {len(dicom) - 1} more)" if len(dicom) > 1 else ""
        masks.unused[relative(dicom[0], root)] = f"not read as a mask: {DICOM_SEG}{more}"
    for volume in volumes:
        if not found[volume.name]:
            masks.missing[volume.name] = (
                f"no mask below {folder}: no other file has its name, or its name and {', '.join(ENDINGS)}"
            )
    if not any(found.values()) and dicom:
        raise MaskError(f"--masks {folder}: {relative(dicom[0], folder)} is {DICOM_SEG}; expected {FORMATS}")
    return found, volumes


def _by_pattern(given: str, sources: Sequence[Source], root: Path, masks: Masks) -> Found:
    """Each volume's mask at the place that a pattern gives, where such a file is."""
    found = {}
    for source in sources:
        stem = PurePath(strip_suffix(source.name))
        place = given.replace("{name}", stem.name).replace("{dir}", stem.parent.as_posix())
        found[source.name] = [path] if os.path.lexists(path := root / place) else []
        if not found[source.name]:
            masks.missing[source.name] = f"no mask: {os.path.normpath(place)} does not exist"
    volumes = _without_masks(sources, found)
    masks.missing = {v.name: masks.missing[v.name] for v in volumes if v.name in masks.missing}
    return found, volumes


def _by_table(path: Path, sources: Sequence[Source], root: Path, masks: Masks) -> Found:
    """Each volume's mask in a table, relative to the table's folder or else to --input."""

    def place(cell: str) -> Path:
        beside = path.parent / cell
        return beside if os.path.lexists(beside) or not os.path.lexists(root / cell) else root / cell

    rows = read_rows(path, "--masks")
    column = column_of(rows[0], MASK) if rows else None
    cells = [row[column].strip() for row in rows[1:] if column is not None and len(row) > column]
    listed = {_real(place(cell)) for cell in cells if cell}
    volumes = [s for s in sources if not any(_real(f) in listed for f in s.files)]
    if not volumes:
        raise MaskError(f"--masks {path}: the table names every file of --input as a mask; none is left as a volume")
    table = read_table(path, [v.name for v in volumes], "--masks", MASK)
    masks.missing = dict(table.missing)
    masks.problems += table.notes
    return {name: [place(cell)] for name, cell in table.classes.items()}, volumes


def _without_masks(sources: Sequence[Source], found: dict[str, list[Path]]) -> list[Source]:
    """The sources that are not the mask of another one."""
    claims: dict[str, set[str]] = {}
    for name, paths in found.items():
        for path in paths:
            claims.setdefault(_real(path), set()).add(name)
    return [s for s in sources if not any(claims.get(_real(f), set()) - {s.name} for f in s.files)]


def _real(path: Path) -> str:
    """The path without links in its folders; a link to a file stays one, since several may point to one content."""
    return os.path.join(_real_folder(os.path.abspath(path.parent)), path.name)


@functools.cache
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def relative(path: Path, root: Path) -> str:
    """A mask's path as the records hold it: relative to --input."""
    return os.path.relpath(path, root)


def read_mask(path: Path) -> StoredVolume:
    """Reads a mask as it is stored, uint8; raises VolumeError for values that are no labels."""
    stored = read_stored(path)
    bad = int(stored.data.size - np.isfinite(stored.data).sum())
    if bad:
        raise VolumeError(f"{bad} of its {stored.data.size} voxels are NaN or infinite; expected whole numbers")
    whole = stored.data.round()
    if not np.array_equal(whole, stored.data):
        value = stored.data[whole != stored.data].ravel()[0]
        raise VolumeError(f"values that are not whole numbers, such as {value:g}; expected labels from 0 to 255")
    low, high = stored.data.min(), stored.data.max()
    if low < 0 or high > 255:
        raise VolumeError(f"values from {low:g} to {high:g}; expected labels from 0 to 255")
    data = stored.data.astype(np.uint8)
    count = len(np.union1d(data, [0]))
    if count > MAX_CLASSES:
        raise VolumeError(f"{count} different values; expected at most {MAX_CLASSES} classes: is it an image?")
    return dataclasses.replace(stored, data=data)


def mask_values(path: Path) -> tuple[int, ...] | Failure:
    """The different values of a mask, or the reason why it cannot be used."""
    try:
        return tuple(np.unique(read_mask(path).data).tolist())
    except VolumeError as error:
        return Failure(str(error))
