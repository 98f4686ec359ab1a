"""What a run is made of: network shapes, training hyper-parameters and the presets that name them.

Every class here is a frozen dataclass that validates itself and goes to and from plain JSON.
Array axes are always D, H, W; resampling factors and bases are triples in that order.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssgan.config.augmentation import AugmentConfig
from ssgan.utils.errors import UserError

Triple = tuple[int, int, int]

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


class ConfigError(UserError):
    """A configuration that cannot be: the message names the field, what was expected, what came and what to do."""


def plan_levels(shape: Triple) -> tuple[Triple, tuple[Triple, ...]]:
    """Splits a volume shape (D, H, W) into a base and a resampling triple per level, coarse to fine.

    Height and width double at every level; depth doubles at the coarse levels and stays at the finest ones when it
    has fewer voxels, because there the in-plane resolution is the finer one. (32, 48, 32) gives base (4, 6, 4) and
    three levels of (2, 2, 2); (16, 64, 64) gives base (4, 4, 4), two levels of (2, 2, 2) and two of (1, 2, 2).

    Raises:
        ConfigError: an axis is not a base of 3 to 8 times a power of two, or the axes do not fit together.
    """
    shape = _triple(shape, "shape")
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
        return cls(**{name: _tuples(value) for name, value in _checked(cls, data, "network").items()})

    def flat(self) -> NetworkConfig:
        """The 2D network whose weights inflate into this one: depth 1, levels scale by (1, 2, 2)."""
        return dataclasses.replace(
            self,
            shape=(1, *self.shape[1:]),
            base=(1, *self.base[1:]),
            scales=tuple((1, s[1], s[2]) for s in self.scales),
        )


@dataclass(frozen=True)
class StageConfig:
    """Budget and batch of one training stage ("2d" on slices or "3d" on volumes)."""

    kimg: float  # thousands of real images (slices or volumes) shown to the discriminator
    batch: int
    lr_g: float = 0.002
    lr_d: float = 0.002
    r1_gamma: float = 1.0
    pl_weight: float = 2.0  # 0 switches path-length regularisation off
    style_mixing: float = 0.9
    ema_kimg: float = 2.0  # half-life of the weight average, in thousands of images
    ema_rampup: float | None = 0.05  # the half-life is at most this share of the images shown so far


# What `ssgan train` has options for, with the stage's name behind: --kimg-2d, --lr-g-3d.
STAGE_OPTIONS = tuple(f.name for f in dataclasses.fields(StageConfig) if f.name != "ema_rampup")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the numbers a run produces, besides the data set."""

    network: NetworkConfig
    stage_2d: StageConfig
    stage_3d: StageConfig
    preset: str = "demo"
    stage: str = "both"  # both | 2d | 3d
    inflate: str = "average"  # a profile of PROFILES
    seed: int = 0
    d_reg_interval: int = 16
    g_reg_interval: int = 4
    pl_batch_shrink: int = 2
    pl_decay: float = 0.01
    adam_betas: tuple[float, float] = (0.0, 0.99)
    adam_eps: float = 1e-8
    snapshot_kimg: float = 1.0  # a checkpoint and a snapshot image after so many thousand images
    keep_checkpoints: int = 3
    precision: str = "fp32"  # of convolutions: fp32 | bf16 | fp16
    freeze_d: int = 0  # blocks of the 3D discriminator that stay as inflated, the finest first
    warmup_kimg: float = 0.0  # the 3D learning rates rise from 0 over so many thousand images after inflation
    ema_carries_over: bool = False  # after inflation the weight average goes on; else its ramp-up begins anew
    cooldown_kimg: float = 0.0  # and fall towards 0 over the last so many thousand images of the 3D stage
    metrics: tuple[str, ...] = ("distance",)  # of ssgan.metrics.registry
    metrics_every: int = 0  # images between measurements; 0 measures with the snapshots
    early_stop: int = 0  # a stage ends after so many measurements without a better best_metric; 0 never
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of what the discriminator sees; off by default
    best_metric: str = "distance"  # decides which checkpoint is kept as STAGE-best

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise ConfigError(f"precision: expected fp32, bf16 or fp16; got {self.precision!r}")
        if not 0 <= self.freeze_d <= len(self.network.scales):
            raise ConfigError(
                f"freeze_d: expected 0 to {len(self.network.scales)}, the blocks of D; got {self.freeze_d}"
            )
        for name in ("warmup_kimg", "cooldown_kimg", "metrics_every", "early_stop"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a number of at least 0; got {getattr(self, name)}")
        if self.stage not in ("both", "2d", "3d"):
            raise ConfigError(f"stage: expected both, 2d or 3d; got {self.stage!r}")
        if self.inflate not in PROFILES:
            raise ConfigError(f"inflate: expected one of {', '.join(PROFILES)}; got {self.inflate!r}")

    @property
    def stages(self) -> tuple[str, ...]:
        return ("2d", "3d") if self.stage == "both" else (self.stage,)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_json`; raises ConfigError naming a missing or unknown field."""
        values = _checked(cls, data, "config")
        values["network"] = NetworkConfig.from_json(values["network"])
        for name in ("stage_2d", "stage_3d"):
            values[name] = StageConfig(**_checked(StageConfig, values[name], name))
        if "augment" in values:
            values["augment"] = AugmentConfig.from_json(values["augment"])
        for name in ("adam_betas", "metrics"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Preset:
    """Widths, budgets and hyper-parameters for a class of data; the shape comes from the data set."""

    width_fine: int  # channels at the finest level; they double per coarser level up to width_max
    width_max: int
    z_dim: int
    mapping_layers: int
    stage_2d: StageConfig
    stage_3d: StageConfig
    shape: Triple  # the shape (D, H, W) the preset was made for; phantoms take it when there is no data set
    snapshot_kimg: float = 1.0
    conv_clamp: float | None = None
    depth_aware: bool = False  # the 2D networks know where along depth a slice lies
    extra: dict[str, Any] = field(default_factory=dict)  # fields of TrainConfig that are not its defaults

    def network(self, shape: Triple | None = None, arch: str = "split_depth") -> NetworkConfig:
        """The networks of this preset for volumes of `shape` (D, H, W)."""
        shape = _triple(self.shape if shape is None else shape, "shape")
        base, scales = plan_levels(shape)
        levels = len(scales)
        widths = tuple(min(self.width_max, self.width_fine * 2 ** (levels - i)) for i in range(levels + 1))
        cfg = NetworkConfig(
            shape=shape,
            base=base,
            scales=scales,
            widths=widths,
            arch=arch,
            z_dim=self.z_dim,
            w_dim=self.z_dim,
            mapping_layers=self.mapping_layers,
            conv_clamp=self.conv_clamp,
        )
        return cfg.depth_aware(self.depth_aware)

    def train_config(
        self, name: str, shape: Triple | None = None, arch: str = "split_depth", **changes: Any
    ) -> TrainConfig:
        """The run this preset stands for; `changes` replace fields of TrainConfig."""
        values = {"snapshot_kimg": self.snapshot_kimg, **self.extra, **changes}
        return TrainConfig(self.network(shape, arch), self.stage_2d, self.stage_3d, preset=name, **values)


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        width_fine=32,
        width_max=64,
        z_dim=64,
        mapping_layers=2,
        # By benchmarks/results/experiments/demo-preset.md: three minutes of two cores show what one does not.
        stage_2d=StageConfig(
            kimg=10.0, batch=16, lr_g=0.004, lr_d=0.004, r1_gamma=0.1, pl_weight=0, style_mixing=0, ema_kimg=0.5
        ),
        stage_3d=StageConfig(
            kimg=6.0, batch=4, lr_g=0.003, lr_d=0.003, r1_gamma=0.5, pl_weight=0, style_mixing=0, ema_kimg=0.25
        ),
        shape=(16, 24, 16),
        snapshot_kimg=2.0,
        depth_aware=True,
        extra={"inflate": "centre", "ema_carries_over": True},
    ),
    "hippocampus": Preset(
        width_fine=24,
        width_max=96,
        z_dim=128,
        mapping_layers=4,
        # By benchmarks/results/experiments: for so few steps, fast rates and nothing that holds the generator back.
        stage_2d=StageConfig(
            kimg=60.0, batch=16, lr_g=0.004, lr_d=0.004, r1_gamma=0.1, pl_weight=0, style_mixing=0, ema_kimg=2.0
        ),
        stage_3d=StageConfig(
            kimg=40.0, batch=8, lr_g=0.005, lr_d=0.005, r1_gamma=0.5, pl_weight=0, style_mixing=0, ema_kimg=1.0
        ),
        shape=(32, 48, 32),
        snapshot_kimg=1.0,
        depth_aware=True,
        extra={"inflate": "centre"},
    ),
    "heart": Preset(
        width_fine=64,
        width_max=256,
        z_dim=256,
        mapping_layers=8,
        stage_2d=StageConfig(kimg=800.0, batch=32, r1_gamma=1.0, ema_kimg=10.0),
        stage_3d=StageConfig(kimg=400.0, batch=16, r1_gamma=2.0, ema_kimg=10.0),
        shape=(64, 64, 64),
        snapshot_kimg=10.0,
        conv_clamp=256.0,
    ),
    "brain": Preset(
        width_fine=16,
        width_max=256,
        z_dim=256,
        mapping_layers=8,
        stage_2d=StageConfig(kimg=1500.0, batch=32, r1_gamma=2.0, ema_kimg=10.0),
        stage_3d=StageConfig(kimg=600.0, batch=8, r1_gamma=4.0, ema_kimg=10.0),
        shape=(128, 128, 128),
        snapshot_kimg=10.0,
        conv_clamp=256.0,
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name, or a ConfigError that lists them."""
    if name not in PRESETS:
        raise ConfigError(f"preset: expected one of {', '.join(PRESETS)}; got {name!r}")
    return PRESETS[name]


def _triple(value: Any, name: str) -> Triple:
    values = tuple(int(v) for v in value)
    if len(values) != 3 or min(values) < 1:
        raise ConfigError(f"{name}: expected three positive integers (D, H, W); got {value!r}")
    return values  # type: ignore[return-value]


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _checked(cls: type, data: dict[str, Any], where: str) -> dict[str, Any]:
    known = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(known))
    required = {
        n for n, f in known.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    if unknown or missing:
        raise ConfigError(
            f"{where}: unknown fields {unknown}, missing fields {missing}; was it written by another version?"
        )
    return dict(data)
