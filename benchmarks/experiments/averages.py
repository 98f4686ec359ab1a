"""Measures a finished cell's generator under other averages of its weights: does the comparison depend on the choice?

Training never looks at the average, so every choice can be made afterwards: no average at all (the weights that the
last step left), the run's own (G_ema, as everywhere else), and the mean of G_ema over the checkpoints of the last third
of the run (equal weights, after Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better
Generalization", section 3; for GANs Yazici et al. 2019, "The Unusual Effectiveness of Averaging in GAN Training").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.experiments import scoring, training
from benchmarks.experiments.grids import Cell
from benchmarks.experiments.training import Job
from ssgan.models.networks import Generator
from ssgan.runs import checkpoint
from ssgan.utils.errors import UserError

OWN = "G_ema"
KINDS = {
    "G": "none, the weights of the last step",
    OWN: "the run's own",
    "late": "mean of the run's own over the last third",
}
METRICS = ("frechet_held", "precision", "recall", "msssim", "copies")


def late(found: dict[int, Path]) -> list[Path]:
    """Picks the checkpoints (volumes shown -> file) of the last third of a run, the last one included."""
    end = max(found)
    return [found[volumes] for volumes in sorted(found) if 3 * volumes > 2 * end]


def mean(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Takes the mean of every floating-point tensor, in float64; of any other, the last."""
    result = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            whole = torch.stack([state[name].to(torch.float64) for state in states]).mean(dim=0)
            result[name] = whole.to(last.dtype)
        else:
            result[name] = last
    return result


def generators(job: Job, cell: Cell) -> dict[str, Generator]:
    """Builds the generator of a finished cell without an average of its weights, and with the late one."""
    paths = late(training.curve_checkpoints(job, cell))
    loaded = [checkpoint.load(path)[0] for path in paths]
    averages = [checkpoint.without_prefix("G_ema", tensors) for tensors in loaded]
    tensors = loaded[-1] | checkpoint.with_prefix("late", mean(averages))
    return {name: training.generator(job, cell, tensors, paths[-1], name) for name in KINDS if name != OWN}


def measure(job: Job, cell: Cell, real: scoring.Reference) -> dict[str, dict[str, float]]:
    """Measures the metrics under each of the other averages; the record's `final` has those of the run's own."""
    found = {}
    for name, G in generators(job, cell).items():
        try:
            values = real.whole(scoring.generated(G, real.count))
        except UserError as error:
            raise UserError(f"{cell.folder}, average of the weights: {KINDS[name]}: {error}") from None
        found[name] = {metric: values[metric] for metric in METRICS}
    return found


def complete(job: Job, cell: Cell, real: scoring.Reference, record: dict[str, Any]) -> dict[str, Any] | None:
    """Adds to a record what it lacks: the averages, or the metrics of other features that are at hand now.

    None where it lacks nothing, or where the run's folder is missing. Raises UserError where the folder holds another
    run: its G_ema must give what the record says.
    """
    features = real.beside is not None and real.beside.extractor.name not in record.get("other_features", {})
    if ("averages" in record and not features) or not job.final(cell).exists():
        return None
    *_, (volumes, own) = training.generators(job, cell)
    fake = scoring.generated(own, real.count)
    now, then = real.quick(fake), record["final"]
    if volumes != record["volumes"] or not np.isclose(now["frechet_held"], then["frechet_held"], rtol=0.01):
        raise UserError(
            f"{job.out / cell.folder} is not the run of the record: {volumes} volumes and frechet_held "
            f"{now['frechet_held']:.4g}, the record has {record['volumes']} and {then['frechet_held']:.4g}; give the "
            "--out that it was run in, or another one"
        )
    more = {} if "averages" in record else {"averages": measure(job, cell, real)}
    return record | more | ({"other_features": real.other_features(fake)} if features else {})


def under(record: dict[str, Any], name: str) -> dict[str, float]:
    """Gives a record's metrics at its end under one of KINDS."""
    return record["final"] if name == OWN else record["averages"][name]
