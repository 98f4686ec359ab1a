"""config.json, the record of what a run was started with. Nothing outside this folder reads or writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssgan.config.augmentation import AugmentConfig
from ssgan.config.training import STAGE_OPTIONS, TrainConfig
from ssgan.data.dataset import DatasetInfo, VolumeDataset, content_hash
from ssgan.runs.checkpoint import config_hash
from ssgan.utils.environment import environment
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json, write_json_atomic

FILE = "config.json"
FORMAT = 1
# Fields that a resumed run may change: budgets may grow, the others decide what is kept and when a stage ends.
BUDGETS = ("stage_2d.kimg", "stage_3d.kimg")
CHANGEABLE = ("snapshot_kimg", "keep_checkpoints", "metrics", "metrics_every", "early_stop", "best_metric")
# Fields with an option of `ssgan train` of their own name, besides those of the stages.
OPTIONS = ("preset", "stage", "inflate", "seed", "precision", "freeze_d", "warmup_kimg", "cooldown_kimg", "loss")
OPTIONS += ("network.arch", "network.arch_d")
# Fields that older versions did not write, with the value that stands for what those versions did.
ADDED_LATER = {"precision": "fp32", "freeze_d": 0, "warmup_kimg": 0.0, "cooldown_kimg": 0.0, "ema_carries_over": False}
ADDED_LATER |= {"network.classes": 0, "network.label_layers": None, "network.depth_places": None}
ADDED_LATER |= {"network.arch_d": None, "network.dense_levels": [], "network.mask_classes": 0}
ADDED_LATER |= {"loss": "logistic", "stage_2d.r2_gamma": None, "stage_3d.r2_gamma": None}
ADDED_LATER |= {f"augment.{k}": list(v) if isinstance(v, tuple) else v for k, v in AugmentConfig().to_json().items()}


class RunError(UserError):
    """A run's folder that is in use, is not a run, or was made with other settings."""


@dataclass(frozen=True)
class RunConfig:
    """The contents of a config.json; each part is parsed when it is asked for, and RunError names a missing one.

    path: the file. record: its JSON, with the entries config, data, init and environment.
    """

    path: Path
    record: dict[str, Any]

    def _entry(self, *names: str) -> Any:
        value = self.record
        for name in names:
            if not isinstance(value, dict) or name not in value:
                raise RunError(
                    f"{self.path} has no entry {'.'.join(names)}; expected the file that `ssgan train` wrote"
                )
            value = value[name]
        return value

    @cached_property
    def train(self) -> TrainConfig:
        return TrainConfig.from_json(self._entry("config"))

    @cached_property
    def info(self) -> DatasetInfo:
        """Geometry and intensities of the data set, as they were when the run began."""
        return DatasetInfo.from_json(self._entry("data", "info"))

    @property
    def content_hash(self) -> str:
        """SHA-256 of the data set's voxels."""
        return self._entry("data", "content_hash")

    @property
    def data_path(self) -> str:
        """The data set's folder as recorded: "data" for phantoms in the run's own folder, "" where it has none."""
        return self._entry("data", "path")

    @property
    def data_folder(self) -> Path:
        return self.path.parent / "data" if self.data_path == "data" else Path(self.data_path)

    @property
    def init_path(self) -> str | None:
        """The checkpoint of --init; None where there was none."""
        init = self.record.get("init")
        return init["path"] if init else None

    @property
    def trained_on(self) -> dict[str, str] | None:
        """Versions and machine of the run's first call; None for runs of older versions."""
        return self.record.get("environment")

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their numbers ([] without classes); the numbers where none were given.

        Raises:
            RunError: the data set has another number of classes than the networks.
        """
        classes = self.train.network.classes
        if not classes:
            return []
        names = self._entry("data", "info").get("classes") or [str(i) for i in range(classes)]
        if len(names) != classes:
            raise RunError(f"{self.path} names {len(names)} classes, its networks have {classes}; restore the file")
        return [str(name) for name in names]

    @property
    def class_counts(self) -> list[int]:
        """Volumes of each class in the data set ([] without classes); equal where the run recorded none."""
        classes = self.train.network.classes
        return (self._entry("data").get("class_counts") or [1] * classes) if classes else []


def open_data(config: RunConfig, given: Path | None) -> tuple[VolumeDataset | None, str]:
    """Opens the data set that was given, or the recorded one, which may have moved: then None and the reason.

    Raises:
        RunError: the data set that was given is not the run's.
    """
    recorded = config.data_path
    path = given or config.data_folder
    if given is None and (not recorded or not (path / "dataset.json").is_file()):
        return None, f"The run's data set is not at {recorded or 'a recorded place'}; name it with --data."
    dataset = VolumeDataset(path)
    if dataset.info.content_hash != config.content_hash:
        if given is not None:
            run = config.path.parent
            raise RunError(f"--data {given} is not the data set that {run} was trained on (its contents differ)")
        return None, f"The data set at {path} is no longer the one that the run was trained on; name it with --data."
    return dataset, ""


def is_run(folder: Path) -> bool:
    """Whether `ssgan train` has made this folder."""
    return (folder / FILE).is_file()


def read_config(file: Path) -> RunConfig:
    """Reads a config.json. Raises FileError or RunError where it cannot be read."""
    record = read_json(file)
    if not isinstance(record, dict):
        raise RunError(f"{file} is not the configuration of a run; expected the config.json that `ssgan train` wrote")
    return RunConfig(file, record)


def load_config(run: Path, option: str = "--run") -> RunConfig:
    """Reads the configuration of a run's folder. Raises RunError, which names `option`, where it is not a run."""
    if not is_run(run):
        raise RunError(f"{option} {run} is not a run's folder (no {FILE}); give the --out of `ssgan train`")
    return read_config(run / FILE)


