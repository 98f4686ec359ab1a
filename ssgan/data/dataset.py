"""A prepared data set, read from its folder (`volumes.npy`, `masks.npy`, `dataset.json`), and its NIfTI images.

Array axes depend on the slice axis, so that volumes[i, d] is a 2D slice in the plane that was asked for:

    axial      D, H, W = Z, Y, X        coronal    D, H, W = Y, Z, X        sagittal   D, H, W = X, Z, Y

with X, Y, Z pointing to the patient's right, front and head (RAS+). Intensities are float32 in [-1, 1]. A mask is the
label map of a volume, on the same grid: uint8 class numbers from 0, the background, to K - 1.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from ssgan.config.fields import Triple
from ssgan.data.axes import ARRAY_AXES, to_world_axes
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json

FORMAT, VERSION = "ssgan-dataset", 1
NO_MASK = 255  # the class number of every voxel of a volume without a mask
BACKGROUND = "background"  # the name of class 0
ADDED_LATER = ("classes", "mask_values", "mask_names")  # fields that old data sets lack


class DatasetError(UserError):
    """A data set is absent, incomplete or damaged, or would be overwritten; the message names its folder."""


@dataclass(frozen=True)
class DatasetInfo:
    """The properties that all volumes of a data set share.

    shape: (D, H, W) in voxels.
    spacing: (x, y, z) in mm.
    affine: 4x4, from the index (X, Y, Z) to RAS+ in mm; the median over the volumes.
    intensity_low, intensity_high: raw values of -1 and +1; medians over the volumes.
    content_hash: `content_hash` of the voxels.
    classes: names of the classes in the order of their numbers, None for volumes without labels.
    mask_values, mask_names: value in the source files, and name, of each class of the masks; the first are 0 and
        "background". None for a data set without masks.
    """

    shape: Triple
    spacing: tuple[float, float, float]
    affine: tuple[tuple[float, ...], ...]
    slice_axis: str
    recipe: str
    intensity_low: float
    intensity_high: float
    content_hash: str
    classes: tuple[str, ...] | None = None
    mask_values: tuple[int, ...] | None = None
    mask_names: tuple[str, ...] | None = None

    @property
    def mask_classes(self) -> int:
        """How many classes the masks have, with the background; 0 for a data set without masks."""
        return len(self.mask_values or ())

    def to_json(self) -> dict[str, Any]:
        """The fields for dataset.json; without masks, those that a data set had before masks came."""
        data = dataclasses.asdict(self)
        return data if self.mask_values is not None else {k: v for k, v in data.items() if not k.startswith("mask_")}

    def of_volume(self, record: dict[str, Any]) -> DatasetInfo:
        """The description with a volume's own affine and intensities, from its record."""
        own = {"intensity_low": record["intensity_low"], "intensity_high": record["intensity_high"]}
        own["affine"] = tuple(tuple(row) for row in record["affine"])
        return dataclasses.replace(self, **own)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> DatasetInfo:
        """Inverse of `to_json`; raises DatasetError for other fields or types. Old data sets lack `ADDED_LATER`."""
        fields = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) | set(ADDED_LATER) != fields:
            found = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise DatasetError(f"data set description: expected the fields {sorted(fields)}; got {found}")
        if data["slice_axis"] not in ARRAY_AXES:
            raise DatasetError(f"data set description: slice_axis is {data['slice_axis']!r}, not of {list(ARRAY_AXES)}")
        values = dict(data)
        try:
            values["shape"] = tuple(int(n) for n in data["shape"])
            values["spacing"] = tuple(float(s) for s in data["spacing"])
            values["affine"] = tuple(tuple(float(v) for v in row) for row in data["affine"])
            names = data.get("classes")
            values["classes"] = None if names is None else tuple(str(name) for name in names)
            if data.get("mask_values") is not None or data.get("mask_names") is not None:
                values["mask_values"] = tuple(int(value) for value in data["mask_values"])
                values["mask_names"] = tuple(str(name) for name in data["mask_names"])
                check_mask_classes(values["mask_values"], values["mask_names"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"data set description: shape, spacing or affine hold no numbers, or classes no names ({error})"
            ) from error
        return cls(**values)


def check_mask_classes(values: Sequence[int], names: Sequence[str]) -> None:
    """Raises ValueError unless the classes of masks have increasing values from 0 on, and different names."""
    ordered = list(values) == sorted({0, *values}) and values[-1] <= 255
    if not ordered or len(values) != len(names) or len(set(names)) != len(names) or names[0] != BACKGROUND:
        raise ValueError(
            f"masks: expected increasing values from 0 to 255 at most, and as many different names from {BACKGROUND!r} "
            f"on; got {list(values)} and {list(names)}"
        )


def content_hash(volumes: np.ndarray, masks: np.ndarray | None = None) -> str:
    """The SHA-256 of volumes (N, D, H, W), each followed by its mask if there are masks."""
    digest = hashlib.sha256()
    for i, volume in enumerate(volumes):
        digest.update(np.ascontiguousarray(volume))
        if masks is not None:
            digest.update(np.ascontiguousarray(masks[i]))
    return digest.hexdigest()


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a data set: a dataset.json that is not a list of files as the Decathlon and nnU-Net have.

    A damaged one counts: opening it says what is wrong.
    """
    file = folder / "dataset.json"
    if not file.is_file():
        return False
    try:
        head = read_json(file)
    except UserError:
        return True
    return not isinstance(head, dict) or "format" in head or "labels" not in head


def class_names(labels: Sequence[str]) -> tuple[str, ...] | None:
    """The different labels in order, by value if all are whole numbers; None if there are no labels."""
    names = set(labels)
    whole = all(name.isascii() and name.isdigit() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name), name) if whole else name)) if names else None


def to_nifti(volume: np.ndarray | Tensor, info: DatasetInfo) -> nibabel.Nifti1Image:
    """Converts a volume (D, H, W) in [-1, 1] to a NIfTI image with axes X, Y, Z (RAS+) and raw intensities."""
    array = np.asarray(volume, dtype=np.float32)
    if array.shape != tuple(info.shape):
        raise DatasetError(f"volume: expected shape (D, H, W) = {tuple(info.shape)}; got {array.shape}")
    raw = (array.astype(np.float64) + 1) / 2 * (info.intensity_high - info.intensity_low) + info.intensity_low
    return _nifti(raw.astype(np.float32), info)


def to_nifti_mask(mask: np.ndarray | Tensor, info: DatasetInfo) -> nibabel.Nifti1Image:
    """Converts a mask (D, H, W) of class numbers to a uint8 NIfTI image with axes X, Y, Z (RAS+) and source values."""
    array, values = np.asarray(mask), np.array(info.mask_values or (), dtype=np.uint8)
    if array.shape != tuple(info.shape):
        raise DatasetError(f"mask: expected shape (D, H, W) = {tuple(info.shape)}; got {array.shape}")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= len(values):
        raise DatasetError(
            f"mask: expected class numbers below {len(values)}, of which the data set has names; got {array.dtype} "
            f"from {array.min()} to {array.max()}"
        )
    return _nifti(values[array], info)


def _nifti(array: np.ndarray, info: DatasetInfo) -> nibabel.Nifti1Image:
    """An image of the voxels (D, H, W) as they are, with axes X, Y, Z and the data set's affine."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(to_world_axes(array, info.slice_axis)), np.asarray(info.affine))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code="aligned")  # some readers use the qform only
    return image


class VolumeDataset:
    """A prepared data set, opened read-only; the voxels stay on the disk (memory-mapped).

    volumes: (N, D, H, W) float32 in [-1, 1].
    labels: (N,) int64, the index of each volume's class in `info.classes`, or None.
    masks: (N, D, H, W) uint8, class numbers of `info.mask_values`, NO_MASK in a volume without a mask; or None.
    has_mask: (N,) bool, or None.
    records: per volume, its source, geometry, intensity map, mask and warnings.
    skipped: the files that were left out, with reasons.

    Raises:
        DatasetError: the folder is absent or not a data set, a file is missing or damaged, or the files disagree.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not (self.path / "dataset.json").is_file():
            what = "is not a data set (it has no dataset.json)" if self.path.is_dir() else "does not exist"
            raise DatasetError(f"{self.path} {what}; make one with `ssgan prepare` or `ssgan phantom`")
        head = read_json(self.path / "dataset.json")
        if not isinstance(head, dict) or head.get("format") != FORMAT or head.get("version") != VERSION:
            found = (head.get("format"), head.get("version")) if isinstance(head, dict) else type(head).__name__
            raise DatasetError(f"{self.path}/dataset.json: expected format {FORMAT!r}, version {VERSION}; got {found}")
        missing = [name for name in ("info", "volumes", "skipped") if name not in head]
        if missing:
            raise DatasetError(f"{self.path}/dataset.json lacks {', '.join(missing)}; prepare the data set again")
        self.info = DatasetInfo.from_json(head["info"])
        self.records: list[dict[str, Any]] = head["volumes"]
        self.skipped: list[dict[str, Any]] = head["skipped"]
        self.volumes = self._open("volumes.npy", np.float32)
        self.labels = self._labels()
        self.masks = self.has_mask = None
        if self.info.mask_values is not None:
            self.masks = self._open("masks.npy", np.uint8)
            self.has_mask = np.array([r.get("mask") is not None for r in self.records], dtype=bool)

    def _open(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        """Maps an array of the folder; raises DatasetError where it is not as dataset.json says."""
        file = self.path / name
        try:
            array: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise DatasetError(f"{file} is missing; prepare the data set again") from None
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{file} is damaged or cut off ({error}); prepare the data set again") from error
        expected = (len(self.records), *self.info.shape)
        if array.shape != expected or array.dtype != dtype:
            raise DatasetError(
                f"{file}: expected {np.dtype(dtype)} of shape {expected} as dataset.json says; got {array.dtype} of "
                f"shape {array.shape}; prepare the data set again"
            )
        return array

    def _labels(self) -> np.ndarray | None:
        """The volumes' class numbers; raises DatasetError where a volume has no class of the data set."""
        if self.info.classes is None:
            return None
        number = {name: i for i, name in enumerate(self.info.classes)}
        names = [r.get("class_label") for r in self.records]
        unknown = [i for i, name in enumerate(names) if name not in number]
        if unknown or len(number) != len(self.info.classes):
            found = f"volume {unknown[0]} has {names[unknown[0]]!r}" if unknown else "a name stands twice"
            raise DatasetError(
                f"{self.path}/dataset.json: expected classes of {list(self.info.classes)}; {found}; prepare the data "
                "set again"
            )
        return np.array([number[name] for name in names], dtype=np.int64)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many volumes each class has; empty for a data set without classes."""
        names = self.info.classes or ()
        return () if self.labels is None else tuple(np.bincount(self.labels, minlength=len(names)).tolist())

    def __len__(self) -> int:
        return len(self.volumes)

    def volume_batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Reads the volumes at `indices`: (B, 1, D, H, W) float32."""
        return torch.from_numpy(np.stack([self.volumes[i] for i in indices])[:, None])

    def slice_batch(self, volumes: Sequence[int] | np.ndarray, slices: Sequence[int] | np.ndarray) -> Tensor:
        """Reads slice slices[b] along D of volume volumes[b], for each b: (B, 1, 1, H, W) float32."""
        picked = np.stack([self.volumes[v, s] for v, s in zip(volumes, slices, strict=True)])
        return torch.from_numpy(picked[:, None, None])

    def mask_batch(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Reads the masks at `indices`: (B, D, H, W) uint8 class numbers."""
        masks = self._masks()
        return torch.from_numpy(np.stack([masks[i] for i in indices]))

    def mask_slice_batch(self, volumes: Sequence[int] | np.ndarray, slices: Sequence[int] | np.ndarray) -> Tensor:
        """Reads slice slices[b] along D of mask volumes[b], for each b: (B, 1, H, W) uint8 class numbers."""
        masks = self._masks()
        return torch.from_numpy(np.stack([masks[v, s] for v, s in zip(volumes, slices, strict=True)])[:, None])

    def _masks(self) -> np.ndarray:
        if self.masks is None:
            raise DatasetError(f"{self.path} has no masks; prepare the data set with --masks")
        return self.masks
