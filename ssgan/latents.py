"""`ssgan latents`: ways through the latent space of a trained run, and volumes projected into it.

    python -m ssgan.latents interpolate --run RUN --out DIR --seeds 0-3
    python -m ssgan.latents mix         --run RUN --out DIR --rows 0-3 --columns 4-7 --levels 0-1
    python -m ssgan.latents truncation  --run RUN --out DIR --seeds 0-3
    python -m ssgan.latents directions  --run RUN --out DIR
    python -m ssgan.latents project     --run RUN --out DIR --volume SCAN.nii.gz
    python -m ssgan.latents edit        --run RUN --out DIR --projection P.safetensors --directions D.safetensors

Each writes NIfTI volumes (the data set's affine and intensities), a PNG table and GIFs; the same arguments give the
same volumes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ssgan.data.axes import ARRAY_AXES, to_axial
from ssgan.data.dataset import DatasetInfo, VolumeDataset, to_nifti
from ssgan.data.preparation import Recipe, prepare_volume
from ssgan.data.recipes import PRESETS
from ssgan.data.sources import load, look
from ssgan.data.volume import VolumeError
from ssgan.latent_space import walks
from ssgan.latent_space.files import LatentError, load_tensors, save_tensors
from ssgan.latent_space.projection import FEATURES, SPACES, ProjectionConfig, Projector, random_features, set_noise
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.sampling import latents
from ssgan.runs import checkpoint
from ssgan.runs.config import load_config
from ssgan.runs.generator import load_generator, parse_class, parse_seeds
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import run_command
from ssgan.utils.files import atomic_path, read_json, write_json_atomic
from ssgan.utils.pictures import cells_gif, contact_sheet, slices_gif, table, three_plane_cell
from ssgan.utils.signals import StopSignals

RECORD = "latents.json"
SAVE_SECONDS = 30.0
MOST = 4096  # volumes of one call


@dataclass(frozen=True)
class Grid:
    """Volumes to be made, as a table. ws (R, C, num_ws, w_dim); names of rows, columns and the table; stems of the
    files, R x C; movies: file name -> its frames, each (name, places (r, c) shown below one another), and whether it
    plays back too."""

    title: str
    ws: Tensor
    rows: list[str]
    columns: list[str]
    stems: list[list[str]]
    movies: dict[str, tuple[list[tuple[str, list[tuple[int, int]]]], bool]]


@dataclass(frozen=True)
class Opened:
    """A run's generator on its device, the checkpoint it is from, the data set's geometry, the class asked for."""

    G: Generator
    info: DatasetInfo
    checkpoint: Path
    sha256: str
    device: torch.device
    label: int | None = None


def open_run(args: argparse.Namespace) -> Opened:
    device = pick_device(args.device)
    source = load_generator(args.run, args.checkpoint)
    G, path = source.G, source.path
    if source.meta.stage != "3d":
        raise LatentError(f"{path} is of stage 2d, which makes slices; train the 3D stage, or give a 3D --checkpoint")
    chosen = parse_class(args.class_, source.config)
    if len(chosen) > 1:
        raise LatentError(f"--class all: `ssgan latents {args.command}` works within one class; name it")
    return Opened(G.to(device), source.info, path, checkpoint.checksum(path), device, chosen[0])


# ---- the walks: arguments -> a table of ws ----


def _seed_ws(run: Opened, seeds: Sequence[int], truncation: float) -> Tensor:
    """(len(seeds), num_ws, w_dim)"""
    return walks.broadcast(
        run.G, walks.map_latents(run.G, latents(seeds, run.G.cfg.z_dim), truncation, label=run.label)
    )


def _by_columns(name: str, rows: int, columns: Sequence[str]) -> dict[str, Any]:
    return {name: ([(f"{name} {label}", [(r, c) for r in range(rows)]) for c, label in enumerate(columns)], True)}


def interpolate(args: argparse.Namespace, run: Opened) -> Grid:
    seeds = parse_seeds(args.seeds)
    if len(seeds) < 2:
        raise LatentError(f"--seeds: interpolation goes from seed to seed, so at least 2; got {args.seeds!r}")
    ends = [*seeds, seeds[0]] if args.loop else seeds
    z = latents(ends, run.G.cfg.z_dim)
    ws = walks.broadcast(run.G, walks.interpolate(run.G, z, args.steps, args.space, args.truncation, run.label))
    pairs = list(itertools.pairwise(ends))
    columns = [f"{c / args.steps:.2f}" for c in range(args.steps + 1)]
    frames = [(f"{a} to {b}: {columns[c]}", [(r, c)]) for r, (a, b) in enumerate(pairs) for c in range(args.steps)]
    if not args.loop:
        frames.append((f"{ends[-2]} to {ends[-1]}: 1.00", [(len(pairs) - 1, args.steps)]))
    stems = [[f"seed{a:04d}-to-{b:04d}-{c:03d}" for c in range(args.steps + 1)] for a, b in pairs]
    how = "great circles in z" if args.space == "z" else "straight lines in w"
    rows = [f"{a} to {b}" for a, b in pairs]
    movies = {"interpolation": (frames, not args.loop)}
    return Grid(f"interpolation along {how}, truncation {args.truncation:g}", ws, rows, columns, stems, movies)


def mix(args: argparse.Namespace, run: Opened) -> Grid:
    top, left = parse_seeds(args.columns), parse_seeds(args.rows)
    count = len(walks.level_slices(run.G))
    levels = parse_levels(args.levels, run.G) if args.levels else list(range(max(1, count // 2)))
    rows, columns = (_seed_ws(run, seeds, args.truncation) for seeds in (left, top))
    mixed = walks.mix(run.G, rows[:, None], columns[None], levels)
    first = torch.cat([rows.new_zeros(1, *rows.shape[1:]), columns])[None]  # the corner is left empty
    ws = torch.cat([first, torch.cat([rows[:, None], mixed], 1)])
    stems = [["", *(f"seed{c:04d}" for c in top)]]
    stems += [[f"seed{r:04d}", *(f"seed{r:04d}-with-{c:04d}" for c in top)] for r in left]
    names = ["itself", *(f"seed {c}" for c in top)]
    sizes = ", ".join("x".join(map(str, _level_size(run.G, k))) for k in levels)
    frames = [(f"styles of {names[c]}", [(r, c) for r in range(1, len(left) + 1)]) for c in range(len(names))]
    title = f"style mixing: rows with the levels {_list(levels)} (D x H x W = {sizes}) of the columns"
    return Grid(title, ws, ["source", *(f"seed {r}" for r in left)], names, stems, {"mixing": (frames, True)})


def truncation(args: argparse.Namespace, run: Opened) -> Grid:
    seeds, values = parse_seeds(args.seeds), args.values
    if any(not -2 <= v <= 2 for v in values) or len(set(values)) != len(values):
        raise LatentError(f"--values: expected different numbers from -2 to 2; got {_list(values)}")
    ws = torch.stack([_seed_ws(run, seeds, v) for v in values], 1)
    columns = [f"{v:g}" for v in values]
    stems = [[f"seed{s:04d}-truncation{v:g}" for v in values] for s in seeds]
    rows = [f"seed {s}" for s in seeds]
    title = "truncation: 0 is the mean w, 1 leaves w as it is"
    return Grid(title, ws, rows, columns, stems, _by_columns("truncation", len(rows), columns))


def directions(args: argparse.Namespace, run: Opened) -> Grid:
    G = run.G
    found = walks.principal_directions(G, args.components, args.samples, args.sample_seed, run.label)
    tensors = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    record = {"sha256": run.sha256, "samples": args.samples, "seed": args.sample_seed}
    save_tensors(args.out / "directions.safetensors", "directions", tensors, record)
    print(f"{args.components} directions explain {float(found.share.sum()):.1%} of the variance of w")
    for k, (std, share) in enumerate(zip(found.std.tolist(), found.share.tolist(), strict=True), start=1):
        print(f"  direction {k}: {share:.1%} of the variance, standard deviation {std:.3g}")
    if args.seeds:
        seeds = parse_seeds(args.seeds)
        bases, names = _seed_ws(run, seeds, args.truncation), [f"seed {s}" for s in seeds]
    else:
        bases, names = walks.broadcast(G, found.mean[None].to(run.device)), ["mean"]
    return _sweeps(args, run, found, range(args.components), list(zip(names, bases, strict=True)))


def edit(args: argparse.Namespace, run: Opened) -> Grid:
    projected, about = load_tensors(args.projection, "projection")
    axes, origin = load_tensors(args.directions, "directions")
    for option, record in (("--projection", about), ("--directions", origin)):
        if record["sha256"] != run.sha256:
            raise LatentError(
                f"{option} was made from another checkpoint than {run.checkpoint}; make it again, or give its"
            )
    found = walks.Directions(**axes)
    chosen = [k - 1 for k in parse_seeds(args.components)]
    wrong = [k + 1 for k in chosen if not 0 <= k < len(found.std)]
    if wrong:
        raise LatentError(f"--components: {args.directions} has directions 1 to {len(found.std)}; got {_list(wrong)}")
    set_noise(run.G, projected)
    return _sweeps(args, run, found, chosen, [("projection", projected["ws"][0].to(run.device))])


def _sweeps(
    args: argparse.Namespace,
    run: Opened,
    found: walks.Directions,
    chosen: Sequence[int],
    bases: list[tuple[str, Tensor]],
) -> Grid:
    """A row per direction and base, a column per amount in standard deviations."""
    amounts = torch.linspace(-args.sigma, args.sigma, args.steps)
    levels = parse_levels(args.levels, run.G) if args.levels else list(range(len(walks.level_slices(run.G))))
    columns = [f"{a:+.2f} sd" for a in amounts.tolist()]
    lines, rows, stems, movies = [], [], [], {}
    for k in chosen:
        step = (found.components[k] * found.std[k]).to(run.device)
        for name, base in bases:
            lines.append(walks.sweep(run.G, base, step, amounts.to(run.device), levels))
            rows.append(f"{k + 1}, {name}" if len(bases) > 1 else f"direction {k + 1}")
            stems.append([f"direction{k + 1:02d}-{name.replace(' ', '')}-{a:+.2f}" for a in amounts.tolist()])
        places = range(len(rows) - len(bases), len(rows))
        frames = [(f"direction {k + 1}: {column}", [(r, c) for r in places]) for c, column in enumerate(columns)]
        movies[f"direction{k + 1:02d}"] = (frames, True)
    where = "every level" if not args.levels else f"levels {_list(levels)}"
    title = f"principal directions of w, applied to {where}, from {bases[0][0] if len(bases) == 1 else 'seeds'}"
    return Grid(title, torch.stack(lines), rows, columns, stems, movies)


def parse_levels(text: str, G: Generator) -> list[int]:
    """ "0-1,3" -> [0, 1, 3]; the error lists the levels and their sizes."""
    count = len(walks.level_slices(G))
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or not int(match[1]) <= int(match[2] or match[1]) < count:
            sizes = "; ".join(f"{k}: {'x'.join(map(str, _level_size(G, k)))}" for k in range(count))
            raise LatentError(
                f"--levels: expected numbers and ranges such as 0-1 among (D x H x W) {sizes}; got {text!r}"
            )
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return sorted(set(found))


def _level_size(G: Generator, level: int) -> tuple[int, ...]:
    size = G.cfg.base
    for scale in G.cfg.scales[:level]:
        size = tuple(n * s for n, s in zip(size, scale, strict=True))
    return size


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


# ---- making them ----


def draw(grid: Grid, run: Opened, out: Path, noise: str, batch: int = 4) -> list[str]:
    """Writes the grid's volumes, table and movies; gives the names of the files."""
    rows, columns = len(grid.rows), len(grid.columns)
    places = [(r, c) for r in range(rows) for c in range(columns) if grid.stems[r][c]]
    if len(places) > MOST:
        raise LatentError(f"{len(places)} volumes are more than {MOST}; ask for fewer seeds or --steps")
    cells: list[list[Image.Image | None]] = [[None] * columns for _ in range(rows)]
    files = []
    with tqdm(total=len(places), desc="volumes", unit="volume", disable=None) as bar:
        for first in range(0, len(places), batch):
            part = places[first : first + batch]
            with torch.no_grad():
                volumes = run.G.synthesis(torch.stack([grid.ws[p] for p in part]), noise=noise)[:, 0].cpu().numpy()
            for (r, c), volume in zip(part, volumes, strict=True):
                files.append(save_nifti(volume, run.info, out / f"{grid.stems[r][c]}.nii.gz"))
                cells[r][c] = three_plane_cell(to_axial(volume, run.info.slice_axis), run.info.spacing)
            bar.update(len(part))
    name = next(iter(grid.movies)) if len(grid.movies) == 1 else "table"
    files.append(table(cells, grid.rows, grid.columns, out / f"{name}.png", grid.title).name)
    for movie, (frames, back) in grid.movies.items():
        shown = [[cells[r][c] for r, c in spots] for _, spots in frames]
        files.append(cells_gif(shown, [label for label, _ in frames], out / f"{movie}.gif", back).name)
    return files


