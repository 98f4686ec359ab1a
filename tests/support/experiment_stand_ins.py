"""Helpers for the tests of the experiments: a scale of seconds, the command on it, and its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.experiments import driver, grids, results
from benchmarks.experiments.grids import Scale
from ssgan.training import run as training_run

TINY = Scale("tiny", "demo", (8, 8, 8), 4, 8, 6, 2, 32, 16, 8, 4, 4, (12, 8))


def make_tiny(patch: pytest.MonkeyPatch) -> None:
    """Adds a scale that takes seconds; the trainings' pictures, which would take most of them, are dots."""

    def dot(volumes, path, **more):
        Image.new("L", (2, 2)).save(path)
        return path

    patch.setitem(grids.SCALES, "tiny", TINY)
    patch.setattr(training_run, "plot_curves", lambda *args: None)
    for name in ("slice_grid", "three_plane_grid"):
        patch.setattr(training_run, name, dot)


def run(root: Path, *more: str, grid: str = "A", results_in: Path | None = None) -> int:
    words = ["--grid", grid, "--scale", "tiny", "--out", str(root / "runs"), "--seeds", "0", "--threads", "1"]
    path = results_in or root / "tiny.jsonl"
    return driver.main([*words, "--device", "cpu", "--results", str(path), *more])


def numbers(path: Path) -> dict[str, tuple]:
    """Gives cell -> the parts of its record that must not depend on how often it was stopped: all but times."""
    found = {}
    for r in results.load(path):
        points = [{k: v for k, v in p.items() if not k.startswith("seconds")} for p in r["points"]]
        found[r["cell"]] = (points, r["final"], r["averages"], r["parameters"], r["protocol"])
    return found
