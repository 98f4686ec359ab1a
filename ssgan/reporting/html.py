"""The page of `ssgan report`: facts -> one self-contained HTML file. Skeleton, style and script are in ssgan/page."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from ssgan.config.network import ARCHITECTURES
from ssgan.data.axes import to_axial
from ssgan.reporting.collect import Facts, ReportError, parameters
from ssgan.utils.pictures import QUANTITIES, three_plane_grid

MAX_PAGE = 24 * 2**20  # bytes of the whole page
MAX_VOLUMES = 12 * 2**20  # voxels embedded, of all sets together
MAX_FRAMES = 24  # snapshots
FRAME_WIDTH = 960  # pixels
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}  # name -> axis of (Z, Y, X) that the slider moves along
INK = "#0a0b0c"  # stands for the page's text colour in matplotlib's SVG
NOT_CURVES = {"stage", "step", "images", "seconds", "event", "distance_floor", "images_per_second", "rewinds", "reason"}


def esc(value: object) -> str:
    return html.escape(str(value))


def page(facts: Facts) -> str:
    """The whole page. Raises ReportError where it is larger than MAX_PAGE."""
    volumes = embedded_volumes(facts)
    parts = {
        "Overview": overview(facts),
        "Real and generated": viewer(facts, volumes),
        "Metrics": metrics(facts),
        "Copies": copies(facts),
        "Snapshots": snapshots(facts),
        "Curves": curves(facts),
        "Parameters": parameter_table(facts),
        "What was run": what_was_run(facts),
        "Environment": environment(facts),
    }
    ids = {name: re.sub(r"\W+", "-", name.lower()) for name in parts}
    body = "\n".join(
        f'<section id="{ids[name]}" aria-labelledby="{ids[name]}-title">\n<h2 id="{ids[name]}-title">{esc(name)}</h2>\n'
        f"{text}\n</section>"
        for name, text in parts.items()
    )
    files = resources.files("ssgan.reporting") / "page"
    values = {
        "title": f"Run {esc(facts.run.resolve().name)}",
        "lead": esc(f"3D Split&Shuffle-GAN, preset {facts.cfg.preset}, architecture {facts.cfg.network.arch_name}."),
        "nav": " ".join(f'<a href="#{ids[name]}">{esc(name)}</a>' for name in parts),
        "body": body,
        "footer": "Generated volumes are synthetic. They must not be used for diagnosis, nor taken for anonymised "
        "scans; see MODEL_CARD.md beside the run. This page needs no network.",
        "css": (files / "report.css").read_text(encoding="utf-8"),
        "js": (files / "report.js").read_text(encoding="utf-8"),
        "volumes": json.dumps(volumes) if volumes else "",
    }
    text = Template((files / "report.html").read_text(encoding="utf-8")).substitute(values)
    if len(text.encode()) > MAX_PAGE:
        raise ReportError(
            f"the page has {len(text.encode()) >> 20} MiB, above {MAX_PAGE >> 20}; give a smaller --count"
        )
    return text


# ---- pictures ----


def picture(image: Image.Image, alt: str, caption: str = "", attributes: str = "") -> str:
    """A figure with the picture as a JPEG of at most FRAME_WIDTH, in grey where it is grey."""
    if image.width > FRAME_WIDTH:
        image = image.resize((FRAME_WIDTH, round(image.height * FRAME_WIDTH / image.width)), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.convert("L").save(stream, format="JPEG", quality=85, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    note = f"<figcaption>{esc(caption)}</figcaption>" if caption else ""
    size = f'width="{image.width}" height="{image.height}"'
    return f'<figure{attributes}><img {size} alt="{esc(alt)}" src="data:image/jpeg;base64,{data}">{note}</figure>'


def missing(text: str) -> str:
    return f'<p class="missing">{text}</p>'


def range_slider(name: str, label: str, count: int, value: int) -> str:
    """A labelled slider over 0 .. count - 1, for those with JavaScript; arrow keys move it."""
    return (
        f'<div class="slider js-only"><label for="slider-{name}">{esc(label)}</label>'
        f'<input type="range" id="slider-{name}" min="0" max="{count - 1}" step="1" value="{value}">'
        f'<output id="output-{name}" for="slider-{name}"></output></div>'
    )


# ---- sections ----


def overview(facts: Facts) -> str:
    shape, info, meta = facts.cfg.network.shape, facts.info, facts.meta
    volumes = f"{len(facts.data)} volumes" if facts.data is not None else "unknown number of volumes"
    counts = next(
        (row for row in parameters(facts.cfg) if row[0] == facts.cfg.network.arch_name and len(row) == 3), None
    )
    cards = {
        "Volumes (D x H x W)": " x ".join(map(str, shape)),
        "Spacing (x, y, z)": " x ".join(f"{s:g}" for s in info.spacing) + " mm",
        "Data": f"{volumes}, recipe {info.recipe}",
        "Checkpoint": facts.checkpoint.stem,
        "Real images shown": f"{meta.images:,} in stage {meta.stage}"
        + (f", {meta.images_before:,} before" if meta.images_before else ""),
        "Training time": hours(facts.seconds),
        "State": "finished" if facts.result is not None else "not finished",
    }
    if counts is not None:
        cards["Parameters G + D"] = f"{counts[1] + counts[2]:,}"
    if facts.distance is not None:
        floor = f" (real against real {facts.floor:.4f})" if facts.floor is not None else ""
        cards["Sliced Wasserstein to the data"] = f"{facts.distance:.4f}{floor}"
    return (
        '<dl class="cards">'
        + "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in cards.items())
        + "</dl>"
    )


def hours(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600} h {whole % 3600 // 60} min" if whole >= 3600 else f"{whole // 60} min {whole % 60} s"


def embedded_volumes(facts: Facts) -> dict[str, Any] | None:
    """Volumes as 8-bit greys on the axes (Z, Y, X), gzipped, with their places in the sets; None where there are none.

    Where all of them have more than MAX_VOLUMES voxels, every axis is reduced by block means until they have not.
    """
    sets: list[tuple[str, list[str], np.ndarray]] = []
    if facts.real is not None:
        sets.append(("Real: the first of the data set", [f"volume {i}" for i in range(len(facts.real))], facts.real))
    if facts.fake is not None:
        sets.append(("Generated: the first seeds, none chosen", [f"seed {s}" for s in facts.seeds], facts.fake))
    found = facts.neighbours
    if found is not None and facts.data is not None:
        names = [f"volume {i}, {d:.3f}" for i, d in zip(found.index, found.distance, strict=True)]
        near = np.stack([np.asarray(facts.data.volumes[i]) for i in found.index])
        sets.append(("Nearest training volume to each generated one, and its distance", names, near))
    if not sets:
        return None
    everything = to_axial(np.concatenate([v for _, _, v in sets]), facts.info.slice_axis)
    factor = next(f for f in range(1, 1000) if everything.size / f**3 <= MAX_VOLUMES)
    spacing = [s * factor for s in facts.info.spacing[::-1]]
    if factor > 1:
        everything = reduce(everything, factor)
    greys = np.round((np.clip(everything, -1, 1) + 1) * 127.5).astype(np.uint8)
    packed = gzip.compress(np.ascontiguousarray(greys).tobytes(), 9, mtime=0)
    return {
        "shape": list(greys.shape[1:]),
        "spacing": spacing,
        "factor": factor,
        "sets": [{"title": title, "names": names} for title, names, _ in sets],
        "data": base64.b64encode(packed).decode(),
    }


def reduce(volumes: np.ndarray, factor: int) -> np.ndarray:
    """(N, Z, Y, X) by means over blocks of factor^3 voxels; what is left over at the far ends is cut off."""
    n, *size = volumes.shape
    kept = [s // factor for s in size]
    cut = volumes[:, : kept[0] * factor, : kept[1] * factor, : kept[2] * factor]
    blocks = cut.reshape(n, kept[0], factor, kept[1], factor, kept[2], factor)
    return blocks.mean((2, 4, 6), dtype=np.float32)


def viewer(facts: Facts, volumes: dict[str, Any] | None) -> str:
    """Every set in every plane, a slider for each plane; still pictures of the middle slices without JavaScript."""
    notes = [missing(esc(text)) for text in (facts.no_real, facts.no_fake) if text]
    if volumes is None:
        return "".join(notes)
    shape, blocks = volumes["shape"], []
    for plane, axis in PLANES.items():
        block = [f'<div class="plane js-only"><h3>{plane.capitalize()}</h3>']
        block.append(range_slider(plane, f"{plane.capitalize()} slice", shape[axis], shape[axis] // 2))
        place = 0
        for group in volumes["sets"]:
            cells = []
            for name in group["names"]:
                label = f"{plane} slice of {group['title'].split(':')[0].lower()}, {name}"
                canvas = (
                    f'<canvas data-plane="{plane}" data-volume="{place}" role="img" aria-label="{esc(label)}"></canvas>'
                )
                cells.append(f"<li>{canvas}<span>{esc(name)}</span></li>")
                place += 1
            block.append(f'<p class="note">{esc(group["title"])}</p><ul class="films">{"".join(cells)}</ul>')
        blocks.append("".join(block) + "</div>")
    still = []
    for name, array in (("real", facts.real), ("generated", facts.fake)):
        if array is not None:
            alt = f"{len(array)} {name} volumes, axial, coronal and sagittal middle slices"
            still.append(picture(grid(facts, array), alt, f"{name}, middle slices"))
    reduced = f" Reduced by a factor of {volumes['factor']} along every axis for this page." * (volumes["factor"] > 1)
    scale = f"{facts.info.intensity_low:g} to {facts.info.intensity_high:g}"
    caption = (
        f"Greys from black to white are intensities from {scale}. The patient's right is on the right; the front is up "
        f"(axial) or right (sagittal). Arrow keys move a slider that has the focus.{reduced}"
    )
    return (
        "".join(notes) + f'<p class="note">{esc(caption)}</p>{"".join(blocks)}<div class="no-js">{"".join(still)}</div>'
    )


def grid(facts: Facts, volumes: np.ndarray) -> Image.Image:
    """`three_plane_grid` as an image."""
    path = facts.run / ".report-still.png"
    try:
        three_plane_grid(to_axial(volumes, facts.info.slice_axis), path, spacing=facts.info.spacing)
        with Image.open(path) as image:
            return image.convert("L")
    finally:
        path.unlink(missing_ok=True)


def metrics(facts: Facts) -> str:
    """Values, intervals and floors of metrics.json."""
    found = facts.metrics
    if found is None:
        command = f"python -m ssgan.evaluate --real DATASET --fake {facts.run} --out {facts.run / 'metrics.json'}"
        return missing(f"Not evaluated yet: <code>{esc(command)}</code>, then this report again.")
    rows = []
    for name, row in found["metrics"].items():
        value, floor, interval = row.get("value"), row.get("floor"), row.get("interval")
        shown = "none" if interval is None else f"{number(interval[0])} to {number(interval[1])}"
        rows.append(
            f"<tr><th scope=row>{esc(name)}</th><td class=number>{number(value)}</td><td class=number>{shown}</td>"
            f"<td class=number>{number(floor)}</td><td>{esc(row.get('better', ''))}</td>"
            f"<td>{interval_picture(name, value, interval, floor)}</td></tr>"
        )
    note = missing(esc(facts.metrics_note)) if facts.metrics_note else ""
    extractor = found["extractor"]
    return (
        f"{note}<p>{found['count']} generated against {found['count']} real volumes. Read each number beside its "
        "floor: the same metric between two disjoint sets of real volumes, what a perfect generator would score.</p>"
        '<div class="scroll"><table><thead><tr><th scope=col>metric<th scope=col class=number>value'
        "<th scope=col class=number>95 % interval<th scope=col class=number>floor<th scope=col>better"
        '<th scope=col><span aria-hidden="true">value with interval, floor marked</span></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f'<p class="note">Protocol: {esc(found["protocol"])}. Features: {esc(extractor.get("name"))}, SHA-256 '
        f"{esc(str(extractor.get('sha256'))[:12])}. From {esc(facts.metrics_path)}.</p>"
    )


def number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}"


def interval_picture(name: str, value: float | None, interval: Sequence[float] | None, floor: float | None) -> str:
    """Interval as a line, value as a dot, floor as a tick, on a scale of their own."""
    points = [v for v in (value, floor, *(interval or ())) if v is not None]
    if value is None or len(points) < 2 or max(points) == min(points):
        return ""
    low, high = min(points), max(points)

    def at(v: float) -> str:
        return f"{8 + 204 * (v - low) / (high - low):.1f}"

    parts = []
    if interval is not None:
        parts.append(f'<line x1="{at(interval[0])}" y1="9" x2="{at(interval[1])}" y2="9"/>')
    if floor is not None:
        parts.append(f'<line class="floor" x1="{at(floor)}" y1="2" x2="{at(floor)}" y2="16"/>')
    parts.append(f'<circle cx="{at(value)}" cy="9" r="4.5"/>')
    return f'<svg class="interval" viewBox="0 0 220 18" aria-hidden="true">{"".join(parts)}</svg>'


def copies(facts: Facts) -> str:
    """Nearest neighbours of the volumes on the page, and the memorisation check of metrics.json."""
    parts = []
    near = facts.neighbours
    if near is not None:
        distances = ", ".join(f"{d:.3f}" for d in near.distance)
        flagged = [s for s, d in zip(facts.seeds, near.distance, strict=True) if d < near.low]
        verdict = (
            f"Below the 5 % quantile: seeds {', '.join(map(str, flagged))}; look at them beside their neighbours."
            if flagged
            else "None is below the 5 % quantile."
        )
        parts.append(
            f"<p>Of the generated volumes above, the distances to the nearest training volume are {distances} (root "
            f"mean squared difference of block means, [-1, 1] scale). Training volumes are {near.median:.3f} from "
            f"their nearest other one (median; 5 % quantile {near.low:.3f}). {verdict} A flipped or shifted copy is "
            "not seen.</p>"
        )
    else:
        parts.append(missing("No neighbours: they need the data set and a checkpoint of the 3D stage."))
    check = (facts.metrics or {}).get("memorisation")
    if check is None:
        parts.append(missing("No check for copies over many volumes: it comes with <code>ssgan evaluate</code>."))
        return "".join(parts)
    rows = []
    for space in ("features", "voxels"):
        row = check.get(space)
        if row:
            cells = [row["median_to_training"], row["median_reference"], row["ratio"], row["below_5_percent"]]
            numbers = "".join(f"<td class=number>{number(v)}</td>" for v in cells)
            rows.append(f"<tr><th scope=row>{space}</th>{numbers}</tr>")
    parts.append(
        '<div class="scroll"><table><thead><tr><th scope=col>space<th scope=col class=number>to training, median'
        "<th scope=col class=number>reference, median<th scope=col class=number>ratio (well below 1: copies)"
        "<th scope=col class=number>share below the 5 % quantile (well above 0.05: copies)</tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">Reference: {esc(check.get("reference", ""))}.</p>'
    )
    name = check.get("picture")
    file = None if name is None or facts.metrics_path is None else facts.metrics_path.parent / Path(name).name
    if file is not None and file.is_file():
        with Image.open(file) as image:
            parts.append(picture(image, "the closest pairs of a generated and a training volume", "closest pairs"))
    elif name is not None:
        parts.append(missing(f"The picture of the closest pairs, {esc(name)}, is not beside metrics.json."))
    return "".join(parts)


def snapshots(facts: Facts) -> str:
    """The run's snapshots, evenly thinned to MAX_FRAMES, and the real images they were drawn beside."""
    files = sorted((facts.run / "snapshots").glob("[23]d-*.png"))
    if not files:
        return missing("The run has no snapshots.")
    kept = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, min(len(files), MAX_FRAMES))})]
    frames = []
    for file in kept:
        stage, images = file.stem[:2], int(file.stem[3:])
        label = f"stage {stage}, {images:,} images"
        with Image.open(file) as image:
            frames.append(picture(image, f"generated images, {label}", label, f' data-label="{esc(label)}"'))
    thinned = f"{len(kept)} of {len(files)} snapshots, evenly chosen. " if len(kept) < len(files) else ""
    reals = facts.run / "snapshots" / "reals.png"
    beside = ""
    if reals.is_file():
        with Image.open(reals) as image:
            still = picture(image, "real volumes, middle slices")
        beside = f"<details><summary>Real volumes for comparison</summary>{still}</details>"
    return (
        f'<p class="note">{thinned}The same seeds at every snapshot, by the averaged weights; stage 2d makes single '
        f"slices.</p>{range_slider('snapshot', 'Snapshot', len(kept), len(kept) - 1)}"
        f'<div class="strip" id="snapshot-strip">{"".join(frames)}</div>{beside}'
    )