def config_of_checkpoint(checkpoint: Path) -> RunConfig | None:
    """Reads the configuration of the run that a checkpoint lies in (RUN/checkpoints); None where it lies in none."""
    run = checkpoint.resolve().parent.parent
    return read_config(run / FILE) if is_run(run) else None


def record_config(
    folder: Path, config: dict[str, Any], data: dict[str, Any], init: dict[str, Any] | None, begun: str | None
) -> None:
    """Writes config.json, or checks that the arguments fit the one that is there.

    A run that goes on may have larger budgets and other `CHANGEABLE` fields; all else has to be the same.

    config: TrainConfig.to_json(). data: path, content_hash and info of the data set. init: path and sha256 of the
    checkpoint given by --init. begun: the last stage that has a checkpoint; the 2D stage cannot be made longer once
    the 3D stage has started from it.

    Raises:
        RunError: the run in `folder` was made with another configuration or data set; the fields are named.
    """
    path = folder / FILE
    record = {"format": FORMAT, "config": config, "data": data, "init": init, "environment": environment()}
    record = json.loads(json.dumps(record))  # tuples become lists, as in the file
    if path.exists():
        old = read_json(path)
        if not isinstance(old, dict) or old.get("format") != FORMAT:
            raise RunError(f"{path} is not a configuration of format {FORMAT}; choose another --out")
        different = _differences(old, record, BUDGETS[1:] if begun == "3d" else BUDGETS)
        if different:
            raise RunError(
                f"{folder} holds a run made with other settings: {'; '.join(different)}. Give the same arguments to "
                "resume it, or another --out"
            )
        record["environment"] = old.get("environment")  # of the first call; older versions recorded none
    write_json_atomic(path, record)


def identity(config: dict[str, Any]) -> str:
    """Hashes the fields that decide a run's numbers: all but `BUDGETS` and `CHANGEABLE`.

    A field of a newer version that has the old behaviour's value is left out, so runs of older versions keep theirs.
    """
    flat = _flatten(json.loads(json.dumps(config)))
    return config_hash({k: v for k, v in flat.items() if k not in BUDGETS + CHANGEABLE and not _as_before(k, v)})


def _as_before(name: str, value: Any) -> bool:
    value = list(value) if isinstance(value, tuple) else value
    return name in ADDED_LATER and (value is None or value == ADDED_LATER[name])


def check_voxels(data: VolumeDataset, where: str) -> None:
    """Raises RunError where volumes and masks do not have the SHA-256 that dataset.json has."""
    found, expected = content_hash(data.volumes, data.masks), data.info.content_hash
    if found != expected:
        files = "volumes.npy" if data.masks is None else "volumes.npy and masks.npy"
        raise RunError(
            f"the data set {where}: its voxels have changed since it was made (SHA-256 {found[:12]}.., "
            f"dataset.json says {expected[:12]}..); restore {files}, or prepare it again and start another run"
        )


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in _flatten(item, f"{prefix}{name}.").items()}
    return {prefix[:-1]: value}


def option_for(field: str, value: Any) -> str:
    """The option of `ssgan train` that gives a field of the configuration this value; "" where it is not known."""
    part, _, name = field.rpartition(".")
    if value is None:
        return ""
    if part in ("stage_2d", "stage_3d"):
        return f"--{name.replace('_', '-')}-{part[-2:]} {value}" if name in STAGE_OPTIONS else ""
    if field == "network.mask_classes":
        return "" if value else "--no-masks"
    return f"--{name.replace('_', '-')} {value}" if field in OPTIONS else ""


def _differences(old: dict[str, Any], new: dict[str, Any], longer: tuple[str, ...]) -> list[str]:
    """Describes each difference between two records; the budgets in `longer` may have grown."""
    was, now = _flatten(old["config"]), _flatten(new["config"])
    found = []
    for name in sorted(set(was) | set(now)):
        before, after = (fields.get(name, ADDED_LATER.get(name)) for fields in (was, now))
        if before == after or name in CHANGEABLE:
            continue
        if name in longer and after >= before:
            continue
        why = " (a stage can be made longer, not shorter, and not once the next has begun)" if name in BUDGETS else ""
        give = f": give {option}" if (option := option_for(name, before)) else ""
        found.append(f"{name} was {before}, now {after}{why}{give}")
    parts = (
        ("data", "content_hash", "the data set"), ("data", "labels_sha256", "the classes of the data set"),
        ("init", "sha256", "the --init checkpoint"),
    )  # fmt: skip
    for part, key, what in parts:
        before, after = ((record.get(part) or {}) for record in (old, new))
        if before.get(key) != after.get(key):
            paths = f"was {before.get('path', 'none')}, now {after.get('path', 'none')}"
            found.append(f"{what} ({paths}; the contents differ)")
    return found
