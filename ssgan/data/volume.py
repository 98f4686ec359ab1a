"""A volume in RAS+ order, and the checks that every volume has to pass, whatever its file format."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np

ORTHOGONAL = 1e-2  # largest cosine between two axes; NIfTI's float32 headers have a precision of 1e-5
ALIGNED = 1e-3  # largest off-axis direction cosine of a volume that counts as axis-aligned
SPACING = (1e-3, 100.0)  # mm; other values come from headers in other units or damaged ones
LARGEST = 1e30  # larger intensities are fill values, and would overflow float32 in the percentiles
MAX_VOXELS = 2**30  # read or resampled; more come from a damaged header or a wrong spacing and would fill the memory
MAX_DEFLATE = 1040  # deflate compresses by a factor of 1032 at most
HOUNSFIELD = (-1100.0, 32767.0)  # air is -1000 HU, and scanners store 16 bits
DEFAULT_HINT = "correct the header"


class VolumeError(ValueError):
    """A file that cannot be a training volume; the message is the reason that the user reads."""


@dataclass(frozen=True)
class Failure:
    """The reason why another process has no result for a volume."""

    reason: str


@dataclass(frozen=True)
class StoredVolume:
    """A file's voxels as they are stored, with a checked header.

    data: (I, J, K) float32. affine: 4x4, to RAS+ in mm. shape: as in the header. warnings, contradiction: as `Volume`.
    """

    data: np.ndarray
    affine: np.ndarray
    shape: tuple[int, ...]
    warnings: list[str] = field(default_factory=list)
    contradiction: str = ""


@dataclass(frozen=True)
class Volume:
    """A checked volume.

    data: (X, Y, Z) float32, with the axes nearest to RAS+.
    affine: 4x4 of these axes, in mm.
    content_hash: SHA-256 of the voxels as stored.
    original_shape, original_affine: as stored.
    warnings: what was assumed about it.
    contradiction: that of the warnings which `--strict` refuses: the header says two things about its orientation.
    """

    data: np.ndarray
    affine: np.ndarray
    content_hash: str
    original_shape: tuple[int, ...]
    original_affine: np.ndarray
    warnings: list[str] = field(default_factory=list)
    contradiction: str = ""

    @property
    def spacing(self) -> np.ndarray:
        """The voxel size (x, y, z) in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def is_oblique(self) -> bool:
        directions = self.affine[:3, :3] / self.spacing
        return bool(np.abs(directions - np.diag(np.diag(directions))).max() > ALIGNED)


def check_file(path: Path) -> int:
    """Returns the size in bytes; raises VolumeError if it is no file, cannot be opened or is empty."""
    try:
        if not path.is_file():
            if path.is_symlink():
                todo = "fetch the file first (git annex get, datalad get) or delete it"
                raise VolumeError(f"a broken link to {os.readlink(path)}; {todo}")
            raise VolumeError("a pipe, socket or device; expected a file" if path.exists() else "the file is gone")
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise VolumeError(f"the file cannot be opened: {error.strerror}") from error
    if size == 0:
        raise VolumeError("the file is empty (0 bytes)")
    return size


def check_shape(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], list[str]]:
    """Returns the extents of the three axes and warnings; raises VolumeError if the shape is not that of a volume."""
    if len(shape) < 3:
        raise VolumeError(f"{len(shape)}D image of shape {shape}; expected a volume")
    if any(n != 1 for n in shape[3:]):
        raise VolumeError(f"{len(shape)}D image of shape {shape}; expected one volume: split the series")
    if min(shape) < 1:
        raise VolumeError(f"shape {shape} has an empty axis")
    if min(shape[:3]) < 2:
        raise VolumeError(f"shape {shape[:3]} has an axis of one voxel; expected a volume")
    warnings = [f"trailing axes of length 1 dropped from shape {shape}"] if len(shape) > 3 else []
    return shape[:3], warnings  # type: ignore[return-value]