def save_nifti(volume: np.ndarray, info: DatasetInfo, path: Path) -> str:
    with atomic_path(path) as temporary:
        nibabel.save(to_nifti(volume, info), temporary)
    return path.name


# ---- projection ----


def read_target(args: argparse.Namespace, info: DatasetInfo) -> tuple[np.ndarray, DatasetInfo, str]:
    """The volume (D, H, W) in [-1, 1] to be projected, the geometry and intensities it has itself, and its name."""
    if args.volume is not None:
        if not args.volume.is_file():
            raise LatentError(f"--volume {args.volume}: no such file; expected a volume (.nii, .nii.gz, .nrrd, .mha)")
        shape = tuple(int(info.shape[i]) for i in np.argsort(ARRAY_AXES[info.slice_axis]))
        # A recipe that scales no volume by itself is a fixed window, and the data set knows it.
        name = info.recipe if info.recipe in PRESETS else "ct"
        window = (info.intensity_low, info.intensity_high)
        try:
            volume = load(look((args.volume.parent, [args.volume]))[0])
            array, record = prepare_volume(volume, Recipe(name, shape, info.spacing, info.slice_axis, window))
        except VolumeError as error:
            raise LatentError(f"--volume {args.volume}: {error}") from error
        for warning in record["warnings"]:
            print(f"warning: {args.volume}: {warning}")
        source = str(args.volume)
    else:
        folder = data_folder(args.run, args.data)
        data = VolumeDataset(folder)
        if data.info.shape != info.shape:
            raise LatentError(f"--data {folder} has volumes of {data.info.shape}; the run makes {info.shape}")
        if not 0 <= args.index < len(data):
            raise LatentError(f"--index: {folder} has volumes 0 to {len(data) - 1}; got {args.index}")
        array, record = np.array(data.volumes[args.index]), data.records[args.index]
        source = f"{folder}, volume {args.index} ({record['source']})"
    own = {"intensity_low": record["intensity_low"], "intensity_high": record["intensity_high"]}
    own["affine"] = tuple(tuple(row) for row in record["affine"])
    return array, dataclasses.replace(info, **own), source


