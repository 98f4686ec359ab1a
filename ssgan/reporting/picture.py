"""Draws a run and its evaluation on one picture, `ssgan report --picture FILE.png`, for a README or a slide."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ssgan.data.axes import to_axial
from ssgan.models.sampling import latents, synthesise
from ssgan.reporting.content import ReportContent, ReportError
from ssgan.reporting.formatting import format_duration
from ssgan.runs.generator import load_generator
from ssgan.utils.files import atomic_path
from ssgan.utils.pictures import GAP, three_plane_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 10.0, 160  # inches and pixels per inch: text of 8 points stays legible at 850 pixels of width
SHOWN, PAIRS, DIGITS = 6, 3, 3
BLUE, ORANGE, INK, SOFT = "#2f6fb0", "#c27a1d", "#16181c", "#5c6570"
NAMES = {
    "frechet": "Fréchet distance", "kid": "KID", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "mmd": "MMD of voxels", "msssim": "MS-SSIM of pairs", "histogram": "histogram distance",
    "spectrum": "spectrum distance", "profile_D": "profile along D", "profile_H": "profile along H",
    "profile_W": "profile along W",
}  # fmt: skip
NAMES |= {f"{name}_deepbet": f"{NAMES[name]}, deepbet" for name in tuple(NAMES)[:6]}  # those of features

# (generated volume, its name, training volume, its name); volumes are (D, H, W)
Pair = tuple[np.ndarray, str, np.ndarray, str]


def draw_picture(content: ReportContent, path: Path) -> Path:
    """Draws the PNG. Raises ReportError where there is no evaluation, data set or 3D checkpoint to draw it from."""
    # matplotlib is slow to import and only pictures need it. The Agg canvas needs no display.
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if content.metrics is None:
        raise ReportError(
            f"--picture: {content.run} has no evaluation; `ssgan evaluate` first, or name it by --metrics"
        )
    if content.real is None or content.fake is None:
        raise ReportError(f"--picture: {content.no_real or content.no_fake}")
    rows = list(content.metrics["metrics"].items())
    strip = _strip(content, content.real[0])
    lines = -(-min(SHOWN, len(content.fake)) // 2)
    shown = lines * (WIDTH - 0.5) / 4 * strip.height / strip.width + 0.35  # inches of the volumes at the top
    below = max(0.255 * (len(rows) + 5.1) + 0.3, 4.2)
    with matplotlib.rc_context({"font.family": "sans-serif", "font.size": 8.5, "text.color": INK}):
        figure = Figure(figsize=(WIDTH, shown + below + 0.75), facecolor="white")
        FigureCanvasAgg(figure)
        height = figure.get_figheight()
        top, middle = 1 - 0.5 / height, 1 - (0.5 + shown) / height
        figure.text(0.02, 1 - 0.24 / height, _title(content), fontsize=10.5, weight="bold", va="center")
        for left, name, volumes, masks in (
            (0.02, "Real: the first of the data set", content.real, content.real_masks),
            (0.515, "Generated: the first seeds, none chosen", content.fake, content.fake_masks),
        ):
            axes = _panel(figure, left, middle, 0.465, top - middle, name)
            shown_masks = [None] * len(volumes) if masks is None else masks
            cells = [_strip(content, v, m) for v, m in zip(volumes[:SHOWN], shown_masks[:SHOWN], strict=True)]
            _picture(axes, _grid(cells, 2))
        bottom = 0.3 / height
        box = middle - 0.12 / height - bottom
        _metrics(_panel(figure, 0.02, bottom, 0.53, box, "How good: value, 95 % interval, and floor"), content, rows)
        pairs, what = closest_pairs(content)
        cells = [_strip(content, v) for generated, _, training, _ in pairs for v in (generated, training)]
        page = _grid(cells, 2)
        tall = 0.41 * WIDTH * page.height / page.width / height + 0.3 / height
        tall = min(tall, 0.66 * box)
        axes = _panel(figure, 0.57, bottom + box - tall, 0.41, tall, f"Copies? {what}")
        _picture(axes, page)
        _pair_names(axes, page, pairs)
        _curve(figure, (0.615, bottom + 0.42 / height, 0.36, box - tall - 0.85 / height), content)
        figure.text(0.02, 0.12 / height, _footer(content), fontsize=6.8, color=SOFT, va="center")
        if content.metrics_note:
            figure.text(0.02, 1 - 0.42 / height, content.metrics_note, fontsize=8, color=ORANGE, va="center")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=DPI)
    return path


def closest_pairs(content: ReportContent) -> tuple[list[Pair], str]:
    """Finds the closest pairs of a generated and a training volume, and describes them in words.

    They are those of the evaluation where its volumes were of this checkpoint, which their distances show; else those
    of the volumes on the page.
    """
    assert content.data is not None and content.fake is not None and content.neighbours is not None
    found = ((content.metrics or {}).get("memorisation") or {}).get("voxels", {}).get("closest") or []
    found = [(int(i), int(j), float(d)) for i, j, d in found][:PAIRS]
    about = (content.metrics or {})["fake"]
    if found and about.get("kind") == "run" and max(j for _, j, _ in found) < len(content.data):
        source = load_generator(content.run, content.checkpoint)
        G, c = source.G, source.class_labels(int(about["volumes"]))
        seeds = [i for i, _, _ in found]
        made = synthesise(G, latents(seeds, G.cfg.z_dim), batch=4, c=None if c is None else c[seeds])
        made = np.clip(made, -1, 1)
        near = [np.asarray(content.data.volumes[j]) for _, j, _ in found]
        if all(np.isclose(np.linalg.norm(a - b), d, rtol=1e-3) for a, b, (_, _, d) in zip(made, near, found)):
            named = zip(made, near, found, strict=True)
            pairs = [(a, f"seed {i}", b, f"training {j}, distance {d:.3g}") for a, b, (i, j, d) in named]
            return pairs, f"the {len(pairs)} closest of {about['volumes']} generated to training"
    near_by = content.neighbours
    order = np.argsort(near_by.distance, kind="stable")[:PAIRS]
    pairs = [
        (content.fake[k], f"seed {content.seeds[k]}", np.asarray(content.data.volumes[near_by.index[k]]),
         f"training {near_by.index[k]}, distance {near_by.distance[k]:.3g}")
        for k in order
    ]  # fmt: skip
    return pairs, f"the {len(pairs)} closest of the {len(content.fake)} first seeds to training"


# ---- parts ----


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.{DIGITS}g}"


def _title(content: ReportContent) -> str:
    size = " x ".join(map(str, content.cfg.network.shape))
    images = (
        f"{content.meta.images:,} volumes shown" if content.meta.stage == "3d" else f"{content.meta.images:,} slices"
    )
    before = f" after {content.meta.images_before:,} slices" if content.meta.images_before else ""
    name = content.run.resolve().name
    return (
        f"{name}: {content.cfg.network.arch_name}, {size} voxels, {images}{before}, {format_duration(content.seconds)}"
    )


def _footer(content: ReportContent) -> str:
    found: dict[str, Any] = content.metrics or {}
    extractor = found["extractor"]
    shown = "middle slices" if content.fake_masks is None else "slices with most of the mask"
    return (
        f"{found['count']} generated against {found['count']} real volumes; features {extractor.get('name')} (SHA-256 "
        f"{str(extractor.get('sha256'))[:12]}); checkpoint {content.sha256[:12]}; axial, coronal and sagittal {shown}; "
        f"ssgan {content.environment['ssgan']}, commit {content.environment['commit'].split(' ')[0]}"
    )


def _strip(content: ReportContent, volume: np.ndarray, mask: np.ndarray | None = None) -> Image.Image:
    axis = content.info.slice_axis
    drawn = None if mask is None else to_axial(mask, axis)
    return three_plane_cell(to_axial(volume, axis), content.info.spacing, drawn)


def _grid(cells: list[Image.Image], columns: int) -> Image.Image:
    """Arranges cells in columns on white, with a gap between them."""
    width, height = cells[0].width + 2 * GAP, cells[0].height + 2 * GAP
    lines = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * width - 2 * GAP, lines * height - 2 * GAP), "white")
    for i, cell in enumerate(cells):
        page.paste(cell, (i % columns * width, i // columns * height))
    return page


def _panel(figure: Figure, left: float, bottom: float, width: float, height: float, title: str) -> Axes:
    """Adds axes below a title; the box, title included, is in fractions of the figure."""
    room = 0.24 / figure.get_figheight()
    figure.text(left, bottom + height - room / 2, title, fontsize=9, weight="bold", va="center")
    axes = figure.add_axes((left, bottom, width, height - room))
    axes.axis("off")
    return axes


def _picture(axes: Axes, page: Image.Image) -> None:
    axes.imshow(page, aspect="equal", interpolation="lanczos")
    axes.set_anchor("NW")


def _pair_names(axes: Axes, page: Image.Image, pairs: list[Pair]) -> None:
    """Writes names on the pictures: generated on the left, training on the right."""
    line, half = page.height / len(pairs), page.width / 2
    style = {"fontsize": 6.3, "color": "white", "va": "bottom"}
    for i, (_, generated, _, training) in enumerate(pairs):
        axes.text(4, (i + 1) * line - 2 * GAP - 1, generated, **style)
        axes.text(half + 4, (i + 1) * line - 2 * GAP - 1, training, **style)


def _metrics(axes: Axes, content: ReportContent, rows: list[tuple[str, dict[str, Any]]]) -> None:
    """Draws the table: a line per metric, its interval on a scale of its own; below it the check for copies."""
    check = (content.metrics or {}).get("memorisation") or {}
    spaces = [s for s in ("features", "voxels") if s in check]
    count = len(rows) + (5.1 if spaces else 2.1)
    axes.set_xlim(0, 1)
    axes.set_ylim(count, 0)
    columns = {"metric": (0.0, "left"), "value": (0.335, "right"), "95 % interval": (0.56, "right")}
    columns |= {"floor": (0.69, "right"), "better": (0.715, "left")}
    for name, (x, side) in columns.items():
        axes.text(x, 0.5, name, ha=side, va="center", color=SOFT, fontsize=8)
    axes.axhline(1, color="#c9ced6", lw=0.8)
    for i, (name, row) in enumerate(rows):
        y, interval = i + 1.5, row.get("interval")
        shown = "none" if interval is None else f"{interval[0]:.2g} to {interval[1]:.2g}"
        texts = [NAMES.get(name, name), _number(row["value"]), shown, _number(row.get("floor")), row.get("better", "")]
        for text, (column, (x, side)) in zip(texts, columns.items(), strict=True):
            weight = "bold" if column == "value" else "normal"
            axes.text(x, y, text, ha=side, va="center", weight=weight, color=SOFT if column == "better" else INK)
        _interval(axes, y, row)
    y = len(rows) + 1
    axes.axhline(y, color="#c9ced6", lw=0.8)
    axes.plot(0.01, y + 0.55, "o", color=BLUE, ms=5)
    axes.text(0.03, y + 0.55, "value and its interval", va="center", fontsize=7.5, color=SOFT)
    axes.plot([0.335] * 2, [y + 0.3, y + 0.8], color=ORANGE, lw=2.4)
    axes.text(0.35, y + 0.55, "floor: real against real, as a perfect generator would score", va="center",
              fontsize=7.5, color=SOFT)  # fmt: skip
    if spaces:
        ratios = " and ".join(f"{_number(check[s]['ratio'])} ({s})" for s in spaces)
        shares = " and ".join(f"{check[s]['below_5_percent']:.0%} ({s})" for s in spaces)
        held = "held-out" if "held-out" in check.get("reference", "") else "other training"
        axes.text(0, y + 1.75, f"Copies: distance to training volumes, against that of {held} ones", va="center",
                  fontsize=9, weight="bold")  # fmt: skip
        axes.text(0, y + 2.7, f"ratio of the medians {ratios}: about 1 without copies, well below 1 with", va="center",
                  fontsize=8)  # fmt: skip
        axes.text(0, y + 3.55, f"nearer than their 5 % quantile: {shares}; 5 % without copies", va="center", fontsize=8)


def _interval(axes: Axes, y: float, row: dict[str, Any]) -> None:
    """Draws the interval as a line, the value as a dot and the floor as a tick, on a scale of the row's own."""
    value, floor, interval = row["value"], row.get("floor"), row.get("interval")
    points = [v for v in (value, floor, *(interval or ())) if v is not None]
    low, high = min(points), max(points)

    def at(v: float) -> float:
        return 0.83 + 0.16 * ((v - low) / (high - low) if high > low else 0.5)

    if interval is not None:
        axes.plot([at(interval[0]), at(interval[1])], [y, y], color=INK, lw=1.2, solid_capstyle="round")
    if floor is not None:
        axes.plot([at(floor)] * 2, [y - 0.28, y + 0.28], color=ORANGE, lw=2.4)
    axes.plot(at(value), y, "o", color=BLUE, ms=5)


