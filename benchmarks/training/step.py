"""Times a training step of the 3D GAN against the same GAN on nn.Conv3d and two public systems, on the CPU.

    python -m benchmarks.training.step [--shape 32 32 32] [--batch 8] [--threads 2] [--repeats 5] [--out FILE.jsonl]
                                  [--stylegan2-3d CLONE] [--ha-gan CLONE]

All contenders run in one process, step by step in turn, so that a slow spell of the machine falls on all. A step
has every phase, and the lazy ones (path length, R1) count by the share of steps that have them. Peak memory is that of
a process of its own: the highest resident size during a step, less that before the networks were built (Linux).

The public systems are run from the user's own clones by their own networks and losses; nothing of them is in this
project. --stylegan2-3d: github.com/fedorukol/3d-stylegan2-ada, a dense 3D StyleGAN2 in PyTorch, cubes only; it gets the
same widths, mapping and batch (it also wants `pip install requests`). --ha-gan: github.com/batmanlab/HA-GAN (Sun et al.
2022), 128^3 only, with its own widths, and a step of its four networks as its `train.py` takes it.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from benchmarks.gpu.timing import HostTimer
from benchmarks.gpu.training import PLAIN, TimedGan, computed_by, with_batch
from benchmarks.operator.memory import CLEAR, STATUS, can_measure
from benchmarks.operator.run import environment
from ssconv import keep_freed_memory
from ssconv.parser import Parser
from ssgan.config.presets import PRESETS
from ssgan.config.training import TrainConfig

KIND = "training step"
BASELINE = f"dense/{PLAIN}"
SHARES = {"path length": 1 / 4, "R1": 1 / 16}
OURS = {"split_depth/ssconv cpu": ("split_depth", "cpu"), "dense/ssconv cpu": ("dense", "cpu")}
OURS |= {BASELINE: ("dense", f"{PLAIN}, upfirdn cpu"), f"dense/{PLAIN}, plain filters": ("dense", PLAIN)}
STYLEGAN2, HA_GAN = "3D StyleGAN2 (fedorukol)", "HA-GAN"

Step = Callable[[], dict[str, float]]  # seconds per phase of one step


def own(name: str, cfg: TrainConfig) -> tuple[Step, int]:
    """Builds one of this project's contenders: its step and its number of parameters."""
    arch, implementation = OURS[name]
    cfg = dataclasses.replace(cfg, network=dataclasses.replace(cfg.network, arch=arch))
    with computed_by(implementation):
        gan = TimedGan(cfg, "cpu", HostTimer())
    reals = torch.rand(cfg.stage_3d.batch, cfg.network.image_channels, *cfg.network.shape) * 2 - 1

    def step() -> dict[str, float]:
        with computed_by(implementation):
            return gan.timed_step(reals)

    return step, _parameters(gan.G, gan.D)


def stylegan2(clone: Path, cfg: TrainConfig) -> tuple[Step, int]:
    """Builds the dense 3D StyleGAN2 of a clone at the shape, widths and mapping of `cfg`, with its own loss.

    Raises:
        SystemExit: there is no such clone, or the shape is not a cube of 4 times a power of two.
    """
    net, (edge, *others) = cfg.network, cfg.network.shape
    if set(others) != {edge} or net.base != (4, 4, 4):
        raise SystemExit(f"{STYLEGAN2} makes cubes of 4 times a power of two; got {net.shape}")
    _on_path(clone, "training/networks.py", "--stylegan2-3d")
    from training import networks
    from training.loss import StyleGAN2Loss

    widths = {"channel_base": net.widths[-1] * edge, "channel_max": max(net.widths)}
    common = {"img_resolution": edge, "img_channels": net.image_channels, "c_dim": 0}
    mapping = {"num_layers": net.mapping_layers}
    G = networks.Generator(z_dim=net.z_dim, w_dim=net.w_dim, mapping_kwargs=mapping, synthesis_kwargs=widths, **common)
    D = networks.Discriminator(**widths, epilogue_kwargs={"mbstd_group_size": net.mbstd_group}, **common)
    average = copy.deepcopy(G).requires_grad_(False)
    loss = StyleGAN2Loss(torch.device("cpu"), G.mapping, G.synthesis, D)
    optimisers = {n: torch.optim.Adam(m.parameters(), lr=0.002, betas=(0.0, 0.99)) for n, m in (("G", G), ("D", D))}
    batch = cfg.stage_3d.batch
    reals, no_label = torch.rand(batch, net.image_channels, *net.shape) * 2 - 1, torch.zeros(batch, 0)
    phases = [("generator", "Gmain"), ("path length", "Greg"), ("discriminator", "Dmain"), ("R1", "Dreg")]

    def step() -> dict[str, float]:
        seconds = {}
        for name, phase in phases:
            begun = time.perf_counter()
            G.requires_grad_(phase[0] == "G")
            D.requires_grad_(phase[0] == "D")
            optimisers[phase[0]].zero_grad(set_to_none=True)
            z = torch.randn(batch, net.z_dim)
            loss.accumulate_gradients(phase, reals, no_label, z, no_label, sync=True, gain=1)
            optimisers[phase[0]].step()
            seconds[name] = time.perf_counter() - begun
        begun = time.perf_counter()
        with torch.no_grad():
            for target, source in zip(average.parameters(), G.parameters(), strict=True):
                target.lerp_(source, 0.01)
        return seconds | {"average": time.perf_counter() - begun}

    return step, _parameters(G, D)


