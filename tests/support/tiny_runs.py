"""A run of two steps on phantoms, for tests of code that reads runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ssgan.config.network import NetworkConfig
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.data.writer import DatasetWriter
from ssgan.runs import checkpoint
from ssgan.training import loop

SHAPE = (6, 8, 12)
CONFIG = TrainConfig(
    network=NetworkConfig(
        shape=SHAPE, base=(3, 4, 6), scales=((2, 2, 2),), widths=(8, 4), z_dim=6, w_dim=8, mapping_layers=2
    ),
    stage_2d=StageConfig(kimg=0.008, batch=4),
    stage_3d=StageConfig(kimg=0.008, batch=4, lr_g=0.05),
    stage="3d",
)


def make_run(root: Path, stage: str = "3d") -> Path:
    """Makes root/data with 6 phantoms and root/STAGE, a run trained on them."""
    data = write_phantom_dataset(root / "data", count=6, shape=SHAPE, seed=1)
    cfg = dataclasses.replace(CONFIG, stage=stage)
    options = {"progress": False, "echo": lambda text: None, "data_path": str(root / "data")}
    assert loop.train(cfg, data, root / stage, **options) == 0
    return root / stage


def make_class_run(root: Path) -> Path:
    """Makes root/data with 4 volumes of noise of the classes "AD" and "a class", and root/run, trained on them."""
    rng = np.random.Generator(np.random.PCG64(1))
    with DatasetWriter(root / "data", SHAPE) as writer:
        for i, label in enumerate(["AD", "a class", "AD", "AD"]):
            record = {"source": f"{i}", "intensity_low": 0.0, "intensity_high": 100.0, "affine": np.eye(4).tolist()}
            record |= {"warnings": [], "class_label": label}
            writer.add(rng.uniform(-1, 1, SHAPE).astype(np.float32), record)
        data = writer.finish(spacing=[1.0] * 3, affine=np.eye(4), slice_axis="axial", recipe="mri")
    cfg = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, classes=2))
    options = {"progress": False, "echo": lambda text: None, "data_path": str(root / "data")}
    assert loop.train(cfg, data, root / "run", **options) == 0
    return root / "run"


def make_mask_run(root: Path, stage: str = "3d") -> Path:
    """Makes root/data with 6 phantoms and their masks, and root/STAGE, a run trained on both; its masks have all
    classes."""
    data = write_phantom_dataset(root / "data", count=6, shape=SHAPE, seed=1, masks=True)
    network = CONFIG.network.with_masks(data.info.mask_classes)
    cfg = dataclasses.replace(CONFIG, stage=stage, network=network)
    options = {"progress": False, "echo": lambda text: None, "data_path": str(root / "data")}
    assert loop.train(cfg, data, root / stage, **options) == 0
    return root / stage


def add_checkpoint(run: Path, seed: int) -> Path:
    """Writes a checkpoint that is further than the run's newest, with another constant and noise in G_ema."""
    tensors, meta = checkpoint.load(checkpoint.list_checkpoints(run / "checkpoints")[-1])
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.startswith("G_ema.synthesis") and name.endswith("const"):
            tensor += torch.randn(tensor.shape, generator=generator)
        if name.startswith("G_ema.synthesis") and name.endswith("noise_strength"):
            tensor.fill_(0.3)
    meta = dataclasses.replace(meta, images=meta.images + 4)
    return checkpoint.save(checkpoint.numbered_path(run / "checkpoints", meta), tensors, meta)