def curves(facts: Facts) -> str:
    """A figure per quantity of log.jsonl, as SVG in the page's own colours; the numbers in a table."""
    rows = [r for r in facts.rows if r.get("stage") in ("2d", "3d")]
    names = [n for row in rows for n, v in row.items() if n not in NOT_CURVES and isinstance(v, int | float)]
    order = [*(q for q in QUANTITIES if q in names), *sorted(set(names) - set(QUANTITIES))]
    if not order:
        return missing("The log has no measurements yet.")
    figures = [curve(name, rows, facts.floor if name == "distance" else None, i) for i, name in enumerate(order)]
    last = {s: next((r for r in reversed(rows) if r["stage"] == s and "loss_g" in r), None) for s in ("2d", "3d")}
    columns = [s for s in last if last[s]]
    lines = []
    for name in order:
        cells = "".join(f"<td class=number>{number(last[s].get(name))}</td>" for s in columns)  # type: ignore[union-attr]
        lines.append(f"<tr><th scope=row>{esc(QUANTITIES.get(name, name))}</th>{cells}</tr>")
    heads = "".join(f"<th scope=col class=number>stage {s}" for s in columns)
    head = f"<tr><th scope=col>last row of the log{heads}</tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="curves">{"".join(figures)}</div><details><summary>The last numbers</summary>{table}</details>'


