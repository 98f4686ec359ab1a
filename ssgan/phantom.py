"""`ssgan phantom`: makes a data set of random ellipsoid heads, to try everything without data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssconv.parser import Parser
from ssgan.config.fields import to_triple
from ssgan.config.network import plan_levels
from ssgan.data.axes import axis_names, shape_option
from ssgan.data.phantom import write_phantom_dataset
from ssgan.data.writer import CONTACT_SHEET_VOLUMES
from ssgan.utils.errors import UserError, run_command
from ssgan.utils.pictures import contact_sheet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set to write")
    parser.add_argument("--count", type=int, default=256, help="number of heads (default 256)")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(16, 24, 16), metavar=("X", "Y", "Z"),
        help="voxels towards the head's right, front and top (default 16 24 16)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default 0)")
    parser.add_argument(
        "--masks", action="store_true", help="write the heads' label maps too: grey matter, white matter, ventricles"
    )


def run(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise UserError(f"--seed: expected 0 or more; got {args.seed}")
    shape = to_triple(tuple(args.shape), "--shape", "X Y Z")[::-1]
    plan_levels(shape, axis_names("axial"), "choose another --shape")  # refuses a shape that no network accepts
    dataset = write_phantom_dataset(args.out, args.count, shape, args.seed, args.masks)
    shown = np.array(dataset.volumes[:CONTACT_SHEET_VOLUMES])
    names = [f"phantom {i}" for i in range(len(shown))]
    masks = None if dataset.masks is None else np.array(dataset.masks[:CONTACT_SHEET_VOLUMES])
    sheet = contact_sheet(shown, names, args.out / "contact_sheet.png", spacing=dataset.info.spacing, masks=masks)
    print(f"{len(dataset)} phantoms of shape {shape_option(dataset.info.shape)} in {args.out}; look at {sheet}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan phantom", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
