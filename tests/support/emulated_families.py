"""The CUDA backend's own families on the emulator, which stands for a card of 9.0: a provider for `trust`.

SSCONV_EMULATOR in the environment is the emulator's module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ssconv.backend import checks
from ssconv.backend.cuda import conv, runner
from ssconv.backend.cuda.families import FAMILIES
from ssconv.backend.families import Family
from ssconv.spec import KERNEL_SETS
from tests.support import emulated

SMALL = checks.Convolution(KERNEL_SETS["split_depth"], 32, 32, size=(2, 3, 5), batch=1, scaled=True, noise=True)


def of_device(device: torch.device) -> tuple[Family, ...]:
    if runner.call is None:
        emulated.use(emulated.load(Path(os.environ["SSCONV_EMULATOR"])))
    conv.architecture, conv.multiprocessors = lambda device: 90, lambda device: 3
    return FAMILIES


def matrix(device: torch.device) -> Iterator[checks.Check]:
    """Checks like the real ones, small enough for the emulator."""
    for operation in ("convolve", "input_grad", "weight_grad"):
        yield checks.check_of(operation, "small", "bf16", True, checks.convolution_arguments, SMALL)
    for check in checks.matrix(device):
        if "bf16, three branches" in check.name or "bf16, up, 5 channels" in check.name:
            yield check
