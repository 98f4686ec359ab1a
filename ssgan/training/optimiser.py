"""Around Adam: lazy regularisation, the average of the generator's weights, and checks for NaN and infinities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssgan.utils.errors import UserError

ALIGNMENT = 64  # elements: 256 bytes of float32


class NonFiniteError(UserError):
    """A loss, gradient or weight became NaN or infinite; the message names it."""


def ema_beta(batch: int, images: float, half_life: float, rampup: float | None) -> float:
    """Returns the weight that the average keeps in one step: 0.5 ** (batch / half-life).

    batch, images (shown so far) and half_life count images. The half-life is at most `rampup * images`, so that an
    average begun from random weights forgets them soon; with images = 0 the average becomes a copy.
    """
    if rampup is not None:
        half_life = min(half_life, images * rampup)
    return 0.5 ** (batch / max(half_life, 1e-8))


def flatten(net: nn.Module) -> Tensor:
    """Moves the parameters of `net` into one tensor, of which they become views, and returns it.

    Each begins at a multiple of `ALIGNMENT` elements, as kernels expect of a tensor of its own.
    """
    parameters = list(net.parameters())
    starts = list(itertools.accumulate((math.ceil(p.numel() / ALIGNMENT) * ALIGNMENT for p in parameters), initial=0))
    flat = parameters[0].new_zeros(starts[-1]).detach()
    for p, start in zip(parameters, starts):
        view = flat[start : start + p.numel()].view(p.shape)
        p.data = view.copy_(p.detach())
    return flat


class Average:
    """The exponential moving average of a network's parameters in another, of the same kind; both are flattened."""

    def __init__(self, average: nn.Module, model: nn.Module) -> None:
        self.average, self.model = flatten(average), flatten(model)

    def update(self, beta: Tensor) -> None:
        """average = beta * average + (1 - beta) * model, in place. beta: (), 1 leaves the average as it is."""
        torch.lerp(self.model, self.average, beta, out=self.average)


def lazy_adam(lr: float, betas: tuple[float, float], interval: int | None) -> tuple[float, tuple[float, float]]:
    """Corrects Adam's learning rate and betas for lazy regularisation (StyleGAN2, appendix B).

    A regulariser every `interval` steps adds one optimiser step to every `interval` of them; with
    c = interval / (interval + 1) the rate becomes c * lr and each beta becomes beta ** c, which keeps the training's
    speed and memory per image. None means no regulariser and no correction.
    """
    if interval is None:
        return lr, betas
    c = interval / (interval + 1)
    return lr * c, (betas[0] ** c, betas[1] ** c)


def step_where(taken: Tensor, adam: torch.optim.Adam, scale: Tensor | None) -> None:
    """Takes a step of a fused Adam where `taken`, () bool, is True; the host does not read it.

    scale: (), of the gradients, which are divided by it; None for 1. The two attributes are those by which PyTorch's
    GradScaler tells a fused optimiser the same.
    """
    if adam.defaults["fused"]:
        adam.found_inf = (~taken).float()  # type: ignore[attr-defined]
        adam.grad_scale = scale  # type: ignore[attr-defined]
    adam.step()


def read(scalars: Sequence[Tensor]) -> list[float]:
    """Copies tensors () of one dtype to the host, all at once. Waits for the device."""
    return torch.stack(list(scalars)).tolist() if scalars else []


class PhaseRecord(NamedTuple):
    """A phase of a step, on the device until the host reads it.

    sound: () bool, whether training may go on after it. loss: (). largest, position: (), the largest gradient by
    magnitude, a NaN above all, and where it is among those of `parameters` (names and sizes), one after another.
    """

    where: str
    sound: Tensor
    loss: Tensor
    largest: Tensor
    position: Tensor
    parameters: Sequence[tuple[str, int]]

    def non_finite_gradient(self) -> str | None:
        """Name of a parameter with a gradient that is not finite; None where all are finite."""
        left = int(self.position)
        for name, size in self.parameters if not math.isfinite(float(self.largest)) else ():
            if left < size:
                return name
            left -= size
        return None


class Watch:
    """Ends training on the device with the first phase that is not sound; the host need not wait for the device.

    alive: () bool, False from that phase on. The state of training is changed only where it is True, so it stays the
    last good one until the host reads.
    """

    def __init__(self, device: torch.device) -> None:
        self.alive = torch.ones((), dtype=torch.bool, device=device)
        self.unread: list[PhaseRecord] = []

    def add(self, phase: PhaseRecord) -> None:
        self.alive = self.alive & phase.sound
        self.unread.append(phase)

    def read(self) -> PhaseRecord | None:
        """Returns the first phase that was not sound. Without one forgets all and returns None."""
        sound = read([phase.sound for phase in self.unread])
        if not all(sound):
            return self.unread[sound.index(False)]
        self.unread.clear()
        return None


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the tensors that hold a NaN or an infinity."""
    floating = [(name, t) for name, t in tensors if t.is_floating_point()]
    finite = read([t.isfinite().all() for _, t in floating])
    return [name for (name, _), fine in zip(floating, finite, strict=True) if not fine]


def check_finite(where: str, models: dict[str, nn.Module], phase: PhaseRecord | None = None) -> None:
    """Checks the weights of `models` for NaN and infinities. phase: one that was not sound, which is an error too.

    Raises:
        NonFiniteError: the message begins with `where` and names the first such weight as MODEL.PARAMETER, or else a
            gradient of the phase.
    """
    bad = [f"weight {k}.{n}" for k, model in models.items() for n in non_finite(model.state_dict().items())]
    gradient = None if phase is None else phase.non_finite_gradient()
    if bad:
        named = f"{bad[0]} is not finite ({len(bad)} such tensors)"
    else:
        named = f"gradient of {gradient} is not finite" if gradient else "all weights and gradients are finite"
    if bad or phase is not None:
        loss = "" if phase is None else f"the loss is {float(phase.loss):g}; "
        raise NonFiniteError(
            f"{where}: {loss}{named}. Training stopped and the last checkpoint is kept; a lower --lr or a higher "
            "--r1-gamma may help"
        )
