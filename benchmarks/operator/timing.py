"""Measures the wall-clock times of several functions, in turn, so that a slow spell of the machine falls on all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: quantiles over `repeats` calls."""

    repeats: int
    minimum: float
    q10: float
    q25: float
    median: float
    q75: float
    q90: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def summarise(seconds: list[float]) -> Timing:
    """Gives quantiles (linear interpolation) of the times of single calls; raises ValueError if there are none."""
    if not seconds:
        raise ValueError("seconds: expected at least one time; got none")
    return Timing(len(seconds), min(seconds), *(float(q) for q in np.quantile(seconds, QUANTILES)))


def measure(
    functions: Mapping[str, Callable[[], object]],
    *,
    warmup: int = 3,
    repeats: int = 15,
    budget: float = 60.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Calls every function `repeats` times, round by round, and gives quantiles of the times.

    A round calls each function once; the next round starts with the next function, so that none always follows the
    same other. A slow spell of the machine thus falls on all of them.

    Args:
        functions: by name; each call is timed alone and must return when its work is done (no asynchronous device).
        warmup: untimed rounds first (allocator, oneDNN's primitive cache).
        repeats: timed rounds; fewer when `budget` runs out, but never under 3.
        budget: seconds for the timed rounds together.
        clock: seconds; for tests.
    """
    names = list(functions)
    for _ in range(warmup):
        for name in names:
            functions[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = clock()
    for turn in range(repeats):
        if turn >= 3 and clock() - begun > budget:
            break
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            start = clock()
            functions[name]()
            seconds[name].append(clock() - start)
    return {name: summarise(times) for name, times in seconds.items()}
