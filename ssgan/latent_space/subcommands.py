"""The subcommands of `ssgan latents`: from parsed arguments to tables of volumes and projections."""

from __future__ import annotations

import argparse
import dataclasses
import signal
from typing import Any

from torch import Tensor

from ssgan.latent_space import tables
from ssgan.latent_space.directions import Directions, principal_directions
from ssgan.latent_space.files import LatentError, load_tensors, save_tensors
from ssgan.latent_space.generator import LatentSpace
from ssgan.latent_space.point import Point, find_directions, parse_move, point_ws
from ssgan.latent_space.project_volume import project_volume, read_file, read_from_dataset, write_result
from ssgan.latent_space.projection import ProjectionConfig, set_noise
from ssgan.latent_space.styles import broadcast, parse_levels
from ssgan.latent_space.tables import VolumeTable
from ssgan.runs.generator import parse_seeds

DIRECTIONS_FILE = "directions.safetensors"


def interpolate(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    return tables.interpolation_table(
        space, parse_seeds(args.seeds), args.steps, args.space, args.truncation, args.loop
    )


def mix(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    columns, rows = parse_seeds(args.columns), parse_seeds(args.rows)
    levels = parse_levels(args.levels, space.G) if args.levels else None
    return tables.mixing_table(space, rows, columns, levels, args.truncation)


def truncation(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    return tables.truncation_table(space, parse_seeds(args.seeds), args.values)


def directions(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    """Finds the principal directions and saves them in --out."""
    found = principal_directions(space.G, args.components, args.samples, args.sample_seed, space.label)
    tensors = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    record = {"sha256": space.source.sha256, "samples": args.samples, "seed": args.sample_seed}
    save_tensors(args.out / DIRECTIONS_FILE, "directions", tensors, record)
    print(f"{args.components} directions explain {float(found.share.sum()):.1%} of the variance of w")
    for k, (std, part) in enumerate(zip(found.std.tolist(), found.share.tolist(), strict=True), start=1):
        print(f"  direction {k}: {part:.1%} of the variance, standard deviation {std:.3g}")
    starts: dict[str, Tensor] = {"mean": broadcast(space.G, found.mean.to(space.device))}
    if args.seeds:
        seeds = parse_seeds(args.seeds)
        starts = {f"seed {s}": ws for s, ws in zip(seeds, space.ws(seeds, args.truncation), strict=True)}
    chosen = range(args.components)
    return tables.directions_table(space, found, chosen, starts, args.sigma, args.steps, args.levels)


def volume(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    levels = tuple(parse_levels(args.mix_levels, space.G)) if args.mix_levels else ()
    moves = tuple(map(parse_move, args.move))
    point = Point(args.seed, args.truncation, args.noise, args.to_seed, args.at, args.mix_seed, levels, moves)
    ws = point_ws(space, point, lambda: find_directions(space))
    return tables.single_volume(ws, " ".join(point.options()))


def edit(args: argparse.Namespace, space: LatentSpace) -> VolumeTable:
    projected, about = load_tensors(args.projection, "projection")
    tensors, origin = load_tensors(args.directions, "directions")
    for option, record in (("--projection", about), ("--directions", origin)):
        if record["sha256"] != space.source.sha256:
            raise LatentError(
                f"{option} was made from another checkpoint than {space.source.path}; make it again, or give the other "
                "by --checkpoint"
            )
    found = Directions(**tensors)
    chosen = [k - 1 for k in parse_seeds(args.components)]
    wrong = [k + 1 for k in chosen if not 0 <= k < len(found.std)]
    if wrong:
        raise LatentError(
            f"--components: {args.directions} has directions 1 to {len(found.std)}; got {tables.listed(wrong)}"
        )
    set_noise(space.G, projected)
    starts = {"projection": projected["ws"][0].to(space.device)}
    return tables.directions_table(space, found, chosen, starts, args.sigma, args.steps, args.levels)


def project(args: argparse.Namespace, space: LatentSpace) -> tuple[dict[str, Any], signal.Signals | None]:
    """Returns the entries of latents.json, and the signal that stopped the projection, if one did."""
    settings = {name: getattr(args, name) for name in ("space", "steps", "features", "voxel_weight", "seed")}
    cfg = ProjectionConfig(**settings, fit_noise=args.noise == "fit", learning_rate=args.rate)
    if args.volume is not None:
        target = read_file(args.volume, space.info)
    else:
        target = read_from_dataset(args.index, space.source.config, args.data)
    projector, stopped = project_volume(space, target, cfg, args.out)
    files, figures = write_result(projector, target, space, args.out), projector.figures()
    print(
        f"step {projector.step} of {cfg.steps}: root mean squared voxel difference {figures['rms']:.4f} ([-1, 1] "
        f"scale; PSNR {figures['psnr']:.1f} dB), feature distance {figures['features']:.4f}; "
        f"w is {figures['w_distance']:.2f} times its usual distance from the mean"
    )
    record = {"source": target.source, "protocol": cfg.protocol(), "step": projector.step, "figures": figures}
    return {**record, "files": files}, stopped


TABLES = {
    "interpolate": interpolate, "mix": mix, "truncation": truncation, "directions": directions, "volume": volume,
    "edit": edit,
}  # fmt: skip
