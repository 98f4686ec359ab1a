"""The report's volumes: embedded as 8-bit greys, with sliders through the slices of every plane and the masks in colour
over them, and two volumes side by side, with their masks, in the viewer of `ssgan view`."""

from __future__ import annotations

import base64
import gzip
import re
from importlib import resources
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from ssgan.data.axes import to_axial
from ssgan.data.dataset import DatasetInfo
from ssgan.reporting.content import ReportContent
from ssgan.reporting.elements import esc, missing, picture, range_slider
from ssgan.utils.pictures import MASK_COLOURS, NO_MASK, TINT, three_plane_grid

MAX_VOXELS = 12 * 2**20  # embedded, of all sets together
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}  # name -> axis of (Z, Y, X) that the slider moves along


def embedded_volumes(content: ReportContent) -> dict[str, Any] | None:
    """Packs the volumes as gzipped 8-bit greys on the axes (Z, Y, X), with the names of their sets; None without any.

    Where they have more than MAX_VOXELS together, every axis is reduced by block means until they have not.
    """
    sets: list[tuple[str, list[str], np.ndarray, np.ndarray | None]] = []
    if content.real is not None:
        names = [f"volume {i}" for i in range(len(content.real))]
        sets.append(("Real: the first of the data set", names, content.real, content.real_masks))
    if content.fake is not None:
        names = [f"seed {s}" for s in content.seeds]
        sets.append(("Generated: the first seeds, none chosen", names, content.fake, content.fake_masks))
    found, data = content.neighbours, content.data
    if found is not None and data is not None:
        names = [f"volume {i}, {d:.3f}" for i, d in zip(found.index, found.distance, strict=True)]
        near = np.stack([np.asarray(data.volumes[i]) for i in found.index])
        masks = None if content.real_masks is None else np.stack([np.asarray(data.masks[i]) for i in found.index])
        sets.append(("Nearest training volume to each generated one, and its distance", names, near, masks))
    if not sets:
        return None
    everything = to_axial(np.concatenate([v for _, _, v, _ in sets]), content.info.slice_axis)
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
        "sets": [{"title": title, "names": names} for title, names, _, _ in sets],
        "nifti": base64.b64encode(nifti_header(content.info, greys.shape[:0:-1], factor)).decode(),
        "window": [content.info.intensity_low, content.info.intensity_high],
        "data": base64.b64encode(packed).decode(),
        **_embedded_masks(content, [(v, m) for _, _, v, m in sets], factor),
    }


