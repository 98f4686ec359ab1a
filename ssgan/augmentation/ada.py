"""Adaptive discriminator augmentation (Karras et al. 2020, "Training GANs with limited data") for volumes and slices.

All images that the discriminator sees, real or generated, go through the same random augmentations; gradients pass
through them to any order. Each augmentation is applied to each sample independently with probability p, and p follows
how far the discriminator overfits. The augmentations do not leak into the generated images: an augmentation applied
with p < 1 is invertible as a map of distributions, so the augmented generated images have the distribution of the
augmented real ones only if this holds without augmentation too.

| augmentation | ADA, 2D | here, strengths in AugmentConfig | invertible because |
|---|---|---|---|
| flip | left-right | each allowed axis with 1/2 | averages over a group: eigenvalues 1, 1-p |
| quarter turns | C4 | C4 in each allowed plane | the same |
| rotation | +-180 degrees, twice | each plane, triangular on +-rotation | (a) |
| scale | 2^N(0, 0.2) | 2^triangular on +-scale | (a) |
| stretch | 2^N(0, 0.2) along a random axis | 2^triangular on +-stretch, each axis | (a) |
| shift | uniform whole pixels, 1/8 | whole voxels, difference of two uniforms, +-shift | (a) |
| drift | N(0, 1/8) | triangular on +-drift | (a) |
| contrast | 2^N(0, 0.5) about grey | 2^N(0, contrast) about the background, which stays | (a) |
| brightness | N(0, 0.2) | N(0, brightness) | (a) |
| midtones | - (hue, saturation) | asinh(sinh(3x) + 3k) / 3, k in N(0, midtones); gamma without its pole | (a) |
| bands | 4 octaves, 2^N(0, 1) | 2 finest octaves, 2^N(0, bands): blur or sharpening | (b) |
| noise | std abs N(0, 0.1) | std abs N(0, noise) | adds a law with characteristic function > 0 |
| cutout | grey square, half as wide | box of background, cutout of each extent | (c) |

(a) A one-parameter group whose parameter has a distribution with a characteristic function >= 0 (triangular: the
difference of two uniforms; normal). The average over it has no negative eigenvalue, so with probability p every
eigenvalue is at least 1 - p. ADA's uniform distributions reach -0.22, so its p is safe below 0.8 only. This neglects
the volume's border. (b) Holds for p < 1/2, as for every augmentation: (1 - p) I + p K, where K has norm 1. (c) No image
of the data has such a box, so the cut images are recognisable, and they are a share p. p_max bounds p.

Positions, order and filters differ from ADA, which composes one matrix and samples at twice the resolution; see
`ssgan.augmentation.resampling`. Outside the volume is background (-1), as `prepare` pads: mirroring would create
anatomy that nobody has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssgan.augmentation.resampling import BACKGROUND, resample_axis, rotate_plane, scale_and_shift
from ssgan.config.augmentation import FLIPS, PLANES, AugmentConfig
from ssgan.config.fields import Triple
from ssgan.data.axes import ARRAY_AXES
from ssgan.utils.errors import ConfigError

MIDTONES = 3.0  # steepness: at 3, black and white are shifted by a tenth of what mid grey is
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # low-pass filter


@dataclass(frozen=True)
class Draws:
    """The random parameters of a batch of N samples.

    They are float64 on the CPU, and have a value without effect where the augmentation is not applied. The noise is on
    the images' device. Axes are D, H, W; planes those of `Augment.planes`.
    """

    flip: Tensor  # (N, 3) bool
    turns: Tensor  # (N, planes) quarter turns
    angle: Tensor  # (N, planes) radians
    log_scale: Tensor  # (N, 3) octaves
    shift: Tensor  # (N, 3) voxels
    log_contrast: Tensor  # (N,) octaves
    brightness: Tensor  # (N,)
    midtones: Tensor  # (N,)
    log_bands: Tensor  # (N, 2) octaves, the finest first
    noise_std: Tensor  # (N,)
    cut: Tensor  # (N,) bool
    cut_centre: Tensor  # (N, 3) voxels, voxel i from i - 1/2 to i + 1/2
    noise: Tensor | None  # (N, C, D, H, W), None if no sample has any

    def take(self, samples: Sequence[int]) -> Draws:
        """The parameters of some samples of the batch: those of one process, or of one micro-batch."""
        rows = torch.as_tensor(list(samples), dtype=torch.long)
        kept = {f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)[:-1]}
        return Draws(**kept, noise=None if self.noise is None else self.noise[rows.to(self.noise.device)])


class Augment:
    """The augmentations of a policy for images of one shape.

    shape: (D, H, W), D = 1 for slices, which are augmented within their plane only.
    slice_axis, spacing ((x, y, z) mm): the data set's; by them the patient's axes are found, and rotations are made in
        mm.
    mask_classes: channels at the end that are a label map's class probabilities. Geometry (interpolated as intensities
        are) and cutout change them as they do the intensities, all else leaves them as they are; outside the volume is
        the first class, the background.

    Raises:
        ConfigError: quarter turns in a plane of unequal extents or spacings, or an unknown slice axis.
    """

    def __init__(
        self, config: AugmentConfig, shape: Triple, *, slice_axis: str = "axial",
        spacing: Sequence[float] = (1.0, 1.0, 1.0), mask_classes: int = 0,
    ) -> None:  # fmt: skip
        if slice_axis not in ARRAY_AXES:
            raise ConfigError(f"slice_axis: expected one of {', '.join(ARRAY_AXES)}; got {slice_axis!r}")
        if len(shape) != 3 or min(shape) < 1 or len(spacing) != 3 or not min(spacing) > 0:
            raise ConfigError(f"shape, spacing: expected three numbers above 0 each; got {shape}, {spacing}")
        self.config, self.shape, self.mask_classes = config, tuple(shape), mask_classes
        world = ARRAY_AXES[slice_axis]
        self.spacing = tuple(float(spacing[a]) for a in world)  # along D, H, W
        self.flip_axes = [world.index(FLIPS[name]) for name in config.flips]
        # Plane name -> its array axes in rising order, where the images have both.
        planes = {name: tuple(sorted(world.index(a) for a in axes)) for name, axes in PLANES.items()}
        self.planes = {k: v for k, v in planes.items() if all(self.shape[a] > 1 for a in v)}
        for name in config.quarter_turns:
            self._check_square(name, *planes[name])

    def _check_square(self, name: str, first: int, second: int) -> None:
        extents = self.shape[first], self.shape[second]
        if min(extents) == 1:
            return
        spacings = self.spacing[first], self.spacing[second]
        if extents[0] != extents[1] or not math.isclose(*spacings, rel_tol=1e-3):
            raise ConfigError(
                f"augment.quarter_turns: the {name} plane has {extents[0]} x {extents[1]} voxels of {spacings[0]:g} x "
                f"{spacings[1]:g} mm; expected equal ones. Leave {name} out, or prepare the data with another --shape"
            )

    def draw(
        self, batch: int, p: float, generator: torch.Generator, *, channels: int = 1,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> Draws:  # fmt: skip
        """Draws the parameters of a whole batch, each augmentation applied with probability p.

        generator: on the CPU. The parameters consume the same random numbers whatever the policy and p. The noise is
        drawn after them; on another device it comes from a generator there, seeded from this one.
        """
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected a probability; got {p}")
        c, n, planes = self.config, batch, len(self.planes)

        def uniform(*size: int) -> Tensor:
            return torch.rand(n, *size, generator=generator, dtype=torch.float64)

        def normal(*size: int) -> Tensor:
            return torch.randn(n, *size, generator=generator, dtype=torch.float64)

        def triangular(*size: int) -> Tensor:
            return uniform(*size) - uniform(*size)

        def applied(*size: int) -> Tensor:
            return uniform(*size) < p

        extent = torch.tensor(self.shape, dtype=torch.float64)
        exists = (extent > 1).double()
        flips = torch.tensor([a in self.flip_axes for a in range(3)])
        square = torch.tensor([name in c.quarter_turns for name in self.planes], dtype=torch.float64)
        flip = applied(3) & (uniform(3) < 0.5) & flips
        turns = (applied(3) * (uniform(3) * 4).floor())[:, :planes] * square
        angle = (applied(3) * triangular(3))[:, :planes] * math.radians(c.rotation)
        log_scale = (applied() * triangular() * c.scale)[:, None] + applied()[:, None] * triangular(3) * c.stretch
        steps = (c.shift * extent).floor() + 1
        whole = (uniform(3) * steps).floor() - (uniform(3) * steps).floor()
        shift = applied()[:, None] * whole + applied()[:, None] * triangular(3) * c.drift * extent
        log_contrast = applied() * normal() * c.contrast
        brightness = applied() * normal() * c.brightness
        midtones = applied() * normal() * c.midtones
        log_bands = applied()[:, None] * normal(2) * c.bands
        noise_std = applied() * normal().abs() * c.noise
        cut = applied() & (c.cutout > 0)
        centre = torch.where(extent > 1, uniform(3) * extent - 0.5, 0.0)
        noise = None
        if bool((noise_std > 0).any()):
            device = torch.device(device)
            if device.type != "cpu":
                seed = int(torch.randint(2**62, (), generator=generator))
                generator = torch.Generator(device).manual_seed(seed)
            noise = torch.randn(n, channels, *self.shape, generator=generator, device=device, dtype=dtype)
        return Draws(
            flip, turns, angle, log_scale * exists, shift * exists, log_contrast, brightness, midtones, log_bands,
            noise_std, cut, centre, noise,
        )  # fmt: skip

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Augments images (N, C, D, H, W) in [-1, 1]; samples to which nothing is applied stay the same to the bit."""
        if images.dim() != 5 or tuple(images.shape[2:]) != self.shape or len(images) != len(draws.flip):
            expected = (len(draws.flip), "C", *self.shape)
            raise ValueError(f"images: expected shape {expected}, as drawn for; got {tuple(images.shape)}")
        if images.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"images: expected float32 or float64; got {images.dtype}")
        if not self.mask_classes:
            return self._cut(self._intensity(self._geometry(images, draws), draws), draws)
        x = self._geometry(self._negated(images), draws)
        first = images.shape[1] - self.mask_classes
        x = torch.cat([self._intensity(x[:, :first], draws), x[:, first:]], 1)
        return self._negated(self._cut(x, draws))

    def _negated(self, x: Tensor) -> Tensor:
        """Changes the sign of the first class's channel, whose background is +1 where that of the others is -1."""
        sign = x.new_ones(x.shape[1])
        sign[-self.mask_classes] = -1
        return x * sign[:, None, None, None]

    def _geometry(self, x: Tensor, d: Draws) -> Tensor:
        c = self.config
        for axis in range(3):
            x = _where(x, d.flip[:, axis], lambda y, _, axis=axis: y.flip(2 + axis))
        for i, (first, second) in enumerate(self.planes.values()):
            for k in (1, 2, 3):
                dims = (2 + first, 2 + second)
                x = _where(x, d.turns[:, i] == k, lambda y, _, k=k, dims=dims: y.rot90(k, dims))
        for i, plane in enumerate(self.planes.values()):
            sizes = self.spacing[plane[0]], self.spacing[plane[1]]

            def rotate(y: Tensor, rows: Tensor, i: int = i, plane=plane, sizes=sizes) -> Tensor:
                return rotate_plane(y, plane, d.angle[rows, i].to(y.device), sizes, math.radians(c.rotation))

            x = _where(x, d.angle[:, i] != 0, rotate)
        for axis in range(3):

            def move(y: Tensor, rows: Tensor, axis: int = axis) -> Tensor:
                scale, shift = torch.exp2(d.log_scale[rows, axis]), d.shift[rows, axis]
                most = 2 ** (c.scale + c.stretch)
                return scale_and_shift(y, axis, scale.to(y.device), shift.to(y.device), most)

            x = _where(x, (d.log_scale[:, axis] != 0) | (d.shift[:, axis] != 0), move)
        return x

    def _intensity(self, x: Tensor, d: Draws) -> Tensor:
        x = _where(
            x, d.log_contrast != 0, lambda y, r: (y - BACKGROUND) * _each(d.log_contrast[r].exp2(), y) + BACKGROUND
        )
        x = _where(x, d.brightness != 0, lambda y, r: y + _each(d.brightness[r], y))
        x = _where(x, d.midtones != 0, lambda y, r: shift_midtones(y, _each(d.midtones[r], y)))
        x = _where(x, (d.log_bands != 0).any(1), lambda y, r: scale_bands(y, d.log_bands[r].exp2()))
        if d.noise is not None:
            noise = d.noise
            x = _where(x, d.noise_std > 0, lambda y, r: y + _each(d.noise_std[r], y) * noise[r.to(noise.device)].to(y))
        return x

    def _cut(self, x: Tensor, d: Draws) -> Tensor:
        return _where(x, d.cut, lambda y, r: cut_box(y, d.cut_centre[r], self.config.cutout))


