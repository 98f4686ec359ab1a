"""Steps of a trainer whose results a test looks at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ssgan.training.phases import Phases
from ssgan.training.step import StageTrainer


def numbers(stats: dict[str, Any]) -> dict[str, float]:
    """What `StageTrainer.train_step` returns, as numbers."""
    return {name: float(value) for name, value in stats.items()}


def stepped(trainer: StageTrainer, *batch: Any) -> dict[str, float]:
    """Does a step and returns its losses and mean signs, read from the device."""
    stats = numbers(trainer.train_step(*batch))
    trainer.check()
    return stats


def run_phase(phases: Phases, net: nn.Module, phase: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a phase and gives its gradients to the parameters of `net`, without a step of the optimiser."""
    phases.accumulator.begin(net)
    result = phase(*arguments)
    assert phases.accumulator.total is not None
    phases.accumulator.assign(phases.accumulator.total)
    return result
