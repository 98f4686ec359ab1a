"""The report's volumes: embedded as 8-bit greys, with sliders through the slices of every plane."""

from __future__ import annotations

import base64
import gzip
from typing import Any

import numpy as np
from PIL import Image

from ssgan.data.axes import to_axial
from ssgan.reporting.content import ReportContent
from ssgan.reporting.elements import esc, missing, picture, range_slider
from ssgan.utils.pictures import three_plane_grid

MAX_VOXELS = 12 * 2**20  # embedded, of all sets together
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}  # name -> axis of (Z, Y, X) that the slider moves along


def embedded_volumes(content: ReportContent) -> dict[str, Any] | None:
    """Packs the volumes as gzipped 8-bit greys on the axes (Z, Y, X), with the names of their sets; None without any.

    Where they have more than MAX_VOXELS together, every axis is reduced by block means until they have not.
    """
    sets: list[tuple[str, list[str], np.ndarray]] = []
    if content.real is not None:
        sets.append(
            ("Real: the first of the data set", [f"volume {i}" for i in range(len(content.real))], content.real)
        )
    if content.fake is not None:
        sets.append(("Generated: the first seeds, none chosen", [f"seed {s}" for s in content.seeds], content.fake))
    found = content.neighbours
    if found is not None and content.data is not None:
        names = [f"volume {i}, {d:.3f}" for i, d in zip(found.index, found.distance, strict=True)]
        near = np.stack([np.asarray(content.data.volumes[i]) for i in found.index])
        sets.append(("Nearest training volume to each generated one, and its distance", names, near))
    if not sets:
        return None
    everything = to_axial(np.concatenate([v for _, _, v in sets]), content.info.slice_axis)
    factor = next(f for f in range(1, 1000) if everything.size / f**3 <= MAX_VOXELS)
    spacing = [s * factor for s in content.info.spacing[::-1]]
    if factor > 1:
        everything = reduce_volumes(everything, factor)
    greys = np.round((np.clip(everything, -1, 1) + 1) * 127.5).astype(np.uint8)
    packed = gzip.compress(np.ascontiguousarray(greys).tobytes(), 9, mtime=0)
    return {
        "shape": list(greys.shape[1:]),
        "spacing": spacing,
        "factor": factor,
        "sets": [{"title": title, "names": names} for title, names, _ in sets],
        "data": base64.b64encode(packed).decode(),
    }


def reduce_volumes(volumes: np.ndarray, factor: int) -> np.ndarray:
    """Reduces (N, Z, Y, X) by means over blocks of factor^3 voxels; voxels beyond the last whole block are cut off."""
    n, *size = volumes.shape
    kept = [s // factor for s in size]
    cut = volumes[:, : kept[0] * factor, : kept[1] * factor, : kept[2] * factor]
    blocks = cut.reshape(n, kept[0], factor, kept[1], factor, kept[2], factor)
    return blocks.mean((2, 4, 6), dtype=np.float32)


def volumes_section(content: ReportContent, volumes: dict[str, Any] | None) -> str:
    """Shows every set in every plane with a slider per plane; without JavaScript, still pictures of middle slices."""
    notes = [missing(esc(text)) for text in (content.no_real, content.no_fake) if text]
    if volumes is None:
        return "".join(notes)
    shape, blocks = volumes["shape"], []
    for plane, axis in PLANES.items():
        block = [f'<div class="plane js-only"><h3>{plane.capitalize()}</h3>']
        block.append(range_slider(plane, f"{plane.capitalize()} slice", shape[axis], shape[axis] // 2))
        number = 0
        for group in volumes["sets"]:
            cells = []
            for name in group["names"]:
                label = f"{plane} slice of {group['title'].split(':')[0].lower()}, {name}"
                attributes = f'data-plane="{plane}" data-volume="{number}" role="img" aria-label="{esc(label)}"'
                cells.append(f"<li><canvas {attributes}></canvas><span>{esc(name)}</span></li>")
                number += 1
            block.append(f'<p class="note">{esc(group["title"])}</p><ul class="films">{"".join(cells)}</ul>')
        blocks.append("".join(block) + "</div>")
    still = []
    for name, array in (("real", content.real), ("generated", content.fake)):
        if array is not None:
            alt = f"{len(array)} {name} volumes, axial, coronal and sagittal middle slices"
            still.append(picture(grid(content, array), alt, f"{name}, middle slices"))
    reduced = f" Reduced by a factor of {volumes['factor']} along every axis for this page." * (volumes["factor"] > 1)
    scale = f"{content.info.intensity_low:g} to {content.info.intensity_high:g}"
    caption = (
        f"Greys from black to white are intensities from {scale}. The patient's right is on the right; the front is up "
        f"(axial) or right (sagittal). Arrow keys move a slider that has the focus.{reduced}"
    )
    return (
        "".join(notes) + f'<p class="note">{esc(caption)}</p>{"".join(blocks)}<div class="no-js">{"".join(still)}</div>'
    )


def grid(content: ReportContent, volumes: np.ndarray) -> Image.Image:
    """Draws `three_plane_grid` as an image."""
    path = content.run / ".report-still.png"
    try:
        three_plane_grid(to_axial(volumes, content.info.slice_axis), path, spacing=content.info.spacing)
        with Image.open(path) as image:
            return image.convert("L")
    finally:
        path.unlink(missing_ok=True)
