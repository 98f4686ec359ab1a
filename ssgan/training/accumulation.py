"""Gradient accumulation: inputs by micro-batch, and gradients summed over micro-batches in one tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssgan.models.conditioning import Condition
from ssgan.training.cuda_graphs import CudaRecorder, Graphs, call_directly, check
from ssgan.training.distributed import Group, split_batch, split_evenly
from ssgan.training.precision import Execution

Gradients = list[Tensor | None]  # of a network's trainable parameters; None where an output does not depend on one


@dataclass(frozen=True)
class MicroBatch:
    """Samples of a batch that are computed together.

    index: among this process's micro-batches. weight: the fraction of the batch; 0 for a dummy. rows: `samples` on the
    device, None for the whole batch in its order.
    """

    index: int
    samples: list[int]
    weight: float
    rows: Tensor | None

    def of(self, whole: Tensor) -> Tensor:
        """Rows of a batch's tensor."""
        return whole if self.rows is None else whole[self.rows]


def split_for_process(
    batch: int, limit: int | None, group: Group, execution: Execution, device: torch.device
) -> list[MicroBatch]:  # fmt: skip
    """Splits a batch over processes and micro-batches and returns those of this process.

    limit: largest size of a minibatch-std group, which is kept whole; None where there is no minibatch std. Without it
    a micro-batch may be empty; then a dummy of weight 0 is computed, so that every process has gradients to sum.
    """
    count = group.size * execution.accumulate
    split = split_evenly(batch, count) if limit is None else split_batch(batch, limit, count)
    own = split[group.rank * execution.accumulate : (group.rank + 1) * execution.accumulate]
    everything, found = list(range(batch)), []
    for i, samples in enumerate(own):
        rows = None if samples == everything else torch.tensor(samples or [0], device=device)
        found.append(MicroBatch(i, samples or [0], len(samples) / batch, rows))
    return found


class GeneratorInputs(NamedTuple):
    """Inputs of the generator for N images.

    z, z_mixed: (N, z_dim). crossover: () int64, the layer from which on z_mixed is used (style mixing). noise: per
    block one (N, 1, D, H, W) for each convolution.
    """

    z: Tensor
    z_mixed: Tensor
    crossover: Tensor
    noise: list[list[Tensor]]
    condition: Condition

    def take(self, micro: MicroBatch) -> GeneratorInputs:
        """Inputs of a micro-batch of these images."""
        noise = [[micro.of(drawn) for drawn in block] for block in self.noise]
        z, z_mixed, condition = micro.of(self.z), micro.of(self.z_mixed), self.condition.map(micro.of)
        return GeneratorInputs(z, z_mixed, self.crossover, noise, condition)


class ImageBatch(NamedTuple):
    """Images (n, C, D, H, W) of a micro-batch and their condition."""

    images: Tensor
    condition: Condition


class Accumulator:
    """Runs segments of a step (`ssgan.training.cuda_graphs`) and sums the gradients that they return."""

    def __init__(self, device: torch.device, execution: Execution, group: Group) -> None:
        self.device = device
        self.call: Callable[..., Any] = call_directly
        if execution.cuda_graphs:
            check(device, group.size)
            self.call = Graphs(CudaRecorder(device))
        self.frozen = 0  # blocks of D that do not train: another number needs other graphs
        self.total: Tensor | None = None  # gradients of a phase, one parameter's after another's
        self.parameters: list[tuple[str, nn.Parameter]] = []  # those that have a gradient

    def begin(self, net: nn.Module) -> None:
        """Forgets the gradients of `net` before a phase that makes new ones."""
        for p in net.parameters():
            p.grad = None
        self.total = None

    def run(self, name: str, micro: MicroBatch, segment: Callable[..., Any], *inputs: Any) -> Any:
        """Calls segment(*inputs) or replays its graph."""
        return self.call((name, micro.index, self.frozen), segment, *inputs)

    def backward(self, name: str, micro: MicroBatch, net: nn.Module, output: Tensor, upstream: Tensor) -> None:
        """Adds the gradients of `output`, which an earlier segment returned."""
        self.add(net, self.run(name, micro, partial(gradients, net, output), upstream))

    def add(self, net: nn.Module, found: Gradients) -> None:
        """Adds a micro-batch's gradients. In all micro-batches of a phase the same parameters have one."""
        named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
        self.parameters = [both for both, gradient in zip(named, found, strict=True) if gradient is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in found if gradient is not None])
        self.total = flat if self.total is None else self.total.add_(flat)

    def assign(self, total: Tensor) -> None:
        """Makes the parameters' `.grad` views of `total`."""
        sizes = [p.numel() for _, p in self.parameters]
        for (_, p), gradient in zip(self.parameters, total.split(sizes), strict=True):
            p.grad = gradient.view(p.shape)


def trainable_parameters(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def gradients(net: nn.Module, output: Tensor, upstream: Tensor) -> Gradients:
    """Gradients of the trainable parameters of `net`."""
    return list(torch.autograd.grad(output, trainable_parameters(net), upstream, allow_unused=True))
