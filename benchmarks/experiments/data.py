"""Splits the volumes into those that train and those held out: disjoint, fixed by a seed, as two data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.experiments.grids import Scale
from ssgan.data import split
from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.data.phantom import write_phantom_dataset

PHANTOM_SEEDS = (1001, 2002)
TRAIN = 160
LEAST_HELD_OUT = 8  # neighbours for precision and recall, and some more


@dataclass(frozen=True)
class Split:
    train: VolumeDataset
    held: VolumeDataset

    @property
    def hashes(self) -> tuple[str, str]:
        return self.train.info.content_hash, self.held.info.content_hash


def split_indices(names: list[str], train: int = TRAIN) -> tuple[list[int], list[int]]:
    """Gives the indices that train and those held out; they depend on the volumes' names, not on their order.

    As `ssgan split` with seed 0: of the 199 hippocampus volumes these are the same 160 and 39 that
    `benchmarks.experiments.segmentation` trains on and validates with.
    """
    if len(names) < train + LEAST_HELD_OUT:
        raise DatasetError(
            f"--data: {len(names)} volumes; expected at least {train} to train and {LEAST_HELD_OUT} held out (--train)"
        )
    return split.split_indices(names, len(names) - train)


def open_split(data: str, scale: Scale, folder: Path, train: int = TRAIN) -> Split:
    """Opens folder/train and folder/held; if missing, makes them from a data set (or "phantoms": drawn for each).

    Raises:
        DatasetError: the data set cannot be read or is too small, or the folder holds the split of other data.
    """
    if data == "phantoms":
        parts = []
        for name, count, seed in zip(("train", "held"), scale.phantoms, PHANTOM_SEEDS, strict=True):
            path = folder / name
            found = path.exists()
            part = VolumeDataset(path) if found else write_phantom_dataset(path, count, scale.shape, seed)
            if (len(part), part.info.shape) != (count, scale.shape):
                raise DatasetError(f"{path} holds {len(part)} of {part.info.shape}; choose another --out")
            parts.append(part)
        return Split(*parts)
    whole = VolumeDataset(data)
    chosen = split_indices([str(r["source"]) for r in whole.records], train)
    parts = []
    for name, indices in zip(("train", "held"), chosen, strict=True):
        path = folder / name
        if not path.exists():
            split.copy_part(whole, indices, path)
        part = VolumeDataset(path)
        expected = whole.volumes[indices]
        if part.volumes.shape != expected.shape or not np.array_equal(part.volumes, expected):
            raise DatasetError(f"{path} holds other volumes than --data {data} splits into; choose another --out")
        parts.append(part)
    return Split(*parts)
