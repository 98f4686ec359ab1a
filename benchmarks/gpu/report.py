"""The summary of a GPU run: tables in Markdown and plots, from the files that gpu_acceptance.sh leaves in one folder.

Reads environment.json, tests.xml, layers.jsonl, memory-bound.jsonl, upsampling.jsonl and training.jsonl, as far as they
are there; writes summary.md, layers.png and training.png. `python -m benchmarks.operator.report FOLDER` calls it.
"""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import bars as gpu_bars
from benchmarks.gpu.figures import (
    MEMORY,
    Record,
    against_dense,
    best_dense,
    lines,
    name,
    ratios,
    share_of_copy,
    share_of_floor,
    training_figures,
    variant,
    with_memory,
)

DOTS = 100  # per inch of the plots
WIDTH, PANEL, LEGEND = 16.0, 3.0, 1.6  # inches


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def layer_table(figures: Sequence[Record], what: str) -> str:
    """One pass: the best dense cost, then ratio (and share of the floor) per contender; an empty cell has no figure."""
    layers = _unique(r["layer"] for r in figures)
    by_place = {(name(r), r["layer"]): r for r in figures if r["pass"] == what}
    unit, scale = ("MiB", 2**-20) if what == MEMORY else ("ms", 1e3)

    def best_cell(layer: str) -> str:
        best = best_dense(figures, layer, what)
        if best is None:
            return ""
        floor = "" if what == MEMORY else f" ({100 * share_of_floor(best):.0f} %)"
        return f"{best['cost'] * scale:.3g}{floor}"

    def cell(who: str, layer: str, ratio: float | None) -> str:
        if ratio is None:
            return ""
        floor = "" if what == MEMORY else f" ({100 * share_of_floor(by_place[who, layer]):.0f} %)"
        return f"{ratio:.2f}{floor}"

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
    """Sections of Markdown for layers.jsonl."""
    figures = with_memory(records)
    parts = ["## Layers"]
    for dtype in _unique(r["dtype"] for r in figures):
        own = [r for r in figures if r["dtype"] == dtype]
        ceiling = own[-1]["ceilings"]
        parts.append(
            f"{dtype}. Measured in the same run: {ceiling['operations_per_second'] / 1e12:.0f} TFLOP/s in a large "
            f"matrix product, {ceiling['bytes_per_second'] / 1e12:.2f} TB/s in a large copy; the floor of a figure is "
            "the larger of its operations and its bytes over these. Cells are ratios against the better layout of "
            "dense nn.Conv3d, above 1 is faster (or needs less memory), and in brackets the share of the contender's "
            "own floor. Layers are batch x channels x edge^3 with bias and leaky ReLU; a scaled one has per-sample "
            "scales. Empty: no figure, see below."
        )
        for scaled in (False, True):
            some = [r for r in own if r["layer"].endswith(" scaled") == scaled]
            parts += [layer_table(some, what) for what in _unique(r["pass"] for r in some)]
    failures = _unique(f"* {r['layer']}, {name(r)}, {r['pass']}: {r['error']}" for r in records if "error" in r)
    measured = {(r["layer"], r["dtype"]) for r in figures}
    skipped = _unique(
        f"* {r['layer']} in {r['dtype']}: {r['skipped']}"
        for r in records
        if "skipped" in r and (r["layer"], r["dtype"]) not in measured
    )
    if failures or skipped:
        parts.append("Without a figure:\n\n" + "\n".join([*failures, *skipped]))
    kernels = _unique(
        f"* {r['layer']}, {name(r)}: " + ", ".join(f"`{k[:100]}`" for k in r["device_kernels"][:3])
        for r in figures
        if r["kernels"] == "dense" and r.get("device_kernels") and r["pass"] != MEMORY
    )
    if kernels:
        parts.append("The longest kernels of the rivals' full step:\n\n" + "\n".join(kernels))
    return parts


def training_report(records: Sequence[Record]) -> list[str]:
    """Sections of Markdown for training.jsonl."""
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
    """A section of Markdown for memory-bound.jsonl: kernels down, tensors across, a line for each implementation."""
    tensors = _unique(r["tensor"] for r in records)
    found = {(r["kernel"], r["implementation"], r["tensor"]): r for r in records if "seconds" in r}
    rows = [_row(["kernel", "by", *tensors]), "|---" * (len(tensors) + 2) + "|"]
    for kernel, who in _unique((r["kernel"], r["implementation"]) for r in records):
        cells = [found.get((kernel, who, t)) for t in tensors]
        rows.append(_row([kernel, who, *("" if r is None else f"{100 * share_of_copy(r):.0f} %" for r in cells)]))
    failures = [f"* {r['kernel']}, {r['implementation']}, {r['tensor']}: {r['error']}" for r in records if "error" in r]
    return [
        "## Kernels that memory limits",
        "Bytes a second (each input read once, each output written once) as a share of a large copy's in the same run.",
        "\n".join(rows),
        *(["Without a figure:\n\n" + "\n".join(failures)] if failures else []),
    ]


