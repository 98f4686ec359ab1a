"""Tables and plots of a grid, from its JSON lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import averages, grids, pace, results
from benchmarks.experiments.scoring import BETTER

BASELINE = "dense, scratch"
METRIC = "frechet_held"
COLUMNS = tuple(BETTER)
Record = dict[str, Any]
TITLES = {
    "A": "architecture and inflation",
    "B": "inflation profiles, split_depth",
    "C": "architectures, inflated by average",
    "D": "which of the two networks is split, from scratch",
    "E": "which levels are split, from scratch",
}


def write(
    records: list[Record], grid: str, scale: str, stem: Path, protocol: str | None, seeds: Sequence[int]
) -> tuple[str, list[Path]]:
    """Writes STEM-GRID.md and .png; the Markdown and the paths. protocol: None for that of the most cells."""
    times = [r for r in records if r["cell"] == pace.CELL]
    records = [r for r in records if r["cell"] != pace.CELL]
    protocol = protocol or results.main_protocol(records)
    known = results.latest(records, protocol)
    shape = tuple(next(iter(known.values()))["shape"])
    found = {r["seed"] for r in known.values()}
    cells = grids.cells(grid, grids.SCALES[scale], shape, sorted(found | set(seeds)))
    timed = pace.serving([r for r in times if r["protocol"] == protocol], cells)
    known = paced(known, timed)
    page, picture = Path(f"{stem}-{grid}.md"), Path(f"{stem}-{grid}.png")
    volumes = picture_of_volumes(stem, grid)
    pictures = [picture.name, *([volumes.name] if volumes.exists() else [])]
    text = markdown(grid, cells, known, protocol, pictures, timed) + tried(records, protocol)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    draw(cells, known, picture)
    return text, [page, picture]


def picture_of_volumes(stem: Path, grid: str) -> Path:
    """Where `pictures.draw` puts what the cells generate; it needs their runs, the rest of a report only the lines."""
    return Path(f"{stem}-{grid}-volumes.png")


def paced(known: dict[str, Record], timed: Record | None) -> dict[str, Record]:
    """The records with the seconds of every point by the measured pace; as they are where none was measured."""
    if timed is None:
        return known
    seconds, result = timed["pace"], {}
    for name, record in known.items():
        each, flat = (seconds.get(pace.kind(record, stage)) if "points" in record else None for stage in ("3d", "2d"))
        if each is not None and (flat is not None or not record["slices"]):
            points = [
                p | {"seconds_2d": p["slices"] * (flat or 0) / 1000, "seconds_3d": p["volumes"] * each / 1000}
                for p in record["points"]
            ]
            record = record | {"points": points, "seconds_per_1000_volumes": each}
        result[name] = record
    return result


def done_by_label(cells: Sequence[grids.Cell], known: dict[str, Record]) -> dict[str, dict[int, Record]]:
    """label -> seed -> record, in the grid's order; cells without a result are left out, labels never."""
    table: dict[str, dict[int, Record]] = {c.label: {} for c in cells}
    for cell in cells:
        record = known.get(cell.folder)
        if record is not None and "error" not in record:
            table[cell.label][cell.seed] = record
    return table


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean, and the range where there is more than one value."""
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def total_seconds(point: dict[str, float], with_2d: bool) -> float:
    return point["seconds_3d"] + (point["seconds_2d"] if with_2d else 0.0)


def reach(record: Record, baseline: Record) -> dict[str, float] | None:
    """What the record had spent when it first was as good as the baseline's best, as shares of what that cost.

    With and without the 2D stage's part in `time`, `time_3d`; `shown` is volumes, with slices as their share of one.
    None where it never was. The start of a run counts as a point, so a share of 0 is possible without the 2D stage.
    """
    best = min(baseline["points"], key=lambda p: p[METRIC])
    first = next((p for p in record["points"] if p[METRIC] <= best[METRIC]), None)
    if first is None or not best["volumes"]:
        return None
    whole = total_seconds(best, True)
    return {
        "time": total_seconds(first, True) / whole,
        "time_3d": total_seconds(first, False) / whole,
        "shown": first["shown"] / best["shown"],
    }


def after(record: Record, seconds: float) -> float | None:
    """The metric at the last point that the run had reached in that time, its 2D stage included; None before any."""
    points = [p[METRIC] for p in record["points"] if total_seconds(p, True) <= seconds * (1 + 1e-9)]
    return points[-1] if points else None


def markdown(
    grid: str, cells: Sequence[grids.Cell], known: dict[str, Record], protocol: str, pictures: Sequence[str],
    timed: Record | None = None,
) -> str:  # fmt: skip
    table = done_by_label(cells, known)
    own = [known[c.folder] for c in cells if c.folder in known] or list(known.values())
    any_record = max(own, key=lambda r: r["environment"]["date"])  # for what all have; its command is the latest
    about = any_record["about"]
    machines = sorted({_machine(r) for r in own})
    commits = sorted({r["environment"]["commit"] for r in own})
    dates = sorted(r["environment"]["date"][:10] for r in own)
    train, held = about["counts"]
    alone = about["volumes"] + about["slices"] // any_record["shape"][0]
    lines = [
        f"# Grid {grid}: {TITLES[grid]}",
        "",
        f"Data {any_record['data']}: {train} volumes of {'x'.join(map(str, any_record['shape']))} train, {held} are "
        f"held out. After {about['slices']:,} slices (2D) the discriminator is shown {about['volumes']:,} volumes; "
        f"from scratch {alone:,} volumes, the same number of voxels. "
        f"Changed settings: {about['changes'] or 'none'}. Protocol {protocol}; {about['metrics']}.",
        "",
        f"Machine: {'; '.join(machines)}. Commits {', '.join(commits)}; {dates[0]} to {dates[-1]}. Command: "
        f"`{any_record['command']}`.",
        "",
        *(f"![{what}]({name})" for what, name in zip(("curves", "volumes"), pictures, strict=False)),
        "",
        "At the end of the runs: mean (range over the seeds). best: the lowest frechet_held along the run. Seconds: of "
        f"training, {_timing(timed, [c for c in cells if table[c.label]])}; the 2D stage is in the total.",
        "",
        f"| cell | seeds | parameters | {' | '.join(COLUMNS)} | best | s / 1,000 volumes | total s |",
        "|---" * (len(COLUMNS) + 6) + "|",
    ]
    floors = any_record["floors"]
    dense = next((r["parameters"] for rows in [table.get(BASELINE, {})] for r in rows.values()), None)
    dense = dense or next(
        (r["parameters"] for r in known.values() if r.get("label") == "dense, inflated average" and "parameters" in r),
        None,
    )
    for label, rows in table.items():
        done = list(rows.values())
        if not done:
            lines.append(f"| {label} | 0 |" + " – |" * (len(COLUMNS) + 4))
            continue
        share = f" ({done[0]['parameters'] / dense:.1%})" if dense else ""
        values = [spread([r["final"][name] for r in done]) for name in COLUMNS]
        best = spread([min(p[METRIC] for p in r["points"]) for r in done])
        pace = spread([r["seconds_per_1000_volumes"] for r in done])
        total = spread([total_seconds(r["points"][-1], True) for r in done])
        seeds = ", ".join(map(str, sorted(rows)))
        size = f"{done[0]['parameters']:,}{share}"
        lines.append(f"| {label} | {seeds} | {size} | {' | '.join(values)} | {best} | {pace} | {total} |")
    lines.append(f"| real volumes (floor) | – | – | {' | '.join(f'{floors[n]:.3g}' for n in COLUMNS)} | – | – | – |")
    better = "; ".join(f"{name}: {how}" for name, how in BETTER.items())
    lines += ["", f"Better is, {better}. A percentage is the share of dense's parameters.", ""]
    base = baseline(known)
    lines += _comparison(table, base)
    lines += _equal_time(table, base)
    lines += _averages(table)
    lines += _left_out(cells, known)
    return "\n".join(lines) + "\n"


def baseline(known: dict[str, Record]) -> dict[int, Record]:
    """Seed -> record of the baseline, whichever grid it was run for."""
    return {r["seed"]: r for r in known.values() if r.get("label") == BASELINE and "error" not in r}


def tried(records: list[Record], protocol: str) -> str:
    """A table of the file's other protocols: what else was tried, with what came out. "" where there is none."""
    rows = []
    for other in dict.fromkeys(r["protocol"] for r in records if r["protocol"] != protocol):
        by_label: dict[str, list[Record]] = {}
        for record in results.latest(records, other).values():
            by_label.setdefault(record["label"], []).append(record)
        for label, found in by_label.items():
            done = [r for r in found if "error" not in r]
            if not done:
                rows.append(f"| {settings_of(found[0])} | {label} | failed | – | – | – | – |")
                continue
            values = [spread([r["final"][name] for r in done]) for name in (METRIC, "precision", "recall")]
            best = spread([min(p[METRIC] for p in r["points"]) for r in done])
            seeds = ", ".join(str(r["seed"]) for r in sorted(done, key=lambda r: r["seed"]))
            rows.append(
                f"| {settings_of(done[0])} | {label} | {seeds} | {' | '.join([values[0], best, *values[1:]])} |"
            )
    if not rows:
        return ""
    head = [
        "",
        "Other settings in the same file, in the order in which they were tried, at the end of the runs:",
        "",
        f"| settings | cell | seeds | {METRIC} | best | precision | recall |",
        "|---" * 7 + "|",
    ]
    return "\n".join(head + rows) + "\n"


