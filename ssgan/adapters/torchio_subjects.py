"""Volumes as a torchio.SubjectsDataset (package torchio, `pip install torchio`).

    dataset_subjects("DATASET")                  the volumes of a data set, read when they are asked for
    generated_subjects("RUN", seeds=range(16))   generated volumes of a run

Each subject has the image `volume`, with the axes X, Y, Z (RAS+), the affine and the raw intensities that `ssgan
generate` gives NIfTI files, its `name`, and with classes its `label`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchio
from torch import Tensor

from ssgan.data.dataset import DatasetInfo, VolumeDataset, to_nifti
from ssgan.runs.pretrained import load_networks

Transform = Callable[[torchio.Subject], torchio.Subject]


def dataset_subjects(folder: str | os.PathLike[str], transform: Transform | None = None) -> torchio.SubjectsDataset:
    """The volumes of a data set that `ssgan prepare` or `ssgan phantom` made. Raises DatasetError."""
    data = VolumeDataset(folder)
    subjects = []
    for i, record in enumerate(data.records):
        reader = functools.partial(_read, index=i, info=data.info)
        entries = {} if "class_label" not in record else {"label": record["class_label"]}
        volume = torchio.ScalarImage(data.path / "volumes.npy", reader=reader)
        subjects.append(torchio.Subject(volume=volume, name=record["source"], **entries))
    return torchio.SubjectsDataset(subjects, transform=transform)


def generated_subjects(
    run: str | os.PathLike[str], seeds: Sequence[int], truncation: float = 1.0, label: int | None = None,
    transform: Transform | None = None,
) -> torchio.SubjectsDataset:  # fmt: skip
    """Volumes of a run's last checkpoint, generated at once. label: the class, for a run with classes.

    Raises:
        RunError, CheckpointError: there is no such run, or it has no checkpoint.
        DatasetError: the checkpoint is of stage 2d, which makes slices.
    """
    G, _ = load_networks(Path(run))
    subjects = []
    for seed, volume in zip(seeds, G.volumes(seeds, truncation, label), strict=True):
        tensor, affine = _image(volume, G.info)
        entries = {} if label is None else {"label": (G.info.classes or ())[label]}
        image = torchio.ScalarImage(tensor=tensor, affine=affine)
        subjects.append(torchio.Subject(volume=image, name=f"seed{seed:04d}", **entries))
    return torchio.SubjectsDataset(subjects, transform=transform)


def _read(path: Any, index: int, info: DatasetInfo) -> tuple[Tensor, np.ndarray]:
    return _image(np.load(path, mmap_mode="r")[index], info)


def _image(volume: np.ndarray, info: DatasetInfo) -> tuple[Tensor, np.ndarray]:
    """A volume (D, H, W) in [-1, 1] -> (1, X, Y, Z), raw intensities, and the affine."""
    image = to_nifti(volume, info)
    return torch.from_numpy(np.asarray(image.dataobj))[None], image.affine