def upsampling_report(records: Sequence[Record]) -> list[str]:
    """A section of Markdown for upsampling.jsonl: milliseconds of the two ways and their ratio."""
    rows = [_row(["level", "of", "kernels", "two steps, ms", "phases, ms", "phases / two steps"]), "|---" * 6 + "|"]
    for level, where, kernels in _unique((r["level"], r["of"], r["kernels"]) for r in records):
        own = [r for r in records if (r["level"], r["of"], r["kernels"]) == (level, where, kernels)]
        ms = {r["way"]: 1e3 * r["seconds"]["median"] for r in own if "seconds" in r}
        if len(ms) < 2:
            error = next((r["error"] for r in own if "error" in r), "")
            rows.append(_row([level, where, kernels, error, "", ""]))
            continue
        two, phases = ms["two steps"], ms["phases"]
        rows.append(_row([level, where, kernels, f"{two:.3f}", f"{phases:.3f}", f"{phases / two:.2f}"]))
    return [
        "## Upsampling and FIR",
        "A transposed convolution and then the filter, against both as phases of one convolution (not interleaved, so "
        "without a part of its work); above 1 the two steps are faster.",
        "\n".join(rows),
    ]


def tests_report(path: Path) -> list[str]:
    """Counts and the names of what failed, from pytest's junit file."""
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
    if "sm_90a products" in about:
        extra.append(f"* products of sm_90a: {about['sm_90a products']}")
    extra += [f"* not installed: {', '.join(about['missing'])}"] if about.get("missing") else []
    return [text + ("\n\n" + "\n".join(extra) if extra else "")]


def bars_report(folder: Path) -> list[str]:
    """What is asked of the kernels, where anything was measured."""
    layers, training, bound = (lines(folder / f"{n}.jsonl") for n in ("layers", "training", "memory-bound"))
    environment = folder / "environment.json"
    about = json.loads(environment.read_text()) if environment.exists() else {}
    return gpu_bars.report(layers, training, bound, about.get("warning")) if layers or training or bound else []


def _bars(panels: Sequence[tuple[str, str, dict[str, dict[str, float]]]], path: Path, title: str) -> None:
    """Grouped bars: one panel per (title, label of the axis, series -> group -> value); WIDTH by LEGEND + PANEL each,
    in inches of DOTS pixels."""
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
            places = [groups.index(g) + (i - (len(table) - 1) / 2) * width for g in found]
            axes.bar(places, list(found.values()), width, color=colours[who])
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(range(len(groups)), [g.replace("^3 ", "^3\n") for g in groups], fontsize="small")
        axes.set_ylabel(label, fontsize="small")
        axes.set_title(head, loc="left", fontsize="medium")
    handles = [Patch(color=colours[s], label=s) for s in series]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=DOTS)


def draw_layers(records: Sequence[Record], path: Path) -> None:
    """Ratios against the best dense layer, a panel per dtype, pass and kind of layer."""
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
    """Images per second against dense on nn.Conv3d, one group per preset."""
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
    """summary.md and the plots of a folder; prints the summary. The exit code is 1 where there is nothing to report.

    Raises:
        ValueError: a file is damaged; names the line.
    """
    parts = ["# GPU acceptance"]
    sources: tuple[tuple[str, Callable[[Path], list[str]]], ...] = (
        ("environment.json", lambda p: environment_report(json.loads(p.read_text()))),
        ("tests.xml", tests_report),
        ("layers.jsonl", lambda p: layer_report(lines(p))),
        ("memory-bound.jsonl", lambda p: memory_bound_report(lines(p))),
        ("upsampling.jsonl", lambda p: upsampling_report(lines(p))),
        ("training.jsonl", lambda p: training_report(lines(p))),
    )
    absent = [file for file, _ in sources if not ((folder / file).exists() and (folder / file).stat().st_size)]
    for file, report in sources:
        if file not in absent:
            parts += report(folder / file)
        if file == "tests.xml":
            parts += bars_report(folder)
    if absent:
        parts.append(f"Not there: {', '.join(absent)}.")
    text = "\n\n".join(parts) + "\n"
    print(text)
    (folder / "summary.md").write_text(text)
    written = ["summary.md"]
    for file, png, draw, figures in (
        ("layers.jsonl", "layers.png", draw_layers, with_memory),
        ("training.jsonl", "training.png", draw_training, training_figures),
    ):
        records = lines(folder / file)
        if figures(records):
            draw(records, folder / png)
            written.append(png)
    print(f"written to {folder}: {', '.join(written)}")
    return 1 if len(absent) == len(sources) else 0
