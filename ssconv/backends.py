"""Which implementations exist here, which one serves a call, and why one is not available."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import Tensor

from ssconv import reference

NAMES = ("reference", "cpu", "triton", "cuda")


def _build_info() -> dict[str, object] | None:
    try:
        module = importlib.import_module("ssconv._C")
    except ModuleNotFoundError as error:
        if error.name != "ssconv._C":
            raise
        return None
    return module.build_info()


def _compiled_part() -> str:
    info = _build_info()
    if info is None:
        return (
            "the compiled module ssconv._C is not installed (without a C++ compiler or Python's C headers the build "
            "leaves it out and says so)"
        )
    kernels = ", ".join(str(k) for k in info["kernels"]) or "none"
    return f"the compiled module has no kernels for it (kernels: {kernels}; CUDA compiler: {info['cuda'] or 'none'})"


def backends() -> dict[str, str]:
    """Every backend by name with "available", or the reason why it is not.

    Example:
        >>> ssconv.backends()["reference"]
        'available'
    """
    return {
        "reference": "available",
        "cpu": f"not available: {_compiled_part()}",
        "triton": "not available: this version of ssconv has no Triton kernels",
        "cuda": f"not available: {_compiled_part()}",
    }


def resolve(name: str, x: Tensor) -> str:
    """The backend that serves a call on x: `name` itself, or the fastest available for "auto".

    Raises:
        ValueError: the name is unknown. RuntimeError: that backend cannot serve; the message says why.
    """
    if name == "auto":
        return "reference"
    if name not in NAMES:
        raise ValueError(f"backend: expected auto or one of {', '.join(NAMES)}; got {name!r}")
    if name != "reference":
        raise RuntimeError(f'backend: {name!r} was asked for and is {backends()[name]}; use backend="auto"')
    return name


def implementation(name: str) -> ModuleType:
    """The module that computes for a resolved backend name."""
    if name != "reference":
        raise RuntimeError(f"backend: {name!r} is {backends().get(name, 'unknown')}")
    return reference
