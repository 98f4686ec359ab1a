"""Generates volumes of a run, and masks where it makes them, and writes them as NIfTI, PNG and GIF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import torch

from ssgan.data.axes import to_axial
from ssgan.data.dataset import DatasetInfo, to_nifti, to_nifti_mask
from ssgan.models.sampling import class_mean, latents, synthesise_pairs
from ssgan.runs.datalist import ENDING, MASK_ENDING
from ssgan.runs.generator import LoadedGenerator
from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_path
from ssgan.utils.pictures import contact_sheet, save_gif, slice_grid, three_plane_grid

RECORD = "generate.json"
MAX_SHOWN = 64  # volumes in a montage


@dataclass(frozen=True)
class SampleOptions:
    """truncation_centre: "class" or "all", the mean that truncation moves towards. noise: "random", "const" or "none".
    batch: volumes at a time."""

    truncation: float = 1.0
    truncation_centre: str = "class"
    noise: str = "const"
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0.0 <= self.truncation <= 1.0:
            raise UserError(f"--truncation: expected 0 to 1; got {self.truncation:g}")
        if self.batch < 1:
            raise UserError(f"--batch: expected at least 1; got {self.batch}")


def check_output_folder(out: Path) -> None:
    """Raises UserError unless `out` is absent, empty or holds the volumes of an earlier call."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; expected a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UserError(
            f"--out {out} is not empty and was not made by `ssgan generate` (no {RECORD}); choose another folder"
        )


def write_samples(
    source: LoadedGenerator, seeds: list[int], label: int | None, out: Path, options: SampleOptions
) -> tuple[Path, int]:
    """Writes the volumes of all seeds, and a montage of the first ones; of a 2D checkpoint PNG slices only.

    Of a run with masks each volume has its mask beside it, which the pictures show over it.

    label: the class, None for networks without classes.

    Returns:
        The montage and how many volumes it shows.
    """
    G, info, stage = source.G, source.info, source.meta.stage
    prefix = "" if label is None else f"class{label}-"
    centre = None
    if label is not None and options.truncation != 1.0 and options.truncation_centre == "class":
        centre = class_mean(G, label)
    shown: list[np.ndarray] = []
    shown_masks: list[np.ndarray] = []
    batch = 1 if options.noise == "random" else options.batch  # so that a seed's noise does not depend on other seeds
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        c = None if label is None else torch.full((len(part),), label)
        volumes, masks = synthesise_pairs(
            G, latents(part, G.cfg.z_dim), batch=batch, truncation=options.truncation, noise=options.noise,
            noise_seed=part[0], c=c, centre=centre,
        )  # fmt: skip
        for i, seed in enumerate(part):
            mask = None if masks is None else masks[i]
            _write_sample(volumes[i], mask, out, f"{prefix}seed{seed:04d}", info, stage)
        room = max(0, MAX_SHOWN - len(shown))
        shown += list(volumes[:room])
        shown_masks += [] if masks is None else list(masks[:room])

    stack, captions = np.stack(shown), [f"seed {seed}" for seed in seeds[: len(shown)]]
    file = out / ("montage.png" if label is None else f"montage-class{label}.png")
    title = None if label is None else f"class {source.config.class_names[label]}"
    if stage == "2d":
        return slice_grid(stack[:, 0], file, title=title), len(shown)
    axial = to_axial(stack, info.slice_axis)
    drawn = to_axial(np.stack(shown_masks), info.slice_axis) if shown_masks else None
    return contact_sheet(axial, captions, file, spacing=info.spacing, title=title, masks=drawn), len(shown)


def _write_sample(
    volume: np.ndarray, mask: np.ndarray | None, out: Path, name: str, info: DatasetInfo, stage: str
) -> None:
    """Writes the files of one seed; volume (D, H, W) in [-1, 1], mask (D, H, W) uint8 class numbers."""
    if stage == "2d":
        slice_grid(volume, out / f"{name}.png")
        return
    if mask is not None:  # first, so that no volume of an interrupted call lacks its mask
        save_nifti_mask(mask, info, out / f"{name}{MASK_ENDING}")
    save_nifti(volume, info, out / f"{name}{ENDING}")
    axial = to_axial(volume, info.slice_axis)
    drawn = None if mask is None else to_axial(mask, info.slice_axis)
    over = None if drawn is None else drawn[None]
    three_plane_grid(axial[None], out / f"{name}.png", spacing=info.spacing, title=name, masks=over)
    save_gif(axial, out / f"{name}.gif", spacing=info.spacing, masks=drawn)


def save_nifti(volume: np.ndarray, info: DatasetInfo, path: Path) -> Path:
    """Writes a volume (D, H, W) in [-1, 1] as NIfTI with the affine and the intensities of `info`."""
    with atomic_path(path) as temporary:
        nibabel.save(to_nifti(volume, info), temporary)
    return path


def save_nifti_mask(mask: np.ndarray, info: DatasetInfo, path: Path) -> Path:
    """Writes a mask (D, H, W) of class numbers as NIfTI with the affine and the mask's values of `info`."""
    with atomic_path(path) as temporary:
        nibabel.save(to_nifti_mask(mask, info), temporary)
    return path
