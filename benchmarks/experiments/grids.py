"""The cells (architecture, inflation, widths, seed), the grids that they form, and the size of their runs.

Every cell of a grid shows its discriminator the same number of voxels. The unit is the volume: a slice counts as 1/D of
one. A cell that starts from a 2D stage is shown `slices` slices and `volumes` volumes; one from scratch is shown
`volumes` + `slices` / D volumes. Slices are those of the same training volumes, never other data.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssgan.config.fields import Triple
from ssgan.config.network import NetworkConfig, dense_at, plan_levels
from ssgan.config.presets import preset
from ssgan.config.training import TrainConfig
from ssgan.models.parameters import build, parameter_count
from ssgan.utils.errors import ConfigError

KEEP_ALL = 10**6  # checkpoints: the metric along the run is measured on them afterwards
MATCHED = "split_depth"  # the architecture whose parameters the others of Grid C are brought to
MULTIPLE = 4  # of channels: acs4 splits them into four
DEPTH_AWARE = "places"  # a start: inflation by centre from a 2D stage that is conditioned on the slice position


@dataclass(frozen=True)
class Scale:
    """The size of a grid's runs. Channels: `fine` at the finest level, doubling up to `widest`; z and w have `z_dim`.

    slices: shown in the 2D stage; volumes: in the 3D stage after it; every: volumes between points of the curve.
    phantoms: (to train on, held out) where there is no data set; shape: (D, H, W) of those. The remaining
    hyper-parameters are those of `preset`, the same in every cell.
    """

    name: str
    preset: str
    shape: Triple
    fine: int
    widest: int
    z_dim: int
    mapping_layers: int
    slices: int
    volumes: int
    every: int
    batch_2d: int
    batch_3d: int
    phantoms: tuple[int, int] = (160, 160)


SCALES = {
    "cpu": Scale("cpu", "hippocampus", (16, 24, 16), 32, 64, 64, 2, 24_000, 12_000, 1_500, 16, 4),
    "cpu32": Scale("cpu32", "hippocampus", (32, 48, 32), 16, 64, 64, 2, 32_000, 8_000, 1_000, 16, 4),
    "gpu": Scale("gpu", "hippocampus", (32, 48, 32), 24, 96, 128, 4, 32_000, 8_000, 1_000, 32, 8),
}


@dataclass(frozen=True)
class Cell:
    """One run. inflate: a depth profile, DEPTH_AWARE, or "none" for 3D from scratch. widths: channels, coarse to fine.
    arch_d: the discriminator's architecture where it is another; dense_levels: levels that are dense all the same."""

    arch: str
    inflate: str
    widths: tuple[int, ...]
    seed: int
    note: str = ""  # such as "equal parameters"
    arch_d: str | None = None
    dense_levels: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """Gives its name in the tables, without the seed."""
        starts = {"none": "scratch", DEPTH_AWARE: "inflated centre, depth-aware"}
        start = starts.get(self.inflate, f"inflated {self.inflate}")
        arch = self.arch if self.arch_d is None else f"{self.arch} G and {self.arch_d} D"
        arch += f" {dense_at(self.dense_levels)}" if self.dense_levels else ""
        return f"{arch}, {start}" + (f", {self.note}" if self.note else "")

    @property
    def folder(self) -> str:
        start = "scratch" if self.inflate == "none" else self.inflate
        return f"{self._archs}-{start}-{self._widths}-seed{self.seed}"

    @property
    def folder_2d(self) -> str:
        """Names the folder of the 2D stage, which all profiles of the same 2D networks share."""
        return f"{self._archs}-2d{'-places' if self.inflate == DEPTH_AWARE else ''}-{self._widths}-seed{self.seed}"

    @property
    def _archs(self) -> str:
        return architectures(self.arch, self.arch_d, self.dense_levels)

    @property
    def _widths(self) -> str:
        return "w" + "x".join(map(str, self.widths))


def architectures(arch: str, arch_d: str | None = None, dense_levels: Sequence[int] = ()) -> str:
    """Names them for folders, such as split_depth, split_depth+dense (G+D) or split_depth-dense01 (levels)."""
    levels = f"-dense{''.join(map(str, dense_levels))}" if dense_levels else ""
    return (f"{arch}+{arch_d}" if arch_d else arch) + levels


def widths_of(scale: Scale, shape: Triple) -> tuple[int, ...]:
    levels = len(plan_levels(shape)[1])
    return tuple(min(scale.widest, scale.fine * 2 ** (levels - i)) for i in range(levels + 1))


def network(scale: Scale, shape: Triple, arch: str, widths: tuple[int, ...]) -> NetworkConfig:
    base, scales = plan_levels(shape)
    return NetworkConfig(
        shape, base, scales, widths, arch, z_dim=scale.z_dim, w_dim=scale.z_dim, mapping_layers=scale.mapping_layers,
        conv_clamp=preset(scale.preset).conv_clamp,
    )  # fmt: skip


def parameters(cfg: NetworkConfig) -> int:
    """Counts those of generator and discriminator together."""
    return sum(parameter_count(net) for net in build(cfg))


