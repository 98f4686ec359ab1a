"""`ssgan evaluate`: how close generated volumes are to real ones, how varied, and whether they are copies.

python -m ssgan.evaluate --real DATASET|DIR --fake DATASET|DIR|RUN --out metrics.json [--held-out DATASET|DIR]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from ssgan.data.axes import to_axial
from ssgan.metrics import distances as sets
from ssgan.metrics import voxels
from ssgan.metrics.extractors.choose import NAMES, make_extractor
from ssgan.metrics.features import Extractor, per_volume, views
from ssgan.metrics.volume_sets import EvaluateError, Source, check_alike, check_apart, is_folder, load_source
from ssgan.utils.errors import run_command
from ssgan.utils.files import atomic_path, write_json_atomic
from ssgan.utils.pictures import contact_sheet

FORMAT, VERSION = "ssgan-metrics", 1
LEAST, MOST, NEIGHBOURS, DIGITS, PAIRS_SHOWN = 12, 200, 5, 5, 8  # MOST: volumes made by a run, unless asked for more
REFERENCE_ROWS = 500
FEW, PAIR_REPEATS = 10, 1000  # resamples of metrics that cost much, and of the pairs of MS-SSIM, which cost nothing


def check_files(args: argparse.Namespace) -> None:
    """What can be known of the arguments' files before the work."""
    if args.out.suffix != ".json" or args.out.is_dir():
        raise EvaluateError(f"--out {args.out}: expected a file name that ends in .json")
    for option, folder in (("--out", args.out.parent), ("--cache", args.cache)):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise EvaluateError(f"{option}: {folder} is a file; expected a folder")
    if args.checkpoint is not None and not (args.fake / "config.json").is_file():
        raise EvaluateError(f"--checkpoint {args.checkpoint}: --fake {args.fake} is no run; leave --checkpoint out")


def cached_features(extractor: Extractor, source: Source, cache: Path | None) -> np.ndarray:
    """Features of a source; a file in `cache` is named by the voxels, the extractor's protocol and its weights."""
    if cache is None:
        return extractor(source.volumes)
    shape = source.volumes.shape
    key = f"{source.content} {shape} {extractor.name} {extractor.protocol} {extractor.checksum}"
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


def _over_views(measure: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([measure(x, y) for x, y in zip(views(a), views(b), strict=True)]))


# Names of what is computed in one go -> (real, fake) -> value by name; of features, and of volumes.
Measure = Callable[[np.ndarray, np.ndarray], dict[str, float]]
NEIGHBOUR_METRICS = ("precision", "recall", "density", "coverage")
FEATURE_METRICS: dict[tuple[str, ...], Measure] = {
    ("frechet",): lambda a, b: {"frechet": _over_views(sets.frechet, a, b)},
    ("kid",): lambda a, b: {"kid": _over_views(sets.kid, a, b)},
    NEIGHBOUR_METRICS: lambda a, b: sets.prdc(per_volume(a), per_volume(b), NEIGHBOURS),
}
VOXEL_METRICS: dict[tuple[str, ...], Measure] = {
    ("mmd",): lambda a, b: {"mmd": sets.mmd_linear(a.reshape(len(a), -1), b.reshape(len(b), -1))},
    ("msssim",): lambda a, b: {"msssim": float(voxels.pairwise_msssim(b).mean())},
    ("histogram",): lambda a, b: {"histogram": voxels.histogram_distance(a, b)},
    ("spectrum",): lambda a, b: {"spectrum": voxels.spectrum_distance(a, b)},
    ("profile_D", "profile_H", "profile_W"): lambda a, b: {
        f"profile_{axis}": value for axis, value in voxels.profile_distances(a, b).items()
    },
}
BETTER = {name: "lower" for names in (*FEATURE_METRICS, *VOXEL_METRICS) for name in names}
BETTER |= dict.fromkeys(NEIGHBOUR_METRICS, "higher") | {"msssim": "as floor"}
# What a metric can be; an interval does not go beyond. KID is unbiased, hence below 0 at times.
RANGE = dict.fromkeys(BETTER, (0.0, float("inf"))) | {"kid": (float("-inf"), float("inf"))}
RANGE |= dict.fromkeys(("precision", "recall", "coverage", "msssim"), (0.0, 1.0))
INTERVALS = ("half", "bootstrap")


def interval_method(name: str, wanted: str, count: int) -> str | None:
    """half, bootstrap, or pairs: how a metric's interval is made; None where a half is too small for its neighbours.

    MS-SSIM is a mean over disjoint, hence independent, pairs: those are drawn again, whatever is wanted. Copies made
    by drawing volumes again would spoil nearest neighbours, so these stay with halves.
    """
    if name == "msssim":
        return "pairs"
    if name in NEIGHBOUR_METRICS:
        return "half" if count // 2 > NEIGHBOURS else None
    return wanted


