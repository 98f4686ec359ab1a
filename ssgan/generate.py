"""`ssgan generate`: writes volumes of a trained run as NIfTI, PNG and GIF; with their masks, if it was trained on any.

    python -m ssgan.generate --run RUN --seeds 0-15,20 --out DIR [--truncation 0.7] [--class NAME|NUMBER|all]

Of a run with masks, seedN_seg.nii.gz is the mask of seedN.nii.gz, and dataset.json lists all pairs in the folder for
nnU-Net and MONAI. The latent of a seed depends on the seed alone, not on the other seeds, the class or --batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssconv.parser import Parser
from ssgan.runs.datalist import DATALIST, nnunet_obstacle, write_datalist
from ssgan.runs.generator import CHECKPOINT_HELP, load_generator, parse_class, parse_seeds
from ssgan.runs.samples import RECORD, SampleOptions, check_output_folder, write_samples
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import run_command
from ssgan.utils.files import write_json_atomic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="a run's folder (--out of train)")
    parser.add_argument("--seeds", required=True, help="numbers and ranges, such as 0-15,20; one volume each")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the volumes; files of the same seed are replaced"
    )
    parser.add_argument(
        "--truncation", type=float, default=1.0, help="0 to 1: below 1 more typical, less varied (default 1)"
    )
    parser.add_argument(
        "--class", dest="class_", metavar="CLASS", help="name or number of a class of the run's data set, or all"
    )
    parser.add_argument(
        "--truncation-centre", choices=("class", "all"), default="class",
        help="the mean that truncation moves towards: of the class, or of all classes (default class)",
    )  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help=CHECKPOINT_HELP)
    parser.add_argument(
        "--noise", choices=("random", "const", "none"), default="const",
        help="noise inputs: const is the same for every volume, random is drawn from each seed (default const)",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=int, default=4,
        help="volumes at a time (default 4); always 1 with --noise random. Another batch changes a seed's volume by "
        "rounding: about a millionth of its range",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")


def run(args: argparse.Namespace) -> int:
    seeds = parse_seeds(args.seeds)
    options = SampleOptions(args.truncation, args.truncation_centre, args.noise, args.batch)
    check_output_folder(args.out)
    device = pick_device(args.device)
    use_threads()
    source = load_generator(args.run, args.checkpoint)
    classes, names = parse_class(args.class_, source.config), source.config.class_names
    source.G.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"run": str(args.run), "checkpoint": str(source.path), "sha256": source.sha256}
    record |= {"seeds": args.seeds, "truncation": args.truncation, "noise": args.noise}
    if names:
        record |= {"classes": {str(i): names[i] for i in classes}, "truncation_centre": args.truncation_centre}
    write_json_atomic(args.out / RECORD, record)

    flat = source.meta.stage == "2d"
    if flat:
        print(f"{source.path.name} is of stage 2d: its network makes single slices, so only PNG images are written")
    for label in classes:
        montage, shown = write_samples(source, seeds, label, args.out, options)
        which = "all" if shown == len(seeds) else f"the first {shown}"
        of_class = "" if label is None else f" of class {names[label]}"
        print(f"{len(seeds)} {'slices' if flat else 'volumes'}{of_class} in {args.out}, {which} shown in {montage}")
    if source.G.cfg.mask_classes and not flat:
        count = write_datalist(args.out, source.info, args.run.resolve().name)
        print(f"{args.out / DATALIST}: {count} pairs of image and mask, for nnU-Net and MONAI")
        if obstacle := nnunet_obstacle(source.info):
            print(f"note: {obstacle}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan generate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
