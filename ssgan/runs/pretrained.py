"""Networks in a folder of their own, which needs no run: `config.json` and `model.safetensors`, as Hugging Face has it.

G, D = load_networks(Path("RUN"))
G.save_pretrained("generator")
G = PretrainedGenerator.from_pretrained("generator")
volumes = G.volumes([0, 1, 2])
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import ssconv
from ssgan.config.network import NetworkConfig
from ssgan.data.dataset import DatasetInfo
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.sampling import Pairs, class_mean, latents, synthesise_pairs
from ssgan.runs import checkpoint
from ssgan.runs.config import FILE, RunError
from ssgan.runs.generator import load_generator
from ssgan.utils.files import atomic_path, read_json, write_json_atomic

FORMAT = 1
WEIGHTS = "model.safetensors"
Network = TypeVar("Network", bound="Pretrained")


class Pretrained(nn.Module):
    """A network that can be written to a folder and read from it.

    cfg: its configuration. info: geometry and intensities of the volumes that it was trained on, None if not known.
    """

    cfg: NetworkConfig
    info: DatasetInfo | None = None

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes config.json and model.safetensors into `folder`, which is made where it is not there."""
        record: dict[str, Any] = {"format": FORMAT, "class": type(self).__name__, "ssgan": ssconv.__version__}
        record["network"] = dataclasses.asdict(self.cfg)
        record["data"] = None if self.info is None else self.info.to_json()
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        with atomic_path(Path(folder, WEIGHTS)) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        write_json_atomic(Path(folder, FILE), record)

    @classmethod
    def from_pretrained(cls: type[Network], folder: str | os.PathLike[str]) -> Network:
        """Reads a network from a folder of `save_pretrained`, to the CPU, in eval mode. No network is asked.

        Raises:
            RunError, ConfigError, CheckpointError: the folder holds no such network, or another one than this class.
        """
        file = Path(folder, FILE)
        record = read_json(file)
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("class") != cls.__name__:
            found = record.get("class", "another file") if isinstance(record, dict) else "another file"
            raise RunError(f"{file}: expected the config.json of a {cls.__name__}, of format {FORMAT}; got {found}")
        network = cls(NetworkConfig.from_json(record["network"]))  # type: ignore[call-arg]
        try:
            tensors = load_file(Path(folder, WEIGHTS))
        except (OSError, SafetensorError) as error:
            raise checkpoint.DamagedError(f"{folder}/{WEIGHTS} is absent or damaged: {error}") from error
        checkpoint.load_module(network, "network", checkpoint.with_prefix("network", tensors), f"{folder}/{WEIGHTS}")
        network.info = None if record["data"] is None else DatasetInfo.from_json(record["data"])
        return network.eval()


class PretrainedGenerator(Pretrained, Generator):
    """A generator that can be written to a folder and read from it."""

    def volumes(self, seeds: Sequence[int], truncation: float = 1.0, label: int | None = None) -> np.ndarray:
        """Generates the volumes (N, D, H, W) in [-1, 1] of `ssgan generate --seeds ..`, four at a time.

        label: the class, for a network with classes.
        """
        return self.pairs(seeds, truncation, label).volumes

    @torch.no_grad()
    def pairs(self, seeds: Sequence[int], truncation: float = 1.0, label: int | None = None) -> Pairs:
        """Generates what `volumes` does, and the masks where the network makes them."""
        c = None if label is None else torch.full((len(seeds),), label)
        centre = None if label is None or truncation == 1.0 else class_mean(self, label)
        return synthesise_pairs(
            self, latents(seeds, self.cfg.z_dim), batch=4, truncation=truncation, c=c, centre=centre
        )


class PretrainedDiscriminator(Pretrained, Discriminator):
    """A discriminator that can be written to a folder and read from it."""


def load_networks(run: Path, file: Path | None = None) -> tuple[PretrainedGenerator, PretrainedDiscriminator]:
    """Loads G_ema and D of a run's last checkpoint, or of the checkpoint `file`, to the CPU.

    Raises:
        RunError, CheckpointError: as `load_generator`.
    """
    source = load_generator(run, file)
    tensors, _ = checkpoint.load(source.path)
    networks = PretrainedGenerator(source.G.cfg), PretrainedDiscriminator(source.G.cfg)
    for network, prefix in zip(networks, ("G_ema", "D"), strict=True):
        checkpoint.load_module(network, prefix, tensors, str(source.path))
        network.info = source.info
        network.eval()
    return networks
