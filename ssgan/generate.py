"""`ssgan generate`: volumes of a trained run as NIfTI, PNG and GIF.

    python -m ssgan.generate --run RUN --seeds 0-15,20 --out DIR [--truncation 0.7] [--class NAME|NUMBER|all]

The latent of a seed depends on the seed alone, not on the others, on the class or on --batch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from ssgan.data.axes import to_axial
from ssgan.data.dataset import DatasetInfo, to_nifti
from ssgan.models.networks import Generator
from ssgan.models.sampling import class_mean, latents, synthesise
from ssgan.runs import checkpoint
from ssgan.runs.generator import GenerateError, class_names, load_generator, parse_class, parse_seeds
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import run_command
from ssgan.utils.files import atomic_path, write_json_atomic
from ssgan.utils.pictures import contact_sheet, save_gif, slice_grid, three_plane_grid

RECORD = "generate.json"


def check_out(out: Path) -> None:
    """Raises GenerateError unless `out` is absent, empty or holds an earlier generation."""
    if out.exists() and not out.is_dir():
        raise GenerateError(f"--out {out} is a file; expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise GenerateError(
            f"--out {out} is not empty and was not made by `ssgan generate` (no {RECORD}); choose another folder"
        )


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
        "--truncation-centre",
        choices=("class", "all"),
        default="class",
        help="what truncation moves towards: the mean of the class, or of all classes (default class)",
    )
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint file (default: the run's last)")
    parser.add_argument(
        "--noise",
        choices=("random", "const", "none"),
        default="const",
        help="fine noise: const is the same for every volume, random is drawn from each seed (default const)",
    )
    parser.add_argument(
        "--batch", type=int, default=4, help="volumes at a time (default 4); random noise goes one by one"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def run(args: argparse.Namespace) -> int:
    seeds = parse_seeds(args.seeds)
    if not 0.0 <= args.truncation <= 1.0:
        raise GenerateError(f"--truncation: expected 0 to 1; got {args.truncation:g}")
    if args.batch < 1:
        raise GenerateError(f"--batch: expected at least 1; got {args.batch}")
    check_out(args.out)
    device = pick_device(args.device)
    G, meta, info, path = load_generator(args.run, args.checkpoint)
    names = class_names(args.run, G.cfg.classes) if G.cfg.classes else []
    classes = parse_class(args.class_, names, args.run)
    G.to(device)
    args.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"run": str(args.run), "checkpoint": str(path), "sha256": checkpoint.checksum(path)}
    record |= {"seeds": args.seeds, "truncation": args.truncation, "noise": args.noise}
    if names:
        record |= {"classes": {str(i): names[i] for i in classes}, "truncation_centre": args.truncation_centre}
    write_json_atomic(args.out / RECORD, record)

    if meta.stage == "2d":
        print(f"{path.name} is of stage 2d: its network makes single slices, so only PNG images are written")
    for number in classes:
        montage, shown = write_class(G, seeds, number, names, args, info, meta.stage)
        which = "all" if shown == len(seeds) else f"the first {shown}"
        of_class = "" if number is None else f" of class {names[number]}"
        what = "slices" if meta.stage == "2d" else "volumes"
        print(f"{len(seeds)} {what}{of_class} in {args.out}, {which} shown in {montage}")
    return 0


MAX_SHOWN = 64  # volumes in a montage


def write_class(
    G: Generator, seeds: list[int], number: int | None, names: list[str], args: argparse.Namespace,
    info: DatasetInfo, stage: str,
) -> tuple[Path, int]:  # fmt: skip
    """The files of all seeds of one class (None: of networks without classes), and their montage."""
    prefix = "" if number is None else f"class{number}-"
    centre = None
    if number is not None and args.truncation != 1.0 and args.truncation_centre == "class":
        centre = class_mean(G, number)
    shown: list[np.ndarray] = []
    batch = 1 if args.noise == "random" else args.batch
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        c = None if number is None else torch.full((len(part),), number)
        volumes = synthesise(
            G, latents(part, G.cfg.z_dim), batch=batch, truncation=args.truncation, noise=args.noise,
            noise_seed=part[0], c=c, centre=centre,
        )  # fmt: skip
        for seed, volume in zip(part, volumes, strict=True):
            write_one(volume, args.out, f"{prefix}seed{seed:04d}", info, stage)
        shown += list(volumes[: max(0, MAX_SHOWN - len(shown))])

    stack, labels = np.stack(shown), [f"seed {seed}" for seed in seeds[: len(shown)]]
    file = args.out / ("montage.png" if number is None else f"montage-class{number}.png")
    title = None if number is None else f"class {names[number]}"
    if stage == "2d":
        return slice_grid(stack[:, 0], file, title=title), len(shown)
    axial = to_axial(stack, info.slice_axis)
    return contact_sheet(axial, labels, file, spacing=info.spacing, title=title), len(shown)


def write_one(volume: np.ndarray, out: Path, name: str, info: DatasetInfo, stage: str) -> None:
    """The files of one seed; volume (D, H, W) in [-1, 1]."""
    if stage == "2d":
        slice_grid(volume, out / f"{name}.png")
        return
    with atomic_path(out / f"{name}.nii.gz") as temporary:
        nibabel.save(to_nifti(volume, info), temporary)
    axial = to_axial(volume, info.slice_axis)
    three_plane_grid(axial[None], out / f"{name}.png", spacing=info.spacing, title=name)
    save_gif(axial, out / f"{name}.gif", spacing=info.spacing)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan generate", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