def curve(name: str, rows: Sequence[dict[str, Any]], floor: float | None, place: int) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    stages = [s for s in ("2d", "3d") if any(r["stage"] == s and r.get(name) is not None for r in rows)]
    title = QUANTITIES.get(name, name.replace("_", " "))
    settings = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    settings |= {k: INK for k in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 2.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, len(stages), squeeze=False)[0]
        for axis, stage in zip(axes, stages, strict=True):
            points = [(r["images"] / 1000, r[name]) for r in rows if r["stage"] == stage and r.get(name) is not None]
            x, y = zip(*points, strict=True)
            axis.plot(x, y, lw=1.3, marker="o" if len(points) < 40 else None, ms=3, color="#3b82c4")
            if floor is not None and stage == stages[-1]:  # it is of the last stage's volumes
                axis.axhline(floor, color="#c27a1d", lw=1, ls="--")
            axis.set_title(f"stage {stage}", fontsize=9)
            axis.set_xlabel("thousand real images", fontsize=8)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.patch.set_alpha(0)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Each figure numbers its parts anew; in one page they must differ.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{place}-", text)
    spoken = f"{title} over the real images shown" + (
        f"; the dashed line is the floor, {floor:.4f}" if floor is not None else ""
    )
    text = text.replace("<svg ", f'<svg role="img" aria-label="{esc(spoken)}" ', 1)
    note = "; dashed: real against real" if floor is not None else ""
    return f"<figure>{text}<figcaption>{esc(title)}{note}</figcaption></figure>"


