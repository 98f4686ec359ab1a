"""The report's curves of log.jsonl, as SVG in the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from ssgan.reporting.content import ReportContent
from ssgan.reporting.elements import esc, missing
from ssgan.reporting.formatting import format_number
from ssgan.utils.pictures import QUANTITIES

INK = "#0a0b0c"  # stands for the page's text colour in matplotlib's SVG
NOT_CURVES = {"stage", "step", "images", "seconds", "event", "distance_floor", "images_per_second", "rewinds", "reason"}
NOT_CURVES |= {"threads", "usable_cores"}


def curves_section(content: ReportContent) -> str:
    """Shows a figure per quantity of log.jsonl, and the last numbers in a table."""
    rows = [r for r in content.rows if r.get("stage") in ("2d", "3d")]
    names = [n for row in rows for n, v in row.items() if n not in NOT_CURVES and isinstance(v, int | float)]
    order = [*(q for q in QUANTITIES if q in names), *sorted(set(names) - set(QUANTITIES))]
    if not order:
        return missing("The log has no measurements yet.")
    figures = [curve(name, rows, content.floor if name == "distance" else None, i) for i, name in enumerate(order)]
    last = {s: next((r for r in reversed(rows) if r["stage"] == s and "loss_g" in r), None) for s in ("2d", "3d")}
    columns = [s for s in last if last[s]]
    lines = []
    for name in order:
        cells = "".join(f"<td class=number>{format_number(last[s].get(name))}</td>" for s in columns)  # type: ignore[union-attr]
        lines.append(f"<tr><th scope=row>{esc(QUANTITIES.get(name, name))}</th>{cells}</tr>")
    heads = "".join(f"<th scope=col class=number>stage {s}" for s in columns)
    head = f"<tr><th scope=col>last row of the log{heads}</tr>"
    table = f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="curves">{"".join(figures)}</div><details><summary>The last numbers</summary>{table}</details>'


def curve(name: str, rows: Sequence[dict[str, Any]], floor: float | None, number: int) -> str:
    """Draws one quantity, a panel per stage. number: of the figure, which makes its ids unique in the page."""
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
    # matplotlib numbers the parts of each figure from 0; in one page ids must differ.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{number}-", text)
    spoken = f"{title} over the real images shown" + (
        f"; the dashed line is the floor, {floor:.4f}" if floor is not None else ""
    )
    text = text.replace("<svg ", f'<svg role="img" aria-label="{esc(spoken)}" ', 1)
    note = "; dashed: real against real" if floor is not None else ""
    return f"<figure>{text}<figcaption>{esc(title)}{note}</figcaption></figure>"
