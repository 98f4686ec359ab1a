"""`ssgan latents`: explores the latent space of a trained run, and projects volumes into it.

    python -m ssgan.latents interpolate --run RUN --out DIR --seeds 0-3
    python -m ssgan.latents mix         --run RUN --out DIR --rows 0-3 --columns 4-7 --levels 0-1
    python -m ssgan.latents truncation  --run RUN --out DIR --seeds 0-3
    python -m ssgan.latents directions  --run RUN --out DIR
    python -m ssgan.latents volume      --run RUN --out DIR --seed 3 --mix-seed 4 --mix-levels 0-1 --move 1:+2
    python -m ssgan.latents project     --run RUN --out DIR --volume SCAN.nii.gz
    python -m ssgan.latents edit        --run RUN --out DIR --projection P.safetensors --directions D.safetensors

Each writes NIfTI volumes (the data set's affine and intensities), a PNG table and GIFs; the same arguments give the
same volumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.latent_space import subcommands
from ssgan.latent_space.files import LatentError, check_output_folder, write_record
from ssgan.latent_space.generator import open_latent_space
from ssgan.latent_space.projection import FEATURES, SPACES
from ssgan.latent_space.tables import listed, write_table
from ssgan.runs.generator import CHECKPOINT_HELP, MAX_SEED
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import run_command


def _within(kind: type, low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """Makes the type of an option: a number from low (above: not low itself) to high."""

    def parse(text: str) -> float:
        value = kind(text)
        if not low <= value <= high or (above and value == low):
            raise argparse.ArgumentTypeError(f"expected {'above ' if above else ''}{low} to {high}; got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    seed = _within(int, 0, MAX_SEED)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--run", type=Path, required=True, help="a run's folder (--out of train)")
        sub.add_argument("--out", type=Path, required=True, help="results folder; an earlier call's are replaced")
        sub.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP)
        sub.add_argument("--class", dest="class_", help="name or number, for a run that was trained on classes")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
        if name in ("interpolate", "mix", "directions", "volume"):
            share = _within(float, 0, 1)
            sub.add_argument("--truncation", type=share, default=1.0, help="of the seeds' w, 0 to 1 (default 1)")
        if name != "project":
            sub.add_argument("--noise", choices=("const", "none"), default="const", help="noise inputs (default const)")
        if name in ("directions", "edit"):
            sigma, steps = _within(float, 0, 100, above=True), _within(int, 2, 256)
            sub.add_argument("--sigma", type=sigma, default=3.0, help="standard deviations to either side (default 3)")
            sub.add_argument("--steps", type=steps, default=7, help="volumes per direction (default 7)")
        return sub

    sub = command("interpolate", "interpolate from seed to seed")
    sub.add_argument("--seeds", required=True, help="numbers and ranges, such as 0-3,7, in the order of the path")
    sub.add_argument("--steps", type=_within(int, 1, 256), default=8, help="from one seed to the next (default 8)")
    sub.add_argument("--space", choices=("z", "w"), default="z", help="z: great circles, w: straight lines (default z)")
    sub.add_argument("--loop", action="store_true", help="go back to the first seed")
    sub = command("mix", "take the styles of some levels from other seeds")
    sub.add_argument("--rows", required=True, help="seeds that are changed")
    sub.add_argument("--columns", required=True, help="seeds that the styles are taken from")
    sub.add_argument("--levels", help="such as 0-1; 0 is the coarsest (default: the coarser half)")
    sub = command("truncation", "sweep the truncation")
    sub.add_argument("--seeds", required=True, help="numbers and ranges, such as 0-3,7")
    values = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    sub.add_argument("--values", type=float, nargs="+", default=values, help=f"default {listed(values)}")
    sub = command("directions", "find the principal directions of w (GANSpace) and sweep along each")
    sub.add_argument("--components", type=_within(int, 1, 512), default=6, help="how many directions (default 6)")
    sub.add_argument("--samples", type=_within(int, 2, 10**7), default=10_000, help="samples of w (default 10000)")
    sub.add_argument("--sample-seed", type=seed, default=0, help="of the samples (default 0)")
    sub.add_argument("--seeds", help="volumes to start from (default: the mean w)")
    sub.add_argument("--levels", help="apply the directions to these levels only, such as 0-1")
    sub = command("volume", "make one volume of seeds, mixed styles and moves along the principal directions of w")
    sub.add_argument("--seed", type=seed, required=True, help="of the volume")
    sub.add_argument("--to-seed", type=seed, help="with --at: a seed that w goes towards, in a straight line")
    sub.add_argument("--at", type=_within(float, 0, 1), default=0.0, help="share of the way to --to-seed (default 0)")
    sub.add_argument("--mix-seed", type=seed, help="seed of the styles of --mix-levels")
    sub.add_argument("--mix-levels", help="such as 0-1; 0 is the coarsest")
    move = {"nargs": "+", "default": (), "metavar": "K:SD"}
    sub.add_argument("--move", **move, help="direction (from 1) and standard deviations, such as 1:+2 3:-0.5")
    sub = command("project", "find the w that makes a given volume; Ctrl-C saves, the same command goes on")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--volume", type=Path, help="a NIfTI, NRRD or MetaImage file, prepared as the data set was")
    source.add_argument("--index", type=int, help="a volume of the data set, counted from 0")
    sub.add_argument("--data", type=Path, help="with --index: the data set (default: the run's own)")
    sub.add_argument("--space", choices=SPACES, default="w", help="w+ has a style per layer: nearer, less editable")
    sub.add_argument("--steps", type=_within(int, 1, 10**6), default=500, help="default 500")
    sub.add_argument("--features", choices=FEATURES, default="discriminator", help="of the perceptual distance")
    sub.add_argument("--voxel-weight", type=float, default=1.0, help="of the mean squared voxel difference (default 1)")
    sub.add_argument("--noise", choices=("fit", "const"), default="fit", help="fit the noise inputs, or keep the run's")
    sub.add_argument("--rate", type=float, default=0.1, help="learning rate (default 0.1)")
    sub.add_argument("--seed", type=seed, default=0, help="of the search (default 0)")
    sub = command("edit", "move a projected volume along principal directions")
    sub.add_argument("--projection", type=Path, required=True, help="projection.safetensors of `project`")
    sub.add_argument("--directions", type=Path, required=True, help="directions.safetensors of `directions`")
    sub.add_argument("--components", default="1", help="numbers and ranges of directions, such as 1-3 (default 1)")
    sub.add_argument("--levels", help="apply the directions to these levels only, such as 0-1")


def run(args: argparse.Namespace) -> int:
    if args.command == "project" and args.data is not None and args.volume is not None:
        raise LatentError("--data: only with --index; --volume is a file by itself")
    earlier = check_output_folder(args.out, args.command)
    use_threads()
    space = open_latent_space(args.run, args.checkpoint, args.class_, pick_device(args.device))
    arguments = {name: value for name, value in vars(args).items() if name != "command"}
    if args.command == "project":
        entries, stopped = subcommands.project(args, space)
        write_record(args.out, args.command, arguments, space.source, entries)
        print(f"look at {args.out / 'projection.png'}")
        if stopped:
            print(f"stopped by {stopped.name}; saved in {args.out}; the same command goes on from there")
        return 128 + stopped if stopped else 0
    volumes = subcommands.TABLES[args.command](args, space)
    files = write_table(volumes, space, args.out, args.noise)
    if args.command == "directions":
        files.append(subcommands.DIRECTIONS_FILE)
    for name in set(earlier) - set(files):
        (args.out / name).unlink(missing_ok=True)
    write_record(args.out, args.command, arguments, space.source, {"title": volumes.title, "files": files})
    print(f"{sum(name.endswith('.nii.gz') for name in files)} volumes in {args.out}; look at its PNG and GIF")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan latents", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
