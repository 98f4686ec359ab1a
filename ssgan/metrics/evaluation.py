"""Evaluates generated volumes against real ones: every metric of the registry, its floor, its interval, and copies."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ssgan.data.axes import to_axial
from ssgan.metrics import intervals, voxels
from ssgan.metrics.extractors.deepbet import Deepbet
from ssgan.metrics.features import Extractor, per_volume
from ssgan.metrics.masks import compare_masks
from ssgan.metrics.memorisation import DIGITS, memorisation, significant
from ssgan.metrics.prdc import NEIGHBOURS
from ssgan.metrics.registry import Metric, comparisons
from ssgan.metrics.segmenter import Segmenter
from ssgan.metrics.volume_sets import MIN_VOLUMES, EvaluateError, VolumeSet, check_counts
from ssgan.utils.files import atomic_path
from ssgan.utils.pictures import contact_sheet

FORMAT, VERSION = "ssgan-metrics", 1
INTERVALS = ("half", "bootstrap")
FEW_REPEATS = 10  # resamples of expensive metrics: of voxels, and of networks with many samples per volume
PAIR_REPEATS = 1000  # resamples of the pairs of MS-SSIM, which are cheap
MIN_MASKS = 2  # a side

Side = tuple[np.ndarray, np.ndarray]  # features and volumes of the same items


@dataclass(frozen=True)
class EvaluationOptions:
    """count: volumes per side; None takes as many as both sides allow. repeats: resamples for the intervals.
    interval: "half" or "bootstrap". seed: of the choice of volumes and resamples. cache: folder that keeps features."""

    count: int | None = None
    repeats: int = 50
    interval: str = "half"
    seed: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.repeats < 2:
            raise EvaluateError(f"--repeats: expected at least 2; got {self.repeats}")
        if self.seed < 0:
            raise EvaluateError(f"--seed: expected 0 or more; got {self.seed}")
        if self.count is not None and self.count < MIN_VOLUMES:
            raise EvaluateError(f"--count: expected at least {MIN_VOLUMES}; got {self.count}")


def cached_features(extractor: Extractor, source: VolumeSet, cache: Path | None) -> np.ndarray:
    """Computes the features of a set, or reads them from `cache`.

    A file's name is a hash of the voxels, the extractor's protocol and its weights.
    """
    if cache is None:
        return extractor(source.volumes)
    shape = source.volumes.shape
    key = f"{source.sha256} {shape} {extractor.name} {extractor.protocol} {extractor.checksum}"
    file = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.npy"
    if file.is_file():
        try:
            found = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise EvaluateError(f"--cache: {file} is damaged ({error}); delete it") from error
        if found.ndim in (2, 4) and len(found) == shape[0]:
            return found
        raise EvaluateError(f"--cache: {file} holds {found.shape}, expected {shape[0]} rows; delete it")
    values = extractor(source.volumes)
    with atomic_path(file) as temporary:
        np.save(temporary, values)
    return values


def interval_method(metric: Metric, wanted: str, count: int) -> str | None:
    """Chooses how a metric's interval is made: "half", "bootstrap" or "pairs"; None where a half has too few rows.

    MS-SSIM is a mean over disjoint, hence independent, pairs: the pairs are resampled whatever is wanted.
    """
    if metric.interval == "pairs":
        return "pairs"
    if metric.interval == "half":
        return "half" if count // 2 > NEIGHBOURS else None
    return wanted


def compare_sets(
    real: Side, fake: Side, spare: Side, repeats: int, seed: int, interval: str = "half", features_only: bool = False
) -> dict[str, dict[str, Any]]:
    """Computes every metric of `fake` against `real`, its interval, and its floor: `spare`, other real volumes, against
    `real`. features_only: without the metrics of voxels."""
    result = {}
    wanted = [(compare, metrics) for compare, metrics in comparisons() if metrics[0].on_features or not features_only]
    for compare, metrics in tqdm(wanted, desc="metrics", disable=None):
        part = 0 if metrics[0].on_features else 1
        a, b, c = real[part], fake[part], spare[part]
        method = interval_method(metrics[0], interval, len(a))
        bounds: dict[str, list[float]] = {}
        if method == "pairs":
            pairs = voxels.pairwise_msssim(b)
            values = {metrics[0].name: float(pairs.mean())}
            bounds = {metrics[0].name: intervals.mean_interval(pairs, PAIR_REPEATS, seed)}
        else:
            values = compare(a, b)
        if method in INTERVALS:
            draw = intervals.halves if method == "half" else intervals.replicates
            draws = repeats if part == 0 and a.ndim == 2 else min(repeats, FEW_REPEATS)
            drawn = [compare(x, y) for x, y in draw(a, b, draws, seed)]
            bounds = {m.name: intervals.interval(values[m.name], [d[m.name] for d in drawn]) for m in metrics}
        floors = compare(a, c)
        for metric in metrics:
            name = metric.name
            result[name] = {
                "value": significant(values[name]),
                "interval": [significant(x) for x in np.clip(bounds[name], *metric.bounds)] if method else None,
                "method": method,
                "floor": significant(floors[name]),
                "better": metric.better,
            }
    return result


def evaluate(
    real: VolumeSet, fake: VolumeSet, held: VolumeSet | None, extractor: Extractor, options: EvaluationOptions,
    beside: Extractor | None = None, segmenter: Segmenter | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Evaluates `fake` against `real`, with `held`-out volumes for the check for copies. Returns metrics.json's record.

    Half of the real volumes are the other side of the comparison, half are for the floor. Where both sides have masks,
    those are compared too.

    beside: another extractor, whose metrics are reported too, as NAME_EXTRACTOR. segmenter: for the agreement of
    images and masks.

    Raises:
        EvaluateError: too few volumes or masks, or held-out volumes that the segmenter was trained on.
    """
    count = check_counts(len(real.volumes), len(fake.volumes), options.count)
    for one in (extractor, beside):
        if isinstance(one, Deepbet):
            one.slice_axis = real.slice_axis
    rng = np.random.Generator(np.random.PCG64(options.seed))
    order, chosen = rng.permutation(len(real.volumes)), np.sort(rng.permutation(len(fake.volumes))[:count])
    masks = evaluate_masks(real, fake, held, order, chosen, segmenter)  # first: it names what does not fit
    real_features = cached_features(extractor, real, options.cache)
    fake_features = cached_features(extractor, fake, options.cache)

    def compared(real_rows: np.ndarray, fake_rows: np.ndarray, features_only: bool) -> dict[str, dict[str, Any]]:
        parts = [(real_rows, real, np.sort(order[:count])), (fake_rows, fake, chosen)]
        parts.append((real_rows, real, np.sort(order[count : 2 * count])))
        sides = [(rows[picked], np.asarray(source.volumes[picked])) for rows, source, picked in parts]
        return compare_sets(*sides, options.repeats, options.seed, options.interval, features_only)

    metrics = compared(real_features, fake_features, features_only=False)
    if beside is not None:
        more = compared(*(cached_features(beside, s, options.cache) for s in (real, fake)), features_only=True)
        metrics |= {f"{name}_{beside.name}": row for name, row in more.items()}
    held_features = per_volume(cached_features(extractor, held, options.cache)) if held else None
    flat = [s.volumes.reshape(len(s.volumes), -1) if s else None for s in (fake, real, held)]
    copies: dict[str, Any] = {
        "features": memorisation(per_volume(fake_features), per_volume(real_features), held_features),
        "voxels": memorisation(*flat),
        "reference": "nearest training volume of held-out volumes" if held else "nearest other training volume",
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "protocol": protocol(real, fake, extractor, count, options, per_slice=real_features.ndim != 2)
        + (f"; *_{beside.name}: {beside.protocol}" if beside else ""),
        "count": count,
        "extractor": {"name": extractor.name, "sha256": extractor.checksum},
        "beside": {"name": beside.name, "sha256": beside.checksum} if beside else None,
        "real": describe(real),
        "fake": describe(fake),
        "metrics": metrics,
        **({} if masks is None else {"masks": masks}),
        "memorisation": copies,
    }