def _curve(figure: Figure, box: tuple[float, float, float, float], content: ReportContent) -> None:
    """Draws the sliced Wasserstein distance to the data over both stages, and its floor."""
    axes = figure.add_axes(box)
    before, boundary, highest = 0.0, None, 0.0
    names: list[tuple[str, str]] = []
    for stage, colour in (("2d", SOFT), ("3d", BLUE)):
        own = [r for r in content.rows if r.get("stage") == stage]
        # Without the row "start", of the untrained network: its distance would leave no room for the others.
        rows = [r for r in own if r.get("distance") is not None and r.get("event") != "start"]
        if not rows:
            continue
        x = [before + r["images"] / 1000 for r in rows]
        what = "2D stage, slices" if stage == "2d" else "3D stage, volumes"
        marker = "o" if len(x) < 30 else None
        y = [r["distance"] for r in rows]
        axes.plot(x, y, color=colour, lw=1.4, marker=marker, ms=3)
        highest = max(highest, *y)
        after = max(r["images"] for r in own if "images" in r) / 1000
        names.append((what, colour))
        boundary, before = before, before + after
    if boundary:
        axes.axvline(boundary, color="#c9ced6", lw=0.8)
    if content.floor is not None:
        axes.axhline(content.floor, color=ORANGE, lw=1.2, ls="--")
        axes.text(before, content.floor, "floor of volumes", ha="right", va="bottom", fontsize=7, color=ORANGE)
    highest = 1.3 * max(highest, content.floor or 0.0, 1e-9)
    axes.set_ylim(0, highest)
    axes.set_xlim(0, 1.01 * before or 1)
    # At the two ends of the plot, where they have room however short a stage is.
    for (name, colour), x, side in zip(names, (0.01, 0.99), ("left", "right"), strict=False):
        axes.text(x, 0.97, name, ha=side, va="top", fontsize=7.5, color=colour, transform=axes.transAxes)
    axes.set_title("Training: sliced Wasserstein distance to the data", fontsize=9, weight="bold", loc="left", x=-0.09)
    axes.set_xlabel("thousand real images shown", fontsize=8, labelpad=2)
    axes.tick_params(labelsize=7.5, color=SOFT)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
