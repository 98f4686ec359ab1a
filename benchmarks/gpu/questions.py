"""The first table of a GPU run: what only a card can say of the sm_90a kernels, from verify.json and layers.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.figures import Record, load, roofline_share, with_memory

OPEN = "not measured yet"
FORWARD, DTYPE, KERNELS = "forward", "bf16", "split_depth"
NAMES = ("im2col", "cluster", "halo", "halo swizzled")  # labels of the contenders that are families


def times(figures: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Label of a family -> layer -> its record, of the forward of unscaled split_depth layers in bf16."""
    found: dict[str, dict[str, Record]] = {}
    for r in figures:
        label = r["implementation"].removeprefix("ssconv cuda, ")
        plain = not r["layer"].endswith(" scaled")
        if label in NAMES and plain and (r["pass"], r["dtype"], r["kernels"]) == (FORWARD, DTYPE, KERNELS):
            found.setdefault(label, {})[r["layer"]] = r
    return found


def ratio(found: Mapping[str, Mapping[str, Record]], one: str, other: str) -> str:
    """How many times as fast one family is as another: the geometric mean over common layers, and each layer's."""
    common = [layer for layer in found.get(one, {}) if layer in found.get(other, {})]
    if not common:
        return OPEN
    each = {n: found[other][n]["seconds"]["median"] / found[one][n]["seconds"]["median"] for n in common}
    mean = math.exp(sum(map(math.log, each.values())) / len(each))
    return f"{one} {mean:.2f} times {other} ({', '.join(f'{n}: {r:.2f}' for n, r in each.items())})"


def verdict(verdicts: Mapping[str, Any], family: str) -> str:
    """What `python -m ssconv verify` said of a family."""
    v = verdicts.get(family)
    if v is None:
        return OPEN
    return f"{v['verdict']} ({v['reason']})" if v["reason"] else f"{v['verdict']} ({v['checks']} checks)"


def shares(found: Mapping[str, Mapping[str, Record]], label: str) -> str:
    """The shares of the roofline of a family's layers, the lowest first."""
    by_layer = sorted((roofline_share(r), n) for n, r in found.get(label, {}).items())
    return f"{label}: " + ", ".join(f"{n} {100 * share:.0f} %" for share, n in by_layer) if by_layer else OPEN


def report(folder: Path) -> list[str]:
    """The table, where the folder has either file."""
    path = folder / "verify.json"
    if not path.exists() and not (folder / "layers.jsonl").exists():
        return []
    verdicts = json.loads(path.read_text())["verdicts"] if path.exists() else {}
    found = times(with_memory(load(folder / "layers.jsonl")))
    halo, swizzled = verdict(verdicts, "sm90_halo"), verdict(verdicts, "sm90_halo_swizzled")
    rows = [
        (
            "wgmma on unswizzled core matrices that start at any multiple of 16 bytes",
            halo,
            ratio(found, "halo", "im2col"),
        ),
        (
            "base offset 0 with rows shifted inside the swizzle's pattern",
            swizzled,
            ratio(found, "halo swizzled", "im2col"),
        ),
        (
            "zeros for the channels of a TMA box that lie outside the tensor (checks of 40 channels)",
            f"im2col: {verdict(verdicts, 'sm90_im2col')}; halo: {halo}",
            "",
        ),
        ("the rate of tiled copies with rows of 16 bytes", "", ratio(found, "halo", "halo swizzled")),
        (
            "instruction fetch: does a small layer reach a smaller share of the roofline",
            "",
            "; ".join(shares(found, label) for label in ("im2col", "halo")),
        ),
    ]
    lines = ["| question | verdict of the checks | times, forward of split_depth in bf16 |", "|---|---|---|"]
    lines += [f"| {i}. {what} | {said} | {timed} |" for i, (what, said, timed) in enumerate(rows, 1)]
    return ["## What only a card can say", "\n".join(lines)]
