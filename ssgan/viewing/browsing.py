"""What `ssgan view` shows of files: a prepared data set, or NIfTI files as they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssgan.data.dataset import VolumeDataset, to_nifti
from ssgan.data.nifti import load_nifti
from ssgan.data.volume import VolumeError
from ssgan.utils.errors import UserError
from ssgan.viewing.replies import Forbidden, NotFound, Reply, nifti_reply

SUFFIXES = (".nii", ".nii.gz")
MAX_FILES = 20_000


class DatasetBrowser:
    """Pages through the volumes of a prepared data set."""

    def __init__(self, folder: Path) -> None:
        self._data = VolumeDataset(folder)
        self._title = folder.resolve().name

    def about(self) -> dict[str, Any]:
        """Names every volume with what was decided about it, and every file that was left out."""
        items = [
            {"name": str(i), "title": f"{i}: {r['source']}", "about": describe_record(r)}
            for i, r in enumerate(self._data.records)
        ]
        skipped = [f"{s['file']}: {s['reason']}" for s in self._data.skipped]
        return {"kind": "dataset", "title": self._title, "items": items, "skipped": skipped}

    def item(self, name: str) -> Reply:
        """Volume number `name`, with its own affine and intensities."""
        return dataset_volume(self._data, name)


def dataset_volume(data: VolumeDataset, name: str) -> Reply:
    """Volume number `name` of a data set as NIfTI. Raises NotFound."""
    if not name.isascii() or not name.isdigit() or int(name) >= len(data):
        raise NotFound(f"volume {name!r}: the data set has volumes 0 to {len(data) - 1}")
    image = to_nifti(np.array(data.volumes[int(name)]), data.info.of_volume(data.records[int(name)]))
    return nifti_reply(image, f"volume{int(name):04d}.nii")


def describe_record(record: dict[str, Any]) -> list[str]:
    """What `prepare` decided about a volume, line by line."""
    warnings = record.get("warnings") or []
    lines = ["verdict: used" + (", with warnings" if warnings else "")]
    lines += [f"warning: {text}" for text in warnings]
    lines.append(f"window: {record['intensity_low']:.6g} to {record['intensity_high']:.6g} became -1 to 1")
    if record.get("class_label") is not None:
        lines.append(f"class: {record['class_label']}")
    if "original_shape" in record:
        lines.append(f"as stored: {' x '.join(map(str, record['original_shape']))} voxels")
    return lines


class FileBrowser:
    """Shows NIfTI files: those below a folder, or those that were named. Nothing else can be asked for."""

    def __init__(self, paths: Sequence[Path]) -> None:
        folder = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        self._title = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} files"
        self._root = None if folder is None else folder.resolve()
        self._files = {} if folder is not None else _named(paths)
        if folder is not None and not self._names():
            raise UserError(
                f"{folder} is neither a run (no config.json), nor a data set (no dataset.json), nor does it hold NIfTI "
                "files (.nii, .nii.gz)"
            )

    def _names(self) -> list[str]:
        """The files' names, below the folder where there is one; links that lead out of it are left out."""
        if self._root is None:
            return list(self._files)
        found: list[str] = []
        for parent, folders, files in os.walk(self._root):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            for name in sorted(files):
                path = Path(parent, name)
                if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                    if path.resolve().is_relative_to(self._root):
                        found.append(path.relative_to(self._root).as_posix())
            if len(found) > MAX_FILES:
                raise UserError(f"{self._root} holds more than {MAX_FILES} NIfTI files; name a folder below it")
        return found

    def about(self) -> dict[str, Any]:
        items = [{"name": name, "title": name, "about": None} for name in self._names()]
        return {"kind": "files", "title": self._title, "items": items, "skipped": []}

    def _path(self, name: str) -> Path:
        """The file of a name. Raises Forbidden where it is not one of those to be shown, and NotFound."""
        if self._root is None:
            if name not in self._files:
                raise Forbidden(f"{name!r} is not one of the files that are shown")
            path = self._files[name]
        else:
            if "\0" in name or any(part.startswith(".") for part in name.split("/")):
                raise Forbidden(f"{name!r} is no name of a file below the folder that is shown")
            path = (self._root / name).resolve()
            if not path.is_relative_to(self._root) or not path.name.lower().endswith(SUFFIXES):
                raise Forbidden(f"{name!r} is not a NIfTI file of the folder that is shown")
        if not path.is_file():
            raise NotFound(f"{name!r} is gone; reload the page")
        return path

    def item(self, name: str) -> Reply:
        """The file as it is."""
        path = self._path(name)
        return Reply(path.read_bytes(), "application/octet-stream", path.name)

    def verdict(self, name: str) -> list[str]:
        """What the reader of `prepare` finds in a file, line by line."""
        try:
            volume = load_nifti(self._path(name))
        except VolumeError as error:
            return [f"verdict: `ssgan prepare` would leave it out: {error}"]
        low, high = float(volume.data.min()), float(volume.data.max())
        spacing = " x ".join(f"{s:.4g}" for s in volume.spacing)
        lines = ["verdict: `ssgan prepare` would use it", *(f"warning: {w}" for w in volume.warnings)]
        lines.append(f"voxels: {' x '.join(map(str, volume.data.shape))} of {spacing} mm (X x Y x Z)")
        return [*lines, f"intensities: {low:.6g} to {high:.6g}"]


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by their names; by their paths where two have one name."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected one run, data set or folder, or NIfTI files alone")
        if not path.exists():
            raise UserError(f"{path} does not exist; expected a run, a data set, a folder or NIfTI files")
        if not path.name.lower().endswith(SUFFIXES):
            raise UserError(f"{path} is no NIfTI file by its name; expected .nii or .nii.gz")
    names = [path.name for path in paths]
    shown = [str(path) if names.count(path.name) > 1 else path.name for path in paths]
    return {name: path.resolve() for name, path in zip(shown, paths, strict=True)}