def data_folder(run: Path, given: Path | None) -> Path:
    """The data set that was given, or the one the run was trained on."""
    if given is not None:
        return given
    return load_config(run).data_folder


def project(args: argparse.Namespace, run: Opened) -> int:
    settings = {name: getattr(args, name) for name in ("space", "steps", "features", "voxel_weight", "seed")}
    cfg = ProjectionConfig(**settings, fit_noise=args.noise == "fit", learning_rate=args.rate)
    array, own, source = read_target(args, run.info)
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    config = dataclasses.asdict(cfg) | ({} if run.label is None else {"class": run.label})
    about = {"sha256": run.sha256, "target": digest, "config": config}
    D = random_features(run.G) if cfg.features == "random" else load_discriminator(run)
    projector = Projector(run.G, D, torch.from_numpy(array), cfg, run.label)
    file = args.out / "projection.safetensors"
    if file.exists():
        tensors, before = load_tensors(file, "projection")
        different = [name for name in about if before.get(name) != about[name]]
        if different:
            what = {"sha256": "the checkpoint", "target": "the volume", "config": "the settings"}
            raise LatentError(
                f"--out {args.out} holds another projection ({', '.join(what[d] for d in different)} differ); give the "
                "same arguments to go on with it, or another --out"
            )
        projector.load(tensors, before["step"])
        print(
            f"going on after step {before['step']} of {cfg.steps}" if before["step"] < cfg.steps else "finished before"
        )

    def save() -> None:
        save_tensors(file, "projection", projector.state(), {**about, "step": projector.step, "source": source})

    saved = time.monotonic()
    # A bar on a terminal, a line every half minute in a log.
    often = {"mininterval": 0.1} if sys.stderr.isatty() else {"mininterval": 30, "maxinterval": 60}
    with StopSignals() as stop, tqdm(total=cfg.steps, initial=projector.step, desc="projecting", **often) as bar:
        while projector.step < cfg.steps and not stop.received:
            losses = projector.advance()
            bar.set_postfix({k: f"{v:.4f}" for k, v in losses.items()}, refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    save()
    files = [file.name, *draw_projection(array, projector.volume().numpy(), run.info, own, args.out)]
    figures = projector.figures()
    record = {"source": source, "protocol": cfg.protocol(), "step": projector.step, "figures": figures}
    write_record(args, run, files, record)
    print(
        f"step {projector.step} of {cfg.steps}: root mean squared voxel difference {figures['rms']:.4f} ([-1, 1] "
        f"scale; PSNR {figures['psnr']:.1f} dB), feature distance {figures['features']:.4f}; "
        f"w is {figures['w_distance']:.2f} times its usual distance from the mean"
    )
    print(f"look at {args.out / 'projection.png'}")
    if stop.received and projector.step < cfg.steps:
        print(f"stopped by {stop.received.name}; saved {file}; the same command goes on from there")
        return 128 + stop.received
    return 0


def load_discriminator(run: Opened) -> Discriminator:
    D = Discriminator(run.G.cfg)
    checkpoint.load_module(D, "D", checkpoint.load(run.checkpoint)[0], str(run.checkpoint))
    return D.requires_grad_(False)


def draw_projection(target: np.ndarray, found: np.ndarray, info: DatasetInfo, own: DatasetInfo, out: Path) -> list[str]:
    """Target, reconstruction, difference: NIfTI in the target's own geometry and scale, PNG, GIF through the slices."""
    difference = np.minimum(np.abs(target - found) * 4, 2) - 1  # white from a quarter of the range
    volumes = to_axial(np.stack([target, np.clip(found, -1, 1), difference]), info.slice_axis)
    names = ["target", "reconstruction", "difference x 4"]
    files = [
        save_nifti(target, own, out / "target.nii.gz"),
        save_nifti(found, own, out / "reconstruction.nii.gz"),
        contact_sheet(volumes, names, out / "projection.png", spacing=info.spacing, columns=3).name,
    ]
    return [*files, slices_gif(volumes, names, out / "projection.gif", spacing=info.spacing).name]


# ---- the command ----

WALKS: dict[str, Callable[[argparse.Namespace, Opened], Grid]] = {
    "interpolate": interpolate, "mix": mix, "truncation": truncation, "directions": directions, "edit": edit,
}  # fmt: skip


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}; got {text}")
        return value

    parse.__name__ = "int"
    return parse


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected 0 to 1; got {text}")
    return value


