"""One NIfTI file as a checked volume in RAS+ order, or the reason why it is none."""

from __future__ import annotations

import hashlib
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

SUFFIXES = (".nii", ".nii.gz")
MAX_DEFLATE = 1040  # deflate cannot shrink by more than 1032
GZIP_PIECE = 1 << 16  # bytes read at a time; at most 64 MiB come out
ORTHOGONAL = 1e-2  # largest cosine between two axes; NIfTI's float32 headers are good for 1e-5
ALIGNED = 1e-3  # largest direction cosine off the axes that still counts as axis-aligned
SPACING = (1e-3, 100.0)  # mm; outside lie headers in other units and damaged ones
LARGEST = 1e30  # beyond lie fill values, and float32 would overflow in the percentiles


class VolumeError(ValueError):
    """Why a file cannot be a training volume, in words for the user."""


@dataclass(frozen=True)
class Volume:
    """data: (X, Y, Z) float32, axes nearest to RAS+. affine: 4x4 of these axes, in mm. warnings: what was assumed."""

    data: np.ndarray
    affine: np.ndarray
    content_hash: str
    original_shape: tuple[int, ...]
    original_affine: np.ndarray
    warnings: list[str] = field(default_factory=list)

    @property
    def spacing(self) -> np.ndarray:
        """(x, y, z) mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def is_oblique(self) -> bool:
        directions = self.affine[:3, :3] / self.spacing
        return bool(np.abs(directions - np.diag(np.diag(directions))).max() > ALIGNED)


def find_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """NIfTI files below `folder` in sorted order, and those passed over because they are hidden (macOS "._" files)."""
    found, hidden = [], []
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(SUFFIXES) and path.is_file():
            parts = path.relative_to(folder).parts
            (hidden if any(p.startswith(".") for p in parts) else found).append(path)
    return found, hidden


def load_nifti(path: Path) -> Volume:
    """Reads and checks one file.

    Raises:
        VolumeError: unreadable or cut off, not 3D, complex or RGB, NaN or infinite voxels, constant, or an affine
            that is zero, not finite, degenerate or sheared.
    """
    image, warnings = _open(path)
    shape, notes = _check_header(path, image)
    affine, more = _check_affine(image)
    warnings += notes + more
    try:
        if path.name.lower().endswith(".gz"):
            _check_gzip(path)
        with np.errstate(all="ignore"):  # what overflows float32 is infinite, and counted below
            data = np.asanyarray(image.dataobj, dtype=np.float32).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise VolumeError(f"the voxels cannot be read, the file is damaged or cut off: {_first_line(error)}") from error
    bad = int(data.size - np.isfinite(data).sum())
    if bad:
        raise VolumeError(f"{bad} of {data.size} voxels are NaN or infinite; repair them before preparing")
    low, high = float(data.min()), float(data.max())
    if low == high:
        raise VolumeError(f"constant volume: every voxel is {low:g}")
    if max(-low, high) > LARGEST:
        raise VolumeError(f"intensities from {low:g} to {high:g}: a fill value or damage; mask it before preparing")
    digest = hashlib.sha256(str(shape).encode() + np.ascontiguousarray(data).tobytes()).hexdigest()
    ornt = nibabel.io_orientation(affine)
    turned = np.ascontiguousarray(nibabel.apply_orientation(data, ornt))
    canonical = affine @ nibabel.orientations.inv_ornt_aff(ornt, shape)
    return Volume(turned, canonical, digest, tuple(image.shape), affine, warnings)


def header_spacing(path: Path) -> np.ndarray:
    """(x, y, z) mm of the RAS+ axes from the header alone; VolumeError as in `load_nifti`."""
    image, _ = _open(path)
    _check_header(path, image)
    affine, _ = _check_affine(image)
    order = nibabel.io_orientation(affine)[:, 0]
    spacing = np.empty(3)
    spacing[order.astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    return spacing


def _open(path: Path) -> tuple[nibabel.Nifti1Image, list[str]]:
    """The image with its voxels unread, and what nibabel mended in the header."""
    if path.stat().st_size == 0:
        raise VolumeError("the file is empty (0 bytes)")
    try:
        with _header_repairs() as repairs:
            image = nibabel.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise VolumeError(f"not readable as NIfTI: {_first_line(error)}") from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise VolumeError(f"not NIfTI but {type(image).__name__}")
    return image, [f"damaged header: {r}" for r in dict.fromkeys(repairs)]


@contextmanager
def _header_repairs() -> Iterator[list[str]]:
    """Collects what nibabel would log to stderr, where it names no file."""
    repairs: list[str] = []
    collector = logging.Handler()
    collector.emit = lambda record: repairs.append(record.getMessage())  # type: ignore[method-assign]
    logger = imageglobals.logger
    handlers, propagate = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [collector], False
    try:
        yield repairs
    finally:
        logger.handlers, logger.propagate = handlers, propagate


def _check_header(path: Path, image: nibabel.Nifti1Image) -> tuple[tuple[int, int, int], list[str]]:
    dtype = image.get_data_dtype()
    if dtype.kind == "c":
        raise VolumeError(f"complex voxels ({dtype}); expected real ones: save the magnitude")
    if dtype.kind not in "iuf":
        raise VolumeError("RGB voxels; expected one intensity each: convert to greyscale")
    shape = tuple(image.shape)
    if len(shape) < 3:
        raise VolumeError(f"{len(shape)}D image of shape {shape}; expected a volume")
    if any(n != 1 for n in shape[3:]):
        raise VolumeError(f"{len(shape)}D image of shape {shape}; expected one volume: split the series")
    if min(shape) < 1:
        raise VolumeError(f"shape {shape} has an empty axis")
    if min(shape[:3]) < 2:
        raise VolumeError(f"shape {shape[:3]} has an axis of one voxel; expected a volume")
    claimed, size = math.prod(shape) * dtype.itemsize, path.stat().st_size
    if claimed > size * (MAX_DEFLATE if path.name.lower().endswith(".gz") else 1):
        raise VolumeError(
            f"the header claims {claimed} bytes of voxels, more than {size} bytes of file can hold: damaged or cut off"
        )
    warnings = [f"trailing axes of length 1 dropped from shape {shape}"] if len(shape) > 3 else []
    return shape[:3], warnings  # type: ignore[return-value]


def _check_gzip(path: Path) -> None:
    """Decompresses to the end, where the checksum is: nibabel stops at the last voxel and would miss damage.

    Raises:
        EOFError: cut off. zlib.error: damaged, the checksum included.
    """
    with path.open("rb") as stream:
        member, left = zlib.decompressobj(wbits=31), b""
        while not member.eof:
            piece = left or stream.read(GZIP_PIECE)
            if not piece:
                raise EOFError("the compressed stream ends early")
            member.decompress(piece)
            left = b""
            if member.eof:
                left = member.unused_data or stream.read(GZIP_PIECE)
                if left.startswith(b"\x1f\x8b"):  # members in a row count as one file; anything else is padding
                    member = zlib.decompressobj(wbits=31)


def _check_affine(image: nibabel.Nifti1Image) -> tuple[np.ndarray, list[str]]:
    header, affine = image.header, np.asarray(image.affine, dtype=np.float64)
    warnings = []
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        warnings.append("no orientation in the header (qform and sform codes 0): voxel order taken as nibabel does")
    axes = affine[:3, :3]
    if not np.isfinite(affine).all():
        raise VolumeError("the affine holds NaN or infinite numbers; mend the header's qform or sform")
    lengths = np.linalg.norm(axes, axis=0)
    if lengths.min() < 1e-6:
        raise VolumeError("the affine is zero along an axis (spacing 0); mend the header's qform or sform")
    unit = axes / lengths
    if abs(np.linalg.det(unit)) < 1e-3:
        raise VolumeError("the affine is singular: two axes point the same way; mend the header's sform")
    cosine = np.abs(unit.T @ unit - np.eye(3)).max()
    if cosine > ORTHOGONAL:
        angle = 90 - math.degrees(math.acos(min(cosine, 1)))
        raise VolumeError(
            f"sheared affine: two axes are {angle:.1f} degrees off a right angle; resample to a regular grid"
        )
    if lengths.min() < SPACING[0] or lengths.max() > SPACING[1]:
        found = " x ".join(f"{v:.4g}" for v in lengths)
        raise VolumeError(f"spacing {found} mm is not that of a scan; mend the header's units")
    return affine, warnings


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
