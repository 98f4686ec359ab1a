"""Projects a volume of a file or data set: reads it, runs the projector with saves, writes and draws the result."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ssgan.data.axes import ARRAY_AXES, shape_option, to_axial
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.data.preparation import Recipe
from ssgan.data.preprocessing import prepare_volume
from ssgan.data.recipes import RECIPES
from ssgan.data.sources import find_volumes, load
from ssgan.data.volume import VolumeError
from ssgan.latent_space.files import LatentError, load_tensors, save_tensors
from ssgan.latent_space.generator import LatentSpace
from ssgan.latent_space.projection import ProjectionConfig, Projector, random_features
from ssgan.runs.config import RunConfig
from ssgan.runs.samples import save_nifti
from ssgan.utils.pictures import contact_sheet, slices_gif
from ssgan.utils.signals import StopSignals

FILE = "projection.safetensors"
SAVE_SECONDS = 30.0


@dataclass(frozen=True)
class Target:
    """The volume (D, H, W) in [-1, 1] that is projected, its own geometry and intensities, and a name for it."""

    volume: np.ndarray
    info: DatasetInfo
    source: str


def read_file(path: Path, info: DatasetInfo) -> Target:
    """Reads --volume and prepares it as the run's data set was prepared. Raises LatentError."""
    if not path.is_file():
        raise LatentError(f"--volume {path}: no such file; expected a volume (.nii, .nii.gz, .nrrd, .mha)")
    shape = tuple(int(info.shape[i]) for i in np.argsort(ARRAY_AXES[info.slice_axis]))
    # A recipe that does not scale each volume by itself has one window, which the data set records.
    name = info.recipe if info.recipe in RECIPES else "ct"
    window = (info.intensity_low, info.intensity_high)
    try:
        volume = load(find_volumes((path.parent, [path]))[0])
        array, record = prepare_volume(volume, Recipe(name, shape, info.spacing, info.slice_axis, window))
    except VolumeError as error:
        raise LatentError(f"--volume {path}: {error}") from error
    for warning in record["warnings"]:
        print(f"warning: {path}: {warning}")
    return Target(array, info.of_volume(record), str(path))


def read_from_dataset(index: int, config: RunConfig, folder: Path | None) -> Target:
    """Reads volume --index of a data set, by default the run's own. Raises LatentError, DatasetError."""
    folder, info = folder or config.data_folder, config.info
    data = VolumeDataset(folder)
    if data.info.shape != info.shape:
        has, makes = (shape_option(i.shape, i.slice_axis) for i in (data.info, info))
        raise LatentError(f"--data {folder} has volumes of {has} (X Y Z); the run makes {makes}")
    if not 0 <= index < len(data):
        raise LatentError(f"--index: {folder} has volumes 0 to {len(data) - 1}; got {index}")
    record = data.records[index]
    name = f"{folder}, volume {index} ({record['source']})"
    return Target(np.array(data.volumes[index]), info.of_volume(record), name)


def project_volume(
    space: LatentSpace, target: Target, cfg: ProjectionConfig, out: Path
) -> tuple[Projector, signal.Signals | None]:
    """Runs or resumes a projection, saved in `out` now and then and at its end.

    Returns:
        The projector, and the signal that stopped it before its last step, if one did.

    Raises:
        LatentError: `out` holds a projection of another checkpoint, volume or other settings.
    """
    digest = hashlib.sha256(np.ascontiguousarray(target.volume).tobytes()).hexdigest()
    config = dataclasses.asdict(cfg) | ({} if space.label is None else {"class": space.label})
    about = {"sha256": space.source.sha256, "target": digest, "config": config}
    D = random_features(space.G) if cfg.features == "random" else space.load_discriminator()
    projector = Projector(space.G, D, torch.from_numpy(target.volume), cfg, space.label)
    file = out / FILE
    if file.exists():
        _resume(projector, file, about)

    def save() -> None:
        save_tensors(file, "projection", projector.state(), {**about, "step": projector.step, "source": target.source})

    saved = time.monotonic()
    # A bar on a terminal, a line every half minute in a log.
    often = {"mininterval": 0.1} if sys.stderr.isatty() else {"mininterval": 30, "maxinterval": 60}
    with StopSignals() as stop, tqdm(total=cfg.steps, initial=projector.step, desc="projecting", **often) as bar:
        while projector.step < cfg.steps and not stop.received:
            losses = projector.advance()
            bar.set_postfix({k: f"{v:.4f}" for k, v in losses.items()}, refresh=False)
            bar.update()
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
    save()
    return projector, stop.received if projector.step < cfg.steps else None


def _resume(projector: Projector, file: Path, about: dict) -> None:
    tensors, before = load_tensors(file, "projection")
    different = [name for name in about if before.get(name) != about[name]]
    if different:
        names = {"sha256": "the checkpoint", "target": "the volume", "config": "the settings"}
        raise LatentError(
            f"--out {file.parent} holds another projection ({', '.join(names[d] for d in different)} differ); give the "
            "same arguments to go on with it, or another --out"
        )
    projector.load(tensors, before["step"])
    finished = before["step"] >= projector.cfg.steps
    print("finished before" if finished else f"going on after step {before['step']} of {projector.cfg.steps}")


def write_result(projector: Projector, target: Target, space: LatentSpace, out: Path) -> list[str]:
    """Writes target and reconstruction as NIfTI in the target's own geometry and intensities; draws both and their
    difference as PNG and as a GIF through the slices. Returns the names of the files."""
    found, info = projector.volume().numpy(), space.info
    difference = np.minimum(np.abs(target.volume - found) * 4, 2) - 1  # white from a quarter of the range
    volumes = to_axial(np.stack([target.volume, np.clip(found, -1, 1), difference]), info.slice_axis)
    names = ["target", "reconstruction", "difference x 4"]
    files = [
        out / FILE,
        save_nifti(target.volume, target.info, out / "target.nii.gz"),
        save_nifti(found, target.info, out / "reconstruction.nii.gz"),
        contact_sheet(volumes, names, out / "projection.png", spacing=info.spacing, columns=3),
        slices_gif(volumes, names, out / "projection.gif", spacing=info.spacing),
    ]
    return [file.name for file in files]
