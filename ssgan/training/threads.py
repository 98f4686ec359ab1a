"""How many threads compute the steps of a run on a CPU: the fastest number, found by measured steps.

The bits of a run depend on the number, since sums are taken in another order; so the measured steps are those of a
trainer of their own, and a run with N threads has the same weights whether N was found or given by --threads. log.jsonl
records the number in a row of its own, and a run that is resumed keeps it.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ssgan.training.dry_run import empty_batch
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer

WINDOW = 16  # steps whose median is a step's time; every 16th step has R1, every fourth path length
SLOWER = 3.0  # times as long, and the number of threads is measured again
REPEATS = 2  # steps that are timed with each number, after one that is not

# Seconds of a step of a stage with a number of threads.
StepTime = Callable[[Run, str, int], float]


def step_time() -> StepTime:
    """Returns a `StepTime` that measures steps without regularisers of a trainer of its own, on zero images."""
    made: list[StageTrainer] = []

    def seconds(run: Run, stage: str, threads: int) -> float:
        if not made:
            made.append(run.new_trainer(stage))
        (trainer,), found = made, []
        images = empty_batch(trainer)
        torch.set_num_threads(threads)
        for _ in range(1 + REPEATS):
            trainer.step = 1
            began = time.perf_counter()
            trainer.train_step(*images)
            found.append(time.perf_counter() - began)
        return min(found[1:])

    return seconds


def numbers(usable: int) -> list[int]:
    """The numbers of threads that are tried: `usable` and the powers of two below it, the largest first."""
    return [usable, *(1 << i for i in reversed(range((usable - 1).bit_length())))]


def try_numbers(usable: int, seconds: Callable[[int], float]) -> dict[int, float]:
    """Returns the seconds of a step with each number of `numbers`, until fewer threads are slower."""
    found: dict[int, float] = {}
    for count in numbers(usable):
        found[count] = seconds(count)
        if found[count] > min(found.values()):
            break
    return found


@dataclass
class Threads:
    """The number of threads of a run in one process on a CPU.

    usable: the most, as many as the process may use cores. given: the number of --threads; it is neither measured nor
    changed. measure: makes a `StepTime`.
    """

    usable: int
    given: int | None = None
    measure: Callable[[], StepTime] = step_time
    used: int = 0
    _window: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _usual: float | None = None  # seconds of a step: the median of the first window with this number

    def begin(self, run: Run, trainer: StageTrainer) -> None:
        """Sets the number before a stage's next step: the given one, the recorded one or the fastest."""
        self._restart()
        last = _recorded(run, trainer.stage)
        if self.given is not None:
            self.used = self.given
        elif last.get("usable_cores") == self.usable:
            self.used = last["threads"]
            run.echo(f"threads: {self.used} of {self.usable}, as before in this stage; --threads N sets it")
        elif self.usable == 1:
            self.used = 1
        else:
            self._choose(run, trainer)
            return
        torch.set_num_threads(self.used)
        if self.given is not None or last:
            self._record(run, trainer)

    def after_step(self, run: Run, trainer: StageTrainer, seconds: float) -> None:
        """Notes a step's time; measures again once the median of `WINDOW` steps is several times what it was."""
        self._window.append(seconds)
        if self.given is not None or self.usable == 1 or len(self._window) < WINDOW:
            return
        median = statistics.median(self._window)
        if self._usual is None:
            self._usual = median
        elif median > SLOWER * self._usual:
            self._choose(run, trainer, f"a step takes {median:.3g} s instead of {self._usual:.3g} s; ")
            self._restart()

    def _restart(self) -> None:
        self._window.clear()
        self._usual = None

    def _choose(self, run: Run, trainer: StageTrainer, why: str = "") -> None:
        """Takes and says the fastest number."""
        seconds = self.measure()
        found = try_numbers(self.usable, lambda count: seconds(run, trainer.stage, count))
        self.used = min(found, key=found.__getitem__)
        torch.set_num_threads(self.used)
        times = ", ".join(f"{n}: {found[n]:.2g} s{' a step' if n == min(found) else ''}" for n in sorted(found))
        run.echo(f"{why}threads: {self.used} of {self.usable} ({times}); --threads N sets it")
        self._record(run, trainer)

    def _record(self, run: Run, trainer: StageTrainer) -> None:
        now = {"threads": self.used, "usable_cores": self.usable}
        if not now.items() <= _recorded(run, trainer.stage).items():
            at = {"stage": trainer.stage, "step": trainer.step, "images": trainer.images, "seconds": run.log.seconds}
            run.log.append({"event": "threads", **at, **now})


def _recorded(run: Run, stage: str) -> dict[str, Any]:
    """The stage's last row about threads; empty where it has none."""
    return next((r for r in reversed(run.log.rows) if r.get("event") == "threads" and r["stage"] == stage), {})
