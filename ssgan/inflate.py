"""`ssgan inflate`: a trained 2D checkpoint -> the start of a 3D GAN, with a report on every tensor.

    python -m ssgan.inflate --source RUN/checkpoints/2d-final.safetensors --out start3d.safetensors
    python -m ssgan.train --stage 3d --init start3d.safetensors --data DATASET --out RUN3D

`ssgan train` inflates by itself between its stages; this command is for looking at the step and for sharing its result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ssgan import checkpoint
from ssgan.config import PROFILES, TrainConfig
from ssgan.errors import UserError, run_command
from ssgan.files import read_json
from ssgan.gan import Gan


class InflateError(UserError):
    """A source that cannot be inflated, or an output that would overwrite something."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", type=Path, required=True, help="a checkpoint of a run's 2D stage (.safetensors)")
    parser.add_argument("--out", type=Path, required=True, help="the 3D checkpoint to write (.safetensors)")
    profiles = tuple(p for p in PROFILES if p != "none")
    parser.add_argument("--profile", choices=profiles, default="average", help="depth profile (default average)")
    parser.add_argument("--config", type=Path, help="the run's config.json (default: the one of the source's run)")


def run(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise InflateError(f"--out {args.out} exists already; give a new name")
    if args.out.suffix != ".safetensors":
        raise InflateError(f"--out {args.out}: expected a name ending in .safetensors")
    tensors, meta = checkpoint.load(args.source)
    if meta.stage != "2d":
        raise InflateError(f"--source {args.source} is of stage {meta.stage}; expected a checkpoint of stage 2d")
    config = args.config or args.source.resolve().parent.parent / "config.json"
    if not config.is_file():
        raise InflateError(f"--source {args.source} is not in a run's folder and has no config.json; give --config")
    cfg = TrainConfig.from_json(read_json(config)["config"])
    cpu = torch.device("cpu")
    flat, full = Gan(cfg, "2d", cpu), Gan(cfg, "3d", cpu)
    flat.load(tensors, meta, str(args.source))
    report = full.inflate_from(flat, args.profile, images=meta.images)
    start = checkpoint.CheckpointMeta("3d", 0, 0, meta.config_hash, full.images_before)
    checkpoint.save(args.out, full.state(), start)
    print(report)
    print(f"wrote {args.out}; start from it with `ssgan train --stage 3d --init {args.out}` and the same preset")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan inflate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command("inflate", run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
