"""Pictures of volumes and runs: PNG grids in three planes, GIFs through the slices, curves.

Volumes are (N, Z, Y, X) in [-1, 1] with X, Y, Z to the patient's right, front and head; `ssgan.data.axes.to_axial`
gives that order. Pictures show the head up, the front up (axial) or to the right (sagittal), and the patient's right
on the right. Masks are class numbers of the same shape, drawn in colour over the volumes: each class has its colour of
MASK_COLOURS, class 0 and 255 (no mask) have none. Every file is written atomically.
"""

from __future__ import annotations

import colorsys
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_path

INK, PAPER = (225, 228, 232), (16, 17, 20)
CELL = 112  # height of the tallest plane, in pixels
GAP, MARGIN, TITLE = 3, 10, 22
MAX_WIDTH = 1900
NO_MASK = 255  # as in `ssgan.data.dataset`
TINT = 0.4  # of a class's colour inside its outline
MASK_COLOURS = (  # of the classes from 1 on: Okabe and Ito's, which the colour-blind can tell, then hues far apart
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (240, 228, 66), (0, 114, 178)),
    *(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.6 + 0.4 * (i % 2), 1)) for i in range(24)),
)
SLICE_MILLISECONDS, FRAME_MILLISECONDS = 90, 120  # that a GIF shows a slice, or a frame of `cells_gif`
QUANTITIES = {
    "loss_g": "generator loss",
    "loss_d": "discriminator loss",
    "r1": "R1 penalty",
    "r2": "R2 penalty",
    "path_length": "path length",
    "distance": "sliced Wasserstein distance to the data",
}

Spacing = tuple[float, float, float]


class ImageError(UserError):
    """An array that cannot be drawn."""


def three_plane_grid(
    volumes: np.ndarray,
    path: str | os.PathLike[str],
    *,
    spacing: Spacing | None = None,
    title: str | None = None,
    columns: int | None = None,
    masks: np.ndarray | None = None,
) -> Path:
    """Writes a PNG with a cell per volume (N, Z, Y, X): its axial, coronal and sagittal middle slices.

    spacing: (x, y, z) mm, by which the slices are scaled. masks: (N, Z, Y, X) class numbers; a volume with one shows,
    instead of the middle slices, those with the most voxels of the mask.
    """
    volumes = _checked(volumes, 4)
    cells = [_cell(v, spacing, mask=m) for v, m in zip(volumes, _checked_masks(masks, volumes), strict=True)]
    return _sheet(cells, None, path, title, columns)


def contact_sheet(
    volumes: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    spacing: Spacing | None = None,
    title: str | None = None,
    columns: int | None = None,
    masks: np.ndarray | None = None,
) -> Path:
    """Writes a `three_plane_grid` of volumes (N, Z, Y, X) with one of N names under each cell.

    The letters L and R mark the patient's left and right.
    """
    volumes = _checked(volumes, 4)
    if len(names) != len(volumes):
        raise ImageError(f"names: expected {len(volumes)}, one per volume; got {len(names)}")
    masked = zip(volumes, _checked_masks(masks, volumes), strict=True)
    return _sheet([_cell(v, spacing, sides=True, mask=m) for v, m in masked], names, path, title, columns)


def slice_grid(
    slices: np.ndarray, path: str | os.PathLike[str], *, title: str | None = None, columns: int | None = None
) -> Path:
    """Writes a PNG with a cell per slice (N, H, W), H upwards."""
    slices = _checked(slices, 3)
    return _sheet([_plane(s, (1.0, 1.0), CELL / max(slices.shape[1:])) for s in slices], None, path, title, columns)


def save_gif(
    volume: np.ndarray,
    path: str | os.PathLike[str],
    *,
    spacing: Spacing | None = None,
    masks: np.ndarray | None = None,
) -> Path:
    """Writes a looping GIF through the axial slices of a volume (Z, Y, X), from foot to head and back; `masks` is of
    the same shape."""
    volumes = _checked(volume[None] if np.ndim(volume) == 3 else volume, 4)
    mask = _checked_masks(masks[None] if masks is not None and np.ndim(masks) == 3 else masks, volumes)[0]
    volume = volumes[0]
    sx, sy, _ = spacing or (1.0, 1.0, 1.0)
    scale = 2 * CELL / max(volume.shape[1] * sy, volume.shape[2] * sx)
    frames = [_plane(s, (sy, sx), scale, None if mask is None else mask[z]) for z, s in enumerate(volume)]
    if mask is not None:
        frames = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    return _write_gif(frames + frames[-2:0:-1], path, SLICE_MILLISECONDS)


