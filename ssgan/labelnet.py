"""`ssgan labelnet`: trains a small 3D classifier of a data set's classes, for the features of `ssgan evaluate`.

python -m ssgan.labelnet --data DATASET --out FILE.safetensors [--steps 300] [--seed 0]
python -m ssgan.evaluate ... --extractor FILE.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssconv.parser import Parser
from ssgan.data.dataset import VolumeDataset
from ssgan.metrics import own_networks
from ssgan.metrics.extractors.labels import train_label_network
from ssgan.utils.cores import use_threads
from ssgan.utils.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own_networks.add_arguments(
        parser, "a data set with classes (`ssgan prepare --labels`)", "batches of about 16 volumes"
    )


def run(args: argparse.Namespace) -> int:
    use_threads()
    own_networks.check_arguments(args)
    data = VolumeDataset(args.data)
    if data.labels is None:
        raise UserError(f"--data {args.data} has no classes; prepare it with --labels CSV")
    network, record = train_label_network(data.volumes, data.labels, data.info.classes, args.steps, args.seed)
    if record.accuracy <= record.chance:
        print("warning: no better than chance; this network's features do not tell the classes apart", file=sys.stderr)
    own_networks.save_network(args.out, network, record)
    print(f"{args.out}: ssgan evaluate --extractor {args.out} ...")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan labelnet", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
