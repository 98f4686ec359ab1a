"""What the project wants of its kernels on an H200 (bf16, one run): each target is met, missed, or has no figure.

Layers are those of `benchmarks.gpu.cases`, with and without scales; the rival is the better layout of dense nn.Conv3d;
ours is backend="auto", which chooses by measurement. `python -m benchmarks.gpu.report FOLDER` puts the table into its
summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.cases import GPU_LAYERS
from benchmarks.gpu.figures import Record, bandwidth_share, ratios, roofline_share, training_figures, with_memory
from benchmarks.operator.cases import Layer

OURS = "ssconv auto"
DTYPE = "bf16"
COMPILED = "nn.Conv3d channels_last compiled"
FORWARD, STEP = "forward", "full step"
# Kernel set -> pass -> geometric mean of the ratios to dense.
SPEEDUPS = {
    "split_depth": {FORWARD: 2.5, STEP: 2.3},
    "grouped": {FORWARD: 1.8, STEP: 1.8},
    "dense": {FORWARD: 1.0, STEP: 1.0},
}
OVER_COMPILED = 3.0  # grouped, against nn.Conv3d(groups=2) and the shuffle under torch.compile
BANDWIDTH_SHARE = 0.8
ROOFLINE_SHARE, WIDE = 0.6, 128  # of layers with so many channels or more
TRAINING, EDGES, IMAGES, PEAK = "brain", (64, 128), 3.0, 0.55


@dataclass(frozen=True)
class Target:
    """A wanted figure and the one that was found. met is None where there are too few figures to say."""

    what: str
    wanted: str
    found: float | None
    met: bool | None
    note: str = ""


def _geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(v) for v in values]
    return math.exp(sum(logarithms) / len(logarithms))


def _over_layers(
    what: str, least: float, found: Mapping[str, float], layers: Sequence[Layer], of: Callable[..., float]
) -> Target:
    """Compares the mean or the least over `layers`. Where some are missing, only a least that fails is judged."""
    present = {layer: found[layer.name] for layer in layers if layer.name in found}
    missing = f"{len(present)} of {len(layers)} layers" if len(present) < len(layers) else ""
    if not present:
        return Target(what, f">= {least}", None, None, missing)
    value = of(present.values())
    notes = [missing]
    for kind, scaled in (("plain", False), ("scaled", True)):
        values = [v for layer, v in present.items() if layer.scaled is scaled]
        notes += [f"{kind} {of(values):.2f}"] if values else []
    if of is min:
        notes.append(f"least: {min(present, key=lambda layer: present[layer]).name}")
    judged = not missing or (of is min and value < least)
    return Target(what, f">= {least}", value, value >= least if judged else None, "; ".join(filter(None, notes)))


def _least(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    least: dict[str, float] = {}
    for name, value in pairs:
        least[name] = min(value, least.get(name, math.inf))
    return least


def layer_targets(records: Sequence[Record], layers: Sequence[Layer] = GPU_LAYERS) -> list[Target]:
    """Judges layers.jsonl."""
    figures = [r for r in with_memory(records) if r["dtype"] == DTYPE]
    found = {what: ratios(figures, what) for what in (FORWARD, STEP)}

    def ours(kernels: str, what: str) -> dict[str, float]:
        return found[what].get(f"{kernels}, {OURS}", {})

    targets = [
        _over_layers(f"{kernels}, {what}, against dense", least, ours(kernels, what), layers, _geometric_mean)
        for kernels, passes in SPEEDUPS.items()
        for what, least in passes.items()
    ]
    for what in (FORWARD, STEP):
        rival = found[what].get(f"grouped, {COMPILED}", {})
        both = {n: ratio / rival[n] for n, ratio in ours("grouped", what).items() if n in rival}
        name = f"grouped, {what}, against torch.compile"
        targets.append(_over_layers(name, OVER_COMPILED, both, layers, _geometric_mean))
    for kernels in SPEEDUPS:
        worst = _least(pair for what in (FORWARD, STEP) for pair in ours(kernels, what).items())
        targets.append(_over_layers(f"{kernels}, no layer slower than dense", 1.0, worst, layers, min))
    wide = [layer for layer in layers if layer.channels >= WIDE]
    for kernels in SPEEDUPS:
        own = [r for r in figures if (r["kernels"], r["implementation"]) == (kernels, OURS)]
        shares = _least((r["layer"], roofline_share(r)) for r in own if r["pass"] in (FORWARD, STEP))
        name = f"{kernels}, share of the roofline from {WIDE} channels"
        targets.append(_over_layers(name, ROOFLINE_SHARE, shares, wide, min))
    return targets


def memory_bound_target(records: Sequence[Record]) -> Target:
    """Judges memory-bound.jsonl by the kernel with the least share of a copy's bytes a second."""
    what, wanted = "memory-bound kernels, share of a copy's bandwidth", f">= {BANDWIDTH_SHARE}"
    own = [r for r in records if f"ssconv {r['implementation']}" == OURS]
    shares = {f"{r['kernel']}, {r['tensor']}": bandwidth_share(r) for r in own if "seconds" in r}
    failed = sum("error" in r for r in own)
    note = f"{failed} without a figure" if failed else ""
    if not shares:
        return Target(what, wanted, None, None, note)
    worst = min(shares, key=lambda k: shares[k])
    met = False if shares[worst] < BANDWIDTH_SHARE else None if failed else True
    return Target(what, wanted, shares[worst], met, "; ".join(filter(None, [note, f"least: {worst}"])))


