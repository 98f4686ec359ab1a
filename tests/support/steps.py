"""Steps of a trainer whose results a test looks at."""

from __future__ import annotations

from typing import Any

from ssgan.training.step import StageTrainer


def numbers(stats: dict[str, Any]) -> dict[str, float]:
    """What `StageTrainer.train_step` returns, as numbers."""
    return {name: float(value) for name, value in stats.items()}


def stepped(trainer: StageTrainer, *batch: Any) -> dict[str, float]:
    """Does a step and returns its losses and mean signs, read from the device."""
    stats = numbers(trainer.train_step(*batch))
    trainer.check()
    return stats
