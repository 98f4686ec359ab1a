"""What there is to say about a run, from its folder, data set and evaluation: for the report and the model card."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from tqdm import tqdm

from ssgan.config.training import ARCHITECTURES, PRESETS, STAGE_OPTIONS, ConfigError, TrainConfig
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.metrics.sliced import block_means
from ssgan.models.parameters import build, parameter_count
from ssgan.models.sampling import latents, synthesise
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.generator import load_generator
from ssgan.runs.log import JsonLog
from ssgan.utils.environment import environment
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json

METRICS_FORMAT, METRICS_VERSION = "ssgan-metrics", 1
REFERENCE_ROWS = 500  # training volumes whose nearest neighbour is looked up for comparison


class ReportError(UserError):
    """A run, data set or evaluation that cannot be reported on."""


@dataclass(frozen=True)
class Neighbours:
    """Of each generated volume: the index of its nearest training volume and the distance (root mean squared difference
    of block means, at most 16 a side, [-1, 1] scale). median, low: median and 5 % quantile of the distance of training
    volumes to their nearest other one."""

    index: list[int]
    distance: list[float]
    median: float
    low: float


@dataclass(frozen=True)
class Facts:
    """real, fake: (N, D, H, W) in [-1, 1], or None with the reason in `no_real`, `no_fake`. metrics: metrics.json or
    None. environment: of this machine; trained_on: of the training where the run recorded it."""

    run: Path
    cfg: TrainConfig
    record: dict[str, Any]
    rows: list[dict[str, Any]]
    result: dict[str, Any] | None
    meta: CheckpointMeta
    checkpoint: Path
    sha256: str
    info: DatasetInfo
    data: VolumeDataset | None
    real: np.ndarray | None
    fake: np.ndarray | None
    no_real: str
    no_fake: str
    seeds: list[int]
    neighbours: Neighbours | None
    metrics: dict[str, Any] | None
    metrics_path: Path | None
    metrics_note: str
    environment: dict[str, str]
    trained_on: dict[str, str] | None

    @property
    def command(self) -> str:
        return train_command(self.record, self.cfg, self.run)

    @property
    def seconds(self) -> float:
        return max((row.get("seconds", 0.0) for row in self.rows), default=0.0)

    @property
    def floor(self) -> float | None:
        return next((r["distance_floor"] for r in self.rows if r.get("event") == "floor"), None)

    @property
    def distance(self) -> float | None:
        """The last sliced Wasserstein distance that training measured in the checkpoint's stage."""
        found = [
            r["distance"] for r in self.rows if r.get("stage") == self.meta.stage and r.get("distance") is not None
        ]
        return found[-1] if found else None


def gather(run: Path, data: Path | None, metrics: Path | None, file: Path | None, count: int) -> Facts:
    """Reads everything, generates `count` volumes on the CPU (seeds 0, 1, ...) and finds their neighbours.

    Raises:
        ReportError: --data is not what the run was trained on, or metrics.json is none of ours.
        GenerateError, CheckpointError, DatasetError, RunError: see there.
    """
    source = load_generator(run, file)
    G, meta, info, path = source.G, source.meta, source.info, source.path
    record, cfg = source.config.record, source.config.train
    dataset, no_real = open_data(run, data, record)
    result = read_json(run / "result.json") if (run / "result.json").is_file() else None
    seeds, no_fake, fake, real, neighbours = list(range(count)), "", None, None, None
    if meta.stage == "2d":
        no_fake = "The last checkpoint is of the 2D stage, which makes slices; its snapshots are below."
    else:
        fake = np.clip(synthesise(G, latents(seeds, G.cfg.z_dim), batch=2, c=source.class_labels(count)), -1, 1)
    if dataset is not None:
        real = np.array(dataset.volumes[: min(count, len(dataset))])
        if fake is not None:
            neighbours = nearest(fake, dataset.volumes)
    sha256 = checkpoint.checksum(path)
    about, note = (None, "") if metrics is None else read_metrics(metrics, record, sha256)
    return Facts(
        run, cfg, record, JsonLog(run / "log.jsonl").rows, result, meta, path, sha256, info, dataset,
        real, fake, no_real, no_fake, seeds, neighbours, about, metrics, note, environment(), record.get("environment"),
    )  # fmt: skip


