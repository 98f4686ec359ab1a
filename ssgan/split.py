"""`ssgan split`: splits a data set into one to train on and one held out for `ssgan evaluate --held-out`.

The split is random, by a seed, but all volumes of a subject go to the same part: if one scan of a person were used for
training and another held out, generated copies would look like new volumes.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.data.dataset import VolumeDataset
from ssgan.data.split import SUBJECT, copy_part, split_indices
from ssgan.data.writer import check_destination
from ssgan.utils.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="a data set made by `ssgan prepare`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two data sets, OUT/train and OUT/held")
    parser.add_argument(
        "--hold-out",
        type=int,
        required=True,
        metavar="N",
        help="volumes to hold out, at least; subjects stay whole",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random split (default 0)")
    parser.add_argument(
        "--subject", default=SUBJECT, metavar="REGEX",
        help="volumes whose file names have the same first match are of one subject (default: BIDS and ADNI ids); '.^' "
        "matches nothing, so every volume is its own subject",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.seed < 0:
        raise UserError(f"--seed: expected 0 or more; got {args.seed}")
    try:
        re.compile(args.subject)
    except re.error as error:
        raise UserError(f"--subject {args.subject}: expected a regular expression; {error}") from None
    whole = VolumeDataset(args.data)
    names = [str(record["source"]) for record in whole.records]
    parts = dict(zip(("train", "held"), split_indices(names, args.hold_out, args.seed, args.subject), strict=True))
    for name in parts:
        check_destination(args.out / name, False)  # for both parts before one of them is written
    for name, indices in parts.items():
        print(f"{len(copy_part(whole, indices, args.out / name))} volumes: {args.out / name}")
    train, held = (shlex.quote(str(args.out / name)) for name in parts)
    print(f"train on --data {train}; then ssgan evaluate --real {train} --held-out {held}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan split", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
