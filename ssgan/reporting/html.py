"""The HTML page of `ssgan report`: one file that needs no network. Skeleton, style and script are in page/."""

from __future__ import annotations

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
from ssgan.metrics.masks import mask_table
from ssgan.reporting.content import ReportContent, ReportError, count_parameters
from ssgan.reporting.curves import curves_section
from ssgan.reporting.elements import esc, missing, picture, range_slider
from ssgan.reporting.formatting import format_duration, format_number
from ssgan.reporting.viewer import embedded_volumes, viewer_scripts, volumes_section

MAX_PAGE = 24 * 2**20  # bytes of the whole page
MAX_FRAMES = 24  # snapshots


def render_page(content: ReportContent) -> str:
    """Renders the whole page, with the viewer where MAX_PAGE leaves room for it.

    Raises:
        ReportError: the rest alone is larger than MAX_PAGE.
    """
    volumes = embedded_volumes(content)
    parts = {
        "Overview": overview_section(content),
        "Real and generated": volumes_section(content, volumes),
        "Metrics": metrics_section(content),
        "Copies": copies_section(content),
        "Snapshots": snapshots_section(content),
        "Curves": curves_section(content),
        "Parameters": parameters_section(content),
        "What was run": command_section(content),
        "Environment": environment_section(content),
    }
    ids = {name: re.sub(r"\W+", "-", name.lower()) for name in parts}
    body = "\n".join(
        f'<section id="{ids[name]}" aria-labelledby="{ids[name]}-title">\n<h2 id="{ids[name]}-title">{esc(name)}</h2>\n'
        f"{text}\n</section>"
        for name, text in parts.items()
    )
    files = resources.files("ssgan.reporting") / "page"
    values = {
        "title": f"Run {esc(content.run.resolve().name)}",
        "lead": esc(
            f"3D Split&Shuffle-GAN, preset {content.cfg.preset}, architecture {content.cfg.network.arch_name}, "
            f"{content.cfg.loss} loss."
        ),
        "nav": " ".join(f'<a href="#{ids[name]}">{esc(name)}</a>' for name in parts),
        "body": body,
        "footer": "Generated volumes are synthetic. They must not be used for diagnosis, nor taken for anonymised "
        "scans; see MODEL_CARD.md beside the run. This page needs no network.",
        "css": (files / "report.css").read_text(encoding="utf-8"),
        "js": (files / "report.js").read_text(encoding="utf-8"),
        "volumes": json.dumps(volumes) if volumes else "",
    }
    page = Template((files / "report.html").read_text(encoding="utf-8"))
    text = page.substitute(values, viewer=viewer_scripts() if volumes else "")
    if len(text.encode()) > MAX_PAGE:  # then the slices alone
        text = page.substitute(values, viewer="")
    if len(text.encode()) > MAX_PAGE:
        raise ReportError(
            f"the page has {len(text.encode()) >> 20} MiB, above {MAX_PAGE >> 20}; give a smaller --count"
        )
    return text


# ---- sections ----


def overview_section(content: ReportContent) -> str:
    """Shows the run in a few cards."""
    shape, info, meta = content.cfg.network.shape, content.info, content.meta
    volumes = f"{len(content.data)} volumes" if content.data is not None else "unknown number of volumes"
    counts = next(
        (row for row in count_parameters(content.cfg) if row[0] == content.cfg.network.arch_name and len(row) == 3),
        None,
    )
    cards = {
        "Volumes (D x H x W)": " x ".join(map(str, shape)),
        "Spacing (x, y, z)": " x ".join(f"{s:g}" for s in info.spacing) + " mm",
        "Data": f"{volumes}, recipe {info.recipe}",
        "Checkpoint": content.checkpoint.stem,
        "Real images shown": f"{meta.images:,} in stage {meta.stage}"
        + (f", {meta.images_before:,} before" if meta.images_before else ""),
        "Training time": format_duration(content.seconds),
        "State": "finished" if content.result is not None else "not finished",
    }
    if counts is not None:
        cards["Parameters G + D"] = f"{counts[1] + counts[2]:,}"
    if content.distance is not None:
        floor = f" (real against real {content.floor:.4f})" if content.floor is not None else ""
        cards["Sliced Wasserstein to the data"] = f"{content.distance:.4f}{floor}"
    return (
        '<dl class="cards">'
        + "".join(f"<div><dt>{esc(k)}</dt><dd>{esc(v)}</dd></div>" for k, v in cards.items())
        + "</dl>"
    )