def ha_gan(clone: Path, cfg: TrainConfig) -> tuple[Step, int]:
    """Builds HA-GAN's four networks at 128^3 and their step; parameters are those of G and D.

    Raises:
        SystemExit: there is no such clone, or the shape is not 128^3.
    """
    if cfg.network.shape != (128, 128, 128):
        raise SystemExit(f"{HA_GAN} is compared at --shape 128 128 128; got {cfg.network.shape}")
    _on_path(clone, "models/Model_HA_GAN_128.py", "--ha-gan")
    from models.Model_HA_GAN_128 import Discriminator, Encoder, Generator, Sub_Encoder

    if cfg.stage_3d.batch < 2:
        raise SystemExit(f"{HA_GAN}'s discriminator drops the axis of a batch of 1; give --batch 2 or more")
    batch, width, edge = cfg.stage_3d.batch, 1024, 128
    nets = {
        "D": Discriminator(num_class=0), "G": Generator(mode="train", latent_dim=width, num_class=0),
        "E": Encoder(), "S": Sub_Encoder(latent_dim=width),
    }  # fmt: skip
    optimisers = {n: torch.optim.Adam(m.parameters(), lr=1e-4, betas=(0.0, 0.999)) for n, m in nets.items()}
    reals = torch.rand(batch, 1, edge, edge, edge) * 2 - 1
    small, slab, first = F.interpolate(reals, scale_factor=0.25), edge // 8, 40
    crop = reals[:, :, first : first + slab]
    yes, no = torch.ones(batch, 1), torch.zeros(batch, 1)
    G, D, E, S = (nets[n] for n in "GDES")
    cuda = torch.Tensor.cuda

    def made(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return G(z, crop_idx=first, class_label=None)

    def codes() -> torch.Tensor:
        with torch.no_grad():
            whole = torch.cat([E(reals[:, :, at : at + slab]) for at in range(0, edge, slab)], 2)
        return S(whole).reshape(batch, width)

    def reconstruction() -> torch.Tensor:
        full, low = made(codes())
        return (F.l1_loss(full, crop) + F.l1_loss(low, small)) / 2

    def loss_d() -> torch.Tensor:
        fake = D(*made(torch.randn(batch, width)), first)
        real = D(crop, small, first)
        cross = F.binary_cross_entropy_with_logits
        return cross(real, yes) + cross(fake, no)

    losses: dict[str, Callable[[], torch.Tensor]] = {
        "D": loss_d,
        "G": lambda: F.binary_cross_entropy_with_logits(D(*made(torch.randn(batch, width)), first), yes),
        "E": lambda: F.l1_loss(G(E(crop), crop_idx=None), crop),
        "S": reconstruction,
    }

    def step() -> dict[str, float]:
        seconds = {}
        torch.Tensor.cuda = lambda tensor: tensor  # type: ignore[method-assign]  # its forward pass calls .cuda()
        for name, loss in losses.items():
            begun = time.perf_counter()
            for other, net in nets.items():
                net.requires_grad_(other == name)
            optimisers[name].zero_grad(set_to_none=True)
            loss().backward()
            optimisers[name].step()
            seconds[name] = time.perf_counter() - begun
        torch.Tensor.cuda = cuda  # type: ignore[method-assign]
        return seconds

    return step, _parameters(G, D)


def _on_path(clone: Path, file: str, option: str) -> None:
    if not (clone / file).is_file():
        raise SystemExit(f"{option} {clone}: there is no {file}; expected a clone of the repository that --help names")
    sys.path.insert(0, str(clone.resolve()))


def _parameters(*nets: nn.Module) -> int:
    return sum(p.numel() for net in nets for p in net.parameters())


def build(name: str, args: argparse.Namespace, cfg: TrainConfig) -> tuple[Step, int]:
    torch.manual_seed(0)
    if name == STYLEGAN2:
        return stylegan2(args.stylegan2_3d, cfg)
    return ha_gan(args.ha_gan, cfg) if name == HA_GAN else own(name, cfg)


def per_image(seconds: dict[str, list[float]], batch: int) -> float:
    """Gives the seconds per image: medians of the phases, the lazy ones by their share."""
    return sum(float(np.median(times)) * SHARES.get(phase, 1.0) for phase, times in seconds.items()) / batch


def _kib(field: str) -> int:
    return int(re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE).group(1))  # type: ignore[union-attr]


