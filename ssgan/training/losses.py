"""Losses and regularisers of StyleGAN2 (Karras et al. 2020), for volumes. They return tensors and never call backward.

Sources: the equations of "Analyzing and Improving the Image Quality of StyleGAN" and the choices of
StyleGAN2-ADA's `training/loss.py`: non-saturating logistic loss, R1 on real images, path-length regularisation.
Images are (N, C, D, H, W) with nominal range [-1, 1]; logits are (N, 1); ws are (N, num_ws, w_dim). All float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssgan.utils.errors import UserError


class NonFiniteError(UserError):
    """A loss, gradient or weight became NaN or infinite; the message names it."""


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss, mean of -log(sigmoid(D(G(z)))): a scalar."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Logistic loss, mean of -log(1 - sigmoid(D(G(z)))) plus mean of -log(sigmoid(D(x))): a scalar."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def r1_penalty(real_logits: Tensor, real_images: Tensor) -> Tensor:
    """Squared norm of the logits' gradient at each real image, (N,) (Mescheder et al. 2018, equation 9).

    The loss is gamma / 2 times its mean. `real_images` must require a gradient and have led to `real_logits`. Like
    StyleGAN2, the sum of the logits is differentiated: with minibatch statistics the images of a batch mix.
    """
    (gradient,) = torch.autograd.grad(real_logits.sum(), real_images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


class PathLength(NamedTuple):
    """What `path_length_penalty` gives: the (N,) penalty, the (N,) lengths and the moved mean (scalar, detached)."""

    penalty: Tensor
    lengths: Tensor
    mean: Tensor


def path_lengths(images: Tensor, ws: Tensor, pl_noise: Tensor, create_graph: bool = True) -> Tensor:
    """The (N,) lengths |J^T y| of `path_length_penalty`."""
    voxels = images[0, 0].numel()
    (gradient,) = torch.autograd.grad((images * pl_noise).sum() / voxels**0.5, ws, create_graph=create_graph)
    return gradient.square().sum(2).mean(1).sqrt()


def path_length_penalty(
    images: Tensor, ws: Tensor, pl_noise: Tensor, pl_mean: Tensor, decay: float,
    batch_mean: Callable[[Tensor], Tensor] = torch.mean,
) -> PathLength:  # fmt: skip
    """Path-length regularisation (StyleGAN2 equation 4): (|J^T y| - a)^2 per image, J the Jacobian of G by ws.

    y is `pl_noise` (standard normal, the shape of `images`) divided by sqrt(D * H * W), so that the lengths do not
    grow with the volume; `a` is `pl_mean` moved by `decay` towards this batch's mean. The norm is over w_dim, with
    the mean over the num_ws layers of its square. `images` must depend on `ws` (N, num_ws, w_dim).

    For a volume that is constant along depth the lengths equal those of its slice, so the running mean of the 2D
    stage stays right after inflation.

    batch_mean: (N,) detached lengths -> their mean over the whole batch, where these images are a part of it.
    """
    lengths = path_lengths(images, ws, pl_noise)
    of_batch = batch_mean(lengths.detach())
    mean = pl_mean.lerp(of_batch, decay)
    # As in StyleGAN2-ADA the gradient also runs through the mean, with the small weight `decay`. Summed over the batch
    # that is a slope of -2 decay (batch mean - mean) per length, which needs nothing of the other parts but their mean.
    through_mean = 2 * decay * (of_batch - mean) * (lengths - lengths.detach())
    return PathLength((lengths - mean).square() - through_mean, lengths.detach(), mean)


def draw_crossover(num_ws: int, probability: float, generator: torch.Generator) -> int:
    """The layer of style mixing, for a whole batch as in StyleGAN2-ADA: layers from it on take another latent.

    Uniform in 1 .. num_ws - 1 with `probability`, else num_ws (no mixing). `generator` lives on the CPU.
    """
    mixed = float(torch.rand((), generator=generator)) < probability
    if not mixed or num_ws < 2:
        return num_ws
    return int(torch.randint(1, num_ws, (), generator=generator))


def mixed_styles(
    mapping: nn.Module, z: Tensor, z_mixed: Tensor, num_ws: int, crossover: int | Tensor, update_w_avg: bool = False,
    c: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """ws (N, num_ws, w_dim) of latents `z` (N, z_dim), with layers `crossover` .. num_ws - 1 from `z_mixed`.

    crossover: a number, or an integer tensor () whose value is not read. `mapping` is `Generator.mapping`; only `z`
    moves its running mean, if `update_w_avg`. c: labels, for both latents.
    """
    ws, other = mapping(z, c, update_w_avg=update_w_avg), mapping(z_mixed, c)
    own = (torch.arange(num_ws, device=z.device) < crossover)[:, None]
    return torch.where(own, ws.unsqueeze(1), other.unsqueeze(1))


def ema_beta(batch: int, images: float, half_life: float, rampup: float | None) -> float:
    """Weight that the average keeps in one step: 0.5 ** (batch / half-life).

    batch, images (shown so far) and half_life count images. The half-life is at most `rampup * images`, so that an
    average begun from random weights forgets them soon; at images = 0 the average becomes a copy.
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
    """Learning rate and betas of Adam corrected for lazy regularisation (StyleGAN2, appendix B).

    A regulariser every `interval` steps adds one optimiser step to every `interval` of them; with
    c = interval / (interval + 1) the rate becomes c * lr and each beta becomes beta ** c, which keeps the training's
    speed and memory per image. None means no regulariser and no correction.
    """
    if interval is None:
        return lr, betas
    c = interval / (interval + 1)
    return lr * c, (betas[0] ** c, betas[1] ** c)


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity."""
    return [name for name, t in tensors if t.is_floating_point() and not bool(torch.isfinite(t).all())]


def check_finite(where: str, loss: float, models: dict[str, nn.Module], net: str = "") -> None:
    """Finds what is not finite: a weight of any of `models`, else a gradient of the one named `net`, else the loss.

    Raises:
        NonFiniteError: the message begins with `where` and names the first such tensor as MODEL.PARAMETER.
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
