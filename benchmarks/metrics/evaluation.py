"""Times `ssgan evaluate`: generated against real phantoms at 32x48x32, its default metrics, on 2 threads.

    python -m benchmarks.metrics.evaluation [--count 200] [--shape 32 48 32] [--threads 2] [--repeats 3] [--out DIR]

There are twice as many real volumes as `--count`, since half of them are for the floor. The total is the wall-clock
time of the command in a process of its own, with Python's start and imports; the parts are timed around the functions
that compute them. Appends a line and a table to FILE.jsonl and FILE.md in `--out`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy
import torch

from benchmarks.operator.run import environment, file_name
from ssconv.parser import Parser
from ssgan import evaluate
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics import distances, prdc, volume_sets, voxels
from ssgan.metrics import evaluation as library

KIND, LIMIT = "evaluation", 180.0  # seconds allowed
OWN = "start, imports, resampling, files"  # the rest of the time
PARTS: dict[tuple[ModuleType, str], str] = {
    (volume_sets, "load_volume_set"): "reading and checking both sets",
    (library, "cached_features"): "features (random3d)",
    (distances, "frechet"): "Frechet distance",
    (distances, "kid"): "KID",
    (prdc, "compute_prdc"): "precision, recall, density, coverage",
    (distances, "mmd_linear"): "MMD",
    (voxels, "pairwise_msssim"): "MS-SSIM",
    (voxels, "histogram_distance"): "histogram",
    (voxels, "spectrum_distance"): "spectrum",
    (voxels, "profile_distances"): "profiles",
    (library, "memorisation"): "memorisation",
    (library, "contact_sheet"): "picture of the closest pairs",
}


def stopwatch(function: Callable[..., Any], seconds: dict[str, float], name: str) -> Callable[..., Any]:
    """Wraps the function so that its time is added to `seconds[name]`."""

    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - begun

    return timed


def parts_of(arguments: Sequence[str]) -> dict[str, float]:
    """Times each part of one evaluation in this process. Raises SystemExit if it fails."""
    seconds: dict[str, float] = defaultdict(float)
    own = {key: getattr(*key) for key in PARTS}
    for (module, name), part in PARTS.items():
        setattr(module, name, stopwatch(own[module, name], seconds, part))
    try:
        status = evaluate.main(arguments)
    finally:
        for (module, name), function in own.items():
            setattr(module, name, function)
    if status != 0:
        raise SystemExit(status)
    return {part: seconds[part] for part in PARTS.values()}


def timed_command(folder: Path, threads: int) -> dict[str, float]:
    """Times one evaluation in a process of its own, by part; "total" is its wall-clock time."""
    done = folder / "parts.json"
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    command = [
        sys.executable,
        "-m",
        "benchmarks.metrics.evaluation",
        "--measure",
        str(folder),
        "--threads",
        str(threads),
    ]
    begun = time.perf_counter()
    subprocess.run(command, check=True, env=os.environ | limits, stdout=subprocess.DEVNULL)
    total = time.perf_counter() - begun
    parts = json.loads(done.read_text())
    return {"total": total, **parts, OWN: total - sum(parts.values())}


def measure(count: int, shape: tuple[int, ...], threads: int, repeats: int) -> dict[str, Any]:
    """Gives minimum, median and maximum over the repeats, in total and by part. shape: (D, H, W)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom_dataset(folder / "real", 2 * count, shape, 0)
        write_phantom_dataset(folder / "fake", count, shape, 1)
        times = [timed_command(folder, threads) for _ in range(repeats)]
        protocol = json.loads((folder / "metrics.json").read_text())["protocol"]
    spread = {part: [f([t[part] for t in times]) for f in (min, np.median, max)] for part in times[0]}
    total = spread.pop("total")
    versions = {"numpy": np.__version__, "scipy": scipy.__version__}
    record = {"kind": KIND, **environment(), **versions, "threads": threads, "shape": list(shape), "count": count}
    return record | {"repeats": repeats, "limit": LIMIT, "seconds": total, "parts": spread, "protocol": protocol}


def table(record: dict[str, Any]) -> str:
    """Writes the Markdown of one record."""
    low, median, high = record["seconds"]
    size = "x".join(map(str, record["shape"]))
    lines = [
        f"## {record['count']} against {record['count']} volumes of {size}, {record['threads']} threads",
        "",
        f"`{record['device']}`, {record['cores']} cores; Python {record['python']}, torch {record['torch']}, NumPy "
        f"{record['numpy']}, SciPy {record['scipy']}; commit {record['commit']}, {record['date'][:10]}",
        "",
        f"`ssgan evaluate` takes **{median:.1f} s** (median of {record['repeats']}; {low:.1f} to {high:.1f}); "
        f"{'within' if median <= record['limit'] else 'NOT within'} the {record['limit']:.0f} s allowed.",
        "",
        "| part | seconds, median | share |",
        "|---|---|---|",
    ]
    for part, (_, seconds, _) in sorted(record["parts"].items(), key=lambda item: -item[1][1]):
        lines.append(f"| {part} | {seconds:.2f} | {seconds / median:.0%} |")
    return "\n".join([*lines, "", f"Protocol: {record['protocol']}.", ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.metrics.evaluation", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="volumes a side (default 200)")
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 48, 32), metavar=("D", "H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/evaluation"), help="folder of the results")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.count < volume_sets.MIN_VOLUMES or args.threads < 1 or args.repeats < 1:
        parser.error(f"--count, --threads, --repeats: expected at least {volume_sets.MIN_VOLUMES}, 1 and 1")
    torch.set_num_threads(args.threads)
    if args.measure:
        real, fake, out = (str(args.measure / name) for name in ("real", "fake", "metrics.json"))
        parts = parts_of(["--real", real, "--fake", fake, "--out", out])
        (args.measure / "parts.json").write_text(json.dumps(parts))
        return 0
    record = measure(args.count, tuple(args.shape), args.threads, args.repeats)
    text = table(record)
    print(text)
    file = args.out / file_name(record)
    args.out.mkdir(parents=True, exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")
    with file.with_suffix(".md").open("a") as page:
        page.write(text + "\n")
    print(f"written: {file} and {file.with_suffix('.md').name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
