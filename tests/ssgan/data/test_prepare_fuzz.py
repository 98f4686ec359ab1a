"""Damaged files by the thousand: each is refused with a reason, or is the volume that an independent reader sees.

2,100 seeded mutants of NIfTI, NRRD, MetaImage and DICOM go through what a worker of `prepare` does with a file, each
under a time limit. SSGAN_FUZZ=20000 makes that many.
"""

import gzip
import os
import shutil
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ssgan import prepare
from ssgan.data.dataset import VolumeDataset
from ssgan.data.volume import Failure
from ssgan.data.workers import run_in_order
from tests.support import dicom_cases as cases
from tests.support import fuzz_reader
from tests.support.nifti_cases import save

pytest.importorskip("SimpleITK", reason="DICOM, NRRD and MetaImage need the extra `dicom`")
pytest.importorskip("pydicom", reason="DICOM needs the extra `dicom`")

COUNT = int(os.environ.get("SSGAN_FUZZ", 2100))
LIMIT = 30.0  # seconds for one file; a usual one takes 5 ms, and the machine may be busy
SHAPE = (6, 7, 5)
KINDS = ["nii", "nii.gz", "nrrd", "nrrd.gz", "mha", "mha.z", "dicom"]
SUFFIX = {"nrrd.gz": "nrrd", "mha.z": "mha", "dicom": "dcm"}


def original(kind, folder, seed):
    """A good file (for DICOM the folder of a series) of random voxels and an oblique affine."""
    rng = np.random.default_rng(seed)
    dtype = [np.int16, np.float32, np.uint8][seed % 3]
    voxels = rng.integers(0, 200, SHAPE).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", rng.uniform(-30, 30, 3), degrees=True).as_matrix() * [1, 1.5, 2]
    affine[:3, 3] = rng.uniform(-100, 100, 3)
    path = folder / f"a.{SUFFIX.get(kind, kind)}"
    if kind.startswith("nii"):
        save(path, voxels, affine, **({"scl_slope": 1} if seed % 2 else {}))
    elif kind.startswith("nrrd"):
        cases.write_nrrd(path, voxels, affine, encoding="gzip" if kind == "nrrd.gz" else "raw")
    elif kind.startswith("mha"):
        cases.write_mha(path, voxels, affine, compressed=kind == "mha.z", big=seed % 2 == 1)
    else:
        data = voxels.astype(np.int16 if dtype is np.float32 else dtype)
        pair = [None, (1, -1024), (0.5, 3)][seed % 3]
        cases.write_series(folder, data, affine, rescale=pair, modality="CT" if pair else "MR")
    return path


def header_end(kind, raw):
    if kind.startswith("nii"):
        return 352
    if kind.startswith("nrrd"):
        return raw.index(b"\n\n") + 2
    if kind.startswith("mha"):
        return raw.index(b"LOCAL\n") + 6
    return raw.index(b"\xe0\x7f\x10\x00") + 12


