"""What the project asks of its kernels on an H200 (bf16, one run), each held, missed or without a figure.

Layers are those of KERNELS.md section 8, with and without scales; the yardstick is the better layout of dense
nn.Conv3d; "ours" is the cuda backend as it chooses by itself. `python -m benchmarks.operator.report FOLDER` puts the
table into the summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.cases import GPU_LAYERS
from benchmarks.gpu.figures import Record, ratios, share_of_copy, share_of_floor, training_figures, with_memory
from benchmarks.operator.cases import Layer

OURS = "ssconv cuda"
DTYPE = "bf16"
COMPILED = "nn.Conv3d channels_last compiled"
FORWARD, STEP = "forward", "full step"
# Kernel set -> pass -> times as fast as dense, in geometric mean.
TIMES = {
    "split_depth": {FORWARD: 2.5, STEP: 2.3},
    "grouped": {FORWARD: 1.8, STEP: 1.8},
    "dense": {FORWARD: 1.0, STEP: 1.0},
}
OVER_COMPILED = 3.0  # grouped, against nn.Conv3d(groups=2) and the shuffle under torch.compile
COPY_SHARE = 0.8
FLOOR_SHARE, WIDE = 0.6, 128  # from so many channels
TRAINING, EDGES, IMAGES, PEAK = "brain", (64, 128), 3.0, 0.55


@dataclass(frozen=True)
class Bar:
    """held is None where there are too few figures to say."""

    what: str
    wanted: str
    found: float | None
    held: bool | None
    note: str = ""


def _mean(values: Iterable[float]) -> float:
    logarithms = [math.log(v) for v in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _of_all(
    what: str, least: float, found: Mapping[str, float], layers: Sequence[Layer], of: Callable[..., float]
) -> Bar:
    """A bar for the mean or the least over `layers`; where some are missing only a least that fails is judged."""
    there = {layer: found[layer.name] for layer in layers if layer.name in found}
    missing = f"{len(there)} of {len(layers)} layers" if len(there) < len(layers) else ""
    if not there:
        return Bar(what, f">= {least}", None, None, missing)
    value = of(there.values())
    kinds = {kind: [v for layer, v in there.items() if layer.scaled is scaled]
             for kind, scaled in (("plain", False), ("scaled", True))}  # fmt: skip
    notes = [missing, *(f"{kind} {of(values):.2f}" for kind, values in kinds.items() if values)]
    if of is min:
        notes.append(f"least: {min(there, key=lambda layer: there[layer]).name}")
    judged = not missing or (of is min and value < least)
    return Bar(what, f">= {least}", value, value >= least if judged else None, "; ".join(filter(None, notes)))


def layer_bars(records: Sequence[Record], layers: Sequence[Layer] = GPU_LAYERS) -> list[Bar]:
    """Of layers.jsonl."""
    figures = [r for r in with_memory(records) if r["dtype"] == DTYPE]
    found = {what: ratios(figures, what) for what in (FORWARD, STEP)}

    def ours(kernels: str, what: str) -> dict[str, float]:
        return found[what].get(f"{kernels}, {OURS}", {})

    bars = [
        _of_all(f"{kernels}, {what}, against dense", least, ours(kernels, what), layers, _mean)
        for kernels, passes in TIMES.items()
        for what, least in passes.items()
    ]
    for what in (FORWARD, STEP):
        rival = found[what].get(f"grouped, {COMPILED}", {})
        both = {n: ratio / rival[n] for n, ratio in ours("grouped", what).items() if n in rival}
        bars.append(_of_all(f"grouped, {what}, against its compiled rival", OVER_COMPILED, both, layers, _mean))
    for kernels in TIMES:
        worst: dict[str, float] = {}
        for what in (FORWARD, STEP):
            for n, ratio in ours(kernels, what).items():
                worst[n] = min(ratio, worst.get(n, math.inf))
        bars.append(_of_all(f"{kernels}, no layer slower than dense", 1.0, worst, layers, min))
    wide = [layer for layer in layers if layer.channels >= WIDE]
    for kernels in TIMES:
        shares: dict[str, float] = {}
        for r in figures:
            if (r["kernels"], r["implementation"]) == (kernels, OURS) and r["pass"] in (FORWARD, STEP):
                shares[r["layer"]] = min(share_of_floor(r), shares.get(r["layer"], math.inf))
        bars.append(_of_all(f"{kernels}, share of the floor from {WIDE} channels", FLOOR_SHARE, shares, wide, min))
    return bars


def memory_bound_bar(records: Sequence[Record]) -> Bar:
    """Of memory-bound.jsonl: the least share of a copy's bytes a second."""
    what, wanted = "memory-bound kernels, share of a copy's bandwidth", f">= {COPY_SHARE}"
    shares = {f"{r['kernel']}, {r['tensor']}": share_of_copy(r)
              for r in records if "seconds" in r and f"ssconv {r['implementation']}" == OURS}  # fmt: skip
    failed = sum("error" in r and f"ssconv {r['implementation']}" == OURS for r in records)
    without = f"{failed} without a figure" if failed else ""
    if not shares:
        return Bar(what, wanted, None, None, without)
    worst = min(shares, key=lambda k: shares[k])
    held = False if shares[worst] < COPY_SHARE else None if failed else True
    return Bar(what, wanted, shares[worst], held, "; ".join(filter(None, [without, f"least: {worst}"])))


