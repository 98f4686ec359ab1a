"""Reads one NIfTI file as a checked volume in RAS+ order, or says why it cannot be used."""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
from nibabel import imageglobals
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ssgan.data.volume import (
    StoredVolume,
    Volume,
    VolumeError,
    check_axes,
    check_file,
    check_shape,
    check_size,
    first_line,
    make_volume,
    ras_spacing,
)

SUFFIXES = (".nii", ".nii.gz", ".hdr")  # .hdr: of a pair .hdr/.img
SLACK = 1 << 26  # bytes of header extensions and padding that are allowed
UNITS = {1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}  # code in xyzt_units -> name, mm
MAGIC = (  # bytes at the beginning of a file -> what it is
    (b"\x1f\x8b", "compressed by gzip; name it .nii.gz, or decompress it"),
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"BZh", "compressed by bzip2; decompress it"),
    (b"\xfd7zXZ", "compressed by xz; decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard; decompress it"),
    (b"\x89HDF", "HDF5 (perhaps MINC); convert it to NIfTI"),
    (b"NRRD", "NRRD; name it .nrrd"),
    (b"ObjectType", "MetaImage; name it .mha"),
)
GZIP_CHUNK = 1 << 16  # bytes read at a time; they decompress to 64 MiB at most


def load_nifti(path: Path) -> Volume:
    """Reads and checks one file.

    Raises:
        VolumeError: unreadable or cut off, not 3D, complex or RGB, NaN or infinite voxels, constant, or an affine
            that is zero, not finite, degenerate or sheared.
    """
    stored = read_nifti(path)
    volume = make_volume(stored.data, stored.affine, stored.shape, stored.warnings)
    return replace(volume, contradiction=stored.contradiction)


