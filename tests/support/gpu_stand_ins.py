"""What the tests of GPU runs share: layers that a CPU does at once, contenders, a device with a clock of its own."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch

from benchmarks.gpu import training as gpu_training
from benchmarks.gpu.cases import gpu_contenders, serving
from benchmarks.gpu.timing import Ceilings
from benchmarks.operator.cases import Contender, Layer
from ssgan.config.training import TrainConfig

BACKENDS = [name for name in serving("cpu")]
CEILING = Ceilings(operations_per_second=1e12, bytes_per_second=1e11)

# The kinds of layer of a GPU run, in extents that a CPU does at once; odd edges, channels that differ.
TINY = [
    dataclasses.replace(layer, scaled=scaled)
    for scaled in (False, True)
    for layer in (
        Layer(2, 8, 5),
        Layer(2, 8, 5, out_channels=4, stride=2),
        Layer(3, 4, 4, out_channels=8, stride=2),
        Layer(2, 8, 3, out_channels=4, stride=2, transposed=True),
    )
]


def all_variants(backends: list[str]) -> list[tuple[str, str]]:
    return list(itertools.chain(*gpu_training.variants(backends)))


def every_phase(cfg: TrainConfig, batch: int) -> TrainConfig:
    """The same run with path length and style mixing, which not every preset has, at that batch."""
    hyper = dataclasses.replace(cfg.stage_3d, pl_weight=2.0, style_mixing=0.9, batch=batch)
    return dataclasses.replace(cfg, stage_3d=hyper)


def tiny_contenders(layer: Layer, dtype: torch.dtype = torch.float32) -> list[Contender]:
    return gpu_contenders(layer, dtype, "cpu", BACKENDS, compiled=False)


def good_contender(layer: Layer) -> Contender:
    return next(c for c in tiny_contenders(layer) if c.name == "split_depth/ssconv reference")


class FakeDevice:
    """A device whose queue is a number of seconds; what a call takes on the host and on the device is told to it."""

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
