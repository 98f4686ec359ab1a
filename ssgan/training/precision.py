"""How a step is computed without changing what it computes but for rounding: 16-bit convolutions, loss scaling,
activations that are computed again instead of kept, and compiled networks."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as computed_again

from ssgan.models.layers import BranchWeights, Conv, FullyConnected, MinibatchStd, ModulatedConv, ToImage
from ssgan.models.networks import Discriminator, Generator

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Execution:
    """What may change between two calls of one run: it moves results by rounding only.

    accumulate: the batch is worked through in so many parts, with the memory of one. recompute: activations within a
    block are computed again in the backward pass. compile: a backend of torch.compile for the main phases, "" for
    none (the regularisers differentiate twice, which torch.compile cannot). cuda_graphs: `ssgan.training.cuda_graphs`.
    """

    accumulate: int = 1
    recompute: bool = False
    compile: str = ""
    cuda_graphs: bool = False


def lower_convolutions(net: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions, and the activations between them, in `dtype`; weights, styles, demodulation, minibatch std, dense
    layers and images stay float32. The wrappers are attributes of this instance: copy the module before."""
    if dtype == torch.float32:
        return

    def wrapped(forward: Callable[..., Tensor], lowered: bool, out32: bool = False) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def call(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if not lowered:
                x = x.float()
            with torch.autocast(x.device.type, dtype=dtype if lowered else None, enabled=lowered):
                y = forward(x, *args, **kwargs)
            return y.float() if out32 else y

        return call

    for module in net.modules():
        if isinstance(module, (ModulatedConv, Conv, ToImage)):
            module.forward = wrapped(module.forward, True, isinstance(module, ToImage))  # type: ignore[method-assign]
        elif isinstance(module, (FullyConnected, MinibatchStd)):
            module.forward = wrapped(module.forward, False)  # type: ignore[method-assign]
        elif isinstance(module, BranchWeights):
            module.demodulation = wrapped(module.demodulation, False)  # type: ignore[method-assign]


def recompute_blocks(net: nn.Module) -> None:
    """Each block of G.synthesis or D keeps its input only and is computed again where its gradient is."""

    def wrapped(block: nn.Module) -> Callable[..., Any]:
        forward = block.forward

        @functools.wraps(forward)
        def call(*args: Any) -> Any:
            # Drawn noise is taken from the iterator once, not again when the block is computed again.
            noise = [list(itertools.islice(a, block.num_conv)) if isinstance(a, Iterator) else None for a in args]

            def body(*inner: Any) -> Any:
                return forward(*(a if drawn is None else iter(drawn) for a, drawn in zip(inner, noise, strict=True)))

            return computed_again(body, *args, use_reentrant=False, preserve_rng_state=False)

        return call

    blocks = net.synthesis.blocks if isinstance(net, Generator) else net.blocks
    assert isinstance(net, (Generator, Discriminator))
    for block in blocks:
        block.forward = wrapped(block)  # type: ignore[method-assign]


class LossScale:
    """Dynamic loss scaling of one optimiser for fp16: gradients that overflow skip the step and halve the scale;
    `interval` steps without double it. Without fp16 the scale is 1 and nothing is skipped.

    state: (scale, steps since the last change), a tensor for the checkpoint.
    """

    def __init__(self, enabled: bool, scale: float = 2.0**13, interval: int = 1000) -> None:
        self.enabled, self.interval = enabled, interval
        self.scale, self.good = (scale if enabled else 1.0), 0

    def update(self, finite: bool) -> bool:
        """Takes note of a step's gradients; False where the step is to be skipped.

        Overflow at a scale of 1 is not the scale's fault: True then, and the caller's check of finiteness speaks.
        """
        if not self.enabled or (not finite and self.scale <= 1.0):
            return True
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.scale /= 2
        elif self.good >= self.interval:
            self.scale, self.good = min(self.scale * 2, 2.0**24), 0
        return finite

    def state(self) -> Tensor:
        return torch.tensor([self.scale, float(self.good)], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        self.scale, self.good = float(state[0]), int(state[1])
