"""The options of `ssgan train` in named groups, and the TrainConfig that they stand for."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ssgan.config.augmentation import FLIPS, POLICIES, AugmentConfig, policy
from ssgan.config.fields import Triple
from ssgan.config.network import ARCHITECTURES, PROFILES, NetworkConfig
from ssgan.config.presets import PRESETS, preset
from ssgan.config.training import LOSSES, STAGE_OPTIONS, StageConfig, TrainConfig
from ssgan.metrics.registry import check_names, training_names
from ssgan.training.distributed import TIMEOUT
from ssgan.training.precision import DTYPES
from ssgan.training.start_file import start_network
from ssgan.utils.errors import ConfigError
from ssgan.utils.seeding import STAGES

# Options that replace the field of TrainConfig of the same name where they are given.
CONFIG_OPTIONS = (
    "inflate", "snapshot_kimg", "warmup_kimg", "cooldown_kimg", "ema_carries_over", "freeze_d", "metrics",
    "metrics_every", "best_metric", "early_stop", "keep_checkpoints", "precision", "loss",
)  # fmt: skip


def _number(kind: Callable[[str], Any], accepts: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """A parser of numbers for argparse that refuses those outside a range."""

    def parse(text: str) -> Any:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"expected {expected}; got {text}")
        return value

    parse.__name__ = kind.__name__  # argparse names the type in its message
    return parse


POSITIVE = _number(float, lambda v: 0 < v < math.inf, "a number above 0")
NOT_NEGATIVE = _number(float, lambda v: 0 <= v < math.inf, "a number of at least 0")
PROBABILITY = _number(float, lambda v: 0 <= v <= 1, "a number from 0 to 1")
COUNT = _number(int, lambda v: v > 0, "a number above 0")
COUNT_OR_ZERO = _number(int, lambda v: v >= 0, "a number of at least 0")


def _names(text: str) -> tuple[str, ...]:
    """Different names separated by commas."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"expected different names separated by commas; got {text!r}")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `ssgan train`, each to a named group."""
    parser.usage = "ssgan train --out RUN [--data DATASET] [--preset NAME] [options]"
    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, required=True, metavar="RUN", help="folder of the run; the same command resumes it")
    presets = ", ".join(PRESETS)
    add("--preset", default="demo", metavar="NAME", help=f"widths, budgets, rates: {presets} (default demo)")
    add("--seed", type=int, default=0, metavar="N", help="seed of all random numbers (default 0)")
    add(
        "--snapshot-kimg", type=POSITIVE, metavar="KIMG",
        help="thousands of images between checkpoints, each with a snapshot image (default: the preset's)",
    )  # fmt: skip
    add(
        "--keep-checkpoints", type=COUNT, metavar="N", help="newest checkpoints kept besides final and best (default 3)"
    )
    add(
        "--on-nan", choices=("stop", "rewind"), default="stop",
        help="at a NaN: stop, or rewind to the last checkpoint and halve the learning rates (default stop)",
    )  # fmt: skip
    add("--dry-run", action="store_true", help="print cost, memory and time, propose a batch, write nothing")
    add("--no-progress", action="store_true", help="show no progress on stderr")

    add = parser.add_argument_group("data").add_argument
    add(
        "--data", type=Path, metavar="DATASET", help="data set of `ssgan prepare` (default: phantoms, made in RUN/data)"
    )
    add("--conditional", action="store_true", help="condition on the data set's classes (`ssgan prepare --labels`)")
    add(
        "--no-masks", action="store_true",
        help="train on intensities alone (default: with masks, if the data set has any: `ssgan prepare --masks`)",
    )  # fmt: skip

    architectures = tuple(ARCHITECTURES)
    add = parser.add_argument_group("architecture").add_argument
    add("--arch", choices=architectures, default="split_depth", help="of both networks (default split_depth)")
    add("--arch-d", choices=architectures, help="of the discriminator (default: --arch)")
    add(
        "--dense-levels", type=int, nargs="+", default=(), metavar="LEVEL",
        help="levels with dense convolutions whatever the architecture, 0 the coarsest (default none)",
    )  # fmt: skip
    add(
        "--depth-aware", action=argparse.BooleanOptionalAction,
        help="condition the 2D networks on the slice index (default: the preset's)",
    )  # fmt: skip
    add("--mbstd-group", type=COUNT, metavar="N", help="samples in a group of the minibatch std, at most (default 4)")

    add = parser.add_argument_group("stages and budgets", "Defaults are the preset's.").add_argument
    add("--stage", choices=("both", "2d", "3d"), default="both", help="2d on slices, 3d on volumes (default both)")
    add("--inflate", choices=PROFILES, help="depth profile that makes 3D weights of 2D ones; none: random weights")
    add("--init", type=Path, metavar="FILE", help="with --stage 3d: 2D checkpoint, or file written by `ssgan inflate`")
    add("--lr", type=POSITIVE, metavar="RATE", help="learning rate of both networks in both stages")
    for stage in STAGES:
        add(f"--kimg-{stage}", type=POSITIVE, metavar="KIMG", help=f"length of the {stage} stage, thousands of images")
        add(f"--batch-{stage}", type=COUNT, metavar="N", help=f"batch size of the {stage} stage")
        add(f"--lr-g-{stage}", type=POSITIVE, metavar="RATE", help="learning rate of the generator, overrides --lr")
        add(f"--lr-d-{stage}", type=POSITIVE, metavar="RATE", help="learning rate of the discriminator, overrides --lr")
        add(
            f"--ema-kimg-{stage}", type=POSITIVE, metavar="KIMG",
            help="half-life of the moving average of the generator's weights, thousands of images",
        )  # fmt: skip
    add(
        "--warmup-kimg", type=NOT_NEGATIVE, metavar="KIMG",
        help="thousands of images over which the 3D learning rates rise after inflation (default 0)",
    )  # fmt: skip
    add(
        "--cooldown-kimg", type=NOT_NEGATIVE, metavar="KIMG",
        help="thousands of images over which the 3D learning rates fall at the end (default 0)",
    )  # fmt: skip
    add(
        "--ema-carries-over", action=argparse.BooleanOptionalAction,
        help="continue the moving average of the 2D stage after inflation instead of restarting it",
    )  # fmt: skip

    add = parser.add_argument_group(
        "loss and regularisation", "0 switches a term off; defaults are the preset's."
    ).add_argument
    add("--loss", choices=LOSSES, help="StyleGAN2's, or relativistic: real and generated images in pairs (R3GAN)")
    for stage in STAGES:
        add(f"--r1-gamma-{stage}", type=NOT_NEGATIVE, metavar="WEIGHT", help="weight of R1, a penalty on D's gradient")
        add(
            f"--r2-gamma-{stage}", type=NOT_NEGATIVE, metavar="WEIGHT",
            help="weight of R2, R1 on generated images (default: that of R1 with --loss relativistic, else 0)",
        )  # fmt: skip
        add(f"--pl-weight-{stage}", type=NOT_NEGATIVE, metavar="WEIGHT", help="weight of the path-length penalty")
        add(f"--style-mixing-{stage}", type=PROBABILITY, metavar="P", help="probability of style mixing")
    add(
        "--freeze-d", type=COUNT_OR_ZERO, metavar="N",
        help="finest blocks of the inflated discriminator that are not trained (FreezeD; default 0)",
    )  # fmt: skip

    add = parser.add_argument_group(
        "augmentation", "Of the images that the discriminator sees, for small data sets."
    ).add_argument
    add(
        "--augment", choices=("none", "ada", "fixed"), default="none",
        help="ada adapts the probability p to how far the discriminator overfits (default none)",
    )  # fmt: skip
    add(
        "--augment-policy", choices=tuple(POLICIES),
        help="augmentations and their strengths (default: the policy named like the preset, or `default`)",
    )  # fmt: skip
    add("--augment-flips", type=_names, default=(), metavar="NAMES", help=f"flips to allow, of {','.join(FLIPS)}")
    add("--augment-p", type=PROBABILITY, metavar="P", help="probability with --augment fixed (default 0.2)")
    add("--ada-target", type=PROBABILITY, metavar="R", help="target of E[sign D(real)], which moves p (default 0.6)")
    add(
        "--ada-kimg", type=POSITIVE, metavar="KIMG",
        help="thousands of images from p = 0 to p = 1 (default: a tenth of the stage's, at most 500)",
    )  # fmt: skip

    add = parser.add_argument_group("metrics").add_argument
    add(
        "--metrics", type=_names, metavar="NAMES",
        help=f"measured during training, of {','.join(training_names())} (default distance)",
    )  # fmt: skip
    add("--metrics-every", type=COUNT, metavar="N", help="images between measurements (default: at each snapshot)")
    add("--best-metric", metavar="NAME", help="decides which checkpoint is kept as best (default: the first metric)")
    add("--early-stop", type=COUNT, metavar="N", help="end a stage after N measurements without a new best one")

    add = parser.add_argument_group(
        "precision and hardware", "All but --precision may change when a run is resumed; results differ by rounding."
    ).add_argument
    add("--precision", choices=tuple(DTYPES), help="dtype of the convolutions (default fp32)")
    add("--accumulate", type=COUNT, default=1, metavar="N", help="micro-batches per batch (default 1)")
    add("--checkpoint-activations", action="store_true", help="recompute activations in the backward pass")
    add("--compile", action="store_true", help="use torch.compile for both networks in the main phases")
    add("--cuda-graphs", action="store_true", help="capture the phases as CUDA graphs; one process only")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: the GPU if there is one (default)")
    add(
        "--threads", type=COUNT, metavar="N",
        help="CPU threads; the bits of the results depend on the number (default: the fastest by measured steps, at "
        "most the cores that this process may use; a resumed run keeps its number)",
    )  # fmt: skip
    add("--timeout", type=POSITIVE, default=TIMEOUT, metavar="S", help="seconds to wait for processes of torchrun")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ConfigError for options that are wrong whatever the data set is."""
    if args.init is not None and (args.stage != "3d" or args.inflate == "none"):
        raise ConfigError("--init: a 2D checkpoint is inflated by --stage 3d with an --inflate other than none")
    if args.init is not None and not args.init.is_file():
        raise ConfigError(f"--init {args.init}: no such file; expected a 2D checkpoint (.safetensors)")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: expected 0 to {2**32 - 1}; got {args.seed}")
    if args.conditional and args.data is None:
        raise ConfigError("--conditional: expected a --data with classes; the phantoms have none")
    preset(args.preset)
    check_names(args.metrics or ())


def config_from(
    args: argparse.Namespace, shape: Triple, classes: Sequence[str] | None = None, slice_axis: str = "axial",
    mask_classes: int = 0,
) -> TrainConfig:  # fmt: skip
    """The configuration that the options stand for, with networks for volumes of `shape` (D, H, W).

    classes: the names of the data set's classes, if it has any. slice_axis: the data set's, for messages. mask_classes:
    classes of the data set's masks, 0 for none.

    Raises:
        ConfigError: options that do not go together or do not fit the data set.
    """
    if args.conditional and len(classes or ()) < 2:
        have = "none" if not classes else f"only {classes[0]!r}"
        raise ConfigError(
            f"--conditional: expected a data set with at least two classes, this one has {have}; give `ssgan prepare` "
            "a table of classes by --labels, or leave --conditional out"
        )
    changes: dict[str, Any] = {"stage": args.stage, "seed": args.seed, "augment": augment_config(args)}
    changes |= {name: getattr(args, name) for name in CONFIG_OPTIONS if getattr(args, name) is not None}
    if args.metrics and args.best_metric is None:
        changes["best_metric"] = args.metrics[0]
    cfg = preset(args.preset).train_config(args.preset, shape, **changes)
    return dataclasses.replace(
        cfg,
        network=_network(args, cfg.network, len(classes or ()) if args.conditional else 0, slice_axis, mask_classes),
        stage_2d=_stage(args, "2d", cfg.stage_2d),
        stage_3d=_stage(args, "3d", cfg.stage_3d),
    )


def _network(
    args: argparse.Namespace, default: NetworkConfig, classes: int, slice_axis: str, mask_classes: int
) -> NetworkConfig:  # fmt: skip
    """The preset's networks with the architecture asked for, or those that the file given by --init holds."""
    network = default.with_arch(args.arch, args.arch_d, args.dense_levels)
    network = network.with_masks(0 if args.no_masks else mask_classes)
    network = dataclasses.replace(network, classes=classes)
    if args.depth_aware is not None:
        network = network.depth_aware(args.depth_aware)
    network = start_network(args.init, network, slice_axis)
    if args.mbstd_group is not None:
        network = dataclasses.replace(network, mbstd_group=args.mbstd_group)
    return network


