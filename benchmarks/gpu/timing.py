"""Times of asynchronous work: device events, a cold L2 cache, contenders in turn.

A call's launches must not be what is timed. So each timed call is preceded by writes to a buffer larger than the L2
cache: they evict it, and they keep the device busy for longer than the host needs to launch the call.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from benchmarks.operator.timing import Timing, summarise

HEAD_START = 1.5  # times the host's launch time
LONGEST_HEAD_START = 0.02  # seconds

Prepare = Callable[[], Callable[[], object]]


class Device(Protocol):
    """What the harness needs of a device; `HostDevice` has it for a CPU."""

    def flush(self, seconds: float) -> None:
        """Evicts the caches and keeps the device busy for at least `seconds`."""

    def mark(self) -> Any:
        """A point in the device's queue."""

    def between(self, start: Any, stop: Any) -> float:
        """Seconds between two marks; after `synchronise`."""

    def synchronise(self) -> None: ...

    def reset_peak(self) -> int:
        """Starts a new peak; the bytes that are allocated now."""

    def peak(self) -> int:
        """The most bytes allocated since `reset_peak`."""


class CudaDevice:
    """The current CUDA device."""

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


class HostDevice:
    """A CPU, where work is done when the call returns and no peak of memory is known."""

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
    device: Device,
    functions: Mapping[str, Prepare],
    *,
    warmup: int = 3,
    repeats: int = 20,
    least: int = 5,
    budget: float = 10.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, tuple[Timing, float]]:
    """Calls every function `repeats` times, round by round: quantiles of the device's times, and the launch time.

    A round calls each once and begins one further than the last round, so that a slow spell falls on all.

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
            device.synchronise()
            start = clock()
            call()
            launch[name] = clock() - start
            device.synchronise()
            del call
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun = clock()
    for turn in range(repeats):
        if turn >= least and clock() - begun > budget:
            break
        for i in range(len(names)):
            name = names[(i + turn) % len(names)]
            call = functions[name]()
            device.flush(min(HEAD_START * launch[name], LONGEST_HEAD_START))
            start = device.mark()
            call()
            stop = device.mark()
            device.synchronise()
            seconds[name].append(device.between(start, stop))
            del call
    return {name: (summarise(times), launch[name]) for name, times in seconds.items()}


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches: a large matrix product in operations/s, a large copy in bytes/s (read and written)."""

    operations_per_second: float
    bytes_per_second: float


def ceilings(device: Device, place: str, dtype: torch.dtype, *, edge: int = 8192, copied: int = 2**31) -> Ceilings:
    """Measures both, on random data: zeros run faster than real data."""
    a, b = (torch.randn(edge, edge, device=place, dtype=dtype) for _ in range(2))
    source = torch.randn(copied // 4, device=place)
    target = torch.empty_like(source)
    found = measure_on(
        device,
        {"product": lambda: lambda: torch.mm(a, b), "copy": lambda: lambda: target.copy_(source)},
        repeats=10,
        budget=5.0,
    )
    product, copy = found["product"][0].median, found["copy"][0].median
    return Ceilings(2 * edge**3 / product, 2 * 4 * source.numel() / copy)
