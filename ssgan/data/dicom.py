"""Reads DICOM series as checked volumes: splits files by SeriesInstanceUID, sorts slices by position, names defects.

pydicom reads the headers (it is pure Python, which a damaged header cannot crash). SimpleITK (GDCM) reads the voxels,
slice by slice, so that each slice's own rescale slope and intercept apply. Both come with the extra `dicom`. Geometry
follows DICOM PS3.3 C.7.6.2 (image plane): column i, row j of a slice lies at position + i * spacing[1] *
orientation[:3] + j * spacing[0] * orientation[3:], in mm, LPS+.
"""

from __future__ import annotations

import math
import warnings as python_warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ssgan.data.itk import LPS_TO_RAS
from ssgan.data.volume import (
    MAX_VOXELS,
    Volume,
    VolumeError,
    check_axes,
    check_file,
    check_hounsfield,
    first_line,
    make_volume,
)

SUFFIXES = (".dcm", ".dicom", ".ima")
MIN_SLICES = 4  # fewer are a localizer or a test image
SAME_POSITION = 1e-3  # mm along the normal; closer slices have one position
UNEVEN = 0.01  # largest deviation of slice spacings, relative; scanners round positions to this precision
TILT = 0.5  # degrees between the stack and the slices' normal; less is rounding
SAME_ORIENTATION = 1e-3  # largest difference of a direction cosine within a series
UNCOMPRESSED = {  # transfer syntax UID -> byte order, whether each tag is followed by a VR
    "1.2.840.10008.1.2": ("little", False),
    "1.2.840.10008.1.2.1": ("little", True),
    "1.2.840.10008.1.2.2": ("big", True),
}
TAGS = [
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "ImageType", "SeriesDescription", "PatientID",
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "NumberOfFrames",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "ImagesInAcquisition", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One image plane of a file. position, orientation, spacing: as at the top of this module."""

    path: Path
    frame: int
    series: str
    modality: str
    description: str
    localizer: bool
    shape: tuple[int, int]  # rows, columns
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    rescale: tuple[float, float] | None  # slope, intercept
    frames: int  # in the file
    expected: int  # ImagesInAcquisition, 0 if the file has none


@dataclass(frozen=True)
class Series:
    """The files of one folder with the same SeriesInstanceUID.

    files: in slice order; one file for a multi-frame image.
    shape: (I, J, K): columns, rows, slices.
    affine: (I, J, K) to RAS+ in mm.
    frames: order of the frames of a multi-frame image, else ().
    repeats: indices in `files` of slices at the position of the slice before.
    reason: why the series is no volume, or "".
    """

    uid: str
    files: tuple[Path, ...]
    modality: str = ""
    description: str = ""
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: tuple[tuple[float, ...], ...] = ()
    frames: tuple[int, ...] = ()
    repeats: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    reason: str = ""


def scan_folder(files: Sequence[Path]) -> tuple[list[Series], list[tuple[Path, str]]]:
    """Finds the series of one folder, in the order of their UIDs, and the files that belong to none, with reasons.

    A damaged file makes every series of the folder unusable, because it may be a slice of any of them.
    """
    slices: dict[str, list[Slice]] = {}
    outside: list[tuple[Path, str]] = []
    damaged: list[tuple[Path, str]] = []
    for path in files:
        try:
            found = read_header(path)
        except NotAnImage as reason:
            outside.append((path, str(reason)))
        except VolumeError as reason:
            damaged.append((path, str(reason)))
        else:
            slices.setdefault(found[0].series, []).extend(found)
    series = []
    for uid in sorted(slices):
        group = slices[uid]
        first = group[0]
        unsorted = Series(uid, tuple(sorted({s.path for s in group})), first.modality, first.description)
        try:
            if damaged:
                path, why = damaged[0]
                raise VolumeError(f"a slice may be missing: {path.name} beside it is damaged ({why})")
            series.append(arrange(unsorted, group))
        except VolumeError as reason:
            series.append(replace(unsorted, reason=str(reason)))
    series = [_check_continuation(one, slices) for one in series]
    return series, outside + damaged


def _check_continuation(series: Series, slices: dict[str, list[Slice]]) -> Series:
    """Gives the series a reason if a lone slice of another UID continues its grid: the UID is damaged."""
    if series.reason or series.frames:
        return series
    affine = LPS_TO_RAS @ np.array(series.affine)
    for uid, others in slices.items():
        if uid == series.uid or len(others) >= MIN_SLICES:
            continue
        for other in others:
            i, j, k = np.linalg.solve(affine[:3, :3], np.array(other.position) - affine[:3, 3])
            beyond = min(abs(k + 1), abs(k - series.shape[2]))  # from the slice before the first, or after the last
            if other.shape == (series.shape[1], series.shape[0]) and max(abs(i), abs(j), beyond) < 0.1:
                why = f"{other.path.name} continues it under another SeriesInstanceUID: damaged or mixed"
                return replace(series, reason=why)
    return series


class NotAnImage(VolumeError):
    """A DICOM file without an image: a report, a plan, an index."""


def read_header(path: Path) -> list[Slice]:
    """Reads the planes of one file, several for a multi-frame image.

    Raises:
        NotAnImage: the file has no image.
        VolumeError: it is damaged, cut off, in colour, or without position or spacing.
    """
    import pydicom

    size = check_file(path)
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] != b"DICM":
                raise VolumeError("no DICM after a preamble of 128 bytes; expected a DICOM file: convert it")
        with path.open("rb") as stream, python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # about values of fields that are not used here
            head = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
            return _slices(path, head, stream, size - stream.tell())  # the pixel data's element comes next
    except VolumeError:
        raise
    except Exception as error:  # pydicom lets a damaged file raise almost anything
        raise VolumeError(f"not readable as DICOM: {type(error).__name__}: {first_line(error)}") from error


def _slices(path: Path, head: Any, stream: BinaryIO, remaining: int) -> list[Slice]:
    """The planes that a header describes; raises as `read_header`. remaining: bytes after the header."""
    uid = str(head.get("SeriesInstanceUID") or "")
    if "Rows" not in head or "Columns" not in head:
        kind = getattr(head.get("SOPClassUID"), "name", "")
        if not kind or kind == str(head.SOPClassUID) or "Image" in kind:  # the name of an unknown UID is the UID
            raise VolumeError("no Rows and Columns: damaged or cut off")
        raise NotAnImage(f"no picture but {kind}")
    if not uid:
        raise VolumeError("no SeriesInstanceUID: which series it belongs to is unknown")
    kind = str(head.get("PhotometricInterpretation") or "")
    samples = int(head.get("SamplesPerPixel") or 1)
    if samples != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise VolumeError(f"colour ({kind or 'no PhotometricInterpretation'}); expected one intensity per voxel")
    if kind == "MONOCHROME1":
        raise VolumeError("inverted grey levels (MONOCHROME1); expected MONOCHROME2")
    if "ModalityLUTSequence" in head:
        raise VolumeError("intensities by a table (ModalityLUTSequence); expected RescaleSlope and RescaleIntercept")
    rows, columns, frames = int(head.Rows), int(head.Columns), int(head.get("NumberOfFrames") or 1)
    if min(rows, columns, frames) < 1 or rows * columns * frames > MAX_VOXELS:
        raise VolumeError(f"{rows} rows, {columns} columns, {frames} frames: damaged")
    bits = int(head.get("BitsAllocated") or 0)
    if bits not in (8, 16, 32):
        raise VolumeError(f"BitsAllocated {bits}; expected 8, 16 or 32")
    _check_pixels(head, rows * columns * frames * bits // 8, stream, remaining)
    common = {
        "path": path,
        "series": uid,
        "modality": str(head.get("Modality") or ""),
        "description": str(head.get("SeriesDescription") or ""),
        "localizer": "LOCALIZER" in [str(v).upper() for v in _as_list(head.get("ImageType"))],
        "shape": (rows, columns),
        "frames": frames,
        "expected": int(head.get("ImagesInAcquisition") or 0),
    }
    groups = list(head.get("PerFrameFunctionalGroupsSequence") or ())
    if not groups and frames > 1:
        raise VolumeError(f"{frames} frames without a position for each (no per-frame functional groups)")
    if not groups:
        return [Slice(frame=0, **_plane([head]), **common)]
    if len(groups) != frames:
        raise VolumeError(f"{frames} frames but {len(groups)} per-frame functional groups: damaged")
    shared = list(head.get("SharedFunctionalGroupsSequence") or ())
    return [Slice(frame=i, **_plane(_macros([group, *shared])), **common) for i, group in enumerate(groups)]


def _macros(groups: Sequence[Any]) -> list[Any]:
    """The items of functional groups that hold geometry and rescale, a frame's own before the shared ones."""
    names = (
        "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )  # fmt: skip
    return [group[name].value[0] for group in groups for name in names if name in group and group[name].value]


def _plane(sources: Sequence[Any]) -> dict[str, Any]:
    """Position, orientation, spacing and rescale, each from the first of `sources` that has it."""

    def numbers(name: str, count: int) -> tuple[float, ...]:
        item = next((s for s in sources if name in s), None)
        values = tuple(float(v) for v in _as_list(None if item is None else item.get(name)))
        if len(values) != count or not all(math.isfinite(v) for v in values):
            raise VolumeError(f"{name}: expected {count} numbers; got {list(values) if values else 'none'}")
        return values

    has_slope, has_intercept = (any(name in s for s in sources) for name in ("RescaleSlope", "RescaleIntercept"))
    if has_slope != has_intercept:
        raise VolumeError("only one of RescaleSlope and RescaleIntercept is there: damaged")
    rescale = (*numbers("RescaleSlope", 1), *numbers("RescaleIntercept", 1)) if has_slope else None
    if rescale is not None and rescale[0] == 0:
        raise VolumeError("RescaleSlope is 0: every voxel would be the same")
    orientation = numbers("ImageOrientationPatient", 6)
    u, v = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(np.linalg.norm(u) - 1) > 1e-2 or abs(np.linalg.norm(v) - 1) > 1e-2 or abs(u @ v) > 1e-2:
        raise VolumeError(f"ImageOrientationPatient {list(orientation)} is no pair of unit vectors at a right angle")
    spacing = numbers("PixelSpacing", 2)
    if min(spacing) <= 0:
        raise VolumeError(f"PixelSpacing {list(spacing)}; expected millimetres above 0")
    position = numbers("ImagePositionPatient", 3)
    return {"position": position, "orientation": orientation, "spacing": spacing, "rescale": rescale}


def _as_list(value: Any) -> list[Any]:
    """The values of a DICOM element, which has none, one or several."""
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, (str, float, int)) and hasattr(value, "__iter__") else [value]


def _check_pixels(head: Any, expected: int, stream: BinaryIO, remaining: int) -> None:
    """Raises VolumeError if pixel data are absent, cut off, or of another length than rows and columns need.

    It also refuses bytes after the pixel data that are no element: GDCM hangs on some of them. remaining: bytes of the
    stream from here on.
    """
    syntax = str(head.file_meta.get("TransferSyntaxUID") or "")
    if not syntax:
        raise VolumeError("no TransferSyntaxUID: how the voxels are stored is unknown")
    if syntax not in UNCOMPRESSED:
        if syntax == "1.2.840.10008.1.2.1.99":
            raise VolumeError("deflated DICOM; expected another transfer syntax: convert it")
        return  # compressed: the decoder finds what is missing
    order, explicit = UNCOMPRESSED[syntax]
    tag = bytes.fromhex("e07f1000" if order == "little" else "7fe00010")
    size = 12 if explicit else 8  # bytes of an element before its value: tag, VR, length
    element = stream.read(size)
    if element[:4] != tag or len(element) < size:
        raise VolumeError("no pixel data after the header: damaged or cut off")
    declared = int.from_bytes(element[size - 4 : size], order)  # type: ignore[arg-type]
    if declared not in (expected, expected + expected % 2):
        raise VolumeError(f"{declared} bytes of pixel data; rows, columns and bits need {expected}: damaged")
    if remaining - size < declared:
        raise VolumeError(f"{remaining - size} of {declared} bytes of pixel data are there: cut off")
    rest = remaining - size - declared
    stream.seek(declared, 1)
    element = stream.read(size)
    allowed = (bytes.fromhex(tag) for tag in ("fcfffcff", "fafffaff", "fffcfffc", "fffafffa"))  # padding, signatures
    if rest and not (element[:4] in allowed and int.from_bytes(element[size - 4 :], order) <= rest - size):  # type: ignore[arg-type]
        raise VolumeError(f"{rest} bytes after the pixel data that are no element: damaged, perhaps shifted")


def arrange(series: Series, slices: Sequence[Slice]) -> Series:
    """Sorts slices along their normal and checks that they fill a regular grid.

    Raises:
        VolumeError: localizer, too few slices, different sizes, spacings or orientations, several images at each
            position, missing slices, uneven spacing, gantry tilt, slices that are shifted in their plane.
    """
    _check_uniform(slices)
    first = slices[0]
    u, v = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(u, v)
    normal /= np.linalg.norm(normal)
    heights = np.array([s.position for s in slices]) @ normal
    order = sorted(range(len(slices)), key=lambda i: (heights[i], slices[i].path.name, slices[i].frame))
    slices, heights = [slices[i] for i in order], heights[order]
    repeats = np.flatnonzero(np.diff(heights) < SAME_POSITION) + 1
    unique = np.setdiff1d(np.arange(len(slices)), repeats)
    if len(repeats) >= len(unique):
        raise VolumeError(
            f"{len(slices)} images at {len(unique)} positions: several echoes, times or phases in one series; split it"
        )
    if len(unique) < MIN_SLICES:
        raise VolumeError(f"{len(unique)} slices; expected at least {MIN_SLICES}: a localizer or an incomplete series")
    positions = np.array([slices[i].position for i in unique])
    step = _check_stack(positions, heights[unique], normal, [slices[i] for i in unique])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = u * first.spacing[1], v * first.spacing[0], step
    affine[:3, 3] = positions[0]
    affine = LPS_TO_RAS @ affine
    check_axes(affine, "correct PixelSpacing or ImagePositionPatient")
    notes = []
    if 0 < len(unique) < first.expected:
        notes.append(f"{len(unique)} slices of {first.expected} that the header announces (ImagesInAcquisition)")
    frames: tuple[int, ...] = ()
    if first.frames > 1:
        if len({s.rescale for s in slices}) > 1:
            raise VolumeError("frames with different rescale slopes; expected one for all: convert to single frames")
        if len(repeats):
            raise VolumeError(f"{len(slices)} frames at {len(unique)} positions; expected one frame at each")
        frames = tuple(s.frame for s in slices)
    return replace(
        series,
        files=(first.path,) if frames else tuple(s.path for s in slices),
        shape=(first.shape[1], first.shape[0], len(unique)),
        affine=tuple(tuple(float(x) for x in row) for row in affine),
        frames=frames,
        repeats=tuple(int(i) for i in repeats),
        warnings=tuple(notes),
    )


def _check_uniform(slices: Sequence[Slice]) -> None:
    """Raises VolumeError for a localizer, too few slices, or slices of different kinds."""
    first = slices[0]
    if len(slices) > 1 and any(s.frames > 1 for s in slices) and len({s.path for s in slices}) > 1:
        raise VolumeError(f"{len({s.path for s in slices})} files, some of them multi-frame; expected one such file")
    if any(s.localizer for s in slices):
        raise VolumeError("a localizer (ImageType)")
    if len(slices) < MIN_SLICES:
        raise VolumeError(f"{len(slices)} slices; expected at least {MIN_SLICES}: a localizer or an incomplete series")
    for name, values in (
        ("sizes (rows, columns)", [s.shape for s in slices]),
        ("modality", [s.modality for s in slices]),
    ):
        if len(set(values)) > 1:
            raise VolumeError(f"a mixed series: slices of different {name}: {_counts(values)}")
    if np.ptp([s.spacing for s in slices], axis=0).max() > UNEVEN * min(first.spacing):
        raise VolumeError(f"a mixed series: slices of different PixelSpacing: {_counts([s.spacing for s in slices])}")
    orientations = np.array([s.orientation for s in slices])
    if np.ptp(orientations, axis=0).max() > SAME_ORIENTATION:
        raise VolumeError(
            f"slices of {len(np.unique(orientations.round(2), axis=0))} orientations: a localizer or a mixed series"
        )
    if first.modality == "CT" and any(s.rescale is None for s in slices):
        raise VolumeError("CT without RescaleSlope and RescaleIntercept: its intensities are no Hounsfield units")


def _check_stack(positions: np.ndarray, heights: np.ndarray, normal: np.ndarray, slices: Sequence[Slice]) -> np.ndarray:
    """Returns the vector from slice to slice in mm; raises VolumeError if it is not the same for all."""
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    wide = np.flatnonzero(gaps > usual * 1.5)
    if len(wide):
        at = int(wide[0])
        lost = gaps[wide] / usual
        whole = np.abs(lost - lost.round()).max() < 0.1
        where = (
            f"between {slices[at].path.name} and {slices[at + 1].path.name} ({gaps[at]:.4g} mm; usually {usual:.4g})"
        )
        if whole:
            raise VolumeError(f"{int(lost.round().sum() - len(wide))} missing slices, the first {where}")
        raise VolumeError(f"uneven slice spacing, first {where}")
    if np.abs(gaps - usual).max() > max(UNEVEN * usual, 2e-3):
        at = int(np.abs(gaps - usual).argmax())
        raise VolumeError(
            f"uneven slice spacing, from {gaps.min():.4g} to {gaps.max():.4g} mm, most at {slices[at].path.name}"
        )
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    bend = np.linalg.norm(positions - positions[0] - np.outer(np.arange(len(positions)), step), axis=1)
    if bend.max() > max(0.05 * min(slices[0].spacing), UNEVEN * usual * len(positions) / 2, 2e-3):
        raise VolumeError(
            f"the slices do not lie in a row: {slices[int(bend.argmax())].path.name} is off by {bend.max():.3g} mm"
        )
    tilt = math.degrees(math.acos(min(1.0, float(step @ normal / np.linalg.norm(step)))))
    if tilt > TILT:
        raise VolumeError(f"gantry tilt: the stack leans by {tilt:.1f} degrees; resample it to a regular grid")
    return step


def load_series(series: Series) -> Volume:
    """Reads the voxels of a series that `scan_folder` returned, rescaled slice by slice.

    Raises:
        VolumeError: a slice cannot be decoded, two slices at one position differ, or `make_volume` refuses the voxels.
    """
    import SimpleITK as sitk

    if series.reason:
        raise VolumeError(series.reason)
    columns, rows, depth = series.shape
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")

    def read(path: Path) -> np.ndarray:
        reader.SetFileName(str(path))
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except (RuntimeError, MemoryError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise VolumeError(
                f"{path.name}: the voxels cannot be read: {lines[-1].strip() if lines else error}"
            ) from error
        if array.shape[-2:] != (rows, columns):
            raise VolumeError(f"{path.name}: {array.shape} voxels were read; expected {rows} rows, {columns} columns")
        return array

    data = np.empty((depth, rows, columns), np.float32)
    notes = list(series.warnings)
    with np.errstate(all="ignore"):
        if series.frames:
            array = read(series.files[0])
            if len(array) != depth:
                raise VolumeError(f"{len(array)} frames were read; expected {depth}")
            data[:] = array[list(series.frames)]
        else:
            k = -1
            for number, path in enumerate(series.files):
                array = read(path).reshape(rows, columns).astype(np.float32)
                if number in series.repeats:
                    if not np.array_equal(array, data[k]):
                        raise VolumeError(f"duplicate slices that differ: {path.name} lies where another slice does")
                    notes.append(f"duplicate slice dropped: {path.name}")
                    continue
                k += 1
                data[k] = array
    if series.modality == "CT":
        notes += check_hounsfield(data)
    return make_volume(data.T, np.array(series.affine), series.shape, notes)


def _counts(values: Sequence[Any]) -> str:
    return ", ".join(f"{value} ({n})" for value, n in Counter(values).most_common(3))
