"""Losses and regularisers of StyleGAN2 (Karras et al. 2020) and R3GAN (Huang et al. 2024), for volumes. They return
tensors and compute no gradients of parameters.

Sources: the equations of "Analyzing and Improving the Image Quality of StyleGAN" and the choices of
StyleGAN2-ADA's `training/loss.py`: non-saturating logistic loss, R1 on real images, path-length regularisation; the
relativistic paired loss with R1 and R2 of "The GAN is dead; long live the GAN! A modern GAN baseline".
Images are (N, C, D, H, W) with nominal range [-1, 1]; logits are (N, 1); ws are (N, num_ws, w_dim). All float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating logistic loss, mean of -log(sigmoid(D(G(z)))): a scalar."""
    return F.softplus(-fake_logits).mean()


def discriminator_loss(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """Logistic loss, mean of -log(1 - sigmoid(D(G(z)))) plus mean of -log(sigmoid(D(x))): a scalar."""
    return F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()


def relativistic_loss(own_logits: Tensor, other_logits: Tensor) -> Tensor:
    """Relativistic paired loss, mean of -log(sigmoid(own - other)) over the pairs: a scalar.

    The discriminator minimises it with real images as its own and generated ones as the others, the generator the
    reverse (Huang et al. 2024, equation 2). Row n of both logits is pair n.
    """
    return F.softplus(other_logits - own_logits).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of the logits' gradient at each image, (N,) (Mescheder et al. 2018, equation 9).

    R1 is gamma / 2 times its mean over real images, R2 over generated ones. `logits` must depend on `images`, which
    require a gradient. As in StyleGAN2, the sum of the logits is differentiated: minibatch std mixes the images of a
    batch.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


class PathLength(NamedTuple):
    """Result of `path_length_penalty`: penalty (N,), lengths (N,) detached, and the moved mean, () detached."""

    penalty: Tensor
    lengths: Tensor
    mean: Tensor


def path_lengths(images: Tensor, ws: Tensor, pl_noise: Tensor, create_graph: bool = True) -> Tensor:
    """Lengths |J^T y| of `path_length_penalty`, (N,)."""
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

    The lengths of a volume that is constant along depth equal those of its slice, so the running mean of the 2D stage
    stays right after inflation.

    batch_mean: maps these lengths (N,), detached, to the mean over the whole batch, of which they are a micro-batch.
    """
    lengths = path_lengths(images, ws, pl_noise)
    of_batch = batch_mean(lengths.detach())
    mean = pl_mean.lerp(of_batch, decay)
    # As in StyleGAN2-ADA the gradient also runs through the mean, with the small weight `decay`. Summed over the batch
    # that is a slope of -2 decay (batch mean - mean) per length, which needs only the mean of the other micro-batches.
    through_mean = 2 * decay * (of_batch - mean) * (lengths - lengths.detach())
    return PathLength((lengths - mean).square() - through_mean, lengths.detach(), mean)


def draw_crossover(num_ws: int, probability: float, generator: torch.Generator) -> int:
    """Draws the crossover of style mixing for a whole batch, as StyleGAN2-ADA does: layers from it on take another z.

    Uniform in 1 .. num_ws - 1 with `probability`, else num_ws (no mixing). `generator` lives on the CPU.
    """
    mixed = float(torch.rand((), generator=generator)) < probability
    if not mixed or num_ws < 2:
        return num_ws
    return int(torch.randint(1, num_ws, (), generator=generator))


def mixed_styles(
    mapping: nn.Module, z: Tensor, z_mixed: Tensor, num_ws: int, crossover: int | Tensor, labels: Tensor | None = None
) -> Tensor:
    """ws (N, num_ws, w_dim) of latents `z` (N, z_dim), with layers `crossover` .. num_ws - 1 from `z_mixed`.

    mapping: `Generator.mapping`. crossover: a number, or an integer tensor () whose value is not read. labels: of both
    latents.
    """
    both = mapping(torch.cat([z, z_mixed]), None if labels is None else torch.cat([labels, labels]))
    ws, other = both.chunk(2)
    own = (torch.arange(num_ws, device=z.device) < crossover)[:, None]
    return torch.where(own, ws.unsqueeze(1), other.unsqueeze(1))
