"""NIfTI files for the tests of the data preparation: good and bad ones."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import nibabel
import numpy as np

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = (20, 19, 22)  # X, Y, Z: cropped, padded and cropped by 16 24 16
ARGUMENTS = ["--shape", "16", "24", "16"]
HEADER = 352  # bytes of a single-file NIfTI-1 header with its four extension bytes


def voxels(seed: int = 0, shape=SHAPE) -> np.ndarray:
    """Positive noise with a smooth part and a background of zero in one corner; int16."""
    rng = np.random.default_rng(seed)
    i, j, k, *_ = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    data = 300 + 20 * i + 10 * j - 8 * k + rng.normal(0, 40, shape)
    data[: shape[0] // 2, : shape[1] // 2] = 0
    return data.round().astype(np.int16)


def save(path: Path, data: np.ndarray, affine=None, **header) -> Path:
    """Writes a NIfTI-1 file; `header` sets header fields, as they are, after nibabel has filled it."""
    image = nibabel.Nifti1Image(data, np.diag([1.0, 1.0, 1.0, 1.0]) if affine is None else np.asarray(affine, float))
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)
    return path


def good(path: Path, seed: int = 0) -> Path:
    return save(path, voxels(seed))


def patch(path: Path, offset: int, data: bytes) -> Path:
    """Overwrites bytes of a .nii or, before compression, of a .nii.gz."""
    raw = path.read_bytes()
    whole = bytearray(gzip.decompress(raw) if path.name.endswith(".gz") else raw)
    whole[offset : offset + len(data)] = data
    path.write_bytes(gzip.compress(bytes(whole), 1) if path.name.endswith(".gz") else bytes(whole))
    return path


def with_sform(path: Path, affine) -> Path:
    """Writes `affine` into the header unchecked; nibabel's own setters refuse some."""
    good(path)
    rows = np.asarray(affine, "<f4")[:3]
    patch(path, 252, np.array([0, 1], "<i2").tobytes())  # qform_code, sform_code
    return patch(path, 280, rows.tobytes())


def snapshot(folder: Path) -> dict[str, str]:
    """Every path below `folder` with a hash of its contents."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }
