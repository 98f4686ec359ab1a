"""Summarises a GPU run: tables in Markdown and plots, from the files that acceptance.sh leaves in one folder.

    python -m benchmarks.gpu.report FOLDER

Reads environment.json, verify.json, choices.txt, tests.xml, layers.jsonl, memory-bound.jsonl and training.jsonl, as far
as they are there; writes summary.md, layers.png and training.png. Exit code 1 where the folder has none of them.
"""

from __future__ import annotations

import json
import math
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import questions, targets
from benchmarks.gpu.figures import (
    MEMORY,
    Record,
    against_dense,
    bandwidth_share,
    best_dense,
    contender,
    load,
    ratios,
    roofline_share,
    training_figures,
    variant,
    with_memory,
)
from ssconv.parser import Parser

DOTS = 100  # per inch of the plots
WIDTH, PANEL, LEGEND = 16.0, 3.0, 1.6  # inches


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def layer_table(figures: Sequence[Record], what: str) -> str:
    """Writes the table of one pass: the best dense cost, then ratio and share of the roofline per contender."""
    layers = _unique(r["layer"] for r in figures)
    of_contender = {(contender(r), r["layer"]): r for r in figures if r["pass"] == what}
    unit, scale = ("MiB", 2**-20) if what == MEMORY else ("ms", 1e3)

    def best_cell(layer: str) -> str:
        best = best_dense(figures, layer, what)
        if best is None:
            return ""
        share = "" if what == MEMORY else f" ({100 * roofline_share(best):.0f} %)"
        return f"{best['cost'] * scale:.3g}{share}"

    def cell(who: str, layer: str, ratio: float | None) -> str:
        if ratio is None:
            return ""
        share = "" if what == MEMORY else f" ({100 * roofline_share(of_contender[who, layer]):.0f} %)"
        return f"{ratio:.2f}{share}"

    rows = [
        _row([what, *layers, "geometric mean"]),
        "|---" * (len(layers) + 2) + "|",
        _row([f"best dense nn.Conv3d, {unit}", *map(best_cell, layers), ""]),
    ]
    for who, found in ratios(figures, what).items():
        whole = len(found) == len(layers)
        mean = f"{math.exp(sum(map(math.log, found.values())) / len(found)):.2f}" if whole else ""
        rows.append(_row([who, *(cell(who, n, found.get(n)) for n in layers), mean]))
    return "\n".join(rows)


def layer_report(records: Sequence[Record]) -> list[str]:
    """Writes the sections for layers.jsonl."""
    figures = with_memory(records)
    parts = ["## Layers"]
    for dtype in _unique(r["dtype"] for r in figures):
        own = [r for r in figures if r["dtype"] == dtype]
        peaks = own[-1]["peaks"]
        parts.append(
            f"{dtype}. Measured in the same run: {peaks['operations_per_second'] / 1e12:.0f} TFLOP/s in a large "
            f"matrix product, {peaks['bytes_per_second'] / 1e12:.2f} TB/s in a large copy; the roofline of a figure "
            "is the larger of its operations and its bytes over these. Cells are ratios against the better layout of "
            "dense nn.Conv3d, above 1 is faster (or needs less memory), and in brackets the roofline's time over the "
            "contender's own. Layers are batch x channels x edge^3 with bias and leaky ReLU; scaled: with per-sample "
            "scales. Empty: no figure, see below."
        )
        for scaled in (False, True):
            some = [r for r in own if r["layer"].endswith(" scaled") == scaled]
            parts += [layer_table(some, what) for what in _unique(r["pass"] for r in some)]
    failures = _unique(f"* {r['layer']}, {contender(r)}, {r['pass']}: {r['error']}" for r in records if "error" in r)
    measured = {(r["layer"], r["dtype"]) for r in figures}
    skipped = _unique(
        f"* {r['layer']} in {r['dtype']}: {r['skipped']}"
        for r in records
        if "skipped" in r and (r["layer"], r["dtype"]) not in measured
    )
    if failures or skipped:
        parts.append("Without a figure:\n\n" + "\n".join([*failures, *skipped]))
    kernels = _unique(
        f"* {r['layer']}, {contender(r)}: " + ", ".join(f"`{k[:100]}`" for k in r["device_kernels"][:3])
        for r in figures
        if r["kernels"] == "dense" and r.get("device_kernels") and r["pass"] != MEMORY
    )
    if kernels:
        parts.append("The longest kernels of PyTorch's full step:\n\n" + "\n".join(kernels))
    return parts