def check_size(shape: tuple[int, ...], itemsize: int, file_bytes: int, compressed: bool) -> None:
    """Raises VolumeError if a header claims more voxels than its file can hold, or than a scan has."""
    claimed = math.prod(shape) * itemsize
    if claimed > file_bytes * (MAX_DEFLATE if compressed else 1):
        raise VolumeError(
            f"the header claims {claimed} bytes of voxels, more than {file_bytes} bytes of file can hold: damaged or "
            "cut off"
        )
    if math.prod(shape) > MAX_VOXELS:
        raise VolumeError(f"shape {shape}: {math.prod(shape):.3g} voxels; at most {MAX_VOXELS:.3g} are read")


def check_axes(affine: np.ndarray, hint: str = DEFAULT_HINT) -> None:
    """Raises VolumeError for an affine (4x4, mm) that is not finite, degenerate, sheared or in other units.

    hint: what to do, at the end of the message.
    """
    axes = affine[:3, :3]
    if not np.isfinite(affine).all():
        raise VolumeError(f"the affine holds NaN or infinite numbers; {hint}")
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.min() < 1e-6:
        raise VolumeError(f"the affine is zero along an axis (spacing 0); {hint}")
    unit = axes / lengths
    if abs(np.linalg.det(unit)) < 1e-3:
        raise VolumeError(f"the affine is singular: two axes point the same way; {hint}")
    cosine = np.abs(unit.T @ unit - np.eye(3)).max()
    if cosine > ORTHOGONAL:
        angle = 90 - math.degrees(math.acos(min(cosine, 1)))
        raise VolumeError(
            f"sheared affine: two axes are {angle:.1f} degrees off a right angle; resample to a regular grid"
        )
    if lengths.min() < SPACING[0] or lengths.max() > SPACING[1]:
        found = " x ".join(f"{v:.4g}" for v in lengths)
        raise VolumeError(f"spacing {found} mm is not that of a scan; correct the header's units")
    if np.abs(affine).max() > 1e6:
        raise VolumeError("the affine places the volume more than a kilometre away; correct the header's origin")


def check_hounsfield(data: np.ndarray) -> list[str]:
    """Raises VolumeError if values cannot be Hounsfield units; one value that is too low is padding, and a warning."""
    low, high = float(data.min()), float(data.max())
    lowest, highest = HOUNSFIELD
    if high <= highest:
        below = data[data < lowest]
        if not below.size:
            return []
        if below.min() == below.max():
            return [f"{below.size} voxels of {low:g} HU: taken as padding"]
    raise VolumeError(
        f"intensities from {low:g} to {high:g} are no Hounsfield units (expected {lowest:g} to {highest:g}): "
        "PixelRepresentation (signed or unsigned) or RescaleIntercept may be wrong"
    )


def ras_spacing(affine: np.ndarray) -> np.ndarray:
    """The voxel size (x, y, z) in mm along the axes nearest to RAS+."""
    order = nibabel.io_orientation(affine)[:, 0]
    spacing = np.empty(3)
    spacing[order.astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing


def make_volume(data: np.ndarray, affine: np.ndarray, original_shape: tuple[int, ...], warnings: list[str]) -> Volume:
    """Checks voxels (I, J, K) float32 as stored and reorients them to RAS+.

    Raises:
        VolumeError: intensities are NaN, infinite or absurdly large, or all the same.
    """
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise VolumeError(f"{bad} of {data.size} voxels are NaN or infinite in float32; repair them before preparing")
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise VolumeError(f"constant volume: every voxel is {low:g}")
    if max(-low, high) > LARGEST:
        raise VolumeError(f"intensities from {low:g} to {high:g}: a fill value or damage; mask it before preparing")
    digest = hashlib.sha256(str(data.shape).encode() + np.ascontiguousarray(data).tobytes()).hexdigest()
    ornt = nibabel.io_orientation(affine)
    oriented = np.ascontiguousarray(nibabel.apply_orientation(data, ornt))
    canonical = affine @ nibabel.orientations.inv_ornt_aff(ornt, data.shape)
    return Volume(oriented, canonical, digest, tuple(int(n) for n in original_shape), affine, warnings)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
