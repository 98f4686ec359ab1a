"""Draws a run's generated volumes beside real ones, its curves and its figures, as the README shows them.

    python -m benchmarks.experiments.showcase --run RUN --data DATASET --out benchmarks/results/NAME [--truncation 0.9]

The volumes are the first seeds and the data set's first volumes, not chosen ones. Where the run has a metrics.json of
`ssgan evaluate`, report.png shows it too: volumes, metrics with intervals and floors, closest pairs and the curve.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssconv.parser import Parser
from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.models.sampling import latents, synthesise
from ssgan.reporting.content import collect
from ssgan.reporting.picture import draw_picture
from ssgan.runs.generator import load_generator
from ssgan.utils.files import read_json, write_json_atomic
from ssgan.utils.pictures import plot_curves, three_plane_grid


def commit() -> str:
    """The commit of this working tree, with "+" where files differ from it."""
    described = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def side_by_side(left: Path, right: Path, out: Path) -> None:
    pages = [Image.open(p) for p in (left, right)]
    page = Image.new("RGB", (sum(p.width for p in pages) + 12, max(p.height for p in pages)), (255, 255, 255))
    page.paste(pages[0], (0, 0))
    page.paste(pages[1], (pages[0].width + 12, 0))
    page.save(out, optimize=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.experiments.showcase", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--truncation", type=float, default=1.0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    data = VolumeDataset(args.data)
    source = load_generator(args.run)
    meta, info = source.meta, source.info
    z, c = latents(range(args.count), source.G.cfg.z_dim), source.class_labels(args.count)
    fakes = synthesise(source.G, z, batch=4, truncation=args.truncation, c=c)
    parts = []
    for name, volumes in (("real", np.array(data.volumes[: args.count])), ("generated", fakes)):
        part = args.out / f".{name}.png"
        axial = to_axial(volumes, info.slice_axis)
        parts.append(three_plane_grid(axial, part, spacing=info.spacing, title=name, columns=2))
    side_by_side(*parts, args.out / "real-and-generated.png")
    for part in parts:
        part.unlink()
    rows = [json.loads(line) for line in (args.run / "log.jsonl").read_text().splitlines()]
    plot_curves(rows, args.out / "curves.png")
    summary = {
        "checkpoint": source.path.name,
        "stage": meta.stage,
        "images_shown": meta.images,
        "images_shown_before": meta.images_before,
        "truncation": args.truncation,
        "data": {"volumes": len(data), "content_hash": info.content_hash},
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    if (args.run / "result.json").is_file():
        summary["result"] = read_json(args.run / "result.json")
    write_json_atomic(args.out / "summary.json", summary)
    print(f"{args.out / 'real-and-generated.png'}, curves.png, summary.json")
    metrics = args.run / "metrics.json"
    if metrics.is_file():
        print(draw_picture(collect(args.run, args.data, metrics, None, args.count), args.out / "report.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