def damage(rng, kind, raw):
    """One mutant of the bytes `raw` and what was done; text headers also lose, double and change lines."""
    packed = kind == "nii.gz" and rng.random() < 0.7
    data = bytearray(gzip.decompress(raw) if packed else raw)
    end = header_end(kind, data) if packed or kind != "nii.gz" else len(data)
    how = rng.choice(["flip", "byte", "cut", "grow", "zero", "number", "block", "body", "swap", "magic", "line"])
    match how:
        case "flip":
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(end)] ^= 1 << rng.integers(8)
        case "byte":
            for _ in range(rng.integers(1, 4)):
                data[rng.integers(end)] = rng.integers(256)
        case "cut":
            del data[rng.integers(len(data)) :]
        case "grow":  # inserted bytes: an extended field, a shifted body, trailing bytes
            place = rng.choice([rng.integers(end), end, len(data)])
            data[place:place] = rng.bytes(rng.integers(1, 40))
        case "zero":
            place = rng.integers(end)
            data[place : place + rng.choice([2, 4, 8])] = bytes(8)
        case "number":  # the extremes of every width, where extents, spacings and affines lie
            values = [struct.pack("<h", v) for v in (-1, 0, 1, 32767, -32768)] + [struct.pack("<i", 2**31 - 1)]
            values += [struct.pack("<f", v) for v in (np.nan, np.inf, -1.0, 0.0, 1e-30, 3e38)]
            value = values[rng.integers(len(values))]
            place = rng.integers(end)
            data[place : place + len(value)] = value
        case "block":
            place = rng.integers(len(data))
            data[place : place + 16] = rng.bytes(16)
        case "body":
            place = rng.integers(min(end, len(data) - 1), len(data))
            data[place] ^= 1 << rng.integers(8)
        case "swap":  # the other byte order, in header fields of two or four bytes
            place, width = rng.integers(end), int(rng.choice([2, 4]))
            data[place : place + width] = data[place : place + width][::-1]
        case "magic":
            place = {"nii": 344, "dicom": 128}.get(kind.partition(".")[0], 0)
            data[place % len(data)] ^= 1 << rng.integers(8)
        case "line":
            data = line_damage(rng, data, end) if kind[:3] in ("nrr", "mha") else data[:end] + data[end:][::-1]
    raw = bytes(data)
    return (gzip.compress(raw, 1, mtime=0) if packed else raw), str(how)


def line_damage(rng, data, end):
    lines = bytes(data[:end]).split(b"\n")
    place = rng.integers(len(lines) - 1)
    match rng.integers(4):
        case 0:
            del lines[place]
        case 1:
            lines.insert(place, lines[rng.integers(len(lines) - 1)])
        case 2:
            lines[place] = b" ".join(
                [rng.choice([b"0", b"-1", b"nan", b"1e30", b"99999999999", b"LIST", b"x"]) if rng.random() < 0.3 else w
                 for w in lines[place].split(b" ")]
            )  # fmt: skip
        case 3:
            lines[place] = lines[place].replace(b"1", rng.choice([b"7", b"-1", b"1e9", b""]))
    return bytearray(b"\n".join(lines) + data[end:])


def seen_independently(kind, raw, files):
    """Voxels and RAS affine by the tests' own readers; None where they see no volume."""
    try:
        with np.errstate(all="ignore"):
            if kind == "dicom":
                return cases.read_planes([raw, *(f.read_bytes() for f in files)])
            reader = {"nii": cases.read_nifti, "nrr": cases.read_nrrd, "mha": cases.read_mha}[kind[:3]]
            return reader(raw)
    except (ValueError, KeyError, IndexError, struct.error, zlib.error, EOFError, OSError, OverflowError, MemoryError):
        return None


@dataclass(frozen=True)
class Mutant:
    """hurt: the damaged file. before: the good one. others: the other slices of its series, for DICOM."""

    hurt: Path
    before: Path
    others: list[Path]
    kind: str
    how: str

    @property
    def task(self):
        return self.hurt.parent, [self.hurt, *self.others]


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    """COUNT of them: every kind of file in turn, of six originals each."""
    root = tmp_path_factory.mktemp("fuzz")
    goods = {}
    for kind in KINDS:
        for seed in range(6):
            path = original(kind, root / f"good_{kind}_{seed}", seed)
            goods[kind, seed] = path.parent
    made = []
    for number in range(COUNT):
        rng = np.random.default_rng([20, number])
        kind, seed = KINDS[number % len(KINDS)], int(rng.integers(6))
        files = sorted(goods[kind, seed].iterdir())
        before = files[rng.integers(len(files))]
        raw, how = damage(rng, kind, before.read_bytes())
        hurt = root / f"{number}.{SUFFIX.get(kind, kind)}"
        hurt.write_bytes(raw)
        made.append(Mutant(hurt, before, [f for f in files if f != before], kind, how))
    return made


