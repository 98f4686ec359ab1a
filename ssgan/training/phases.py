"""The four phases of a training step. Each adds up the gradients of its loss by the parameters of one network.

    generator        mean softplus(-D(A(G(z))))                              by G
    path length      pl_weight * mean (|J^T y| - a)^2, J = dG/dw             by G, every g_reg_interval steps
    discriminator    mean softplus(D(A(G(z)))) + mean softplus(-D(A(x)))     by D
    R1               r1_gamma / 2 * mean |dD(A(x))/dx|^2                     by D, every d_reg_interval steps
      and R2         + r2_gamma / 2 * mean |dD(A(G(z)))/dG(z)|^2

x are real images and A is the augmentation, the identity without one. This is `training/loss.py` of StyleGAN2-ADA, cut
into segments that CUDA graphs can hold (`ssgan.training.cuda_graphs`): functions that `run` is given by name. A stands
between segments, so the chain rule through it is applied by hand.

With the relativistic loss image G(z) of a sample is paired with the real image x of that sample, and has its condition:

    generator        mean softplus(D(A(x)) - D(A(G(z))))                     by G
    discriminator    mean softplus(D(A(G(z))) - D(A(x)))                     by D

A constant added to all logits then changes nothing, so the statistics `sign_real` and `sign_fake` are mean signs of an
image's logit minus its partner's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ssgan.augmentation.ada import Augment
from ssgan.augmentation.ada import Draws as AugmentDraws
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.models.conditioning import Condition
from ssgan.models.networks import Discriminator, Generator
from ssgan.training import losses
from ssgan.training.accumulation import Accumulator, GeneratorInputs, Gradients, ImageBatch, MicroBatch, gradients
from ssgan.training.distributed import Group
from ssgan.training.precision import Execution


class Phases:
    """The phases of one stage, for this process's micro-batches; each returns their part of the batch's loss.

    scale, in every phase: () float32, the loss scale, from which gradients start. sums: statistics of the batch, summed
    over micro-batches.
    """

    def __init__(
        self, cfg: TrainConfig, hyper: StageConfig, G: Generator, D: Discriminator, augment: Augment,
        execution: Execution, group: Group,
    ) -> None:  # fmt: skip
        self.cfg, self.hyper, self.G, self.D, self.augment, self.group = cfg, hyper, G, D, augment, group
        self.paired = cfg.loss == "relativistic"
        self.r1_gamma, self.r2_gamma = hyper.gammas(cfg.loss)
        self.device = next(G.parameters()).device
        self.accumulator = Accumulator(self.device, execution, group)
        self.run, self.backward = self.accumulator.run, self.accumulator.backward
        self.micro_batches: list[MicroBatch] = []
        self.path_micro_batches: list[MicroBatch] = []
        self.sums: dict[str, Tensor] = defaultdict(self.zero)
        # torch.compile differentiates once only, so the regularisers use the networks as they are.
        compiled = partial(torch.compile, backend=execution.compile) if execution.compile else lambda net: net
        self.compiled_synthesis, self.compiled_D = compiled(G.synthesis), compiled(D)

    def zero(self) -> Tensor:
        return torch.zeros((), device=self.device)

    def augmented(self, images: Tensor, draws: AugmentDraws | None, micro: MicroBatch) -> Tensor:
        return images if draws is None else self.augment(images, draws.take(micro.samples))

    def inputs_of(self, micro: MicroBatch, inputs: GeneratorInputs, real: ImageBatch) -> GeneratorInputs:
        """A micro-batch's rows of a batch's inputs; in pairs with the condition of the real images.

        A mask is hidden from the discriminator where that of the real image is (`ssgan.models.masks`).
        """
        own = inputs.take(micro)
        condition = own.condition._replace(mask_shown=real.condition.mask_shown)
        return own._replace(condition=real.condition if self.paired else condition)

    def generate(
        self, inputs: GeneratorInputs, synthesis: Callable[..., Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Images (n, C, D, H, W) and their ws (n, num_ws, w_dim)."""
        z, z_mixed, crossover, noise, condition = inputs
        ws = losses.mixed_styles(self.G.mapping, z, z_mixed, self.G.num_ws, crossover, condition.labels)
        return (synthesis or self.compiled_synthesis)(ws, noise, slice_index=condition.slice_index), ws

    # ---- generator: images = G(z), dloss/dimages through D and A, then by G's weights

    def generator(
        self, inputs: GeneratorInputs, reals: Sequence[ImageBatch], augment: AugmentDraws | None,
        augment_real: AugmentDraws | None, scale: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Also returns the batch's mean w (w_dim,). reals, augment_real: used in pairs only."""
        total, w_sum = self.zero(), torch.zeros_like(self.G.mapping.w_avg)
        for micro, real in zip(self.micro_batches, reals, strict=True):
            own = self.inputs_of(micro, inputs, real)
            images, ws = self.run("generator: G", micro, self.generate, own)
            leaf = images.detach().requires_grad_(augment is not None)
            seen, upstream = self.augmented(leaf, augment, micro), scale * micro.weight
            partners = self.augmented(real.images, augment_real, micro) if self.paired else None
            arguments = seen.detach(), own.condition, partners, upstream
            loss, sign, slope = self.run("generator: D", micro, self.fool, *arguments)
            if augment is not None:
                (slope,) = torch.autograd.grad(seen, leaf, slope)
            self.backward("generator: gradients", micro, self.G, images, slope)
            total += loss * micro.weight
            self.sums["sign_fake"] += sign * micro.weight
            w_sum += ws[:, 0].detach().sum(0)
        self.group.sum([w_sum])
        return total, w_sum / self.hyper.batch

    def fool(
        self, seen: Tensor, condition: Condition, partners: Tensor | None, upstream: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, mean sign of the logits, and the loss's gradient at the images that D sees.

        partners: the real images of the pairs, of the same condition; None without pairs.
        """
        if partners is not None:
            with torch.no_grad():
                real_logits = self.compiled_D(partners, condition)
        seen = seen.detach().requires_grad_(True)
        # A view, since PyTorch's FLOP counter cannot follow grad to a leaf.
        logits = self.compiled_D(seen.view_as(seen), condition)
        if partners is None:
            loss = losses.generator_loss(logits)
        else:
            loss, logits = losses.relativistic_loss(logits, real_logits), logits - real_logits
        (slope,) = torch.autograd.grad(loss, seen, upstream)
        return loss.detach(), logits.detach().sign().mean(), slope

    # ---- path length

    def path_length(
        self, inputs: GeneratorInputs, y: Tensor, pl_mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """y: standard normal, the shape of the images. Also returns a: pl_mean, moved towards the mean length."""
        split = [(micro, inputs.take(micro), micro.of(y)) for micro in self.path_micro_batches]
        mean_length = None
        if len(split) > 1:  # the penalty needs the mean of all lengths before the first gradient
            run = partial(self.run, "path length: mean")
            mean_length = torch.stack(
                [run(m, self.length, own, own_y, scale) * m.weight for m, own, own_y in split]
            ).sum()
            self.group.sum([mean_length])
        total, mean = self.zero(), pl_mean
        for micro, own, own_y in split:
            arguments = own, own_y, pl_mean, mean_length, scale * micro.weight
            loss, length, mean, found = self.run("path length: G", micro, partial(self.penalise, micro), *arguments)
            self.accumulator.add(self.G, found)
            total += loss * micro.weight
            self.sums["path_length"] += length * micro.weight
        return total, mean.clone()  # a replayed segment overwrites its outputs

    def length(self, inputs: GeneratorInputs, y: Tensor, scale: Tensor) -> Tensor:
        """Mean length |J^T y|."""
        images, ws = self.generate(inputs, self.G.synthesis)
        return (losses.path_lengths(images, ws, y * scale, False) / scale).mean()

    def penalise(
        self, micro: MicroBatch, inputs: GeneratorInputs, y: Tensor, pl_mean: Tensor, mean_length: Tensor | None,
        upstream: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Gradients]:  # fmt: skip
        """Loss, mean length, a, and gradients. mean_length: of the batch, None for a single micro-batch."""

        def batch_mean(lengths: Tensor) -> Tensor:
            if mean_length is not None:
                return mean_length
            mean = lengths.mean() * micro.weight
            self.group.sum([mean])
            return mean

        images, ws = self.generate(inputs, self.G.synthesis)
        path = losses.path_length_penalty(images, ws, y, pl_mean, self.cfg.pl_decay, batch_mean)
        loss = path.penalty.mean() * self.hyper.pl_weight * self.cfg.g_reg_interval
        return loss.detach(), path.lengths.mean(), path.mean, gradients(self.G, loss, upstream)

    # ---- discriminator

    def discriminator(
        self, inputs: GeneratorInputs, reals: Sequence[ImageBatch], augment_fake: AugmentDraws | None,
        augment_real: AugmentDraws | None, scale: Tensor,
    ) -> tuple[Tensor, list[ImageBatch]]:  # fmt: skip
        """Also returns the generated images, for R2; none without R2."""
        total, generated = self.zero(), []
        for micro, real in zip(self.micro_batches, reals, strict=True):
            own = self.inputs_of(micro, inputs, real)
            with torch.no_grad():
                fakes, _ = self.run("discriminator: G", micro, self.generate, own)
                if self.r2_gamma > 0:
                    generated.append(ImageBatch(fakes.clone(), own.condition))  # later segments may overwrite fakes
                fakes = self.augmented(fakes, augment_fake, micro)
                images = self.augmented(real.images, augment_real, micro)
            arguments = fakes, own.condition, images, real.condition, scale * micro.weight
            loss, sign, found = self.run("discriminator: D", micro, self.discriminate, *arguments)
            self.accumulator.add(self.D, found)
            total += loss * micro.weight
            self.sums["sign_real"] += sign * micro.weight
        return total, generated

    def discriminate(
        self, fakes: Tensor, fake_condition: Condition, reals: Tensor, real_condition: Condition, upstream: Tensor
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Loss, mean sign of the real logits, and gradients."""
        logits = self.compiled_D(reals, real_condition)
        fake_logits = self.compiled_D(fakes, fake_condition)
        if self.paired:
            loss, logits = losses.relativistic_loss(logits, fake_logits), logits - fake_logits
        else:
            loss = losses.discriminator_loss(fake_logits, logits)
        return loss.detach(), logits.detach().sign().mean(), gradients(self.D, loss, upstream)

    # ---- R1 and R2: slope = dD/dseen, through A to dD/dx; then the penalty's gradient at the slope, and by D's weights

    def penalty(
        self, reals: Sequence[ImageBatch], generated: Sequence[ImageBatch], augment_real: AugmentDraws | None,
        augment_fake: AugmentDraws | None, scale: Tensor,
    ) -> Tensor:  # fmt: skip
        total = self.zero()
        if self.r1_gamma > 0:
            total += self.penalty_at("r1", reals, augment_real, self.r1_gamma, scale)
        if self.r2_gamma > 0:
            total += self.penalty_at("r2", generated, augment_fake, self.r2_gamma, scale)
        return total

    def penalty_at(
        self, name: str, batches: Sequence[ImageBatch], augment: AugmentDraws | None, gamma: float, scale: Tensor
    ) -> Tensor:
        """R1 or R2, by `name`."""
        total = self.zero()
        for micro, batch in zip(self.micro_batches, batches, strict=True):
            images = batch.images.detach().requires_grad_(True)
            seen = self.augmented(images, augment, micro)
            slope = self.run(f"R1: slope of {name}", micro, self.slope, seen.detach(), batch.condition)
            leaf = slope.detach().requires_grad_(True)
            penalty = losses.gradient_penalty(seen * leaf, images).mean()
            loss = penalty * (gamma / 2) * self.cfg.d_reg_interval * micro.weight
            (upstream,) = torch.autograd.grad(loss, leaf, scale)
            self.backward(f"R1: gradients of {name}", micro, self.D, slope, upstream)
            total += loss.detach()
            self.sums[name] += penalty.detach() * micro.weight
        return total

    def slope(self, seen: Tensor, condition: Condition) -> Tensor:
        """Gradient of the logits at the images that D sees, itself differentiable."""
        seen = seen.detach().requires_grad_(True)
        logits = self.D(seen.view_as(seen), condition)
        (slope,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
        return slope
