"""`--cuda-graphs`: captures the segments of a training step as CUDA graphs and replays them.

A segment is a function from tensors to tensors that a graph can hold: the host reads no value in it, draws no random
number and derives no shape from data. `ssgan.training.phases` consists of segments and of what stands between them:
random draws, which depend on (seed, stage, step); the augmentation, whose parameters decide on the host which images
are changed; learning rates, optimiser steps, the checks for NaN and infinities and the average of the weights. So p,
learning rates, loss scale and crossover are inputs of segments or used between them; a graph holds none of them as a
constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ssgan.utils.errors import ConfigError

WARMUP = 3  # calls of a segment before it is captured: lazy initialisation, autotuning, torch.compile
Segment = Callable[..., Any]


def call_directly(key: Hashable, segment: Segment, *inputs: Any) -> Any:
    """Calls a segment without graphs; the counterpart of `Graphs.__call__`."""
    return segment(*inputs)


def check(device: torch.device, processes: int) -> None:
    """Raises ConfigError where graphs cannot be captured."""
    if device.type != "cuda":
        raise ConfigError(f"--cuda-graphs: expected --device cuda; got {device.type}; leave --cuda-graphs out")
    if processes > 1:
        raise ConfigError(
            f"--cuda-graphs: expected one process; got {processes}, whose sums are not captured; leave --cuda-graphs "
            "out or start one process"
        )


def tensors_in(values: Any) -> list[Tensor]:
    """Tensors in a segment's inputs or outputs, which are nested lists and tuples of tensors and None."""
    return [leaf for leaf in tree_leaves(values) if leaf is not None]


class Recorder(Protocol):
    """Runs segments as they will be captured, and captures them."""

    def warm(self, segment: Segment, inputs: Iterable[Any]) -> Any:
        """Calls segment(*inputs) in the setting of a capture."""

    def record(self, segment: Segment, inputs: Iterable[Any]) -> tuple[Any, Callable[[], None]]:
        """Captures segment(*inputs): its outputs, which hold no values yet, and the function that computes them."""


class CudaRecorder:
    """Warms up and captures on one side stream; all graphs share a memory pool.

    They may share it: the outputs of a replayed segment are used up before any segment captured earlier is replayed.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def warm(self, segment: Segment, inputs: Iterable[Any]) -> Any:
        inputs = list(inputs)
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = segment(*inputs)
        current.wait_stream(self.stream)
        for tensors, stream in ((inputs, self.stream), (outputs, current)):  # each is freed on the other's stream
            for tensor in tensors_in(tensors):
                tensor.record_stream(stream)
        return outputs

    def record(self, segment: Segment, inputs: Iterable[Any]) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            outputs = segment(*inputs)
        return outputs, graph.replay


@dataclass(frozen=True)
class Captured:
    """A captured segment: its static inputs and outputs, and the function that computes these from those."""

    inputs: list[Any]
    outputs: Any
    replay: Callable[[], None]

    def fill(self, key: Hashable, inputs: tuple[Any, ...]) -> None:
        """Copies `inputs` into the static ones.

        Raises:
            RuntimeError: an input has another shape or dtype than when the segment was captured.
        """
        for number, (static, given) in enumerate(zip(tree_leaves(self.inputs), tree_leaves(inputs), strict=True)):
            found, expected = (None if t is None else (tuple(t.shape), t.dtype) for t in (given, static))
            if found != expected:
                raise RuntimeError(f"graph {key}, input {number}: captured with {expected}; got {found}")
            if static is not None:
                static.copy_(given)


class Graphs:
    """Calls segments: the first `WARMUP` times as they are, then captures and replays them.

    key: names a segment and everything but its inputs that changes what it computes (the micro-batch, which layers
    train); each key is captured by itself. Parameters keep their storage, so a replay reads their current values.
    Outputs are overwritten by the next call with the same key.
    """

    def __init__(self, recorder: Recorder, warmup: int = WARMUP) -> None:
        self.recorder, self.warmup = recorder, warmup
        self.calls: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Captured] = {}

    def __call__(self, key: Hashable, segment: Segment, *inputs: Any) -> Any:
        self.calls[key] += 1
        if self.calls[key] <= self.warmup:
            return self.recorder.warm(segment, inputs)
        if key in self.captured:
            self.captured[key].fill(key, inputs)
        else:  # the clones hold the inputs: autograd forbids a later segment to use an input that was written to
            static = tree_map(lambda t: None if t is None else t.detach().clone(), list(inputs))
            self.captured[key] = Captured(static, *self.recorder.record(segment, static))
        captured = self.captured[key]
        captured.replay()
        return captured.outputs
