"""Tables of volumes along paths through the latent space, and their files: NIfTI, a PNG table, GIFs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ssgan.data.axes import to_axial
from ssgan.latent_space import styles
from ssgan.latent_space.directions import Directions
from ssgan.latent_space.files import LatentError
from ssgan.latent_space.generator import LatentSpace
from ssgan.models.sampling import latents
from ssgan.runs.samples import save_nifti
from ssgan.utils.pictures import cells_gif, table, three_plane_cell

MAX_VOLUMES = 4096  # of one call
BATCH = 4


@dataclass(frozen=True)
class Movie:
    """A GIF. frames: (name, the cells (row, column) that are shown one below another). back: it plays back too."""

    frames: list[tuple[str, list[tuple[int, int]]]]
    back: bool = True


@dataclass(frozen=True)
class VolumeTable:
    """Volumes to be generated, as a table.

    ws (R, C, num_ws, w_dim). rows, columns: their names. stems: names of the files, R x C, "" for an empty cell.
    movies: by file name.
    """

    title: str
    ws: Tensor
    rows: list[str]
    columns: list[str]
    stems: list[list[str]]
    movies: dict[str, Movie]


def interpolation_table(
    space: LatentSpace, seeds: list[int], steps: int, path: str = "z", truncation: float = 1.0, loop: bool = False
) -> VolumeTable:
    """A row for each pair of successive seeds, a column for each step. path: "z" or "w", see `styles.interpolate`."""
    if len(seeds) < 2:
        raise LatentError(f"--seeds: interpolation goes from seed to seed, so at least 2; got {len(seeds)}")
    ends = [*seeds, seeds[0]] if loop else seeds
    z = latents(ends, space.G.cfg.z_dim)
    ws = styles.broadcast(space.G, styles.interpolate(space.G, z, steps, path, truncation, space.label))
    pairs = list(itertools.pairwise(ends))
    columns = [f"{c / steps:.2f}" for c in range(steps + 1)]
    frames = [(f"{a} to {b}: {columns[c]}", [(r, c)]) for r, (a, b) in enumerate(pairs) for c in range(steps)]
    if not loop:
        frames.append((f"{ends[-2]} to {ends[-1]}: 1.00", [(len(pairs) - 1, steps)]))
    stems = [[f"seed{a:04d}-to-{b:04d}-{c:03d}" for c in range(steps + 1)] for a, b in pairs]
    how = "great circles in z" if path == "z" else "straight lines in w"
    title = f"interpolation along {how}, truncation {truncation:g}"
    movies = {"interpolation": Movie(frames, back=not loop)}
    return VolumeTable(title, ws, [f"{a} to {b}" for a, b in pairs], columns, stems, movies)


def mixing_table(
    space: LatentSpace, rows: list[int], columns: list[int], levels: list[int] | None, truncation: float = 1.0
) -> VolumeTable:
    """The seeds of the rows with the styles of `levels` (default: the coarser half) of the seeds of the columns."""
    G = space.G
    if levels is None:
        levels = list(range(max(1, len(styles.level_slices(G)) // 2)))
    left, top = space.ws(rows, truncation), space.ws(columns, truncation)
    mixed = styles.mix(G, left[:, None], top[None], levels)
    first = torch.cat([left.new_zeros(1, *left.shape[1:]), top])[None]  # the corner is left empty
    ws = torch.cat([first, torch.cat([left[:, None], mixed], 1)])
    stems = [["", *(f"seed{c:04d}" for c in columns)]]
    stems += [[f"seed{r:04d}", *(f"seed{r:04d}-with-{c:04d}" for c in columns)] for r in rows]
    names = ["itself", *(f"seed {c}" for c in columns)]
    sizes = ", ".join("x".join(map(str, styles.level_size(G, k))) for k in levels)
    frames = [(f"styles of {names[c]}", [(r, c) for r in range(1, len(rows) + 1)]) for c in range(len(names))]
    title = f"style mixing: rows with the levels {listed(levels)} (D x H x W = {sizes}) of the columns"
    return VolumeTable(title, ws, ["source", *(f"seed {r}" for r in rows)], names, stems, {"mixing": Movie(frames)})


def truncation_table(space: LatentSpace, seeds: list[int], values: Sequence[float]) -> VolumeTable:
    """A row for each seed, a column for each truncation."""
    if any(not -2 <= v <= 2 for v in values) or len(set(values)) != len(values):
        raise LatentError(f"--values: expected different numbers from -2 to 2; got {listed(values)}")
    ws = torch.stack([space.ws(seeds, v) for v in values], 1)
    columns = [f"{v:g}" for v in values]
    stems = [[f"seed{s:04d}-truncation{v:g}" for v in values] for s in seeds]
    frames = [(f"truncation {label}", [(r, c) for r in range(len(seeds))]) for c, label in enumerate(columns)]
    title = "truncation: 0 is the mean w, 1 leaves w as it is"
    return VolumeTable(title, ws, [f"seed {s}" for s in seeds], columns, stems, {"truncation": Movie(frames)})


def directions_table(
    space: LatentSpace, directions: Directions, chosen: Sequence[int], starts: dict[str, Tensor], sigma: float,
    steps: int, levels: str | None = None,
) -> VolumeTable:  # fmt: skip
    """A row for each direction (numbers from 0) and start, a column for each amount of -sigma .. sigma standard
    deviations.

    starts: name -> ws (num_ws, w_dim). levels: the option --levels; the directions are applied to these.
    """
    amounts = torch.linspace(-sigma, sigma, steps)
    moved_levels = styles.parse_levels(levels, space.G)
    columns = [f"{a:+.2f} sd" for a in amounts.tolist()]
    lines, rows, stems, movies = [], [], [], {}
    for k in chosen:
        step = (directions.components[k] * directions.std[k]).to(space.device)
        for name, ws in starts.items():
            lines.append(styles.sweep(space.G, ws, step, amounts.to(space.device), moved_levels))
            rows.append(f"{k + 1}, {name}" if len(starts) > 1 else f"direction {k + 1}")
            stems.append([f"direction{k + 1:02d}-{name.replace(' ', '')}-{a:+.2f}" for a in amounts.tolist()])
        own_rows = range(len(rows) - len(starts), len(rows))
        frames = [(f"direction {k + 1}: {column}", [(r, c) for r in own_rows]) for c, column in enumerate(columns)]
        movies[f"direction{k + 1:02d}"] = Movie(frames)
    where = f"levels {listed(moved_levels)}" if levels else "every level"
    origin = next(iter(starts)) if len(starts) == 1 else "seeds"
    title = f"principal directions of w, applied to {where}, from {origin}"
    return VolumeTable(title, torch.stack(lines), rows, columns, stems, movies)


def single_volume(ws: Tensor, name: str) -> VolumeTable:
    """A table of one volume, of ws (1, num_ws, w_dim)."""
    return VolumeTable(name, ws[None], ["volume"], [""], [["volume"]], {})


def listed(values: Sequence[float]) -> str:
    return ", ".join(f"{v:g}" for v in values)


def write_table(volumes: VolumeTable, space: LatentSpace, out: Path, noise: str) -> list[str]:
    """Generates the volumes and writes them with their PNG table and movies. Returns the names of the files.

    Raises:
        LatentError: more than `MAX_VOLUMES`.
    """
    rows, columns, info = len(volumes.rows), len(volumes.columns), space.info
    positions = [(r, c) for r in range(rows) for c in range(columns) if volumes.stems[r][c]]
    if len(positions) > MAX_VOLUMES:
        raise LatentError(f"{len(positions)} volumes are more than {MAX_VOLUMES}; ask for fewer seeds or --steps")
    cells: list[list[Image.Image | None]] = [[None] * columns for _ in range(rows)]
    files = []
    with tqdm(total=len(positions), desc="volumes", unit="volume", disable=None) as bar:
        for first in range(0, len(positions), BATCH):
            part = positions[first : first + BATCH]
            with torch.no_grad():
                ws = torch.stack([volumes.ws[p] for p in part])
                batch = space.G.synthesis(ws, noise=noise)[:, 0].cpu().numpy()
            for (r, c), volume in zip(part, batch, strict=True):
                files.append(save_nifti(volume, info, out / f"{volumes.stems[r][c]}.nii.gz").name)
                cells[r][c] = three_plane_cell(to_axial(volume, info.slice_axis), info.spacing)
            bar.update(len(part))
    name = next(iter(volumes.movies)) if len(volumes.movies) == 1 else "table"
    files.append(table(cells, volumes.rows, volumes.columns, out / f"{name}.png", volumes.title).name)
    for name, movie in volumes.movies.items():
        shown = [[cells[r][c] for r, c in spots] for _, spots in movie.frames]
        files.append(cells_gif(shown, [label for label, _ in movie.frames], out / f"{name}.gif", movie.back).name)
    return files
