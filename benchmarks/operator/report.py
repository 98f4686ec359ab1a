"""A Markdown table and a PNG from one file of results: how many times faster than the best dense layer.

python -m benchmarks.operator.report [benchmarks/results/FILE.jsonl]       (default: the newest file)

A GPU run has a report of its own, `benchmarks.gpu.report`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssconv.parser import Parser

Records = list[dict[str, Any]]


def load(path: Path) -> Records:
    """Reads the records of one file. Raises ValueError naming the line that is not JSON."""
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}); run benchmarks.operator.run again") from error
    if not records:
        raise ValueError(f"{path}: the file has no records; run benchmarks.operator.run again")
    return records


def cost(record: dict[str, Any]) -> float:
    """Gives the median seconds, or the bytes where the pass is memory."""
    return record["bytes"] if record["pass"] == "memory" else record["seconds"]["median"]


def best_dense(records: Records, layer: str, what: str) -> float:
    """Gives the cost of PyTorch's dense nn.Conv3d in its better layout, for one layer and pass."""
    costs = [
        cost(r)
        for r in records
        if (r["layer"], r["pass"], r["kernels"]) == (layer, what, "dense") and r["implementation"].startswith("nn.")
    ]
    if not costs:
        raise ValueError(f"layer {layer}, {what}: there is no dense nn.Conv3d to compare with")
    return min(costs)


def speedups(records: Records, what: str) -> dict[str, dict[str, float]]:
    """Gives contender -> layer -> best dense cost / its cost; above 1 is faster, or needs less memory."""
    table: dict[str, dict[str, float]] = {}
    for r in records:
        if r["pass"] == what and cost(r) > 0:  # a step that stays below the process's earlier peak has no figure
            name = f"{r['kernels']}, {r['implementation']}"
            table.setdefault(name, {})[r["layer"]] = best_dense(records, r["layer"], what) / cost(r)
    return table


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def passes(records: Records) -> list[str]:
    """Lists the passes in the order in which they were timed."""
    return list(dict.fromkeys(r["pass"] for r in records))


def markdown(records: Records) -> str:
    """Writes a table per pass: the best dense time in milliseconds, then ratios against it."""
    about = records[0]
    layers = list(dict.fromkeys(r["layer"] for r in records))
    parts = [
        f"{about['device']}, {about['threads']} threads of {about['cores']} cores; Python {about['python']}, "
        f"torch {about['torch']}, float32; commit {about['commit']}, {about['date']}.",
        "Layers are batch x channels x edge^3, each with bias and leaky ReLU. Ratios are against the better layout of "
        "dense nn.Conv3d in the same run; above 1 is faster, or needs less memory. double backward: the gradient of an "
        "R1 penalty for the weights. memory: what one forward + backward step adds to the process at its peak.",
    ]
    for what in passes(records):
        unit, scale = ("MiB", 2**-20) if what == "memory" else ("ms", 1e3)
        rows = [
            f"| {what} | " + " | ".join(layers) + " | geometric mean |",
            "|---" * (len(layers) + 2) + "|",
            f"| best dense, {unit} | "
            + " | ".join(f"{best_dense(records, n, what) * scale:.2f}" for n in layers)
            + " | |",
        ]
        for name, ratios in speedups(records, what).items():
            cells = " | ".join(f"{ratios[n]:.2f}" if n in ratios else "not seen" for n in layers)
            rows.append(f"| {name} | {cells} | {geometric_mean(list(ratios.values())):.2f} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


FAMILIES = {"compiled": "Purples", "nn.Conv3d": "Greys", "ACSConv": "Oranges", "reference": "Greens", "": "Blues"}


def colours(names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Chooses a colour for each contender: a hue by implementation, darker from dense to split_depth."""
    from matplotlib import colormaps

    family = {name: next(f for f in FAMILIES if f in name) for name in names}
    found = {}
    for name in names:
        alike = [n for n in names if family[n] == family[name]]
        found[name] = colormaps[FAMILIES[family[name]]](0.35 + 0.6 * (alike.index(name) + 1) / len(alike))
    return found


def draw(records: Records, path: Path) -> None:
    """Draws bars of the ratios to a PNG, one panel per pass."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(r["layer"] for r in records))
    kinds = passes(records)
    figure = Figure(figsize=(12, 3.6 * len(kinds)), layout="constrained")
    tables = {what: speedups(records, what) for what in kinds}
    colour = colours(list(dict.fromkeys(name for table in tables.values() for name in table)))
    handles: dict[str, Any] = {}
    for axes, what in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds):
        table = tables[what]
        width = 0.85 / len(table)
        for i, (name, ratios) in enumerate(table.items()):
            positions = [k + (i - (len(table) - 1) / 2) * width for k in range(len(layers))]
            handles[name] = axes.bar(positions, [ratios.get(n, 0.0) for n in layers], width, color=colour[name])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(layers)), layers)
        axes.set_ylabel("times less memory than best dense" if what == "memory" else "times faster than best dense")
        axes.set_title(what, loc="left")
    figure.legend(
        [handles[n] for n in colour], list(colour), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    about = records[0]
    figure.suptitle(
        f"{about['device']}, {about['threads']} threads, torch {about['torch']}, commit {about['commit']}", fontsize=10
    )
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.operator.report", description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, nargs="?", help="results to read (default: the newest)")
    args = parser.parse_args(argv)
    source = args.file
    if source is None:
        files = sorted(Path("benchmarks/results").glob("*.jsonl"), key=lambda p: p.stat().st_mtime)
        if not files:
            parser.error("benchmarks/results has no *.jsonl; run `python -m benchmarks.operator.run` first")
        source = files[-1]
    try:
        records = load(source)
        text = markdown(records)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(text)
    source.with_suffix(".md").write_text(text)
    draw(records, source.with_suffix(".png"))
    print(f"written: {source.with_suffix('.md')}, {source.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
