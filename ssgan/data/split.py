"""Splits a data set into volumes for training and volumes held out; a subject's volumes are never in both parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.data.writer import DatasetWriter, MaskClasses

SUBJECT = r"sub-[0-9A-Za-z]+|\d{3}_S_\d{4}"  # BIDS and ADNI


def split_indices(
    names: Sequence[str], hold_out: int, seed: int = 0, subject: str = SUBJECT
) -> tuple[list[int], list[int]]:
    """Splits volumes by subject; returns sorted indices of those for training and of those held out.

    Volumes are of one subject if the first match of the pattern `subject` in their names is the same; a volume without
    a match is a subject of its own. The sorted subjects are permuted by numpy's default_rng(seed), and held out from
    the end until they have at least `hold_out` volumes together. The order of `names` has no effect.

    Raises:
        DatasetError: two names are the same, or one part would be empty.
    """
    if len(set(names)) < len(names):
        raise DatasetError("--data: two volumes have the same source name; a split by names needs different ones")
    pattern = re.compile(subject)
    members: dict[str, list[int]] = {}
    for i in sorted(range(len(names)), key=lambda i: names[i]):
        found = pattern.search(names[i])
        members.setdefault(f"subject {found[0]}" if found else f"volume {names[i]}", []).append(i)
    held: list[int] = []
    groups = sorted(members.values(), key=lambda group: names[group[0]])
    order = np.random.default_rng(seed).permutation(len(groups))
    for k in order[::-1]:
        if len(held) >= hold_out:
            break
        held += groups[k]
    train = sorted(set(range(len(names))) - set(held))
    if not 0 < hold_out or not train:
        raise DatasetError(
            f"--hold-out: {hold_out} held out of {len(names)} volumes of {len(groups)} subjects leave "
            f"{'nothing held out' if train else 'none to train on'}; expected at least 1 of each"
        )
    return train, sorted(held)


def copy_part(whole: VolumeDataset, indices: Sequence[int], path: Path) -> VolumeDataset:
    """Writes some volumes of a data set, with their masks, as a new one and opens it; raises DatasetError if `path` is
    taken. The classes of the masks stay, also those that none of these volumes has."""
    info = whole.info
    classes = MaskClasses(info.mask_values, info.mask_names or ()) if info.mask_values is not None else None
    with DatasetWriter(path, info.shape, masks=classes) as writer:
        for i in indices:
            labelled = whole.masks is not None and whole.has_mask is not None and whole.has_mask[i]
            writer.add(whole.volumes[i], whole.records[i], whole.masks[i] if labelled else None)  # type: ignore[index]
        return writer.finish(
            spacing=info.spacing, affine=np.asarray(info.affine), slice_axis=info.slice_axis, recipe=info.recipe
        )
