"""Projection: finds the w of a generator whose volume is nearest to a given one, as StyleGAN2's projector does.

Source: Karras et al. 2020, appendix D, with the constants of StyleGAN2-ADA's projector (warm-up and decay of the
learning rate, noise on w that fades, noise maps kept free of structure at every scale). Their perceptual distance is
VGG's. There is no such network for volumes, so the distance here is of features of the run's own discriminator, or of
an untrained one of a fixed seed, and of voxels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssgan.latent_space.files import LatentError
from ssgan.latent_space.styles import map_latents
from ssgan.models.masks import with_unknown_masks
from ssgan.models.networks import Discriminator, Generator
from ssgan.utils.seeding import splitmix64

W_SAMPLES = 10_000
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # of the steps: warm-up and decay of the learning rate
NOISE_SIZE, NOISE_UNTIL = 0.05, 0.75  # noise on w: as a fraction of w's spread, until this fraction of the steps
NOISE_WEIGHT = 1e5
SMALLEST = 8  # the noise maps' pyramid ends here
SPACES, FEATURES = ("w", "w+"), ("discriminator", "random")


@dataclass(frozen=True)
class ProjectionConfig:
    """space: "w" (one style for all layers, easier to edit) or "w+" (one per layer, nearer to the volume).
    voxel_weight: of the mean squared voxel difference beside the feature distance. fit_noise: optimises the noise maps
    too."""

    space: str = "w"
    steps: int = 500
    features: str = "discriminator"
    voxel_weight: float = 1.0
    fit_noise: bool = True
    learning_rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.space not in SPACES or self.features not in FEATURES:
            raise LatentError(f"space, features: expected {SPACES} and {FEATURES}; got {self.space}, {self.features}")
        if self.steps < 1:
            raise LatentError(f"steps: expected at least 1; got {self.steps}")
        for name in ("voxel_weight", "learning_rate"):
            low = "at least" if name == "voxel_weight" else "above"
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "voxel_weight"):
                raise LatentError(f"{name}: expected a number {low} 0; got {value:g}")

    def protocol(self) -> str:
        """Describes in one line what is minimised, to be kept with the numbers."""
        noise = f", plus {NOISE_WEIGHT:g} x noise autocorrelation" if self.fit_noise else ""
        net = {"discriminator": "the run's discriminator", "random": "an untrained dense discriminator of seed 0"}
        return (
            f"{self.space}: mean over the levels of {net[self.features]} of the squared distance between features "
            f"normalised over channels, mean over positions, plus {self.voxel_weight:g} x mean squared voxel "
            f"difference ([-1, 1] scale){noise}; Adam, "
            f"{self.steps} steps, rate {self.learning_rate:g}, from the mean of {W_SAMPLES} w"
        )


def random_features(G: Generator) -> Discriminator:
    """Makes an untrained dense discriminator of a fixed seed, as a feature network independent of the run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Discriminator(G.cfg.with_arch("dense")).requires_grad_(False)


class FeatureDistance:
    """Distance of volumes (N, C, D, H, W) to a target (1, C, D, H, W) in the features of a discriminator."""

    def __init__(self, D: Discriminator, target: Tensor) -> None:
        self.D = D
        with torch.no_grad():
            self.levels = list(self._features(target))

    def _features(self, x: Tensor) -> Iterator[Tensor]:
        x = self.D.first(x)
        yield F.normalize(x, dim=1)
        for block in self.D.blocks:
            x = block(x)
            yield F.normalize(x, dim=1)

    def __call__(self, x: Tensor) -> Tensor:
        """Scalar: mean over levels and positions of the squared distance of unit feature vectors, 0 to 4."""
        found = [(a - b).square().sum(1).mean() for a, b in zip(self._features(x), self.levels, strict=True)]
        return torch.stack(found).mean()


def noise_penalty(noise: Tensor) -> Tensor:
    """Sums the squared autocorrelations of lag one of a noise map (D, H, W) over axes and scales (appendix D).

    The pyramid halves every axis above 8 voxels by block means, rescaled to keep white noise at variance 1. The penalty
    is about zero for white noise and keeps the image out of the noise maps.
    """
    x, total = noise[None, None], noise.new_zeros(())
    while True:
        for axis in (2, 3, 4):
            if x.shape[axis] > 1:
                total = total + (x * x.roll(1, axis)).mean().square()
        factors = [2 if n > SMALLEST and n % 2 == 0 else 1 for n in x.shape[2:]]
        if max(factors) == 1:
            return total
        x = F.avg_pool3d(x, factors) * math.sqrt(math.prod(factors))


def rate_factor(progress: float) -> float:
    """Gives the factor of the learning rate at `progress`, 0 to 1: linear warm-up, cosine decay at the end."""
    decay = min(1.0, (1.0 - progress) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(decay * math.pi)) * min(1.0, progress / RAMP_UP)