def settings_of(record: Record) -> str:
    """The 3D stage's rates, and what else was changed for every cell."""
    about = record["about"]
    rates = {f"stage_3d.{name}": value for name, value in about.get("rates", {}).items()}
    settings = rates | about["changes"]
    volumes = f"{about['volumes']:,} volumes"
    return ", ".join([*(f"{name.removeprefix('stage_3d.')} {value}" for name, value in settings.items()), volumes])


def _comparison(table: dict[str, dict[int, Record]], base: dict[int, Record]) -> list[str]:
    """Every cell against dense from scratch of the same seed."""
    if not base or not any(table.values()):
        return []
    lines = [
        f"Against {BASELINE} of the same seed. Change of frechet_held at the end, and of its best along the run (below "
        "0 is better). Reached: when the cell first was as good as that run's best, as a share of the training time "
        "that the latter took: with the 2D stage, without it; and as a share of the volumes shown.",
        "",
        "| cell | seed | change at the end | change of the best | time | time without 2D | shown |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, rows in table.items():
        for seed, record in sorted(rows.items()):
            if label == BASELINE or seed not in base:
                continue
            other = base[seed]
            ends = record["final"][METRIC] / other["final"][METRIC] - 1
            best = min(p[METRIC] for p in record["points"]) / min(p[METRIC] for p in other["points"]) - 1
            at = reach(record, other)
            shares = (
                "never | never | never"
                if at is None
                else " | ".join(f"{at[k]:.2f}" for k in ("time", "time_3d", "shown"))
            )
            lines.append(f"| {label} | {seed} | {ends:+.1%} | {best:+.1%} | {shares} |")
    return [*lines, ""]


def _equal_time(table: dict[str, dict[int, Record]], base: dict[int, Record]) -> list[str]:
    """Every cell after shares of the time that dense from scratch takes, whatever it had been shown by then."""
    if not base or not any(table.values()):
        return []
    whole = float(np.mean([total_seconds(r["points"][-1], True) for r in base.values()]))
    shares = (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
    lines = [
        f"At equal time: {METRIC}, mean (range), at the last point reached in a share of the {whole:.0f} s that "
        f"{BASELINE} takes, the 2D stage included. A run that has ended by then keeps its last value.",
        "",
        "| cell | " + " | ".join(f"{share:.1%} ({share * whole:.0f} s)" for share in shares) + " |",
        "|---" * (len(shares) + 1) + "|",
    ]
    for label, rows in ({BASELINE: base} | table).items():
        if rows:
            found = [[v for r in rows.values() if (v := after(r, share * whole)) is not None] for share in shares]
            lines.append(f"| {label} | {' | '.join(map(spread, found))} |")
    return [*lines, ""]


def _averages(table: dict[str, dict[int, Record]]) -> list[str]:
    """The ends of the runs again, under other averages of the generator's weights; [] where no cell has them."""
    having = {label: [r for r in rows.values() if "averages" in r] for label, rows in table.items()}
    if not any(having.values()):
        return []
    kinds = "; ".join(f"{name}: {what}" for name, what in averages.KINDS.items())
    metrics = (METRIC, "recall")
    lines = [
        "Does it hang on the average of the generator's weights? It takes no part in training, so each run's end can "
        f"be measured under others: mean (range over the seeds where it was). {kinds}.",
        "",
        "| cell | seeds | " + " | ".join(f"{metric}, {name}" for metric in metrics for name in averages.KINDS) + " |",
        "|---" * (len(metrics) * len(averages.KINDS) + 2) + "|",
    ]
    for label, rows in having.items():
        if rows:
            seeds = ", ".join(str(r["seed"]) for r in sorted(rows, key=lambda r: r["seed"]))
            names = [(metric, name) for metric in metrics for name in averages.KINDS]
            cells = [spread([averages.under(r, name)[metric] for r in rows]) for metric, name in names]
            lines.append(f"| {label} | {seeds} | {' | '.join(cells)} |")
    return [*lines, ""]


def _left_out(cells: Sequence[grids.Cell], known: dict[str, Record]) -> list[str]:
    """Cells that failed, with their errors, and cells not run: named, never dropped."""
    lines = []
    for cell in cells:
        record = known.get(cell.folder)
        if record is not None and "error" in record:
            lines.append(f"- failed: {cell.label}, seed {cell.seed} (`{cell.folder}`): {record['error']}")
    missing = [c for c in cells if c.folder not in known]
    lines += [f"- not run: {c.label}, seed {c.seed} (`{c.folder}`)" for c in missing]
    return lines


def _timing(timed: Record | None, cells: Sequence[grids.Cell]) -> str:
    """How the seconds of these cells were measured."""
    if timed is None:
        return "by the median row of the log"
    env = timed["environment"]
    text = f"by steps timed in turns, {env['date'][:10]} at commit {env['commit']} (`{timed['command']}`)"
    others = dict.fromkeys(c.label for c in cells if not set(pace.kinds([c])) <= set(timed["pace"]))
    return f"{text}, but by the median row of the log of {'; '.join(others)}" if others else text


def _machine(record: Record) -> str:
    about = record["environment"]
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    return f"{gpu}{about['device']}, {about['threads']} of {about['cores']} cores, torch {about['torch']}"


def mean_curve(rows: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Volumes shown, and the metric's geometric mean over the seeds, where every seed has a point."""
    curves = [{p["shown"]: p[METRIC] for p in r["points"]} for r in rows]
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    return shared, [float(np.exp(np.mean([np.log(c[x]) for c in curves]))) for x in shared]


def highest(known: dict[str, Record], cells: Sequence[grids.Cell]) -> float:
    """The metric's highest value that the plot shows: untrained networks lie far above all that matters."""
    points = [p for c in cells for p in known.get(c.folder, {}).get("points", [])]
    trained = [p[METRIC] for p in points if p["volumes"] or p["slices"]]
    return max(trained or [p[METRIC] for p in points], default=1.0)


def draw(cells: Sequence[grids.Cell], known: dict[str, Record], path: Path) -> None:
    """The metric against volumes shown and against parameters, and the seconds per 1,000 volumes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    table = done_by_label(cells, known)
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    curve, size, pace = figure.subplots(1, 3)
    floor = next(iter(known.values()))["floors"][METRIC]
    names = list(table)
    for place, (label, rows) in enumerate(table.items()):
        colour = f"C{place % 10}"
        for record in rows.values():
            points = record["points"]
            xs, ys = [p["shown"] for p in points], [p[METRIC] for p in points]
            curve.plot(xs, ys, color=colour, linewidth=1, alpha=0.3 if len(rows) > 1 else 1)
            size.plot(record["parameters"], record["final"][METRIC], "o", color=colour)
            pace.plot(record["seconds_per_1000_volumes"], place, "o", color=colour)
        if rows:
            xs, ys = mean_curve(list(rows.values()))
            curve.plot(xs, ys, color=colour, marker="o", markersize=3, label=label)
    for axes in (curve, size):
        axes.axhline(floor, color="grey", linestyle="--", label="real against real" if axes is curve else None)
        axes.set_yscale("log")
        axes.set_ylabel(METRIC)
        axes.grid(alpha=0.3, which="both")
        for axis in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            axis(FormatStrFormatter("%.2g"))
    curve.set_ylim(top=1.05 * highest(known, cells))
    curve.set_xlabel("volumes shown to D (a slice is 1/D of one)")
    size.set_xlabel("parameters of G and D")
    pace.set_xlabel("seconds per 1,000 volumes")
    pace.set_yticks(range(len(names)), names)
    for axes in (size, pace):
        axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    pace.set_ylim(-0.5, len(names) - 0.5)
    pace.grid(alpha=0.3)
    if curve.get_legend_handles_labels()[1]:
        curve.legend(fontsize=8)
    figure.savefig(path, dpi=110)
