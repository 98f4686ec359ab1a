"""`ssgan inflate`: a trained 2D GAN -> the start of a 3D one, with a report on every tensor.

    python -m ssgan.inflate --source RUN/checkpoints/2d-final.safetensors --out start3d.safetensors
    python -m ssgan.inflate --source stylegan2.pkl --depth 64 --out start3d.safetensors
    python -m ssgan.train --stage 3d --init start3d.safetensors --data DATASET --out RUN3D

The source is a checkpoint of a run's 2D stage or a pickle of NVIDIA's StyleGAN2-ADA (PyTorch), of which nothing is run
(`ssgan.models.stylegan2_pickle`). With a dense source, `--arch` makes the 3D networks of another architecture, from the
weights that it keeps (`ssgan.models.dense_to_split`). The networks' widths come from the source; `--init` takes them
from the written file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ssgan.config.network import ARCHITECTURES, PROFILES, NetworkConfig, plan_levels
from ssgan.config.training import TrainConfig
from ssgan.models import stylegan2
from ssgan.models.dense_to_split import select_weights
from ssgan.models.inflation import InflationReport, inflate_network
from ssgan.models.networks import Discriminator, Generator
from ssgan.runs import checkpoint
from ssgan.training.start_file import start_meta
from ssgan.utils.errors import UserError, run_command
from ssgan.utils.files import read_json
from ssgan.utils.seeding import stream_seed

NETWORKS = ("G", "D", "G_ema")


class InflateError(UserError):
    """A source that cannot be inflated, or an output that would overwrite something."""


@dataclass(frozen=True)
class Source:
    """A 2D GAN. network: the 3D one that it would become without --arch. images: that its discriminator was shown.
    seed: draws what has no counterpart in 2D, as a run of that seed does."""

    network: NetworkConfig
    nets: dict[str, nn.Module]
    pl_mean: Tensor
    images: int
    seed: int


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
        help="of the 3D networks, from a dense source (default: split_depth from a pickle, the run's own otherwise)",
    )  # fmt: skip
    parser.add_argument(
        "--arch-d", choices=tuple(ARCHITECTURES),
        help="of the 3D discriminator, where it is another (default: --arch's, or the run's own without --arch)",
    )  # fmt: skip
    parser.add_argument(
        "--dense-levels", type=int, nargs="+", metavar="LEVEL",
        help="with --arch: levels of the 3D networks that stay dense, 0 the coarsest",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, help="the run's config.json (default: the one of the source's run)")
    parser.add_argument("--depth", type=int, help="of a pickle's volumes (default: as its height and width)")
    parser.add_argument(
        "--channels", choices=stylegan2.CHANNELS,
        help="of a pickle's images: grey makes one of RGB, as volumes have (default grey)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    if args.out.exists():
        raise InflateError(f"--out {args.out} exists already; give a new name")
    if args.out.suffix != ".safetensors":
        raise InflateError(f"--out {args.out}: expected a name ending in .safetensors")
    ours = args.source.suffix == ".safetensors"
    source = own_source(args) if ours else pickle_source(args)
    arch = args.arch or (source.network.arch if ours else "split_depth")
    network = target_network(source.network, arch, args, keeps=ours and args.arch is None)
    tensors, parts = {"pl_mean": source.pl_mean}, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(source.seed, "3d", 0, "init"))
        full: dict[str, nn.Module] = {"G": Generator(network), "D": Discriminator(network)}
    full["G_ema"] = copy.deepcopy(full["G"])
    for name, net in full.items():
        report = inflate(source.nets[name], source.network, net, network, args.profile)
        tensors |= checkpoint.with_prefix(name, net.state_dict())
        parts.append(f"{name}\n{report}")
    checkpoint.save(args.out, tensors, start_meta(network, source.images), dataclasses.asdict(network))
    print(f"profile {args.profile}\n\n" + "\n\n".join(parts) + "\n")
    shape, given = " x ".join(map(str, network.shape)), "" if arch == "split_depth" else f" --arch {arch}"
    given += f" --arch-d {network.arch_d}" if network.arch_d else ""
    given += f" --dense-levels {' '.join(map(str, network.dense_levels))}" if network.dense_levels else ""
    print(f"wrote {args.out} for volumes of {shape} (D x H x W); start from it with")
    print(f"  ssgan train --stage 3d --init {args.out}{given} --data DATASET --out RUN --preset NAME")
    return 0


def target_network(own: NetworkConfig, arch: str, args: argparse.Namespace, keeps: bool) -> NetworkConfig:
    """The 3D networks that are asked for. keeps: what is not said is the source's own, not `arch`'s."""
    if keeps and args.dense_levels is not None:
        raise InflateError(
            f"--dense-levels: needs --arch, the architecture of the other levels; without it the networks stay "
            f"{own.arch_name}, as the source is"
        )
    arch_d = args.arch_d or (own.arch_d if keeps else None)
    return own.with_arch(arch, arch_d, own.dense_levels if keeps else args.dense_levels or ())


def inflate(
    net: nn.Module, before: NetworkConfig, full: nn.Module, after: NetworkConfig, profile: str
) -> InflationReport:
    """Loads a 2D network of configuration `before.flat()` into a 3D one of `after`; tells what became of every tensor.

    Raises:
        InflateError: `after` has another architecture at a level that is not dense in `before`.
    """
    actions: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    of_d = isinstance(full, Discriminator)
    levels = range(1 if of_d else 0, len(after.widths))  # a discriminator has no convolution at level 0
    changed = [n for n in levels if before.arch_at(n, of_d) != after.arch_at(n, of_d)]
    for level in changed:
        own, wanted = before.arch_at(level, of_d), after.arch_at(level, of_d)
        if own != "dense":
            name = type(full).__name__.lower()
            asked = f"--arch-d {wanted}" if of_d and after.arch_d else f"--arch {wanted}"
            if level in after.dense_levels:
                asked, own = f"--dense-levels {level}", f"{own} there"
            raise InflateError(
                f"{asked}: the source's {name} is {own}; expected that, or a dense source to select from"
            )
    if changed:
        shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
        dense, net = net, type(full)(after.flat())
        actions = select_weights(dense, net)
    report = inflate_network(net, full, profile)
    rows = []
    for name, action, flat, deep in report.rows:
        if name in actions:
            action = actions[name] + (", inflated" if action == "inflated" else "")
            flat = shapes.get(name.rsplit(".", 1)[0] + ".0" if ".weights." in name else name)
        rows.append((name, action, flat, deep))
    return InflationReport(profile, rows)


def own_source(args: argparse.Namespace) -> Source:
    for name in ("depth", "channels"):
        if getattr(args, name) is not None:
            raise InflateError(f"--{name}: is for pickles; a checkpoint of a run has that run's own; leave it out")
    tensors, meta = checkpoint.load(args.source)
    if meta.stage != "2d":
        raise InflateError(f"--source {args.source} is of stage {meta.stage}; expected a checkpoint of stage 2d")
    config = args.config or args.source.resolve().parent.parent / "config.json"
    if not config.is_file():
        raise InflateError(f"--source {args.source} is not in a run's folder and has no config.json; give --config")
    cfg = TrainConfig.from_json(read_json(config)["config"])
    network = cfg.network
    nets: dict[str, nn.Module] = {n: (Discriminator if n == "D" else Generator)(network.flat()) for n in NETWORKS}
    for name, net in nets.items():
        checkpoint.load_module(net, name, tensors, str(args.source))
    return Source(network, nets, tensors["pl_mean"], meta.images_before + meta.images, cfg.seed)


def pickle_source(args: argparse.Namespace) -> Source:
    if args.config is not None:
        raise InflateError("--config: is for checkpoints of a run; a pickle says itself what its networks are")
    published = stylegan2.load(args.source, args.channels or "grey")
    _, height, width = published.network.shape
    base, scales = plan_levels((args.depth or height, height, width))
    network = dataclasses.replace(
        published.network, shape=(args.depth or height, height, width), base=base, scales=scales
    )
    nets = {name: published.build(name) for name in NETWORKS}
    # How many images it was shown is not in the file; 1 says that it was shown some (warm-up and path length).
    return Source(network, nets, torch.zeros(()), images=1, seed=0)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan inflate", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
