"""Volumes as a torchio.SubjectsDataset (package torchio, `pip install torchio`).

    dataset_subjects("DATASET")                  the volumes of a data set, read when they are asked for
    generated_subjects("RUN", seeds=range(16))   generated volumes of a run
    folder_subjects("SAMPLES")                   the pairs that `ssgan generate` wrote for a run with masks

Each subject has the image `volume`, with the axes X, Y, Z (RAS+), the affine and the raw intensities that `ssgan
generate` gives NIfTI files, its `name`, with classes its `label`, and with masks the label map `mask`, in the values of
the data set's source. A volume of a data set that has no mask, among others that have one, is a subject without `mask`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
import torchio
from torch import Tensor

from ssgan.data.dataset import DatasetInfo, VolumeDataset, to_nifti, to_nifti_mask
from ssgan.runs.datalist import DATALIST, ENDING
from ssgan.runs.pretrained import load_networks
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json

Transform = Callable[[torchio.Subject], torchio.Subject]


def dataset_subjects(folder: str | os.PathLike[str], transform: Transform | None = None) -> torchio.SubjectsDataset:
    """The volumes of a data set that `ssgan prepare` or `ssgan phantom` made. Raises DatasetError."""
    data = VolumeDataset(folder)
    subjects = []
    for i, record in enumerate(data.records):
        reader = functools.partial(_read, index=i, info=data.info)
        entries: dict[str, Any] = {} if "class_label" not in record else {"label": record["class_label"]}
        volume = torchio.ScalarImage(data.path / "volumes.npy", reader=reader)
        if data.has_mask is not None and data.has_mask[i]:
            reader = functools.partial(_read_mask, index=i, info=data.info)
            entries["mask"] = torchio.LabelMap(data.path / "masks.npy", reader=reader)
        subjects.append(torchio.Subject(volume=volume, name=record["source"], **entries))
    return torchio.SubjectsDataset(subjects, transform=transform)


def generated_subjects(
    run: str | os.PathLike[str], seeds: Sequence[int], truncation: float = 1.0, label: int | None = None,
    transform: Transform | None = None,
) -> torchio.SubjectsDataset:  # fmt: skip
    """Volumes of a run's last checkpoint, and their masks, generated at once. label: the class, for a run with classes.

    Raises:
        RunError, CheckpointError: there is no such run, or it has no checkpoint.
        DatasetError: the checkpoint is of stage 2d, which makes slices.
    """
    G, _ = load_networks(Path(run))
    subjects = []
    pairs = G.pairs(seeds, truncation, label)
    for i, seed in enumerate(seeds):
        tensor, affine = _tensor(to_nifti(pairs.volumes[i], G.info))
        entries: dict[str, Any] = {} if label is None else {"label": (G.info.classes or ())[label]}
        image = torchio.ScalarImage(tensor=tensor, affine=affine)
        if pairs.masks is not None:
            tensor, affine = _tensor(to_nifti_mask(pairs.masks[i], G.info))
            entries["mask"] = torchio.LabelMap(tensor=tensor, affine=affine)
        subjects.append(torchio.Subject(volume=image, name=f"seed{seed:04d}", **entries))
    return torchio.SubjectsDataset(subjects, transform=transform)


def folder_subjects(folder: str | os.PathLike[str], transform: Transform | None = None) -> torchio.SubjectsDataset:
    """The pairs of image and mask in a folder of `ssgan generate`, read when they are asked for.

    Raises:
        UserError: the folder has no list of pairs, which `ssgan generate` writes for a run with masks.
    """
    file = Path(folder, DATALIST)
    pairs = read_json(file).get("training") if file.is_file() else None
    if not pairs:
        raise UserError(
            f"{folder}: expected a {DATALIST} with pairs, which `ssgan generate` writes of a run with masks"
        )
    subjects = [
        torchio.Subject(
            volume=torchio.ScalarImage(file.parent / pair["image"]),
            mask=torchio.LabelMap(file.parent / pair["label"]),
            name=pair["image"].removesuffix(ENDING),
        )
        for pair in pairs
    ]
    return torchio.SubjectsDataset(subjects, transform=transform)


def _read(path: Any, index: int, info: DatasetInfo) -> tuple[Tensor, np.ndarray]:
    return _tensor(to_nifti(np.load(path, mmap_mode="r")[index], info))


def _read_mask(path: Any, index: int, info: DatasetInfo) -> tuple[Tensor, np.ndarray]:
    return _tensor(to_nifti_mask(np.load(path, mmap_mode="r")[index], info))


def _tensor(image: nibabel.Nifti1Image) -> tuple[Tensor, np.ndarray]:
    """The voxels (1, X, Y, Z) and the affine of an image."""
    return torch.from_numpy(np.asarray(image.dataobj))[None], image.affine