def _stage(args: argparse.Namespace, stage: str, default: StageConfig) -> StageConfig:
    """The preset's stage with the options of that stage; --lr-g-STAGE and --lr-d-STAGE go before --lr."""
    rates = {} if args.lr is None else {"lr_g": args.lr, "lr_d": args.lr}
    given = {name: getattr(args, f"{name}_{stage}") for name in STAGE_OPTIONS}
    return dataclasses.replace(default, **rates | {name: v for name, v in given.items() if v is not None})


def augment_config(args: argparse.Namespace) -> AugmentConfig:
    """The augmentation that the options stand for.

    Raises:
        ConfigError: options that do not go together, or out of range.
    """
    options = {
        "--augment-policy": args.augment_policy, "--augment-flips": args.augment_flips, "--augment-p": args.augment_p,
        "--ada-target": args.ada_target, "--ada-kimg": args.ada_kimg,
    }  # fmt: skip
    adaptive, fixed = tuple(n for n in options if n != "--augment-p"), tuple(options)[:3]
    allowed = {"none": (), "ada": adaptive, "fixed": fixed}[args.augment]
    for name, value in options.items():
        if name not in allowed and value not in (None, ()):
            raise ConfigError(f"{name}: has no effect with --augment {args.augment}; leave it out or choose another")
    if args.augment == "none":
        return AugmentConfig()
    name = args.augment_policy or (args.preset if args.preset in POLICIES else "default")
    if args.augment == "fixed":
        return policy(name, args.augment_flips, adapt=False, p_start=0.2 if args.augment_p is None else args.augment_p)
    changes = {"target": args.ada_target, "kimg": args.ada_kimg}
    return policy(name, args.augment_flips, **{k: v for k, v in changes.items() if v is not None})
