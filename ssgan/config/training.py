"""The configuration of a training run: its stages, schedules and hyper-parameters.

Every class is a frozen dataclass that validates itself and goes to and from plain JSON.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from ssgan.config.augmentation import AugmentConfig
from ssgan.config.fields import checked_fields
from ssgan.config.network import PROFILES, NetworkConfig
from ssgan.utils.errors import ConfigError

LOSSES = ("logistic", "relativistic")  # see ssgan.training.losses


@dataclass(frozen=True)
class StageConfig:
    """Budget and hyper-parameters of one stage: "2d" trains on slices, "3d" on volumes."""

    kimg: float  # thousands of real images (slices or volumes) shown to the discriminator
    batch: int
    lr_g: float = 0.002  # Adam's learning rate of the generator
    lr_d: float = 0.002  # and of the discriminator
    r1_gamma: float = 1.0  # weight of R1, 0 switches it off
    r2_gamma: float | None = None  # weight of R2; None: that of R1 with the relativistic loss, 0 with the logistic one
    pl_weight: float = 2.0  # weight of path-length regularisation, 0 switches it off
    style_mixing: float = 0.9  # probability
    ema_kimg: float = 2.0  # half-life of the moving average of the generator's weights, in thousands of images
    ema_rampup: float | None = 0.05  # the half-life is at most this share of the images shown so far

    def gammas(self, loss: str) -> tuple[float, float]:
        """Weights of R1 and R2 with a loss of `LOSSES`."""
        default = self.r1_gamma if loss == "relativistic" else 0.0
        return self.r1_gamma, default if self.r2_gamma is None else self.r2_gamma


# Fields with an option of `ssgan train` for each stage: --kimg-2d, --lr-g-3d.
STAGE_OPTIONS = tuple(f.name for f in dataclasses.fields(StageConfig) if f.name != "ema_rampup")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides the numbers that a run produces, except the data set."""

    network: NetworkConfig
    stage_2d: StageConfig
    stage_3d: StageConfig
    preset: str = "demo"
    stage: str = "both"  # both | 2d | 3d
    inflate: str = "average"  # of PROFILES
    seed: int = 0
    d_reg_interval: int = 16  # steps between evaluations of R1 and R2 (lazy regularisation, StyleGAN2)
    g_reg_interval: int = 4  # and of path-length regularisation
    pl_batch_shrink: int = 2  # the batch is divided by this for path-length regularisation
    pl_decay: float = 0.01  # of the moving average of path lengths
    adam_betas: tuple[float, float] = (0.0, 0.99)
    adam_eps: float = 1e-8
    snapshot_kimg: float = 1.0  # thousands of images between checkpoints, each with a snapshot image
    keep_checkpoints: int = 3  # newest ones kept, besides final and best
    precision: str = "fp32"  # of convolutions: fp32 | bf16 | fp16
    freeze_d: int = 0  # finest blocks of the 3D discriminator that stay as inflated (FreezeD)
    warmup_kimg: float = 0.0  # thousands of images over which the 3D learning rates rise from 0 after inflation
    ema_carries_over: bool = False  # the 2D stage's weight average continues after inflation instead of restarting
    cooldown_kimg: float = 0.0  # thousands of images over which the 3D learning rates fall towards 0 at the end
    metrics: tuple[str, ...] = ("distance",)  # of ssgan.metrics.registry
    metrics_every: int = 0  # images between measurements; 0 measures at every snapshot
    early_stop: int = 0  # measurements without a better best_metric after which a stage ends; 0 never ends it early
    augment: AugmentConfig = field(default_factory=AugmentConfig)  # of the discriminator's images; off by default
    best_metric: str = "distance"  # the checkpoint with its best value is kept as STAGE-best
    loss: str = "logistic"  # of LOSSES

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
        if self.loss not in LOSSES:
            raise ConfigError(f"loss: expected {' or '.join(LOSSES)}; got {self.loss!r}")
        if self.stage not in ("both", "2d", "3d"):
            raise ConfigError(f"stage: expected both, 2d or 3d; got {self.stage!r}")
        if self.inflate not in PROFILES:
            raise ConfigError(f"inflate: expected one of {', '.join(PROFILES)}; got {self.inflate!r}")

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of the run, in order."""
        return ("2d", "3d") if self.stage == "both" else (self.stage,)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainConfig:
        """Inverse of `to_json`; raises ConfigError naming a missing or unknown field."""
        values = checked_fields(cls, data, "config")
        values["network"] = NetworkConfig.from_json(values["network"])
        for name in ("stage_2d", "stage_3d"):
            values[name] = StageConfig(**checked_fields(StageConfig, values[name], name))
        if "augment" in values:
            values["augment"] = AugmentConfig.from_json(values["augment"])
        for name in ("adam_betas", "metrics"):
            if name in values:
                values[name] = tuple(values[name])
        return cls(**values)
