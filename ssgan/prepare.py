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
from ssgan.data.axes import ARRAY_AXES, axis_names
from ssgan.data.labels import read_labels
from ssgan.data.mask_names import parse_names
from ssgan.data.masks import ENDINGS, load_masks
from ssgan.data.preparation import FORMATS, PrepareError, common_spacing, describe, find_input, find_sources, prepare
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
        "--masks", metavar="DIR|PATTERN|TABLE",
        help="label maps of the volumes, on the grids of their images (NIfTI, NRRD, MetaImage): a folder, where a mask "
        f"has its volume's path or name, also with {', '.join(ENDINGS)} behind it or without nnU-Net's _0000; a "
        "pattern such as 'labels/{name}.nii.gz' ({dir}: the volume's folder), relative to --input; or a table with the "
        "columns file or subject, and mask. Each class is resampled linearly, as the image is, and a voxel gets the "
        "class with the largest value",
    )  # fmt: skip
    add("--masks-optional", action="store_true", help="keep volumes without a mask (default: skip them)")
    add(
        "--mask-names", metavar="1=NAME,2=NAME",
        help="names of the masks' values (default: those of a Decathlon or nnU-Net dataset.json beside or above the "
        "masks, else the values)",
    )  # fmt: skip
    add(
        "--strict",
        action="store_true",
        help="stop at the first file that cannot be used, or whose header contradicts itself, or empty mask",
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
    sources, masks = find_sources(found, args.input, imap, need_spacing=spacing is None), None
    if args.masks is not None:
        masks, sources = load_masks(
            args.masks, sources, args.input, imap, optional=args.masks_optional, strict=args.strict,
            names=None if args.mask_names is None else parse_names(args.mask_names),
        )  # fmt: skip
    recipe = Recipe(args.recipe, shape, spacing or common_spacing(sources), args.slice_axis, window)
    labels = read_labels(args.labels, [s.name for s in sources], args.strict) if args.labels else None
    dataset = prepare(
        sources, args.input, args.out, recipe, labels, imap=imap, masks=masks, strict=args.strict,
        overwrite=args.overwrite, restart=args.restart,
    )  # fmt: skip
    print("\n".join(describe(dataset)))
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
    for option, value in (("--masks-optional", args.masks_optional), ("--mask-names", args.mask_names)):
        if value and args.masks is None:
            raise PrepareError(f"{option}: only with --masks")
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan prepare", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
