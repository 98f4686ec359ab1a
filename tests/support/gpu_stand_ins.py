"""Stand-ins for a GPU run: layers and peaks for a CPU, and a timer whose clock the test sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from benchmarks.gpu.cases import gpu_contenders, serving
from benchmarks.gpu.roofline import Peaks
from benchmarks.operator.cases import Contender, Layer

BACKENDS = [name for name in serving("cpu")]
PEAKS = Peaks(operations_per_second=1e12, bytes_per_second=1e11)

# The kinds of layer of a GPU run, small; odd edges, channels that differ.
TINY = [
    dataclasses.replace(layer, scaled=scaled)
    for scaled in (False, True)
    for layer in (
        Layer(2, 8, 5),
        Layer(3, 4, 4, out_channels=8, stride=2),
        Layer(2, 8, 3, out_channels=4, stride=2, transposed=True),
    )
]


def tiny_contenders(layer: Layer, dtype: torch.dtype = torch.float32) -> list[Contender]:
    return gpu_contenders(layer, dtype, "cpu", BACKENDS, compiled=False)


def good_contender(layer: Layer) -> Contender:
    return next(c for c in tiny_contenders(layer) if c.name == "split_depth/ssconv reference")


class FakeTimer:
    """A timer of a device whose queue is a number of seconds; each call's times on host and device are given."""

    def __init__(self) -> None:
        self.host = self.queue = 0.0
        self.events: list[tuple[str, float]] = []

    def work(self, name: str, host: float, device: float) -> Callable[[], Callable[[], None]]:
        def prepare() -> Callable[[], None]:
            self.events.append((f"prepare {name}", 0.0))

            def call() -> None:
                self.events.append((name, 0.0))
                self.queue = max(self.queue, self.host)
                self.host += host
                self.queue = max(self.queue + device, self.host)

            return call

        return prepare

    def flush(self, seconds: float) -> None:
        self.events.append(("flush", seconds))
        self.queue = max(self.queue, self.host) + max(seconds, 0.001)

    def mark(self) -> float:
        self.queue = max(self.queue, self.host)
        return self.queue

    def between(self, start: float, stop: float) -> float:
        return stop - start

    def synchronise(self) -> None:
        self.host = max(self.host, self.queue)

    def reset_peak(self) -> int:
        return 100

    def peak(self) -> int:
        return 350
