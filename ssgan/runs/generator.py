"""Loads the generator of a run, with the names and shares of its classes."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from ssgan.config.training import TrainConfig
from ssgan.data.dataset import DatasetInfo
from ssgan.models.networks import Generator
from ssgan.models.sampling import class_shares
from ssgan.runs import checkpoint
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json

MAX_SEED = 2**32 - 1


class GenerateError(UserError):
    """A bad argument of `generate`, or a run or output folder that does not serve."""


def parse_seeds(text: str) -> list[int]:
    """ "0-15,20" -> [0, ..., 15, 20]. Raises GenerateError for anything else, and for a seed named twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise GenerateError(
                f"--seeds: expected numbers and ranges such as 0-15,20; got {part.strip()!r} in {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise GenerateError(f"--seeds: expected a rising range within 0..{MAX_SEED}; got {part.strip()!r}")
        if last - first >= 1_000_000:
            raise GenerateError(f"--seeds: {part.strip()!r} asks for {last - first + 1} volumes; a million is the most")
        seeds += range(first, last + 1)
    twice = sorted({s for s in seeds if seeds.count(s) > 1}) if len(seeds) != len(set(seeds)) else []
    if twice:
        raise GenerateError(f"--seeds: {', '.join(map(str, twice[:5]))} named more than once in {text!r}")
    return seeds


def load_generator(run: Path, file: Path | None) -> tuple[Generator, checkpoint.CheckpointMeta, DatasetInfo, Path]:
    """G_ema of a run's last checkpoint, or of `file`, on the CPU; where it stands and the data set's geometry.

    Raises:
        GenerateError, CheckpointError: no such run, no checkpoint in it yet, or a checkpoint that does not serve.
    """
    if not (run / "config.json").is_file():
        raise GenerateError(f"--run {run} is not a run's folder (no config.json); give the --out of `ssgan train`")
    record = read_json(run / "config.json")
    cfg, info = TrainConfig.from_json(record["config"]), DatasetInfo.from_json(record["data"]["info"])
    path = file
    if path is None:
        found = checkpoint.list_checkpoints(run / "checkpoints")
        if not found:
            raise GenerateError(f"--run {run} has no checkpoint yet; train it further (`ssgan train --out {run}`)")
        path = found[-1]
    tensors, meta = checkpoint.load(path)
    G = Generator(cfg.network.flat() if meta.stage == "2d" else cfg.network)
    checkpoint.load_module(G, "G_ema", tensors, str(path))
    return G.requires_grad_(False), meta, info, path


def class_names(run: Path, classes: int) -> list[str]:
    """Names of a run's classes by number, as its data set called them; the numbers where it named none.

    Raises:
        GenerateError: the record names another number of classes than the networks have.
    """
    names = read_json(run / "config.json")["data"]["info"].get("classes") or [str(i) for i in range(classes)]
    if len(names) != classes:
        raise GenerateError(
            f"--run {run}: its config.json names {len(names)} classes, its networks have {classes}; restore config.json"
        )
    return [str(name) for name in names]


def class_labels(run: Path, G: Generator, count: int) -> Tensor | None:
    """(count,) class numbers in the shares of the run's data set, None for networks without classes."""
    classes = G.cfg.classes
    counts = read_json(run / "config.json")["data"].get("class_counts") or [1] * classes
    return class_shares(counts, count) if classes else None


def parse_class(text: str | None, names: list[str], run: Path) -> list[int | None]:
    """--class as class numbers, [None] for networks without classes. A name goes before a number that reads the same.

    Raises:
        GenerateError: no such class, a class asked of networks without, or none of networks with.
    """
    if not names:
        if text is not None:
            raise GenerateError(f"--class {text}: --run {run} was trained without classes; leave --class out")
        return [None]
    if text == "all":
        return list(range(len(names)))
    listed = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))
    if text is None:
        raise GenerateError(f"--class: --run {run} was trained with classes; give one of {listed}, or all")
    if text in names:
        return [names.index(text)]
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < len(names):
        return [int(text)]
    raise GenerateError(f"--class: expected one of {listed}, or all; got {text!r}")
