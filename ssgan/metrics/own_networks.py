"""Small networks that are trained on the user's own data for an evaluation: their options, and their files.

A file holds the weights and, as JSON beside them, a record of what they were trained on: a dataclass with the fields
`format` and `version`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ssgan.metrics.extractors.weights import WeightsError
from ssgan.utils.errors import UserError
from ssgan.utils.files import atomic_write_bytes


def add_arguments(parser: argparse.ArgumentParser, data: str, batches: str) -> None:
    """Adds the options of a command that trains such a network. data: help of --data. batches: what a step is."""
    parser.add_argument("--data", type=Path, required=True, help=data)
    parser.add_argument("--out", type=Path, required=True, help="the file to write, .safetensors")
    parser.add_argument("--steps", type=int, default=300, help=f"{batches} (default 300)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and held-out volumes (default 0)")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for an --out that exists or has another suffix, and for numbers out of range."""
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out}: expected a name that ends in .safetensors")
    if args.out.exists():
        raise UserError(f"--out {args.out} exists already; give a new name")
    if args.steps < 1 or args.seed < 0:
        raise UserError(f"--steps, --seed: expected at least 1 and at least 0; got {args.steps} and {args.seed}")


def save_network(file: Path, network: nn.Module, record: Any) -> None:
    tensors = {name: t.detach().contiguous() for name, t in network.state_dict().items()}
    atomic_write_bytes(file, save(tensors, metadata={record.format: json.dumps(asdict(record))}))


def read_record(file: Path, kind: type[Any], option: str, command: str, hint: str = "") -> Any:
    """Reads the record in a file, a `kind`. option, command: what named the file, and what writes such files.

    Raises:
        WeightsError: `command` did not write the file, or another version of it did; hint: the end of the message.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {})[kind.format])
        record = kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in found.items()})
    except (KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise WeightsError(
            f"{option} {file}: expected a file that `{command}` has written ({type(error).__name__}){hint}"
        ) from error
    if record.version != kind.version:
        raise WeightsError(f"{option} {file}: version {record.version}; this version of ssgan reads {kind.version}")
    return record