def shift_midtones(x: Tensor, shift: Tensor) -> Tensor:
    """Computes asinh(sinh(3x) + 3 shift) / 3, smooth and invertible for all x; the shifts of two calls add up."""
    near = x.clamp(-8.0, 8.0)  # beyond it the shift has no effect, and sinh would overflow
    moved = torch.asinh(torch.sinh(MIDTONES * near) + MIDTONES * shift) / MIDTONES
    return torch.where(x.abs() < 8.0, moved, x)


def scale_bands(x: Tensor, gains: Tensor) -> Tensor:
    """Scales the two finest octaves by gains (N, 2), the finest first. An octave is a difference of low-passes."""
    fine = _low_pass(x, 1)
    coarse = _low_pass(fine, 2)
    return coarse + _each(gains[:, 1], x) * (fine - coarse) + _each(gains[:, 0], x) * (x - fine)


def _low_pass(x: Tensor, step: int) -> Tensor:
    """Filters by a binomial FIR with 5 taps, `step` voxels apart, along each axis of extent > 1; background outside.

    It multiplies by a matrix per axis, because on the CPU `upfirdn3d` folds the axes into one 3D kernel of 9^3 taps.
    """
    for axis, n in enumerate(x.shape[2:]):
        if n > 1:
            far = (torch.arange(n).unsqueeze(1) - torch.arange(n)).abs()
            weights = sum((far == step * abs(k)).double() * BINOMIAL[k + 2] for k in (-2, -1, 0))
            x = resample_axis(x, axis, None, weights.to(x.device).expand(len(x), n, n))
    return x


