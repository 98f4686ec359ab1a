"""`ssgan report`: shows a run on one HTML page that opens offline, and writes its model card.

python -m ssgan.report --run RUN [--metrics RUN/metrics.json] [--data DATASET] [--picture FILE.png]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.reporting.content import ReportError, collect
from ssgan.reporting.html import MAX_PAGE, render_page
from ssgan.reporting.model_card import render_model_card
from ssgan.reporting.picture import draw_picture
from ssgan.runs.generator import CHECKPOINT_HELP
from ssgan.utils.errors import run_command
from ssgan.utils.files import atomic_write_bytes

MAX_COUNT = 64
CARD = "MODEL_CARD.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="a run's folder (--out of train)")
    parser.add_argument(
        "--metrics", type=Path, help="metrics.json of `ssgan evaluate` (default: RUN/metrics.json where there is one)"
    )
    parser.add_argument("--data", type=Path, help="the run's data set (default: where the run found it)")
    parser.add_argument("--out", type=Path, help="the page (default: RUN/report.html)")
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument("--picture", type=Path, help="also draw the run and its evaluation on one PNG")
    parser.add_argument("--count", type=int, default=8, help="real and generated volumes on the page (default 8)")


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.count <= MAX_COUNT:
        raise ReportError(f"--count: expected 1 to {MAX_COUNT}; got {args.count}")
    out = args.out or args.run / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise ReportError(f"--out {out}: expected a file name that ends in .html")
    if args.picture is not None and args.picture.suffix.lower() != ".png":
        raise ReportError(f"--picture {args.picture}: expected a file name that ends in .png")
    metrics = args.metrics
    if metrics is None and (args.run / "metrics.json").is_file():
        metrics = args.run / "metrics.json"
    content = collect(args.run, args.data, metrics, args.checkpoint, args.count)
    if args.picture is not None:
        print(f"{draw_picture(content, args.picture)}: the run and its evaluation on one picture")
    text = render_page(content).encode()
    atomic_write_bytes(out, text)
    atomic_write_bytes(args.run / CARD, render_model_card(content).encode())
    print(f"{out}: {len(text) / 2**20:.1f} MiB (never above {MAX_PAGE >> 20}); opens in any browser, without a network")
    print(f"{args.run / CARD}: the model card; parts in bold are yours to fill in")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan report", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
