"""`ssgan summary`: counts the parameters of generator and discriminator, per architecture or layer by layer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ssconv.parser import Parser
from ssgan.config.fields import to_triple
from ssgan.config.network import ARCHITECTURES, plan_levels
from ssgan.config.presets import PRESETS, preset
from ssgan.data.axes import axis_names, shape_option
from ssgan.models.parameters import build, layer_rows, parameter_count, share_table
from ssgan.utils.errors import ConfigError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="hippocampus", help=f"one of {', '.join(PRESETS)} (default hippocampus)")
    choices = ("all", *ARCHITECTURES)
    parser.add_argument("--arch", choices=choices, default="all", help="layers of one architecture; default: a table")
    parser.add_argument(
        "--arch-d", choices=tuple(ARCHITECTURES), help="with --arch NAME: another one for the discriminator"
    )
    parser.add_argument(
        "--dense-levels", type=int, nargs="+", default=(), metavar="LEVEL", help="with --arch NAME: as of `ssgan train`"
    )
    parser.add_argument("--shape", type=int, nargs=3, metavar=("X", "Y", "Z"), help="voxels; default: the preset's")
    parser.add_argument("--flat", action="store_true", help="with --arch NAME: the 2D networks of the first stage")


def run(args: argparse.Namespace) -> int:
    shape = None if args.shape is None else to_triple(tuple(args.shape), "--shape", "X Y Z")[::-1]
    if shape is not None:
        plan_levels(shape, axis_names("axial"), "choose another --shape")
    chosen = preset(args.preset)
    if args.arch == "all":
        if args.arch_d is not None:
            raise ConfigError(f"--arch-d {args.arch_d}: needs --arch, the generator's architecture")
        if args.dense_levels:
            raise ConfigError("--dense-levels: needs --arch, the architecture of the other levels")
        cfg = chosen.network(shape)
        print(
            f"preset {args.preset}: volumes X Y Z = {shape_option(cfg.shape)}, widths {cfg.widths} from coarse to fine"
        )
        print(f"{'architecture':<12} {'generator':>12} {'discriminator':>14} {'together':>12} {'of dense':>9}")
        for arch, g, d, share in share_table(args.preset, shape):
            print(f"{arch:<12} {g:>12,} {d:>14,} {g + d:>12,} {share:>8.1%}")
        return 0
    cfg = chosen.network(shape).with_arch(args.arch, args.arch_d, args.dense_levels)
    cfg = cfg.flat() if args.flat else cfg
    nets = build(cfg)
    rows = [row for net, prefix in zip(nets, ("G", "D"), strict=True) for row in layer_rows(net, prefix)]
    width = max(len(name) for name, _, _ in rows)
    print(f"preset {args.preset}, {cfg.arch_name}: volumes X Y Z = {shape_option(cfg.shape)}, widths {cfg.widths}")
    for name, shapes, count in rows:
        print(f"{name:<{width}} {count:>11,}  {shapes}")
    for net, name in zip(nets, ("generator", "discriminator"), strict=True):
        print(f"{name:<{width}} {parameter_count(net):>11,}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan summary", description=__doc__)
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
