"""What changes as a run goes on: learning rates, which layers train, which checkpoint is best, when to stop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ssgan.config.training import TrainConfig
from ssgan.metrics.registry import METRICS, check_names
from ssgan.models.networks import Discriminator
from ssgan.utils.errors import ConfigError

MAX_REWINDS = 5  # times that --on-nan rewind goes back in a stage


def rate_factor(cfg: TrainConfig, stage: str, images: int, inflated: bool, rewinds: int) -> float:
    """What the learning rates are multiplied by: a linear rise after inflation, a linear fall to the end of the 3D
    stage, and half for every rewind.

    images: those the discriminator has seen in this stage when the step is done. The last step has a rate above 0. A
    run that is made longer falls at its new end.
    """
    factor = 0.5**rewinds
    if stage == "3d" and inflated and cfg.warmup_kimg:
        factor *= min(images / (1000 * cfg.warmup_kimg), 1.0)
    if stage == "3d" and cfg.cooldown_kimg:
        left = 1000 * cfg.stage_3d.kimg - images + cfg.stage_3d.batch
        factor *= min(max(left / (1000 * cfg.cooldown_kimg), 0.0), 1.0)
    return factor


def trainable(D: Discriminator, frozen: int) -> None:
    """Lets D train but for its first layer, embedding of places included, and the `frozen` finest blocks after it
    (FreezeD, Mo et al. 2020); 0: all."""
    D.requires_grad_(True)
    if frozen:
        for module in (D.from_image, *list(D.blocks)[:frozen]):
            module.requires_grad_(False)
        if D.cfg.depth_places:
            D.depth_embedding.requires_grad_(False)


def check_metrics(cfg: TrainConfig) -> None:
    """Raises ConfigError for an unknown metric, or a best metric that is not measured."""
    check_names(cfg.metrics)
    if cfg.best_metric not in cfg.metrics:
        raise ConfigError(
            f"best_metric: expected one of the measured {', '.join(cfg.metrics)}; got {cfg.best_metric!r}"
        )


def standing(rows: Iterable[dict[str, Any]], stage: str, cfg: TrainConfig) -> tuple[float | None, int]:
    """The best value of the best metric in a stage's log rows, and how many evaluations have passed since."""
    sign = 1.0 if METRICS[cfg.best_metric].lower_is_better else -1.0
    best, since = None, 0
    for row in rows:
        if row.get("stage") != stage or "event" in row or cfg.best_metric not in row:
            continue
        value = row[cfg.best_metric]
        if best is None or sign * value < sign * best:
            best, since = value, 0
        else:
            since += 1
    return best, since


def exhausted(rows: Iterable[dict[str, Any]], stage: str, cfg: TrainConfig) -> bool:
    """Whether --early-stop ends the stage here."""
    return cfg.early_stop > 0 and standing(rows, stage, cfg)[1] >= cfg.early_stop
