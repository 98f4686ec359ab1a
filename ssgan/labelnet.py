"""`ssgan labelnet`: trains a small 3D classifier of a data set's classes, for the features of `ssgan evaluate`.

python -m ssgan.labelnet --data DATASET --out FILE.safetensors [--steps 300] [--seed 0]
python -m ssgan.evaluate ... --extractor FILE.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.extractors.labels import save_label_network, train_label_network
from ssgan.utils.cores import use_threads
from ssgan.utils.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="a data set with classes (`ssgan prepare --labels`)")
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .safetensors")
    parser.add_argument("--steps", type=int, default=300, help="batches of about 16 volumes (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and held-out volumes (default 0)")


def run(args: argparse.Namespace) -> int:
    use_threads()
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: expected a name that ends in .safetensors")
    if args.out.exists():
        raise UserError(f"--out {args.out} exists already; give a new name")
    if args.steps < 1 or args.seed < 0:
        raise UserError(f"--steps, --seed: expected at least 1 and at least 0; got {args.steps} and {args.seed}")
    data = VolumeDataset(args.data)
    if data.labels is None:
        raise UserError(f"--data {args.data} has no classes; prepare it with --labels CSV")
    network, record = train_label_network(data.volumes, data.labels, data.info.classes, args.steps, args.seed)
    if record.accuracy <= record.chance:
        print("warning: no better than chance; this network's features do not tell the classes apart", file=sys.stderr)
    save_label_network(args.out, network, record)
    print(f"{args.out}: ssgan evaluate --extractor {args.out} ...")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan labelnet", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
