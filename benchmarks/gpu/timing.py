"""Times asynchronous work with device events, behind a flushed L2 cache, contenders in turn.

Launch time must not be measured. So each timed call is preceded by writes to a buffer larger than the L2 cache: they
evict it, and they keep the device busy for longer than the host needs to launch the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from benchmarks.operator.timing import Timing, summarise

HEAD_START = 1.5  # times the host's launch time
LONGEST_HEAD_START = 0.02  # seconds

Prepare = Callable[[], Callable[[], object]]


class Timer(Protocol):
    """Times and peak memory of a device: `CudaTimer` for a GPU, `HostTimer` for a CPU."""

    def flush(self, seconds: float) -> None:
        """Evicts the caches and keeps the device busy for at least `seconds`."""

    def mark(self) -> Any:
        """Marks a point in the device's queue."""

    def between(self, start: Any, stop: Any) -> float:
        """Gives the seconds between two marks; after `synchronise`."""

    def synchronise(self) -> None: ...

    def reset_peak(self) -> int:
        """Begins a new peak; gives the bytes that are allocated now."""

    def peak(self) -> int:
        """Gives the most bytes allocated since `reset_peak`."""


class CudaTimer:
    """Times the current CUDA device."""

    def __init__(self) -> None:
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        cache = getattr(card, "L2_cache_size", 0) or 2**26
        self._buffer = torch.empty(max(4 * cache, 2**28), dtype=torch.uint8, device="cuda")
        self._write_seconds = 0.0
        self.flush(0.0)
        start = self.mark()
        for _ in range(8):
            self.flush(0.0)
        stop = self.mark()
        self.synchronise()
        self._write_seconds = self.between(start, stop) / 8

    def flush(self, seconds: float) -> None:
        for _ in range(max(1, math.ceil(seconds / self._write_seconds) if seconds else 1)):
            self._buffer.zero_()

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        return start.elapsed_time(stop) / 1e3

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def reset_peak(self) -> int:
        self.synchronise()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        self.synchronise()
        return torch.cuda.max_memory_allocated()


class HostTimer:
    """Times a CPU: a call's work is done when it returns, and its peak memory is not known."""

    def flush(self, seconds: float) -> None:
        pass

    def mark(self) -> float:
        return time.perf_counter()

    def between(self, start: float, stop: float) -> float:
        return stop - start

    def synchronise(self) -> None:
        pass

    def reset_peak(self) -> int:
        return 0

    def peak(self) -> int:
        return 0


def measure_on(
    timer: Timer,
    functions: Mapping[str, Prepare],
    *,
    warmup: int = 3,
    repeats: int = 20,
    least: int = 5,
    budget: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[Timing, float]]:
    """Calls every function `repeats` times, round by round; gives quantiles of the device's times, and the launch time.

    A round calls each function once and begins with the next one each time, so that a slow spell falls on all.

    Args:
        functions: by name; each prepares untimed work (a graph, say) and returns the call that is timed.
        warmup: untimed rounds; the last one also tells how long the host takes to launch each call.
        repeats: timed rounds; fewer when `budget` runs out, but never under `least`.
        budget: seconds for the timed rounds together.
        clock: the host's, in seconds; for tests.
    """
    names = list(functions)
    launch = dict.fromkeys(names, 0.0)
    for _ in range(warmup):
        for name in names:
            call = functions[name]()
            timer.synchronise()
            start = clock()
            call()
            launch[name] = clock() - start
            timer.synchronise()
            del call
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = clock()
    for turn in range(repeats):
        if turn >= least and clock() - begun > budget:
            break
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            call = functions[name]()
            timer.flush(min(HEAD_START * launch[name], LONGEST_HEAD_START))
            start = timer.mark()
            call()
            stop = timer.mark()
            timer.synchronise()
            seconds[name].append(timer.between(start, stop))
            del call
    return {name: (summarise(times), launch[name]) for name, times in seconds.items()}