def metrics_section(content: ReportContent) -> str:
    """Shows values, intervals and floors of metrics.json."""
    found = content.metrics
    if found is None:
        command = f"python -m ssgan.evaluate --real DATASET --fake {content.run} --out {content.run / 'metrics.json'}"
        return missing(f"Not evaluated yet: <code>{esc(command)}</code>, then this report again.")
    rows = []
    for name, row in found["metrics"].items():
        value, floor, interval = row.get("value"), row.get("floor"), row.get("interval")
        shown = "none" if interval is None else f"{format_number(interval[0])} to {format_number(interval[1])}"
        rows.append(
            f"<tr><th scope=row>{esc(name)}</th><td class=number>{format_number(value)}</td>"
            f"<td class=number>{shown}</td><td class=number>{format_number(floor)}</td>"
            f"<td>{esc(row.get('better', ''))}</td><td>{interval_picture(name, value, interval, floor)}</td></tr>"
        )
    note = missing(esc(content.metrics_note)) if content.metrics_note else ""
    extractor = found["extractor"]
    return (
        f"{note}<p>{found['count']} generated against {found['count']} real volumes. Read each number beside its "
        "floor: the same metric between two disjoint sets of real volumes, what a perfect generator would score.</p>"
        '<div class="scroll"><table><thead><tr><th scope=col>metric<th scope=col class=number>value'
        "<th scope=col class=number>95 % interval<th scope=col class=number>floor<th scope=col>better"
        '<th scope=col><span aria-hidden="true">value with interval, floor marked</span></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{masks_part(found)}"
        f'<p class="note">Protocol: {esc(found["protocol"])}. Features: {esc(extractor.get("name"))}, SHA-256 '
        f"{esc(str(extractor.get('sha256'))[:12])}. From {esc(content.metrics_path)}.</p>"
    )


