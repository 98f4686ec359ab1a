"""Features of a run's own discriminator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ssgan.metrics.extractors.weights import WeightsError, file_sha256
from ssgan.models.masks import with_unknown_masks
from ssgan.models.networks import Discriminator
from ssgan.runs import checkpoint
from ssgan.runs.config import RunConfig, config_of_checkpoint, load_config


def find_checkpoint(path: Path) -> tuple[RunConfig, Path]:
    """Finds the newest checkpoint of a run, or takes a checkpoint in one; with the run's configuration."""
    if path.is_dir():
        found = checkpoint.list_checkpoints(path / "checkpoints")
        if not found:
            raise WeightsError(f"--weights {path}: expected a run's folder with a checkpoint; there is none in it")
        return load_config(path, "--weights"), found[-1]
    config = config_of_checkpoint(path)
    if config is None:
        raise WeightsError(f"--weights {path}: expected a checkpoint in RUN/checkpoints beside RUN/config.json")
    return config, path


class DiscriminatorFeatures:
    """Features (N, widths[0]): the input of the head, averaged over space; of 3D runs only."""

    name = "discriminator"

    def __init__(self, path: Path) -> None:
        config, file = find_checkpoint(path)
        tensors, meta = checkpoint.load(file)
        if meta.stage != "3d":
            raise WeightsError(f"--weights {file} is of stage 2d, which judges slices; give a 3D checkpoint")
        D = Discriminator(config.train.network)
        checkpoint.load_module(D, "D", tensors, str(file))
        self.network, self.checksum = D.eval().requires_grad_(False), file_sha256(file)
        self.protocol = (
            f"{self.name} v1, {file.name}, weights sha256 {self.checksum}: before the head, mean over space, "
            f"{D.cfg.widths[0]} features"
        )

    @torch.no_grad()
    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        if tuple(volumes.shape[1:]) != tuple(self.network.cfg.shape):
            raise WeightsError(
                f"--extractor discriminator: its run has volumes {self.network.cfg.shape}; got {volumes.shape[1:]}"
            )
        rows = []
        for first in tqdm(range(0, len(volumes), 8), desc=self.name, leave=False, disable=None):
            x = torch.from_numpy(np.array(volumes[first : first + 8], np.float32))[:, None]
            x = with_unknown_masks(x, self.network.cfg.mask_classes)
            rows.append(self.network.features(x).mean((2, 3, 4)).double().numpy())
        return np.concatenate(rows)
