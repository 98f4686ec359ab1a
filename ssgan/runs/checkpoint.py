"""Reads and writes checkpoints: the whole state of a run in one safetensors file, verified when it is read.

A file holds the tensors and, in its header's `ssgan` entry, JSON: format, stage, step, images, config_hash,
sha256 of these and of the tensors. Names in `RUN/checkpoints`: `{stage}-{images:09d}.safetensors`, and
`{stage}-final.safetensors` when a stage has ended. Nothing here uses pickle.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_path
from ssgan.utils.seeding import STAGES

FORMAT = 1
_NUMBERED = re.compile(r"^(2d|3d)-(\d{9,})\.safetensors$")
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL"}


class CheckpointError(UserError):
    """A checkpoint that is absent, damaged, of another format or of another network."""


class DamagedError(CheckpointError):
    """A checkpoint that was cut short or has changed on the disk."""


@dataclass(frozen=True)
class CheckpointMeta:
    """The position of a checkpoint in its run. images: real images shown to the discriminator in this stage.
    images_before: those shown in the stage it was inflated from (0 for a fresh start). config_hash: of the run's
    settings (`ssgan.runs.config.identity`)."""

    stage: str
    step: int
    images: int
    config_hash: str
    images_before: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """Sorts checkpoints from early to late."""
        return STAGES.index(self.stage), self.images


def config_hash(config: dict[str, Any]) -> str:
    """Gives the SHA-256 of a configuration as canonical JSON."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save(path: Path, tensors: dict[str, Tensor], meta: CheckpointMeta, network: dict[str, Any] | None = None) -> Path:
    """Writes tensors and their position in the run to `path`, all or nothing.

    network: the configuration of the networks, for a file that is read without its run; meta.config_hash is its hash.

    Raises:
        OSError: the file system refuses, as with a full disk; an earlier file at `path` is unchanged.
    """
    # Not by safetensors' save_file: it reports a full disk without its errno, and renames its file before the data
    # has been flushed to the disk.
    arrays = {name: (_DTYPES[t.dtype], _array(t)) for name, t in tensors.items()}
    names = sorted(arrays, key=lambda name: (-arrays[name][1].itemsize, name))
    digest = _digest(meta, {name: array for name, (_, array) in arrays.items()})
    record = {"format": FORMAT, **asdict(meta), "sha256": digest}
    metadata = {"ssgan": json.dumps(record)} | ({} if network is None else {"network": json.dumps(network)})
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name in names:
        dtype, array = arrays[name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            _write(file, len(text).to_bytes(8, "little") + text)
            for name in names:
                _write(file, arrays[name][1].reshape(-1).view(np.uint8).data)
    except OSError as error:  # write() leaves the file's name out
        raise OSError(error.errno, error.strerror, str(path)) from error
    return path


def load(path: Path) -> tuple[dict[str, Tensor], CheckpointMeta]:
    """Loads the tensors (on the CPU) and the position of a checkpoint; verifies its size and checksum.

    Raises:
        DamagedError: the file is cut short, damaged or not a checkpoint of this project.
        CheckpointError: the file is absent or of another format.
    """
    meta, expected = _read_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if _digest(meta, {name: _array(t) for name, t in tensors.items()}) != expected:
        raise DamagedError(f"{path} is damaged: its contents do not match its checksum")
    return tensors, meta


def read_meta(path: Path) -> CheckpointMeta:
    """Reads the position of a checkpoint from its header; does not verify the tensors. Raises CheckpointError."""
    return _read_header(path)[0]


def read_network(path: Path) -> dict[str, Any] | None:
    """Reads the configuration of the networks from a file's header; None where it has none. Raises CheckpointError."""
    meta = read_meta(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get("network")
    if text is None:
        return None
    try:
        network = json.loads(text)
        intact = isinstance(network, dict) and config_hash(network) == meta.config_hash
    except json.JSONDecodeError:
        intact = False
    if not intact:
        raise DamagedError(f"{path} is damaged: the configuration in its header does not match its hash")
    return network


def checksum(path: Path) -> str:
    """Reads the checksum of the contents from a checkpoint's header; does not verify it. Raises CheckpointError."""
    return _read_header(path)[1]


def load_newest(
    folder: Path, warn: Callable[[str], None] = print
) -> tuple[dict[str, Tensor], CheckpointMeta, Path] | None:
    """Loads the newest intact checkpoint of a folder; None where there is none yet.

    A damaged one is renamed to `NAME.damaged` with a warning, and the one before it is tried.

    Raises:
        CheckpointError: every checkpoint in the folder is damaged.
    """
    damaged = []
    for path in reversed(list_checkpoints(folder)):
        try:
            tensors, meta = load(path)
            return tensors, meta, path
        except DamagedError as error:
            renamed = path.with_name(path.name + ".damaged")
            path.replace(renamed)
            damaged.append(path.name)
            warn(f"{error}; renamed to {renamed.name}, going back to the checkpoint before it")
    if damaged:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); restore one from a copy, or delete the "
            "run's folder and start again"
        )
    return None


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of a folder, early to late. A final one is sorted by its header, since a run that was made
    longer goes on after it."""

    def order(path: Path) -> tuple[int, float, bool]:
        match, stage = _NUMBERED.match(path.name), STAGES.index(path.name[:2])
        if match:
            return stage, int(match[2]), False
        try:
            return stage, read_meta(path).images, True
        except CheckpointError:
            return stage, float("inf"), True  # so that it is tried first and reported as damaged

    finals = {f"{stage}-final.safetensors" for stage in STAGES}
    return sorted((p for p in folder.glob("*.safetensors") if _NUMBERED.match(p.name) or p.name in finals), key=order)


def numbered_path(folder: Path, meta: CheckpointMeta) -> Path:
    return folder / f"{meta.stage}-{meta.images:09d}.safetensors"


def final_path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}-final.safetensors"


def best_path(folder: Path, stage: str) -> Path:
    """The file that keeps the checkpoint with the best metric. `list_checkpoints` leaves it out: runs go on from the
    newest."""
    return folder / f"{stage}-best.safetensors"


def prune(folder: Path, keep: int) -> None:
    """Deletes all but the last `keep` numbered checkpoints; final ones stay."""
    numbered = [p for p in list_checkpoints(folder) if _NUMBERED.match(p.name)]
    for path in numbered[: max(len(numbered) - max(keep, 1), 0)]:
        path.unlink()


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": t for name, t in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Selects the tensors whose names start with `prefix.` and removes it from the names."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}


def load_module(module: nn.Module, prefix: str, tensors: dict[str, Tensor], where: str) -> None:
    """Copies a checkpoint's tensors under `prefix.` into a module and checks every name and shape. where: the file,
    for errors.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; up to three are named.
    """
    given, own = without_prefix(prefix, tensors), module.state_dict()
    wrong = [f"{n} is missing" for n in own if n not in given]
    wrong += [f"{n} is unknown" for n in given if n not in own]
    wrong += [
        f"{n} is {tuple(given[n].shape)}, expected {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"{where} does not fit the network {prefix}: {'; '.join(wrong[:3])}{more}; was it trained with another "
            "preset, architecture or shape?"
        )
    module.load_state_dict(given)


def adam_tensors(optimiser: torch.optim.Adam, module: nn.Module) -> dict[str, Tensor]:
    """Gives Adam's state as tensors named `{parameter}|{entry}`, for the parameters that have been stepped."""
    return {
        f"{name}|{entry}": torch.as_tensor(value)
        for name, parameter in module.named_parameters()
        for entry, value in optimiser.state.get(parameter, {}).items()
    }


