"""Options that change how a step is computed and its results only by rounding: dtype of convolutions, loss scaling,
micro-batches, activation checkpointing, compilation and CUDA graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # of convolutions; None: that of the weights


@dataclass(frozen=True)
class Execution:
    """Options that may change between two calls of one run.

    accumulate: micro-batches that each process divides its samples into; gradients are summed over them. recompute:
    activation checkpointing, block by block. compile: backend of torch.compile for the phases without regulariser, ""
    for none (regularisers differentiate twice, which torch.compile cannot). cuda_graphs: see
    `ssgan.training.cuda_graphs`.
    """

    accumulate: int = 1
    recompute: bool = False
    compile: str = ""
    cuda_graphs: bool = False


class LossScale:
    """Dynamic loss scaling of one optimiser for fp16. A step whose gradients overflow is skipped and halves the scale;
    `interval` steps without overflow double it. Without fp16 the scale is 1 and no step is skipped.
    """

    def __init__(self, enabled: bool, scale: float = 2.0**13, interval: int = 1000) -> None:
        self.enabled, self.interval = enabled, interval
        self.scale, self.good = (scale if enabled else 1.0), 0

    def update(self, finite: bool) -> bool:
        """Adapts the scale to a step's gradients. Returns False if the step is to be skipped.

        With a scale of 1 the scale cannot be the cause of an overflow: True is returned, and the caller's check for
        NaN and infinities stops the training.
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
        """(scale, steps since the last change) for the checkpoint."""
        return torch.tensor([self.scale, float(self.good)], dtype=torch.float64)

    def load(self, state: Tensor) -> None:
        self.scale, self.good = float(state[0]), int(state[1])
