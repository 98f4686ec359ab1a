"""Reads the tensors of a TorchScript file as data: no code in it is run, and torch.jit, deprecated, is not needed.

Such a file is a ZIP archive with the module tree as a pickle (NAME/data.pkl) and the numbers of each tensor beside it
(NAME/data/0, ..), little-endian.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssgan.metrics.extractors.weights import Weights, WeightsError, file_sha256

DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "LongStorage": torch.int64}


class Module:
    """Stands for a module of the file; its attributes are those in the file."""


def strided(numbers: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
    return torch.as_strided(numbers, size, stride, offset).clone()


class Reader(pickle.Unpickler):
    """Reads data.pkl, with `Module` for every class of the file; refuses what is no module, container or tensor."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}/data.pkl"))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return Module
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        allowed = {("torch._utils", "_rebuild_tensor_v2"): strided, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a network's weights")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}/data/{key}")), dtype=dtype)


def tensors_of(module: Module, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a module tree by their names in a state_dict."""
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Module):
            yield from tensors_of(value, f"{prefix}{name}.")


def read_torchscript(path: Path) -> Weights:
    """Reads the tensors of a file. Raises WeightsError where it is damaged or no TorchScript file."""
    try:
        with zipfile.ZipFile(path) as archive:
            module = Reader(archive, archive.namelist()[0].split("/")[0]).load()
        if not isinstance(module, Module):
            raise WeightsError(f"{path} is no TorchScript file of a network")
        return Weights(path, dict(tensors_of(module)), file_sha256(path))
    except (zipfile.BadZipFile, pickle.UnpicklingError, LookupError, EOFError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} cannot be read as TorchScript ({str(error)[:160]}); install it again") from error
