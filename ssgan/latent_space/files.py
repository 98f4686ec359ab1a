"""The output folder of `ssgan latents` and its files: a record, and tensors of projections and directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssgan.runs.generator import LoadedGenerator
from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_write_bytes, read_json, write_json_atomic

FORMAT = 1
RECORD = "latents.json"


class LatentError(UserError):
    """A bad argument of `ssgan latents`, or a file of it that cannot be used."""


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Writes tensors and a JSON record to one safetensors file. kind: "projection" or "directions"."""
    text = json.dumps({"format": FORMAT, "kind": kind, **record}, allow_nan=False)
    whole = {
        name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()
    }  # safetensors refuses views of one memory
    atomic_write_bytes(path, safetensors.torch.save(whole, metadata={"ssgan": text}))
    return path


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save_tensors` wrote, to the CPU. Raises LatentError: absent, damaged, of another kind or format."""
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["ssgan"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise LatentError(f"{path} does not exist; expected a {kind}.safetensors of `ssgan latents`") from None
    except (SafetensorError, OSError) as error:
        raise LatentError(f"{path} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise LatentError(f"{path} is a safetensors file, but not one of `ssgan latents`") from error
    if record.get("kind") != kind:
        raise LatentError(f"{path} holds {record.get('kind', 'a checkpoint')}; expected {kind}")
    if record["format"] != FORMAT:
        raise LatentError(f"{path} has format {record['format']}; this version of ssgan reads format {FORMAT}")
    return tensors, record


def check_output_folder(out: Path, command: str) -> list[str]:
    """Lists the files that an earlier call of the same command left in `out`.

    Raises:
        LatentError: `out` holds anything but the results of such a call.
    """
    if out.exists() and not out.is_dir():
        raise LatentError(f"--out {out} is a file; expected a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return []
    record = {"command": command}
    if (out / RECORD).is_file():
        record = read_json(out / RECORD)
    elif command != "project" or not (out / "projection.safetensors").is_file():  # left by a killed projection
        raise LatentError(f"--out {out} is not empty and was not made by `ssgan latents` (no {RECORD}); choose another")
    if record.get("command") != command:
        raise LatentError(
            f"--out {out} holds the results of `ssgan latents {record.get('command')}`; choose another folder"
        )
    return [name for name in record.get("files", []) if Path(name).name == name]


def write_record(
    out: Path, command: str, arguments: dict[str, Any], source: LoadedGenerator, entries: dict[str, Any]
) -> None:
    """Writes latents.json. entries: those of the command, "files" among them."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()}
    record = {"command": command, "arguments": given, "checkpoint": str(source.path), "sha256": source.sha256}
    write_json_atomic(out / RECORD, record | entries)