def _sigma(text: str) -> float:
    value = float(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 100; got {text}")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--run", type=Path, required=True, help="a run's folder (--out of train)")
        sub.add_argument(
            "--out", type=Path, required=True, help="folder for the results; an earlier call's are replaced"
        )
        sub.add_argument("--checkpoint", type=Path, help="a checkpoint file (default: the run's last)")
        sub.add_argument("--class", dest="class_", help="name or number, for a run that was trained on classes")
        sub.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        if name in ("interpolate", "mix", "directions"):
            sub.add_argument("--truncation", type=_share, default=1.0, help="of the seeds' w, 0 to 1 (default 1)")
        if name != "project":
            sub.add_argument("--noise", choices=("const", "none"), default="const", help="fine noise (default const)")
        if name in ("directions", "edit"):
            sub.add_argument("--sigma", type=_sigma, default=3.0, help="standard deviations to either side (default 3)")
            sub.add_argument("--steps", type=_whole(2, 256), default=7, help="volumes per direction (default 7)")
        return sub

    sub = command("interpolate", "go from seed to seed")
    sub.add_argument("--seeds", required=True, help="numbers and ranges, such as 0-3,7, in the order of the way")
    sub.add_argument("--steps", type=_whole(1, 256), default=8, help="from one seed to the next (default 8)")
    sub.add_argument("--space", choices=("z", "w"), default="z", help="z: great circles, w: straight lines (default z)")
    sub.add_argument("--loop", action="store_true", help="go back to the first seed")
    sub = command("mix", "take the styles of some levels from other seeds")
    sub.add_argument("--rows", required=True, help="seeds that are changed")
    sub.add_argument("--columns", required=True, help="seeds that the styles are taken from")
    sub.add_argument("--levels", help="such as 0-1; 0 is the coarsest (default: the coarser half)")
    sub = command("truncation", "sweep the truncation")
    sub.add_argument("--seeds", required=True)
    values = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    sub.add_argument("--values", type=float, nargs="+", default=values, help=f"default {_list(values)}")
    sub = command("directions", "find the principal directions of w (GANSpace) and sweep along each")
    sub.add_argument("--components", type=_whole(1, 512), default=6, help="how many directions (default 6)")
    sub.add_argument("--samples", type=_whole(2, 10**7), default=10_000, help="of w (default 10000)")
    sub.add_argument("--sample-seed", type=_whole(0, 2**32 - 1), default=0)
    sub.add_argument("--seeds", help="volumes to start from (default: the mean w)")
    sub.add_argument("--levels", help="apply the directions to these levels only, such as 0-1")
    sub = command("project", "find the w that makes a given volume; Ctrl-C saves, the same command goes on")
    source = sub.add_mutually_exclusive_group(required=True)
    source.add_argument("--volume", type=Path, help="a NIfTI, NRRD or MetaImage file, prepared as the data set was")
    source.add_argument("--index", type=int, help="a volume of the data set, counted from 0")
    sub.add_argument("--data", type=Path, help="with --index: the data set (default: the run's own)")
    sub.add_argument("--space", choices=SPACES, default="w", help="w+ has a style per layer: nearer, less editable")
    sub.add_argument("--steps", type=_whole(1, 10**6), default=500, help="default 500")
    sub.add_argument("--features", choices=FEATURES, default="discriminator", help="of the perceptual distance")
    sub.add_argument("--voxel-weight", type=float, default=1.0, help="of the mean squared voxel difference (default 1)")
    sub.add_argument(
        "--noise", choices=("fit", "const"), default="fit", help="fit the noise maps too, or keep the run's"
    )
    sub.add_argument("--rate", type=float, default=0.1, help="learning rate (default 0.1)")
    sub.add_argument("--seed", type=_whole(0, 2**32 - 1), default=0)
    sub = command("edit", "move a projected volume along principal directions")
    sub.add_argument("--projection", type=Path, required=True, help="projection.safetensors of `project`")
    sub.add_argument("--directions", type=Path, required=True, help="directions.safetensors of `directions`")
    sub.add_argument("--components", default="1", help="numbers and ranges of directions, such as 1-3 (default 1)")
    sub.add_argument("--levels", help="apply the directions to these levels only, such as 0-1")


