"""A folder of scans -> a data set: finds the volumes, prepares each in a process, writes what can be used.

Every file that is not used is printed with its reason, which dataset.json records too. An unfinished run leaves what
it has done in a hidden folder beside the data set, and the next run with the same arguments continues there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.data import itk
from ssgan.data.axes import shape_option, to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.data.labels import Labels, strip_suffix
from ssgan.data.masks import Masks, relative
from ssgan.data.preprocessing import EMPTY_MASK, LABEL_MAP, PADDED, VANISHED, Recipe, prepare_source
from ssgan.data.recipes import RECIPES
from ssgan.data.sources import InputFiles, Source, find_files, find_volumes
from ssgan.data.volume import Failure
from ssgan.data.writer import CONTACT_SHEET_VOLUMES, DatasetWriter
from ssgan.utils.errors import UserError
from ssgan.utils.pictures import contact_sheet

FORMATS = ".nii, .nii.gz, .nrrd, .mha or .mhd file or DICOM series"

# imap(function, items) yields the results in the order of the items, as multiprocessing.Pool.imap does;
# `ssgan.data.workers.run_in_order` with its numbers is one.
Imap = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


class PrepareError(UserError):
    """The data set cannot be prepared; the message says why and what to do."""


def find_input(folder: Path) -> InputFiles:
    """The scans below `folder`; prints how many other files are ignored.

    Raises:
        PrepareError: there are none, or a package that reads them is not installed.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PrepareError(f"--input {folder} {what}; expected a folder with any {FORMATS}")
    found = find_files(folder)
    if found.hidden:
        print(f"{len(found.hidden)} hidden files ignored, such as {found.hidden[0].relative_to(folder)}")
    for note in found.notes:
        print(f"note     {note}")
    if found.others:
        print(f"{len(found.others)} files that are no volumes ignored, such as {found.others[0].name}")
    if found.unread:
        first = found.unread[0].name
        print(f"{len(found.unread)} volumes in formats that are not read ignored, such as {first}; convert to NIfTI")
    if not (found.files or found.folders or found.unreadable):
        raise PrepareError(f"--input {folder} holds no {FORMATS} (folders below were searched too)")
    itk_files = [f for f in found.files if f.name.lower().endswith(itk.SUFFIXES)]
    slices = [f for files in found.folders.values() for f in files]
    for files, packages in ((itk_files, ["SimpleITK"]), (slices, ["SimpleITK", "pydicom"])):
        missing = itk.missing_packages(*packages) if files else []
        if missing:
            raise PrepareError(
                f"--input {folder}: {len(files)} files such as {files[0].name} need {' and '.join(missing)}: "
                f"{itk.INSTALL}"
            )
    return found


def find_sources(found: InputFiles, root: Path, imap: Imap, need_spacing: bool) -> list[Source]:
    """The volumes below `root` in the order of their names.

    Headers of DICOM files are always read; those of other files only if `need_spacing`.
    """
    tasks: list[tuple[Path, Sequence[Path]]] = [(root, files) for files in found.folders.values()]
    sources = [Source(str(path.relative_to(root)), (path,), reason=reason) for path, reason in found.unreadable]
    if need_spacing:
        tasks += [(root, [file]) for file in found.files]
    else:
        sources += [Source(str(file.relative_to(root)), (file,)) for file in found.files]
    bar = tqdm(zip(tasks, imap(find_volumes, tasks)), desc="scanning", unit="item", total=len(tasks), disable=None)
    for (_, files), result in bar:
        if isinstance(result, Failure):
            path = files[0] if len(files) == 1 else files[0].parent
            sources.append(Source(str(path.relative_to(root)), tuple(files), reason=result.reason))
        else:
            sources += result
    _warn_about_split_series(sources)
    return sorted(sources, key=lambda s: s.name)


def _warn_about_split_series(sources: Sequence[Source]) -> None:
    """Prints where one SeriesInstanceUID lies in several folders: each folder counts as a series of its own."""
    first: dict[str, str] = {}
    for source in sources:
        if source.series is not None:
            other = first.setdefault(source.series.uid, source.name)
            if other != source.name:
                print(f"warning  {source.name}: the same SeriesInstanceUID as {other}; put one series into one folder")


def common_spacing(sources: Sequence[Source]) -> tuple[float, float, float]:
    """The spacing (x, y, z) in mm for volumes prepared without --spacing: their own if all agree, else the median.

    Files whose header cannot be read are ignored here; they are refused when they are read.
    """
    found = [s.spacing for s in sources if s.spacing is not None]
    if not found:
        return (1.0, 1.0, 1.0)
    spacings = np.array(found)
    median = np.median(spacings, axis=0)
    if not np.allclose(spacings, median, rtol=1e-3):
        low, high, middle = (" x ".join(f"{v:.4g}" for v in s) for s in (spacings.min(0), spacings.max(0), median))
        print(
            f"spacing differs ({low} mm to {high} mm); resampling to the median {middle} mm (--spacing chooses another)"
        )
    return tuple(float(s) for s in median)  # type: ignore[return-value]


