"""`ssgan evaluate`: measures how close generated volumes are to real ones, how varied, and whether they are copies.

Where both sides have masks, it measures those too.

python -m ssgan.evaluate --real DATASET|DIR --fake DATASET|DIR|RUN --out metrics.json [--held-out DATASET|DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssconv.parser import Parser
from ssgan.metrics.evaluation import INTERVALS, EvaluationOptions, draw_closest_pairs, evaluate
from ssgan.metrics.extractors import deepbet
from ssgan.metrics.extractors.choose import NAMES, make_extractor
from ssgan.metrics.masks import mask_table
from ssgan.metrics.registry import comparisons
from ssgan.metrics.segmenter import Segmenter
from ssgan.metrics.volume_sets import EvaluateError, load_held_out, load_sides
from ssgan.runs.config import is_run
from ssgan.runs.generator import CHECKPOINT_HELP
from ssgan.utils.cores import use_threads
from ssgan.utils.errors import run_command
from ssgan.utils.files import write_json_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--real", type=Path, required=True, help="training volumes: a data set or a folder of NIfTI")
    parser.add_argument("--fake", type=Path, required=True, help="generated volumes: a folder, a data set or a run")
    parser.add_argument("--checkpoint", type=Path, help=f"with --fake RUN: {CHECKPOINT_HELP}")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; closest pairs go beside it as a PNG")
    parser.add_argument("--held-out", type=Path, help="real volumes not trained on, for the check for copies")
    parser.add_argument(
        "--extractor", metavar="NAME|FILE",
        help=f"the features' network: {', '.join(NAMES)}, or a file of `ssgan labelnet` (default random3d, and deepbet "
        "beside it where that is installed)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path,
        help="the extractor's published weights, a file that you downloaded (discriminator: a run or checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--segmenter", type=Path, metavar="FILE",
        help="of `ssgan segmenter`: segments the generated images, and compares the result with their masks",
    )  # fmt: skip
    parser.add_argument("--count", type=int, help="volumes per side (default: as many as both sides allow)")
    parser.add_argument("--repeats", type=int, default=50, help="resamples for the intervals (default 50)")
    parser.add_argument(
        "--interval", choices=INTERVALS, default="half",
        help="half: random halves without replacement (default); bootstrap: with replacement, where that is valid",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="chooses volumes and resamples (default 0)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next evaluation")
    names = ", ".join(metric.name for _, metrics in comparisons() for metric in metrics)
    parser.epilog = f"Metrics: {names}; and distances to the nearest training volumes, for copies."


def check_files(args: argparse.Namespace) -> None:
    """Checks the files that the arguments name before the work begins. Raises EvaluateError."""
    if args.out.suffix != ".json" or args.out.is_dir():
        raise EvaluateError(f"--out {args.out}: expected a file name that ends in .json")
    for option, folder in (("--out", args.out.parent), ("--cache", args.cache)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise EvaluateError(f"{option}: {folder} is a file; expected a folder")
    if args.checkpoint is not None and not is_run(args.fake):
        raise EvaluateError(f"--checkpoint {args.checkpoint}: --fake {args.fake} is no run; leave --checkpoint out")


def run(args: argparse.Namespace) -> int:
    use_threads()
    options = EvaluationOptions(args.count, args.repeats, args.interval, args.seed, args.cache)
    check_files(args)
    extractor = make_extractor(args.extractor or "random3d", args.weights)
    beside = make_extractor("deepbet", None) if args.extractor is None and deepbet.is_installed() else None
    segmenter = Segmenter(args.segmenter) if args.segmenter else None
    real, fake = load_sides(args.real, args.fake, args.count, args.checkpoint)
    held = load_held_out(args.held_out, real, fake) if args.held_out else None
    record = evaluate(real, fake, held, extractor, options, beside, segmenter)
    picture = draw_closest_pairs(real, fake, record["memorisation"], args.out.with_suffix(".pairs.png"))
    record["memorisation"]["picture"] = picture.name
    write_json_atomic(args.out, record)
    count, name = record["count"], record["extractor"]["name"] + (f", and of {beside.name} beside" if beside else "")
    print(f"{count} generated against {count} real volumes, features of {name}; floor: {count} other real volumes")
    for name, row in record["metrics"].items():
        better = "better near the floor" if row["better"] == "as floor" else f"{row['better']} is better"
        print(f"{name:<17} {row['value']:>10g}  floor {row['floor']:>10g}  {better:<21}  95 % {row['interval']}")
    if "masks" in record:
        print("\n".join(mask_lines(record["masks"])))
    elif real.masks is not None or fake.masks is not None:
        print(f"masks: not compared, as {'--fake' if real.masks is not None else '--real'} has none")
    ratio = record["memorisation"]["voxels"]["ratio"]
    print(f"copies: voxel ratio {ratio:g} (about 1 without copies); {args.out}, {picture}")
    return 0


def mask_lines(found: dict[str, Any]) -> list[str]:
    """The table of the masks' figures as text."""
    table = mask_table(found)
    lines = [[name[:12] for name, *_ in (("",), *table.rows)]]
    lines += [[column, *(row[i] for row in table.rows)] for i, column in enumerate(table.columns, 1)]
    widths = [max(map(len, column)) for column in lines]
    rows = zip(*lines, strict=True)
    return [
        table.caption,
        *(
            "  ".join(f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths)))
            for row in rows
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan evaluate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
