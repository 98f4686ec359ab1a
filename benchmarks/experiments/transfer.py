"""Tests whether a trained GAN helps to segment the hippocampus from few labelled volumes.

    python -m benchmarks.experiments.transfer --task ../shared/data/msd-hippocampus --run runs/grid-a/CELL \\
        --results benchmarks/results/experiments/transfer-CELL.jsonl

Generated volumes have no labels, so they cannot be training pairs; a GAN can only give features. The U-Net's encoder is
the discriminator's trunk; its decoder is small and starts fresh. All arms have the same network, labelled
volumes, order, steps and rates, and differ in the weights at the start:

    fresh       nothing learned
    gan         the encoder is the trained discriminator of the run
    generated   encoder and decoder were trained before to restore damaged volumes that the run's generator made
    unlabelled  the same, on the real volumes that the GAN was trained on, without a GAN

The last arm is the one that generated volumes have to beat: whoever trains a GAN has the real ones. Volumes are
segmented at the run's spacing and scored at the labels' own. The held-out volumes are those of `data.split_indices`; a
run that was trained on one of them is refused. A finished cell (arm, labelled volumes, seed) is a JSON line and is not
run again.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.experiments import results, scoring, segmentation
from benchmarks.experiments.data import TRAIN, split_indices
from benchmarks.operator.run import environment
from ssconv import keep_freed_memory
from ssconv.parser import Parser
from ssgan.config.network import NetworkConfig
from ssgan.data.axes import to_array_axes
from ssgan.data.dataset import VolumeDataset
from ssgan.models.networks import Discriminator
from ssgan.runs import checkpoint
from ssgan.runs.config import load_config
from ssgan.runs.generator import load_generator, parse_seeds
from ssgan.utils.errors import UserError, run_command

ARMS = ("fresh", "gan", "generated", "unlabelled")
NOISE, BLOCK, HIDDEN = 0.3, 4, 0.5  # of a damaged volume: noise, edge of the hidden blocks in voxels, their share
CUT = (0.5, 99.5)  # percentiles that become -1 and 1
Record = dict[str, Any]


class TransferError(UserError):
    """A run or task that cannot be used."""


class TrunkUNet(nn.Module):
    """The trunk of a discriminator as encoder, and a decoder of one convolution a level.

    (N, 1, D, H, W) in [-1, 1] -> class scores (N, 3, D, H, W), or, restored, (N, 1, D, H, W).
    """

    def __init__(self, cfg: NetworkConfig, seed: int):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = Discriminator(dataclasses.replace(cfg, classes=0))
            del self.trunk.head
            fine_to_coarse = cfg.widths[::-1]
            self.decoder = nn.ModuleList(
                nn.Sequential(
                    nn.Conv3d(below + width, width, 3, padding=1),
                    nn.InstanceNorm3d(width, affine=True),
                    nn.LeakyReLU(0.2),
                )
                for width, below in itertools.pairwise(fine_to_coarse)
            )
            self.classify = nn.Conv3d(fine_to_coarse[0], segmentation.CLASSES, 1)
            self.to_image = nn.Conv3d(fine_to_coarse[0], 1, 1)

    def features(self, x: Tensor) -> Tensor:
        levels = [self._first(x)]
        for block in self.trunk.blocks:
            levels.append(block(levels[-1]))
        y = levels.pop()
        for layer, skip in zip(reversed(self.decoder), reversed(levels), strict=True):
            y = layer(torch.cat([F.interpolate(y, skip.shape[2:]), skip], 1))
        return y

    def _first(self, x: Tensor) -> Tensor:
        """Gives the trunk's first features; the depth embedding is centred, its end positions are repeated outwards."""
        y = self.trunk.from_image(x)
        if self.trunk.cfg.depth_places is None:
            return y
        own, depth = self.trunk.depth_embedding.shape[1], x.shape[2]
        positions = (torch.arange(depth) - (depth - own) // 2).clamp(0, own - 1)
        return y + self.trunk.depth_embedding[:, positions, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def restored(self, x: Tensor) -> Tensor:
        return self.to_image(self.features(x))

    def load_trunk(self, tensors: dict[str, Tensor], source: str) -> None:
        """Loads the trunk of a checkpoint's discriminator, without its head."""
        own = self.trunk.state_dict()
        given = checkpoint.without_prefix("D", tensors)
        wrong = [n for n, t in own.items() if n not in given or given[n].shape != t.shape]
        if wrong:
            raise TransferError(f"{source}: {wrong[0]} is missing or of another shape; is it a checkpoint of stage 3d?")
        self.trunk.load_state_dict({n: given[n] for n in own})


def load_task(task: Path, cfg: NetworkConfig, spacing: Sequence[float], axis: str) -> tuple[Tensor, Tensor, list[str]]:
    """Loads images (N, 1, d, h, w) in [-1, 1] at the run's spacing, labels (N, 1, D, H, W) at 1 mm, and file names."""
    factor = round(spacing[0])
    if factor < 1 or any(abs(s - factor) > 1e-3 for s in spacing):
        raise TransferError(
            f"--run: its spacing is {tuple(spacing)} mm; the task's voxels of 1 mm are pooled to 1, 2, .."
        )
    images, labels = segmentation.load(task)
    kind = "imagesTr" if (task / "imagesTr").is_dir() else "images"
    names = sorted(p.name for p in (task / kind).glob("[!.]*.nii.gz"))

    def turned(x: Tensor) -> Tensor:  # X, Y, Z to the run's array axes
        return torch.from_numpy(np.stack([np.ascontiguousarray(to_array_axes(v.numpy(), axis)) for v in x[:, 0]]))[
            :, None
        ]

    images, labels = turned(images), turned(labels)
    low, high = (torch.quantile(images.flatten(1), q / 100, dim=1).view(-1, 1, 1, 1, 1) for q in CUT)
    images = ((images - low) / (high - low).clamp(min=1e-6) * 2 - 1).clamp(-1, 1)
    pooled = F.avg_pool3d(images, factor)
    for d in range(3):
        step = int(np.prod([s[d] for s in cfg.scales]))
        if pooled.shape[2 + d] % step:
            raise TransferError(f"--run: its networks halve axis {d} {step}-fold; {tuple(pooled.shape[2:])} cannot be")
    return pooled, labels, names


def damaged(x: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise to volumes and hides half of their blocks."""
    blocks = [-(-n // BLOCK) for n in x.shape[2:]]
    seen = (torch.rand(len(x), 1, *blocks, generator=generator) >= HIDDEN).to(x)
    seen = seen.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3).repeat_interleave(BLOCK, 4)
    seen = seen[:, :, : x.shape[2], : x.shape[3], : x.shape[4]]
    return (x + NOISE * torch.randn(x.shape, generator=generator)) * seen


def pretrain(model: TrunkUNet, volumes: np.ndarray, steps: int, batch: int, lr: float, seed: int) -> None:
    """Teaches a network to restore damaged volumes (N, D, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        chosen = torch.randperm(len(volumes), generator=generator)[:batch].numpy()
        x = torch.from_numpy(np.array(volumes[chosen]))[:, None]
        loss = F.l1_loss(model.restored(damaged(x, generator)), x)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()


def scores(model: TrunkUNet, x: Tensor, truth: Tensor) -> Tensor:
    """Computes logits at the labels' resolution."""
    return F.interpolate(model(x), truth.shape[2:], mode="trilinear", align_corners=False)


def fine_tune(
    model: TrunkUNet, images: Tensor, labels: Tensor, steps: int, batch: int, lr: float, seed: int
) -> None:  # fmt: skip
    from monai.losses import DiceCELoss

    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    order = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        chosen = order.choice(len(images), batch, replace=False)
        loss = criterion(scores(model, images[chosen], labels[chosen]), labels[chosen])
        if not torch.isfinite(loss):
            raise TransferError(f"the loss is {loss.item()} at step {step}; give a lower --lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()


@torch.no_grad()
def held_out_dice(model: TrunkUNet, images: Tensor, labels: Tensor) -> Tensor:
    """Gives the Dice of both classes, (N, 2)."""
    parts = zip(images.split(4), labels.split(4), strict=True)
    return torch.cat([segmentation.dice(scores(model, x, t).argmax(1, keepdim=True), t) for x, t in parts])


class Starts:
    """Makes the network of each arm and seed before it sees a label; pre-training is done once and kept."""

    def __init__(self, run: Path, args: argparse.Namespace) -> None:
        self.run, self.args = run, args
        config = load_config(run)
        self.cfg = config.train.network
        self.data = VolumeDataset(config.data_path)
        self.path = checkpoint.final_path(run / "checkpoints", "3d")
        self.tensors, self.meta = checkpoint.load(self.path)
        self._kept: dict[tuple[str, int], TrunkUNet] = {}
        self._volumes: np.ndarray | None = None

    def volumes(self, arm: str) -> np.ndarray:
        if arm == "unlabelled":
            return self.data.volumes
        if self._volumes is None:
            self._volumes = scoring.generated(load_generator(self.run, self.path).G, self.args.generated)
        return self._volumes

    def model(self, arm: str, seed: int) -> TrunkUNet:
        if (arm, seed) not in self._kept:
            model = TrunkUNet(self.cfg, seed)
            if arm == "gan":
                model.load_trunk(self.tensors, str(self.path))
            elif arm != "fresh":
                args = self.args
                pretrain(model, self.volumes(arm), args.pretrain_steps, args.batch, args.lr, seed)
            self._kept[arm, seed] = model
        return copy.deepcopy(self._kept[arm, seed])


def protocol_of(starts: Starts, args: argparse.Namespace) -> tuple[str, Record]:
    about = {
        "checkpoint": checkpoint.checksum(starts.path), "volumes_shown": starts.meta.images, "steps": args.steps,
        "pretrain_steps": args.pretrain_steps, "batch": args.batch, "lr": args.lr, "generated": args.generated,
        "arch": starts.cfg.discriminator_arch, "widths": list(starts.cfg.widths), "damage": [NOISE, BLOCK, HIDDEN],
        "train": args.train,
    }  # fmt: skip
    return scoring.digest(json.dumps(about, sort_keys=True)), about


def run(args: argparse.Namespace) -> int:
    for name in ("steps", "pretrain_steps", "batch", "generated", "threads"):
        if getattr(args, name) < 1:
            raise TransferError(f"--{name.replace('_', '-')}: expected at least 1; got {getattr(args, name)}")
    if min(args.counts) < args.batch or max(args.counts) > args.train:
        raise TransferError(f"--counts: expected {args.batch} (--batch) to {args.train} (--train); got {args.counts}")
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    starts = Starts(args.run, args)
    protocol, about = protocol_of(starts, args)
    common = {"environment": environment(), "cell_of_run": args.run.name, "about": about}
    info = starts.data.info
    images, labels, names = load_task(args.task, starts.cfg, info.spacing, info.slice_axis)
    train, held = split_indices(names, args.train)
    seen = {r["source"] for r in starts.data.records}
    leaked = [names[i] for i in held if names[i] in seen]
    if leaked:
        raise TransferError(
            f"--run {args.run} was trained on {leaked[0]}, which is held out; train on the split's volumes"
        )
    for seed in parse_seeds(args.seeds):
        order = np.random.default_rng(seed).permutation(train)
        for count in args.counts:
            for arm in args.arms:
                cell = f"{arm}-{count}-seed{seed}"
                if cell in results.latest(results.load(args.results), protocol):
                    continue
                model = starts.model(arm, seed)
                chosen = np.sort(order[:count])
                fine_tune(model, images[chosen], labels[chosen], args.steps, args.batch, args.lr, seed)
                dice = held_out_dice(model, images[held], labels[held])
                record = {"cell": cell, "protocol": protocol, "seed": seed, "arm": arm, "count": count, **common}
                record |= {"dice": float(dice.mean()), "dice_anterior": float(dice[:, 0].mean())}
                record |= {"dice_posterior": float(dice[:, 1].mean()), "held_out": len(held)}
                record["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
                results.append(args.results, record)
                print(f"{cell}: Dice {record['dice']:.4f}", flush=True)
    records = list(results.latest(results.load(args.results), protocol).values())
    page = markdown(records)
    args.results.with_suffix(".md").write_text(page, encoding="utf-8")
    draw(records, args.results.with_suffix(".png"))
    print(page)
    return 0


def by_cell(records: Sequence[Record]) -> dict[tuple[str, int], dict[int, float]]:
    """Gives (arm, labelled volumes) -> seed -> Dice."""
    table: dict[tuple[str, int], dict[int, float]] = {}
    for r in records:
        table.setdefault((r["arm"], r["count"]), {})[r["seed"]] = r["dice"]
    return table


def markdown(records: Sequence[Record]) -> str:
    """Writes Dice per arm and number of labelled volumes, and its gain over `fresh` of the same seed."""
    table, first = by_cell(records), records[0]
    counts, arms = sorted({r["count"] for r in records}), [a for a in ARMS if any(r["arm"] == a for r in records)]
    about, env = first["about"], first["environment"]
    lines = [
        "# Few labelled volumes: does the GAN help?",
        "",
        f"Encoder: the trunk of the discriminator of {first['cell_of_run']} ({about['arch']}, widths "
        f"{about['widths']}), trained on {about['volumes_shown']:,} volumes shown. {about['steps']} steps of "
        f"{about['batch']}, Adam {about['lr']:g} with a cosine schedule; restoring: {about['pretrain_steps']} steps, "
        f"{about['generated']} generated volumes. Dice of {first['held_out']} held-out volumes at 1 mm: mean (range "
        "over the seeds); then the gain over `fresh` of the same seed, mean (range). "
        f"{env['device']}, {env['threads']} threads, torch {env['torch']}, commit {env['commit']}, {env['date'][:10]}. "
        f"Protocol {first['protocol']}.",
        "",
        "| start | " + " | ".join(f"{n} labelled | gain" for n in counts) + " |",
        "|---" * (1 + 2 * len(counts)) + "|",
    ]
    for arm in arms:
        row = []
        for count in counts:
            own, base = table.get((arm, count), {}), table.get(("fresh", count), {})
            gains = [own[s] - base[s] for s in sorted(own) if s in base]
            row += [_spread(list(own.values()), ".4f"), "–" if arm == "fresh" else _spread(gains, "+.4f")]
        lines.append(f"| {arm} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "not run"
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}}; {len(values)} seeds)"


def draw(records: Sequence[Record], path: Path) -> None:
    """Draws Dice over the number of labelled volumes, a point a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    table = by_cell(records)
    for number, arm in enumerate(ARMS):
        counts = sorted(n for a, n in table if a == arm)
        if not counts:
            continue
        axes.plot(counts, [np.mean(list(table[arm, n].values())) for n in counts], color=f"C{number}", label=arm)
        for n in counts:
            axes.plot([n] * len(table[arm, n]), list(table[arm, n].values()), ".", color=f"C{number}")
    axes.set_xlabel("labelled volumes")
    axes.set_ylabel("Dice on held-out volumes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.experiments.transfer", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--task", type=Path, required=True, help="folder with images(Tr)/ and labels(Tr)/")
    parser.add_argument(
        "--run", type=Path, required=True, help="a finished cell of a grid, trained on the task's split"
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines; a table and a plot go beside")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--counts", nargs="+", type=int, default=[10, 20, 40], help="labelled volumes (10 20 40)")
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretrain-steps", type=int, default=1000)
    parser.add_argument("--generated", type=int, default=1600, help="generated volumes (default 1600)")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3, help="Adam's, at the start (default 0.002, as in the GAN)")
    parser.add_argument("--train", type=int, default=TRAIN, help="volumes of the split that are not held out")
    parser.add_argument("--threads", type=int, default=1)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
