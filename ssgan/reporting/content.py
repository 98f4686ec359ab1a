"""Collects the content of a run's report and model card from its folder, data set and evaluation."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssgan.config.network import ARCHITECTURES
from ssgan.config.presets import PRESETS
from ssgan.config.training import STAGE_OPTIONS, TrainConfig
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.metrics import evaluation
from ssgan.metrics.neighbours import Neighbours, TrainingVolumes
from ssgan.models.parameters import build, parameter_count
from ssgan.models.sampling import latents, synthesise_pairs
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.config import RunConfig, open_data
from ssgan.runs.generator import load_generator
from ssgan.runs.log import JsonLog
from ssgan.utils.environment import environment
from ssgan.utils.errors import ConfigError, UserError
from ssgan.utils.files import read_json


class ReportError(UserError):
    """An evaluation that does not belong to the run, or a report that cannot be made."""


@dataclass(frozen=True)
class ReportContent:
    """Everything that the report, the model card and the picture show.

    rows: log.jsonl. result: result.json, None while the run is not finished. real, fake: (N, D, H, W) in [-1, 1], or
    None with the reason in `no_real`, `no_fake`. real_masks, fake_masks: their class numbers (N, D, H, W) uint8, None
    for a run without masks. seeds: of `fake`. metrics: metrics.json or None; metrics_note: a
    warning to its readers, or "". environment: versions and machine of this call.
    """

    run: Path
    config: RunConfig
    rows: list[dict[str, Any]]
    result: dict[str, Any] | None
    meta: CheckpointMeta
    checkpoint: Path
    sha256: str
    data: VolumeDataset | None
    real: np.ndarray | None
    fake: np.ndarray | None
    real_masks: np.ndarray | None
    fake_masks: np.ndarray | None
    no_real: str
    no_fake: str
    seeds: list[int]
    neighbours: Neighbours | None
    metrics: dict[str, Any] | None
    metrics_path: Path | None
    metrics_note: str
    environment: dict[str, str]

    @property
    def cfg(self) -> TrainConfig:
        return self.config.train

    @property
    def info(self) -> DatasetInfo:
        """Geometry and intensities of the data set."""
        return self.config.info

    @property
    def command(self) -> str:
        """The `ssgan train` call of the run."""
        return train_command(self.cfg, self.run, self.config.data_path, self.config.init_path)

    @property
    def seconds(self) -> float:
        """Training time."""
        return max((row.get("seconds", 0.0) for row in self.rows), default=0.0)

    @property
    def floor(self) -> float | None:
        """Sliced Wasserstein distance of real to real volumes."""
        return next((r["distance_floor"] for r in self.rows if r.get("event") == "floor"), None)

    @property
    def distance(self) -> float | None:
        """The last sliced Wasserstein distance that training measured in the checkpoint's stage."""
        found = [
            r["distance"] for r in self.rows if r.get("stage") == self.meta.stage and r.get("distance") is not None
        ]
        return found[-1] if found else None


def collect(run: Path, data: Path | None, metrics: Path | None, file: Path | None, count: int) -> ReportContent:
    """Reads a run, generates `count` volumes on the CPU (seeds 0, 1, ...) and finds their nearest training volumes.

    data: the data set; default the recorded one, if it is there. metrics: metrics.json. file: a checkpoint; default
    the last.

    Raises:
        ReportError: the metrics file was not written by `ssgan evaluate`.
        CheckpointError, DatasetError, RunError: a file of the run or data set is missing or damaged, or --data is not
            the run's data set.
    """
    source = load_generator(run, file)
    G, config = source.G, source.config
    dataset, no_real = open_data(config, data)
    result = read_json(run / "result.json") if (run / "result.json").is_file() else None
    seeds, no_fake, fake, real, neighbours = list(range(count)), "", None, None, None
    real_masks = fake_masks = None
    if source.meta.stage == "2d":
        no_fake = "The last checkpoint is of the 2D stage, which makes slices; its snapshots are below."
    else:
        made = synthesise_pairs(G, latents(seeds, G.cfg.z_dim), batch=2, c=source.class_labels(count))
        fake, fake_masks = np.clip(made.volumes, -1, 1), made.masks
    if dataset is not None:
        real = np.array(dataset.volumes[: min(count, len(dataset))])
        if config.train.network.mask_classes:
            real_masks = np.array(dataset.masks[: len(real)])
        if fake is not None:
            neighbours = TrainingVolumes(dataset.volumes).nearest(fake)
    found, note = (
        (None, "") if metrics is None else read_metrics(metrics, config.content_hash, source.sha256, source.meta)
    )
    return ReportContent(
        run=run, config=config, rows=JsonLog(run / "log.jsonl").rows, result=result, meta=source.meta,
        checkpoint=source.path, sha256=source.sha256, data=dataset, real=real, fake=fake, real_masks=real_masks,
        fake_masks=fake_masks, no_real=no_real, no_fake=no_fake, seeds=seeds, neighbours=neighbours, metrics=found,
        metrics_path=metrics, metrics_note=note, environment=environment(),
    )  # fmt: skip