def open_data(run: Path, given: Path | None, record: dict[str, Any]) -> tuple[VolumeDataset | None, str]:
    """The data set, or None and why. One that was named must serve; the recorded one may have moved."""
    recorded = record["data"]["path"]
    path = given or (run / "data" if recorded == "data" else Path(recorded))
    if given is None and (not recorded or not (path / "dataset.json").is_file()):
        return None, f"The run's data set is not at {recorded or 'a recorded place'}; name it with --data."
    dataset = VolumeDataset(path)
    if dataset.info.content_hash != record["data"]["content_hash"]:
        if given is not None:
            raise ReportError(f"--data {given} is not the data set that {run} was trained on (its contents differ)")
        return None, f"The data set at {path} is no longer the one that the run was trained on; name it with --data."
    return dataset, ""


def read_metrics(path: Path, record: dict[str, Any], sha256: str) -> tuple[dict[str, Any], str]:
    """metrics.json of `ssgan evaluate`, and a word where its volumes are not the training set's or not those of the
    checkpoint with this SHA-256."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != METRICS_FORMAT:
        raise ReportError(f"--metrics {path} was not written by `ssgan evaluate` (no format {METRICS_FORMAT!r})")
    if found.get("version") != METRICS_VERSION:
        raise ReportError(f"--metrics {path} has version {found.get('version')}; expected {METRICS_VERSION}")
    missing = [key for key in ("protocol", "count", "extractor", "real", "fake", "metrics") if key not in found]
    if missing:
        raise ReportError(f"--metrics {path} lacks {', '.join(missing)}; evaluate again")
    notes = []
    if found["real"].get("sha256") != record["data"]["content_hash"]:
        notes.append("The real volumes of this evaluation are not (only) the training set of this run.")
    if found["fake"].get("checkpoint_sha256", sha256) != sha256:
        name = found["fake"].get("checkpoint")
        notes.append(f"This evaluation is of another checkpoint ({name}) than the one reported here; evaluate again.")
    return found, " ".join(notes)


def nearest(fake: np.ndarray, volumes: np.ndarray) -> Neighbours:
    """Nearest training volumes; reads the data set once."""
    bar = tqdm(volumes, desc="neighbours", unit="volume", disable=None)
    train = np.stack([block_means(np.asarray(v)[None])[0].ravel() for v in bar])
    made = block_means(fake).reshape(len(fake), -1)
    scale = np.sqrt(train.shape[1])
    distances = cdist(made, train) / scale
    own = cdist(train[:REFERENCE_ROWS], train) / scale
    own[np.arange(len(own)), np.arange(len(own))] = np.inf
    reference = own.min(1) if len(train) > 1 else np.zeros(1)
    index = distances.argmin(1)
    found = distances.min(1)
    return Neighbours(index.tolist(), found.tolist(), float(np.median(reference)), float(np.quantile(reference, 0.05)))


def parameters(cfg: TrainConfig) -> list[tuple[str, int, int] | tuple[str, str]]:
    """(architecture, parameters of G, of D) at the run's shape and widths, or why there is no such network.

    A run whose discriminator or levels have an architecture of their own is a row more; `arch_name` tells which row is
    the run's.
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


def train_command(record: dict[str, Any], cfg: TrainConfig, run: Path) -> str:
    """The `ssgan train` call that the configuration stands for; options that the preset implies are left out."""
    words = ["python", "-m", "ssgan.train"]
    if record["data"]["path"] != "data":
        words += ["--data", record["data"]["path"] or "DATASET"]
    words += ["--out", str(run), "--preset", cfg.preset]
    if cfg.preset not in PRESETS:
        return shlex.join(words)
    usual = PRESETS[cfg.preset].train_config(cfg.preset, cfg.network.shape)
    for option in ("stage", "inflate", "seed", "snapshot_kimg", "precision", "freeze_d", "warmup_kimg",
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
    if record.get("init"):
        words += ["--init", record["init"]["path"]]
    return shlex.join(words)
