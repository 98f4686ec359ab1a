"""`ssgan inflate`: turns a trained 2D GAN into the start of a 3D one, with a report on every tensor.

    python -m ssgan.inflate --source RUN/checkpoints/2d-final.safetensors --out start3d.safetensors
    python -m ssgan.inflate --source stylegan2.pkl --depth 64 --out start3d.safetensors
    python -m ssgan.train --stage 3d --init start3d.safetensors --data DATASET --out RUN3D

The source is a checkpoint of a run's 2D stage or a pickle of NVIDIA's StyleGAN2-ADA (PyTorch), whose code is not run
(`ssgan.models.stylegan2_pickle`). With a dense source, `--arch` makes 3D networks of another architecture from a
selection of its weights (`ssgan.models.dense_to_split`). The networks' widths are the source's; `ssgan train --init`
takes them from the written file.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.config.network import ARCHITECTURES, PROFILES
from ssgan.data.axes import shape_option
from ssgan.models import stylegan2
from ssgan.runs import checkpoint
from ssgan.runs.inflation import InflateError, inflate_source, load_pickle_source, load_run_source, target_network
from ssgan.training.start_file import start_meta
from ssgan.utils.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source", type=Path, required=True,
        help="a checkpoint of a run's 2D stage (.safetensors), or a StyleGAN2-ADA (PyTorch) pickle (.pkl)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, help="the 3D checkpoint to write (.safetensors)")
    profiles = tuple(p for p in PROFILES if p != "none")
    parser.add_argument("--profile", choices=profiles, default="average", help="depth profile (default average)")
    parser.add_argument(
        "--arch", choices=tuple(ARCHITECTURES),
        help="architecture of the 3D networks, from a dense source (default: a run's own; split_depth for a pickle)",
    )  # fmt: skip
    parser.add_argument(
        "--arch-d", choices=tuple(ARCHITECTURES),
        help="another architecture for the 3D discriminator (default: --arch; a run's own without --arch)",
    )  # fmt: skip
    parser.add_argument(
        "--dense-levels", type=int, nargs="+", metavar="LEVEL",
        help="with --arch: levels of the 3D networks that stay dense, 0 the coarsest",
    )  # fmt: skip
    parser.add_argument(
        "--mask-classes", type=int, metavar="K",
        help="add channels for masks of K classes, background included, to a source of intensities alone",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="the run's config.json (default: the one of the source's run)")
    parser.add_argument("--depth", type=int, help="depth of the volumes, for a pickle (default: the images' height)")
    parser.add_argument(
        "--channels", choices=stylegan2.CHANNELS,
        help="channels of a pickle's images: grey makes one of RGB, as volumes have (default grey)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise InflateError(f"--out {args.out} exists already; give a new name")
    if args.out.suffix != ".safetensors":
        raise InflateError(f"--out {args.out}: expected a name ending in .safetensors")
    if args.source.suffix == ".safetensors":
        for name in ("depth", "channels"):
            if getattr(args, name) is not None:
                raise InflateError(f"--{name}: is for pickles; a checkpoint of a run has its own; leave it out")
        source = load_run_source(args.source, args.config)
    else:
        if args.config is not None:
            raise InflateError("--config: is for checkpoints of a run; a pickle describes its own networks")
        source = load_pickle_source(args.source, args.channels or "grey", args.depth)
    levels = None if args.dense_levels is None else tuple(args.dense_levels)
    network = target_network(source, args.arch, args.arch_d, levels, args.mask_classes)
    tensors, reports = inflate_source(source, network, args.profile)
    checkpoint.save(args.out, tensors, start_meta(network, source.images), dataclasses.asdict(network))
    print(f"profile {args.profile}\n\n" + "\n\n".join(f"{name}\n{report}" for name, report in reports.items()) + "\n")
    given = "" if network.arch == "split_depth" else f" --arch {network.arch}"
    given += f" --arch-d {network.arch_d}" if network.arch_d else ""
    given += f" --dense-levels {' '.join(map(str, network.dense_levels))}" if network.dense_levels else ""
    masks = f" and --masks of {network.mask_classes} classes" if network.mask_classes else ""
    print(f"wrote {args.out}; prepare data sets for it with --shape {shape_option(network.shape)}{masks}, and start by")
    print(f"  ssgan train --stage 3d --init {args.out}{given} --data DATASET --out RUN --preset NAME")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan inflate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