def masks_part(found: dict[str, Any]) -> str:
    """Shows the figures of the masks of metrics.json, or nothing where it has none."""
    if "masks" not in found:
        return ""
    table = mask_table(found["masks"])
    head = "".join(f"<th scope=col class=number>{esc(column)}" for column in table.columns)
    rows = "".join(
        f"<tr><th scope=row>{esc(name)}</th>{''.join(f'<td class=number>{esc(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in table.rows
    )
    return (
        f"<h3>Masks</h3><p>{esc(table.caption[0].upper() + table.caption[1:])}. Each cell: of generated masks / of "
        "real ones. Agreement: Dice of a segmenter trained on real pairs; exchanged: the same with the masks of other "
        'volumes.</p><div class="scroll"><table><thead><tr>'
        f"<th scope=col>class{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def interval_picture(name: str, value: float | None, interval: Sequence[float] | None, floor: float | None) -> str:
    """Draws an interval as a line, the value as a dot and the floor as a tick, on a scale of their own."""
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


def copies_section(content: ReportContent) -> str:
    """Shows the nearest neighbours of the volumes on the page, and the memorisation check of metrics.json."""
    parts = []
    near = content.neighbours
    if near is not None:
        distances = ", ".join(f"{d:.3f}" for d in near.distance)
        flagged = [s for s, d in zip(content.seeds, near.distance, strict=True) if d < near.low]
        finding = (
            f"Below the 5 % quantile: seeds {', '.join(map(str, flagged))}; look at them beside their neighbours."
            if flagged
            else "None is below the 5 % quantile."
        )
        parts.append(
            f"<p>Of the generated volumes above, the distances to the nearest training volume are {distances} (root "
            f"mean squared difference of block means, [-1, 1] scale). Training volumes are {near.median:.3f} from "
            f"their nearest other one (median; 5 % quantile {near.low:.3f}). {finding} A flipped or shifted copy is "
            "not seen.</p>"
        )
    else:
        parts.append(missing("No neighbours: they need the data set and a checkpoint of the 3D stage."))
    check = (content.metrics or {}).get("memorisation")
    if check is None:
        parts.append(missing("No check for copies over many volumes: it comes with <code>ssgan evaluate</code>."))
        return "".join(parts)
    rows = []
    for space in ("features", "voxels"):
        row = check.get(space)
        if row:
            cells = [row["median_to_training"], row["median_reference"], row["ratio"], row["below_5_percent"]]
            numbers = "".join(f"<td class=number>{format_number(v)}</td>" for v in cells)
            rows.append(f"<tr><th scope=row>{space}</th>{numbers}</tr>")
    parts.append(
        '<div class="scroll"><table><thead><tr><th scope=col>space<th scope=col class=number>to training, median'
        "<th scope=col class=number>reference, median<th scope=col class=number>ratio (well below 1: copies)"
        "<th scope=col class=number>share below the 5 % quantile (well above 0.05: copies)</tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table></div><p class="note">Reference: {esc(check.get("reference", ""))}.</p>'
    )
    name = check.get("picture")
    file = None if name is None or content.metrics_path is None else content.metrics_path.parent / Path(name).name
    if file is not None and file.is_file():
        with Image.open(file) as image:
            parts.append(picture(image, "the closest pairs of a generated and a training volume", "closest pairs"))
    elif name is not None:
        parts.append(missing(f"The picture of the closest pairs, {esc(name)}, is not beside metrics.json."))
    return "".join(parts)


def snapshots_section(content: ReportContent) -> str:
    """Shows the run's snapshots, evenly thinned to MAX_FRAMES, and the real images for comparison."""
    files = sorted((content.run / "snapshots").glob("[23]d-*.png"))
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
    reals = content.run / "snapshots" / "reals.png"
    comparison = ""
    if reals.is_file():
        with Image.open(reals) as image:
            reals_picture = picture(image, "real volumes, middle slices")
        comparison = f"<details><summary>Real volumes for comparison</summary>{reals_picture}</details>"
    return (
        f'<p class="note">{thinned}The same seeds at every snapshot, by the averaged weights; stage 2d makes single '
        f"slices.</p>{range_slider('snapshot', 'Snapshot', len(kept), len(kept) - 1)}"
        f'<div class="strip" id="snapshot-strip">{"".join(frames)}</div>{comparison}'
    )


def parameters_section(content: ReportContent) -> str:
    """Shows the parameters of every architecture at the run's shape and widths."""
    found = count_parameters(content.cfg)
    totals = {row[0]: row[1] + row[2] for row in found if len(row) == 3}
    dense = totals.get("dense")
    lines = []
    for row in found:
        own = ' class="own"' if row[0] == content.cfg.network.arch_name else ""
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


def command_section(content: ReportContent) -> str:
    """Shows the `ssgan train` call, the configuration and the report of the inflation."""
    config = json.dumps(content.config.record, indent=2)
    hashes = f"Data: SHA-256 {content.config.content_hash[:16]}; checkpoint: SHA-256 {content.sha256[:16]}."
    inflation = content.run / "inflation.txt"
    report = ""
    if inflation.is_file():
        text = inflation.read_text(encoding="utf-8", errors="replace")
        report = (
            f"<details><summary>What was inflated, tensor by tensor</summary><pre>{esc(text[:200_000])}</pre></details>"
        )
    return (
        "<p>The training command of this configuration, without the options that the preset implies:</p>"
        f'<pre>{esc(content.command)}</pre><p class="note">{esc(hashes)}</p>'
        f"<details><summary>The whole configuration</summary><pre>{esc(config)}</pre></details>{report}"
    )


def environment_section(content: ReportContent) -> str:
    """Shows versions and machine of the training and of this page."""

    def rows(values: dict[str, str]) -> str:
        return "".join(f"<tr><th scope=row>{esc(k)}</th><td>{esc(v)}</td></tr>" for k, v in values.items())

    trained = content.config.trained_on
    first = (
        f"<h3>Training</h3><table>{rows(trained)}</table>"
        if trained
        else missing("The run did not record where it was trained.")
    )
    return f"{first}<h3>Where this page was made</h3><table>{rows(content.environment)}</table>"
