"""DICOM series as checked volumes: split by SeriesInstanceUID, sorted by geometry, every defect named.

Headers are read by pydicom (pure Python: a damaged one cannot crash it), voxels by SimpleITK (GDCM), one slice at a
time, so that each slice's own rescale slope and intercept apply. Both come with the extra `dicom`. Geometry follows
DICOM PS3.3 C.7.6.2 (image plane): column i, row j of a slice lie at position + i * spacing[1] * orientation[:3] +
j * spacing[0] * orientation[3:], in mm, LPS+.
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
from ssgan.data.volume import MAX_VOXELS, Volume, VolumeError, check_axes, first_line, make_volume

SUFFIXES = (".dcm", ".dicom", ".ima")
MIN_SLICES = 4  # fewer are a localizer or a test shot
SAME_PLACE = 1e-3  # mm along the normal within which two slices have one position
UNEVEN = 0.01  # of the slice spacing: scanners round positions to fewer digits than that
TILT = 0.5  # degrees between the stack and the slices' normal; less is rounding
SAME_TURN = 1e-3  # largest difference of a direction cosine within a series
UNCOMPRESSED = {  # transfer syntax UID -> byte order, whether a VR follows each tag
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
    """One image plane of a file. position, orientation, spacing: see above. rescale: slope and intercept or None."""

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
    rescale: tuple[float, float] | None
    frames: int
    expected: int  # images in the acquisition, 0 where the file does not say


@dataclass(frozen=True)
class Series:
    """What a folder holds under one SeriesInstanceUID.

    files: in slice order, one file alone for a multi-frame image. frames: order of its frames, () otherwise. affine:
    (I, J, K) to RAS+ mm. repeats: (place, place before it) in files of slices at one position. reason: why it is no
    volume, or "".
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
    """The series among the files of one folder, in the order of their UIDs, and the files that belong to none.

    Damage to any file is laid to every series beside it: a slice of theirs may be lost.
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
        plain = Series(uid, tuple(sorted({s.path for s in group})), first.modality, first.description)
        try:
            if damaged:
                path, why = damaged[0]
                raise VolumeError(f"a slice may be missing: {path.name} beside it is damaged ({why})")
            series.append(arrange(plain, group))
        except VolumeError as reason:
            series.append(replace(plain, reason=str(reason)))
    series = [_with_strays(one, slices) for one in series]
    return series, outside + damaged


def _with_strays(series: Series, slices: dict[str, list[Slice]]) -> Series:
    """`series`, or refused where the next slice of its grid goes under another UID, alone: its UID is damaged."""
    if series.reason or series.frames:
        return series
    affine = LPS_TO_RAS @ np.array(series.affine)
    for uid, others in slices.items():
        if uid == series.uid or len(others) >= MIN_SLICES:
            continue
        for other in others:
            place = np.linalg.solve(affine[:3, :3], np.array(other.position) - affine[:3, 3])
            along = min(abs(place[2] + 1), abs(place[2] - series.shape[2]))
            if other.shape == (series.shape[1], series.shape[0]) and np.abs([place[0], place[1], along]).max() < 0.1:
                why = f"{other.path.name} continues it under another SeriesInstanceUID: damaged or mixed"
                return replace(series, reason=why)
    return series


class NotAnImage(VolumeError):
    """A DICOM file without a picture: a report, a plan, an index."""


def read_header(path: Path) -> list[Slice]:
    """The planes of one file, several for a multi-frame image.

    Raises:
        NotAnImage: it has no picture. VolumeError: damaged, cut off, in colour, or without position or spacing.
    """
    import pydicom

    size = path.stat().st_size
    if size == 0:
        raise VolumeError("the file is empty (0 bytes)")
    try:
        with path.open("rb") as stream, python_warnings.catch_warnings():
            python_warnings.simplefilter("ignore")  # on odd values in fields that nothing here reads
            head = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=TAGS)
            place = stream.tell()  # of the pixel data's element
            return _slices(path, head, stream, size - place)
    except VolumeError:
        raise
    except Exception as error:  # pydicom lets a damaged file raise almost anything
        raise VolumeError(f"not readable as DICOM: {type(error).__name__}: {first_line(error)}") from error


def _slices(path: Path, head: Any, stream: BinaryIO, left: int) -> list[Slice]:
    uid = str(head.get("SeriesInstanceUID") or "")
    if "Rows" not in head or "Columns" not in head:
        kind = getattr(head.get("SOPClassUID"), "name", "")
        if not kind or kind == str(head.SOPClassUID) or "Image" in kind:  # an unknown UID has no name but itself
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
    _check_pixels(head, rows * columns * frames * bits // 8, stream, left)
    common = {
        "path": path,
        "series": uid,
        "modality": str(head.get("Modality") or ""),
        "description": str(head.get("SeriesDescription") or ""),
        "localizer": "LOCALIZER" in [str(v).upper() for v in _several(head.get("ImageType"))],
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
    """The items of the functional groups that hold geometry and rescale, a frame's own before the shared ones."""
    names = (
        "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )  # fmt: skip
    return [group[name].value[0] for group in groups for name in names if name in group and group[name].value]


def _plane(sources: Sequence[Any]) -> dict[str, Any]:
    """position, orientation, spacing, rescale from the first of `sources` that has each."""

    def numbers(name: str, count: int) -> tuple[float, ...]:
        item = next((s for s in sources if name in s), None)
        values = tuple(float(v) for v in _several(None if item is None else item.get(name)))
        if len(values) != count or not all(math.isfinite(v) for v in values):
            raise VolumeError(f"{name}: expected {count} numbers; got {list(values) if values else 'none'}")
        return values

    has_slope = [any(name in s for s in sources) for name in ("RescaleSlope", "RescaleIntercept")]
    if has_slope[0] != has_slope[1]:
        raise VolumeError("only one of RescaleSlope and RescaleIntercept is there: damaged")
    rescale = (*numbers("RescaleSlope", 1), *numbers("RescaleIntercept", 1)) if has_slope[0] else None
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


def _several(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if not isinstance(value, (str, float, int)) and hasattr(value, "__iter__") else [value]


def _check_pixels(head: Any, expected: int, stream: BinaryIO, left: int) -> None:
    """Refuses pixel data that are absent, shorter than declared, or of another length than rows and columns need.

    `left`: bytes of the stream from here on. GDCM hangs on some rubbish after the pixel data, so that is refused too.
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
    start = 12 if explicit else 8
    tail = stream.read(start)
    if tail[:4] != tag or len(tail) < start:
        raise VolumeError("no pixel data after the header: damaged or cut off")
    declared = int.from_bytes(tail[start - 4 : start], order)  # type: ignore[arg-type]
    if declared not in (expected, expected + expected % 2):
        raise VolumeError(f"{declared} bytes of pixel data; rows, columns and bits need {expected}: damaged")
    if left - start < declared:
        raise VolumeError(f"{left - start} of {declared} bytes of pixel data are there: cut off")
    rest = left - start - declared
    stream.seek(declared, 1)
    head_of_rest = stream.read(start)
    known = (bytes.fromhex(tag) for tag in ("fcfffcff", "fafffaff", "fffcfffc", "fffafffa"))  # padding, signatures
    if rest and not (head_of_rest[:4] in known and int.from_bytes(head_of_rest[start - 4 :], order) <= rest - start):  # type: ignore[arg-type]
        raise VolumeError(f"{rest} bytes after the pixel data that are no element: damaged, perhaps shifted")


def arrange(series: Series, slices: Sequence[Slice]) -> Series:
    """Sorts slices along their normal and checks that they fill a regular grid.

    Raises:
        VolumeError: localizer, too few slices, different sizes, spacings or orientations, several images at each
            position, missing slices, uneven spacing, gantry tilt, slices that are shifted in their plane.
    """
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
    turns = np.array([s.orientation for s in slices])
    if np.ptp(turns, axis=0).max() > SAME_TURN:
        raise VolumeError(
            f"slices of {len(np.unique(turns.round(2), axis=0))} orientations: a localizer or a mixed series"
        )
    if first.modality == "CT" and any(s.rescale is None for s in slices):
        raise VolumeError("CT without RescaleSlope and RescaleIntercept: its intensities are no Hounsfield units")
    u, v = turns[0, :3], turns[0, 3:]
    normal = np.cross(u, v)
    normal /= np.linalg.norm(normal)
    heights = np.array([s.position for s in slices]) @ normal
    order = sorted(range(len(slices)), key=lambda i: (heights[i], slices[i].path.name, slices[i].frame))
    slices, heights = [slices[i] for i in order], heights[order]
    repeats = np.flatnonzero(np.diff(heights) < SAME_PLACE) + 1
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
    check_axes(affine, "mend PixelSpacing or ImagePositionPatient")
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


def _check_stack(positions: np.ndarray, heights: np.ndarray, normal: np.ndarray, slices: Sequence[Slice]) -> np.ndarray:
    """The step from slice to slice in mm; VolumeError where one does not fit all."""
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
    """Reads the voxels of a series that `scan_folder` has arranged, rescaled slice by slice.

    Raises:
        VolumeError: a slice cannot be decoded, two slices at one position differ, or the voxels are none of a volume.
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
            place = -1
            for number, path in enumerate(series.files):
                array = read(path).reshape(rows, columns).astype(np.float32)
                if number in series.repeats:
                    if not np.array_equal(array, data[place]):
                        raise VolumeError(f"duplicate slices that differ: {path.name} lies where another slice does")
                    notes.append(f"duplicate slice dropped: {path.name}")
                    continue
                place += 1
                data[place] = array
    return make_volume(data.T, np.array(series.affine), series.shape, notes)


def _counts(values: Sequence[Any]) -> str:
    return ", ".join(f"{value} ({n})" for value, n in Counter(values).most_common(3))
