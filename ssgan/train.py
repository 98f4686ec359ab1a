"""`ssgan train`: one command trains both stages, and the same command resumes.

python -m ssgan.train --data DATASET --out RUN --preset hippocampus
python -m ssgan.train --out RUN                       # the demo, on phantoms
torchrun --nproc-per-node 8 -m ssgan.train --data DATASET --out RUN    # the same run in 8 processes
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ssgan.config.augmentation import FLIPS, POLICIES, AugmentConfig, policy
from ssgan.config.training import (
    ARCHITECTURES,
    PRESETS,
    PROFILES,
    STAGE_OPTIONS,
    ConfigError,
    StageConfig,
    TrainConfig,
    preset,
)
from ssgan.data.dataset import VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs.log import RunError, RunLock, check_folder
from ssgan.training.cuda_graphs import check as check_graphs
from ssgan.training.distributed import TIMEOUT, Group, join, leave
from ssgan.training.dry_run import dry_run
from ssgan.training.loop import train
from ssgan.training.precision import DTYPES, Execution
from ssgan.training.schedule import check_metrics, check_names
from ssgan.training.start_file import start_network
from ssgan.utils.environment import keep_freed_memory, pick_device
from ssgan.utils.errors import run_command
from ssgan.utils.files import read_json

PHANTOMS = 256
# Arguments that replace the field of TrainConfig of the same name where they are given.
OPTIONAL = (
    "inflate", "snapshot_kimg", "warmup_kimg", "cooldown_kimg", "ema_carries_over", "freeze_d", "metrics",
    "metrics_every", "best_metric", "early_stop", "keep_checkpoints", "precision",
)  # fmt: skip


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0; got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number of at least 0; got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0; got {text}")
    return value


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected different names separated by commas; got {text!r}")
    return names


def _probability(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1; got {text}")
    return value


def augment_config(args: argparse.Namespace) -> AugmentConfig:
    """The augmentation that the arguments stand for.

    Raises:
        ConfigError, PolicyError: arguments that do not go together, or out of range.
    """
    own = {
        "--augment-policy": args.augment_policy, "--augment-flips": args.augment_flips, "--augment-p": args.augment_p,
        "--ada-target": args.ada_target, "--ada-kimg": args.ada_kimg,
    }  # fmt: skip
    serves = {"none": (), "ada": tuple(n for n in own if n != "--augment-p"), "fixed": tuple(own)[:3]}[args.augment]
    for name, value in own.items():
        if name not in serves and value not in (None, ()):
            raise ConfigError(f"{name}: has no effect with --augment {args.augment}; leave it out or choose another")
    if args.augment == "none":
        return AugmentConfig()
    name = args.augment_policy or (args.preset if args.preset in POLICIES else "default")
    if args.augment == "fixed":
        return policy(name, args.augment_flips, adapt=False, p_start=0.2 if args.augment_p is None else args.augment_p)
    given = {"target": args.ada_target, "kimg": args.ada_kimg}
    return policy(name, args.augment_flips, **{k: v for k, v in given.items() if v is not None})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    number, count = _positive(float), _positive(int)
    parser.add_argument("--data", type=Path, help="a data set made by `ssgan prepare` (default: phantoms in RUN/data)")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; an existing run is resumed")
    parser.add_argument("--preset", default="demo", help=f"one of {', '.join(PRESETS)} (default demo)")
    parser.add_argument("--stage", choices=("both", "2d", "3d"), default="both", help="default both")
    parser.add_argument("--arch", choices=tuple(ARCHITECTURES), default="split_depth", help="default split_depth")
    parser.add_argument(
        "--arch-d", choices=tuple(ARCHITECTURES), help="of the discriminator, where it is another than --arch"
    )
    parser.add_argument(
        "--dense-levels", type=int, nargs="+", default=(), metavar="LEVEL",
        help="levels whose convolutions are dense whatever --arch, 0 the coarsest (default none)",
    )  # fmt: skip
    parser.add_argument(
        "--inflate", choices=PROFILES, help="depth profile (default: the preset's); none starts 3D afresh"
    )
    parser.add_argument(
        "--init", type=Path, help="with --stage 3d: a 2D checkpoint to inflate from, or what `ssgan inflate` wrote"
    )
    parser.add_argument(
        "--depth-aware", action=argparse.BooleanOptionalAction,
        help="tell the 2D stage where along depth each slice lies (default: the preset's)",
    )  # fmt: skip
    parser.add_argument(
        "--conditional", action="store_true", help="train on the data set's classes (`ssgan prepare --labels`)"
    )
    parser.add_argument("--seed", type=int, default=0)
    for stage in ("2d", "3d"):
        parser.add_argument(f"--kimg-{stage}", type=number, help="thousand real images shown to the discriminator")
        parser.add_argument(f"--batch-{stage}", type=count)
        parser.add_argument(f"--r1-gamma-{stage}", type=_not_negative, help="weight of R1; 0 switches it off")
        parser.add_argument(f"--lr-g-{stage}", type=number, help="Adam's learning rate of the generator; before --lr")
        parser.add_argument(f"--lr-d-{stage}", type=number, help="and of the discriminator")
        parser.add_argument(f"--pl-weight-{stage}", type=_not_negative, help="of path length; 0 switches it off")
        parser.add_argument(f"--style-mixing-{stage}", type=_probability, help="probability; 0 switches it off")
        parser.add_argument(f"--ema-kimg-{stage}", type=number, help="half-life of the average of G's weights")
    parser.add_argument("--lr", type=number, help="Adam's learning rate, both networks and stages")
    parser.add_argument(
        "--snapshot-kimg", type=number, help="a checkpoint and a snapshot every so many thousand images"
    )
    group = parser.add_argument_group("starts and schedules")
    group.add_argument("--warmup-kimg", type=_not_negative, help="rise of the 3D rates after inflation (default 0)")
    group.add_argument("--cooldown-kimg", type=_not_negative, help="fall of the 3D rates at the end (default 0)")
    group.add_argument(
        "--ema-carries-over", action=argparse.BooleanOptionalAction,
        help="the average of G's weights goes on after inflation, it does not begin anew (default: the preset's)",
    )  # fmt: skip
    group.add_argument(
        "--freeze-d", type=_count, help="finest blocks of the inflated D that stay as they are (default 0)"
    )
    group.add_argument(
        "--mbstd-group", type=count, help="largest group of the minibatch standard deviation (default 4)"
    )
    group.add_argument("--metrics", type=_names, help="measured while training, such as a,b (default distance)")
    group.add_argument("--metrics-every", type=count, help="images between measurements (default: with the snapshots)")
    group.add_argument("--best-metric", help="decides which checkpoint is kept as best (default: the first metric)")
    group.add_argument("--early-stop", type=count, help="end a stage after so many measurements without a better one")
    group.add_argument("--keep-checkpoints", type=count, help="the last so many are kept, besides final and best (3)")
    group.add_argument(
        "--on-nan", choices=("stop", "rewind"), default="stop",
        help="rewind goes back to the last checkpoint and halves the learning rates",
    )  # fmt: skip
    group = parser.add_argument_group("augmentation of what the discriminator sees, for small data sets")
    group.add_argument(
        "--augment", choices=("none", "ada", "fixed"), default="none",
        help="ada adapts its probability to how far D overfits (default none)",
    )  # fmt: skip
    group.add_argument(
        "--augment-policy", choices=tuple(POLICIES), help="default: the preset's name where there is such a policy"
    )
    group.add_argument("--augment-flips", type=_names, default=(), help=f"flips to allow, of {','.join(FLIPS)}")
    group.add_argument("--augment-p", type=_probability, help="with fixed: the probability (default 0.2)")
    group.add_argument("--ada-target", type=_probability, help="E[sign D(real)] that p is led to (default 0.6)")
    group.add_argument(
        "--ada-kimg", type=number, help="thousand images from p = 0 to 1 (default: a tenth of the stage's, at most 500)"
    )
    group = parser.add_argument_group("execution (another choice is the same run to rounding)")
    group.add_argument("--precision", choices=tuple(DTYPES), help="of the convolutions; fixed for a run (default fp32)")
    group.add_argument("--accumulate", type=count, default=1, help="work through each batch in so many parts")
    group.add_argument(
        "--checkpoint-activations", action="store_true", help="compute activations again instead of keeping them"
    )
    group.add_argument("--compile", action="store_true", help="torch.compile for G and D in the main phases")
    group.add_argument(
        "--cuda-graphs", action="store_true", help="record the phases as CUDA graphs and replay them; one process"
    )
    group.add_argument(
        "--timeout", type=number, default=TIMEOUT, help="seconds to wait for another process of torchrun"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print cost, memory and time to finish, propose a batch, write nothing"
    )
    parser.add_argument("--threads", type=count, help="CPU threads (default: all cores)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--no-progress", action="store_true", help="no progress on stderr")


def config_from(
    args: argparse.Namespace, shape: tuple[int, int, int], classes: Sequence[str] | None = None
) -> TrainConfig:
    """The configuration that the arguments stand for, with networks for volumes of `shape` (D, H, W).

    classes: the names of the data set's classes, if it has any.
    """
    if args.conditional and len(classes or ()) < 2:
        have = "none" if not classes else f"only {classes[0]!r}"
        raise ConfigError(
            f"--conditional: expected a data set with at least two classes, this one has {have}; give `ssgan prepare` "
            "a table of classes by --labels, or leave --conditional out"
        )
    changes: dict[str, Any] = {"stage": args.stage, "seed": args.seed}
    changes |= {name: getattr(args, name) for name in OPTIONAL if getattr(args, name) is not None}
    changes["augment"] = augment_config(args)
    if args.metrics and args.best_metric is None:
        changes["best_metric"] = args.metrics[0]
    cfg = preset(args.preset).train_config(args.preset, shape, **changes)
    asked = cfg.network.with_arch(args.arch, args.arch_d, args.dense_levels)
    asked = dataclasses.replace(asked, classes=len(classes or ()) if args.conditional else 0)
    if args.depth_aware is not None:
        asked = asked.depth_aware(args.depth_aware)
    network = start_network(args.init, asked)
    if args.mbstd_group is not None:
        network = dataclasses.replace(network, mbstd_group=args.mbstd_group)
    cfg = dataclasses.replace(cfg, network=network)

    def stage(name: str, default: StageConfig) -> StageConfig:
        given = {key: getattr(args, f"{key}_{name}") for key in STAGE_OPTIONS}
        rates = {} if args.lr is None else {"lr_g": args.lr, "lr_d": args.lr}
        return dataclasses.replace(default, **rates | {k: v for k, v in given.items() if v is not None})

    return dataclasses.replace(cfg, stage_2d=stage("2d", cfg.stage_2d), stage_3d=stage("3d", cfg.stage_3d))


def open_data(args: argparse.Namespace) -> tuple[VolumeDataset, str]:
    """The data set and its path as config.json records it; phantoms are made in a new run that names none."""
    if args.data is not None:
        return VolumeDataset(args.data), str(args.data)
    own = args.out / "data"
    if (args.out / "config.json").exists():
        recorded = read_json(args.out / "config.json")["data"]["path"]
        if recorded != "data":
            raise RunError(f"{args.out} was trained on --data {recorded}; give it again to resume, or another --out")
        return VolumeDataset(own), "data"
    if own.exists():  # left by a process that was stopped before it had written config.json; check_folder knows it
        shutil.rmtree(own)
    print(f"no --data: making {PHANTOMS} phantoms in {own}")
    return write_phantom_dataset(own, count=PHANTOMS, shape=preset(args.preset).shape, seed=args.seed), "data"


def run(args: argparse.Namespace) -> int:
    if args.init is not None and (args.stage != "3d" or args.inflate == "none"):
        raise ConfigError("--init: a 2D checkpoint is inflated by --stage 3d with an --inflate other than none")
    if args.init is not None and not args.init.is_file():
        raise ConfigError(f"--init {args.init}: no such file; expected a 2D checkpoint (.safetensors)")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: expected 0 to {2**32 - 1}; got {args.seed}")
    if args.conditional and args.data is None:
        raise ConfigError("--conditional: expected a --data with classes; the phantoms have none")
    preset(args.preset)
    check_names(args.metrics or ())  # before phantoms are made
    device = pick_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    if args.cuda_graphs:
        check_graphs(device, int(os.environ.get("WORLD_SIZE", "1")))
    if not args.dry_run:
        check_folder(args.out)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(args.threads or max((os.cpu_count() or 1) // local, 1))
    compiler = "inductor" if args.compile else ""
    execution = Execution(args.accumulate, args.checkpoint_activations, compiler, args.cuda_graphs)
    if args.dry_run:
        info = None if args.data is None else VolumeDataset(args.data).info
        cfg = config_from(args, info.shape if info else preset(args.preset).shape, info.classes if info else None)
        check_metrics(cfg)
        dry_run(cfg, device, execution)
        return 0
    try:
        return _train(args, device, execution, join(device, args.timeout))
    finally:
        leave()


def _train(args: argparse.Namespace, device: torch.device, execution: Execution, group: Group) -> int:
    """This process's share of the run; the main one holds the lock and makes the data."""
    with contextlib.ExitStack() as held:
        if group.main:
            args.out.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunLock(args.out))
            data, path = open_data(args)
        group.barrier(device)  # the data are there
        if not group.main:
            data, path = VolumeDataset(args.data or args.out / "data"), str(args.data or "data")
        cfg = config_from(args, data.info.shape, data.info.classes)
        if group.main and data.info.classes and not args.conditional:
            print(f"the data set has {len(data.info.classes)} classes, not used: --conditional trains on them")
        return train(
            cfg, data, args.out, init=args.init, data_path=path, device=device, progress=not args.no_progress,
            echo=print if group.main else _silent, execution=execution, group=group, on_nan=args.on_nan,
        )  # fmt: skip


def _silent(text: str) -> None:
    """The main process speaks for all."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="ssgan train", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
