"""The recipes of `ssgan prepare`: intensity range, field of view and choice of files for a kind of data."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ssgan.data.labels import ADNI_SUBJECT
from ssgan.data.sources import Source

CT_WINDOW = (-160.0, 240.0)  # HU; soft tissue, level 40, width 400
COCA_WINDOW = (-200.0, 800.0)  # HU; fat lies at -100, and calcium, from 130 on, has two thirds of the scale

# A T1 sequence by its ADNI name: MPR, MPRAGE, MP-RAGE, IR-SPGR, IR-FSPGR and their accelerated and repeated forms.
ADNI_T1 = re.compile(r"MP-?_?R(AGE)?(?![A-QS-Z])|F?SPGR", re.IGNORECASE)
ADNI_REPEAT = re.compile(r"MPR[-_]?R(?![A-Z])|REP(EAT)?(?![A-Z])", re.IGNORECASE)
ADNI_STEPS = ("GradWarp", "B1_Correction", "N3", "Scaled")  # corrections in the order in which ADNI applies them
ADNI_FILE = re.compile(
    r"ADNI_\d{3}_S_\d{4,5}_MR_(?P<sequence>.+?)_+br(_raw)?_\d{14,}.*?(_(?P<series>S\d+))?_I\d+", re.I
)


def select_all(sources: Sequence[Source]) -> dict[str, str]:
    """Excludes no volume."""
    return {}


def select_coca(sources: Sequence[Source]) -> dict[str, str]:
    """Selects one gated scan per patient, the series with the most slices; returns the others with reasons."""
    refused: dict[str, str] = {}
    best: dict[str, Source] = {}
    for source in sources:
        parts = PurePath(source.name).parts
        if any("nongated" in part.lower() for part in parts):
            refused[source.name] = "not a gated scan (recipe coca)"
            continue
        patient = next((part for part in parts if part.isdigit()), source.name)
        if source.reason:
            continue
        kept = best.setdefault(patient, source)
        if kept is source:
            continue
        worse = source
        if len(source.files) > len(kept.files):
            best[patient], worse = source, kept
        refused[worse.name] = f"another series of patient {patient} has as many slices or more: {best[patient].name}"
    return refused


def select_adni(sources: Sequence[Source]) -> dict[str, str]:
    """Selects one T1 volume per visit, the one with the most corrections, rather no repeat; returns the others with
    reasons."""
    refused: dict[str, str] = {}
    visits: dict[tuple[str, str], list[tuple[tuple[int, int, str], Source]]] = {}
    for source in sources:
        found = ADNI_SUBJECT.search(source.name)
        if found is None:
            refused[source.name] = "no ADNI subject id such as 002_S_0413 in its path (recipe adni)"
            continue
        sequence, visit = _sequence_and_visit(source.name, found.group())
        if ADNI_T1.search(sequence) is None or "mask" in sequence.lower():
            refused[source.name] = f"sequence {sequence}: no T1 MPRAGE or SPGR (recipe adni)"
            continue
        if source.reason:
            continue
        steps = sum(step.lower() in sequence.lower() for step in ADNI_STEPS)
        rank = (-steps, int(ADNI_REPEAT.search(sequence) is not None), source.name)
        visits.setdefault((found.group(), visit), []).append((rank, source))
    for (subject, visit), images in visits.items():
        kept, *others = sorted(images, key=lambda image: image[0])
        for _, source in others:
            refused[source.name] = f"another image of {subject} at {visit} is used: {kept[1].name}"
    return refused


def _sequence_and_visit(name: str, subject: str) -> tuple[str, str]:
    """The sequence and the visit, from the folders subject/sequence/date/image or else from the file name."""
    parts = PurePath(name).parts
    if subject in parts[:-1]:
        below = parts[parts.index(subject) + 1 :]
        if len(below) >= 3:
            return below[0], below[1]
    match = ADNI_FILE.search(parts[-1])
    if match is None:
        return parts[-1], name
    return match["sequence"], match["series"] or name


@dataclass(frozen=True)
class RecipePreset:
    """What a recipe decides.

    window: HU of -1 and +1, None for percentiles of each volume.
    field: (x, y, z) in mm that the shape covers without --spacing, None for the volumes' own spacing.
    modality: the Modality that DICOM files must have, None for any.
    select: sources -> name and reason of those that are not used.
    """

    window: tuple[float, float] | None = None
    field: tuple[float, float, float] | None = None
    modality: str | None = None
    select: Callable[[Sequence[Source]], dict[str, str]] = select_all

    def spacing(self, shape: Sequence[int]) -> tuple[float, ...] | None:
        """The spacing (x, y, z) in mm by which `shape` covers the field, if the recipe has one."""
        return None if self.field is None else tuple(f / n for f, n in zip(self.field, shape, strict=True))


def _recipes() -> dict[str, RecipePreset]:
    """The recipes by name.

    mri: any MR; percentiles of each volume.
    ct: any CT; a soft-tissue window.

    coca: Stanford AIMI COCA, coronary calcium CT (https://aimi.stanford.edu/datasets/coca-coronary-calcium-chest-ct).
        --input is the folder as downloaded, with Gated_release_final/patient/0 ... and calcium_xml beside it (ignored,
        like any XML), or a part of it. Gated scans of the heart without contrast agent: 512 x 512 pixels of 0.35 to
        0.5 mm, slices of 3 mm. The recipe takes the gated scans only, one series per patient, a window of -200 .. 800
        HU, in which calcium does not saturate, and 192 x 192 x 128 mm around the middle, which the heart fills.
    adni: Alzheimer's Disease Neuroimaging Initiative (https://adni.loni.usc.edu), NIfTI or DICOM as the archive
        delivers it: subject/sequence/date/image folders, or the files alone. The recipe takes T1 only (MPRAGE,
        IR-SPGR), one image per visit (that with the most of ADNI's corrections GradWarp, B1, N3 and Scaled, then one
        that is no repeat scan), percentiles of each volume, and 192 x 224 x 192 mm around the middle, which a head
        fills.
    """
    return {
        "mri": RecipePreset(),
        "ct": RecipePreset(window=CT_WINDOW, modality="CT"),
        "coca": RecipePreset(window=COCA_WINDOW, field=(192.0, 192.0, 128.0), modality="CT", select=select_coca),
        "adni": RecipePreset(field=(192.0, 224.0, 192.0), modality="MR", select=select_adni),
    }


RECIPES = _recipes()