def prepare(
    sources: Sequence[Source],
    root: Path,
    out: Path,
    recipe: Recipe,
    labels: Labels | None = None,
    *,
    imap: Imap,
    masks: Masks | None = None,
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
) -> VolumeDataset:
    """Prepares the volumes `sources` (below `root`) into a data set at `out`, and prints what is skipped, and why.

    Raises:
        PrepareError: no volume can be used, or one cannot and strict is True; nothing is left at `out`.
        OSError: for example a full disk; an earlier data set at `out` stays, and what was done is kept beside it.
    """
    excluded = {  # name -> reason
        **(masks.excluded if masks else {}),
        **(labels.missing if labels else {}),
        **RECIPES[recipe.name].select(sources),
    }
    plan, classes = _plan(sources, root, recipe, labels, masks), masks.classes if masks else None
    with DatasetWriter(out, recipe.array_shape, overwrite, plan, restart, classes) as writer:
        if writer.done:
            print(f"going on after {writer.done} of {len(sources)} volumes of an unfinished run")
        for note in labels.notes if labels else ():
            print(f"labels   {note}")
        for note in _mask_notes(masks) if masks else ():
            print(f"masks    {note}")
        try:
            _write_volumes(writer, sources, root, recipe, labels, masks, excluded, imap, strict)
            if not writer.count:
                raise PrepareError(f"{root}: none of its {len(sources)} files can be used; the reasons stand above")
            _print_common_warnings(writer.records)
            affine = np.median([r["affine"] for r in writer.records], axis=0)
            spacing = np.diag(affine)[:3]
            _write_contact_sheet(writer, recipe, spacing)
            writer.skipped += [{"file": f, "reason": r} for f, r in (masks.unused if masks else {}).items()]
            return writer.finish(spacing=spacing, affine=affine, slice_axis=recipe.slice_axis, recipe=recipe.name)
        except (KeyboardInterrupt, OSError):
            if writer.done:
                print(f"{writer.done} of {len(sources)} volumes are kept in {writer.folder}; the same command goes on")
            raise


def _mask_notes(masks: Masks) -> list[str]:
    """Lines about the masks for the user."""
    notes = [*masks.notes, *masks.problems]
    if masks.optional and masks.missing:
        notes.append(f"{len(masks.missing)} volumes have none, such as {next(iter(masks.missing))}, and are kept")
    if masks.unused:
        some = ", ".join(list(masks.unused)[:3]) + (", .." if len(masks.unused) > 3 else "")
        notes.append(f"{len(masks.unused)} files are no volume's mask (dataset.json names each): {some}")
    return notes


def _write_volumes(
    writer: DatasetWriter, sources: Sequence[Source], root: Path, recipe: Recipe, labels: Labels | None,
    masks: Masks | None, excluded: dict[str, str], imap: Imap, strict: bool,
) -> None:  # fmt: skip
    """Prepares the volumes that the writer does not have yet, and adds or skips each."""
    sources_by_hash = {r["content_hash"]: r["source"] for r in writer.records}
    done = writer.done
    remaining = list(sources[done:])
    files = masks.files if masks else {}
    tasks = [None if s.name in excluded else dataclasses.replace(s, mask=files.get(s.name)) for s in remaining]
    of_masks = {"classes": masks.classes} if masks else {}
    results = _imap_tasks(imap, functools.partial(prepare_source, recipe=recipe, strict=strict, **of_masks), tasks)
    bar = tqdm(zip(remaining, results), desc="preparing", unit="volume", total=len(sources), initial=done, disable=None)
    with contextlib.closing(results), bar:
        for source, result in bar:
            reason = excluded.get(source.name) or (result.reason if isinstance(result, Failure) else "")
            if not reason and result[1]["content_hash"] in sources_by_hash:
                reason = f"the same voxels as {sources_by_hash[result[1]['content_hash']]}, which is kept"
            if reason:
                if strict and (source.name not in excluded or source.reason):
                    raise PrepareError(f"{root / source.name}: {reason} (--strict stops at the first such file)")
                writer.skip({"file": source.name, "reason": reason})
                bar.write(f"skipped  {source.name}: {reason}")
                continue
            array, record, *mask = result
            record = {"source": source.name, **record}
            if mask:
                record["mask"] = relative(files[source.name], root)
            if labels is not None:
                record["class_label"] = labels.classes[source.name]
            for warning in record["warnings"]:
                if not warning.startswith((PADDED, LABEL_MAP, EMPTY_MASK, VANISHED)):
                    bar.write(f"warning  {source.name}: {warning}")
            writer.add(array, record, *mask)
            sources_by_hash[record["content_hash"]] = source.name