def peak(name: str, args: argparse.Namespace, cfg: TrainConfig) -> int:
    """Measures the bytes that networks, optimisers and one whole step add to this process at their peak."""
    CLEAR.write_text("5")  # resets the peak
    before = _kib("VmRSS")
    step, _ = build(name, args, cfg)
    step()
    return (_kib("VmHWM") - before) * 1024


def peak_of(name: str, arguments: Sequence[str]) -> int:
    command = [sys.executable, "-m", "benchmarks.training.step", *arguments, "--peak-of", name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def configuration(args: argparse.Namespace) -> TrainConfig:
    cfg = with_batch(PRESETS[args.preset].train_config(args.preset, tuple(args.shape)), args.batch)
    return dataclasses.replace(cfg, stage="3d")


def table(records: Sequence[dict[str, Any]]) -> str:
    """Writes Markdown; ratios are images per second and memory against the baseline."""
    base = next((r for r in records if r["contender"] == BASELINE), records[0])
    lines = [
        "| | parameters G + D | images/s | against the baseline | peak memory | of the baseline's |",
        "|" + "---|" * 6,
    ]
    for r in records:
        memory = "not measured" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**30:.2f} GiB"
        share = "" if not (r["peak_bytes"] and base["peak_bytes"]) else f"{r['peak_bytes'] / base['peak_bytes']:.0%}"
        speed = r["images_per_second"] / base["images_per_second"]
        name = f"{r['contender']} (baseline)" if r is base else r["contender"]
        lines.append(
            f"| {name} | {r['parameters']:,} | {r['images_per_second']:.3g} | {speed:.2f}x | {memory} | {share} |"
        )
    return "\n".join(lines)


def append(out: Path, records: Sequence[dict[str, Any]], title: str, *paragraphs: str) -> None:
    """Appends JSON lines to `out`, and the section `title` to the Markdown beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)
    with out.with_suffix(".md").open("a") as file:
        file.write("".join(f"{part}\n\n" for part in (f"## {title}", *paragraphs) if part))


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.training.step", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--preset", default="hippocampus", choices=list(PRESETS), help="the preset whose widths the networks have"
    )
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 32, 32), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=[*OURS, STYLEGAN2, HA_GAN],
        help="default: ours, and those whose clone is given",
    )
    parser.add_argument("--stylegan2-3d", type=Path, help="a clone of the dense 3D StyleGAN2")
    parser.add_argument("--ha-gan", type=Path, help="a clone of HA-GAN; 128^3 only")
    parser.add_argument("--out", type=Path, help="JSON lines to append to; a table in Markdown beside it")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # as `ssgan train` does; it serves all contenders
    cfg = configuration(args)
    if args.peak_of:
        print(peak(args.peak_of, args, cfg))
        return 0
    names = args.contenders or [*OURS]
    if not args.contenders:
        names += [STYLEGAN2] if args.stylegan2_3d else []
        names += [HA_GAN] if args.ha_gan else []
    own_arguments = [a for a in (sys.argv[1:] if argv is None else argv)]
    peaks = {n: peak_of(n, own_arguments) if can_measure() else None for n in tqdm(names, desc="memory", disable=None)}
    built = {name: build(name, args, cfg) for name in names}
    for step, _ in tqdm(built.values(), desc="warm-up", disable=None):
        step()
    times: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in names}
    for turn in tqdm(range(args.repeats), desc="rounds", disable=None):
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            for phase, seconds in built[name][0]().items():
                times[name][phase].append(seconds)
    head = {"kind": KIND, **environment(), "shape": list(args.shape), "batch": args.batch}
    records = []
    for name in names:
        phases = {phase: [min(t), float(np.median(t)), max(t)] for phase, t in times[name].items()}
        speed = 1 / per_image(times[name], args.batch)
        record = {"widths": list(cfg.network.widths), "contender": name, "parameters": built[name][1]}
        record |= {"images_per_second": speed, "peak_bytes": peaks[name], "repeats": args.repeats, "phases": phases}
        records.append(head | record)
    text = table(records)
    print(text)
    if args.out:
        title = f"Training step at {'x'.join(map(str, args.shape))}, batch {args.batch}, {args.threads} threads"
        about = f"`{head['device']}`, torch {torch.__version__}, commit {head.get('commit')}"
        append(args.out, records, title, about, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