def training_report(records: Sequence[Record]) -> list[str]:
    """Writes the sections for training.jsonl."""
    figures = training_figures(records)
    rows = [
        _row(
            ["preset", "shape", "precision", "architecture", "convolutions by", "batch", "images/s", "against dense",
             "G step, ms", "D step, ms", "peak, GiB", "parameters"]
        ),
        "|---" * 12 + "|",
    ]  # fmt: skip
    for r in figures:
        ratio = against_dense(figures, r)
        batch = str(r["batch"]) if r["batch"] == r["asked_batch"] else f"{r['batch']} ({r['asked_batch']} did not fit)"
        rows.append(
            _row(
                [r["preset"], "x".join(map(str, r["shape"])), r["precision"], r["arch"], r["implementation"], batch,
                 f"{r['images_per_second']:.1f}", "" if ratio is None else f"{ratio:.2f}",
                 f"{r['g_step_seconds'] * 1e3:.1f}", f"{r['d_step_seconds'] * 1e3:.1f}",
                 f"{r['peak_bytes'] / 2**30:.2f}", f"{r['parameters']:,}"]
            )
        )  # fmt: skip
    parts = [
        "## Training",
        "One step of `ssgan train` in stage 3d on random volumes: generator, discriminator, the average of the "
        "weights, and path length and R1 by the share of steps that have them.",
        "\n".join(rows),
    ]
    measured = {variant(r) for r in figures}
    without = _unique(
        f"* {', '.join(variant(r))}: {r.get('error') or r.get('skipped')}"
        for r in records
        if variant(r) not in measured
    )
    return parts + (["Without a figure:\n\n" + "\n".join(without)] if without else [])


def memory_bound_report(records: Sequence[Record]) -> list[str]:
    """Writes the section for memory-bound.jsonl: kernels down, tensors across, a line for each implementation."""
    tensors = _unique(r["tensor"] for r in records)
    found = {(r["kernel"], r["implementation"], r["tensor"]): r for r in records if "seconds" in r}
    rows = [_row(["kernel", "by", *tensors]), "|---" * (len(tensors) + 2) + "|"]
    for kernel, who in _unique((r["kernel"], r["implementation"]) for r in records):
        cells = [found.get((kernel, who, t)) for t in tensors]
        rows.append(_row([kernel, who, *("" if r is None else f"{100 * bandwidth_share(r):.0f} %" for r in cells)]))
    failures = [f"* {r['kernel']}, {r['implementation']}, {r['tensor']}: {r['error']}" for r in records if "error" in r]
    return [
        "## Memory-bound kernels",
        "Bytes a second (each input read once, each output written once) as a share of a large copy's in the same run.",
        "\n".join(rows),
        *(["Without a figure:\n\n" + "\n".join(failures)] if failures else []),
    ]


def tests_report(path: Path) -> list[str]:
    """Counts the tests and names those that failed, from pytest's junit file."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    count = {key: sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "failures", "errors", "skipped")}
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    text = (
        f"{passed} passed, {count['failures']} failed, {count['errors']} could not start, {count['skipped']} skipped."
    )
    bad = [
        f"* {case.get('classname')}::{case.get('name')}"
        for case in ElementTree.parse(path).getroot().iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return ["## Tests marked `gpu`", text + ("\n\n" + "\n".join(bad) if bad else "")]


def environment_report(about: Record) -> list[str]:
    text = (
        f"{about['device']} ({about['memory_bytes'] / 2**30:.0f} GiB), driver {about['driver']}, CUDA {about['cuda']}, "
        f"cuDNN {about['cudnn']}; Python {about['python']}, torch {about['torch']}, Triton {about['triton']}; commit "
        f"{about['commit']}, {about['date']}."
    )
    extra = [f"* warning: {about['warning']}"] if about.get("warning") else []
    extra += [f"* build: {about['build']}"] if about.get("build") else []
    extra += [f"* backend {key}: {state}" for key, state in about.get("backends", {}).items()]
    if "sm_90a kernels" in about:
        extra.append(f"* kernels of sm_90a: {about['sm_90a kernels']}")
    extra += [f"* not installed: {', '.join(about['missing'])}"] if about.get("missing") else []
    return [text + ("\n\n" + "\n".join(extra) if extra else "")]


def verify_report(folder: Path) -> list[str]:
    """Writes the table of `python -m ssconv verify`."""
    path = folder / "verify.json"
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    rows = ["| family | checks | largest error | seconds | verdict |", "|---|---|---|---|---|"]
    for name, v in content["verdicts"].items():
        said = f"{v['verdict']}: {v['reason']}" if v["reason"] else v["verdict"]
        rows.append(_row([name, str(v["checks"]), f"{v['largest_error']:.1e}", f"{v['seconds']:.1f}", said]))
    return ["## Families of kernels", "\n".join(rows)]


def choices_report(folder: Path) -> list[str]:
    """Writes what `backend="auto"` chose per kind of call."""
    path = folder / "choices.txt"
    return ["## What serves", f"```\n{path.read_text().rstrip()}\n```"] if path.exists() else []


def targets_report(folder: Path) -> list[str]:
    """Writes the section of the targets, where anything was measured."""
    found = [load(folder / f"{name}.jsonl") for name in ("layers", "training", "memory-bound")]
    return targets.report(*found) if any(found) else []


def _bars(panels: Sequence[tuple[str, str, dict[str, dict[str, float]]]], path: Path, title: str) -> None:
    """Draws grouped bars to a PNG, one panel per (title, label of the axis, series -> group -> value)."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(WIDTH, LEGEND + PANEL * len(panels)), layout="constrained")
    series = _unique(s for _, _, table in panels for s in table)
    colours = dict(zip(series, (colormaps["tab20"](i % 20) for i in range(len(series)))))
    for axes, (head, label, table) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels):
        groups = _unique(g for found in table.values() for g in found)
        width = 0.85 / max(len(table), 1)
        for i, (who, found) in enumerate(table.items()):
            positions = [groups.index(g) + (i - (len(table) - 1) / 2) * width for g in found]
            axes.bar(positions, list(found.values()), width, color=colours[who])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), [g.replace("^3 ", "^3\n") for g in groups], fontsize="small")
        axes.set_ylabel(label, fontsize="small")
        axes.set_title(head, loc="left", fontsize="medium")
    handles = [Patch(color=colours[s], label=s) for s in series]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DOTS)


