"""Measures volumes with known faults by every metric of `ssgan evaluate`: a table for the documentation.

    python -m benchmarks.metrics.faults --data DATASET [--out benchmarks/results/evaluation/known-faults.md] [--seed 0]

A third of the data set is "real". Another third is compared with it as it is (the first row: no fault) and with each
fault. The last third is held out, for the check for copies. Features: random3d, or --extractor deepbet.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from ssconv.parser import Parser
from ssgan.data.axes import ARRAY_AXES
from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.extractors.choose import WITHOUT_WEIGHTS, make_extractor
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.features import Extractor
from ssgan.metrics.memorisation import memorisation, significant
from ssgan.metrics.registry import METRICS, comparisons
from ssgan.utils.files import atomic_write_bytes

COLLAPSED = 4
Fault = Callable[[np.ndarray, np.ndarray, np.random.Generator, int], np.ndarray]

# name -> (volumes, real, rng, array axis of left-right) -> faulty volumes
FAULTS: dict[str, Fault] = {
    "no fault: other real volumes": lambda v, real, rng, axis: v,
    "blur, sigma 1 voxel": lambda v, real, rng, axis: gaussian_filter(v, (0, 1, 1, 1)),
    "noise, sigma 0.2": lambda v, real, rng, axis: np.clip(v + 0.2 * rng.standard_normal(v.shape), -1, 1),
    f"mode collapse: {COLLAPSED} volumes only": lambda v, real, rng, axis: v[np.arange(len(v)) % COLLAPSED],
    "copies of the real volumes": lambda v, real, rng, axis: np.clip(
        real[: len(v)] + 0.01 * rng.standard_normal(real[: len(v)].shape), -1, 1
    ),
    "left-right flip": lambda v, real, rng, axis: np.flip(v, axis),
}


def measure(
    volumes: np.ndarray, axis: int, seed: int = 0, extract: Extractor | None = None
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Gives fault -> metric -> value. volumes: (N, D, H, W), N of at least 24; axis: of left-right, 1 to 3."""
    rng = np.random.Generator(np.random.PCG64(seed))
    count = len(volumes) // 3
    order = rng.permutation(len(volumes))
    real, other, held = (np.asarray(volumes[np.sort(order[i * count : (i + 1) * count])], np.float32) for i in range(3))
    extract = extract or Random3d()
    features_real, features_held = extract(real), extract(held)
    result = {}
    for name, fault in FAULTS.items():
        fake = np.ascontiguousarray(fault(other, real, rng, axis), np.float32)
        features = extract(fake)
        row: dict[str, float] = {}
        for compare, metrics in comparisons():
            row |= compare(features_real, features) if metrics[0].on_features else compare(real, fake)
        copies = memorisation(features, features_real, features_held)
        result[name] = row | {"nearest / held out": copies["ratio"], "below 5 %": copies["below_5_percent"]}
    return result


def table(result: dict[str, dict[str, float]]) -> str:
    """Markdown: a row per fault, a column per metric."""
    names = list(next(iter(result.values())))
    better = {name: metric.better for name, metric in METRICS.items()} | {
        "nearest / held out": "about 1",
        "below 5 %": "about 0.05",
    }
    lines = ["| | " + " | ".join(f"{n} ({better[n]})" for n in names) + " |", "|" + "---|" * (len(names) + 1)]
    for fault, row in result.items():
        lines.append(f"| {fault} | " + " | ".join(f"{significant(row[n]):.3g}" for n in names) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.metrics.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a data set of at least 24 volumes")
    parser.add_argument("--out", type=Path, help="the page (default: to the screen alone)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extractor", choices=WITHOUT_WEIGHTS, default="random3d")
    args = parser.parse_args(argv)
    data = VolumeDataset(args.data)
    if len(data) < 24:
        parser.error(f"--data: expected at least 24 volumes; got {len(data)}")
    axis = 1 + int(np.argsort(ARRAY_AXES[data.info.slice_axis])[0])
    extract = make_extractor(args.extractor, None, data.info.slice_axis)
    text = table(measure(data.volumes, axis, args.seed, extract))
    print(text)
    if args.out:
        size = "x".join(map(str, data.info.shape))
        head = (
            "# What the metrics make of known faults\n\n"
            f"`python -m benchmarks.metrics.faults`: {len(data) // 3} volumes a side of {size} voxels "
            f"({args.data.name}, recipe {data.info.recipe}), {args.extractor} features, seed {args.seed}.\n"
            "The first row is what other real volumes score: a fault shows where its row differs from that.\n\n"
        )
        atomic_write_bytes(args.out, (head + text + "\n" + READING).encode())
    return 0


READING = """
How to read it:

- The Frechet distance and KID see every fault of realism and variety, and take copies for perfection.
- Blur is taken for quality by precision and density; recall, spectrum and histogram see it.
- Noise is taken for variety by recall and MS-SSIM; precision, density and coverage see it.
- Mode collapse to a few good volumes can keep precision at its best; recall, coverage and MS-SSIM see it.
- Copies are perfect in all but the last two columns, which are there for them.
- A left-right flip is seen by features and by the profile along that axis; histogram, spectrum and MS-SSIM cannot.
"""

if __name__ == "__main__":
    sys.exit(main())
