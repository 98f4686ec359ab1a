"""The computer that a command runs on: choice of the device, versions for the record."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

import ssconv
from ssgan.utils.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device for --device auto, cpu or cuda; auto takes the GPU if there is one.

    Raises:
        UserError: cuda, and there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch finds no CUDA GPU here; give --device cpu")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def environment() -> dict[str, str]:
    """Versions of the software, the commit, the processor and the GPU, for config.json and reports."""
    folder = Path(__file__).resolve().parent
    try:
        git = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty=+"], capture_output=True, text=True, timeout=10
        )
        commit = git.stdout.strip() if git.returncode == 0 else ""
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