def _embedded_masks(
    content: ReportContent, sets: list[tuple[np.ndarray, np.ndarray | None]], factor: int
) -> dict[str, Any]:
    """Packs the masks of all sets of (volumes, masks) as gzipped class numbers on the axes and the grid of the greys,
    with names and colours of the classes; nothing where no set has masks."""
    if all(m is None for _, m in sets):
        return {}
    masks = [np.full(v.shape, NO_MASK, np.uint8) if m is None else m for v, m in sets]
    everything = to_axial(np.concatenate(masks), content.info.slice_axis)
    z, y, x = (slice(factor // 2, n // factor * factor, factor) for n in everything.shape[1:])  # amid each block
    packed = gzip.compress(np.ascontiguousarray(everything[:, z, y, x]).tobytes(), 9, mtime=0)
    names = (content.info.mask_names or ())[1:]
    return {
        "masks": base64.b64encode(packed).decode(),
        "classes": [{"name": n, "colour": list(c)} for n, c in zip(names, MASK_COLOURS, strict=False)],
        "tint": TINT,
    }


def nifti_header(info: DatasetInfo, shape: tuple[int, ...], factor: int) -> bytes:
    """The 352 bytes before the voxels of a NIfTI file of greys 0 .. 255, of axes (X, Y, Z) reduced by `factor`."""
    reduction = np.diag([factor, factor, factor, 1.0])
    reduction[:3, 3] = (factor - 1) / 2
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(shape)
    header.set_sform(np.asarray(info.affine) @ reduction, code="aligned")
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = (info.intensity_high - info.intensity_low) / 255, info.intensity_low
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


def viewer_scripts() -> str:
    """The scripts of the viewer, NiiVue among them, as elements of the page."""
    own, shared = (resources.files(package) / "page" for package in ("ssgan.reporting", "ssgan.viewing"))
    niivue = (shared / "niivue.js").read_text(encoding="utf-8")
    names = re.search(r"export\{(\w+) as NVImage,(\w+) as Niivue\};\s*$", niivue)
    if names is None:
        raise ValueError("niivue.js does not end with the exports of NVImage and Niivue")
    niivue = f"{niivue[: names.start()]}globalThis.niivue = {{ NVImage: {names[1]}, Niivue: {names[2]} }};"
    niivue = niivue.replace("</", r"<\/")  # in its strings: no end of an element within the script
    screen = (shared / "screen.js").read_text(encoding="utf-8")
    screen = re.sub(
        r"^import .*$", "const { Niivue, NVImage } = globalThis.niivue;", screen, count=1, flags=re.MULTILINE
    )
    screen = screen.replace("export class Screen", "class Screen") + (own / "viewer.js").read_text(encoding="utf-8")
    return "".join(f'<script type="module">{script}</script>\n' for script in (niivue, screen))


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
    for name, array, masks in (
        ("real", content.real, content.real_masks), ("generated", content.fake, content.fake_masks)
    ):  # fmt: skip
        if array is not None:
            slices = "middle slices" if masks is None else "slices with most of the mask, masks in colour"
            alt = f"{len(array)} {name} volumes, axial, coronal and sagittal {slices}"
            still.append(picture(grid(content, array, masks), alt, f"{name}, {slices}"))
    reduced = f" Reduced by a factor of {volumes['factor']} along every axis for this page." * (volumes["factor"] > 1)
    scale = f"{content.info.intensity_low:g} to {content.info.intensity_high:g}"
    caption = (
        f"Greys from black to white are intensities from {scale}. The patient's right is on the right; the front is up "
        f"(axial) or right (sagittal). Arrow keys move a slider that has the focus.{reduced}"
    )
    return (
        "".join(notes)
        + f'<p class="note">{esc(caption)}</p>{mask_legend(volumes)}{viewer_panel(volumes)}{"".join(blocks)}'
        f'<div class="no-js">{"".join(still)}</div>'
    )


def mask_legend(volumes: dict[str, Any]) -> str:
    """Names the colours of the masks, with a box that hides them; nothing without masks."""
    if "masks" not in volumes:
        return ""
    swatches = [(c["name"], ",".join(map(str, c["colour"]))) for c in volumes["classes"]]
    colours = "".join(
        f'<li><span class="swatch" style="background:rgb({colour})"></span>{esc(name)}</li>'
        for name, colour in swatches
    )
    return (
        f'<ul class="legend" aria-label="Colours of the masks">{colours}</ul><p class="js-only"><input type="checkbox" '
        'id="show-masks" checked> <label for="show-masks">Show the masks over the volumes</label></p>'
    )


def viewer_panel(volumes: dict[str, Any]) -> str:
    """Two volumes side by side in planes and in 3D: the first generated one and its nearest training volume, where they
    are there, else the first of the first and last set. Hidden until the viewer's script finds that it can draw."""
    titles = [g["title"].split(":")[0].split(" to each")[0] for g in volumes["sets"]]
    names = [
        (k, f"{title}, {name}") for k, (title, g) in enumerate(zip(titles, volumes["sets"])) for name in g["names"]
    ]
    starts = [next((k for k, title in enumerate(titles) if title == "Generated"), 0), len(titles) - 1]
    parts = []
    for side, begin in zip(("left", "right"), starts):
        first = next(i for i, (k, _) in enumerate(names) if k == begin)
        options = "".join(
            f'<option value="{i}"{" selected" * (i == first)}>{esc(name)}</option>' for i, (_, name) in enumerate(names)
        )
        parts.append(
            f'<figure id="viewer-{side}"><label for="shown-{side}">{side.capitalize()}</label> '
            f'<select id="shown-{side}">{options}</select>'
            f'<div><canvas tabindex="0" role="img" aria-label="{side} volume"></canvas></div>'
            "<figcaption></figcaption></figure>"
        )
    views = {"3": "three planes and 3D", "0": "axial", "1": "coronal", "2": "sagittal", "4": "3D"}
    options = "".join(f'<option value="{value}">{name}</option>' for value, name in views.items())
    return (
        '<div class="plane" id="viewer" hidden><h3>Two volumes side by side</h3>'
        '<p class="note">Drag to move the crosshair, or to turn the 3D picture; the wheel goes through the slices. '
        f'Both follow.</p><p><label for="view">View</label> <select id="view">{options}</select></p>'
        f'<div class="pair">{"".join(parts)}</div></div>'
    )


def grid(content: ReportContent, volumes: np.ndarray, masks: np.ndarray | None) -> Image.Image:
    """Draws `three_plane_grid` as an image."""
    path = content.run / ".report-still.png"
    axis = content.info.slice_axis
    drawn = None if masks is None else to_axial(masks, axis)
    try:
        three_plane_grid(to_axial(volumes, axis), path, spacing=content.info.spacing, masks=drawn)
        with Image.open(path) as image:
            return image.convert("RGB")
    finally:
        path.unlink(missing_ok=True)
