"""What is kept of a latent space: named tensors with a JSON record in one safetensors file, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_write_bytes

FORMAT = 1


class LatentError(UserError):
    """A latent, a file of latents or an argument of `ssgan latents` that does not serve."""


def save_tensors(path: Path, kind: str, tensors: dict[str, Tensor], record: dict[str, Any]) -> Path:
    """Writes tensors and a JSON-able record; kind ("projection", "directions") says what the file is."""
    text = json.dumps({"format": FORMAT, "kind": kind, **record}, allow_nan=False)
    whole = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}  # views share no memory there
    atomic_write_bytes(path, safetensors.torch.save(whole, metadata={"ssgan": text}))
    return path


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_tensors`, on the CPU. Raises LatentError: absent, damaged, of another kind or format."""
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {})["ssgan"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise LatentError(f"{path} does not exist; expected what `ssgan latents` saved as {kind}.safetensors") from None
    except (SafetensorError, OSError) as error:
        raise LatentError(f"{path} is damaged or not a safetensors file: {error}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise LatentError(f"{path} is a safetensors file, but not one of `ssgan latents`") from error
    if record.get("kind") != kind:
        raise LatentError(f"{path} holds {record.get('kind', 'a checkpoint')}; expected {kind}")
    if record["format"] != FORMAT:
        raise LatentError(f"{path} has format {record['format']}; this version of ssgan reads format {FORMAT}")
    return tensors, record
