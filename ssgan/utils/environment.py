"""The machine a command runs on: which device computes, how memory is kept on a CPU, what it is to be called."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import ssconv
from ssgan.utils.errors import UserError

# <malloc.h>. One arena, no mmap for large blocks, no trimming: freed memory stays with the process.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_SETTINGS = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**28))


def keep_freed_memory() -> bool:
    """Keeps freed memory for the next allocation instead of giving it back to the system; True where it took effect.

    By default glibc maps every block above 32 MiB afresh and unmaps it on free, so each activation of a training
    step costs page faults all over again; a step of the hippocampus preset took twice as long. Only glibc has the
    switch: elsewhere nothing happens. The process keeps its peak memory until it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in _SETTINGS)


def pick_device(name: str) -> torch.device:
    """auto takes the GPU where there is one. Raises UserError for cuda where there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; give --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def environment() -> dict[str, str]:
    """Versions, processor and commit of where this runs."""
    here = Path(__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=10
        )
        commit = said.stdout.strip() if said.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    backends = [name for name, state in ssconv.backends().items() if state == "available"]
    return {
        "ssgan": ssconv.__version__,
        "commit": commit or "unknown (not run from a git checkout)",
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ssconv backends": ", ".join(backends),
        "GPU": ", ".join(devices) or "none",
        "processor": f"{_processor()}, {os.cpu_count()} logical cores",
        "system": f"{platform.system()} {platform.release()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")  # platform.processor() is empty on most Linux systems
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
