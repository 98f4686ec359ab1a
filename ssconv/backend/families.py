"""Kernel families: the unit in which kernels are trusted and chosen.

A family is a set of kernels that share their way of computing, such as sm_90's convolution with im2col copies. It
performs some of the six operations that every backend has (`reference` defines them): convolve, input_grad,
weight_grad, epilogue, epilogue_backward, upfirdn.

SSCONV_FAMILIES in the environment leaves families out ("-sm90_halo,-sm90_cluster") or names the only ones that may
serve ("sm80_conv,sm80_wgrad"). PyTorch's own operators always may.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

CONVOLUTION = ("convolve", "input_grad")
WGRAD = ("weight_grad",)
EPILOGUE = ("epilogue", "epilogue_backward")
UPFIRDN = ("upfirdn",)
SWITCH = "SSCONV_FAMILIES"


class Family(NamedTuple):
    """Kernels that are trusted together.

    name: such as "sm90_halo". backend: the one that they belong to. operations: that they perform. configs: from an
    operation and its arguments, the configurations that can serve the call, the default one first; none where the
    family cannot serve it. run: performs the operation with one of them.
    """

    name: str
    backend: str
    operations: tuple[str, ...]
    configs: Callable[[str, tuple[Any, ...]], Iterator[Any]]
    run: Callable[[str, tuple[Any, ...], Any], Any]


def config_label(config: Any) -> str:
    """A configuration as text, such as "width=64 stages=3"; empty for the only one."""
    if config is None:
        return ""
    named = dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config._asdict()
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in named.items() if value not in (False, 0))


def label(family: str, config: Any) -> str:
    """A candidate's name: the family's, and its configuration in brackets if it has several."""
    text = config_label(config)
    return f"{family}[{text}]" if text else family


# All there are, so that SSCONV_FAMILIES is understood on every machine.
NAMES = (
    "sm90_im2col", "sm90_halo", "sm90_cluster", "sm90_halo_swizzled", "sm80_conv", "sm90_wgrad", "sm80_wgrad",
    "cuda_epilogue", "cuda_upfirdn", "triton_conv", "triton_wgrad", "triton_epilogue", "triton_upfirdn",
)  # fmt: skip


def allowed(name: str) -> bool:
    """Whether SSCONV_FAMILIES lets a family serve.

    Raises:
        ValueError: the variable has a name that is none of NAMES, or mixes both forms.
    """
    out, only = _asked(os.environ.get(SWITCH, ""))
    return name not in out and (not only or name in only)


@functools.cache
def _asked(value: str) -> tuple[frozenset[str], frozenset[str]]:
    """The families to leave out and the only ones to use."""
    words = [word.strip() for word in value.split(",") if word.strip()]
    out = frozenset(word[1:] for word in words if word.startswith("-"))
    only = frozenset(word for word in words if not word.startswith("-"))
    if not (out | only).issubset(NAMES) or (out and only):
        raise ValueError(
            f"{SWITCH}: expected families to leave out (-NAME,-NAME), or the only ones to use (NAME,NAME), among "
            f"{', '.join(NAMES)}; got {value!r}"
        )
    return out, only


def of_device(device: torch.device) -> tuple[Family, ...]:
    """Every family of the backends that serve a device, the CUDA backend's first."""
    from ssconv.backend import dispatch  # which imports the backends, and they this module

    found: list[Family] = []
    for name in ("cuda", "triton"):
        if dispatch.serves(name, device):
            found += importlib.import_module(f"ssconv.backend.{name}.families").FAMILIES
    return tuple(found)
