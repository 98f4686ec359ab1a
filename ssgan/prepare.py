"""`ssgan prepare`: a folder of scans (NIfTI, NRRD, MetaImage, DICOM) -> a checked, normalised data set.

Every file that is not used is printed with its reason and recorded in dataset.json. After an interruption the same
command continues where it stopped.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.config.fields import to_triple
from ssgan.config.network import MAX_BASE, MIN_BASE, nearest_sizes, plan_levels
from ssgan.data.axes import ARRAY_AXES, axis_names, shape_option
from ssgan.data.dataset import VolumeDataset
from ssgan.data.labels import read_labels
from ssgan.data.preparation import FORMATS, PrepareError, common_spacing, find_input, find_sources, prepare
from ssgan.data.preprocessing import Recipe
from ssgan.data.recipes import CT_WINDOW, RECIPES
from ssgan.data.workers import run_in_order
from ssgan.data.writer import check_destination
from ssgan.utils.cores import usable_cores
from ssgan.utils.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", type=Path, required=True, help=f"folder that is searched, with all below it, for any {FORMATS}")
    add("--out", type=Path, required=True, help="folder of the data set to write")
    add(
        "--shape", type=int, nargs=3, required=True, metavar=("X", "Y", "Z"),
        help="voxels towards the patient's right, front and head (RAS+)",
    )  # fmt: skip
    add(
        "--spacing", type=float, nargs=3, metavar=("X", "Y", "Z"),
        help="voxel size in mm (default: the recipe's, or the volumes' own, or their median)",
    )  # fmt: skip
    add(
        "--recipe", choices=tuple(RECIPES), default="mri",
        help="mri scales intensities by percentiles, ct by a window; coca and adni take those data sets as downloaded",
    )  # fmt: skip
    add(
        "--window", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help=f"intensity window in HU, with --recipe ct or coca (default for ct {CT_WINDOW}, for coca "
        f"{RECIPES['coca'].window})",
    )  # fmt: skip
    add("--slice-axis", choices=tuple(ARRAY_AXES), default="axial", help="plane of the 2D slices (default axial)")
    add("--labels", type=Path, help="table (CSV, or BIDS participants.tsv) with the columns file or subject, and class")
    add(
        "--strict",
        action="store_true",
        help="stop at the first file that cannot be used, or whose header contradicts itself",
    )
    add("--overwrite", action="store_true", help="replace a data set at --out")
    add("--restart", action="store_true", help="delete an unfinished run for --out and begin again")
    add("--workers", type=int, default=usable_cores(), help="processes that read files (default: one per CPU)")
    add("--time-limit", type=float, default=600.0, metavar="S", help="seconds allowed for one volume (default 600)")


def run(args: argparse.Namespace) -> int:
    window = _check(args)
    defaults = RECIPES[args.recipe]
    shape = to_triple(tuple(args.shape), "--shape", "X Y Z")
    _check_sizes(shape)
    array_shape = Recipe(args.recipe, shape, None, args.slice_axis).array_shape
    plan_levels(array_shape, axis_names(args.slice_axis), "choose another --shape")  # before the work
    found = find_input(args.input)
    imap = functools.partial(run_in_order, workers=args.workers, limit=args.time_limit)
    spacing = tuple(args.spacing) if args.spacing else defaults.spacing(shape)
    sources = find_sources(found, args.input, imap, need_spacing=spacing is None)
    recipe = Recipe(args.recipe, shape, spacing or common_spacing(sources), args.slice_axis, window)
    labels = read_labels(args.labels, [s.name for s in sources], args.strict) if args.labels else None
    dataset = prepare(
        sources, args.input, args.out, recipe, labels, imap=imap, strict=args.strict, overwrite=args.overwrite,
        restart=args.restart,
    )  # fmt: skip
    _report(dataset, args.out)
    return 0


def _check(args: argparse.Namespace) -> tuple[float, float]:
    """Raises UserError for arguments that are wrong whatever the files are; returns the intensity window in HU."""
    check_destination(args.out, args.overwrite)
    default = RECIPES[args.recipe].window
    if args.window is not None and default is None:
        raise PrepareError(f"--window: only with --recipe ct or coca; MR intensities have no unit ({args.recipe})")
    low, high = args.window or default or CT_WINDOW
    if not -math.inf < low < high < math.inf:
        raise PrepareError(f"--window: expected LOW below HIGH; got {low:g} {high:g}")
    if args.spacing is not None and not all(0 < s < math.inf for s in args.spacing):
        raise PrepareError(f"--spacing: expected millimetres above 0; got {args.spacing}")
    if args.workers < 1:
        raise PrepareError(f"--workers: expected at least 1; got {args.workers}")
    if not args.time_limit > 0:
        raise PrepareError(f"--time-limit: expected seconds above 0; got {args.time_limit:g}")
    return low, high


def _check_sizes(shape: Sequence[int]) -> None:
    """Raises PrepareError where an axis of --shape has a size that no network can have."""
    sizes = {axis: (n, nearest_sizes(n)) for axis, n in zip("XYZ", shape, strict=True) if n > 0}
    bad = {axis: (n, near) for axis, (n, near) in sizes.items() if n not in near}
    if bad:
        raise PrepareError(
            f"--shape {' '.join(map(str, shape))}: expected sizes of {MIN_BASE} to {MAX_BASE} times a power of two; "
            f"got {', '.join(f'{axis} {n}' for axis, (n, _) in bad.items())}; the nearest that fit are "
            f"{', '.join(axis + ' ' + ' or '.join(map(str, near)) for axis, (_, near) in bad.items())}"
        )


def _report(dataset: VolumeDataset, out: Path) -> None:
    info = dataset.info
    warned = sum(bool(r["warnings"]) for r in dataset.records)
    print(f"{len(dataset)} volumes prepared ({warned} with a warning), {len(dataset.skipped)} skipped: {out}")
    if info.classes:
        print(
            "classes " + ", ".join(f"{name}: {n}" for name, n in zip(info.classes, dataset.class_counts, strict=True))
        )
    x, y, z = info.spacing
    own = RECIPES[info.recipe].window is None
    scale = "medians of the volumes, of which each has its own" if own else "the window of all volumes"
    print(
        f"shape {shape_option(info.shape, info.slice_axis)} (arrays D, H, W: {info.shape}), "
        f"spacing {x:g} x {y:g} x {z:g} mm, "
        f"intensity {info.intensity_low:g} .. {info.intensity_high:g} ({scale}) -> -1 .. 1"
    )
    print(f"look at {out / 'contact_sheet.png'}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan prepare", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