def parameter_table(facts: Facts) -> str:
    found = parameters(facts.cfg)
    totals = {row[0]: row[1] + row[2] for row in found if len(row) == 3}
    dense = totals.get("dense")
    lines = []
    for row in found:
        own = ' class="own"' if row[0] == facts.cfg.network.arch_name else ""
        name = f"<th scope=row>{esc(row[0])}{' (this run)' if own else ''}</th>"
        if len(row) != 3:
            lines.append(f"<tr>{name}<td colspan=5>{esc(row[1])}</td></tr>")
            continue
        share = totals[row[0]] / dense if dense else 0
        cells = "".join(f"<td class=number>{v:,}</td>" for v in (row[1], row[2], totals[row[0]]))
        width = 220 * totals[row[0]] / max(totals.values())
        bar = f'<td><span class="bar" style="width:{width:.0f}px"></span></td>'
        lines.append(f"<tr{own}>{name}{cells}<td class=number>{share:.1%}</td>{bar}</tr>")
    about = "; ".join(
        f"{name}: {', then '.join(' and '.join('x'.join(map(str, k)) for k in stage) for stage in stages)}"
        for name, stages in ARCHITECTURES.items()
    )
    return (
        "<p>At this run's shape and channel widths.</p>"
        '<div class="scroll"><table><thead><tr><th scope=col>architecture<th scope=col class=number>generator'
        "<th scope=col class=number>discriminator<th scope=col class=number>together<th scope=col class=number>of dense"
        f'<th></tr></thead><tbody>{"".join(lines)}</tbody></table></div><p class="note">Kernels of the branches, '
        f"depth x height x width: {esc(about)}.</p>"
    )