def training_bars(records: Sequence[Record]) -> list[Bar]:
    """Of training.jsonl: against the faster of dense on nn.Conv3d with PyTorch's filters and with ours."""
    bars = []
    figures = [r for r in training_figures(records) if (r["preset"], r["precision"]) == (TRAINING, DTYPE)]
    for edge in EDGES:
        images = f"training, {TRAINING} at {edge}^3, images a second against dense"
        peak = f"training, {TRAINING} at {edge}^3, peak memory against dense"
        here = [r for r in figures if r["shape"] == [edge] * 3 and "graphs" not in r["implementation"]]
        dense = [r for r in here if r["arch"] == "dense" and r["implementation"].startswith("nn.Conv3d")]
        ours = [r for r in here if (r["arch"], f"ssconv {r['implementation']}") == ("split_depth", OURS)]
        if not dense or not ours:
            bars += [Bar(images, f">= {IMAGES}", None, None), Bar(peak, f"<= {PEAK}", None, None)]
            continue
        best, own = max(dense, key=lambda r: r["images_per_second"]), ours[-1]
        note = f"against {best['implementation']}"
        if best["batch"] != own["batch"]:
            note += f"; batch {own['batch']} against {best['batch']}, which is what fits"
        faster, less = own["images_per_second"] / best["images_per_second"], own["peak_bytes"] / best["peak_bytes"]
        bars.append(Bar(images, f">= {IMAGES}", faster, faster >= IMAGES, note))
        bars.append(Bar(peak, f"<= {PEAK}", less, less <= PEAK, note))
    return bars


def report(
    layers: Sequence[Record], training: Sequence[Record], memory_bound: Sequence[Record], warning: str | None = None
) -> list[str]:
    """A section of Markdown."""
    bars = [*layer_bars(layers), memory_bound_bar(memory_bound), *training_bars(training)]
    words = {True: "held", False: "**missed**", None: "no figure"}
    rows = ["| bar | wanted | found | | of |", "|---|---|---|---|---|"]
    for bar in bars:
        found = "" if bar.found is None else f"{bar.found:.2f}"
        rows.append(f"| {bar.what} | {bar.wanted} | {found} | {words[bar.held]} | {bar.note} |")
    count = {word: sum(words[bar.held] == word for bar in bars) for word in words.values()}
    said = f"{count['held']} held, {count['**missed**']} missed, {count['no figure']} without enough figures."
    return [
        "## Bars",
        f"{said} bf16; means are geometric.",
        *([f"Warning: {warning}"] if warning else []),
        "\n".join(rows),
    ]