def compare(
    real: tuple[np.ndarray, np.ndarray], fake: tuple[np.ndarray, np.ndarray], spare: tuple[np.ndarray, np.ndarray],
    repeats: int, seed: int, interval: str = "half",
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Every metric of fake, and of spare (other real volumes: the floor), against real; each (features, volumes)."""
    result = {}
    for names, measure in tqdm((FEATURE_METRICS | VOXEL_METRICS).items(), desc="metrics", disable=None):
        part = 0 if names in FEATURE_METRICS else 1
        a, b, c = real[part], fake[part], spare[part]
        # Voxel metrics and networks with many samples a volume cost far more.
        steps = repeats if part == 0 and a.ndim == 2 else min(repeats, FEW)
        method = interval_method(names[0], interval, len(a))
        bounds: dict[str, list[float]] = {}
        if method == "pairs":
            pairs = voxels.pairwise_msssim(b)
            values, bounds = {"msssim": float(pairs.mean())}, {"msssim": sets.mean_interval(pairs, PAIR_REPEATS, seed)}
        else:
            values = measure(a, b)
        if method in INTERVALS:
            draw = sets.halves if method == "half" else sets.replicates
            drawn = [measure(x, y) for x, y in draw(a, b, steps, seed)]
            bounds = {name: sets.interval(values[name], [d[name] for d in drawn]) for name in names}
        floors = measure(a, c)
        for name in names:
            result[name] = {
                "value": significant(values[name]),
                "interval": [significant(x) for x in np.clip(bounds[name], *RANGE[name])] if method else None,
                "method": method,
                "floor": significant(floors[name]),
                "better": BETTER[name],
            }
    return result


def significant(value: float) -> float:
    """Five significant digits: sums in float32 within the extractor depend on the threads beyond that."""
    return float(f"{value:.{DIGITS}g}")


def distances(a: np.ndarray, b: np.ndarray, block: int = 64) -> np.ndarray:
    """Euclidean distances (len(a), len(b)) in float64; of rows such as memory-mapped volumes, few in memory at once."""
    found = np.empty((len(a), len(b)))
    for i in range(0, len(a), block):
        for j in range(0, len(b), block):
            found[i : i + block, j : j + block] = cdist(a[i : i + block], b[j : j + block])
    return found


def memorisation(fake: np.ndarray, train: np.ndarray, held: np.ndarray | None) -> dict[str, Any]:
    """Distances of each fake row to its nearest training row, against the same for held-out rows.

    All training rows serve for both, so their counts need not agree. Without held-out rows the reference is the
    distance of training rows (500 of them, evenly spaced, where there are more) to the nearest other one. ratio: median
    over median, about 1 without copies; below_5_percent: the fraction of fakes nearer than the reference's 5 %
    quantile, about 0.05 without copies.
    """
    nearest = distances(fake, train)
    to_train = nearest.min(1)
    if held is None:
        rows = np.linspace(0, len(train) - 1, min(len(train), REFERENCE_ROWS)).astype(int)
        own = distances(train[rows], train)
        own[np.arange(len(rows)), rows] = np.inf
        other = own.min(1)
    else:
        other = distances(held, train).min(1)
    order = np.argsort(to_train, kind="stable")
    return {
        "median_to_training": significant(np.median(to_train)),
        "median_reference": significant(np.median(other)),
        "ratio": significant(np.median(to_train) / max(float(np.median(other)), 1e-12)),
        "below_5_percent": significant((to_train < np.quantile(other, 0.05)).mean()),
        "closest": [[int(i), int(nearest[i].argmin()), significant(to_train[i])] for i in order[:PAIRS_SHOWN]],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--real", type=Path, required=True, help="training volumes: a data set or a folder of NIfTI")
    parser.add_argument("--fake", type=Path, required=True, help="generated volumes: a folder, a data set or a run")
    parser.add_argument("--checkpoint", type=Path, help="of a run: a checkpoint file (default: the run's last)")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file; closest pairs go beside it as a PNG")
    parser.add_argument("--held-out", type=Path, help="real volumes not trained on, for the check for copies")
    parser.add_argument(
        "--extractor", default="random3d", metavar="NAME|FILE",
        help=f"of the features: {', '.join(NAMES)}, or a file of `ssgan labelnet` (default random3d)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", type=Path, help="the extractor's published file, got yourself (discriminator: a run or checkpoint)"
    )
    parser.add_argument("--count", type=int, help="volumes per side (default: as many as both sides allow)")
    parser.add_argument("--repeats", type=int, default=50, help="resamples for the intervals (default 50)")
    parser.add_argument(
        "--interval", choices=INTERVALS, default="half",
        help="half: random halves without replacement (default); bootstrap: with replacement, where that is sound",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the choice of volumes and halves (default 0)")
    parser.add_argument("--cache", type=Path, help="folder that keeps features for the next evaluation")


def run(args: argparse.Namespace) -> int:
    if args.repeats < 2:
        raise EvaluateError(f"--repeats: expected at least 2; got {args.repeats}")
    if args.seed < 0:
        raise EvaluateError(f"--seed: expected 0 or more; got {args.seed}")
    if args.count is not None and args.count < LEAST:
        raise EvaluateError(f"--count: expected at least {LEAST}; got {args.count}")
    check_files(args)
    if (args.real / "config.json").is_file() and not (args.real / "dataset.json").is_file():
        raise EvaluateError(f"--real {args.real} is a run; expected a data set or a folder of NIfTI")
    extractor = make_extractor(args.extractor, args.weights)
    if is_folder(args.real):  # its greys are on the scale of the other side, which knows it
        fake = load_source(args.fake, "--fake", None, args.count or MOST, args.checkpoint)
        real = load_source(args.real, "--real", fake, 0)
    else:
        real = load_source(args.real, "--real", None, 0)
        most = args.count or min(MOST, len(real.volumes) // 2)
        fake = load_source(args.fake, "--fake", real, most, args.checkpoint)
    like = real if real.info else fake
    held = load_source(args.held_out, "--held-out", like, 0) if args.held_out else None
    check_alike(real, fake, "--fake")
    if held:
        check_alike(real, held, "--held-out")
        check_apart(real, held)
    possible = min(len(fake.volumes), len(real.volumes) // 2)
    count = args.count or possible
    if count > possible or count < LEAST:
        raise EvaluateError(
            f"expected at least {2 * max(count, LEAST)} real volumes (half are for the floor) and "
            f"{max(count, LEAST)} generated; got {len(real.volumes)} and {len(fake.volumes)}"
        )
    rng = np.random.Generator(np.random.PCG64(args.seed))
    order, chosen = rng.permutation(len(real.volumes)), np.sort(rng.permutation(len(fake.volumes))[:count])
    features = {n: cached_features(extractor, s, args.cache) for n, s in (("real", real), ("fake", fake))}
    first, second = np.sort(order[:count]), np.sort(order[count : 2 * count])

    def pick(name: str, source: Source, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return features[name][indices], np.asarray(source.volumes[indices])

    sides = pick("real", real, first), pick("fake", fake, chosen), pick("real", real, second)
    metrics = compare(*sides, args.repeats, args.seed, args.interval)
    held_features = per_volume(cached_features(extractor, held, args.cache)) if held else None
    flat = [s.volumes.reshape(len(s.volumes), -1) if s else None for s in (fake, real, held)]
    copies = {
        "features": memorisation(per_volume(features["fake"]), per_volume(features["real"]), held_features),
        "voxels": memorisation(*flat),
    }
    picture = args.out.with_suffix(".pairs.png")
    shown, names = [], []
    for both in zip(copies["voxels"]["closest"], copies["features"]["closest"], strict=True):  # side by side
        for space, (i, j, distance) in zip(("voxels", "features"), both, strict=True):
            shown += [fake.volumes[i], real.volumes[j]]
            names += [f"generated {i}", f"{space}: training {j}, {distance:g}"]
    contact_sheet(to_axial(np.stack(shown), real.slice_axis), names, picture, spacing=real.spacing, columns=4)
    scales, window = voxels.msssim_scales(real.volumes.shape[1:])
    few = min(args.repeats, FEW)
    steps = f"{args.repeats} (voxel metrics {few})" if features["real"].ndim == 2 else f"{few}"
    size, mm = "x".join(map(str, real.volumes.shape[1:])), " x ".join(f"{x:g}" for x in real.spacing)
    made = (
        f"; generated by seeds 0 to {len(fake.volumes) - 1}, no truncation, constant noise" if fake.checkpoint else ""
    )
    how = "random halves" if args.interval == "half" else "bootstrap replicates (PRDC: random halves)"
    protocol = (
        f"{count} against {count} volumes of {size} voxels, {mm} mm, seed {args.seed}{made}; {extractor.protocol}; "
        f"Frechet over N-1; KID cubic, unbiased, one block; PRDC k={NEIGHBOURS}; MMD linear kernel on voxels, biased, "
        f"batches of 8; MS-SSIM of disjoint generated pairs, {scales} scales, window {window}; intervals 95 %, 1.96 "
        f"standard deviations over {steps} {how}, cut at a metric's range, MS-SSIM by a percentile bootstrap of its "
        f"pairs; {DIGITS} significant digits"
    )
    record = {"format": FORMAT, "version": VERSION, "protocol": protocol, "count": count}
    record["extractor"] = {"name": extractor.name, "sha256": extractor.checksum}
    for name, source, path in (("real", real, args.real), ("fake", fake, args.fake)):
        record[name] = {
            "path": str(path),
            "kind": source.kind,
            "volumes": len(source.volumes),
            "sha256": source.content,
        }
    if fake.checkpoint:
        record["fake"] |= {"checkpoint": fake.checkpoint[0], "checkpoint_sha256": fake.checkpoint[1]}
    reference = "nearest training volume of held-out volumes" if held else "nearest other training volume"
    record |= {"metrics": metrics, "memorisation": copies | {"reference": reference, "picture": picture.name}}
    write_json_atomic(args.out, record)
    for name, row in metrics.items():
        print(f"{name:<10} {row['value']:>10g}  floor {row['floor']:>10g}  95 % {row['interval']}")
    print(f"copies: voxel ratio {copies['voxels']['ratio']:g} (about 1 without copies); {args.out}, {picture}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan evaluate", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
