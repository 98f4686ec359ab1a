"""Opens the generator whose latent space is explored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ssgan.data.dataset import DatasetInfo
from ssgan.latent_space.files import LatentError
from ssgan.latent_space.styles import broadcast, map_latents
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.sampling import latents
from ssgan.runs import checkpoint
from ssgan.runs.generator import LoadedGenerator, load_generator, parse_class


@dataclass(frozen=True)
class LatentSpace:
    """A 3D generator of a run, and the class that is explored (None: networks without classes)."""

    source: LoadedGenerator
    label: int | None = None

    @property
    def G(self) -> Generator:
        return self.source.G

    @property
    def info(self) -> DatasetInfo:
        return self.source.info

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device

    def ws(self, seeds: list[int], truncation: float) -> Tensor:
        """Gives the ws (len(seeds), num_ws, w_dim) of seeds."""
        z = latents(seeds, self.G.cfg.z_dim)
        return broadcast(self.G, map_latents(self.G, z, truncation, label=self.label))

    def load_discriminator(self) -> Discriminator:
        """Loads the discriminator of the same checkpoint."""
        D = Discriminator(self.G.cfg)
        checkpoint.load_module(D, "D", checkpoint.load(self.source.path)[0], str(self.source.path))
        return D.requires_grad_(False)


def open_latent_space(run: Path, file: Path | None, class_: str | None, device: torch.device) -> LatentSpace:
    """Loads the generator of a run's last checkpoint, or of the checkpoint `file`. class_: the option --class.

    Raises:
        LatentError, RunError, CheckpointError: a checkpoint of stage 2d, more than one class, and see `load_generator`.
    """
    source = load_generator(run, file)
    if source.meta.stage != "3d":
        raise LatentError(
            f"{source.path} is of stage 2d, which makes slices; train the 3D stage, or give a 3D --checkpoint"
        )
    chosen = parse_class(class_, source.config)
    if len(chosen) > 1:
        raise LatentError("--class all: `ssgan latents` works within one class; name it")
    source.G.to(device)
    return LatentSpace(source, chosen[0])
