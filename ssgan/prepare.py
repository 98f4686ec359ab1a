"""`ssgan prepare`: a folder of volumes (NIfTI, NRRD, MetaImage, DICOM) -> a checked, normalised data set.

Every file that is not used has a verdict, printed and kept in dataset.json. What was done of an unfinished run stays
in a hidden folder beside --out, and the same command goes on there.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.config.network import plan_levels
from ssgan.data import itk
from ssgan.data.dataset import ARRAY_AXES, DatasetWriter, VolumeDataset, check_destination, to_axial
from ssgan.data.labels import SUFFIXES, Labels, read_labels
from ssgan.data.preprocessing import Recipe, prepare_source
from ssgan.data.recipes import CT_WINDOW, PRESETS
from ssgan.data.sources import Found, Source, find_files, look
from ssgan.data.volume import Failure
from ssgan.data.workers import run_in_order, usable_cpus
from ssgan.utils.errors import UserError, run_command
from ssgan.utils.pictures import contact_sheet

SHEET_VOLUMES = 48
FORMATS = ".nii, .nii.gz, .nrrd, .mha or .mhd file or DICOM series"


class PrepareError(UserError):
    """The run of `prepare` cannot go on; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help=f"folder, searched below for any {FORMATS}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set to be made")
    parser.add_argument(
        "--shape", type=int, nargs=3, required=True, metavar=("X", "Y", "Z"), help="voxels along RAS+ axes"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"),
        help="mm; default: the recipe's, or the volumes' own, or their median",
    )  # fmt: skip
    parser.add_argument(
        "--recipe", choices=tuple(PRESETS), default="mri",
        help="mri: percentiles; ct: a window; coca, adni: those data sets as they are downloaded",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help=f"HU, with --recipe ct or coca (default for ct {CT_WINDOW}, coca {PRESETS['coca'].window})",
    )  # fmt: skip
    parser.add_argument("--slice-axis", choices=tuple(ARRAY_AXES), default="axial", help="plane of the 2D slices")
    parser.add_argument("--labels", type=Path, help="CSV with a header: file or subject, class")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set at --out")
    parser.add_argument("--restart", action="store_true", help="throw away an unfinished run for --out")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="processes that read (default: the CPUs)")
    parser.add_argument("--time-limit", type=float, default=600.0, metavar="S", help="seconds for one volume")


def run(args: argparse.Namespace) -> int:
    check_destination(args.out, args.overwrite)
    preset = PRESETS[args.recipe]
    if args.window is not None and preset.window is None:
        raise PrepareError(f"--window: only with --recipe ct or coca; MR intensities have no unit ({args.recipe})")
    window = tuple(args.window or preset.window or CT_WINDOW)
    if not -math.inf < window[0] < window[1] < math.inf:
        raise PrepareError(f"--window: expected LOW below HIGH; got {window[0]:g} {window[1]:g}")
    if args.spacing is not None and not all(0 < s < math.inf for s in args.spacing):
        raise PrepareError(f"--spacing: expected millimetres above 0; got {args.spacing}")
    if args.workers < 1:
        raise PrepareError(f"--workers: expected at least 1; got {args.workers}")
    if not args.time_limit > 0:
        raise PrepareError(f"--time-limit: expected seconds above 0; got {args.time_limit:g}")
    shape = tuple(args.shape)
    plan_levels(Recipe(args.recipe, shape, None, args.slice_axis).array_shape)  # a bad shape is refused before the work
    found = _find(args.input)
    reading = functools.partial(run_in_order, workers=args.workers, limit=args.time_limit)
    spacing = tuple(args.spacing) if args.spacing else preset.spacing(shape)
    sources = find_sources(found, args.input, reading, need_spacing=spacing is None)
    recipe = Recipe(args.recipe, shape, spacing or common_spacing(sources), args.slice_axis, window)
    labels = read_labels(args.labels, [s.name for s in sources], args.strict) if args.labels else None
    dataset = prepare(
        sources, args.input, args.out, recipe, labels, reading=reading, strict=args.strict, overwrite=args.overwrite,
        restart=args.restart,
    )  # fmt: skip
    kept, skipped = len(dataset), len(dataset.skipped)
    warned = sum(bool(r["warnings"]) for r in dataset.records)
    print(f"{kept} volumes prepared ({warned} with a warning), {skipped} skipped: {args.out}")
    if dataset.labels is not None:
        counts = np.bincount(dataset.labels)
        print(
            "classes " + ", ".join(f"{name}: {n}" for name, n in zip(dataset.info.classes or (), counts, strict=True))
        )
    low, high = dataset.info.intensity_low, dataset.info.intensity_high
    x, y, z = dataset.info.spacing
    print(
        f"shape (D, H, W) {dataset.info.shape}, spacing {x:g} x {y:g} x {z:g} mm, "
        f"intensity {low:g} .. {high:g} -> -1 .. 1"
    )
    print(f"look at {args.out / 'contact_sheet.png'}")
    return 0


