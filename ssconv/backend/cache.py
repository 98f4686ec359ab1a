"""Files that this machine keeps: verdicts on kernels and measured choices, in the user's cache folder.

A file belongs to a card, its driver, torch, Triton and the build of ssconv: with any other of these it is not read.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[1]


def folder() -> Path:
    """The folder of these files: $XDG_CACHE_HOME/ssconv, else ~/.cache/ssconv."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path(os.path.expanduser("~")) / ".cache") / "ssconv"


@functools.cache
def identity(device: torch.device) -> tuple[tuple[str, str], ...]:
    """What a verdict or a choice belongs to, by name."""
    parts = {
        "card": _card(device),
        "driver": _driver() if device.type == "cuda" else "",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "triton": _version("triton"),
        "build": _build(),
    }
    return tuple(parts.items())


def _card(device: torch.device) -> str:
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return f"{found.name}, {found.major}.{found.minor}, {found.total_memory // 2**20} MiB"
    return torch.get_device_module(device).get_device_name(device) if device.type != "cpu" else "CPU"


def _driver() -> str:
    """The NVIDIA driver: the newest CUDA version that it runs, and its own version where the system tells."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        pass
    try:
        own = Path("/proc/driver/nvidia/version").read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        own = ""
    return f"CUDA {version.value} {own}".strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _build() -> str:
    """A hash of the compiled module and of the code of the backends."""
    digest = hashlib.sha256()
    files = [*PACKAGE.glob("_C*"), *PACKAGE.glob("backend/**/*.py"), *PACKAGE.glob("backend/**/*.json")]
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Store:
    """A JSON file of named entries. Where the folder cannot be written, they are kept in memory.

    kind: the beginning of the file's name, such as "verdicts". identity: what the entries belong to.
    """

    def __init__(self, kind: str, identity: tuple[tuple[str, str], ...]) -> None:
        self.identity = identity
        name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        self.path = folder() / f"{kind}-{name}.json"
        self.entries: dict[str, Any] = {}
        self.damaged = False
        self.read()

    def read(self) -> dict[str, Any]:
        """The entries: this process' own, and those that others have saved since."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            text = self.path.read_text()
            try:
                content = json.loads(text)
                if content["identity"] == dict(self.identity):
                    self.entries = content["entries"] | self.entries
            except (ValueError, KeyError, TypeError):
                if not self.damaged:
                    warnings.warn(f"ssconv: {self.path} cannot be read and is replaced", RuntimeWarning, stacklevel=2)
                self.damaged = True
        return self.entries

    def save(self, entries: dict[str, Any]) -> None:
        """Adds entries, also to the file, in one step: a reader never sees half of it."""
        self.entries |= entries
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self.read()
                content = {"identity": dict(self.identity), "entries": self.entries}
                with tempfile.NamedTemporaryFile("w", dir=self.path.parent, suffix=".tmp", delete=False) as file:
                    json.dump(content, file, indent=1)
                os.replace(file.name, self.path)

    @contextlib.contextmanager
    def locked(self, purpose: str = "", seconds: float = 10.0) -> Iterator[bool]:
        """Holds this file's lock, which ends with the process. Yields whether it was had within some seconds.

        purpose: another lock than that of writing.
        """
        path = self.path.with_suffix(f"{purpose}.lock")
        try:
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except (ImportError, OSError):
            yield True  # nothing is shared then
            return
        with file:
            end = time.monotonic() + seconds
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    if time.monotonic() > end:
                        yield False
                        return
                    time.sleep(0.05)
            yield True
