"""Around Adam: lazy regularisation, the average of the generator's weights, and checks for NaN and infinities."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ssgan.utils.errors import UserError


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


@torch.no_grad()
def update_ema(average: nn.Module, model: nn.Module, beta: float) -> None:
    """average = beta * average + (1 - beta) * model for every parameter; buffers are copied. In place."""
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        target.copy_(source.lerp(target, beta))
    for target, source in zip(average.buffers(), model.buffers(), strict=True):
        target.copy_(source)


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


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Returns the names of the tensors that hold a NaN or an infinity."""
    return [name for name, t in tensors if t.is_floating_point() and not bool(torch.isfinite(t).all())]


def check_finite(where: str, loss: float, models: dict[str, nn.Module], net: str = "") -> None:
    """Checks for NaN and infinities the weights of `models`, the gradients of the one named `net`, and the loss.

    Raises:
        NonFiniteError: the message begins with `where` and names the first such tensor as MODEL.PARAMETER, weights
            before gradients.
    """
    bad = [f"weight {k}.{n}" for k, model in models.items() for n in non_finite(model.state_dict().items())]
    if not bad and net:
        gradients = ((n, p.grad) for n, p in models[net].named_parameters() if p.grad is not None)
        bad = [f"gradient of {net}.{n}" for n in non_finite(gradients)]
    if bad or not math.isfinite(loss):
        named = f"{bad[0]} is not finite ({len(bad)} such tensors)" if bad else "all weights and gradients are finite"
        raise NonFiniteError(
            f"{where}: the loss is {loss:g}; {named}. Training stopped and the last checkpoint is kept; "
            "a lower --lr or a higher --r1-gamma may help"
        )
