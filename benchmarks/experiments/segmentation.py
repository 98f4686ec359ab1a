"""Trains MONAI's 3D U-Net to segment the hippocampus, as MONAI has it and after `ssconv.convert`.

    python -m benchmarks.experiments.segmentation --data TASK04 [--steps 400] [--seeds 0 1] [--threads 2]

The data are the Medical Segmentation Decathlon's Task04 (NIfTI in imagesTr/ and labelsTr/, or images/ and labels/;
0 background, 1 anterior, 2 posterior). 160 volumes train, the others validate; the split is a permutation with seed 0.
Every variant starts from the same dense weights (the split ones by convert's rule) and sees the same volumes in the
same order. The variants are trained in turn, some steps each, so that a slow spell of the machine falls on all. Writes
JSON lines, a Markdown table and a PNG of the validation Dice over the steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.experiments.unet import dice, network
from benchmarks.operator.run import environment
from ssconv.parser import Parser

SHAPE = (40, 56, 40)  # X, Y, Z; multiples of 8, as three strides of 2 want
CLASSES = 3
VARIANTS = ("dense", "split_depth", "acs4")
TRAIN = 160
ROUND = 20  # steps of one variant before the next one's turn


class BadData(ValueError):
    """A folder or file that the benchmark cannot read; the message names it."""


def centred(volume: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Centres a volume (X, Y, Z) in `shape`: cropped, or padded with its smallest value."""
    out = np.full(shape, volume.min(), dtype=volume.dtype)
    target, source = [], []
    for have, want in zip(volume.shape, shape, strict=True):
        size = min(have, want)
        target.append(slice((want - size) // 2, (want - size) // 2 + size))
        source.append(slice((have - size) // 2, (have - size) // 2 + size))
    out[tuple(target)] = volume[tuple(source)]
    return out


def read(path: Path) -> np.ndarray:
    """Reads the voxels (X, Y, Z), RAS+."""
    try:
        return np.asarray(nibabel.as_closest_canonical(nibabel.load(path)).dataobj)
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, ValueError) as error:
        raise BadData(f"{path}: cannot be read as NIfTI: {error}") from None


def load(folder: Path, shape: Sequence[int] = SHAPE) -> tuple[Tensor, Tensor]:
    """Loads images (N, 1, X, Y, Z) float32 of mean 0 and variance 1 each, labels (N, 1, X, Y, Z) int64; RAS+.

    Raises:
        BadData: a folder or a label is missing or unreadable, or a label holds other values than 0, 1, 2.
    """
    kinds = ("imagesTr", "labelsTr") if (folder / "imagesTr").is_dir() else ("images", "labels")
    names = sorted(p.name for p in (folder / kinds[0]).glob("[!.]*.nii.gz"))
    if not names:
        raise BadData(f"{folder / kinds[0]}: expected NIfTI files (*.nii.gz); found none")
    images, labels = [], []
    for name in names:
        path = folder / kinds[1] / name
        if not path.exists():
            raise BadData(f"{path}: the file is missing; each image needs a label of the same name")
        image, label = read(folder / kinds[0] / name), read(path)
        if image.shape != label.shape:
            raise BadData(f"{path}: has shape {label.shape}; its image has {image.shape}")
        values = np.unique(label)
        if not set(values.tolist()) <= set(range(CLASSES)):
            raise BadData(f"{path}: expected labels 0, 1, 2; got {values.tolist()}")
        image = image.astype(np.float64)
        image = (image - image.mean()) / max(float(image.std()), 1e-6)
        images.append(centred(image, shape))
        labels.append(centred(label.astype(np.int64), shape))
    return torch.tensor(np.stack(images), dtype=torch.float32)[:, None], torch.tensor(np.stack(labels))[:, None]


def split(count: int, train: int = TRAIN) -> tuple[np.ndarray, np.ndarray]:
    """Gives the indices that train and those that validate, disjoint, the same in every run."""
    if count <= train:
        raise BadData(f"data: {count} volumes; expected more than the {train} that train (--train)")
    order = np.random.default_rng(0).permutation(count)
    return order[:train], np.sort(order[train:])


@dataclass
class Run:
    """One variant and seed in training."""

    variant: str
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    order: np.random.Generator
    memory_format: torch.memory_format
    seconds: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)

    def step(self, images: Tensor, labels: Tensor, batch: int, loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        chosen = self.order.choice(len(images), batch, replace=False)
        x, truth = images[chosen].contiguous(memory_format=self.memory_format), labels[chosen]
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss(self.model(x), truth)
        value.backward()
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - start)
        self.schedule.step()
        if not torch.isfinite(value):
            raise RuntimeError(f"{self.variant}, seed {self.seed}: the loss is {value.item()} at {len(self.seconds)}")
        return value.item()

    @torch.no_grad()
    def validate(self, images: Tensor, labels: Tensor) -> Tensor:
        """Computes the Dice (N, 2) of the validation volumes."""
        self.model.eval()
        parts = [
            dice(self.model(x.contiguous(memory_format=self.memory_format)).argmax(1, keepdim=True), t)
            for x, t in zip(images.split(4), labels.split(4), strict=True)
        ]
        self.model.train()
        return torch.cat(parts)


def faster_layout(model: nn.Module, x: Tensor) -> tuple[str, torch.memory_format]:
    """Finds the memory format in which a dense model trains faster here, by the median of five steps of each."""
    times = {}
    for name, layout in (("channels_last_3d", torch.channels_last_3d), ("contiguous", torch.contiguous_format)):
        model.to(memory_format=layout)
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            model(x.contiguous(memory_format=layout)).square().mean().backward()
            seconds.append(time.perf_counter() - start)
        times[name] = (float(np.median(seconds)), layout)
    best = min(times, key=lambda name: times[name][0])
    return best, times[best][1]


def start(variant: str, seed: int, args: argparse.Namespace, layout: torch.memory_format) -> Run:
    model = network(args.channels, seed, variant)
    memory_format = layout if variant == "dense" else torch.channels_last_3d
    model.to(memory_format=memory_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    return Run(variant, seed, model, optimizer, schedule, np.random.default_rng(seed), memory_format)


def train(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains every variant with every seed; gives a record of each."""
    from monai.losses import DiceCELoss

    images, labels = load(args.data)
    chosen, held_out = split(len(images), args.train)
    layout_name, layout = faster_layout(network(args.channels, 0, "dense"), images[: args.batch])
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    records = []
    total = len(args.seeds) * len(args.variants) * args.steps
    with tqdm(total=total, unit="step", disable=None) as bar:
        for seed in args.seeds:
            runs = [start(v, seed, args, layout) for v in args.variants]
            for begin in range(0, args.steps, ROUND):
                count = min(ROUND, args.steps - begin)
                for run in runs:
                    for _ in range(count):
                        value = run.step(images[chosen], labels[chosen], args.batch, loss)
                        bar.update()
                    bar.set_postfix_str(f"{run.variant} loss {value:.3f}")
                    if (begin // ROUND) % 4 == 3 or begin + count == args.steps:
                        score = run.validate(images[held_out], labels[held_out])
                        run.curve.append((begin + count, float(score.mean())))
                        if begin + count == args.steps:
                            records.append(record(run, score, args, layout_name))
                            print(f"{run.variant}, seed {seed}: Dice {float(score.mean()):.4f}", flush=True)
    return records


def record(run: Run, score: Tensor, args: argparse.Namespace, layout: str) -> dict[str, Any]:
    return {
        **environment(),
        "variant": run.variant,
        "seed": run.seed,
        "steps": args.steps,
        "batch": args.batch,
        "channels": list(args.channels),
        "learning_rate": args.lr,
        "layout": layout if run.variant == "dense" else "channels_last_3d",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "seconds_per_step": float(np.median(run.seconds)),
        "dice": float(score.mean()),
        "dice_anterior": float(score[:, 0].mean()),
        "dice_posterior": float(score[:, 1].mean()),
        "validation_volumes": len(score),
        "curve": run.curve,
    }


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """Writes a row per variant: Dice (mean and range over the seeds), parameters, seconds per step."""
    about = records[0]
    seeds = sorted({r["seed"] for r in records})
    lines = [
        f"MONAI U-Net {tuple(about['channels'])}, {about['steps']} steps of {about['batch']} volumes of "
        f"{' x '.join(map(str, SHAPE))}, Adam {about['learning_rate']:g} with a cosine schedule, seeds {seeds}; Dice "
        f"over {about['validation_volumes']} held-out volumes. {about['device']}, {about['threads']} threads, torch "
        f"{about['torch']}, commit {about['commit']}, {about['date']}.",
        "",
        "| convolutions | parameters | Dice, mean (range over seeds) | anterior | posterior | seconds per step |",
        "|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(r["variant"] for r in records):
        rows = [r for r in records if r["variant"] == variant]
        scores = [r["dice"] for r in rows]
        mean = {k: np.mean([r[k] for r in rows]) for k in ("dice", "dice_anterior", "dice_posterior")}
        lines.append(
            f"| {variant} ({rows[0]['layout']}) | {rows[0]['parameters']:,} | {mean['dice']:.4f} "
            f"({min(scores):.4f} to {max(scores):.4f}) | {mean['dice_anterior']:.4f} | {mean['dice_posterior']:.4f} | "
            f"{np.median([r['seconds_per_step'] for r in rows]):.3f} |"
        )
    return "\n".join(lines) + "\n"


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws validation Dice over the steps, a line per seed, a colour per variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    variants = list(dict.fromkeys(r["variant"] for r in records))
    for r in records:
        steps, scores = zip(*r["curve"], strict=True)
        first = r is next(q for q in records if q["variant"] == r["variant"])
        label = f"{r['variant']}, {r['parameters']:,} parameters" if first else None
        axes.plot(steps, scores, color=f"C{variants.index(r['variant'])}", marker="o", markersize=3, label=label)
    axes.set_xlabel("training steps")
    axes.set_ylabel("Dice on held-out volumes")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.experiments.segmentation", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with imagesTr/ and labelsTr/")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/segmentation"), help="folder of the results"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3, help="Adam's learning rate at the start")
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 32, 64, 128], help="widths of the levels")
    parser.add_argument("--train", type=int, default=TRAIN, help="volumes that train; the others validate")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if min(args.steps, args.batch, args.threads, args.train) < 1:
        parser.error("--steps, --batch, --threads, --train: expected at least 1")
    if len(args.channels) < 2:
        parser.error(f"--channels: expected at least two widths; got {args.channels}")
    if args.batch > args.train:
        parser.error(f"--batch: expected at most the {args.train} volumes that train; got {args.batch}")
    torch.set_num_threads(args.threads)
    try:
        records = train(args)
    except BadData as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "segmentation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (args.out / "segmentation.md").write_text(markdown(records))
    draw(records, args.out / "segmentation.png")
    print(markdown(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
