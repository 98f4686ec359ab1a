"""One stage's networks and optimisers, and the step that trains them.

Every random draw of step s comes from a generator seeded by (seed, stage, step, purpose), so that a run is resumed
from weights and optimiser state alone.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from ssgan import checkpoint, losses
from ssgan.checkpoint import CheckpointMeta
from ssgan.config import StageConfig, TrainConfig
from ssgan.inflation import inflate_network
from ssgan.networks import Discriminator, Generator

PURPOSES = ("init", "order", "g_main", "g_path", "pl_noise", "d_main")


def splitmix64(state: int) -> int:
    """One output of SplitMix64 (Steele et al. 2014) at `state`, 64 bits."""
    mixed = (state + 0x9E3779B97F4A7C15) % 2**64
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) % 2**64
    return mixed ^ mixed >> 31


def stream_seed(seed: int, stage: str, step: int, purpose: str) -> int:
    """64-bit seed of one stream of random numbers: SplitMix64 chained over the four values."""
    state = 0
    for word in (seed, checkpoint.STAGES.index(stage), step, PURPOSES.index(purpose)):
        state = splitmix64(state ^ word)
    return state


class Gan:
    """Everything of one stage that training changes, and the step that changes it.

    Order of a step, as in StyleGAN2-ADA: generator; every g_reg_interval steps path length, as an optimiser step of
    its own; discriminator; every d_reg_interval steps R1 on the same real images, as a step of its own.
    """

    def __init__(self, cfg: TrainConfig, stage: str, device: torch.device) -> None:
        self.cfg, self.stage, self.device = cfg, stage, device
        self.hyper: StageConfig = cfg.stage_2d if stage == "2d" else cfg.stage_3d
        network = cfg.network.flat() if stage == "2d" else cfg.network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(cfg.seed, stage, 0, "init"))
            self.G, self.D = Generator(network).to(device), Discriminator(network).to(device)
        self.G_ema = copy.deepcopy(self.G).requires_grad_(False)
        path_length = cfg.g_reg_interval if self.hyper.pl_weight > 0 else None
        r1 = cfg.d_reg_interval if self.hyper.r1_gamma > 0 else None
        self.opt_g = self._adam(self.G, self.hyper.lr_g, path_length)
        self.opt_d = self._adam(self.D, self.hyper.lr_d, r1)
        self.pl_mean = torch.zeros((), device=device)
        self.step = 0
        self.images_before = 0  # shown in the stage that this one was inflated from

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

    def fakes(self, purpose: str, batch: int, update_w_avg: bool = False) -> tuple[Tensor, Tensor]:
        """Generated images (batch, C, D, H, W) of this step and their ws, with style mixing."""
        seed = stream_seed(self.cfg.seed, self.stage, self.step, purpose)
        cpu = torch.Generator().manual_seed(seed)
        crossover = losses.draw_crossover(self.G.num_ws, self.hyper.style_mixing, cpu)
        z, other = torch.randn(2, batch, self.cfg.network.z_dim, generator=cpu).to(self.device)
        ws = losses.mixed_styles(self.G.mapping, z, other, self.G.num_ws, crossover, update_w_avg)
        # Noise is drawn where it is used; on the CPU the latents' stream goes on.
        noise = cpu if self.device.type == "cpu" else torch.Generator(self.device).manual_seed(seed)
        return self.G.synthesis(ws, noise="random", generator=noise), ws

    def train_step(self, reals: Tensor) -> dict[str, float]:
        """One step on `reals` (batch, C, D, H, W); gives the losses, and the mean signs of the logits."""
        batch, hyper, cfg, stats = self.hyper.batch, self.hyper, self.cfg, {}
        self.G.requires_grad_(True)
        self.D.requires_grad_(False)
        logits = self.D(self.fakes("g_main", batch, update_w_avg=True)[0])
        stats["loss_g"] = self._apply("generator", losses.generator_loss(logits))
        stats["sign_fake"] = float(logits.detach().sign().mean())
        if hyper.pl_weight > 0 and self.step % cfg.g_reg_interval == 0:
            images, ws = self.fakes("g_path", max(batch // cfg.pl_batch_shrink, 1))
            seed = stream_seed(cfg.seed, self.stage, self.step, "pl_noise")
            generator = torch.Generator(self.device).manual_seed(seed)
            noise = torch.randn(images.shape, generator=generator, device=self.device)
            path = losses.path_length_penalty(images, ws, noise, self.pl_mean, cfg.pl_decay)
            self._apply("path length", path.penalty.mean() * hyper.pl_weight * cfg.g_reg_interval)
            self.pl_mean = path.mean
            stats["path_length"] = float(path.lengths.mean())
        self.G.requires_grad_(False)
        self.D.requires_grad_(True)
        reals = reals.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        with torch.no_grad():
            fakes = self.fakes("d_main", batch)[0]
        real_logits = self.D(reals)
        stats["loss_d"] = self._apply("discriminator", losses.discriminator_loss(self.D(fakes), real_logits))
        stats["sign_real"] = float(real_logits.detach().sign().mean())
        if hyper.r1_gamma > 0 and self.step % cfg.d_reg_interval == 0:
            images = reals.detach().requires_grad_(True)
            penalty = losses.r1_penalty(self.D(images), images).mean()
            self._apply("R1", penalty * (hyper.r1_gamma / 2) * cfg.d_reg_interval)
            stats["r1"] = float(penalty.detach())
        beta = losses.ema_beta(batch, self.images, hyper.ema_kimg * 1000, hyper.ema_rampup)
        losses.update_ema(self.G_ema, self.G, beta)
        self.step += 1
        return stats

    def _apply(self, phase: str, loss: Tensor) -> float:
        """One optimiser step down `loss`; stops the training instead if anything is not finite."""
        generator = phase in ("generator", "path length")
        net, optimiser = (self.G, self.opt_g) if generator else (self.D, self.opt_d)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters() if p.grad is not None])
        value = float(loss.detach())
        if not math.isfinite(float(norm) + value):
            self.check_finite(phase, value, "G" if generator else "D")
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
        return {**tensors, "pl_mean": self.pl_mean}

    def load(self, tensors: dict[str, Tensor], meta: CheckpointMeta, where: str) -> None:
        """Inverse of `state`; raises CheckpointError where the networks differ."""
        for name in ("G", "D", "G_ema"):
            checkpoint.load_module(getattr(self, name), name, tensors, where)
        checkpoint.load_adam(self.opt_g, self.G, checkpoint.without_prefix("adam_g", tensors))
        checkpoint.load_adam(self.opt_d, self.D, checkpoint.without_prefix("adam_d", tensors))
        self.pl_mean = tensors["pl_mean"].to(self.device)
        self.step, self.images_before = meta.step, meta.images_before