def training_targets(records: Sequence[Record]) -> list[Target]:
    """Judges training.jsonl against the faster of dense on nn.Conv3d with PyTorch's filters and with ours."""
    targets = []
    figures = [r for r in training_figures(records) if (r["preset"], r["precision"]) == (TRAINING, DTYPE)]
    for edge in EDGES:
        images = f"training, {TRAINING} at {edge}^3, images a second against dense"
        peak = f"training, {TRAINING} at {edge}^3, peak memory against dense"
        here = [r for r in figures if r["shape"] == [edge] * 3 and "graphs" not in r["implementation"]]
        dense = [r for r in here if r["arch"] == "dense" and r["implementation"].startswith("nn.Conv3d")]
        ours = [r for r in here if (r["arch"], f"ssconv {r['implementation']}") == ("split_depth", OURS)]
        if not dense or not ours:
            targets += [Target(images, f">= {IMAGES}", None, None), Target(peak, f"<= {PEAK}", None, None)]
            continue
        best, own = max(dense, key=lambda r: r["images_per_second"]), ours[-1]
        note = f"against {best['implementation']}"
        if best["batch"] != own["batch"]:
            note += f"; batch {own['batch']} against {best['batch']}, the largest that fits"
        faster, less = own["images_per_second"] / best["images_per_second"], own["peak_bytes"] / best["peak_bytes"]
        targets.append(Target(images, f">= {IMAGES}", faster, faster >= IMAGES, note))
        targets.append(Target(peak, f"<= {PEAK}", less, less <= PEAK, note))
    return targets


def report(layers: Sequence[Record], training: Sequence[Record], memory_bound: Sequence[Record]) -> list[str]:
    """Writes a section of Markdown."""
    targets = [*layer_targets(layers), memory_bound_target(memory_bound), *training_targets(training)]
    words = {True: "met", False: "**missed**", None: "no figure"}
    rows = ["| target | wanted | found | | note |", "|---|---|---|---|---|"]
    for target in targets:
        found = "" if target.found is None else f"{target.found:.2f}"
        rows.append(f"| {target.what} | {target.wanted} | {found} | {words[target.met]} | {target.note} |")
    met, missed, unknown = (sum(target.met is which for target in targets) for which in (True, False, None))
    return [
        "## Targets",
        f"{met} met, {missed} missed, {unknown} without enough figures. {DTYPE}; means are geometric.",
        "\n".join(rows),
    ]