def _print_common_warnings(records: Sequence[dict[str, Any]]) -> None:
    """Prints one line for each warning that many volumes can have; dataset.json has it for each volume."""
    alone = "; to leave them out, give --input the folder of the images alone"
    for kind, advice in ((PADDED, ""), (LABEL_MAP, alone), (EMPTY_MASK, ""), (VANISHED, "")):
        found = [(r["source"], w.removeprefix(kind)) for r in records for w in r["warnings"] if w.startswith(kind)]
        if found:
            print(f"warning  {len(found)} of {len(records)} volumes: {kind}, such as {''.join(found[0])}{advice}")


def _imap_tasks(imap: Imap, function: Callable[[Source], Any], tasks: Sequence[Source | None]) -> Iterator[Any]:
    """`imap` over the tasks that are not None; None in the places of the others."""
    results = imap(function, [t for t in tasks if t is not None])
    with contextlib.closing(results):
        for task in tasks:
            yield None if task is None else next(results)


def _plan(
    sources: Sequence[Source], root: Path, recipe: Recipe, labels: Labels | None, masks: Masks | None
) -> dict[str, Any]:
    """All that decides the data set; an unfinished run with the same plan is continued."""
    plan = {
        "recipe": recipe.name,
        "shape": recipe.shape,
        "spacing": recipe.spacing,
        "slice_axis": recipe.slice_axis,
        "window": recipe.window,
        "labels": None if labels is None else _digest(sorted(labels.classes.items())),
        "files": _digest([(s.name, [(f.name, *_size_and_time(f)) for f in s.files], s.reason) for s in sources]),
    }
    if masks is not None:
        files = [(name, relative(f, root), *_size_and_time(f)) for name, f in sorted(masks.files.items())]
        plan["masks"] = _digest((files, sorted(masks.excluded.items()), sorted(masks.unused.items())))
        plan["mask_classes"] = masks.classes._asdict()
    return plan


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds of the last change; of the link itself where it is broken."""
    stat = path.stat() if path.exists() else path.lstat()
    return stat.st_size, stat.st_mtime_ns


def describe(dataset: VolumeDataset) -> list[str]:
    """Lines about a prepared data set: volumes, classes, masks, grid and intensities."""
    info = dataset.info
    warned = sum(bool(r["warnings"]) for r in dataset.records)
    lines = [
        f"{len(dataset)} volumes prepared ({warned} with a warning), {len(dataset.skipped)} skipped: {dataset.path}"
    ]
    if info.classes:
        counts = zip(info.classes, dataset.class_counts, strict=True)
        lines.append("classes " + ", ".join(f"{name}: {n}" for name, n in counts))
    if dataset.has_mask is not None:
        voxels = np.array([r["mask_voxels"] for r in dataset.records])[dataset.has_mask]
        parts = [
            f"{name} (value {value}) in {(counts > 0).sum()}, {counts.mean():.4g} voxels on average"
            for value, name, counts in zip(info.mask_values or (), info.mask_names or (), voxels.T, strict=True)
            if value
        ]
        lines.append(f"masks of {len(voxels)} volumes: {'; '.join(parts)}")
        absent = [name for name, n in zip(info.mask_names or (), voxels.sum(0), strict=True) if not n]
        lines += [f"warning  no volume has a voxel of the class {name}" for name in absent]
    x, y, z = info.spacing
    own = RECIPES[info.recipe].window is None
    scale = "medians of the volumes, of which each has its own" if own else "the window of all volumes"
    lines.append(
        f"shape {shape_option(info.shape, info.slice_axis)} (arrays D, H, W: {info.shape}), "
        f"spacing {x:g} x {y:g} x {z:g} mm, "
        f"intensity {info.intensity_low:g} .. {info.intensity_high:g} ({scale}) -> -1 .. 1"
    )
    return [*lines, f"look at {dataset.path / 'contact_sheet.png'}"]


def _write_contact_sheet(writer: DatasetWriter, recipe: Recipe, spacing: np.ndarray) -> None:
    """Draws the first volumes as they were written, read back from the file."""
    count = min(writer.count, CONTACT_SHEET_VOLUMES)
    names = [strip_suffix(record["source"]) for record in writer.records[:count]]
    path = writer.folder / "contact_sheet.png"
    volumes, masks = writer.read(count), writer.read_masks(count)
    contact_sheet(
        to_axial(volumes, recipe.slice_axis), names, path, spacing=tuple(map(float, spacing)),
        masks=None if masks is None else to_axial(masks, recipe.slice_axis),
    )  # fmt: skip
