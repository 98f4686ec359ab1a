"""Reads one NRRD or MetaImage file as a checked volume in RAS+ order, by SimpleITK (the extra `dicom`).

SimpleITK gives geometry in LPS+ (x to the left, y to the back). It accepts headers that are incomplete or point to
other files, so the text header is checked here before the native reader opens the file.
"""

from __future__ import annotations

import importlib.util
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
INSTALL = "pip install 'split-shuffle-gan[dicom]'"  # or SimpleITK and pydicom
HEADER_BYTES = 1 << 16  # a longer text header is damaged
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
NRRD_SPACES = {  # spaces that ITK accepts -> signs of x and y that convert them to RAS
    "left-posterior-superior": (-1.0, -1.0),
    "lps": (-1.0, -1.0),
    "right-anterior-superior": (1.0, 1.0),
    "ras": (1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0),
    "las": (-1.0, 1.0),
}
NRRD_FIELDS = {  # of the format's definition (teem, NRRD0005); any other name is damaged
    "type", "dimension", "sizes", "block size", "blocksize", "endian", "encoding", "content", "min", "max", "old min",
    "oldmin", "old max", "oldmax", "data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip",
    "sample units", "sampleunits", "spacings", "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs",
    "centerings", "centers", "labels", "units", "kinds", "number", "space", "space dimension", "space units",
    "space origin", "space directions", "measurement frame",
}  # fmt: skip
MHA_NAMES = (  # of ITK's MetaIO, which is case-sensitive
    "Comment ObjectType ObjectSubType TransformType NDims Name ID ParentID Color AcquisitionDate BinaryData "
    "ElementByteOrderMSB BinaryDataByteOrderMSB CompressedData CompressionType CompressionLevel CompressedDataSize "
    "TransformMatrix Rotation Orientation Offset Position Origin CenterOfRotation AnatomicalOrientation ElementSpacing "
    "ElementSize DimSize HeaderSize Modality SequenceID ElementMin ElementMax ElementNumberOfChannels ElementType "
    "ElementToIntensityFunctionSlope ElementToIntensityFunctionOffset DistanceUnits IntensityUnits ElementDataFile"
).split()
MHA_FIELDS = {name.lower(): name for name in MHA_NAMES}
MHA_REQUIRED = (  # fields, each under one of several names, that a header with unknown fields must have
    ("transformmatrix", "rotation", "orientation"),
    ("offset", "position", "origin"),
    ("binarydatabyteordermsb", "elementbyteordermsb"),
    ("compresseddata",),
)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def missing_packages(*names: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def load_itk(path: Path) -> Volume:
    """Reads and checks one file.

    Raises:
        VolumeError: as `ssgan.data.nifti.load_nifti`; also for unknown or repeated header fields, no spacing, voxels in
            several files or in another folder, and voxels of another length than the header declares.
    """
    stored = read_itk(path)
    return make_volume(stored.data, stored.affine, stored.shape, stored.warnings)


def read_itk(path: Path) -> StoredVolume:
    """Reads one file whose voxels may be anything; raises VolumeError as `load_itk` for all else."""
    import SimpleITK as sitk

    reader, header, shape, itemsize = _open(path)
    _check_voxel_bytes(header, math.prod(shape) * itemsize)
    try:
        image = reader.Execute()
        with np.errstate(all="ignore"):
            data = sitk.GetArrayViewFromImage(image).astype(np.float32)
    except (RuntimeError, MemoryError) as error:
        raise VolumeError(f"the voxels cannot be read, the file is damaged or cut off: {_reason(error)}") from error
    return StoredVolume(data.T.reshape(shape), header.affine, reader.GetSize(), header.warnings)


def header_spacing(path: Path) -> np.ndarray:
    """Reads the spacing (x, y, z) in mm of the RAS+ axes from the header; raises VolumeError as `load_itk` does."""
    return ras_spacing(_open(path)[1].affine)


@dataclass(frozen=True)
class _Header:
    """The content of a text header."""

    size: tuple[int, ...]  # voxels along each axis
    affine: np.ndarray  # 4x4, to RAS+ in mm
    voxel_file: Path
    offset: int  # of the voxels in voxel_file, in bytes
    compressed: str  # "", "gzip" or "zlib"
    warnings: list[str]


def _open(path: Path) -> tuple[Any, _Header, tuple[int, int, int], int]:
    """Opens a file; returns SimpleITK's reader, the header, the shape and the bytes of a voxel.

    Raises:
        VolumeError: the header is damaged, or SimpleITK reads another size or geometry from it than this module.
    """
    import SimpleITK as sitk

    check_file(path)
    nrrd = path.name.lower().endswith(SUFFIXES[:2])
    kind = "NRRD" if nrrd else "MetaImage"
    header = (_nrrd_header if nrrd else _mha_header)(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise VolumeError(f"not readable as {kind}: {_reason(error)}") from error
    pixel = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if reader.GetNumberOfComponents() != 1 or "vector" in pixel:
        raise VolumeError(f"{reader.GetNumberOfComponents()} numbers per voxel (colour or vectors); expected one")
    if "complex" in pixel:
        raise VolumeError("complex voxels; expected real ones: save the magnitude")
    if reader.GetSize() != header.size:
        raise VolumeError(f"SimpleITK reads the size {reader.GetSize()} from a header that says {header.size}: damaged")
    shape, notes = check_shape(header.size)
    header.warnings.extend(notes)
    itemsize = sitk.Image([1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
    check_size(shape, itemsize, header.voxel_file.stat().st_size, bool(header.compressed))
    check_axes(header.affine)
    n = reader.GetDimension()
    theirs = np.eye(4)
    theirs[:3, :3] = np.array(reader.GetDirection()).reshape(n, n)[:3, :3] * np.array(reader.GetSpacing()[:3])
    theirs[:3, 3] = reader.GetOrigin()[:3]
    if not np.allclose(LPS_TO_RAS @ theirs, header.affine, rtol=1e-4, atol=1e-4 * ras_spacing(header.affine).min()):
        raise VolumeError("SimpleITK reads another geometry than the header says: damaged, or not at right angles")
    return reader, header, shape, itemsize


def _check_voxel_bytes(header: _Header, expected: int) -> None:
    """Raises VolumeError for voxels of the wrong length or checksum, both of which SimpleITK ignores."""
    if not header.compressed:
        found = header.voxel_file.stat().st_size - header.offset
    else:
        found = 0
        try:
            with header.voxel_file.open("rb") as stream:
                stream.seek(header.offset)
                member = zlib.decompressobj(wbits=31 if header.compressed == "gzip" else 15)
                while not member.eof:
                    chunk = stream.read(1 << 16)
                    if not chunk:
                        raise VolumeError("the voxels cannot be read: the compressed stream ends early")
                    found += len(member.decompress(chunk))
                    if found > expected:
                        break
        except zlib.error as error:
            raise VolumeError(f"the voxels cannot be read, the file is damaged: {first_line(error)}") from error
    if found != expected:
        raise VolumeError(f"{found} bytes of voxels where the header declares {expected}: damaged or cut off")


def _text_lines(path: Path, end: bytes) -> tuple[list[str], int]:
    """Reads the lines of a text header, and the offset in bytes of what follows it.

    The last line is the one that starts with `end`, or for b"" the one before an empty line.
    """
    with path.open("rb") as stream:
        raw = stream.read(HEADER_BYTES)
    lines: list[str] = []
    offset = 0
    for line in raw.split(b"\n"):
        offset += len(line) + 1
        line = line.rstrip(b"\r")
        if end == b"" and not line:
            return lines, offset
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise VolumeError("the text header holds bytes that are no text: damaged") from None
        if any(byte < 32 and byte != 9 for byte in line):
            raise VolumeError("the text header holds bytes that are no text: damaged")
        if end and line.startswith(end):
            return lines, offset
    if end == b"" and len(raw) < HEADER_BYTES:
        return lines, offset  # a detached header may end with the file
    raise VolumeError(f"the text header has no end within {min(len(raw), HEADER_BYTES)} bytes: damaged or cut off")


def _fields(lines: Sequence[str], mark: str, kind: str) -> dict[str, str]:
    """Parses header lines into lower-case names and values.

    Raises:
        VolumeError: a line without the separator `mark`, or a repeated field.
    """
    head: dict[str, str] = {}
    for line in lines:
        name, separator, value = line.partition(mark)
        if not separator:
            raise VolumeError(f"not readable as {kind}: {line[:40]!r} is no line of its header")
        name = name.strip()
        if kind == "MetaImage" and MHA_FIELDS.get(name.lower(), name) != name:
            raise VolumeError(f"the header has the field {name}, not {MHA_FIELDS[name.lower()]}: damaged")
        name = name.lower()
        if name in head:
            raise VolumeError(f"the header gives {name!r} twice: damaged")
        head[name] = value.strip()
    return head


def _numbers(name: str, text: str, count: int) -> list[float]:
    words = text.split()
    if len(words) != count or not all(NUMBER.fullmatch(word) for word in words):
        raise VolumeError(f"{name}: expected {count} numbers; got {text[:60]!r}")
    return [float(word) for word in words]


def _size(name: str, text: str, axes: str) -> tuple[int, ...]:
    if not (axes.isascii() and axes.isdigit() and 1 <= int(axes) <= 16):
        raise VolumeError(f"{axes!r} axes; expected a small whole number: damaged")
    size = _numbers(name, text, int(axes))
    if not all(n.is_integer() and 0 < n < 2**31 for n in size):
        raise VolumeError(f"{name}: expected whole numbers above 0; got {text[:60]!r}")
    return tuple(int(n) for n in size)


def _one_of(name: str, value: str, choices: Sequence[str]) -> str:
    if value.lower() not in choices:
        raise VolumeError(f"{name} {value[:40]!r}; expected one of {', '.join(choices)}")
    return value.lower()


def _require(head: dict[str, str], *names: str) -> None:
    missing = [name for name in names if name not in head]
    if missing:
        raise VolumeError(f"the header lacks {', '.join(missing)}: damaged")


def _nrrd_header(path: Path) -> _Header:
    with path.open("rb") as stream:
        if stream.read(7) != b"NRRD000":
            raise VolumeError("not readable as NRRD: it does not begin with NRRD000")
    lines, end = _text_lines(path, b"")
    lines = [line for line in lines[1:] if not line.startswith("#") and ":=" not in line]  # comments, key:=value pairs
    head = _fields(lines, ":", "NRRD")
    unknown = sorted(set(head) - NRRD_FIELDS)
    if unknown:
        raise VolumeError(f"the header has an unknown field {unknown[0][:40]!r}: damaged")
    _require(head, "type", "dimension", "sizes", "encoding")
    encoding = _one_of("encoding", head["encoding"], ("raw", "gzip", "gz"))
    _one_of("endian", head.get("endian", "little"), ("little", "big"))
    for name in ("line skip", "lineskip", "byte skip", "byteskip"):
        if head.get(name, "0") != "0":
            raise VolumeError(f"{name} {head[name]}: expected voxels that follow the header, or a file of voxels alone")
    for name in ("space units", "units"):
        units = set(head.get(name, "").replace('"', " ").split()) - {"mm", "none", "???"}
        if units:
            raise VolumeError(f"{name} {' '.join(sorted(units))}; expected mm: correct the header")
    size = _size("sizes", head["sizes"], head["dimension"])
    warnings, affine = [], np.eye(4)
    if "space directions" in head:
        space = head.get("space", "").lower()
        if space not in NRRD_SPACES:
            what = f"the space {space!r}" if space else "no space"
            raise VolumeError(f"the header has {what}; expected one of left-posterior-superior, RAS or LAS: convert it")
        vectors = re.findall(r"\(([^()]*)\)", head["space directions"])
        if len(vectors) != 3 or re.sub(r"\([^()]*\)|none|\s", "", head["space directions"]):
            raise VolumeError(f"space directions: expected three vectors; got {head['space directions'][:80]!r}")
        columns = [_numbers("space directions", v.replace(",", " "), 3) for v in vectors]
        affine[:3, :3] = np.array(columns).T
        if "space origin" not in head:
            warnings.append("no position in the header (space origin): taken as 0")
        origin = head.get("space origin", "(0,0,0)")
        if not (origin.startswith("(") and origin.endswith(")")):
            raise VolumeError(f"space origin: expected a vector; got {origin[:60]!r}")
        affine[:3, 3] = _numbers("space origin", origin[1:-1].replace(",", " "), 3)
        affine = np.diag([*NRRD_SPACES[space], 1.0, 1.0]) @ affine
    else:
        if "spacings" not in head:
            raise VolumeError("the header has neither space directions nor spacings; the voxel size is unknown")
        warnings.append("no orientation in the header (space directions): voxel order taken as left, back, head (LPS)")
        affine[:3, :3] = np.diag([*_numbers("spacings", head["spacings"], len(size)), 1.0, 1.0, 1.0][:3])
        affine = LPS_TO_RAS @ affine
    voxel_file = _voxel_file(path, head.get("data file", head.get("datafile", "LOCAL")))
    compressed = "gzip" if encoding != "raw" else ""
    return _Header(size, affine, voxel_file, end if voxel_file == path else 0, compressed, warnings)


def _mha_header(path: Path) -> _Header:
    lines, end = _text_lines(path, b"ElementDataFile")
    head = _fields([line for line in lines if line.strip()], "=", "MetaImage")
    _require(head, "ndims", "dimsize", "elementtype")
    if head["elementtype"].upper() not in ("MET_UCHAR", "MET_CHAR") and not set(MHA_REQUIRED[2]) & set(head):
        raise VolumeError("the header has no BinaryDataByteOrderMSB; the byte order is unknown")
    # An unknown field may come from ITK's dictionary, or may be the damaged name of a field that is missing.
    unknown = sorted(set(head) - set(MHA_FIELDS))
    missing = [names[0] for names in MHA_REQUIRED if not set(names) & set(head)]
    if unknown and missing:
        raise VolumeError(f"the header has an unknown field {unknown[0][:40]!r} and no {missing[0]}: damaged")
    flags = ("true", "false")
    compressed = _one_of("CompressedData", head.get("compresseddata", "False"), flags) == "true"
    for name in ("elementbyteordermsb", "binarydatabyteordermsb"):
        _one_of(name, head.get(name, "False"), flags)
    if _one_of("BinaryData", head.get("binarydata", "True"), flags) == "false":
        raise VolumeError("voxels as text (BinaryData = False); expected binary ones")
    if head.get("headersize", "0") != "0":
        raise VolumeError(f"HeaderSize {head['headersize']}: expected voxels that follow the header, or a file of them")
    if head.get("distanceunits", "mm").lower() not in ("mm", "?"):
        raise VolumeError(f"DistanceUnits {head['distanceunits']}; expected mm")
    size = _size("DimSize", head["dimsize"], head["ndims"])
    spacing = head.get("elementspacing", head.get("elementsize"))
    if spacing is None:
        raise VolumeError("the header has no ElementSpacing; the voxel size is unknown")
    n = len(size)
    matrices = [head[name] for name in ("transformmatrix", "rotation", "orientation") if name in head]
    offsets = [head[name] for name in ("offset", "position", "origin") if name in head]
    if len(matrices) > 1 or len(offsets) > 1:
        raise VolumeError("the header gives the orientation or the position under two names: damaged")
    warnings, affine = [], np.eye(max(n, 3) + 1)
    if matrices:
        affine[:n, :n] = np.array(_numbers("TransformMatrix", matrices[0], n * n)).reshape(n, n).T
    else:
        warnings.append("no orientation in the header (TransformMatrix): voxel order taken as left, back, head (LPS)")
    affine[:n, :n] *= _numbers("ElementSpacing", spacing, n)
    if offsets:
        affine[:n, -1] = _numbers("Offset", offsets[0], n)
    else:
        warnings.append("no position in the header (Offset): taken as 0")
    kept = [0, 1, 2, -1]  # of an affine of more axes
    voxel_file = _voxel_file(path, head["elementdatafile"])
    offset = end if voxel_file == path else 0
    length = voxel_file.stat().st_size - offset
    declared = head.get("compresseddatasize", "missing")[:40]
    if compressed and declared != str(length):  # MetaIO returns uninitialised memory if decompression fails
        raise VolumeError(f"CompressedDataSize is {declared}, but {length} bytes are there: damaged")
    affine = LPS_TO_RAS @ affine[np.ix_(kept, kept)]
    return _Header(size, affine, voxel_file, offset, "zlib" if compressed else "", warnings)


def _voxel_file(path: Path, name: str) -> Path:
    """The file with the voxels: `path` itself, or the file beside it that a detached header names."""
    if name.upper() == "LOCAL":
        return path
    if name.upper().startswith("LIST") or "%" in name or len(name.split()) > 1:
        raise VolumeError(f"the voxels lie in several files ({name[:40]}); write them into one")
    if not name or Path(name).name != name:
        raise VolumeError(f"the voxels lie in another folder ({name[:80]}); put them beside the header")
    voxel_file = path.with_name(name)
    if not voxel_file.is_file():
        raise VolumeError(f"the file with the voxels, {name}, is missing")
    return voxel_file


def _reason(error: BaseException) -> str:
    """The last line of SimpleITK's message, which says what was wrong; the others name places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)
