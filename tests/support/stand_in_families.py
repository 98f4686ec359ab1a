"""Families of kernels for the tests of trust and choice: on the CPU, right or wrong in the ways that kernels are.

STAND_INS in the environment names those that there are, STAND_IN_LOG a file that gets a line for every process that
runs one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssconv.backend import checks, reference
from ssconv.backend.families import CONVOLUTION, WGRAD, Family

VOXELS = 4000  # of an input, beyond which "wrong_when_large" is wrong
LOGGED: set[int] = set()
CALLS: list[str] = []


def right(operation: str, args: tuple[Any, ...], config: Any) -> Any:
    """What the reference gives, in the dtype of the tensors as kernels write it."""
    found = getattr(reference, operation)(*args)
    if operation == "weight_grad":
        return found
    if operation == "convolve":
        y, z = found
        return y.to(args[0].dtype), None if z is None else z.to(args[0].dtype)
    return found.to(args[0].dtype)


def first_tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


def spoilt(operation: str, args: tuple[Any, ...], config: Any) -> Any:
    """One wrong value."""
    found = right(operation, args, config)
    first_tensor(found).flatten()[-1] += 1
    return found


def run(name: str, operation: str, args: tuple[Any, ...], config: Any) -> Any:
    if (log := os.environ.get("STAND_IN_LOG")) and os.getpid() not in LOGGED:
        LOGGED.add(os.getpid())
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()}\n")
    dtype = args[0].dtype
    match name:
        case "wrong":
            return spoilt(operation, args, config)
        case "wrong_in_half" if dtype == torch.float16:
            return spoilt(operation, args, config)
        case "wrong_when_large" if args[0][0, 0].numel() > VOXELS:
            return torch.zeros_like(args[0]) if operation == "input_grad" else spoilt_all(operation, args, config)
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            time.sleep(3600)
        case "raises":
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")
        case "has_no_room":
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        case "slow":
            time.sleep(0.02)
        case "never_twice_the_same":
            found = right(operation, args, config)
            CALLS.append(operation)
            first_tensor(found).flatten()[0] += len(CALLS) % 2
            return found
    return right(operation, args, config)


def spoilt_all(operation: str, args: tuple[Any, ...], config: Any) -> Any:
    found = right(operation, args, config)
    first_tensor(found).neg_()
    return found


def of_device(device: torch.device) -> tuple[Family, ...]:
    """The families that STAND_INS names, in its order."""

    def family(name: str) -> Family:
        def configs(operation: str, args: tuple[Any, ...]) -> Iterator[Any]:
            if name != "unable":
                yield None

        return Family(name, "cuda", CONVOLUTION + WGRAD, configs, lambda *call: run(name, *call))

    return tuple(map(family, os.environ["STAND_INS"].split(",")))


def matrix(device: torch.device) -> Iterator[checks.Check]:
    """A few of the real checks."""
    for check in checks.matrix(device):
        if "split 5 to 7" in check.name:
            yield check