def read_nifti(path: Path) -> StoredVolume:
    """Reads one file whose voxels may be anything; raises VolumeError as `load_nifti` for all else."""
    image, warnings = _open(path)
    shape, notes = _check_header(path, image)
    affine, more = _check_affine(image, warnings)
    contradiction = _compare_forms(image)
    warnings += notes + more + ([contradiction] if contradiction else [])
    try:
        if path.name.lower().endswith(".gz"):
            _check_gzip(path, math.prod(shape) * image.get_data_dtype().itemsize)
        with np.errstate(all="ignore"):  # values beyond float32 become infinite, and make_volume counts them
            data = np.asanyarray(image.dataobj, dtype=np.float32).reshape(shape)
    except (OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise VolumeError(f"the voxels cannot be read, the file is damaged or cut off: {first_line(error)}") from error
    return StoredVolume(data, affine, image.shape, warnings, contradiction)


def header_spacing(path: Path) -> np.ndarray:
    """Reads the spacing (x, y, z) in mm of the RAS+ axes from the header; raises VolumeError as `load_nifti` does."""
    image, repairs = _open(path)
    _check_header(path, image)
    affine, _ = _check_affine(image, repairs)
    return ras_spacing(affine)


def _open(path: Path) -> tuple[nibabel.Nifti1Image, list[str]]:
    """Opens the image without reading its voxels; also returns what nibabel repaired in the header."""
    check_file(path)
    try:
        with _header_repairs() as repairs:
            image = nibabel.load(path)
    except (ImageFileError, HeaderDataError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise VolumeError(f"not readable as NIfTI: {first_line(error)}{_what_it_is(path)}") from error
    if not isinstance(image, nibabel.Nifti1Pair):
        kind = "Analyze, whose orientation is unknown" if is_pair_header(path) else type(image).__name__
        raise VolumeError(f"not NIfTI but {kind}; convert it")
    return image, [f"damaged header: {r}" for r in dict.fromkeys(repairs)]


def is_pair_header(path: Path) -> bool:
    """Whether a file is the header of a NIfTI or Analyze pair: it begins with its length, 348 or 540 bytes."""
    try:
        with path.open("rb") as stream:
            start = stream.read(4)
    except OSError:
        return True  # the reader gives the reason
    return any(int.from_bytes(start, order) in (348, 540) for order in ("little", "big"))  # type: ignore[arg-type]


def _what_it_is(path: Path) -> str:
    """Says what a file is that is not what its name says, as the end of a message, or "" if that is unknown."""
    with path.open("rb") as stream:
        start = stream.read(132)
    if path.name.lower().endswith(".gz"):
        if start.startswith(b"\x1f\x8b"):
            return ""
        if is_pair_header(path):
            return "; it is NIfTI without compression: name it .nii"
    if start[128:] == b"DICM":
        return "; it is DICOM: name it .dcm"
    return next((f"; it is {kind}" for magic, kind in MAGIC if start.startswith(magic)), "")


@contextmanager
def _header_repairs() -> Iterator[list[str]]:
    """Collects the repairs that nibabel would log to stderr without the file's name."""
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
    shape, warnings = check_shape(tuple(image.shape))
    voxel_file = Path(image.file_map["image"].filename)
    if not voxel_file.is_file():
        raise VolumeError(f"the file with the voxels, {voxel_file.name}, is missing")
    check_size(shape, dtype.itemsize, voxel_file.stat().st_size, voxel_file.name.lower().endswith(".gz"))
    return shape, warnings


def _check_gzip(path: Path, voxel_bytes: int) -> None:
    """Decompresses to the end, where the checksum is; nibabel stops at the last voxel and would miss damage.

    Raises:
        EOFError: the file is cut off.
        zlib.error: the data or the checksum are damaged.
        VolumeError: the data are far longer than the header declares (a decompression bomb).
    """
    with path.open("rb") as stream:
        member, left, size = zlib.decompressobj(wbits=31), b"", 0
        while not member.eof:
            chunk = left or stream.read(GZIP_CHUNK)
            if not chunk:
                raise EOFError("the compressed stream ends early")
            size += len(member.decompress(chunk))
            if size > 2 * voxel_bytes + SLACK:
                raise VolumeError(f"more than {size} bytes come out where the header declares {voxel_bytes} of voxels")
            left = b""
            if member.eof:
                left = member.unused_data or stream.read(GZIP_CHUNK)
                if left.startswith(b"\x1f\x8b"):  # another member of the same file; anything else is padding
                    member = zlib.decompressobj(wbits=31)


def _check_affine(image: nibabel.Nifti1Image, repairs: list[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the affine in mm and warnings; raises VolumeError if it cannot be used."""
    header = image.header
    warnings = []
    if int(header["qform_code"]) == 0 and int(header["sform_code"]) == 0:
        lost = [repair for repair in repairs if "form_code" in repair]
        if lost:
            raise VolumeError(f"the orientation is lost ({lost[0]}); correct the header's qform or sform")
        warnings.append("no orientation in the header (qform and sform codes 0): voxel order taken as nibabel does")
    code = int(header["xyzt_units"]) & 7
    unit, scale = UNITS.get(code, ("mm", 1.0))
    if code not in (0, *UNITS):
        warnings.append(f"unknown unit of length in the header (code {code} in xyzt_units): taken as mm")
    elif scale != 1:
        warnings.append(f"the header is in {unit} (xyzt_units): converted to mm")
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= scale
    check_axes(affine, "correct the header's qform or sform")
    return affine, warnings


def _compare_forms(image: nibabel.Nifti1Image) -> str:
    """Says where sform and qform, if the header has both, place a voxel axis in directions over 60 degrees apart."""
    header = image.header
    if int(header["qform_code"]) == 0 or int(header["sform_code"]) == 0:
        return ""
    try:
        qform = header.get_qform()
    except (HeaderDataError, ValueError) as error:
        return f"the qform is damaged ({first_line(error)}): the sform is taken"
    sform = header.get_sform()
    axes = [affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0) for affine in (sform, qform)]
    if ((axes[0] * axes[1]).sum(0) > 0.5).all():
        return ""
    s, q = ("".join(nibabel.aff2axcodes(affine)) for affine in (sform, qform))
    mirrored = np.linalg.det(axes[0]) * np.linalg.det(axes[1]) < 0
    return (
        f"sform and qform disagree: the voxel axes run to {s} by the sform, to {q} by the qform"
        f"{', one a mirror image of the other' if mirrored else ''}; the sform is taken: look whether left and right "
        "are right, and correct the header"
    )