def read_metrics(path: Path, content_hash: str, sha256: str, meta: CheckpointMeta) -> tuple[dict[str, Any], str]:
    """Reads a metrics.json, and notes where its volumes are not of the run's data set or of the checkpoint.

    content_hash: of the run's data set. sha256, meta: of the checkpoint.

    Raises:
        ReportError: `ssgan evaluate` did not write the file, or another version of it did.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != evaluation.FORMAT:
        raise ReportError(f"--metrics {path} was not written by `ssgan evaluate` (no format {evaluation.FORMAT!r})")
    if found.get("version") != evaluation.VERSION:
        raise ReportError(f"--metrics {path} has version {found.get('version')}; expected {evaluation.VERSION}")
    missing = [key for key in ("protocol", "count", "extractor", "real", "fake", "metrics") if key not in found]
    if missing:
        raise ReportError(f"--metrics {path} lacks {', '.join(missing)}; evaluate again")
    notes = []
    if found["real"].get("sha256") != content_hash:
        notes.append("The real volumes of this evaluation are not (only) the training set of this run.")
    if found["fake"].get("checkpoint_sha256", sha256) != sha256:
        name, images = found["fake"].get("checkpoint"), found["fake"].get("checkpoint_images")
        unit = "slices" if meta.stage == "2d" else "volumes"
        when = "" if images is None else f", after {images:,} {unit}"  # older files do not say
        notes.append(
            f"This evaluation is of another checkpoint ({name}{when}) than the one reported here (after "
            f"{meta.images:,} {unit}); evaluate again."
        )
    return found, " ".join(notes)


def count_parameters(cfg: TrainConfig) -> list[tuple[str, int, int] | tuple[str, str]]:
    """Counts (architecture, parameters of G, of D) at the run's shape and widths, or gives the reason why there is no
    such network.

    A run with another architecture in its discriminator or at some levels adds a row, named by `arch_name`.
    """
    rows: list[tuple[str, int, int] | tuple[str, str]] = []
    for arch in ARCHITECTURES:
        try:
            G, D = build(cfg.network.with_arch(arch))
        except ConfigError as error:
            rows.append((arch, str(error)))
            continue
        rows.append((arch, parameter_count(G), parameter_count(D)))
    if cfg.network.arch_name not in ARCHITECTURES:
        G, D = build(cfg.network)
        rows.append((cfg.network.arch_name, parameter_count(G), parameter_count(D)))
    return rows


def train_command(cfg: TrainConfig, run: Path, data_path: str, init: str | None = None) -> str:
    """Writes the `ssgan train` call of a configuration, without the options that the preset implies.

    data_path: as config.json records it.
    """
    words = ["python", "-m", "ssgan.train"]
    if data_path != "data":
        words += ["--data", data_path or "DATASET"]
    words += ["--out", str(run), "--preset", cfg.preset]
    if cfg.preset not in PRESETS:
        return shlex.join(words)
    usual = PRESETS[cfg.preset].train_config(cfg.preset, cfg.network.shape)
    for option in ("stage", "inflate", "seed", "loss", "snapshot_kimg", "precision", "freeze_d", "warmup_kimg",
                   "cooldown_kimg", "metrics", "metrics_every", "early_stop", "best_metric"):  # fmt: skip
        value, default = getattr(cfg, option, None), getattr(usual, option, None)
        if value != default:
            shown = ",".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else value
            words += [f"--{option.replace('_', '-')}", str(shown)]
    if cfg.ema_carries_over != usual.ema_carries_over:
        words += ["--ema-carries-over" if cfg.ema_carries_over else "--no-ema-carries-over"]
    if cfg.network.arch != usual.network.arch:
        words += ["--arch", cfg.network.arch]
    if cfg.network.discriminator_arch != cfg.network.arch:
        words += ["--arch-d", cfg.network.discriminator_arch]
    if cfg.network.dense_levels:
        words += ["--dense-levels", *map(str, cfg.network.dense_levels)]
    if bool(cfg.network.depth_places) != bool(usual.network.depth_places):
        words += ["--depth-aware" if cfg.network.depth_places else "--no-depth-aware"]
    if cfg.network.classes:
        words += ["--conditional"]
    for name in ("2d", "3d"):
        own, default = getattr(cfg, f"stage_{name}"), getattr(usual, f"stage_{name}")
        for option in STAGE_OPTIONS:
            if getattr(own, option) != getattr(default, option):
                words += [f"--{option.replace('_', '-')}-{name}", f"{getattr(own, option):g}"]
    if init:
        words += ["--init", init]
    return shlex.join(words)