def slices_gif(volumes: np.ndarray, names: Sequence[str], path: Path, *, spacing: Spacing | None = None) -> Path:
    """Writes a looping GIF through the axial slices of volumes (N, Z, Y, X) side by side, and back; with a name above
    each."""
    volumes = _checked(volumes, 4)
    if len(names) != len(volumes):
        raise ImageError(f"names: expected {len(volumes)}, one per volume; got {len(names)}")
    sx, sy, _ = spacing or (1.0, 1.0, 1.0)
    scale, font = 2 * CELL / max(volumes.shape[2] * sy, volumes.shape[3] * sx), ImageFont.load_default(12)
    pages = []
    for z in range(volumes.shape[1]):
        planes = [_plane(volume[z], (sy, sx), scale) for volume in volumes]
        step = max(planes[0].width, *(math.ceil(font.getlength(name)) for name in names)) + MARGIN
        page = Image.new("RGB", (MARGIN + len(planes) * step, planes[0].height + TITLE + MARGIN), PAPER)
        draw = ImageDraw.Draw(page)
        for i, (plane, name) in enumerate(zip(planes, names, strict=True)):
            draw.text((MARGIN + i * step, 5), name, fill=INK, font=font)
            page.paste(plane.convert("RGB"), (MARGIN + i * step, TITLE))
        pages.append(page.quantize(256, dither=Image.Dither.NONE))
    return _write_gif(pages + pages[-2:0:-1], path, SLICE_MILLISECONDS)


def three_plane_cell(volume: np.ndarray, spacing: Spacing | None = None, mask: np.ndarray | None = None) -> Image.Image:
    """Draws the axial, coronal and sagittal middle slices of a volume (Z, Y, X) side by side, a cell for `table` and
    `cells_gif`; with a `mask` as in `three_plane_grid`."""
    volumes = _checked(np.asarray(volume)[None], 4)
    drawn = _checked_masks(None if mask is None else mask[None], volumes)[0]
    return _cell(volumes[0], spacing, mask=drawn)


