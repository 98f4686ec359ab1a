"""A trained generator as a MONAI bundle, which `python -m monai.bundle run` generates volumes with.

    BUNDLE/configs/metadata.json     versions, what goes in and what comes out
    BUNDLE/configs/inference.json    the program: seeds, truncation, folder for the volumes
    BUNDLE/models/                   the generator (`ssgan.runs.pretrained`)
    BUNDLE/docs/README.md            how to run it

The bundle needs this package to run: MONAI has no such network. Of a run with masks it writes both: seedN.nii.gz and
seedN_seg.nii.gz, and the dataset.json of `ssgan generate` beside them.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

import ssconv
from ssgan.runs.datalist import ENDING, MASK_ENDING, write_datalist
from ssgan.runs.generator import parse_seeds
from ssgan.runs.pretrained import PretrainedGenerator
from ssgan.runs.samples import save_nifti, save_nifti_mask
from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_write_bytes, write_json_atomic

README = """# {name}

A 3D GAN of `ssgan`. In this folder, with `pip install split-shuffle-gan "monai" fire`:

    python -m monai.bundle run --config_file configs/inference.json --bundle_root . --seeds "'0-7'"

writes volumes{masks} as NIfTI to `volumes`. `--truncation 0.7` makes them more typical and less varied{classes}.
"""


def write_bundle(G: PretrainedGenerator, folder: Path, name: str) -> None:
    """Writes the bundle of a 3D generator into `folder`. name: of the bundle, for people.

    Raises:
        UserError: the generator is of stage 2d.
    """
    if G.cfg.is_flat or G.info is None:
        raise UserError("--bundle: the checkpoint is of stage 2d, which makes slices; give a 3D --checkpoint")
    classes = list(G.info.classes or []) if G.cfg.classes else []
    G.save_pretrained(folder / "models")
    write_json_atomic(folder / "configs" / "metadata.json", _metadata(G, name))
    write_json_atomic(folder / "configs" / "inference.json", _inference(bool(classes)))
    numbers = ", ".join(f"{i} ({text})" for i, text in enumerate(classes))
    told = f"; `--label` chooses the class: {numbers}" if classes else ""
    texts = {"name": name, "classes": told, "masks": " and their masks" if G.cfg.mask_classes else ""}
    atomic_write_bytes(folder / "docs" / "README.md", README.format(**texts).encode())


def _inference(conditional: bool) -> dict[str, Any]:
    return {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/volumes'",
        "seeds": "0-3",
        "truncation": 1.0,
        "label": 0 if conditional else None,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",
        "network_def": {
            "_target_": "ssgan.runs.pretrained.PretrainedGenerator.from_pretrained",
            "folder": "$@bundle_root + '/models'",
        },
        "generate": {
            "_target_": "ssgan.adapters.monai_bundle.write_volumes",
            "network": "$@network_def.to(@device)",
            "folder": "@output_dir",
            "seeds": "@seeds",
            "truncation": "@truncation",
            "label": "@label",
        },
        "run": ["@generate"],
    }


def _metadata(G: PretrainedGenerator, name: str) -> dict[str, Any]:
    info, (depth, height, width) = G.info, G.cfg.shape
    latent = {"type": "tuple", "format": "latent", "num_channels": G.cfg.z_dim, "spatial_shape": [], "dtype": "float32"}
    latent |= {"value_range": [], "is_patch_data": False, "channel_def": {}}
    channels = ["image", *(info.mask_names or ())[: G.cfg.mask_classes]]  # those of masks are 2 p - 1 of the classes
    image = {"type": "image", "format": "magnitude", "num_channels": len(channels)}
    image |= {"spatial_shape": [depth, height, width], "dtype": "float32", "value_range": [-1, 1]}
    image |= {"is_patch_data": False, "channel_def": {str(i): channel for i, channel in enumerate(channels)}}
    return {
        "version": "0.1.0",
        "changelog": {"0.1.0": "exported by ssgan"},
        "monai_version": _version("monai"),
        "pytorch_version": torch.__version__,
        "numpy_version": np.__version__,
        "required_packages_version": {"split-shuffle-gan": ssconv.__version__, "nibabel": nibabel.__version__},
        "name": name,
        "task": "Generation of 3D medical volumes",
        "description": f"3D Split&Shuffle-GAN, {G.cfg.arch_name}; voxels of {info.spacing} mm along X, Y, Z",
        "authors": "",
        "copyright": "",
        "network_data_format": {"inputs": {"latent": latent}, "outputs": {"pred": image}},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def write_volumes(
    network: PretrainedGenerator, folder: str, seeds: str, truncation: float = 1.0, label: int | None = None
) -> list[Path]:
    """Writes the volumes of seeds ("0-3,7"), and their masks where the network makes them, as NIfTI; the volumes' files
    are returned. This is what the bundle runs."""
    numbers, info = parse_seeds(str(seeds)), network.info
    stems = [f"seed{seed:04d}" for seed in numbers]
    volumes, masks = network.pairs(numbers, truncation, label)
    for i, stem in enumerate(stems):
        if masks is not None:
            save_nifti_mask(masks[i], info, Path(folder, f"{stem}{MASK_ENDING}"))
        save_nifti(volumes[i], info, Path(folder, f"{stem}{ENDING}"))
    if masks is not None:
        write_datalist(Path(folder), info, "the bundle")
    return [Path(folder, f"{stem}{ENDING}") for stem in stems]
