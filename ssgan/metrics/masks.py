"""Compares generated masks with real ones: volumes, surfaces, connected components, and how far image and mask agree.

Masks are (N, D, H, W) uint8 class numbers 0..K-1, where class 0 is background and is left out of every figure. Spacings
are in mm along D, H, W.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from scipy.stats import wasserstein_distance

from ssgan.metrics.memorisation import REFERENCE_ROWS, significant

# Of a figure in metrics.json: its name in tables, and which two of its entries stand there.
COLUMNS = {
    "volume_ml": ("volume, ml", "generated_mean", "real_mean"),
    "volume_distance": ("its distance", "value", "floor"),
    "absent": ("absent", "generated", "real"),
    "surface_mm": ("surface, mm", "generated", "reference"),
    "dice_to_closest": ("Dice to it", "generated", "reference"),
    "components": ("components", "generated", "real"),
    "segmenter_dice": ("agreement", "generated", "real"),
    "segmenter_dice_exchanged": ("exchanged", "generated", "real"),
}
NEIGHBOURHOOD = np.ones((3, 3, 3), bool)  # of connected components: voxels that share a corner are connected


def class_volumes(masks: np.ndarray, classes: int, spacing: Sequence[float]) -> np.ndarray:
    """Measures the volume of every class but the background, (N, K-1) in ml."""
    counts = np.stack([np.bincount(np.asarray(mask).ravel(), minlength=classes)[1:classes] for mask in masks])
    return counts * (np.prod(spacing) / 1000)


def volume_distance(real: np.ndarray, other: np.ndarray) -> float | None:
    """Computes the Wasserstein-1 distance of two samples of volumes over the mean of `real`; None where that is 0."""
    mean = float(real.mean())
    return float(wasserstein_distance(real, other)) / mean if mean else None


def dice_table(a: np.ndarray, b: np.ndarray, classes: int, block: int = 32) -> np.ndarray:
    """Computes the Dice of each class but the background of every mask in `a` with every one in `b`, (Na, Nb, K-1).

    A class that both lack counts as 1.
    """
    found = np.empty((len(a), len(b), classes - 1))
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            x, y = (np.asarray(m).reshape(len(m), -1) for m in (a[i : i + block], b[j : j + block]))
            for k in range(1, classes):
                p, q = (x == k).astype(np.float32), (y == k).astype(np.float32)  # counts are exact up to 2^24 voxels
                sizes = np.count_nonzero(p, axis=1)[:, None] + np.count_nonzero(q, axis=1)
                dice = np.where(sizes > 0, 2 * (p @ q.T).astype(np.float64) / np.maximum(sizes, 1), 1.0)
                found[i : i + block, j : j + block, k - 1] = dice
    return found


def surface(structure: np.ndarray) -> np.ndarray:
    """The voxels of a structure (D, H, W) bool with a neighbour outside, of six; beyond the volume is outside."""
    return structure & ~ndimage.binary_erosion(structure)


def surface_distance(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float | None:
    """Computes the average symmetric surface distance in mm of two structures (D, H, W) bool; None where one is empty.

    It is the mean, over the surface voxels of both, of the distance to the nearest surface voxel of the other.
    """
    if not a.any() or not b.any():
        return None
    box = ndimage.find_objects((a | b).astype(np.uint8))[0]
    surfaces = [surface(x[box]) for x in (a, b)]
    to_surface = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    both = np.concatenate([to_surface[1][surfaces[0]], to_surface[0][surfaces[1]]])
    return float(both.mean())


def component_count(structure: np.ndarray) -> int:
    """Counts the connected components of a structure (D, H, W) bool."""
    return int(ndimage.label(structure, NEIGHBOURHOOD)[1])


@dataclass(frozen=True)
class Closest:
    """Masks beside the masks that resemble them most, by class but the background.

    surface: (N, K-1) mm, NaN where one of the two lacks the class. dice: (N, K-1).
    """

    surface: np.ndarray
    dice: np.ndarray


def closest_masks(
    masks: np.ndarray, training: np.ndarray, classes: int, spacing: Sequence[float], own: Sequence[int] | None = None
) -> Closest:
    """Compares each mask with the training mask of the largest mean Dice over the classes.

    own: the index in `training` of each mask itself, which does not count.
    """
    dice = dice_table(masks, training, classes)
    mean = dice.mean(2)
    if own is not None:
        mean[np.arange(len(masks)), own] = -1
    nearest = mean.argmax(1)
    surface = np.full((len(masks), classes - 1), np.nan)
    for i, j in enumerate(nearest):
        for k in range(1, classes):
            distance = surface_distance(np.asarray(masks[i]) == k, np.asarray(training[j]) == k, spacing)
            surface[i, k - 1] = np.nan if distance is None else distance
    return Closest(surface, dice[np.arange(len(masks)), nearest])


def pair_dice(a: np.ndarray, b: np.ndarray, classes: int) -> np.ndarray:
    """Computes the Dice of the masks a[i] and b[i], (N, K-1); NaN for a class that both lack."""
    found = np.full((len(a), classes - 1), np.nan)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        for k in range(1, classes):
            p, q = np.asarray(x) == k, np.asarray(y) == k
            size = np.count_nonzero(p) + np.count_nonzero(q)
            if size:
                found[i, k - 1] = 2 * np.count_nonzero(p & q) / size
    return found


def mean_of(values: np.ndarray) -> float | None:
    """The mean of the values that are not NaN, to five significant digits; None where there are none."""
    kept = values[~np.isnan(values)]
    return significant(kept.mean()) if len(kept) else None


def compare_masks(
    real: np.ndarray, fake: np.ndarray, spare: np.ndarray, training: np.ndarray, held: np.ndarray | None,
    names: Sequence[str], spacing: Sequence[float],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Computes the figures of generated masks, class by class.

    real, fake, spare: masks of as many real and generated volumes, and of other real volumes for the floor. training,
    held: the masks of all training volumes, and of held-out volumes or None. names: of all classes, background first.

    Returns:
        For each class but the background, its entry in metrics.json (`ssgan/metrics/README.md` describes it).
    """
    classes = len(names)
    volumes = [class_volumes(masks, classes, spacing) for masks in (real, fake, spare)]
    near = closest_masks(fake, training, classes, spacing)
    if held is not None:
        reference = closest_masks(held, training, classes, spacing)
    else:
        rows = np.linspace(0, len(training) - 1, min(len(training), REFERENCE_ROWS)).astype(int)
        reference = closest_masks(training[rows], training, classes, spacing, own=rows)
    figures: dict[str, dict[str, Any]] = {}
    for k in range(1, classes):
        of_real, of_fake, of_spare = (v[:, k - 1] for v in volumes)
        distances = [volume_distance(of_real, other) for other in (of_fake, of_spare)]
        parts = [[component_count(np.asarray(m) == k) for m in masks if (m == k).any()] for masks in (real, fake)]
        components = [mean_of(np.array(p, np.float64)) for p in parts]
        figures[names[k]] = {
            "volume_ml": {
                f"{which}_{name}": significant(value)
                for which, values in (("real", of_real), ("generated", of_fake))
                for name, value in (("mean", values.mean()), ("sd", values.std(ddof=1)))
            },
            "volume_distance": dict(
                zip(("value", "floor"), (d if d is None else significant(d) for d in distances), strict=True)
            ),
            "absent": {"real": significant((of_real == 0).mean()), "generated": significant((of_fake == 0).mean())},
            "components": {"real": components[0], "generated": components[1]},
            "surface_mm": {
                "generated": mean_of(near.surface[:, k - 1]), "reference": mean_of(reference.surface[:, k - 1])
            },
            "dice_to_closest": {
                "generated": mean_of(near.dice[:, k - 1]), "reference": mean_of(reference.dice[:, k - 1])
            },
        }  # fmt: skip
    return figures


class MaskTable(NamedTuple):
    """The figures of masks as text: a row is the class's name and its cells, one for each of `columns`."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


def mask_table(found: dict[str, Any]) -> MaskTable:
    """Writes `masks` of metrics.json as a table, "of generated masks / of real ones" in each cell."""
    columns = {key: column for key, column in COLUMNS.items() if all(key in row for row in found["classes"].values())}
    rows = []
    for name, figures in found["classes"].items():
        sides = [[figures[key].get(side) for side in column[1:]] for key, column in columns.items()]
        cells = [" / ".join("none" if value is None else f"{value:.3g}" for value in values) for values in sides]
        rows.append([name, *cells])
    caption = (
        f"masks: {found['count']} generated / {found['count']} real; surface and Dice to the closest of "
        f"{found['training']} training masks / of {found['reference']}"
    )
    return MaskTable(caption, [column[0] for column in columns.values()], rows)