def evaluate_masks(
    real: VolumeSet, fake: VolumeSet, held: VolumeSet | None, order: np.ndarray, chosen: np.ndarray,
    segmenter: Segmenter | None,
) -> dict[str, Any] | None:  # fmt: skip
    """Compares the masks of both sides, and with a segmenter images and masks; None where a side has no masks.

    order: a random order of the real volumes. chosen: the generated volumes to take.

    Raises:
        EvaluateError, WeightsError: as `evaluate`; a segmenter of other data, or without masks to use it on.
    """
    if real.masks is None or fake.masks is None:
        if segmenter is not None:
            side = "--real" if real.masks is None else "--fake"
            raise EvaluateError(f"--segmenter {segmenter.file}: {side} has no masks to compare with; leave it out")
        return None
    names = ((real.info or fake.info).mask_names) or ()
    labelled, made = order[np.isin(order, real.labelled)], chosen[np.isin(chosen, fake.labelled)]
    count = min(len(labelled) // 2, len(made))
    if count < MIN_MASKS:
        raise EvaluateError(
            f"expected at least {2 * MIN_MASKS} real volumes with masks (half are for the floor) and {MIN_MASKS} "
            f"generated; got {len(labelled)} and {len(made)}"
        )
    held_rows = held.labelled if held is not None else []
    held_masks = np.asarray(held.masks[held_rows]) if len(held_rows) else None
    about: dict[str, Any] = {
        "count": count,
        "training": len(labelled),
        "reference": "held-out masks" if held_masks is not None else "other training masks",
    }
    if segmenter is not None:
        segmenter.check(names, real.volumes.shape[1:])
        seen = segmenter.seen(held.volumes[held_rows]) if held_masks is not None else []
        if seen:
            raise EvaluateError(
                f"--segmenter {segmenter.file} was trained on volumes {[int(held_rows[i]) for i in seen[:5]]} of "
                "--held-out; train it on the data set of --real"
            )
    parts = [np.sort(labelled[:count]), np.sort(labelled[count : 2 * count])]
    first, spare = (np.asarray(real.masks[rows]) for rows in parts)
    figures = compare_masks(
        first, np.asarray(fake.masks[made[:count]]), spare, real.masks[np.sort(labelled)], held_masks, names,
        real.array_spacing,
    )  # fmt: skip
    if segmenter is not None:
        of_fake = segmenter.dice(fake.volumes[made[:count]], fake.masks[made[:count]])
        of_real = list(segmenter.record.dice), [None] * len(figures)
        if held_masks is not None:
            of_real = segmenter.dice(held.volumes[held_rows], held_masks)
        for name, generated, reals in zip(
            ("segmenter_dice", "segmenter_dice_exchanged"), of_fake, of_real, strict=True
        ):
            for row, value, reference in zip(figures.values(), generated, reals, strict=True):
                row[name] = {"generated": value, "real": reference}
        about["segmenter"] = {
            "sha256": segmenter.checksum,
            "steps": segmenter.record.steps,
            "data": segmenter.record.data,
            "real": "held-out volumes" if held_masks is not None else "volumes that its training held aside",
        }
    return about | {"classes": figures}


def describe(source: VolumeSet) -> dict[str, Any]:
    """Gives a side's entry in metrics.json."""
    return {
        "path": str(source.path),
        "kind": source.kind,
        "volumes": len(source.volumes),
        "sha256": source.sha256,
        **(source.checkpoint or {}),
    }


def protocol(
    real: VolumeSet, fake: VolumeSet, extractor: Extractor, count: int, options: EvaluationOptions, per_slice: bool
) -> str:
    """Describes in one line how the numbers were computed. per_slice: features have rows per slice."""
    scales, window = voxels.msssim_scales(real.volumes.shape[1:])
    few = min(options.repeats, FEW_REPEATS)
    draws = f"{few}" if per_slice else f"{options.repeats} (voxel metrics {few})"
    size, mm = "x".join(map(str, real.volumes.shape[1:])), " x ".join(f"{x:g}" for x in real.spacing)
    made = (
        f"; generated by seeds 0 to {len(fake.volumes) - 1}, no truncation, constant noise" if fake.checkpoint else ""
    )
    how = "random halves" if options.interval == "half" else "bootstrap replicates (PRDC: random halves)"
    return (
        f"{count} against {count} volumes of {size} voxels, {mm} mm, seed {options.seed}{made}; {extractor.protocol}; "
        f"Frechet over N-1; KID cubic, unbiased, one block; PRDC k={NEIGHBOURS}; MMD linear kernel on voxels, biased, "
        f"batches of 8; MS-SSIM of disjoint generated pairs, {scales} scales, window {window}; intervals 95 %, 1.96 "
        f"standard deviations over {draws} {how}, cut at a metric's range, MS-SSIM by a percentile bootstrap of its "
        f"pairs; {DIGITS} significant digits"
    )


def draw_closest_pairs(real: VolumeSet, fake: VolumeSet, copies: dict[str, Any], path: Path) -> Path:
    """Draws the closest pairs of a generated and a training volume, by voxels on the left, by features on the right."""
    shown, names = [], []
    for both in zip(copies["voxels"]["closest"], copies["features"]["closest"], strict=True):
        for space, (i, j, distance) in zip(("voxels", "features"), both, strict=True):
            shown += [fake.volumes[i], real.volumes[j]]
            names += [f"generated {i}", f"{space}: training {j}, {distance:g}"]
    return contact_sheet(to_axial(np.stack(shown), real.slice_axis), names, path, spacing=real.spacing, columns=4)
