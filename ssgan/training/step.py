"""One stage's networks, optimisers and averages, and the step that trains them.

Every random draw of step s comes from a generator seeded by (seed, stage, step, purpose), so a run is resumed from
weights and optimiser state alone. Each process draws for the whole batch and takes the rows of its own samples.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssgan.augmentation.ada import AdaptiveProbability, Augment
from ssgan.augmentation.ada import Draws as AugmentDraws
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.models.conditioning import UNCONDITIONAL, Condition, check_slice_range, one_hot
from ssgan.models.inflation import inflate_network
from ssgan.models.networks import Discriminator, Generator
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training import losses, optimiser
from ssgan.training.accumulation import GeneratorInputs, ImageBatch, split_for_process
from ssgan.training.distributed import SINGLE, Group, std_group
from ssgan.training.phases import Phases
from ssgan.training.precision import DTYPES, Execution, LossScale
from ssgan.training.schedule import rate_factor, trainable
from ssgan.utils.errors import ConfigError
from ssgan.utils.seeding import stream_seed


class StageTrainer:
    """Everything of one stage ("2d" or "3d") that training changes, and the step that changes it.

    Order of a step, as in StyleGAN2-ADA: generator; every g_reg_interval steps path length, as an optimiser step of
    its own; discriminator; every d_reg_interval steps R1 on the same real images and R2 on the same generated ones,
    as a step of their own. Each phase (`ssgan.training.phases`) sums gradients over this process's micro-batches, then
    they are summed over processes.

    With an active `cfg.augment` the discriminator sees only augmented images, real and generated, in every phase.
    slice_axis and spacing are the data set's; flips and rotations depend on them.

    Networks with classes: generated images have classes drawn in the proportions of `class_counts` (the data set's;
    default uniform), and both networks are told an image's class in every phase (StyleGAN2-ADA). With
    `network.depth_places` both 2D networks are told the slice index; that of generated slices is drawn uniformly. With
    the relativistic loss a generated image has the class and slice index of the real one that it is paired with
    instead, except for path length.

    local_samples: the samples of the batch whose real images `train_step` takes, in its order.
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
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)  # computes in float32
        self.average = optimiser.Average(self.G_ema, self.G)
        for net in (self.G.synthesis, self.D):
            net.conv_dtype, net.recompute = DTYPES[cfg.precision], execution.recompute
        path_length = cfg.g_reg_interval if self.hyper.pl_weight > 0 else None
        penalty = cfg.d_reg_interval if max(self.hyper.gammas(cfg.loss)) > 0 else None
        self.opt_g = self._adam(self.G, self.hyper.lr_g, path_length)
        self.opt_d = self._adam(self.D, self.hyper.lr_d, penalty)
        self.scale_g, self.scale_d = (LossScale(cfg.precision == "fp16", device) for _ in range(2))
        self.watch = optimiser.Watch(device)
        masks = network.mask_classes
        self.augment = Augment(cfg.augment, network.shape, slice_axis=slice_axis, spacing=spacing, mask_classes=masks)
        self.ada = AdaptiveProbability(cfg.augment, self.hyper.batch, self.hyper.kimg)
        self.signs: list[Tensor] = []  # mean signs of the real logits that `ada` has not seen
        self.pl_mean = torch.zeros((), device=device)
        self.step = 0
        self.images_before = 0  # shown in the stage that this one was inflated from
        self.rewinds = 0  # times that this stage went back after a NaN
        self.frozen = cfg.freeze_d if stage == "3d" else 0
        # Slices of a volume, if the networks are told the slice index, else 0.
        self.slice_count = network.depth_places[1] if network.depth_places and stage == "2d" else 0
        batch, limit = self.hyper.batch, network.mbstd_group
        self.path_batch = max(batch // cfg.pl_batch_shrink, 1)
        self.D.head.mbstd.group = std_group(batch, limit)  # a micro-batch has the groups of the whole batch
        self.phases = Phases(cfg, self.hyper, self.G, self.D, self.augment, execution, group)
        self.phases.micro_batches = split_for_process(batch, limit, group, execution, device)
        paths = split_for_process(self.path_batch, None, group, execution, device)
        self.phases.path_micro_batches = paths
        self.local_samples = [sample for micro in self.phases.micro_batches for sample in micro.samples]

    def _adam(self, net: nn.Module, lr: float, interval: int | None) -> torch.optim.Adam:
        lr, betas = optimiser.lazy_adam(lr, self.cfg.adam_betas, interval)
        fused = self.device.type != "meta"  # it has no values, and no fused kernel
        return torch.optim.Adam(net.parameters(), lr=lr, betas=betas, eps=self.cfg.adam_eps, fused=fused)

    @property
    def images(self) -> int:
        """Real images shown in this stage."""
        return self.step * self.hyper.batch

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return math.ceil(self.hyper.kimg * 1000 / self.hyper.batch)

    # ----------------------------------------------------------------------------------------------------------- step

    def train_step(self, reals: Tensor, condition: Condition = UNCONDITIONAL) -> dict[str, Tensor | float]:
        """Does one step and returns the whole batch's losses and mean signs of the logits, tensors ().

        The host reads nothing from the device, except where p of the augmentation is adapted; see `check`.

        reals: (n, C, D, H, W), real images of the samples `local_samples`. condition: their class numbers, for networks
        with classes, and their slice indices, for 2D networks with `depth_places`.

        Raises:
            NonFiniteError: see `check`.
        """
        self._check_condition(condition, len(reals))
        cfg, hyper, phases = self.cfg, self.hyper, self.phases
        self._set_rates()
        phases.sums.clear()
        phases.accumulator.frozen = self.frozen
        stats: dict[str, Tensor | float] = {}
        batches = self._split_reals(reals, condition)

        self.G.requires_grad_(True)
        self.D.requires_grad_(False)
        phases.accumulator.begin(self.G)
        inputs = self.draw("g_main", hyper.batch)
        augments = self._draw_augmentation("aug_g"), self._draw_augmentation("aug_g_real") if phases.paired else None
        stats["loss_g"], mean_w = phases.generator(inputs, batches, *augments, self.scale_g.scale)
        taken, w_avg = self._optimiser_step("generator", stats["loss_g"]), self.G.mapping.w_avg
        self.G.mapping.update_w_avg(torch.where(taken, mean_w, w_avg))
        if hyper.pl_weight > 0 and self.step % cfg.g_reg_interval == 0:
            phases.accumulator.begin(self.G)
            inputs, y = self.draw("g_path", self.path_batch), self._draw_path_noise()
            loss, pl_mean = phases.path_length(inputs, y, self.pl_mean, self.scale_g.scale)
            self.pl_mean = torch.where(self._optimiser_step("path length", loss), pl_mean, self.pl_mean)

        self.G.requires_grad_(False)
        trainable(self.D, self.frozen)
        phases.accumulator.begin(self.D)
        inputs = self.draw("d_main", hyper.batch)
        augments = self._draw_augmentation("aug_fake"), self._draw_augmentation("aug_real")
        stats["loss_d"], generated = phases.discriminator(inputs, batches, *augments, self.scale_d.scale)
        self._optimiser_step("discriminator", stats["loss_d"])
        if max(hyper.gammas(cfg.loss)) > 0 and self.step % cfg.d_reg_interval == 0:
            phases.accumulator.begin(self.D)
            augments = self._draw_augmentation("aug_r1"), self._draw_augmentation("aug_r2") if generated else None
            loss = phases.penalty(batches, generated, *augments, self.scale_d.scale)
            self._optimiser_step("R1", loss)

        self.group.sum(list(phases.sums.values()))
        stats |= phases.sums
        alive, averaged = self.watch.alive, self.G_ema.mapping.w_avg
        self.average.update(torch.where(alive, self._ema_beta(), 1.0))
        averaged.copy_(torch.where(alive, self.G.mapping.w_avg, averaged))  # the other buffers are constants
        self.step += 1
        if cfg.augment.active:
            stats["augment_p"] = self.ada.p
            self.signs.append(phases.sums["sign_real"])  # of the whole batch: the same in every process
            if self.ada.steps + 1 == self.ada.config.interval:
                self.check()
            self.ada.step()
        return stats

    def check(self) -> None:
        """Reads from the device whether all steps so far were sound. All processes call it.

        A step with a loss or gradient that is not finite changes nothing, nor does any step after it, so the state is
        the last good one. With fp16 a gradient may overflow, and only this step is skipped.

        Raises:
            NonFiniteError: one was not; the message names the step, the phase and the network's parameter.
        """
        phase = self.watch.read()
        if phase is not None:
            optimiser.check_finite(phase.where, self._networks(), phase)
        for sign in optimiser.read(self.signs):
            self.ada.observe_mean(sign, self.hyper.batch)
        self.signs.clear()

    def check_finite(self, when: str) -> None:
        """Checks as `check` does, and the weights."""
        self.check()
        optimiser.check_finite(f"stage {self.stage}, step {self.step}, {when}", self._networks())

    def _check_condition(self, condition: Condition, count: int) -> None:
        if count != len(self.local_samples):
            raise ValueError(f"reals: expected the {len(self.local_samples)} images of this process; got {count}")
        labels, slice_index, mask_shown = condition
        if (labels is None) == bool(self.class_counts) or (labels is not None and len(labels) != count):
            expected = f"{count}, one for each image" if self.class_counts else "none, the networks have no classes"
            raise ValueError(f"labels: expected {expected}; got {'none' if labels is None else len(labels)}")
        if (slice_index is None) == bool(self.slice_count) or (slice_index is not None and len(slice_index) != count):
            expected = f"{count}, one for each slice" if self.slice_count else "none, the networks take none"
            got = "none" if slice_index is None else len(slice_index)
            raise ValueError(f"slice_index: expected {expected}; got {got}")
        if slice_index is not None and slice_index.device.type == "cpu":
            check_slice_range(slice_index, self.slice_count)
        if mask_shown is not None and (len(mask_shown) != count or not self.cfg.network.mask_classes):
            expected = f"{count}, one for each image" if self.cfg.network.mask_classes else "none, images have no masks"
            raise ValueError(f"mask_shown: expected {expected}; got {len(mask_shown)}")

    def _split_reals(self, reals: Tensor, condition: Condition) -> list[ImageBatch]:
        """Real images and conditions by micro-batch, on the device, labels one-hot."""
        reals = reals.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        condition = condition.map(lambda t: t.to(self.device))
        condition = condition._replace(labels=one_hot(condition.labels, self.cfg.network.classes))
        sizes = [len(micro.samples) for micro in self.phases.micro_batches]
        return [ImageBatch(*both) for both in zip(reals.split(sizes), condition.split(sizes), strict=True)]

    def _set_rates(self) -> None:
        inflated = self.images_before > 0
        factor = rate_factor(self.cfg, self.stage, self.images + self.hyper.batch, inflated, self.rewinds)
        for adam in (self.opt_g, self.opt_d):
            for parameters in adam.param_groups:
                parameters["lr"] = adam.defaults["lr"] * factor

    def _ema_beta(self) -> float:
        """Weight that the average keeps in this step. Inflated networks are no random start and need no ramp-up."""
        hyper = self.hyper
        rampup = None if self.cfg.ema_carries_over and self.images_before > 0 else hyper.ema_rampup
        return optimiser.ema_beta(hyper.batch, self.images, hyper.ema_kimg * 1000, rampup)

    def _networks(self) -> dict[str, nn.Module]:
        return {"G": self.G, "D": self.D, "G_ema": self.G_ema}

    def _optimiser_step(self, phase: str, loss: Tensor) -> Tensor:
        """Sums loss and gradients over processes and takes an optimiser step if they are finite.

        Returns () bool, whether it was taken.
        """
        of_generator = phase in ("generator", "path length")
        name, adam, scale = ("G", self.opt_g, self.scale_g) if of_generator else ("D", self.opt_d, self.scale_d)
        accumulator = self.phases.accumulator
        gradient = accumulator.total
        assert gradient is not None
        self.group.sum([loss])
        self.group.sum([gradient])
        largest, position = gradient.abs().max(0)
        finite = largest < math.inf  # not for a NaN either; `isfinite` takes four launches
        sound = (loss.abs() < math.inf) & scale.excuses(finite)
        where = f"stage {self.stage}, step {self.step}, {phase}"
        sizes = [(f"{name}.{n}", p.numel()) for n, p in accumulator.parameters]
        self.watch.add(optimiser.PhaseRecord(where, sound, loss, largest, position, sizes))
        taken = self.watch.alive & finite
        accumulator.assign(gradient)
        optimiser.step_where(taken, adam, scale.scale if scale.enabled else None)
        scale.update(finite, self.watch.alive)
        return taken

    # ---------------------------------------------------------------------------------------------------------- draws

    def _generator_for(self, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(stream_seed(self.cfg.seed, self.stage, self.step, purpose))

    def draw(self, purpose: str, batch: int) -> GeneratorInputs:
        """Draws the inputs of a whole batch of `batch` generated images in this step."""
        cpu = self._generator_for(purpose)
        crossover = losses.draw_crossover(self.G.num_ws, self.hyper.style_mixing, cpu)
        z, z_mixed = torch.randn(2, batch, self.cfg.network.z_dim, generator=cpu).to(self.device)
        # Noise is drawn on the device; on the CPU it continues the stream of the latents.
        on_device = cpu if self.device.type == "cpu" else self._generator_for(purpose, self.device)
        noise = self.G.synthesis.noise_images(batch, "random", on_device)
        labels = slice_index = None
        if self.class_counts:
            counts = torch.tensor(self.class_counts, dtype=torch.float64)
            drawn = torch.multinomial(counts, batch, replacement=True, generator=cpu).to(self.device)
            labels = one_hot(drawn, self.cfg.network.classes)
        if self.slice_count:
            slice_index = torch.randint(self.slice_count, (batch,), generator=cpu).to(self.device)
        crossover = torch.full((), crossover, device=self.device)
        return GeneratorInputs(z, z_mixed, crossover, noise, Condition(labels, slice_index))

    def _draw_augmentation(self, purpose: str) -> AugmentDraws | None:
        """Draws the augmentation of a whole batch; None without augmentation."""
        if not self.cfg.augment.active:
            return None
        network, generator = self.cfg.network, self._generator_for(purpose)
        channels = network.image_channels - network.mask_classes  # noise is added to intensities only
        return self.augment.draw(self.hyper.batch, self.ada.p, generator, channels=channels, device=self.device)

    def _draw_path_noise(self) -> Tensor:
        shape = (self.path_batch, self.cfg.network.image_channels, *self.G.cfg.shape)
        return torch.randn(shape, generator=self._generator_for("pl_noise", self.device), device=self.device)

    # ----------------------------------------------------------------------------------------- inflation, checkpoints

    def inflate_from(self, flat: StageTrainer, profile: str, images: int) -> str:
        """Starts these 3D networks from 2D ones that were shown `images` images; returns the report."""
        nets = [(name, getattr(flat, name), getattr(self, name)) for name in ("G", "D", "G_ema")]
        reports = [f"{name}\n{inflate_network(net_2d, net_3d, profile)}" for name, net_2d, net_3d in nets]
        # Path noise is scaled by the number of voxels, so a volume constant along depth has the lengths of its slice.
        self.pl_mean = flat.pl_mean.clone()
        self.images_before = flat.images_before + images
        return f"profile {profile}\n\n" + "\n\n".join(reports) + "\n"

    def state(self) -> dict[str, Tensor]:
        """Tensors of a checkpoint: everything besides step and images.

        Raises:
            NonFiniteError: see `check`.
        """
        self.check()
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
        """Loads the tensors of `state`; raises CheckpointError where the networks differ."""
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
        self.watch = optimiser.Watch(self.device)
        self.signs.clear()
        self.step, self.images_before = meta.step, meta.images_before