def matched_widths(scale: Scale, shape: Triple, arch: str, target: int) -> tuple[int, ...]:
    """Finds the scale's widths times one factor, in multiples of 4, whose parameters are nearest to `target`."""
    full = widths_of(scale, shape)
    candidates = sorted(
        {tuple(max(MULTIPLE, round(w * factor / 100 / MULTIPLE) * MULTIPLE) for w in full) for factor in range(10, 301)}
    )

    def size(widths: tuple[int, ...]) -> int:
        return parameters(network(scale, shape, arch, widths))

    index = bisect.bisect_left(candidates, target, key=size)  # wider at every level: more parameters
    return min(candidates[max(index - 1, 0) : index + 1], key=lambda widths: abs(size(widths) - target))


def cells(grid: str, scale: Scale, shape: Triple, seeds: Sequence[int]) -> list[Cell]:
    """Lists the cells of a grid, all of the first seed before any of the next, so that a part of it can be compared."""
    full = widths_of(scale, shape)
    if grid == "D":
        pairs = (("dense", None), ("split_depth", "dense"), ("dense", "split_depth"), ("split_depth", None))
        return [Cell(arch, "none", full, seed, arch_d=other) for seed in seeds for arch, other in pairs]
    if grid == "E":
        levels = tuple(range(len(full)))
        coarse, fine = [levels[:n] for n in levels[1:]], [levels[n:] for n in levels[:0:-1]]
        chosen = [("dense", ()), *((MATCHED, those) for those in (*coarse, *fine, ()))]
        return [Cell(arch, "none", full, s, dense_levels=those) for s in seeds for arch, those in chosen]
    if grid == "A":
        starts = ("none", "average", DEPTH_AWARE)
        kinds = [(arch, start, full, "") for arch in ("dense", "split_depth") for start in starts]
    elif grid == "B":
        kinds = [("split_depth", start, full, "") for start in ("none", "average", "centre", "triangle", DEPTH_AWARE)]
    elif grid == "C":
        names = ("dense", "grouped", "split_depth", "acs4", "separable")
        kinds = [(arch, "average", full, "") for arch in names]
        target = parameters(network(scale, shape, MATCHED, full))
        for arch in names:
            widths = matched_widths(scale, shape, arch, target)
            if arch != MATCHED and widths != full:
                kinds.append((arch, "average", widths, "equal parameters"))
        whole = parameters(network(scale, shape, "dense", full))
        kinds.append((MATCHED, "average", matched_widths(scale, shape, MATCHED, whole), "dense's parameters"))
    else:
        raise ConfigError(f"grid: expected A, B, C, D or E; got {grid!r}")
    return [Cell(arch, start, widths, seed, note) for seed in seeds for arch, start, widths, note in kinds]


def config(scale: Scale, shape: Triple, cell: Cell, stage: str, changes: dict[str, Any] | None = None) -> TrainConfig:
    """Configures the run of a cell (stage "3d"), or the 2D stage that it starts from ("2d").

    changes: dotted field of TrainConfig -> value, the same for all cells, such as {"stage_3d.lr_d": 0.002}.
    """
    volumes = scale.volumes + (scale.slices / shape[0] if cell.inflate == "none" else 0)
    profile = "centre" if cell.inflate == DEPTH_AWARE else cell.inflate
    cfg = preset(scale.preset).train_config(
        scale.preset, shape, cell.arch, stage=stage, seed=cell.seed, keep_checkpoints=KEEP_ALL,
        inflate=profile if stage == "3d" else "average", snapshot_kimg=scale.every / 1000,
    )  # fmt: skip
    networks = network(scale, shape, cell.arch, cell.widths).with_arch(cell.arch, cell.arch_d, cell.dense_levels)
    cfg = dataclasses.replace(
        cfg,
        network=networks.depth_aware(cell.inflate == DEPTH_AWARE),
        stage_2d=dataclasses.replace(cfg.stage_2d, kimg=scale.slices / 1000, batch=scale.batch_2d),
        stage_3d=dataclasses.replace(cfg.stage_3d, kimg=volumes / 1000, batch=scale.batch_3d),
    )
    if stage == "2d":  # only its end is used
        cfg = dataclasses.replace(cfg, snapshot_kimg=max(scale.slices / 2000, 0.001), keep_checkpoints=1)
    for name, value in (changes or {}).items():
        cfg = _replaced(cfg, name.split("."), value, name)
    return cfg


FIXED = ("network", "stage", "inflate", "seed", "preset", "snapshot_kimg", "keep_checkpoints", "kimg", "batch")


def _replaced(cfg: Any, path: list[str], value: Any, name: str) -> Any:
    fields = {f.name for f in dataclasses.fields(cfg)}
    if path[0] not in fields or path[0] in FIXED:
        able = sorted(fields - set(FIXED))
        raise ConfigError(f"--set {name}: {path[0]!r} is not a setting that may be changed; expected one of {able}")
    old = getattr(cfg, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise ConfigError(f"--set {name}: {path[0]} is a single value; write it without the part after the dot")
        value = _replaced(old, path[1:], value, name)
    elif dataclasses.is_dataclass(old):
        raise ConfigError(f"--set {name}: expected one of its parts, such as {name}.{dataclasses.fields(old)[0].name}")
    return dataclasses.replace(cfg, **{path[0]: value})


def parse_changes(texts: Sequence[str]) -> dict[str, Any]:
    """Parses ["stage_3d.lr_d=0.002"] to {"stage_3d.lr_d": 0.002}; values are JSON."""
    changes = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            changes[name] = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(
                f"--set {text}: expected NAME=VALUE with a JSON value, such as stage_3d.lr_d=0.002"
            ) from None
    return changes
