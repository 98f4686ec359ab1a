"""`ssgan export`: writes the networks of a run for other programs.

python -m ssgan.export --run RUN --out BUNDLE --bundle        a MONAI bundle of the generator
python -m ssgan.export --run RUN --out FOLDER --pretrained    generator/ and discriminator/, for from_pretrained
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.adapters.monai_bundle import write_bundle
from ssgan.runs.generator import CHECKPOINT_HELP
from ssgan.runs.pretrained import load_networks
from ssgan.utils.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="a run's folder (--out of train)")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, new or empty")
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP)
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument(
        "--bundle", action="store_true", help="a MONAI bundle of the generator, for `python -m monai.bundle run`"
    )
    form.add_argument(
        "--pretrained", action="store_true",
        help="generator and discriminator, each as config.json and model.safetensors, for `from_pretrained`",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.out.exists() and not (args.out.is_dir() and not any(args.out.iterdir())):
        raise UserError(f"--out {args.out} exists and is not an empty folder; give a new name")
    G, D = load_networks(args.run, args.checkpoint)
    if args.bundle:
        write_bundle(G, args.out, args.run.resolve().name)
        print(f"wrote {args.out}; generate with it (needs monai and fire):")
        print(f"  python -m monai.bundle run --config_file {args.out}/configs/inference.json --bundle_root {args.out}")
        return 0
    G.save_pretrained(args.out / "generator")
    D.save_pretrained(args.out / "discriminator")
    print(f'wrote {args.out}; PretrainedGenerator.from_pretrained("{args.out}/generator") reads the generator')
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan export", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
