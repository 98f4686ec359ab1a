"""Presets: widths, budgets and hyper-parameters by name, for a class of data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ssgan.config.fields import Triple, to_triple
from ssgan.config.network import NetworkConfig, plan_levels
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.utils.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """Widths, budgets and hyper-parameters for one kind of data; the shape comes from the data set.

    width_fine: channels at the finest level; they double per coarser level, up to width_max.
    shape: (D, H, W) of the phantoms that a run without a data set makes.
    depth_aware: the 2D networks are conditioned on the slice index.
    extra: other fields of TrainConfig.
    """

    width_fine: int
    width_max: int
    z_dim: int
    mapping_layers: int
    stage_2d: StageConfig
    stage_3d: StageConfig
    shape: Triple
    snapshot_kimg: float = 1.0
    conv_clamp: float | None = None
    depth_aware: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def network(self, shape: Triple | None = None, arch: str = "split_depth") -> NetworkConfig:
        """The networks of this preset for volumes of `shape` (D, H, W)."""
        shape = to_triple(self.shape if shape is None else shape, "shape")
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
        """The configuration of a run with this preset; `changes` replace fields of TrainConfig."""
        values = {"snapshot_kimg": self.snapshot_kimg, **self.extra, **changes}
        return TrainConfig(self.network(shape, arch), self.stage_2d, self.stage_3d, preset=name, **values)


PRESETS: dict[str, Preset] = {
    "demo": Preset(
        width_fine=32,
        width_max=64,
        z_dim=64,
        mapping_layers=2,
        # Chosen by benchmarks/results/experiments/demo-preset.md, for three minutes on two cores.
        stage_2d=StageConfig(
            kimg=10.0, batch=16, lr_g=0.004, lr_d=0.004, r1_gamma=0.1, pl_weight=0, style_mixing=0, ema_kimg=0.5
        ),
        stage_3d=StageConfig(
            kimg=6.0, batch=4, lr_g=0.003, lr_d=0.003, r1_gamma=0.5, pl_weight=0, style_mixing=0, ema_kimg=0.25
        ),
        shape=(16, 24, 16),
        snapshot_kimg=2.0,
        depth_aware=True,
        extra={"inflate": "centre", "ema_carries_over": True, "loss": "relativistic"},
    ),
    "hippocampus": Preset(
        width_fine=24,
        width_max=96,
        z_dim=128,
        mapping_layers=4,
        # Chosen by benchmarks/results/experiments: with so few steps, high learning rates and no regularisation of G.
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
