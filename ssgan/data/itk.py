"""One NRRD or MetaImage file as a checked volume in RAS+ order, through SimpleITK (the extra `dicom`).

SimpleITK states geometry in LPS+ (x to the left, y to the back). It is lenient where a header is incomplete or points
elsewhere, so the text header is looked at before the native reader is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from ssgan.data.volume import (
    Volume,
    VolumeError,
    check_axes,
    check_shape,
    check_size,
    first_line,
    make_volume,
    ras_spacing,
)

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
INSTALL = "pip install 'split-shuffle-gan[dicom]'"  # or SimpleITK and pydicom
HEADER_BYTES = 1 << 16  # longer text headers are damaged ones
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NRRD_SPACES = {  # what ITK understands and turns to LPS
    "left-posterior-superior", "lps", "right-anterior-superior", "ras", "left-anterior-superior", "las",
}  # fmt: skip
COMPRESSED = ("gzip", "gz", "bzip2", "bz2", "true")


def missing_packages(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def load_itk(path: Path) -> Volume:
    """Reads and checks one file.

    Raises:
        VolumeError: as `ssgan.data.nifti.load_nifti`; also a header without spacing or with its voxels in a list of
            files or another folder.
    """
    import SimpleITK as sitk

    reader, affine, shape, warnings = _open(path)
    try:
        image = reader.Execute()
        with np.errstate(all="ignore"):
            data = sitk.GetArrayViewFromImage(image).astype(np.float32)
    except (RuntimeError, MemoryError) as error:
        raise VolumeError(f"the voxels cannot be read, the file is damaged or cut off: {_reason(error)}") from error
    if data.shape[::-1] != reader.GetSize():
        raise VolumeError(f"{data.shape[::-1]} voxels were read where the header declares {reader.GetSize()}")
    return make_volume(data.T.reshape(shape), affine, reader.GetSize(), warnings)


def header_spacing(path: Path) -> np.ndarray:
    """(x, y, z) mm of the RAS+ axes from the header alone; VolumeError as in `load_itk`."""
    return ras_spacing(_open(path)[1])


def _open(path: Path) -> tuple[Any, np.ndarray, tuple[int, int, int], list[str]]:
    """SimpleITK's reader with the header read, the RAS+ affine, the shape and what was assumed."""
    import SimpleITK as sitk

    if path.stat().st_size == 0:
        raise VolumeError("the file is empty (0 bytes)")
    kind, head = (
        ("NRRD", _nrrd_header(path)) if path.name.lower().endswith(SUFFIXES[:2]) else ("MHA", _mha_header(path))
    )
    holder = _voxel_file(path, head)
    warnings = _check_nrrd(head) if kind == "NRRD" else _check_mha(head)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if kind == "NRRD" else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"not readable as {kind}: {_reason(error)}") from error
    if reader.GetNumberOfComponents() != 1 or "vector" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise VolumeError(f"{reader.GetNumberOfComponents()} numbers per voxel (colour or vectors); expected one")
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise VolumeError("complex voxels; expected real ones: save the magnitude")
    shape, notes = check_shape(reader.GetSize())
    itemsize = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    packed = head.get("encoding", head.get("compresseddata", "")).lower() in COMPRESSED
    check_size(shape, itemsize, holder.stat().st_size, packed)
    n = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    affine = LPS_TO_RAS @ affine
    check_axes(affine)
    return reader, affine, shape, warnings + notes


def _text_lines(path: Path, end: bytes) -> list[str]:
    """The lines of a text header up to and with the line that starts with `end` (an empty line for b"")."""
    with path.open("rb") as stream:
        raw = stream.read(HEADER_BYTES)
    lines: list[str] = []
    for line in raw.split(b"\n"):
        line = line.rstrip(b"\r")
        if end == b"" and not line:
            return lines
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise VolumeError("the text header holds bytes that are no text: damaged") from None
        if end and line.startswith(end):
            return lines
    if end == b"" and len(raw) < HEADER_BYTES:
        return lines  # a detached header may end with the file
    raise VolumeError(f"the text header has no end within {min(len(raw), HEADER_BYTES)} bytes: damaged or cut off")


def _nrrd_header(path: Path) -> dict[str, str]:
    with path.open("rb") as stream:
        if stream.read(4) != b"NRRD":
            raise VolumeError("not readable as NRRD: it does not begin with NRRD")
    head: dict[str, str] = {}
    for line in _text_lines(path, b"")[1:]:
        name, colon, value = line.partition(":")
        if line.startswith("#") or not colon or value.startswith("="):  # comments and key:=value pairs
            continue
        name = name.strip().lower()
        if name in head:
            raise VolumeError(f"the header gives {name!r} twice: damaged")
        head[name] = value.strip()
    return head


def _check_nrrd(head: dict[str, str]) -> list[str]:
    missing = [name for name in ("type", "dimension", "sizes", "encoding") if name not in head]
    if missing:
        raise VolumeError(f"the header lacks {', '.join(missing)}: damaged")
    if "space directions" not in head:
        spacing = head.get("spacings", "").split()
        if not spacing or "nan" in [s.lower() for s in spacing]:
            raise VolumeError("the header has neither space directions nor spacings; the voxel size is unknown")
        return ["no orientation in the header (space directions): voxel order taken as left, back, head (LPS)"]
    space = head.get("space", "").lower()
    if space not in NRRD_SPACES:
        what = f"the space {space!r}" if space else "no space"
        raise VolumeError(f"the header has {what}; expected one of left-posterior-superior, RAS or LAS: convert it")
    units = set(head.get("space units", "").replace('"', " ").split()) - {"mm"}
    if units:
        raise VolumeError(f"space units {' '.join(sorted(units))}; expected mm: mend the header")
    return []


def _mha_header(path: Path) -> dict[str, str]:
    head: dict[str, str] = {}
    for line in _text_lines(path, b"ElementDataFile"):
        name, equals, value = line.partition("=")
        if not equals:
            raise VolumeError(f"not readable as MetaImage: {line[:40]!r} is no line of its header")
        name = name.strip().lower()
        if name in head:
            raise VolumeError(f"the header gives {name} twice: damaged")
        head[name] = value.strip()
    return head


def _check_mha(head: dict[str, str]) -> list[str]:
    missing = [name for name in ("ndims", "dimsize", "elementtype") if name not in head]
    if missing:
        raise VolumeError(f"the header lacks {', '.join(missing)}: damaged")
    if not {"elementspacing", "elementsize"} & set(head):
        raise VolumeError("the header has no ElementSpacing; the voxel size is unknown")
    if not {"transformmatrix", "rotation", "orientation"} & set(head):
        return ["no orientation in the header (TransformMatrix): voxel order taken as left, back, head (LPS)"]
    return []


def _voxel_file(path: Path, head: dict[str, str]) -> Path:
    """The file with the voxels: `path` itself, or one beside it that a detached header names."""
    name = head.get("data file", head.get("datafile", head.get("elementdatafile", "LOCAL")))
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name or len(name.split()) > 1:
        raise VolumeError(f"the voxels lie in several files ({name[:40]}); write them into one")
    if Path(name).name != name:
        raise VolumeError(f"the voxels lie in another folder ({name[:80]}); put them beside the header")
    holder = path.with_name(name)
    if not holder.is_file():
        raise VolumeError(f"the file with the voxels, {name}, is missing")
    return holder


def _reason(error: BaseException) -> str:
    """SimpleITK's message without its source places: the last line says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
