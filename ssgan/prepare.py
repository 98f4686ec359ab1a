"""`ssgan prepare`: a folder of NIfTI files -> a checked, normalised data set, with a verdict on every file."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.config import plan_levels
from ssgan.data.dataset import ARRAY_AXES, DatasetWriter, VolumeDataset, check_destination, to_axial
from ssgan.data.labels import Labels, read_labels
from ssgan.data.nifti import VolumeError, find_files, header_spacing, load_nifti
from ssgan.data.preparation import CT_WINDOW, RECIPES, Recipe, prepare_volume
from ssgan.errors import UserError, run_command
from ssgan.images import contact_sheet

SHEET_VOLUMES = 48


class PrepareError(UserError):
    """The run of `prepare` cannot go on; the message says why and what to do."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, help="folder with .nii and .nii.gz files (searched below)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set to be made")
    parser.add_argument(
        "--shape", type=int, nargs=3, required=True, metavar=("X", "Y", "Z"), help="voxels along RAS+ axes"
    )
    parser.add_argument(
        "--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"), help="mm; default: the volumes' own, or their median"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="mri", help="intensity: MR percentiles or a CT window")
    parser.add_argument(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=f"HU, with --recipe ct (default {CT_WINDOW})"
    )
    parser.add_argument("--slice-axis", choices=tuple(ARRAY_AXES), default="axial", help="plane of the 2D slices")
    parser.add_argument("--labels", type=Path, help="CSV with a header: file or subject, class")
    parser.add_argument("--strict", action="store_true", help="stop at the first file that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set at --out")


def run(args: argparse.Namespace) -> int:
    check_destination(args.out, args.overwrite)
    files = _find(args.input)
    if args.window is not None and args.recipe != "ct":
        raise PrepareError("--window: only with --recipe ct; MR intensities have no unit")
    window = tuple(args.window or CT_WINDOW)
    if not -math.inf < window[0] < window[1] < math.inf:
        raise PrepareError(f"--window: expected LOW below HIGH; got {window[0]:g} {window[1]:g}")
    if args.spacing is not None and not all(0 < s < math.inf for s in args.spacing):
        raise PrepareError(f"--spacing: expected millimetres above 0; got {args.spacing}")
    recipe = Recipe(args.recipe, tuple(args.shape), args.spacing and tuple(args.spacing), args.slice_axis, window)
    plan_levels(recipe.array_shape)  # a shape that no network takes is refused before the work
    names = [str(f.relative_to(args.input)) for f in files]
    labels = read_labels(args.labels, names, args.strict) if args.labels else None
    dataset = prepare(files, args.input, args.out, recipe, labels, args.strict, args.overwrite)
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
    files: Sequence[Path],
    root: Path,
    out: Path,
    recipe: Recipe,
    labels: Labels | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> VolumeDataset:
    """Prepares `files` (below `root`) into a data set at `out`, printing a verdict on each that is not plainly good.

    Raises:
        PrepareError: no file can be used, or one cannot and strict is True; nothing is left at `out`.
        OSError: the disk is full, say; nothing is left at `out` and an earlier data set stays.
    """
    if recipe.spacing is None:
        recipe = Recipe(recipe.name, recipe.shape, common_spacing(files), recipe.slice_axis, recipe.window)
    skipped: list[dict[str, Any]] = []
    seen: dict[str, str] = {}
    with DatasetWriter(out, recipe.array_shape, overwrite) as writer:
        for note in labels.notes if labels is not None else ():
            print(f"labels   {note}")
        bar = tqdm(files, desc="preparing", unit="volume", disable=None)
        for path in bar:
            name = str(path.relative_to(root))
            try:
                if labels is not None and name in labels.missing:
                    raise VolumeError(labels.missing[name])
                volume = load_nifti(path)
                if volume.content_hash in seen:
                    raise VolumeError(f"the same voxels as {seen[volume.content_hash]}, which is kept")
                array, record = prepare_volume(volume, recipe)
            except VolumeError as error:
                if strict:
                    raise PrepareError(f"{path}: {error} (--strict stops at the first such file)") from error
                skipped.append({"file": name, "reason": str(error)})
                bar.write(f"skipped  {name}: {error}")
                continue
            record = {"source": name, "content_hash": volume.content_hash, **record}
            if labels is not None:
                record["class_label"] = labels.classes[name]
            for warning in record["warnings"]:
                bar.write(f"warning  {name}: {warning}")
            writer.add(array, record)
            seen[volume.content_hash] = name
        if not writer.count:
            raise PrepareError(f"{root}: none of its {len(files)} files can be used; the reasons stand above")
        affine = np.median([r["affine"] for r in writer.records], axis=0)
        spacing = np.diag(affine)[:3]
        _draw(writer, recipe, spacing)
        return writer.finish(
            spacing=spacing, affine=affine, slice_axis=recipe.slice_axis, recipe=recipe.name, skipped=skipped
        )


def _draw(writer: DatasetWriter, recipe: Recipe, spacing: np.ndarray) -> None:
    """The contact sheet of the first volumes, read back from the file that was just written."""
    shape = recipe.array_shape
    count = min(writer.count, SHEET_VOLUMES)
    volumes = writer.read(count)
    names = [r["source"].removesuffix(".gz").removesuffix(".nii") for r in writer.records[:count]]
    assert volumes.shape[1:] == shape
    path = writer.folder / "contact_sheet.png"
    contact_sheet(to_axial(volumes, recipe.slice_axis), names, path, spacing=tuple(float(s) for s in spacing))


def common_spacing(files: Sequence[Path]) -> tuple[float, float, float]:
    """The spacing (x, y, z) mm for volumes prepared without --spacing: their own where all agree, else the median.

    Files that cannot be read have no say; they get their verdict later.
    """
    found = []
    for path in files:
        try:
            found.append(header_spacing(path))
        except VolumeError:
            continue
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


def _find(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PrepareError(f"--input {folder} {what}; expected a folder with .nii or .nii.gz files")
    files, hidden = find_files(folder)
    if hidden:
        print(f"{len(hidden)} hidden files passed over, such as {hidden[0].name}")
    if not files:
        raise PrepareError(f"--input {folder} holds no .nii or .nii.gz file (folders below were searched too)")
    return files


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan prepare", description=__doc__)
    add_arguments(parser)
    return run_command("prepare", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
