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

    scale, good: () float32 on the device, the scale and the steps since it last changed. The host reads neither.
    """

    def __init__(
        self, enabled: bool, device: torch.device | str = "cpu", scale: float = 2.0**13, interval: int = 1000
    ) -> None:  # fmt: skip
        self.enabled, self.interval = enabled, interval
        self.scale = torch.full((), scale if enabled else 1.0, device=device)
        self.good = torch.zeros((), device=device)

    def excuses(self, finite: Tensor) -> Tensor:
        """Whether training may go on after a step's gradients, which are `finite` or not.

        With a scale of 1 the scale cannot be the cause of an overflow.
        """
        return finite | (self.scale > 1) if self.enabled else finite

    def update(self, finite: Tensor, alive: Tensor) -> None:
        """Adapts the scale to a step's gradients, where `alive`."""
        if not self.enabled:
            return
        good = torch.where(finite, self.good + 1, 0.0)
        due = good >= self.interval
        grown = torch.where(due, (self.scale * 2).clamp(max=2.0**24), self.scale)
        self.scale = torch.where(alive, torch.where(finite, grown, self.scale / 2), self.scale)
        self.good = torch.where(alive, torch.where(due, 0.0, good), self.good)

    def state(self) -> Tensor:
        """(scale, steps since the last change) for the checkpoint."""
        return torch.stack([self.scale, self.good]).to("cpu", torch.float64)

    def load(self, state: Tensor) -> None:
        self.scale, self.good = state.to(self.scale).unbind()
