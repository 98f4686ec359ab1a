"""Writes tables and plots of a grid from its JSON lines alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments import averages, grids, results, step_times
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
    """Writes STEM-GRID.md and .png; gives the Markdown and the paths. protocol: None for that of the most cells."""
    times = [r for r in records if r["cell"] == step_times.CELL]
    records = [r for r in records if r["cell"] != step_times.CELL]
    protocol = protocol or results.main_protocol(records)
    by_cell = results.latest(records, protocol)
    shape = tuple(next(iter(by_cell.values()))["shape"])
    found = {r["seed"] for r in by_cell.values()}
    cells = grids.cells(grid, grids.SCALES[scale], shape, sorted(found | set(seeds)))
    timed = step_times.most_complete([r for r in times if r["protocol"] == protocol], cells)
    by_cell = with_step_times(by_cell, timed)
    page, picture = Path(f"{stem}-{grid}.md"), Path(f"{stem}-{grid}.png")
    volumes = picture_of_volumes(stem, grid)
    pictures = [picture.name, *([volumes.name] if volumes.exists() else [])]
    text = markdown(grid, cells, by_cell, protocol, pictures, timed) + tried(records, protocol)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text, encoding="utf-8")
    draw(cells, by_cell, picture)
    return text, [page, picture]


def picture_of_volumes(stem: Path, grid: str) -> Path:
    """Gives the path of the picture that `pictures.draw` writes; it needs the runs, the report only the lines."""
    return Path(f"{stem}-{grid}-volumes.png")


def with_step_times(by_cell: dict[str, Record], timed: Record | None) -> dict[str, Record]:
    """Replaces the seconds of every point by those of the measured steps, if any were measured."""
    if timed is None:
        return by_cell
    seconds, result = timed["pace"], {}
    for name, record in by_cell.items():
        each, flat = (
            seconds.get(step_times.kind(record, stage)) if "points" in record else None for stage in ("3d", "2d")
        )
        if each is not None and (flat is not None or not record["slices"]):
            points = [
                p | {"seconds_2d": p["slices"] * (flat or 0) / 1000, "seconds_3d": p["volumes"] * each / 1000}
                for p in record["points"]
            ]
            record = record | {"points": points, "seconds_per_1000_volumes": each}
        result[name] = record
    return result


def done_by_label(cells: Sequence[grids.Cell], by_cell: dict[str, Record]) -> dict[str, dict[int, Record]]:
    """Gives label -> seed -> record, in the grid's order; cells without a result are left out, labels never."""
    table: dict[str, dict[int, Record]] = {c.label: {} for c in cells}
    for cell in cells:
        record = by_cell.get(cell.folder)
        if record is not None and "error" not in record:
            table[cell.label][cell.seed] = record
    return table


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Formats the mean, and the range if there is more than one value."""
    if not values:
        return "–"
    mean = f"{np.mean(values):.{digits}g}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}g} to {max(values):.{digits}g})"


def total_seconds(point: dict[str, float], with_2d: bool) -> float:
    return point["seconds_3d"] + (point["seconds_2d"] if with_2d else 0.0)


def reach(record: Record, baseline: Record) -> dict[str, float] | None:
    """Gives the cost at which a run first was as good as the baseline's best, as shares of the baseline's cost.

    `time` is with the 2D stage, `time_3d` without it; `shown` is volumes, with slices as their share of one. None if it
    never was. The start of a run counts as a point, so `time_3d` may be 0.
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
    """Gives the metric at the last point reached in that time, the 2D stage included; None before the first."""
    points = [p[METRIC] for p in record["points"] if total_seconds(p, True) <= seconds * (1 + 1e-9)]
    return points[-1] if points else None


def markdown(
    grid: str, cells: Sequence[grids.Cell], by_cell: dict[str, Record], protocol: str, pictures: Sequence[str],
    timed: Record | None = None,
) -> str:  # fmt: skip
    table = done_by_label(cells, by_cell)
    own = [by_cell[c.folder] for c in cells if c.folder in by_cell] or list(by_cell.values())
    any_record = max(
        own, key=lambda r: r["environment"]["date"]
    )  # for the fields that all share, and the latest command
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
        (
            r["parameters"]
            for r in by_cell.values()
            if r.get("label") == "dense, inflated average" and "parameters" in r
        ),
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
        speed = spread([r["seconds_per_1000_volumes"] for r in done])
        total = spread([total_seconds(r["points"][-1], True) for r in done])
        seeds = ", ".join(map(str, sorted(rows)))
        size = f"{done[0]['parameters']:,}{share}"
        lines.append(f"| {label} | {seeds} | {size} | {' | '.join(values)} | {best} | {speed} | {total} |")
    lines.append(f"| real volumes (floor) | – | – | {' | '.join(f'{floors[n]:.3g}' for n in COLUMNS)} | – | – | – |")
    better = "; ".join(f"{name}: {how}" for name, how in BETTER.items())
    lines += ["", f"Better is, {better}. A percentage is the share of dense's parameters.", ""]
    base = baseline(by_cell)
    lines += _comparison(table, base)
    lines += _equal_time(table, base)
    lines += _other_features(table)
    lines += _averages(table)
    lines += _left_out(cells, by_cell)
    return "\n".join(lines) + "\n"


def baseline(by_cell: dict[str, Record]) -> dict[int, Record]:
    """Gives seed -> record of the baseline, whichever grid it was run for."""
    return {r["seed"]: r for r in by_cell.values() if r.get("label") == BASELINE and "error" not in r}