def check_out(out: Path, command: str) -> list[str]:
    """The files that an earlier call left in `out`. Raises LatentError where it holds anything but such a call's."""
    if out.exists() and not out.is_dir():
        raise LatentError(f"--out {out} is a file; expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return []
    stopped = command == "project" and (out / "projection.safetensors").is_file()  # killed before it wrote its record
    if not (out / RECORD).is_file() and not stopped:
        raise LatentError(f"--out {out} is not empty and was not made by `ssgan latents` (no {RECORD}); choose another")
    record = read_json(out / RECORD) if (out / RECORD).is_file() else {"command": command}
    if record.get("command") != command:
        raise LatentError(
            f"--out {out} holds the results of `ssgan latents {record.get('command')}`; choose another folder"
        )
    return [name for name in record.get("files", []) if Path(name).name == name]


def write_record(args: argparse.Namespace, run: Opened, files: list[str], more: dict[str, Any]) -> None:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "command"}
    record = {"command": args.command, "arguments": given, "checkpoint": str(run.checkpoint), "sha256": run.sha256}
    write_json_atomic(args.out / RECORD, {**record, **more, "files": files})


def run(args: argparse.Namespace) -> int:
    if args.command == "project" and args.data is not None and args.volume is not None:
        raise LatentError("--data: only with --index; --volume is a file by itself")
    before = check_out(args.out, args.command)
    opened = open_run(args)
    if args.command == "project":
        return project(args, opened)
    grid = WALKS[args.command](args, opened)
    files = draw(grid, opened, args.out, args.noise)
    if args.command == "directions":
        files.append("directions.safetensors")
    for name in set(before) - set(files):
        (args.out / name).unlink(missing_ok=True)
    write_record(args, opened, files, {"title": grid.title})
    print(f"{sum(name.endswith('.nii.gz') for name in files)} volumes in {args.out}; look at its PNG and GIF")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan latents", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
