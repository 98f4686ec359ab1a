"""The configuration of generator and discriminator: architecture, resolution levels, channels.

Array axes are always D, H, W; resampling factors and bases are triples in that order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ssgan.config.fields import Triple, checked_fields, to_triple, to_tuples
from ssgan.utils.errors import ConfigError

# Architecture -> the convolutions that stand for one 3x3x3 convolution, one after another (two of them in the separable
# architecture). A convolution is given by the kernel extents (D, H, W) of its branches.
ARCHITECTURES: dict[str, tuple[tuple[Triple, ...], ...]] = {
    "dense": (((3, 3, 3),),),
    "grouped": (((3, 3, 3), (3, 3, 3)),),
    "split_depth": (((3, 3, 3), (1, 3, 3)),),
    "acs4": (((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)),),
    "separable": (((1, 3, 3),), ((3, 1, 1),)),
}

PROFILES = ("average", "centre", "triangle", "none")  # along depth, of inflated weights (`ssconv.inflate_weight`)

MIN_BASE, MAX_BASE = 3, 8  # voxels along an axis of the coarsest level


def dense_at(levels: Sequence[int]) -> str:
    """The name of these dense levels in tables and messages, such as "dense at levels 0, 1"."""
    return f"dense at level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"


def nearest_sizes(n: int) -> tuple[int, ...]:
    """The sizes of an axis nearest to n: n itself if it fits, else the next below, if there is one, and above."""
    sizes = sorted({base << k for base in range(MIN_BASE, MAX_BASE + 1) for k in range(n.bit_length())})
    return (n,) if n in sizes else (*[s for s in sizes if s < n][-1:], min(s for s in sizes if s > n))


def plan_levels(
    shape: Triple, names: tuple[str, str, str] = ("D", "H", "W"), hint: str = "prepare the data with another --shape"
) -> tuple[Triple, tuple[Triple, ...]]:
    """Splits a volume shape (D, H, W) into a base and a resampling triple per level, coarse to fine.

    Height and width double at every level. Depth doubles at the coarse levels; if it has fewer voxels it stays at the
    finest ones, because the resolution in the plane is the finer one there. (32, 48, 32) gives base (4, 6, 4) and
    three levels of (2, 2, 2); (16, 64, 64) gives base (4, 4, 4), two levels of (2, 2, 2) and two of (1, 2, 2).

    names, hint: what the axes D, H, W are called in the option that the user gave, and what to do, for messages.

    Raises:
        ConfigError: an axis is not 3 to 8 times a power of two, or the axes do not fit together.
    """
    shape = to_triple(shape, "shape")
    depth, height, width = shape
    d, h, w = names

    def halvings(n: int, name: str) -> range:
        fits = [k for k in range(int(math.log2(n)) + 1) if n % 2**k == 0 and MIN_BASE <= n >> k <= MAX_BASE]
        if not fits:
            raise ConfigError(
                f"shape: axis {name} has {n} voxels; expected {MIN_BASE}..{MAX_BASE} times a power of two "
                f"(such as 16, 24, 32, 40, 48, 64, 96, 128); {hint}"
            )
        return range(fits[0], fits[-1] + 1)

    common = sorted(set(halvings(height, h)) & set(halvings(width, w)))
    if not common:
        raise ConfigError(
            f"shape: {h} = {height} and {w} = {width} cannot be halved equally often down to a base of "
            f"{MIN_BASE}..{MAX_BASE}; bring them closer together: {hint}"
        )
    # StyleGAN2 has a base of 4; fewer levels would leave a large learned constant.
    levels = min(common, key=lambda k: (abs(min(height, width) / 2**k - 4), -k))
    if levels == 0:
        raise ConfigError(
            f"shape: {h} = {height} and {w} = {width} is too small: they need at least one halving above a base of "
            f"{MIN_BASE}; {hint}"
        )
    depth_fits = [k for k in halvings(depth, d) if k <= levels]
    if not depth_fits:
        raise ConfigError(
            f"shape: {d} = {depth} needs more halvings than the {levels} of {h} = {height} and {w} = {width}; "
            f"choose a smaller {d} or another --slice-axis"
        )
    doubled = min(depth_fits, key=lambda k: (abs(depth / 2**k - 4), -k))
    base = (depth >> doubled, height >> levels, width >> levels)
    return base, tuple((2 if i < doubled else 1, 2, 2) for i in range(levels))


@dataclass(frozen=True)
class NetworkConfig:
    """Generator and discriminator of one GAN. `flat()` gives those of the 2D GAN, which have depth 1.

    shape: (D, H, W) of a volume, in voxels.
    base, scales: shape of the coarsest level, and a resampling triple per level (`plan_levels`).
    widths: channels per level, coarse to fine; len(scales) + 1 of them.
    arch, arch_d: keys of ARCHITECTURES for both networks, and for the discriminator if it has another one.
    dense_levels: levels with dense convolutions whatever the architecture, 0 the coarsest.
    mbstd_group: largest group of the minibatch standard deviation, in samples.
    conv_clamp: bound of the activations, None for none.
    classes: number of classes to condition on, 0 for none.
    label_layers: layers of the discriminator's mapping of the class, None for mapping_layers.
    depth_places: (base's depth, volume's depth) if the 2D networks are conditioned on the slice index, else None.
    mask_classes: classes of the label map that comes with each image, in the image channels 1 .. mask_classes; 0 for
        none (`ssgan.models.masks`).
    """

    shape: Triple
    base: Triple
    scales: tuple[Triple, ...]
    widths: tuple[int, ...]
    arch: str = "split_depth"
    image_channels: int = 1
    z_dim: int = 128
    w_dim: int = 128
    mapping_layers: int = 4
    mbstd_group: int = 4
    conv_clamp: float | None = None
    classes: int = 0
    label_layers: int | None = None
    depth_places: tuple[int, int] | None = None
    arch_d: str | None = None
    dense_levels: tuple[int, ...] = ()
    mask_classes: int = 0

    def __post_init__(self) -> None:
        for name, arch in (("arch", self.arch), ("arch_d", self.discriminator_arch)):
            if arch not in ARCHITECTURES:
                raise ConfigError(f"{name}: expected one of {', '.join(ARCHITECTURES)}; got {arch!r}")
        if len(self.widths) != len(self.scales) + 1:
            raise ConfigError(f"widths: expected {len(self.scales) + 1} (one per level); got {len(self.widths)}")
        reached = tuple(self.base[d] * math.prod(s[d] for s in self.scales) for d in range(3))
        if reached != tuple(self.shape):
            raise ConfigError(f"shape: base {self.base} with scales {self.scales} gives {reached}, not {self.shape}")
        for arch in (self.arch, self.discriminator_arch):
            branches = math.lcm(*(len(stage) for stage in ARCHITECTURES[arch]))
            for w in self.widths:
                if w % branches:
                    raise ConfigError(f"widths: {w} channels cannot be split into {branches} branches ({arch})")
        self._check_dense_levels()
        for name in ("image_channels", "z_dim", "w_dim", "mapping_layers", "mbstd_group"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1; got {getattr(self, name)}")
        places = self.depth_places
        if places is not None and not self.is_flat and tuple(places) != (self.base[0], self.shape[0]):
            raise ConfigError(f"depth_places: expected {(self.base[0], self.shape[0])}, base and shape; got {places}")
        if places is not None and not 1 <= places[0] <= places[1]:
            raise ConfigError(f"depth_places: expected (base's depth, volume's depth); got {places}")
        if self.mask_classes and (self.mask_classes < 2 or self.image_channels != 1 + self.mask_classes):
            raise ConfigError(
                f"mask_classes: expected 0, or at least 2 with a channel for each and one for the intensity; got "
                f"{self.mask_classes} and {self.image_channels} image channels"
            )
        for name in ("classes", "label_layers"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{name}: expected at least 0; got {getattr(self, name)}")

    def _check_dense_levels(self) -> None:
        chosen, last = self.dense_levels, len(self.scales)
        if list(chosen) != sorted(set(chosen)) or not all(isinstance(n, int) and 0 <= n <= last for n in chosen):
            raise ConfigError(
                f"dense_levels: expected different levels in rising order, of 0 (the coarsest) .. {last}; got {chosen}"
            )
        if chosen and self.arch == self.discriminator_arch == "dense":
            raise ConfigError(f"dense_levels: both networks are dense at every level; leave {chosen} out")
        if chosen == (0,) and self.arch == "dense":
            raise ConfigError(
                "dense_levels: the generator is dense, and the discriminator has nothing split at level 0; leave "
                "(0,) out"
            )

    @property
    def discriminator_arch(self) -> str:
        """The architecture of the discriminator, a key of ARCHITECTURES."""
        return self.arch if self.arch_d is None else self.arch_d

    @property
    def arch_name(self) -> str:
        """The architecture in words, such as "split_depth", "split_depth G, dense D" or "split_depth, dense at levels
        0, 1"."""
        same = self.discriminator_arch == self.arch
        name = self.arch if same else f"{self.arch} G, {self.discriminator_arch} D"
        return f"{name}, {dense_at(self.dense_levels)}" if self.dense_levels else name

    def arch_at(self, level: int, discriminator: bool = False) -> str:
        """The architecture of one network at a level (0 the coarsest), a key of ARCHITECTURES."""
        if level in self.dense_levels:
            return "dense"
        return self.discriminator_arch if discriminator else self.arch

    def with_arch(self, arch: str, arch_d: str | None = None, dense_levels: Iterable[int] = ()) -> NetworkConfig:
        """A copy with another architecture of both networks, of the discriminator, or of single levels."""
        levels = tuple(sorted(dense_levels))
        return dataclasses.replace(self, arch=arch, arch_d=None if arch_d == arch else arch_d, dense_levels=levels)

    @property
    def is_flat(self) -> bool:
        """Whether this is the 2D GAN (depth 1)."""
        return self.shape[0] == 1

    def depth_aware(self, aware: bool = True) -> NetworkConfig:
        """A copy whose 2D networks are (or are not) conditioned on the slice index.

        The 2D generator's constant and the features of the discriminator's input then depend on where along depth a
        slice lies, as they do in the 3D networks, and inflation copies each position's values to that position.
        """
        return dataclasses.replace(self, depth_places=(self.base[0], self.shape[0]) if aware else None)

    def with_masks(self, classes: int) -> NetworkConfig:
        """A copy whose images are an intensity and a label map of `classes` classes; 0 for the intensity alone."""
        return dataclasses.replace(self, image_channels=1 + classes, mask_classes=classes)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NetworkConfig:
        """Builds the configuration from its fields in JSON; raises ConfigError naming a missing or unknown one."""
        return cls(**{name: to_tuples(value) for name, value in checked_fields(cls, data, "network").items()})

    def flat(self) -> NetworkConfig:
        """The 2D networks whose weights inflate into these: depth 1, levels scale by (1, 2, 2)."""
        return dataclasses.replace(
            self,
            shape=(1, *self.shape[1:]),
            base=(1, *self.base[1:]),
            scales=tuple((1, s[1], s[2]) for s in self.scales),
        )