def table(
    cells: Sequence[Sequence[Image.Image | None]], rows: Sequence[str], columns: Sequence[str], path: Path, title: str
) -> Path:
    """Writes a PNG of cells in named rows and columns; None leaves a cell empty."""
    if [len(line) for line in cells] != [len(columns)] * len(rows) or not rows or not columns:
        raise ImageError(f"cells: expected {len(rows)} rows of {len(columns)}; got {[len(line) for line in cells]}")
    font, shown = ImageFont.load_default(12), [c for line in cells for c in line if c is not None]
    if not shown:
        raise ImageError("cells: every place of the table is empty; expected at least one cell")
    width, height = max(c.width for c in shown), max(c.height for c in shown)
    left, top = MARGIN + round(max(font.getlength(name) for name in rows)) + MARGIN, MARGIN + TITLE + 18
    page = Image.new(
        "RGB", (left + len(columns) * (width + GAP) + MARGIN, top + len(rows) * (height + GAP) + MARGIN), PAPER
    )
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN - 2), title, fill=INK, font=ImageFont.load_default(14))
    for j, name in enumerate(columns):
        draw.text((left + j * (width + GAP) + width // 2, top - 5), name, fill=INK, font=font, anchor="ms")
    for i, name in enumerate(rows):
        up = top + i * (height + GAP)
        draw.text((MARGIN, up + height // 2), name, fill=INK, font=font, anchor="lm")
        for j, cell in enumerate(cells[i]):
            if cell is not None:
                page.paste(cell, (left + j * (width + GAP), up))
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG", optimize=True)
    return path


def cells_gif(
    frames: Sequence[Sequence[Image.Image]],
    names: Sequence[str],
    path: Path,
    back: bool = True,
) -> Path:
    """Writes a looping GIF whose frames show their cells one below another under a name; `back` plays it backwards
    too."""
    if not frames or len(names) != len(frames) or len({len(f) for f in frames}) != 1 or not frames[0]:
        raise ImageError(f"frames: expected equally many cells in each, and a name; got {[len(f) for f in frames]}")
    pages = []
    for cells, name in zip(frames, names, strict=True):
        height = sum(c.height + GAP for c in cells)
        page = Image.new("RGB", (max(c.width for c in cells) + 2 * MARGIN, height + MARGIN + TITLE), PAPER)
        ImageDraw.Draw(page).text((MARGIN, 5), name, fill=INK, font=ImageFont.load_default(12))
        up = TITLE
        for cell in cells:
            page.paste(cell, (MARGIN, up))
            up += cell.height + GAP
        pages.append(page.quantize(256, dither=Image.Dither.NONE))
    return _write_gif(pages + (pages[-2:0:-1] if back else []), path, FRAME_MILLISECONDS)


def plot_curves(rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Writes a PNG of a run's curves from the rows of log.jsonl: a panel per quantity, 2D stage left, 3D stage
    right."""
    # matplotlib is slow to import and only this picture needs it. The Agg canvas needs no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = [s for s in ("2d", "3d") if any(r.get("stage") == s for r in rows)]
    present = [q for q in QUANTITIES if any(r.get(q) is not None for r in rows)]
    if not stages or not present:
        raise ImageError("rows: expected log rows with a stage and at least one of " + ", ".join(QUANTITIES))
    figure = Figure(figsize=(5.2 * len(stages), 1.9 * len(present)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(present), len(stages), squeeze=False, sharex="col")
    for i, quantity in enumerate(present):
        for j, stage in enumerate(stages):
            points = [
                (r["images"], r[quantity]) for r in rows if r.get("stage") == stage and r.get(quantity) is not None
            ]
            axis = axes[i][j]
            if points:
                images, values = zip(*points, strict=True)
                marker = "o" if len(points) < 60 else None
                axis.plot(np.array(images) / 1000, values, lw=1, marker=marker, ms=3, color=f"C{j}")
            if quantity == "distance":
                axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            axis.set_title(f"{stage.upper()}: {QUANTITIES[quantity]}", fontsize=9)
            if i == len(present) - 1:
                axis.set_xlabel("real images shown to the discriminator (thousands)", fontsize=8)
            axis.tick_params(labelsize=8)
    path = Path(path)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def _write_gif(frames: Sequence[Image.Image], path: str | os.PathLike[str], milliseconds: int) -> Path:
    path = Path(path)
    with atomic_path(path) as temporary:
        frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return path


def _checked(array: np.ndarray, dims: int) -> np.ndarray:
    """The array as float32; raises ImageError where it is empty, not finite or not of `dims` axes."""
    array = np.asarray(array, dtype=np.float32)
    if array.ndim != dims or array.size == 0:
        axes = "(N, Z, Y, X)" if dims == 4 else "(N, H, W)"
        raise ImageError(f"expected a non-empty array {axes} to draw; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ImageError(f"{int((~np.isfinite(array)).sum())} values to draw are NaN or infinite")
    return array


def _checked_masks(masks: np.ndarray | None, volumes: np.ndarray) -> Sequence[np.ndarray | None]:
    """The mask of each volume, None where there is none; raises ImageError for another shape or no class numbers."""
    if masks is None:
        return [None] * len(volumes)
    masks = np.asarray(masks)
    if masks.shape != volumes.shape or masks.dtype.kind not in "iu" or masks.min() < 0 or masks.max() > NO_MASK:
        raise ImageError(
            f"masks: expected class numbers (integers from 0 to {NO_MASK}) of shape {volumes.shape}; got "
            f"{masks.dtype} of shape {masks.shape}"
        )
    return [np.where(mask == NO_MASK, 0, mask).astype(np.uint8) for mask in masks]


def _plane(plane: np.ndarray, mm: tuple[float, float], scale: float, mask: np.ndarray | None = None) -> Image.Image:
    """Draws a slice with rows upwards, -1 black and +1 white, and its mask over it; mm: voxel size along rows and
    columns."""
    grey = np.round((np.clip(plane[::-1], -1, 1) + 1) * 127.5).astype(np.uint8)
    rows, columns = (max(1, round(n * s * scale)) for n, s in zip(plane.shape, mm, strict=True))
    image = Image.fromarray(grey).resize((columns, rows), Image.Resampling.BICUBIC)
    return image if mask is None else _with_mask(image, mask)


def _with_mask(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draws the classes of a mask (H, W), rows upwards, over a grey image: tinted, with an outline."""
    classes = np.asarray(Image.fromarray(mask[::-1]).resize(image.size, Image.Resampling.NEAREST))
    padded = np.pad(classes, 1, mode="edge")
    around = [padded[1:-1, :-2], padded[1:-1, 2:], padded[:-2, 1:-1], padded[2:, 1:-1]]
    outline = np.any([classes != other for other in around], axis=0)
    strength = np.where(classes == 0, 0.0, np.where(outline, 1.0, TINT))[..., None]
    colours = np.array([(0, 0, 0), *MASK_COLOURS])[np.where(classes == 0, 0, (classes - 1) % len(MASK_COLOURS) + 1)]
    drawn = np.asarray(image, np.float64)[..., None] * (1 - strength) + colours * strength
    return Image.fromarray(np.round(drawn).astype(np.uint8))


def _slices_to_show(shape: Sequence[int], mask: np.ndarray | None) -> list[int]:
    """The index on each axis of the slice with the most voxels of the mask, of several the one nearest the middle."""
    middle = [n // 2 for n in shape]
    if mask is None or not mask.any():
        return middle
    found = []
    for axis, n in enumerate(shape):
        voxels = np.count_nonzero(mask, axis=tuple(a for a in range(3) if a != axis))
        found.append(min(np.flatnonzero(voxels == voxels.max()).tolist(), key=lambda i: abs(i - n // 2)))
    return found


def _cell(
    volume: np.ndarray, spacing: Spacing | None, sides: bool = False, mask: np.ndarray | None = None
) -> Image.Image:
    """Draws three slices side by side, those of `_slices_to_show`; `sides` marks left and right in the axial and
    coronal ones."""
    sx, sy, sz = spacing or (1.0, 1.0, 1.0)
    z, y, x = _slices_to_show(volume.shape, mask)
    scale = CELL / max(n * s for n, s in zip(volume.shape, (sz, sy, sx), strict=True))
    planes = [
        _plane(volume[z], (sy, sx), scale, None if mask is None else mask[z]),
        _plane(volume[:, y], (sz, sx), scale, None if mask is None else mask[:, y]),
        _plane(volume[:, :, x], (sz, sy), scale, None if mask is None else mask[:, :, x]),
    ]
    height = max(p.height for p in planes)
    cell = Image.new("RGB", (sum(p.width for p in planes) + 2 * GAP, height), PAPER)
    draw, font = ImageDraw.Draw(cell), ImageFont.load_default(9)
    left = 0
    for number, plane in enumerate(planes):
        up = (height - plane.height) // 2
        cell.paste(plane.convert("RGB"), (left, up))
        if sides and number < 2:
            for letter, column, anchor in (("L", left + 2, "ls"), ("R", left + plane.width - 2, "rs")):
                place = (column, up + plane.height - 2)
                draw.text(place, letter, fill=INK, font=font, anchor=anchor, stroke_width=1, stroke_fill=PAPER)
        left += plane.width + GAP
    return cell


def _sheet(
    cells: Sequence[Image.Image],
    names: Sequence[str] | None,
    path: str | os.PathLike[str],
    title: str | None,
    columns: int | None,
) -> Path:
    """Writes a PNG with the cells in a grid of about 3:2, or of `columns`, on a dark page."""
    width, height = cells[0].width, max(c.height for c in cells) + (14 if names else 0)
    if columns is None:
        columns = max(1, round(math.sqrt(1.5 * len(cells) * (height + MARGIN) / (width + MARGIN))))
        columns = min(columns, len(cells), max(1, (MAX_WIDTH - MARGIN) // (width + MARGIN)))
    if columns < 1:
        raise ImageError(f"columns: expected at least 1; got {columns}")
    lines = -(-len(cells) // columns)
    top = MARGIN + (TITLE if title else 0)
    size = (MARGIN + columns * (width + MARGIN), top + lines * (height + MARGIN))
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((MARGIN, MARGIN - 2), title, fill=INK, font=ImageFont.load_default(14))
    for i, cell in enumerate(cells):
        left, up = MARGIN + i % columns * (width + MARGIN), top + i // columns * (height + MARGIN)
        page.paste(cell, (left, up))
        if names:
            draw.text((left, up + cell.height + 1), names[i], fill=INK, font=ImageFont.load_default(11))
    path = Path(path)
    with atomic_path(path) as temporary:
        page.save(temporary, format="PNG", optimize=True)
    return path
