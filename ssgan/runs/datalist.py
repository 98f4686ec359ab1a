"""Lists the pairs of image and mask in a folder of `ssgan generate`, so that nnU-Net and MONAI read it as it is.

dataset.json has the fields of nnU-Net v2 (`dataset`, `channel_names`, `labels`, `numTraining`, `file_ending`) and those
of the Medical Segmentation Decathlon that MONAI reads (`training`). Paths are relative to the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssgan.data.dataset import DatasetInfo
from ssgan.data.recipes import RECIPES
from ssgan.utils.files import write_json_atomic

DATALIST = "dataset.json"
ENDING, MASK_ENDING = ".nii.gz", "_seg.nii.gz"


def find_pairs(folder: Path) -> list[str]:
    """The names of all images of `folder` that have their mask beside them, without the suffix, sorted."""
    names = [p.name.removesuffix(MASK_ENDING) for p in folder.glob(f"*{MASK_ENDING}") if not p.name.startswith(".")]
    return sorted(name for name in names if (folder / f"{name}{ENDING}").is_file())


def write_datalist(folder: Path, info: DatasetInfo, name: str) -> int:
    """Writes dataset.json for all pairs in `folder`, and returns how many there are.

    info: of the data set with masks that they were made after. name: of the run, for people.
    """
    pairs = {one: (f"{one}{ENDING}", f"{one}{MASK_ENDING}") for one in find_pairs(folder)}
    recipe = RECIPES.get(info.recipe)
    channel = "CT" if recipe is not None and recipe.modality == "CT" else "MRI"  # by it, nnU-Net normalises
    record: dict[str, Any] = {
        "name": name,
        "description": f"Synthetic images and masks, made by the GAN {name} of ssgan. No patients.",
        "tensorImageSize": "3D",
        "modality": {"0": channel},
        "channel_names": {"0": channel},
        "labels": dict(zip(info.mask_names or (), info.mask_values or (), strict=True)),
        "file_ending": ENDING,
        "numTraining": len(pairs),
        "numTest": 0,
        "training": [{"image": image, "label": mask} for image, mask in pairs.values()],
        "test": [],
        "dataset": {one: {"images": [image], "label": mask} for one, (image, mask) in pairs.items()},
    }
    write_json_atomic(folder / DATALIST, record)
    return len(pairs)


def nnunet_obstacle(info: DatasetInfo) -> str:
    """Says why nnU-Net would refuse the masks' values, or nothing: it takes 0, 1, 2, .. without gaps alone."""
    values = list(info.mask_values or ())
    if values == list(range(len(values))):
        return ""
    shown = ", ".join(map(str, values))
    return (
        f"the masks have the values {shown} as the data set has; nnU-Net takes 0, 1, .. {len(values) - 1} alone, so "
        "renumber masks and labels before you give it the folder (MONAI reads it as it is)"
    )