def draw_layers(records: Sequence[Record], path: Path) -> None:
    """Draws the ratios against the best dense layer, a panel per dtype, pass and kind of layer."""
    figures = with_memory(records)
    panels = []
    for dtype in _unique(r["dtype"] for r in figures):
        for scaled in (False, True):
            some = [r for r in figures if r["dtype"] == dtype and r["layer"].endswith(" scaled") == scaled]
            for what in _unique(r["pass"] for r in some):
                label = "times less" if what == MEMORY else "times faster"
                panels.append((f"{what}, {dtype}", f"{label} than dense", ratios(some, what)))
    _bars(panels, path, _title(figures[-1]))


def draw_training(records: Sequence[Record], path: Path) -> None:
    """Draws images per second against dense on nn.Conv3d, one group per preset."""
    figures = training_figures(records)
    table: dict[str, dict[str, float]] = {}
    for r in figures:
        ratio = against_dense(figures, r)
        if ratio is not None:
            table.setdefault(f"{r['arch']}, {r['implementation']}", {})[f"{r['preset']}, {r['precision']}"] = ratio
    _bars([("training step, images per second", "times dense", table)], path, _title(figures[-1]))


def _title(r: Record) -> str:
    return f"{r['device']}, torch {r['torch']}, commit {r['commit']}"


def write(folder: Path) -> int:
    """Writes summary.md and the plots of a folder and prints the summary. Gives the exit code.

    Raises:
        ValueError: a file is damaged; names the line.
    """
    sources: tuple[tuple[str, Callable[[Path], list[str]]], ...] = (
        ("environment.json", lambda path: environment_report(json.loads(path.read_text()))),
        ("tests.xml", tests_report),
        ("layers.jsonl", lambda path: layer_report(load(path))),
        ("memory-bound.jsonl", lambda path: memory_bound_report(load(path))),
        ("training.jsonl", lambda path: training_report(load(path))),
    )
    absent = [file for file, _ in sources if not ((folder / file).exists() and (folder / file).stat().st_size)]
    parts = ["# GPU acceptance"]
    for file, report in sources:
        if file not in absent:
            parts += report(folder / file)
        if file == "environment.json":
            parts += questions.report(folder) + verify_report(folder) + choices_report(folder)
        if file == "tests.xml":
            parts += targets_report(folder)
    if absent:
        parts.append(f"Missing: {', '.join(absent)}.")
    text = "\n\n".join(parts) + "\n"
    print(text)
    (folder / "summary.md").write_text(text)
    for file, figures, draw in (
        ("layers", with_memory, draw_layers),
        ("training", training_figures, draw_training),
    ):
        records = load(folder / f"{file}.jsonl")
        if figures(records):
            draw(records, folder / f"{file}.png")
    print(f"written to {folder}: summary.md and the plots")
    return 1 if len(absent) == len(sources) else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.report", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="results of acceptance.sh")
    args = parser.parse_args(argv)
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder; expected one that acceptance.sh has written")
    try:
        return write(args.folder)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.exit(main())
