"""`ssgan segmenter`: trains a small 3D U-Net on a data set's masks, with which `ssgan evaluate` tests generated pairs.

python -m ssgan.segmenter --data DATASET --out FILE.safetensors [--steps 300] [--seed 0]
python -m ssgan.evaluate ... --segmenter FILE.safetensors
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np

from ssconv.parser import Parser
from ssgan.data.axes import ARRAY_AXES
from ssgan.data.dataset import VolumeDataset
from ssgan.metrics import own_networks
from ssgan.metrics.segmenter import train_segmenter
from ssgan.utils.cores import use_threads
from ssgan.utils.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    own_networks.add_arguments(parser, "a data set with masks (`ssgan prepare --masks`)", "batches of two volumes")


def run(args: argparse.Namespace) -> int:
    use_threads()
    own_networks.check_arguments(args)
    data = VolumeDataset(args.data)
    if data.masks is None:
        raise UserError(f"--data {args.data} has no masks; prepare it with --masks DIR")
    info, chosen = data.info, np.flatnonzero(data.has_mask)
    spacing = [info.spacing[axis] for axis in ARRAY_AXES[info.slice_axis]]
    network, record = train_segmenter(
        data.volumes[chosen], data.masks[chosen], info.mask_names, spacing, info.content_hash, args.steps, args.seed
    )
    own_networks.save_network(args.out, network, record)
    print(f"{args.out}: ssgan evaluate --segmenter {args.out} ...")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan segmenter", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
