"""Loads the generator of a run, and parses the options that choose seeds and classes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ssgan.data.dataset import DatasetInfo
from ssgan.models.networks import Generator
from ssgan.models.sampling import class_shares
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.config import RunConfig, RunError, load_config
from ssgan.utils.errors import UserError

MAX_SEED = 2**32 - 1
MAX_RANGE = 1_000_000
CHECKPOINT_HELP = "a checkpoint of the run by its name, such as 3d-best, or a file (default: the run's last)"


@dataclass(frozen=True)
class LoadedGenerator:
    """G_ema of a checkpoint, with the checkpoint's position and file and the configuration of its run."""

    G: Generator
    meta: CheckpointMeta
    config: RunConfig
    path: Path

    @property
    def info(self) -> DatasetInfo:
        """Geometry and intensities of the run's data set."""
        return self.config.info

    @property
    def sha256(self) -> str:
        """The checksum in the checkpoint's header."""
        return checkpoint.checksum(self.path)

    def class_labels(self, count: int) -> Tensor | None:
        """(count,) class numbers, each class as often as in the run's data set; None for networks without classes."""
        return class_shares(self.config.class_counts, count)


def load_generator(run: Path, file: Path | None = None) -> LoadedGenerator:
    """Loads G_ema of a run's last checkpoint, or of the checkpoint `file`, to the CPU.

    file: a path, or the name of one of the run's checkpoints, such as 3d-best.

    Raises:
        RunError, CheckpointError: no such run, no such checkpoint in it, or a checkpoint that does not fit.
    """
    config = load_config(run)
    file = _find_checkpoint(run, file)
    tensors, meta = checkpoint.load(file)
    network = config.train.network
    G = Generator(network.flat() if meta.stage == "2d" else network)
    checkpoint.load_module(G, "G_ema", tensors, str(file))
    return LoadedGenerator(G.requires_grad_(False), meta, config, file)


def _find_checkpoint(run: Path, file: Path | None) -> Path:
    """Finds the file of a checkpoint that was given by its path or by its name in the run; None: the run's last."""
    if file is not None and file.is_file():
        return file
    folder = run / "checkpoints"
    found = checkpoint.list_checkpoints(folder)
    if not found:
        raise RunError(f"--run {run} has no checkpoint yet; train it further (`ssgan train --out {run}`)")
    if file is None:
        return found[-1]
    files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    name = str(file).removesuffix(".safetensors")
    if name not in files:
        raise RunError(f"--checkpoint: no checkpoint {str(file)!r} in {run}; it has {', '.join(files)}")
    return files[name]


def parse_seeds(text: str) -> list[int]:
    """ "0-15,20" -> [0, ..., 15, 20]. Raises UserError for anything else, and for a seed named twice."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise UserError(f"--seeds: expected numbers and ranges such as 0-15,20; got {part.strip()!r} in {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_SEED:
            raise UserError(f"--seeds: expected a rising range within 0..{MAX_SEED}; got {part.strip()!r}")
        if last - first >= MAX_RANGE:
            raise UserError(f"--seeds: expected at most {MAX_RANGE} seeds in a range; {part.strip()!r} has more")
        seeds += range(first, last + 1)
    twice = sorted({s for s in seeds if seeds.count(s) > 1}) if len(seeds) != len(set(seeds)) else []
    if twice:
        raise UserError(f"--seeds: {', '.join(map(str, twice[:5]))} named more than once in {text!r}")
    return seeds


def parse_class(text: str | None, config: RunConfig) -> list[int | None]:
    """Gives the class numbers that --class asks for, [None] for networks without classes.

    text: a name, a number, "all", or None where the option was not given. Where a name and a number read the same, the
    name is meant.

    Raises:
        RunError: no such class, a class of networks without classes, or no class of networks with classes.
    """
    names, run = config.class_names, config.path.parent
    if not names:
        if text is not None:
            raise RunError(f"--class {text}: --run {run} was trained without classes; leave --class out")
        return [None]
    if text == "all":
        return list(range(len(names)))
    listed = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))
    if text is None:
        raise RunError(f"--class: --run {run} was trained with classes; give one of {listed}, or all")
    if text in names:
        return [names.index(text)]
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text) < len(names):
        return [int(text)]
    raise RunError(f"--class: expected one of {listed}, or all; got {text!r}")
