"""Learning rates, frozen layers, the best checkpoint and early stopping."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ssgan.config.training import TrainConfig
from ssgan.metrics.registry import METRICS, check_names
from ssgan.models.networks import Discriminator
from ssgan.utils.errors import ConfigError

MAX_REWINDS = 5  # times that --on-nan rewind goes back in a stage


def rate_factor(cfg: TrainConfig, stage: str, images: int, inflated: bool, rewinds: int) -> float:
    """Returns the factor on the learning rates: it rises linearly after inflation, falls linearly towards the end of
    the 3D stage, and halves with every rewind.

    images: shown in this stage once the step is done. The last step has a rate above 0. In a run that is made longer
    the rates fall at its new end.
    """
    factor = 0.5**rewinds
    if stage == "3d" and inflated and cfg.warmup_kimg:
        factor *= min(images / (1000 * cfg.warmup_kimg), 1.0)
    if stage == "3d" and cfg.cooldown_kimg:
        left = 1000 * cfg.stage_3d.kimg - images + cfg.stage_3d.batch
        factor *= min(max(left / (1000 * cfg.cooldown_kimg), 0.0), 1.0)
    return factor


def trainable(D: Discriminator, frozen: int) -> None:
    """Sets which layers of D train: all for `frozen` = 0, else all but the first layer (with the embedding of slice
    indices) and the `frozen` finest blocks after it (FreezeD, Mo et al. 2020)."""
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


def best_so_far(rows: Iterable[dict[str, Any]], stage: str, cfg: TrainConfig) -> tuple[float | None, int]:
    """Returns the best value of `cfg.best_metric` in a stage's log rows, and the number of evaluations since then."""
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


def is_stopped_early(rows: Iterable[dict[str, Any]], stage: str, cfg: TrainConfig) -> bool:
    """Returns whether the best metric has not improved for `cfg.early_stop` evaluations (--early-stop)."""
    return cfg.early_stop > 0 and best_so_far(rows, stage, cfg)[1] >= cfg.early_stop
