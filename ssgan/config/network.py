"""The shapes of generator and discriminator: architectures, levels and channels.

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

# Architecture -> the stages of one 3x3x3 convolution block; a stage lists the kernel extents of its branches.
# More than one stage means convolutions one after another (the separable architecture).
ARCHITECTURES: dict[str, tuple[tuple[Triple, ...], ...]] = {
    "dense": (((3, 3, 3),),),
    "grouped": (((3, 3, 3), (3, 3, 3)),),
    "split_depth": (((3, 3, 3), (1, 3, 3)),),
    "acs4": (((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)),),
    "separable": (((1, 3, 3),), ((3, 1, 1),)),
}

PROFILES = ("average", "centre", "triangle", "none")

MIN_BASE, MAX_BASE = 3, 8


def dense_at(levels: Sequence[int]) -> str:
    """What to call these dense levels."""
    return f"dense at level{'s' if len(levels) > 1 else ''} {', '.join(map(str, levels))}"


def plan_levels(shape: Triple) -> tuple[Triple, tuple[Triple, ...]]:
    """Splits a volume shape (D, H, W) into a base and a resampling triple per level, coarse to fine.

    Height and width double at every level; depth doubles at the coarse levels and stays at the finest ones when it
    has fewer voxels, because there the in-plane resolution is the finer one. (32, 48, 32) gives base (4, 6, 4) and
    three levels of (2, 2, 2); (16, 64, 64) gives base (4, 4, 4), two levels of (2, 2, 2) and two of (1, 2, 2).

    Raises:
        ConfigError: an axis is not a base of 3 to 8 times a power of two, or the axes do not fit together.
    """
    shape = to_triple(shape, "shape")
    depth, height, width = shape

    def halvings(n: int, name: str) -> range:
        fits = [k for k in range(int(math.log2(n)) + 1) if n % 2**k == 0 and MIN_BASE <= n >> k <= MAX_BASE]
        if not fits:
            raise ConfigError(
                f"shape: axis {name} has {n} voxels; expected {MIN_BASE}..{MAX_BASE} times a power of two "
                f"(such as 16, 24, 32, 40, 48, 64, 96, 128); prepare the data with another --shape"
            )
        return range(fits[0], fits[-1] + 1)

    common = sorted(set(halvings(height, "H")) & set(halvings(width, "W")))
    if not common:
        raise ConfigError(
            f"shape: H = {height} and W = {width} cannot be halved equally often down to a base of "
            f"{MIN_BASE}..{MAX_BASE}; bring them closer together with another --shape"
        )
    # A base nearest to 4 is StyleGAN2's own; fewer levels would leave a large learned constant.
    levels = min(common, key=lambda k: (abs(min(height, width) / 2**k - 4), -k))
    if levels == 0:
        raise ConfigError(f"shape: {shape} is too small: H and W need at least one halving above a base of {MIN_BASE}")
    depth_fits = [k for k in halvings(depth, "D") if k <= levels]
    if not depth_fits:
        raise ConfigError(
            f"shape: D = {depth} needs more halvings than the {levels} of H = {height} and W = {width}; "
            "choose a smaller depth or another --slice-axis"
        )
    doubled = min(depth_fits, key=lambda k: (abs(depth / 2**k - 4), -k))
    base = (depth >> doubled, height >> levels, width >> levels)
    return base, tuple((2 if i < doubled else 1, 2, 2) for i in range(levels))


@dataclass(frozen=True)
class NetworkConfig:
    """Generator and discriminator of one GAN; the 2D one is `flat()`: the same with depth 1.

    shape: (D, H, W) of a volume. base, scales: see `plan_levels`. widths: channels per level, coarse to fine,
    len(scales) + 1 of them. arch: a key of ARCHITECTURES. classes: labels to condition on, 0 for none; label_layers:
    of the discriminator's mapping of the label, None for as many as mapping_layers. depth_places: None, or (base's
    depth, volume's depth): the 2D networks are told where along depth a slice lies (`depth_aware`). arch_d: the
    discriminator's architecture where it is another one, else None. dense_levels: those whose convolutions are dense
    whatever the architectures, 0 the coarsest.
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
        """The key of ARCHITECTURES that the discriminator's blocks have."""
        return self.arch if self.arch_d is None else self.arch_d

    @property
    def arch_name(self) -> str:
        """What to call the architecture of both, such as "split_depth", "split_depth G, dense D" or "split_depth, dense
        at levels 0, 1"."""
        same = self.discriminator_arch == self.arch
        name = self.arch if same else f"{self.arch} G, {self.discriminator_arch} D"
        return f"{name}, {dense_at(self.dense_levels)}" if self.dense_levels else name

    def arch_at(self, level: int, discriminator: bool = False) -> str:
        """The key of ARCHITECTURES that the convolutions of a level (0 the coarsest) of one network have."""
        if level in self.dense_levels:
            return "dense"
        return self.discriminator_arch if discriminator else self.arch

    def with_arch(self, arch: str, arch_d: str | None = None, dense_levels: Iterable[int] = ()) -> NetworkConfig:
        """The same with other architectures: of both networks, of the discriminator apart, and of single levels."""
        levels = tuple(sorted(dense_levels))
        return dataclasses.replace(self, arch=arch, arch_d=None if arch_d == arch else arch_d, dense_levels=levels)

    @property
    def is_flat(self) -> bool:
        """True for the 2D GAN (depth 1)."""
        return self.shape[0] == 1

    def depth_aware(self, aware: bool = True) -> NetworkConfig:
        """The same networks with (or without) places along depth.

        With them the constant of the 2D generator and the features of either discriminator's image depend on where
        along depth a slice lies, as those of the 3D networks do; so inflation carries over what belongs where.
        """
        return dataclasses.replace(self, depth_places=(self.base[0], self.shape[0]) if aware else None)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> NetworkConfig:
        """From its fields as JSON has them; raises ConfigError naming a missing or unknown one."""
        return cls(**{name: to_tuples(value) for name, value in checked_fields(cls, data, "network").items()})

    def flat(self) -> NetworkConfig:
        """The 2D network whose weights inflate into this one: depth 1, levels scale by (1, 2, 2)."""
        return dataclasses.replace(
            self,
            shape=(1, *self.shape[1:]),
            base=(1, *self.base[1:]),
            scales=tuple((1, s[1], s[2]) for s in self.scales),
        )
