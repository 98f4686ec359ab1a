"""`--cuda-graphs`: the pieces of a training step recorded once as CUDA graphs and replayed.

A piece is a function from tensors to tensors in which the host decides nothing: no value is read back, no random number
is drawn, no shape depends on data. `Gan` hands its phases over in such pieces. What stays between them, as ever: random
draws, which are a function of (seed, stage, step), the augmentation, whose p and draws decide on the host which images
are changed, learning rates, the checks for NaN and Inf, the optimisers' steps and the average of the weights. So p,
rates, loss scale and crossover are inputs or lie outside: none of them is baked in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ssgan.utils.errors import ConfigError

WARMUP = 3  # calls of a piece before it is recorded: lazy initialisation, autotuning, torch.compile
Work = Callable[..., Any]


def directly(key: Hashable, work: Work, *inputs: Tensor | None) -> Any:
    """Without graphs: a piece is called."""
    return work(*inputs)


def check(device: torch.device, processes: int) -> None:
    """Raises ConfigError where graphs cannot be recorded."""
    if device.type != "cuda":
        raise ConfigError(f"--cuda-graphs: expected --device cuda; got {device.type}; leave --cuda-graphs out")
    if processes > 1:
        raise ConfigError(
            f"--cuda-graphs: expected one process; got {processes}, whose sums are not recorded; leave --cuda-graphs "
            "out or start one process"
        )


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors of a piece's inputs or outputs: nested lists and tuples of tensors and None."""
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_in(value)]
    return [] if values is None else [values]


class Recorder(Protocol):
    """Where pieces run before they are recorded, and what records them."""

    def warm(self, work: Work, inputs: Iterable[Tensor | None]) -> Any:
        """work(*inputs), as it is going to be recorded."""

    def record(self, work: Work, inputs: Iterable[Tensor | None]) -> tuple[Any, Callable[[], None]]:
        """The outputs of work(*inputs), and what computes them again in place. They hold no values before its call."""


class CudaRecorder:
    """Warm-up and capture on one side stream; all graphs share a memory pool.

    They may, since what a replayed piece gives is used up before any piece recorded earlier is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, work: Work, inputs: Iterable[Tensor | None]) -> Any:
        inputs = list(inputs)
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = work(*inputs)
        current.wait_stream(self.stream)
        for tensors, stream in ((inputs, self.stream), (outputs, current)):  # each is freed on the other's stream
            for tensor in tensors_in(tensors):
                tensor.record_stream(stream)
        return outputs

    def record(self, work: Work, inputs: Iterable[Tensor | None]) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            outputs = work(*inputs)
        return outputs, graph.replay


@dataclass(frozen=True)
class Recorded:
    """A piece's static inputs and outputs, and what computes these from those."""

    inputs: list[Tensor | None]
    outputs: Any
    replay: Callable[[], None]

    def fill(self, key: Hashable, inputs: tuple[Tensor | None, ...]) -> None:
        for number, (static, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            found, expected = (None if t is None else (tuple(t.shape), t.dtype) for t in (given, static))
            if found != expected:
                raise RuntimeError(f"graph {key}, input {number}: recorded with {expected}; got {found}")
            if static is not None:
                static.copy_(given)


class Graphs:
    """Calls pieces: the first `WARMUP` times as they are, then recorded and replayed.

    key: names a piece and everything but its inputs that changes what it computes (which part of the batch, which
    layers are frozen); another key is recorded by itself. Parameters keep their storage, so they are read as they are
    at each replay. Outputs are overwritten by the next call with the same key.
    """

    def __init__(self, recorder: Recorder, warmup: int = WARMUP) -> None:
        self.recorder, self.warmup = recorder, warmup
        self.calls: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, Recorded] = {}

    def __call__(self, key: Hashable, work: Work, *inputs: Tensor | None) -> Any:
        self.calls[key] += 1
        if self.calls[key] <= self.warmup:
            return self.recorder.warm(work, inputs)
        if key in self.recorded:
            self.recorded[key].fill(key, inputs)
        else:  # filled by the clone: autograd would not let a later piece use an input that was written to
            static = [None if t is None else t.detach().clone() for t in inputs]
            self.recorded[key] = Recorded(static, *self.recorder.record(work, static))
        recorded = self.recorded[key]
        recorded.replay()
        return recorded.outputs
