"""Finds the volumes in a folder, files and DICOM series, and reads one of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssgan.data import dicom, itk, nifti
from ssgan.data.volume import StoredVolume, Volume, VolumeError, ras_spacing

OTHER_SUFFIXES = {  # of files that are often found beside volumes
    ".xml", ".csv", ".tsv", ".txt", ".json", ".xls", ".xlsx", ".pdf", ".md", ".png", ".jpg", ".jpeg", ".bval", ".bvec",
    ".zip", ".gz", ".tar", ".raw", ".zraw", ".img", ".hdr", ".py", ".html", ".log", ".npy", ".npz", ".mat",
}  # fmt: skip
UNREAD_SUFFIXES = (  # of volumes in other formats, or compressed in other ways
    ".mgz", ".mgh", ".mnc", ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".img.gz", ".par", ".rec",
)  # fmt: skip
DICOM_MAGIC = (128, b"DICM")  # offset in bytes, bytes there


@dataclass(frozen=True)
class Source:
    """A volume that can be read.

    name: its path below the input. series: with DICOM. spacing: (x, y, z) in mm, if it was read. reason: why the volume
    cannot be read, or "". mask: the file with its label map.
    """

    name: str
    files: tuple[Path, ...]
    series: dicom.Series | None = None
    spacing: tuple[float, ...] | None = None
    reason: str = ""
    mask: Path | None = None


@dataclass
class InputFiles:
    """The files in a folder and below it.

    files: NIfTI, NRRD and MetaImage. folders: folder -> its DICOM files. hidden, others: files that are ignored.
    unread: volumes in formats that are not read. unreadable: what may hold volumes but cannot be opened, with the
    reasons. notes: linked folders that are not searched.
    """

    files: list[Path] = field(default_factory=list)
    folders: dict[Path, list[Path]] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_files(folder: Path) -> InputFiles:
    """Finds the files below `folder`, in sorted order; links are followed, and each folder is searched once.

    Hidden files are no volumes, whatever their name (macOS writes "._" files). DICOM files are recognised by their
    suffix or, without a common one, by the magic bytes. A file that cannot be opened counts as what its name says, or
    as DICOM where the name says nothing: its reader gives the reason.
    """
    found = InputFiles()
    for path in _walk(folder, found):
        name = path.name.lower()
        hidden = any(p.startswith(".") for p in path.relative_to(folder).parts)
        volume = name.endswith(nifti.SUFFIXES + itk.SUFFIXES)
        if name.endswith(".hdr"):
            volume = nifti.is_pair_header(path)
        header = _header_of(path) if name.endswith(".img") else None
        if header is not None and nifti.is_pair_header(header):
            continue
        if not hidden and (name.endswith(UNREAD_SUFFIXES) or (name.endswith(".img") and header is None)):
            found.unread.append(path)
        elif not volume and path.suffix.lower() in OTHER_SUFFIXES:
            found.others.append(path)
        elif volume or name.endswith(dicom.SUFFIXES) or _may_be_dicom(path):
            if hidden:
                found.hidden.append(path)
            elif volume:
                found.files.append(path)
            elif name != "dicomdir":
                found.folders.setdefault(path.parent, []).append(path)
        elif not hidden:
            found.others.append(path)
    return found


def _walk(folder: Path, found: InputFiles) -> list[Path]:
    """All that is below `folder` but folders, sorted. Adds unreadable folders, and links that are not followed."""
    paths: list[Path] = []
    searched = {os.path.realpath(folder): folder}  # so that a link to a folder above it does not go round in circles
    links = [folder]

    def refuse(error: OSError) -> None:
        found.unreadable.append((Path(error.filename), f"the folder cannot be read: {error.strerror}"))

    while links:
        below: list[Path] = []
        for link in links:  # those at one depth of links, so that a folder is named by its shortest chain of links
            if link != folder and searched.setdefault(os.path.realpath(link), link) != link:
                other = searched[os.path.realpath(link)].relative_to(folder)
                found.notes.append(f"{link.relative_to(folder)} is a link to {other}, which is searched already")
                continue
            for parent, folders, files in os.walk(link, onerror=refuse):
                paths += [Path(parent, name) for name in files]
                for name in sorted(folders):
                    path = Path(parent, name)
                    if path.is_symlink():
                        below.append(path)
                    elif searched.setdefault(os.path.realpath(path), path) != path:
                        folders.remove(name)
        links = sorted(below)
    return sorted(paths)


def _header_of(image: Path) -> Path | None:
    """The .hdr beside an .img."""
    return next((p for p in (image.with_suffix(suffix) for suffix in (".hdr", ".HDR")) if p.exists()), None)


def _may_be_dicom(path: Path) -> bool:
    """Whether a file has DICOM's magic bytes, or cannot be opened."""
    try:
        if not path.is_file():
            return path.is_symlink()  # a broken one; sockets and pipes are none
        with path.open("rb") as stream:
            stream.seek(DICOM_MAGIC[0])
            return stream.read(4) == DICOM_MAGIC[1]
    except OSError:
        return True


def find_volumes(task: tuple[Path, Sequence[Path]]) -> list[Source]:
    """Finds the volumes of one task (root, files): one file, or the DICOM files of one folder; reads their headers."""
    root, files = task
    first = files[0]
    if first.name.lower().endswith(nifti.SUFFIXES + itk.SUFFIXES):
        reader = nifti if first.name.lower().endswith(nifti.SUFFIXES) else itk
        name = str(first.relative_to(root))
        try:
            return [Source(name, (first,), spacing=tuple(float(v) for v in reader.header_spacing(first)))]
        except VolumeError:
            return [Source(name, (first,))]  # the reason is reported when it is read
    series, outside = dicom.scan_folder(files)
    folder = str(first.parent.relative_to(root))
    sources = []
    for one in series:
        name = one.uid if folder == "." else folder if len(series) == 1 else f"{folder}#{one.uid}"
        spacing = None
        if not one.reason:
            spacing = tuple(float(v) for v in ras_spacing(np.array(one.affine)))
        sources.append(Source(name, one.files, one, spacing, one.reason))
    groups: dict[str, list[tuple[Path, str]]] = {}
    for path, reason in outside:
        groups.setdefault(re.sub(r"\d+", "0", reason), []).append((path, reason))
    for group in groups.values():  # one for all slices of a series with the same defect
        path, reason = group[0]
        more = f" (and {len(group) - 1} files beside it)" if len(group) > 1 else ""
        sources.append(Source(str(path.relative_to(root)), tuple(p for p, _ in group), reason=reason + more))
    return sources


def load(source: Source) -> Volume:
    """Reads and checks one volume; raises VolumeError with the reason if it cannot be used."""
    if source.reason:
        raise VolumeError(source.reason)
    if source.series is not None:
        return dicom.load_series(source.series)
    path = source.files[0]
    return (nifti.load_nifti if path.name.lower().endswith(nifti.SUFFIXES) else itk.load_itk)(path)


def read_stored(path: Path) -> StoredVolume:
    """Reads one NIfTI, NRRD or MetaImage file as it is stored; raises VolumeError with the reason if it cannot."""
    name = path.name.lower()
    if not name.endswith(nifti.SUFFIXES + itk.SUFFIXES):
        what = (
            "DICOM (a DICOM-SEG is not read)" if name.endswith(dicom.SUFFIXES) or _may_be_dicom(path) else "no volume"
        )
        raise VolumeError(f"{what}; convert it to NIfTI")
    return (nifti.read_nifti if name.endswith(nifti.SUFFIXES) else itk.read_itk)(path)
