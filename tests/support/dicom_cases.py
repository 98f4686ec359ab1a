"""DICOM, NRRD and MetaImage files for tests, written byte by byte, and readers that share no code with ssgan.

The writers and readers support only what the tests need: explicit little-endian DICOM, raw or gzip NRRD and MetaImage.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

LONG = {"OB", "OW", "SQ", "UN", "UT"}
CT, MR, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2.1"


def element(tag: int, vr: str, value) -> bytes:
    """One data element; value: text, list of numbers (DS, IS joined by a backslash; US packed), bytes or items."""
    if vr == "SQ":
        body = b""
        for item in value:
            inner = dataset(item)
            body += struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    elif vr == "US":
        body = struct.pack(f"<{len(value)}H", *value)
    elif isinstance(value, bytes):
        body = value
    else:
        text = value if isinstance(value, str) else "\\".join(f"{v:.10g}" for v in value)
        body = text.encode()
        body += (b"\0" if vr == "UI" else b" ") * (len(body) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    return head + (struct.pack("<HI", 0, len(body)) if vr in LONG else struct.pack("<H", len(body))) + body


def dataset(elements: dict) -> bytes:
    return b"".join(element(tag, *elements[tag]) for tag in sorted(elements))


def write(path: Path, elements: dict, syntax: str = "1.2.840.10008.1.2.1") -> Path:
    meta = dataset(
        {0x00020001: ("OB", b"\0\1"), 0x00020002: elements[0x00080016], 0x00020003: elements[0x00080018],
         0x00020010: ("UI", syntax), 0x00020012: ("UI", "1.2.3")}
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\0" * 128 + b"DICM" + element(0x00020000, "OB", b"")[:0] + _group_length(meta) + meta + dataset(elements)
    )
    return path


def _group_length(meta: bytes) -> bytes:
    return struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta))


def slice_elements(pixels, position, *, orientation=(1, 0, 0, 0, 1, 0), spacing=(1, 1), uid="1.2.3.4", number=1,
                   rescale=None, modality="MR", change=None) -> dict:  # fmt: skip
    """Elements of one plane; pixels (rows, columns) of (u)int8 or (u)int16; `change` sets elements, None removes."""
    pixels = np.ascontiguousarray(pixels)
    bits = pixels.dtype.itemsize * 8
    elements = {
        0x00080008: ("CS", "ORIGINAL\\PRIMARY\\AXIAL"),
        0x00080016: ("UI", CT if modality == "CT" else MR),
        0x00080018: ("UI", f"{uid}.{number}"),
        0x00080060: ("CS", modality),
        0x0020000D: ("UI", "1.2.3"),
        0x0020000E: ("UI", uid),
        0x00200013: ("IS", [number]),
        0x00200032: ("DS", list(position)),
        0x00200037: ("DS", list(orientation)),
        0x00280002: ("US", [1]),
        0x00280004: ("CS", "MONOCHROME2"),
        0x00280010: ("US", [pixels.shape[0]]),
        0x00280011: ("US", [pixels.shape[1]]),
        0x00280030: ("DS", list(spacing)),
        0x00280100: ("US", [bits]),
        0x00280101: ("US", [bits]),
        0x00280102: ("US", [bits - 1]),
        0x00280103: ("US", [int(pixels.dtype.kind == "i")]),
        0x7FE00010: ("OB" if bits == 8 else "OW", _padded(pixels.tobytes())),
    }
    if rescale is not None:
        elements[0x00281052], elements[0x00281053] = ("DS", [rescale[1]]), ("DS", [rescale[0]])
    for tag, value in (change or {}).items():
        elements.pop(tag, None)
        if value is not None:
            elements[tag] = value
    return elements


def _padded(raw: bytes) -> bytes:
    return raw + b"\0" * (len(raw) % 2)


def write_series(folder: Path, voxels, affine, *, uid="1.2.3.4", modality="MR", rescale=None, names=None, suffix=".dcm",
                 changes=None) -> list[Path]:  # fmt: skip
    """A series of stored voxels (I, J, K) whose index goes by `affine` (4x4) to LPS mm. rescale: one pair, or one for
    each slice. names: file number of each slice; default an order that is not that of the slices. changes: slice ->
    elements. Gives the paths in slice order."""
    affine = np.asarray(affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    depth = voxels.shape[2]
    if names is None:
        names = [(7 * k + 3) % depth if depth % 7 else (5 * k + 3) % depth for k in range(depth)]
    paths = []
    for k in range(depth):
        one = rescale[k] if rescale is not None and isinstance(rescale[0], tuple) else rescale
        elements = slice_elements(
            voxels[:, :, k].T, affine[:3, 3] + k * affine[:3, 2],
            orientation=(*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])),
            spacing=(spacing[1], spacing[0]), uid=uid, number=k + 1, rescale=one, modality=modality,
            change=(changes or {}).get(k),
        )  # fmt: skip
        paths.append(write(folder / f"{names[k]}{suffix}", elements))
    return paths


def read_elements(raw: bytes) -> dict[int, bytes]:
    """Tag -> value bytes of a flat explicit little-endian file. Raises ValueError on anything else."""
    if raw[128:132] != b"DICM":
        raise ValueError("no magic")
    place, found = 132, {}
    while place < len(raw):
        group, number, vr = struct.unpack_from("<HH2s", raw, place)
        if vr.decode("latin1") in LONG:
            length, place = struct.unpack_from("<I", raw, place + 8)[0], place + 12
        else:
            length, place = struct.unpack_from("<H", raw, place + 6)[0], place + 8
        if place + length > len(raw):
            raise ValueError("cut off")
        found[group << 16 | number] = raw[place : place + length]
        place += length
    return found


def read_plane(raw: bytes):
    """float64 pixels (rows, columns) after rescale, position, orientation (6), spacing (rows, columns), series UID."""
    e = read_elements(raw)

    def numbers(tag, default=None):
        return [float(v) for v in e[tag].decode().strip(" \0").split("\\")] if tag in e else default

    def short(tag):
        return struct.unpack("<H", e[tag])[0]

    rows, columns, bits, signed = short(0x00280010), short(0x00280011), short(0x00280100), short(0x00280103)
    dtype = np.dtype(f"<{'i' if signed else 'u'}{bits // 8}")
    stored = np.frombuffer(e[0x7FE00010], dtype, rows * columns).reshape(rows, columns).astype(float)
    slope, intercept = numbers(0x00281053, [1.0])[0], numbers(0x00281052, [0.0])[0]
    values = stored * slope + intercept
    return values, numbers(0x00200032), numbers(0x00200037), numbers(0x00280030), e[0x0020000E].rstrip(b"\0")


def read_planes(files: list[bytes]):
    """Voxels (I, J, K) and affine to RAS mm of a whole series, sorted along the normal."""
    planes = [read_plane(raw) for raw in files]
    if len({p[4] for p in planes}) != 1:
        raise ValueError("several series")
    u, v = np.array(planes[0][2][:3]), np.array(planes[0][2][3:])
    normal = np.cross(u, v)
    planes.sort(key=lambda p: float(np.dot(p[1], normal)))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = u * planes[0][3][1], v * planes[0][3][0]
    affine[:3, 2] = (np.array(planes[-1][1]) - planes[0][1]) / (len(planes) - 1)
    affine[:3, 3] = planes[0][1]
    for p in planes:
        if not np.allclose(p[2], planes[0][2], atol=2e-3) or not np.allclose(p[3], planes[0][3], rtol=2e-2):
            raise ValueError("mixed")
    return np.stack([p[0].T for p in planes], -1), np.diag([-1, -1, 1, 1]) @ affine


def write_nrrd(path: Path, voxels, lps, *, space="left-posterior-superior", encoding="raw", endian="little", extra=(),
               drop=()) -> Path:  # fmt: skip
    """NRRD of voxels (I, J, K); `lps`: affine to the axes of `space`."""
    lps = np.asarray(lps, float)
    vectors = " ".join("(" + ",".join(f"{x:.10g}" for x in lps[:3, a]) + ")" for a in range(3))
    fields = {
        "type": {"i2": "short", "f4": "float", "u1": "uchar"}[voxels.dtype.str[1:]], "dimension": "3", "space": space,
        "sizes": " ".join(map(str, voxels.shape)), "space directions": vectors, "kinds": "domain domain domain",
        "endian": endian, "encoding": encoding, "space origin": "(" + ",".join(f"{x:.10g}" for x in lps[:3, 3]) + ")",
    }  # fmt: skip
    lines = ["NRRD0004", *(f"{k}: {v}" for k, v in fields.items() if k not in drop), *extra]
    body = voxels.astype(voxels.dtype.newbyteorder("<" if endian == "little" else ">")).tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        "\n".join(lines).encode() + b"\n\n" + (gzip.compress(body, 1, mtime=0) if encoding == "gzip" else body)
    )
    return path


def write_mha(path: Path, voxels, lps, *, compressed=False, big=False, drop=(), extra=()) -> Path:
    """MetaImage of voxels (I, J, K) in one file."""
    lps = np.asarray(lps, float)
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    body = voxels.astype(voxels.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    body = zlib.compress(body, 1) if compressed else body
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": str(big),
        "CompressedData": str(compressed), **({"CompressedDataSize": str(len(body))} if compressed else {}),
        "TransformMatrix": " ".join(f"{x:.10g}" for x in (lps[:3, :3] / spacing).T.ravel()),
        "Offset": " ".join(f"{x:.10g}" for x in lps[:3, 3]), "ElementSpacing": " ".join(f"{x:.10g}" for x in spacing),
        "DimSize": " ".join(map(str, voxels.shape)),
        "ElementType": {"i2": "MET_SHORT", "f4": "MET_FLOAT", "u1": "MET_UCHAR"}[voxels.dtype.str[1:]],
    }  # fmt: skip
    lines = [f"{k} = {v}" for k, v in fields.items() if k not in drop]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([*lines, *extra, "ElementDataFile = LOCAL"]).encode() + b"\n" + body)
    return path


def read_nrrd(raw: bytes):
    """Voxels and RAS affine of a file as `write_nrrd` makes it."""
    head, _, body = raw.partition(b"\n\n")
    lines = head.decode("ascii").split("\n")
    if not lines[0].startswith("NRRD000"):
        raise ValueError("magic")
    fields = dict(line.split(": ", 1) for line in lines[1:] if not line.startswith("#") and ":=" not in line)
    shape = tuple(int(n) for n in fields["sizes"].split())
    dtype = np.dtype({"short": "i2", "float": "f4", "uchar": "u1"}[fields["type"]])
    dtype = dtype.newbyteorder({"little": "<", "big": ">"}[fields["endian"]])
    body = gzip.decompress(body) if fields["encoding"] in ("gzip", "gz") else body
    voxels = np.frombuffer(body, dtype, int(np.prod(shape))).reshape(shape, order="F").astype(float)
    affine = np.eye(4)
    vectors = [[float(x) for x in v.strip("()").split(",")] for v in fields["space directions"].split()]
    affine[:3, :3] = np.array(vectors).T
    affine[:3, 3] = [float(x) for x in fields.get("space origin", "(0,0,0)").strip("()").split(",")]
    signs = {"left-posterior-superior": (-1, -1), "right-anterior-superior": (1, 1), "left-anterior-superior": (-1, 1)}
    return voxels, np.diag([*signs[fields["space"]], 1, 1]) @ affine


def read_mha(raw: bytes):
    """Voxels and RAS affine of a file as `write_mha` makes it."""
    head, _, body = raw.partition(b"ElementDataFile = LOCAL\n")
    fields = dict(line.split(" = ", 1) for line in head.decode("ascii").strip("\n").split("\n"))
    shape = tuple(int(n) for n in fields["DimSize"].split())
    dtype = np.dtype({"MET_SHORT": "i2", "MET_FLOAT": "f4", "MET_UCHAR": "u1"}[fields["ElementType"]])
    dtype = dtype.newbyteorder(">" if fields["BinaryDataByteOrderMSB"] == "True" else "<")
    body = zlib.decompress(body) if fields["CompressedData"] == "True" else body
    voxels = np.frombuffer(body, dtype, int(np.prod(shape))).reshape(shape, order="F").astype(float)
    affine = np.eye(4)
    turn = np.array([float(x) for x in fields.get("TransformMatrix", "1 0 0 0 1 0 0 0 1").split()]).reshape(3, 3).T
    affine[:3, :3] = turn * [float(x) for x in fields["ElementSpacing"].split()]
    affine[:3, 3] = [float(x) for x in fields.get("Offset", "0 0 0").split()]
    return voxels, np.diag([-1, -1, 1, 1]) @ affine


def read_nifti(raw: bytes):
    """Voxels and RAS affine of a single-file NIfTI-1 of either byte order, from its sform, or its qform, or neither."""
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    order = "<" if struct.unpack_from("<i", raw)[0] == 348 else ">"

    def field(kind, place):
        found = struct.unpack_from(order + kind, raw, place)
        return found if len(found) > 1 else found[0]

    if field("i", 0) != 348 or raw[344:348] != b"n+1\0":
        raise ValueError("magic")
    dims = field("8h", 40)
    shape = dims[1 : 1 + dims[0]]
    if not 3 <= dims[0] <= 7 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise ValueError("shape")
    kinds = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
    voxels = np.frombuffer(raw, order + kinds[field("h", 70)], int(np.prod(shape[:3])), int(field("f", 108)))
    voxels = voxels.reshape(shape[:3], order="F").astype(float)
    slope, intercept = field("f", 112), field("f", 116)
    if np.isfinite(slope) and slope != 0:
        if not np.isfinite(intercept):
            raise ValueError("intercept")
        voxels = voxels * slope + intercept
    if field("h", 254) > 0:
        return voxels, np.vstack([np.array(field("12f", 280)).reshape(3, 4), [0, 0, 0, 1]])
    pixdim = field("8f", 76)
    affine = np.eye(4)
    if field("h", 252) > 0:
        b, c, d = field("3f", 256)
        if b * b + c * c + d * d > 1 + 1e-5:
            raise ValueError("quaternion")
        a = np.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
        turn = np.array(
            [[a * a + b * b - c * c - d * d, 2 * b * c - 2 * a * d, 2 * b * d + 2 * a * c],
             [2 * b * c + 2 * a * d, a * a + c * c - b * b - d * d, 2 * c * d - 2 * a * b],
             [2 * b * d - 2 * a * c, 2 * c * d + 2 * a * b, a * a + d * d - c * c - b * b]]
        )  # fmt: skip
        affine[:3, :3] = turn * [pixdim[1], pixdim[2], pixdim[3] * (-1 if pixdim[0] < 0 else 1)]
        affine[:3, 3] = field("3f", 268)
        return voxels, affine
    affine[:3, :3] = np.diag([-pixdim[1], pixdim[2], pixdim[3]])  # as nibabel does: LAS about the middle voxel
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    return voxels, affine


def same_volume(volume, voxels, affine, tolerance=1e-4) -> bool:
    """Whether a Volume of ssgan has these voxels (I, J, K) at these RAS places, whatever its axes' order."""
    voxels = np.asarray(voxels, dtype=np.float64)
    if volume.data.size != voxels.size:
        return False
    index = np.stack(np.meshgrid(*(np.arange(n) for n in voxels.shape), indexing="ij"), -1).reshape(-1, 3)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    inverse = np.linalg.inv(volume.affine)
    found = world @ inverse[:3, :3].T + inverse[:3, 3]
    near = np.round(found).astype(int)
    if np.abs(found - near).max() > 0.02 or near.min() < 0 or (near >= volume.data.shape).any():
        return False
    mine, wanted = volume.data[tuple(near.T)].astype(np.float64), voxels.reshape(-1)
    return bool(np.allclose(mine, wanted.astype(np.float32), rtol=tolerance, atol=1e-30))