class Projector:
    """Projects one volume, step by step; `state` and `load` resume it exactly.

    G: its noise maps are replaced where they are fitted, so it must not be shared. target (D, H, W) in [-1, 1].
    label: the class whose mean w the search begins from, for a network with classes.
    """

    def __init__(
        self, G: Generator, D: Discriminator, target: Tensor, cfg: ProjectionConfig, label: int | None = None
    ) -> None:
        self.G, self.cfg, self.step = G.requires_grad_(False), cfg, 0
        if tuple(target.shape) != tuple(G.cfg.shape) or not bool(torch.isfinite(target).all()):
            raise LatentError(f"target: expected finite values of shape {G.cfg.shape}; got {tuple(target.shape)}")
        device = next(G.parameters()).device
        network = G.cfg
        self.channels = network.image_channels - network.mask_classes  # the target has no mask
        target = target.to(device)[None, None].expand(1, self.channels, -1, -1, -1)
        self.target = with_unknown_masks(target, network.mask_classes).contiguous()
        self.distance = FeatureDistance(D.to(device), self.target)
        z = torch.randn(W_SAMPLES, G.cfg.z_dim, generator=self._random(0))
        w = map_latents(G, z, label=label)
        self.mean = w.mean(0)
        self.spread = float((w - self.mean).square().sum(1).mean().sqrt())  # root mean squared distance from the mean
        layers = 1 if cfg.space == "w" else G.num_ws
        self.w = self.mean.repeat(1, layers, 1).requires_grad_(True)
        self.noise: dict[str, Tensor] = {}
        if cfg.fit_noise:
            generator = self._random(1)
            for name, module in G.synthesis.named_modules():
                if hasattr(module, "noise_const"):
                    drawn = torch.randn(module.noise_const.shape, generator=generator)
                    module.noise_const = self.noise[name] = drawn.to(device).requires_grad_(True)
        self.adam = torch.optim.Adam([self.w, *self.noise.values()], lr=cfg.learning_rate, betas=(0.9, 0.999))

    def _random(self, stream: int) -> torch.Generator:
        """Streams 0 and 1 are for the start, stream s + 2 for step s."""
        return torch.Generator().manual_seed(splitmix64(splitmix64(self.cfg.seed) ^ stream))

    @property
    def ws(self) -> Tensor:
        """(1, num_ws, w_dim)"""
        return self.w.detach().expand(1, self.G.num_ws, -1)

    def _image(self, w: Tensor) -> Tensor:
        """Generates the image (1, C, D, H, W) of w (1, num_ws or 1, w_dim), without a mask."""
        image = self.G.synthesis(w.expand(1, self.G.num_ws, -1), noise="const")
        return with_unknown_masks(image, self.G.cfg.mask_classes)

    def _voxel_error(self, x: Tensor) -> Tensor:
        """Mean squared difference of the intensities."""
        return (x - self.target)[:, : self.channels].square().mean()

    def advance(self) -> dict[str, float]:
        """Takes a step; gives its losses, which are of the w with noise added."""
        cfg, progress = self.cfg, self.step / self.cfg.steps
        size = self.spread * NOISE_SIZE * max(0.0, 1 - progress / NOISE_UNTIL) ** 2
        drawn = torch.randn(self.w.shape, generator=self._random(self.step + 2)).to(self.w.device)
        self.adam.param_groups[0]["lr"] = cfg.learning_rate * rate_factor(progress)
        x = self._image(self.w + size * drawn)
        features, voxels = self.distance(x), self._voxel_error(x)
        loss = features + cfg.voxel_weight * voxels
        if self.noise:
            loss = loss + NOISE_WEIGHT * torch.stack([noise_penalty(n) for n in self.noise.values()]).sum()
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        if not math.isfinite(float(loss.detach())):
            raise LatentError(f"step {self.step}: the loss is not finite; try a smaller --rate")
        self.adam.step()
        with torch.no_grad():
            for n in self.noise.values():
                n -= n.mean()
                n *= n.square().mean().rsqrt()
        self.step += 1
        return {"features": float(features.detach()), "voxels": float(voxels.detach())}

    @torch.no_grad()
    def volume(self) -> Tensor:
        """Generates the volume of the current w and noise maps, (D, H, W) on the CPU."""
        return self.G.synthesis(self.ws, noise="const")[0, 0].cpu()

    @torch.no_grad()
    def figures(self) -> dict[str, float]:
        """Measures the result: feature distance, root mean squared voxel difference ([-1, 1] scale), PSNR in dB (peak
        2), and w's distance from its mean in units of the spread of w (about 1 for a w that some z maps to)."""
        x = self._image(self.ws)
        rms = float(self._voxel_error(x).sqrt())
        distance = (self.ws[0] - self.mean).square().sum(1).mean().sqrt()
        psnr = 20 * math.log10(2 / max(rms, 1e-12))
        return {
            "features": float(self.distance(x)),
            "rms": rms,
            "psnr": psnr,
            "w_distance": float(distance) / self.spread,
        }

    def state(self) -> dict[str, Tensor]:
        """Gives everything that the steps change: w, noise maps, Adam's moments."""
        tensors = {"w": self.w, **{f"noise.{name}": n for name, n in self.noise.items()}}
        moments = {}
        for name, tensor in tensors.items():
            for entry, value in self.adam.state.get(tensor, {}).items():
                moments[f"adam.{name}|{entry}"] = torch.as_tensor(value)
        return {**tensors, "ws": self.ws, **moments}

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Loads what `state` gave. Raises LatentError where a tensor is missing or of another shape."""
        own = {"w": self.w, **{f"noise.{name}": n for name, n in self.noise.items()}}
        for name, tensor in own.items():
            if name not in tensors or tensors[name].shape != tensor.shape:
                raise LatentError(f"the saved projection does not fit: {name} is missing or of another shape")
            with torch.no_grad():
                tensor.copy_(tensors[name])
            prefix = f"adam.{name}|"
            entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if entries:
                device = {k: v if k == "step" else v.to(tensor.device) for k, v in entries.items()}
                self.adam.state[tensor] = device
        self.step = step


def set_noise(G: Generator, tensors: dict[str, Tensor]) -> None:
    """Puts the noise maps of a projection (`Projector.state`) into G, where it has any."""
    modules: dict[str, Any] = dict(G.synthesis.named_modules())
    for name, value in tensors.items():
        if name.startswith("noise."):
            module = modules.get(name.removeprefix("noise."))
            if module is None or module.noise_const.shape != value.shape:
                raise LatentError(f"the projection's noise map {name} does not fit the generator")
            module.noise_const = value.to(module.noise_const.device)