def what_was_run(facts: Facts) -> str:
    config = json.dumps(facts.record, indent=2)
    hashes = f"Data: SHA-256 {facts.record['data']['content_hash'][:16]}; checkpoint: SHA-256 {facts.sha256[:16]}."
    inflation = facts.run / "inflation.txt"
    report = ""
    if inflation.is_file():
        text = inflation.read_text(encoding="utf-8", errors="replace")
        report = (
            f"<details><summary>What was inflated, tensor by tensor</summary><pre>{esc(text[:200_000])}</pre></details>"
        )
    return (
        "<p>The command that the configuration stands for (what the preset implies is left out):</p>"
        f'<pre>{esc(facts.command)}</pre><p class="note">{esc(hashes)}</p>'
        f"<details><summary>The whole configuration</summary><pre>{esc(config)}</pre></details>{report}"
    )


def environment(facts: Facts) -> str:
    def rows(values: dict[str, str]) -> str:
        return "".join(f"<tr><th scope=row>{esc(k)}</th><td>{esc(v)}</td></tr>" for k, v in values.items())

    trained = facts.trained_on
    first = (
        f"<h3>Training</h3><table>{rows(trained)}</table>"
        if trained
        else missing("The run did not record where it was trained.")
    )
    return f"{first}<h3>Where this page was made</h3><table>{rows(facts.environment)}</table>"