def says_nothing(mutant, path):
    """Whether a header lacks its orientation or position."""
    raw = path.read_bytes()
    match mutant.kind.partition(".")[0]:
        case "nii":
            raw = gzip.decompress(raw) if mutant.kind == "nii.gz" else raw
            return max(struct.unpack_from("<2h", raw, 252)) <= 0 and max(struct.unpack_from(">2h", raw, 252)) <= 0
        case "mha":
            return b"TransformMatrix = " not in raw or b"Offset = " not in raw
        case "nrrd":
            return b"space origin: " not in raw
    return False


def wrong(volume, mutant):
    """Says why an accepted volume is not what its file declares; None if it is.

    Right is what the independent reader sees in the mutant; or what it sees in the file before the damage, where the
    damage lies in what neither voxels nor geometry depend on. Where the header says nothing of orientation or
    position, a warning must say what was assumed.
    """
    for path in (mutant.hurt, mutant.before):
        seen = seen_independently(mutant.kind, path.read_bytes(), mutant.others)
        if seen is not None and np.isfinite(seen[1]).all() and abs(np.linalg.det(seen[1])) > 1e-9:
            silent = not any("no orientation" in w or "no position" in w for w in volume.warnings)
            if cases.same_volume(volume, *seen) and not (silent and says_nothing(mutant, path)):
                return None
    return f"wrong volume: {volume.data.shape}, {volume.affine.tolist()}"


def test_mutants_are_refused_with_a_reason_or_are_what_they_declare(mutants):
    admitted, refused, deaths, faults = 0, 0, 0, []
    results = run_in_order(fuzz_reader.read, [m.task for m in mutants], 2, LIMIT)
    for mutant, result in zip(mutants, results, strict=True):
        if isinstance(result, Failure):
            refused += 1
            fault = result.reason
            deaths += "crashed" in fault or "killed" in fault
            if fault.strip() and "\n" not in fault and "reader failed" not in fault and "not read within" not in fault:
                fault = None
        else:
            admitted += 1
            fault = wrong(result, mutant)
        if fault is not None:
            faults.append((mutant.hurt.name, mutant.kind, mutant.how, fault))
    assert not faults, f"{len(faults)} of {COUNT}: " + "\n".join(map(str, faults[:40]))
    assert admitted > 0.1 * COUNT and refused > 0.3 * COUNT, (admitted, refused)
    print(f"{admitted} admitted, {refused} refused, {deaths} of them by a reader's death")


@pytest.mark.faults
def test_a_planted_fault_would_be_found(mutants):
    """A reader that mirrors, scales or moves what it reads is caught on every mutant that it accepts."""
    for fault in ("mirror", "scale", "move", "spacing"):
        some = mutants[:60]
        results = run_in_order(partial(fuzz_reader.read, fault=fault), [m.task for m in some], 2, LIMIT)
        pairs = [(m, r) for m, r in zip(some, results, strict=True) if not isinstance(r, Failure)]
        assert len(pairs) > 5 and all(wrong(volume, mutant) is not None for mutant, volume in pairs), fault


def test_the_command_takes_mutants_of_every_kind_at_once(mutants, tmp_path, capfd):
    """140 mutants through `prepare` itself: every file has a reason, stderr is empty."""
    for number, mutant in enumerate(mutants[:140]):
        (tmp_path / "in" / f"{number}").mkdir(parents=True)
        for file in mutant.task[1]:
            shutil.copy(file, tmp_path / "in" / f"{number}")
    command = ["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--shape", "8", "8", "8"]
    assert prepare.main([*command, "--spacing", "2", "2", "2", "--time-limit", str(LIMIT)]) == 0
    assert capfd.readouterr().err == ""
    dataset = VolumeDataset(tmp_path / "out")
    named = {Path(r).parts[0] for r in [*(r["source"] for r in dataset.records), *(s["file"] for s in dataset.skipped)]}
    assert named == {str(number) for number in range(140)}
    assert np.isfinite(dataset.volumes).all() and all(s["reason"] for s in dataset.skipped)
