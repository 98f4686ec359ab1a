"""One stage's networks and optimisers, and the step that trains them.

Every random draw of step s comes from a generator seeded by (seed, stage, step, purpose), so that a run is resumed
from weights and optimiser state alone. The draws are those of the whole batch, whoever computes which part of it.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssgan.augmentation.ada import AdaptiveProbability, Augment
from ssgan.augmentation.ada import Draws as AugmentDraws
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.models.inflation import inflate_network
from ssgan.models.layers import ModulatedConv
from ssgan.models.networks import Discriminator, Generator, in_depth, one_hot
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training import losses
from ssgan.training.cuda_graphs import CudaRecorder, Graphs, directly
from ssgan.training.cuda_graphs import check as check_graphs
from ssgan.training.distributed import SINGLE, Group, split_batch, split_evenly, std_group
from ssgan.training.precision import DTYPES, Execution, LossScale, lower_convolutions, recompute_blocks
from ssgan.training.schedule import rate_factor, trainable
from ssgan.utils.errors import ConfigError
from ssgan.utils.seeding import stream_seed

Share = tuple[Tensor, Tensor | None, Tensor | None]  # a part's real images, their classes one-hot, their places


@dataclass(frozen=True)
class Part:
    """Samples of a batch that are computed at a time. weight: their share of the batch, 0 for a stand-in."""

    samples: list[int]
    weight: float


@dataclass(frozen=True)
class Draws:
    """What is drawn for a batch of generated images: latents (N, z_dim), those mixed in from layer `crossover` on, the
    noise (N, 1, D, H, W) of each modulated convolution in the order of their use, and class numbers (N,) and places
    along depth (N,), if any."""

    z: Tensor
    other: Tensor
    crossover: int
    noise: list[Tensor]
    labels: Tensor | None = None
    places: Tensor | None = None


class Gan:
    """Everything of one stage that training changes, and the step that changes it.

    Order of a step, as in StyleGAN2-ADA: generator; every g_reg_interval steps path length, as an optimiser step of
    its own; discriminator; every d_reg_interval steps R1 on the same real images, as a step of its own.

    Each phase works through this process's parts of the batch, sums the gradients over parts and processes, and steps.
    `local` names the samples of the batch whose real images `train_step` takes, in its order.

    With an active `cfg.augment` the discriminator sees augmented images only, real and generated, in every phase (R1:
    the gradient by the image before); slice_axis and spacing are the data set's, which flips and rotations go by.

    Networks with classes: generated images have classes drawn as often as `class_counts` says (the data set's; default
    all alike), and both networks see an image's class in every phase (StyleGAN2-ADA).

    With `network.depth_places` both 2D networks see where along depth a slice lies; those of generated slices are
    drawn, all alike.
    """

    def __init__(
        self, cfg: TrainConfig, stage: str, device: torch.device, execution: Execution | None = None,
        group: Group = SINGLE, *, slice_axis: str = "axial", spacing: Sequence[float] = (1.0, 1.0, 1.0),
        class_counts: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        self.cfg, self.stage, self.device, self.group = cfg, stage, device, group
        self.execution = execution = execution or Execution()
        self.hyper: StageConfig = cfg.stage_2d if stage == "2d" else cfg.stage_3d
        network = cfg.network.flat() if stage == "2d" else cfg.network
        self.class_counts = tuple(class_counts or (1,) * network.classes) if network.classes else ()
        if len(self.class_counts) != network.classes:
            raise ConfigError(f"class_counts: expected {network.classes}, one for each class; got {class_counts}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(cfg.seed, stage, 0, "init"))
            self.G, self.D = Generator(network).to(device), Discriminator(network).to(device)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        path_length = cfg.g_reg_interval if self.hyper.pl_weight > 0 else None
        r1 = cfg.d_reg_interval if self.hyper.r1_gamma > 0 else None
        self.opt_g = self._adam(self.G, self.hyper.lr_g, path_length)
        self.opt_d = self._adam(self.D, self.hyper.lr_d, r1)
        self.scale_g, self.scale_d = (LossScale(cfg.precision == "fp16") for _ in range(2))
        self.augment = Augment(cfg.augment, network.shape, slice_axis=slice_axis, spacing=spacing)
        self.ada = AdaptiveProbability(cfg.augment, self.hyper.batch, self.hyper.kimg)
        self.pl_mean = torch.zeros((), device=device)
        self.step = 0
        self.images_before = 0  # shown in the stage that this one was inflated from
        self.rewinds = 0  # times that this stage went back after a NaN
        self.frozen = cfg.freeze_d if stage == "3d" else 0
        # Along depth, that a slice may lie at; 0 where the networks are not told.
        self.places = network.depth_places[1] if network.depth_places and stage == "2d" else 0
        self._split(network.mbstd_group)
        self._prepare(DTYPES[cfg.precision])

    def _split(self, limit: int) -> None:
        """Parts of the batch for this process: of all phases, and of path length's smaller batch."""
        batch, parts = self.hyper.batch, self.group.size * self.execution.accumulate
        own = slice(self.group.rank * self.execution.accumulate, (self.group.rank + 1) * self.execution.accumulate)
        self.parts = [Part(s, len(s) / batch) for s in split_batch(batch, limit, parts)[own]]
        self.path_batch = max(batch // self.cfg.pl_batch_shrink, 1)
        # An empty share computes a stand-in of weight 0, so that all processes have the same gradients to sum.
        self.path_parts = [Part(s or [0], len(s) / self.path_batch) for s in split_evenly(self.path_batch, parts)[own]]
        self.local = [sample for part in self.parts for sample in part.samples]
        self.D.head.mbstd.group = std_group(batch, limit)  # a part has the whole batch's groups

    def _prepare(self, dtype: torch.dtype) -> None:
        for net in (self.G, self.D):
            lower_convolutions(net, dtype)
            if self.execution.recompute:
                recompute_blocks(net)

        def synthesis(ws: Tensor, noise: list[Tensor], place: Tensor | None) -> Tensor:
            return self.G.synthesis(ws, noise=iter(noise), place=place)

        self._synthesis: Callable[[Tensor, list[Tensor], Tensor | None], Tensor] = (
            synthesis  # of what is differentiated twice
        )
        self._logits: Callable[[Tensor, Tensor | None, Tensor | None], Tensor] = self.D
        self._once: tuple[Callable[..., Tensor], Callable[..., Tensor]] = (synthesis, self.D)
        self.call: Callable[..., Any] = directly
        if self.execution.cuda_graphs:
            check_graphs(self.device, self.group.size)
            self.call = Graphs(CudaRecorder(self.device))
        if self.execution.compile:  # what is differentiated once only
            self._once = tuple(torch.compile(f, backend=self.execution.compile) for f in self._once)  # type: ignore[assignment]

    def _adam(self, net: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
        lr, betas = losses.lazy_adam(lr, self.cfg.adam_betas, interval)
        return torch.optim.Adam(net.parameters(), lr=lr, betas=betas, eps=self.cfg.adam_eps)

    @property
    def images(self) -> int:
        return self.step * self.hyper.batch

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return math.ceil(self.hyper.kimg * 1000 / self.hyper.batch)

    def draw(self, purpose: str, batch: int) -> Draws:
        """The draws of this step for a whole batch of `batch` generated images."""
        seed = stream_seed(self.cfg.seed, self.stage, self.step, purpose)
        cpu = torch.Generator().manual_seed(seed)
        crossover = losses.draw_crossover(self.G.num_ws, self.hyper.style_mixing, cpu)
        z, other = torch.randn(2, batch, self.cfg.network.z_dim, generator=cpu).to(self.device)
        # Noise is drawn where it is used; on the CPU the latents' stream goes on.
        noise = cpu if self.device.type == "cpu" else torch.Generator(self.device).manual_seed(seed)
        sizes = [m.size for m in self.G.synthesis.modules() if isinstance(m, ModulatedConv)]
        drawn = [torch.randn(batch, 1, *size, generator=noise, device=self.device) for size in sizes]
        labels = None
        if self.class_counts:
            counts = torch.tensor(self.class_counts, dtype=torch.float64)
            labels = torch.multinomial(counts, batch, replacement=True, generator=cpu).to(self.device)
        places = None
        if self.places:
            places = torch.randint(self.places, (batch,), generator=cpu).to(self.device)
        return Draws(z, other, crossover, drawn, labels, places)

    def fakes(self, draws: Draws, part: Part, phase: str = "fakes") -> tuple[Tensor, Tensor]:
        """Generated images (n, C, D, H, W) of a part and their ws, with style mixing."""

        def generate(*drawn: Tensor) -> tuple[Tensor, Tensor]:
            return self._generate(self._once[0], *drawn)

        return self._piece(f"{phase}: fakes", part, generate, *self._rows(draws, part))

    def _rows(self, draws: Draws, part: Part) -> tuple[Tensor | None, ...]:
        """What `_generate` takes for a part of the batch."""
        rows = torch.tensor(part.samples, device=self.device)
        crossover = torch.full((), draws.crossover, device=self.device)
        label, place = self._condition(draws, part)
        return draws.z[rows], draws.other[rows], crossover, label, place, *(n[rows] for n in draws.noise)

    def _generate(
        self, synthesis: Callable[..., Tensor], z: Tensor, other: Tensor, crossover: Tensor, label: Tensor | None,
        place: Tensor | None, *noise: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ws = losses.mixed_styles(self.G.mapping, z, other, self.G.num_ws, crossover, c=label)
        return synthesis(ws, list(noise), place), ws

    def train_step(
        self, reals: Tensor, labels: Tensor | None = None, places: Tensor | None = None
    ) -> dict[str, float]:  # fmt: skip
        """One step on the real images (n, C, D, H, W) of the samples `local`; gives the whole batch's losses and mean
        signs of the logits. labels: (n,) int64 class numbers of these images, for networks with classes; places: (n,)
        int64, where along depth these slices lie, for 2D networks with `depth_places`."""
        if len(reals) != len(self.local):
            raise ValueError(f"reals: expected the {len(self.local)} images of this process; got {len(reals)}")
        if (labels is None) == bool(self.class_counts) or (labels is not None and len(labels) != len(reals)):
            got = "none" if labels is None else f"{len(labels)}"
            wanted = f"{len(reals)}, one for each image" if self.class_counts else "none, the networks have no classes"
            raise ValueError(f"labels: expected {wanted}; got {got}")
        if (places is None) == bool(self.places) or (places is not None and len(places) != len(reals)):
            wanted = f"{len(reals)}, one for each slice" if self.places else "none, the networks take none"
            raise ValueError(f"places: expected {wanted}; got {'none' if places is None else len(places)}")
        if places is not None and places.device.type == "cpu":
            in_depth(places, self.places)
        hyper, cfg = self.hyper, self.cfg
        self._set_rates()
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        stats: dict[str, float] = {}
        self.G.requires_grad_(True)
        self.D.requires_grad_(False)
        stats["loss_g"] = self._generator_phase()
        if hyper.pl_weight > 0 and self.step % cfg.g_reg_interval == 0:
            self._path_length_phase()
        self.G.requires_grad_(False)
        trainable(self.D, self.frozen)
        reals = reals.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        sizes = [len(part.samples) for part in self.parts]
        known: Sequence[Tensor | None] = [None] * len(sizes)
        where: Sequence[Tensor | None] = [None] * len(sizes)
        if labels is not None:
            known = one_hot(labels.to(self.device), self.cfg.network.classes).split(sizes)
        if places is not None:
            where = places.to(self.device).split(sizes)
        shares = list(zip(reals.split(sizes), known, where, strict=True))
        stats["loss_d"] = self._discriminator_phase(shares)
        if hyper.r1_gamma > 0 and self.step % cfg.d_reg_interval == 0:
            self._r1_phase(shares)
        self.group.sum(list(self._sums.values()))
        stats |= {name: float(value) for name, value in self._sums.items()}
        if cfg.augment.active:
            stats["augment_p"] = self.ada.p
            self.ada.observe_mean(stats["sign_real"], hyper.batch)  # of the whole batch: the same in every process
            self.ada.step()
        losses.update_ema(self.G_ema, self.G, self._ema_beta())
        self.step += 1
        return stats

    def _augment_draws(self, purpose: str) -> AugmentDraws | None:
        """What is drawn for the augmentation of a whole batch; None where there is none."""
        if not self.cfg.augment.active:
            return None
        generator = torch.Generator().manual_seed(stream_seed(self.cfg.seed, self.stage, self.step, purpose))
        channels = self.cfg.network.image_channels
        return self.augment.draw(self.hyper.batch, self.ada.p, generator, channels=channels, device=self.device)

    def _seen(self, images: Tensor, draws: AugmentDraws | None, part: Part) -> Tensor:
        """A part's images as the discriminator sees them."""
        return images if draws is None else self.augment(images, draws.take(part.samples))

    def _condition(self, draws: Draws, part: Part) -> tuple[Tensor | None, Tensor | None]:
        """A part's classes, one-hot (numbers are checked by reading them), and places out of a batch's."""
        rows = torch.tensor(part.samples, device=self.device)
        label = None if draws.labels is None else one_hot(draws.labels[rows], self.cfg.network.classes)
        return label, None if draws.places is None else draws.places[rows]

    def _set_rates(self) -> None:
        inflated = self.images_before > 0
        factor = rate_factor(self.cfg, self.stage, self.images + self.hyper.batch, inflated, self.rewinds)
        for optimiser in (self.opt_g, self.opt_d):
            for parameters in optimiser.param_groups:
                parameters["lr"] = optimiser.defaults["lr"] * factor

    def _ema_beta(self) -> float:
        """What the average keeps in this step. What was inflated is no random start, so it needs no ramp-up."""
        hyper = self.hyper
        rampup = None if self.cfg.ema_carries_over and self.images_before > 0 else hyper.ema_rampup
        return losses.ema_beta(hyper.batch, self.images, hyper.ema_kimg * 1000, rampup)

    def _generator_phase(self) -> float:
        draws, augment = self.draw("g_main", self.hyper.batch), self._augment_draws("aug_g")
        factor = self._factor(self.scale_g)
        w_sum = torch.zeros_like(self.G.mapping.w_avg)
        total = torch.zeros((), device=self.device)
        for part in self._each(self.opt_g, self.parts):
            images, ws = self.fakes(draws, part, phase="generator")

            def judge(
                seen: Tensor, label: Tensor | None, place: Tensor | None, factor: Tensor, part: Part = part
            ) -> tuple[Tensor, ...]:  # fmt: skip
                seen = seen.detach().requires_grad_(True)
                # A view, since PyTorch's FLOP counter cannot follow grad to a leaf.
                logits = self._once[1](seen.view_as(seen), label, place)
                loss = losses.generator_loss(logits) * part.weight
                (slope,) = torch.autograd.grad(loss, seen, factor)
                return loss.detach(), logits.detach().sign().mean() * part.weight, slope

            def gradients(slope: Tensor, images: Tensor = images) -> list[Tensor | None]:
                return self._gradients(self.G, images, slope)

            leaf = images.detach().requires_grad_(augment is not None)
            seen = self._seen(leaf, augment, part)
            inputs = (seen.detach(), *self._condition(draws, part), factor)
            loss, sign, slope = self._piece("generator: D", part, judge, *inputs)
            if augment is not None:
                (slope,) = torch.autograd.grad(seen, leaf, slope)
            self._add(self.G, self._piece("generator: G", part, gradients, slope))
            total += loss
            self._sums["sign_fake"] += sign
            w_sum += ws[:, 0].detach().sum(0)
        self.group.sum([w_sum])
        mapping = self.G.mapping
        mapping.w_avg.copy_((w_sum / self.hyper.batch).lerp(mapping.w_avg, mapping.w_avg_beta))
        return self._apply("generator", total)

    def _path_length_phase(self) -> float:
        hyper, cfg = self.hyper, self.cfg
        draws, factor = self.draw("g_path", self.path_batch), self._factor(self.scale_g)
        seed = stream_seed(cfg.seed, self.stage, self.step, "pl_noise")
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (self.path_batch, cfg.network.image_channels, *self.G.cfg.shape)
        noise = torch.randn(shape, generator=generator, device=self.device)

        def mean_over_batch(weighted: Sequence[Tensor]) -> Tensor:
            mean = torch.stack(list(weighted)).sum() if len(weighted) > 1 else weighted[0]
            self.group.sum([mean])
            return mean

        mean_length: Tensor | None = None
        if len(self.path_parts) > 1:  # the penalty needs the mean of all lengths before the first backward pass
            found = []
            for part in self.path_parts:

                def lengths(y: Tensor, factor: Tensor, *drawn: Tensor, part: Part = part) -> Tensor:
                    images, ws = self._generate(self._synthesis, *drawn)
                    return (losses.path_lengths(images, ws, y * factor, False) / factor).mean() * part.weight

                inputs = (noise[part.samples], factor, *self._rows(draws, part))
                found.append(self._piece("path length: mean", part, lengths, *inputs))
            mean_length = mean_over_batch(found)
        total, mean = torch.zeros((), device=self.device), self.pl_mean
        for part in self._each(self.opt_g, self.path_parts):

            def penalise(
                y: Tensor, factor: Tensor, before: Tensor, known: Tensor | None, *drawn: Tensor, part: Part = part
            ) -> tuple[Any, ...]:
                images, ws = self._generate(self._synthesis, *drawn)

                def batch_mean(lengths: Tensor) -> Tensor:
                    return mean_over_batch([lengths.mean() * part.weight]) if known is None else known

                path = losses.path_length_penalty(images, ws, y, before, cfg.pl_decay, batch_mean)
                penalty = path.penalty.mean() * hyper.pl_weight * cfg.g_reg_interval * part.weight
                length = path.lengths.mean() * part.weight
                return penalty.detach(), length, path.mean, self._gradients(self.G, penalty, factor)

            inputs = (noise[part.samples], factor, self.pl_mean, mean_length, *self._rows(draws, part))
            penalty, length, mean, found = self._piece("path length", part, penalise, *inputs)
            self._add(self.G, found)
            total += penalty
            self._sums["path_length"] += length
        self.pl_mean = mean.clone()  # a replayed piece overwrites what it gave
        return self._apply("path length", total)

    def _discriminator_phase(self, shares: Sequence[Share]) -> float:
        draws, factor = self.draw("d_main", self.hyper.batch), self._factor(self.scale_d)
        of_fakes, of_reals = self._augment_draws("aug_fake"), self._augment_draws("aug_real")
        total = torch.zeros((), device=self.device)
        for part, (reals, *about) in zip(self._each(self.opt_d, self.parts), shares, strict=True):

            def tell_apart(
                fakes: Tensor, label: Tensor | None, place: Tensor | None, reals: Tensor, known: Tensor | None,
                where: Tensor | None, factor: Tensor, part: Part = part,
            ) -> tuple[Any, ...]:  # fmt: skip
                logits = self._once[1](reals, known, where)
                loss = losses.discriminator_loss(self._once[1](fakes, label, place), logits) * part.weight
                sign = logits.detach().sign().mean() * part.weight
                return loss.detach(), sign, self._gradients(self.D, loss, factor)

            with torch.no_grad():
                fakes = self._seen(self.fakes(draws, part, phase="discriminator")[0], of_fakes, part)
                reals = self._seen(reals, of_reals, part)
            inputs = (fakes, *self._condition(draws, part), reals, *about, factor)
            loss, sign, found = self._piece("discriminator: D", part, tell_apart, *inputs)
            self._add(self.D, found)
            total += loss
            self._sums["sign_real"] += sign
        return self._apply("discriminator", total)

    def _r1_phase(self, shares: Sequence[Share]) -> float:
        augment, factor = self._augment_draws("aug_r1"), self._factor(self.scale_d)
        total = torch.zeros((), device=self.device)
        for part, (reals, *about) in zip(self._each(self.opt_d, self.parts), shares, strict=True):
            # D's slope at what it sees; through the augmentation to the images; and back to D's weights.
            def slope_at(seen: Tensor, label: Tensor | None, place: Tensor | None) -> Tensor:
                seen = seen.detach().requires_grad_(True)
                logits = self._logits(seen.view_as(seen), label, place)
                (slope,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
                return slope

            images = reals.detach().requires_grad_(True)
            seen = self._seen(images, augment, part)
            slope = self._piece("R1: slope", part, slope_at, seen.detach(), *about)

            def gradients(upstream: Tensor, slope: Tensor = slope) -> list[Tensor | None]:
                return self._gradients(self.D, slope, upstream)

            leaf = slope.detach().requires_grad_(True)
            penalty = losses.r1_penalty(seen * leaf, images).mean()
            loss = penalty * (self.hyper.r1_gamma / 2) * self.cfg.d_reg_interval * part.weight
            (upstream,) = torch.autograd.grad(loss, leaf, factor)
            self._add(self.D, self._piece("R1: D", part, gradients, upstream))
            total += loss.detach()
            self._sums["r1"] += penalty.detach() * part.weight
        return self._apply("R1", total)

    def _piece(self, name: str, part: Part, work: Callable[..., Any], *inputs: Tensor | None) -> Any:
        """work(*inputs), called or replayed: `ssgan.training.cuda_graphs` says what it may not do."""
        return self.call((name, id(part), self.frozen), work, *inputs)

    def _each(self, optimiser: torch.optim.Adam, parts: list[Part]) -> list[Part]:
        optimiser.zero_grad(set_to_none=True)
        return parts

    def _factor(self, scale: LossScale) -> Tensor:
        """The loss scale, () float32: what a loss's gradient starts from."""
        return torch.full((), scale.scale, device=self.device)

    def _gradients(self, net: nn.Module, output: Tensor, upstream: Tensor) -> list[Tensor | None]:
        """Those of the parameters of `net` that train, laid out as these are; None where output does not depend."""
        parameters = [p for p in net.parameters() if p.requires_grad]
        found = torch.autograd.grad(output, parameters, upstream, allow_unused=True)
        return [
            g if g is None or g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for g, p in zip(found, parameters, strict=True)
        ]

    def _add(self, net: nn.Module, gradients: Sequence[Tensor | None]) -> None:
        """Adds a part's gradients to those of the parts before."""
        parameters = [p for p in net.parameters() if p.requires_grad]
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)

    def _apply(self, phase: str, loss: Tensor) -> float:
        """One optimiser step down the gradients of all parts; stops the training instead if anything is not finite.

        loss: the sum over this process's parts. Gives the loss of the whole batch.
        """
        generator = phase in ("generator", "path length")
        net, optimiser = (self.G, self.opt_g) if generator else (self.D, self.opt_d)
        scale = self.scale_g if generator else self.scale_d
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        self.group.sum([loss, *gradients])
        if scale.enabled:
            for gradient in gradients:
                gradient.mul_(1.0 / scale.scale)
        norm = torch.nn.utils.get_total_norm(gradients)
        value = float(loss)
        finite = math.isfinite(float(norm))
        step = scale.update(finite)
        if not math.isfinite(value) or (step and not finite):
            self.check_finite(phase, value, "G" if generator else "D")
        if step:
            optimiser.step()
        return value

    def check_finite(self, phase: str, loss: float = 0.0, net: str = "") -> None:
        """Raises NonFiniteError if a weight, a gradient of `net` or the loss is not finite."""
        models = {"G": self.G, "D": self.D, "G_ema": self.G_ema}
        losses.check_finite(f"stage {self.stage}, step {self.step}, {phase}", loss, models, net)

    def inflate_from(self, gan2d: Gan, profile: str, images: int) -> str:
        """Starts these 3D networks from 2D ones that were shown `images` images; returns the report."""
        nets = [(name, getattr(gan2d, name), getattr(self, name)) for name in ("G", "D", "G_ema")]
        parts = [f"{name}\n{inflate_network(flat, full, profile)}" for name, flat, full in nets]
        # With its noise scaled by the number of voxels, a volume constant along depth has the lengths of its slice.
        self.pl_mean = gan2d.pl_mean.clone()
        self.images_before = gan2d.images_before + images
        return f"profile {profile}\n\n" + "\n\n".join(parts) + "\n"

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint holds, besides step and images."""
        parts = {
            "G": self.G.state_dict(),
            "D": self.D.state_dict(),
            "G_ema": self.G_ema.state_dict(),
            "adam_g": checkpoint.adam_tensors(self.opt_g, self.G),
            "adam_d": checkpoint.adam_tensors(self.opt_d, self.D),
        }
        tensors = {name: t for part, state in parts.items() for name, t in checkpoint.with_prefix(part, state).items()}
        tensors["pl_mean"] = self.pl_mean
        if self.cfg.precision == "fp16":
            tensors |= {"loss_scale.G": self.scale_g.state(), "loss_scale.D": self.scale_d.state()}
        if self.cfg.augment.active:
            tensors |= checkpoint.with_prefix("augment", self.ada.state_dict())
        return tensors | ({"rewinds": torch.tensor(self.rewinds)} if self.rewinds else {})

    def load(self, tensors: dict[str, Tensor], meta: CheckpointMeta, where: str) -> None:
        """Inverse of `state`; raises CheckpointError where the networks differ."""
        for name in ("G", "D", "G_ema"):
            checkpoint.load_module(getattr(self, name), name, tensors, where)
        checkpoint.load_adam(self.opt_g, self.G, checkpoint.without_prefix("adam_g", tensors))
        checkpoint.load_adam(self.opt_d, self.D, checkpoint.without_prefix("adam_d", tensors))
        self.pl_mean = tensors["pl_mean"].to(self.device)
        self.rewinds = int(tensors["rewinds"]) if "rewinds" in tensors else 0
        if self.cfg.augment.active:
            self.ada.load_state_dict(checkpoint.without_prefix("augment", tensors))
        if self.cfg.precision == "fp16":
            self.scale_g.load(tensors["loss_scale.G"])
            self.scale_d.load(tensors["loss_scale.D"])
        self.step, self.images_before = meta.step, meta.images_before
