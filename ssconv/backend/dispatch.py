"""Finds the backends that are available on this machine and chooses the one that serves a call."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ssconv.backend import cpu, gpu, reference

NAMES = ("reference", "cpu", "triton", "cuda")
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _hidden_module() -> str | None:
    """The file of the compiled module in another ssconv on sys.path, which this one hides, or None."""
    folders = [os.path.join(entry, "ssconv") for entry in sys.path]
    spec = importlib.machinery.PathFinder.find_spec("ssconv._C", folders)
    return spec.origin if spec else None


def _load() -> tuple[ModuleType | None, str]:
    """Imports the compiled module, which registers its ops. Returns it, or None and the reason, which is a warning."""
    try:
        return importlib.import_module("ssconv._C"), ""
    except ModuleNotFoundError as error:
        if error.name != "ssconv._C":
            raise
        tree = Path(__file__).parents[2]
        if not (tree / "setup.py").exists():
            reason = (
                "the compiled module ssconv._C is not installed: at its installation there was no C++17 compiler, or "
                "Python's C headers were missing; install them, then the package again (pip install --force-reinstall "
                "--no-cache-dir --no-deps)"
            )
        elif hidden := _hidden_module():
            reason = (
                f"the compiled module ssconv._C is in {os.path.dirname(hidden)}, which the source tree {tree} hides; "
                "compile it in the tree too (pip install -e . there), or start Python in another folder"
            )
        else:
            reason = (
                f"the compiled module ssconv._C is not built in the source tree {tree}: run pip install -e . there "
                "(it needs a C++17 compiler and Python's C headers)"
            )
    except ImportError as error:
        reason = f"the compiled module ssconv._C does not load ({error}); build it again: pip install ."
    warnings.warn(f"ssconv: {reason}; until then the slow reference backend serves", RuntimeWarning, stacklevel=3)
    return None, reason


_COMPILED, _MISSING = _load()


def _cpu() -> str:
    """The state of the CPU backend."""
    if _COMPILED is None:
        return f"not available: {_MISSING}"
    if "cpu" not in _COMPILED.build_info()["kernels"]:
        return "not available: the compiled module was built without the CPU kernels"
    return "available"


def _cuda() -> tuple[ModuleType | None, str]:
    """The CUDA backend, imported only if it is available, and its state."""
    if _COMPILED is None:
        return None, f"not available: {_MISSING}"
    info = _COMPILED.build_info()
    if "cuda" not in info["kernels"]:
        compiler = info["cuda"] or "none"
        return None, f"not available: the compiled module has no CUDA kernels (CUDA compiler: {compiler})"
    if torch.version.cuda is None:
        return None, "not available: this torch is built without CUDA"
    if torch.cuda.device_count() == 0:  # does not initialise the GPU, which would forbid the process to fork
        return None, "not available: no NVIDIA GPU"
    runner = importlib.import_module("ssconv.backend.cuda.runner")
    runner.call = _COMPILED.cuda_call
    runner.has_sm90a = "90" in (a.removesuffix("+PTX") for a in info["cuda_arch_list"])
    return importlib.import_module("ssconv.backend.cuda.launch"), "available"


def _triton() -> tuple[ModuleType | None, str]:
    """The Triton backend, imported only if it is available, and its state."""
    if importlib.util.find_spec("triton") is None:
        return None, "not available: triton is not installed (pip install triton)"
    if os.environ.get("TRITON_INTERPRET", "0") not in ("1", "true", "on", "y", "yes"):
        # device_count does not initialise the GPU, which would forbid the process to fork.
        if torch.cuda.device_count() == 0 and torch.xpu.device_count() == 0:
            return None, (
                "not available: no GPU that Triton reaches (with TRITON_INTERPRET=1 in the environment its interpreter "
                "runs the kernels on a CPU, slowly)"
            )
    return importlib.import_module("ssconv.backend.triton.launch"), "available"


_TRITON, _TRITON_STATE = _triton()
_CUDA, _CUDA_STATE = _cuda()

# Found once, at import: torch.compile traces `resolve` and sees constants.
_STATES = {
    "reference": "available",
    "cpu": _cpu(),
    "triton": _TRITON_STATE,
    "cuda": _CUDA_STATE,
}


def backends() -> dict[str, str]:
    """Lists every backend by name with "available", or "not available: " and the reason.

    Example:
        >>> ssconv.backends()["reference"]
        'available'
    """
    return dict(_STATES)


def _fits(module: ModuleType | None, x: Tensor) -> bool:
    """Whether a GPU backend takes x, by device and dtype."""
    return module is not None and x.device.type in module.DEVICES and x.dtype in module.DTYPES


def serves(name: str, device: torch.device) -> bool:
    """Whether a GPU backend has kernels for a device."""
    module = {"triton": _TRITON, "cuda": _CUDA}[name]
    if module is None or device.type not in module.DEVICES:
        return False
    return name != "cuda" or gpu.architecture(device) >= 80  # the compiled kernels are for 8.0 and later


def resolve(name: str, x: Tensor) -> str:
    """The name of the backend that serves a call on x: `name` itself, or for "auto" the one of the device.

    On a CPU that is the compiled kernels where they can, else the reference. On a GPU it is "choice", which finds by
    measurement what serves each call (ssconv.choices() lists it).

    Raises:
        ValueError: the name is unknown.
        RuntimeError: the named backend cannot serve x; the message says why.
    """
    fits_cpu = x.device.type == "cpu" and x.dtype in CPU_DTYPES
    if name == "auto":
        if fits_cpu and _STATES["cpu"] == "available":
            return "cpu"
        if x.device.type == "cpu":
            return "reference"
        return "choice" if any(_fits(module, x) for module in (_CUDA, _TRITON)) else "reference"
    if name not in NAMES:
        raise ValueError(f"backend: expected auto or one of {', '.join(NAMES)}; got {name!r}")
    state = _STATES[name]
    if state != "available":
        raise RuntimeError(f'backend: {name!r} was asked for and is {state}; use backend="auto"')
    if name == "cpu" and not fits_cpu:
        raise RuntimeError(
            f"backend: 'cpu' serves float32, bfloat16 and float16 on the CPU; got {x.dtype} on {x.device}; "
            'use backend="auto"'
        )
    module = {"triton": _TRITON, "cuda": _CUDA}.get(name)
    if module is not None and not _fits(module, x):
        raise RuntimeError(
            f"backend: {name!r} serves {', '.join(str(t).removeprefix('torch.') for t in module.DTYPES)} on "
            f'{" or ".join(module.DEVICES)}; got {x.dtype} on {x.device}; use backend="auto"'
        )
    return name


def implementation(name: str) -> ModuleType:
    """The module that computes for a resolved backend name."""
    if name == "choice":
        return importlib.import_module("ssconv.backend.choice")
    module = {"reference": reference, "cpu": cpu, "triton": _TRITON, "cuda": _CUDA}[name]
    assert module is not None, f"resolve returned {name}, which is not available"
    return module