def prepare(
    sources: Sequence[Source],
    root: Path,
    out: Path,
    recipe: Recipe,
    labels: Labels | None = None,
    *,
    reading: Any,
    strict: bool = False,
    overwrite: bool = False,
    restart: bool = False,
) -> VolumeDataset:
    """Prepares `sources` (below `root`) into a data set at `out`, printing a verdict on each that is not plainly good.

    `reading(function, items)` gives their results in order: `ssgan.data.workers.run_in_order` with its numbers.

    Raises:
        PrepareError: no volume can be used, or one cannot and strict is True; nothing is left at `out`.
        OSError: the disk is full, say; nothing is at `out`, an earlier data set stays, and so does what was done.
    """
    refused = PRESETS[recipe.name].select(sources)
    if labels is not None:
        refused = {**labels.missing, **refused}
    plan = {
        "recipe": recipe.name,
        "shape": recipe.shape,
        "spacing": recipe.spacing,
        "slice_axis": recipe.slice_axis,
        "window": recipe.window,
        "labels": None if labels is None else _digest(sorted(labels.classes.items())),
        "files": _digest([(s.name, [(f.name, *_stamp(f)) for f in s.files], s.reason) for s in sources]),
    }
    with DatasetWriter(out, recipe.array_shape, overwrite, plan, restart) as writer:
        seen = {r["content_hash"]: r["source"] for r in writer.records}
        done = writer.done
        if done:
            print(f"going on after {done} of {len(sources)} volumes of an unfinished run")
        for note in labels.notes if labels is not None else ():
            print(f"labels   {note}")
        left = list(sources[done:])
        tasks = [None if s.name in refused else s for s in left]
        results = _among(reading, functools.partial(prepare_source, recipe=recipe), tasks)
        bar = tqdm(zip(left, results), desc="preparing", unit="volume", total=len(sources), initial=done, disable=None)
        try:
            for source, result in bar:
                reason = refused.get(source.name) or (result.reason if isinstance(result, Failure) else "")
                if not reason and result[1]["content_hash"] in seen:
                    reason = f"the same voxels as {seen[result[1]['content_hash']]}, which is kept"
                if reason:
                    if strict and (source.name not in refused or source.reason):
                        raise PrepareError(f"{root / source.name}: {reason} (--strict stops at the first such file)")
                    writer.skip({"file": source.name, "reason": reason})
                    bar.write(f"skipped  {source.name}: {reason}")
                    continue
                array, record = result
                record = {"source": source.name, **record}
                if labels is not None:
                    record["class_label"] = labels.classes[source.name]
                for warning in record["warnings"]:
                    bar.write(f"warning  {source.name}: {warning}")
                writer.add(array, record)
                seen[record["content_hash"]] = source.name
            if not writer.count:
                raise PrepareError(f"{root}: none of its {len(sources)} files can be used; the reasons stand above")
            affine = np.median([r["affine"] for r in writer.records], axis=0)
            spacing = np.diag(affine)[:3]
            _draw(writer, recipe, spacing)
            return writer.finish(spacing=spacing, affine=affine, slice_axis=recipe.slice_axis, recipe=recipe.name)
        except (KeyboardInterrupt, OSError):
            if writer.done:
                print(f"{writer.done} of {len(sources)} volumes are kept in {writer.folder}; the same command goes on")
            raise
        finally:
            bar.close()
            results.close()