def load_adam(optimiser: torch.optim.Adam, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads what `adam_tensors` gave into an optimiser built over `module.parameters()` in their order."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = dict(module.named_parameters())
    index = {name: i for i, name in enumerate(parameters)}
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        if name not in index:
            raise CheckpointError(f"the optimiser's state names an unknown parameter {name!r}")
        if value.dim():
            # The parameter's own memory format, so that a resumed run adds in the same order as an uninterrupted one.
            value = torch.empty_like(parameters[name], dtype=value.dtype).copy_(value)
        state.setdefault(index[name], {})[entry] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _read_header(path: Path) -> tuple[CheckpointMeta, str]:
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["ssgan"])
        version = record.pop("format")
        expected = record.pop("sha256")
        if version != FORMAT:
            raise CheckpointError(f"{path} has format {version}; this version of ssgan reads format {FORMAT}")
        return CheckpointMeta(**record), expected
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; expected a checkpoint (.safetensors)") from None
    except (SafetensorError, OSError) as error:
        raise DamagedError(f"{path} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DamagedError(f"{path} is a safetensors file, but not a checkpoint of ssgan train") from error


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().numpy()


def _digest(meta: CheckpointMeta, arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over the position in the run and over name, dtype, shape and bytes of every tensor, by name."""
    digest = hashlib.sha256(json.dumps(asdict(meta), sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)