def tried(records: list[Record], protocol: str) -> str:
    """Writes a table of the file's other protocols, the settings that were tried; "" if there are none."""
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
    """Lists the 3D stage's rates and the other settings that were changed for every cell."""
    about = record["about"]
    rates = {f"stage_3d.{name}": value for name, value in about.get("rates", {}).items()}
    settings = rates | about["changes"]
    volumes = f"{about['volumes']:,} volumes"
    return ", ".join([*(f"{name.removeprefix('stage_3d.')} {value}" for name, value in settings.items()), volumes])


def _comparison(table: dict[str, dict[int, Record]], base: dict[int, Record]) -> list[str]:
    """Compares every cell with dense from scratch of the same seed."""
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
    """Compares the cells after shares of the time that dense from scratch takes."""
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
    """Writes the ends of the runs under other averages of the generator's weights; [] if no cell has them."""
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


def _other_features(table: dict[str, dict[int, Record]]) -> list[str]:
    """Writes the metrics of other features at the ends of the runs; [] if no cell has them."""
    lines = []
    having = [r for rows in table.values() for r in rows.values() if r.get("other_features")]
    for name in dict.fromkeys(name for r in having for name in r["other_features"]):
        first = next(r["other_features"][name] for r in having if name in r["other_features"])
        columns = tuple(first["floors"])
        lines += [
            f"The same with other features; a conclusion stands only where both agree. {first['protocol']}.",
            "",
            f"| cell | seeds | {' | '.join(f'{column}, {name}' for column in columns)} |",
            "|---" * (len(columns) + 2) + "|",
        ]
        for label, rows in table.items():
            found = {seed: r["other_features"][name]["final"] for seed, r in rows.items()
                     if name in r.get("other_features", {})}  # fmt: skip
            if found:
                values = [spread([final[column] for final in found.values()]) for column in columns]
                lines.append(f"| {label} | {', '.join(map(str, sorted(found)))} | {' | '.join(values)} |")
        floors = " | ".join(f"{first['floors'][column]:.3g}" for column in columns)
        lines += [f"| real volumes (floor) | – | {floors} |", ""]
    return lines


def _left_out(cells: Sequence[grids.Cell], by_cell: dict[str, Record]) -> list[str]:
    """Names the cells that failed, with their errors, and those not run."""
    lines = []
    for cell in cells:
        record = by_cell.get(cell.folder)
        if record is not None and "error" in record:
            lines.append(f"- failed: {cell.label}, seed {cell.seed} (`{cell.folder}`): {record['error']}")
    missing = [c for c in cells if c.folder not in by_cell]
    lines += [f"- not run: {c.label}, seed {c.seed} (`{c.folder}`)" for c in missing]
    return lines


def _timing(timed: Record | None, cells: Sequence[grids.Cell]) -> str:
    """Says how the seconds of these cells were measured."""
    if timed is None:
        return "by the median row of the log"
    env = timed["environment"]
    text = f"by steps timed in turns, {env['date'][:10]} at commit {env['commit']} (`{timed['command']}`)"
    others = dict.fromkeys(c.label for c in cells if not set(step_times.kinds([c])) <= set(timed["pace"]))
    return f"{text}, but by the median row of the log of {'; '.join(others)}" if others else text


def _machine(record: Record) -> str:
    about = record["environment"]
    gpu = f"{about['gpu']}, " if "gpu" in about else ""
    return f"{gpu}{about['device']}, {about['threads']} of {about['cores']} cores, torch {about['torch']}"


def mean_curve(rows: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Gives volumes shown and the metric's geometric mean over the seeds, where every seed has a point."""
    curves = [{p["shown"]: p[METRIC] for p in r["points"]} for r in rows]
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    return shared, [float(np.exp(np.mean([np.log(c[x]) for c in curves]))) for x in shared]


def highest(by_cell: dict[str, Record], cells: Sequence[grids.Cell]) -> float:
    """Gives the upper end of the plot: the highest value of a trained network."""
    points = [p for c in cells for p in by_cell.get(c.folder, {}).get("points", [])]
    trained = [p[METRIC] for p in points if p["volumes"] or p["slices"]]
    return max(trained or [p[METRIC] for p in points], default=1.0)


def draw(cells: Sequence[grids.Cell], by_cell: dict[str, Record], path: Path) -> None:
    """Draws the metric against volumes shown and against parameters, and the seconds per 1,000 volumes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter

    table = done_by_label(cells, by_cell)
    figure = Figure(figsize=(16, 4.8), layout="constrained")
    curve, size, speed = figure.subplots(1, 3)
    floor = next(iter(by_cell.values()))["floors"][METRIC]
    names = list(table)
    for row, (label, rows) in enumerate(table.items()):
        colour = f"C{row % 10}"
        for record in rows.values():
            points = record["points"]
            xs, ys = [p["shown"] for p in points], [p[METRIC] for p in points]
            curve.plot(xs, ys, color=colour, linewidth=1, alpha=0.3 if len(rows) > 1 else 1)
            size.plot(record["parameters"], record["final"][METRIC], "o", color=colour)
            speed.plot(record["seconds_per_1000_volumes"], row, "o", color=colour)
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
    curve.set_ylim(top=1.05 * highest(by_cell, cells))
    curve.set_xlabel("volumes shown to D (a slice is 1/D of one)")
    size.set_xlabel("parameters of G and D")
    speed.set_xlabel("seconds per 1,000 volumes")
    speed.set_yticks(range(len(names)), names)
    for axes in (size, speed):
        axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
    speed.set_ylim(-0.5, len(names) - 0.5)
    speed.grid(alpha=0.3)
    if curve.get_legend_handles_labels()[1]:
        curve.legend(fontsize=8)
    figure.savefig(path, dpi=110)