def cut_box(x: Tensor, centre: Tensor, share: float) -> Tensor:
    """Sets a box to background: `share` of each extent, around centre (N, 3), clipped to the volume."""
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for axis, n in enumerate(x.shape[2:]):
        if n > 1:
            index = torch.arange(n, device=x.device, dtype=torch.float64)
            within = (index - centre[:, axis, None].to(x.device)).abs() < share * n / 2
            inside = inside & within.reshape(-1, *(n if a == axis else 1 for a in range(3))).unsqueeze(1)
    return torch.where(inside, BACKGROUND, x)


def _each(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,), one per sample, as (N, 1, 1, 1, 1) of the dtype and on the device of `like`."""
    return values.to(like).reshape(-1, 1, 1, 1, 1)


def _where(x: Tensor, mask: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Replaces the samples where mask (N,), on the CPU, is set by change(images, rows), computed for those only."""
    rows = mask.nonzero().squeeze(1)
    if len(rows) == 0:
        return x
    if len(rows) == len(x):
        return change(x, rows)
    index = rows.to(x.device)
    return x.index_copy(0, index, change(x.index_select(0, index), rows))


class AdaptiveProbability:
    """The probability p, adapted every `interval` steps to how often the discriminator is right about real images.

    With r = E[sign D(real)] over those steps, p changes by batch * interval / images_to_one, up while r > target and
    down while r < target, and stays in [0, p_max] (ADA, section 3 and its training_loop.py). `sums`, (sum of signs,
    number of logits) in float64 on the CPU, has to be added up over processes.

        logits = D(augment(reals, augment.draw(batch, ada.p, generator)))
        ada.observe(logits)
        ada.step(reduce)                        # after each step; reduce adds a list of tensors up over processes
    """

    def __init__(self, config: AugmentConfig, batch: int, budget_kimg: float) -> None:
        if batch < 1:
            raise ValueError(f"batch: expected at least 1; got {batch}")
        self.config = config
        self.p = config.p_start
        self.r: float | None = None  # of the last change
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.steps = 0  # since the last change
        self.change = batch * config.interval / config.images_to_one(budget_kimg) if config.adapt else 0.0

    def observe(self, real_logits: Tensor) -> None:
        """Counts the signs of the logits, of any shape, of (augmented) real images."""
        logits = real_logits.detach()
        signs = torch.where(logits.isnan(), logits, logits.sign())  # sign(NaN) is 0
        self.observe_mean(float(signs.double().mean()), signs.numel())

    def observe_mean(self, sign: float, count: int) -> None:
        """Counts `count` logits by their mean sign; rounds their sum of signs, which is a whole number."""
        total = sign * count
        self.sums += torch.tensor([round(total) if math.isfinite(total) else math.nan, count], dtype=torch.float64)

    def step(self, reduce: Callable[[list[Tensor]], object] | None = None) -> bool:
        """Counts a training step, and adapts p after every `interval` of them; returns whether it did.

        All processes call it. reduce: adds the tensors of a list up over the processes, in place.
        """
        if not self.config.active:
            return False
        self.steps += 1
        if self.steps < self.config.interval:
            return False
        if reduce is not None:
            reduce([self.sums])
        total, count = self.sums.tolist()
        if count == 0:
            raise ValueError("step: no logits were observed; call observe with those of the real images first")
        if not math.isfinite(total):
            raise ValueError("step: the logits of the real images are not finite; p was not changed")
        self.r = total / count
        direction = (self.r > self.config.target) - (self.r < self.config.target)
        self.p = min(max(self.p + direction * self.change, 0.0), self.config.p_max)
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.steps = 0
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """The state as float64 tensors, from which a run resumes exactly."""
        r = math.nan if self.r is None else self.r
        values = {"p": self.p, "r": r, "steps": self.steps}
        return {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()} | {"sums": self.sums.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`. Raises ConfigError for tensors that it did not make, and then changes nothing."""
        sizes = {"p": (), "r": (), "steps": (), "sums": (2,)}
        if set(state) != set(sizes) or any(tuple(state[k].shape) != size for k, size in sizes.items()):
            found = {k: tuple(v.shape) for k, v in state.items()}
            raise ConfigError(f"state of the augmentation: expected tensors of shapes {sizes}; got {found}")
        p, r, steps = (float(state[k]) for k in ("p", "r", "steps"))
        if not 0 <= p <= self.config.p_max or not 0 <= steps < self.config.interval:
            raise ConfigError(
                f"state of the augmentation: p = {p:g} after {steps:g} steps; expected p in [0, {self.config.p_max:g}] "
                f"and less than {self.config.interval} steps; was it trained with another policy?"
            )
        self.p, self.r, self.steps = p, None if math.isnan(r) else r, int(steps)
        self.sums = state["sums"].detach().to("cpu", torch.float64).clone()
