"""The file that `ssgan inflate` writes and `ssgan train --init` reads: 3D networks with their own configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from ssgan.config.network import NetworkConfig
from ssgan.config.training import TrainConfig
from ssgan.data.axes import shape_option
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta, config_hash
from ssgan.runs.config import config_of_checkpoint
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError


def start_meta(network: NetworkConfig, images_before: int) -> CheckpointMeta:
    """Meta data of such a file: stage 3d at step 0. config_hash covers the configuration in the file's header."""
    return CheckpointMeta("3d", 0, 0, config_hash(dataclasses.asdict(network)), images_before)


def start_network(init: Path | None, network: NetworkConfig, slice_axis: str = "axial") -> NetworkConfig:
    """Returns the configuration of networks that train with --init: the file's own if it has one, else `network`.

    network: that of the preset, for the data set's shape and the architecture and classes of the command line.
    slice_axis: the data set's.

    Raises:
        ConfigError: the file's networks are for other volumes, or of another architecture or number of classes.
        CheckpointError: the file is damaged.
    """
    record = None if init is None else checkpoint.read_network(init)
    if record is None:
        return network
    own = NetworkConfig.from_json(record)
    if own.shape != network.shape:
        theirs, ours = (shape_option(shape, slice_axis) for shape in (own.shape, network.shape))
        raise ConfigError(
            f"--init {init}: its networks are for data prepared with --shape {theirs}, this data set has {ours}; "
            f"prepare it with --shape {theirs}, or inflate with another --depth"
        )
    hints = {
        "arch": f"give --arch {own.arch}, or inflate with --arch {network.arch}",
        "discriminator_arch": f"give --arch-d {own.discriminator_arch}, or inflate with --arch-d "
        f"{network.discriminator_arch}",
        "dense_levels": " ".join(["give --dense-levels", *map(str, own.dense_levels)])
        if own.dense_levels
        else "leave --dense-levels out, or inflate with it",
        "classes": "train on as many classes (--conditional) as the source has, or start from another",
        "mask_classes": f"inflate with --mask-classes {network.mask_classes}"
        if network.mask_classes and not own.mask_classes
        else "train on a data set with masks of as many classes, or with --no-masks from another start",
        "image_channels": "volumes have one; inflate with --channels grey",
    }
    for name, hint in hints.items():
        if getattr(own, name) != getattr(network, name):
            found, wanted = getattr(own, name), getattr(network, name)
            raise ConfigError(f"--init {init}: its networks have {name} {found}, this run's {wanted}; {hint}")
    return own


def differences(init: Path, cfg: TrainConfig) -> str:
    """Says in which of preset, architecture, classes and shape the run of a 2D checkpoint differs from `cfg`.

    Returns "" where nothing is known to differ, or the file lies in no run.
    """
    config = config_of_checkpoint(init)
    if config is None:
        return ""
    ours, theirs = cfg.network, config.train.network
    pairs = {
        "preset": (config.train.preset, cfg.preset),
        "architecture": (theirs.arch_name, ours.arch_name),
        "number of classes": (theirs.classes, ours.classes),
        "classes of the masks": (theirs.mask_classes, ours.mask_classes),
    }
    if (theirs.shape[1:], theirs.depth_places) != (ours.shape[1:], ours.depth_places):
        pairs["shape (D, H, W)"] = (theirs.shape, ours.shape)
    return "; ".join(f"its run had {name} {a}, this one has {b}" for name, (a, b) in pairs.items() if a != b)


def load_start(trainer: StageTrainer, tensors: dict[str, Tensor], meta: CheckpointMeta, where: str) -> None:
    """Loads the networks of such a file into a 3D stage before its first step, of any precision and augmentation.

    Raises:
        CheckpointError: the networks differ; up to three tensors are named.
    """
    for name in ("G", "D", "G_ema"):
        checkpoint.load_module(getattr(trainer, name), name, tensors, where)
    trainer.pl_mean = tensors["pl_mean"].to(trainer.device)
    trainer.images_before = meta.images_before
