"""`ssgan generate`: volumes of a trained run as NIfTI, PNG and GIF.

    python -m ssgan.generate --run RUN --seeds 0-15,20 --out DIR [--truncation 0.7] [--class NAME|NUMBER|all]

The latent of a seed depends on the seed alone, not on the others, on the class or on --batch.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from ssgan.config.training import TrainConfig
from ssgan.data.dataset import DatasetInfo, to_axial, to_nifti
from ssgan.models.networks import Generator
from ssgan.models.sampling import class_mean, class_shares, latents, synthesise
from ssgan.runs import checkpoint
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import UserError, run_command
from ssgan.utils.files import atomic_path, read_json, write_json_atomic
from ssgan.utils.pictures import contact_sheet, save_gif, slice_grid, three_plane_grid

MAX_SEED = 2**32 - 1
RECORD = "generate.json"


class GenerateError(UserError):
    """A bad argument of `generate`, or a run or output folder that does not serve."""


def parse_seeds(text: str) -> list[int]:
    """ "0-15,20" -> [0, ..., 15, 20]. Raises GenerateError for anything else, and for a seed named twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise GenerateError(
                f"--seeds: expected numbers and ranges such as 0-15,20; got {part.strip()!r} in {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise GenerateError(f"--seeds: expected a rising range within 0..{MAX_SEED}; got {part.strip()!r}")
        if last - first >= 1_000_000:
            raise GenerateError(f"--seeds: {part.strip()!r} asks for {last - first + 1} volumes; a million is the most")
        seeds += range(first, last + 1)
    twice = sorted({s for s in seeds if seeds.count(s) > 1}) if len(seeds) != len(set(seeds)) else []
    if twice:
        raise GenerateError(f"--seeds: {', '.join(map(str, twice[:5]))} named more than once in {text!r}")
    return seeds


def load_generator(run: Path, file: Path | None) -> tuple[Generator, checkpoint.CheckpointMeta, DatasetInfo, Path]:
    """G_ema of a run's last checkpoint, or of `file`, on the CPU; where it stands and the data set's geometry.

    Raises:
        GenerateError, CheckpointError: no such run, no checkpoint in it yet, or a checkpoint that does not serve.
    """
    if not (run / "config.json").is_file():
        raise GenerateError(f"--run {run} is not a run's folder (no config.json); give the --out of `ssgan train`")
    record = read_json(run / "config.json")
    cfg, info = TrainConfig.from_json(record["config"]), DatasetInfo.from_json(record["data"]["info"])
    path = file
    if path is None:
        found = checkpoint.list_checkpoints(run / "checkpoints")
        if not found:
            raise GenerateError(f"--run {run} has no checkpoint yet; train it further (`ssgan train --out {run}`)")
        path = found[-1]
    tensors, meta = checkpoint.load(path)
    G = Generator(cfg.network.flat() if meta.stage == "2d" else cfg.network)
    checkpoint.load_module(G, "G_ema", tensors, str(path))
    return G.requires_grad_(False), meta, info, path


def class_names(run: Path, classes: int) -> list[str]:
    """Names of a run's classes by number, as its data set called them; the numbers where it named none.

    Raises:
        GenerateError: the record names another number of classes than the networks have.
    """
    names = read_json(run / "config.json")["data"]["info"].get("classes") or [str(i) for i in range(classes)]
    if len(names) != classes:
        raise GenerateError(
            f"--run {run}: its config.json names {len(names)} classes, its networks have {classes}; restore config.json"
        )
    return [str(name) for name in names]


def class_labels(run: Path, G: Generator, count: int) -> Tensor | None:
    """(count,) class numbers in the shares of the run's data set, None for networks without classes."""
    classes = G.cfg.classes
    counts = read_json(run / "config.json")["data"].get("class_counts") or [1] * classes
    return class_shares(counts, count) if classes else None


def parse_class(text: str | None, names: list[str], run: Path) -> list[int | None]:
    """--class as class numbers, [None] for networks without classes. A name goes before a number that reads the same.

    Raises:
        GenerateError: no such class, a class asked of networks without, or none of networks with.
    """
    if not names:
        if text is not None:
            raise GenerateError(f"--class {text}: --run {run} was trained without classes; leave --class out")
        return [None]
    if text == "all":
        return list(range(len(names)))
    listed = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))
    if text is None:
        raise GenerateError(f"--class: --run {run} was trained with classes; give one of {listed}, or all")
    if text in names:
        return [names.index(text)]
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < len(names):
        return [int(text)]
    raise GenerateError(f"--class: expected one of {listed}, or all; got {text!r}")


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