def _among(reading: Any, function: Any, tasks: Sequence[Source | None]) -> Iterator[Any]:
    """Results for `tasks` in order, None for those that are None: they are not read."""
    results = reading(function, [t for t in tasks if t is not None])
    try:
        for task in tasks:
            yield None if task is None else next(results)
    finally:
        results.close()


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _draw(writer: DatasetWriter, recipe: Recipe, spacing: np.ndarray) -> None:
    """The contact sheet of the first volumes, read back from the file that was just written."""
    shape = recipe.array_shape
    count = min(writer.count, SHEET_VOLUMES)
    volumes = writer.read(count)
    names = []
    for record in writer.records[:count]:
        name = record["source"]
        suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
        names.append(name[: len(name) - len(suffix)])
    assert volumes.shape[1:] == shape
    path = writer.folder / "contact_sheet.png"
    contact_sheet(to_axial(volumes, recipe.slice_axis), names, path, spacing=tuple(float(s) for s in spacing))


def find_sources(found: Found, root: Path, reading: Any, need_spacing: bool) -> list[Source]:
    """The volumes to be, in the order of their names; headers are read where series or spacings are asked for."""
    tasks: list[tuple[Path, Sequence[Path]]] = [(root, files) for files in found.folders.values()]
    sources: list[Source] = []
    if need_spacing:
        tasks += [(root, [file]) for file in found.files]
    else:
        sources += [Source(str(file.relative_to(root)), (file,)) for file in found.files]
    bar = tqdm(zip(tasks, reading(look, tasks)), desc="looking", unit="item", total=len(tasks), disable=None)
    for (_, files), result in bar:
        if isinstance(result, Failure):
            name = files[0] if len(files) == 1 else files[0].parent
            sources.append(Source(str(name.relative_to(root)), tuple(files), reason=result.reason))
        else:
            sources += result
    _warn_split(sources)
    return sorted(sources, key=lambda s: s.name)


def _warn_split(sources: Sequence[Source]) -> None:
    """Says where one SeriesInstanceUID lies in several folders: each folder counts as a series of its own."""
    first: dict[str, str] = {}
    for source in sources:
        if source.series is not None:
            other = first.setdefault(source.series.uid, source.name)
            if other != source.name:
                print(f"warning  {source.name}: the same SeriesInstanceUID as {other}; put one series into one folder")


def common_spacing(sources: Sequence[Source]) -> tuple[float, float, float]:
    """The spacing (x, y, z) mm for volumes prepared without --spacing: their own where all agree, else the median.

    Files that cannot be read have no say; they get their verdict later.
    """
    found = [s.spacing for s in sources if s.spacing is not None]
    if not found:
        return (1.0, 1.0, 1.0)
    spacings = np.array(found)
    median = np.median(spacings, axis=0)
    if not np.allclose(spacings, median, rtol=1e-3):
        low, high = spacings.min(0), spacings.max(0)
        print(
            f"spacing differs ({_mm(low)} to {_mm(high)}); resampling to the median {_mm(median)} "
            "(--spacing chooses another)"
        )
    return tuple(float(s) for s in median)  # type: ignore[return-value]


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{s:.4g}" for s in spacing) + " mm"


def _find(folder: Path) -> Found:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PrepareError(f"--input {folder} {what}; expected a folder with any {FORMATS}")
    found = find_files(folder)
    if found.hidden:
        print(f"{len(found.hidden)} hidden files passed over, such as {found.hidden[0].name}")
    if found.others:
        print(f"{len(found.others)} files that are no volumes passed over, such as {found.others[0].name}")
    if not found.files and not found.folders:
        raise PrepareError(f"--input {folder} holds no {FORMATS} (folders below were searched too)")
    slices = [file for files in found.folders.values() for file in files]
    for files, packages in (
        ([f for f in found.files if f.name.lower().endswith(itk.SUFFIXES)], ["SimpleITK"]),
        (slices, ["SimpleITK", "pydicom"]),
    ):
        missing = itk.missing_packages(*packages) if files else []
        if missing:
            raise PrepareError(
                f"--input {folder}: {len(files)} files such as {files[0].name} need {' and '.join(missing)}: "
                f"{itk.INSTALL}"
            )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan prepare", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
