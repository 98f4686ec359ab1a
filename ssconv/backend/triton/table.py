"""Tiles, warps and stages of the Triton kernels by architecture and shape class.

`table.json`, beside this file, is the committed table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssconv.backend.tuning import ARITHMETIC, BRANCHES, CHANNELS, Table, channel_class, check_value

COMMITTED = Path(__file__).with_name("table.json")
KERNELS = ("conv", "wgrad")
# Cards of one generation share a table. Those without much shared memory (8.6, 8.9, 12.0) share sm_80's.
FAMILIES = {8: 80, 9: 90, 10: 100, 12: 80}


@dataclass(frozen=True)
class Key:
    """The shape class of a call.

    kernel: "conv" (fprop and dgrad) or "wgrad". architecture: compute capability, such as 90. branches: how many a
    program computes together. channels: those of a branch along tile N (of the output; for "wgrad" of the tensor that
    the windows move over), rounded up to a class. describable: whether tensor descriptors can read the tensors.
    """

    kernel: str
    architecture: int
    arithmetic: str
    branches: int
    channels: int
    describable: bool

    @classmethod
    def of(
        cls, kernel: str, architecture: int, arithmetic: str, branches: int, channels: int, describable: bool
    ) -> Key:
        """The class of a call, its architecture and channels rounded to those of the table."""
        family = FAMILIES.get(architecture // 10, architecture)
        return cls(kernel, family, arithmetic, branches, channel_class(channels), describable)


@dataclass(frozen=True)
class Config:
    """Tile and launch of a kernel.

    block_m, block_n, block_k: the tile. Of "conv": voxels, output channels of a branch, input channels a step. Of
    "wgrad": channels of the tensor with a voxel per window, channels of the other, voxels a step. stages: of the
    pipeline. descriptors: whether tensor descriptors (TMA) load the tiles.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    descriptors: bool = False


def check(key: Key, config: Config) -> None:
    """Raises ValueError for an impossible row."""
    check_value("kernel", key.kernel, KERNELS)
    check_value("arithmetic", key.arithmetic, ARITHMETIC)
    check_value("branches", key.branches, BRANCHES)
    check_value("channels", key.channels, CHANNELS)
    for name, least in (("block_m", 16), ("block_n", 16), ("block_k", 16), ("warps", 1)):
        value = getattr(config, name)
        if not isinstance(value, int) or value < least or value & (value - 1):
            raise ValueError(f"config {name}: expected a power of two of at least {least}; got {value!r}")
    if config.descriptors and not key.describable:
        raise ValueError(f"config descriptors: expected false where describable is; got {key}")


def fits(have: Key, wanted: Key) -> bool:
    """Whether the configuration of one class can serve another."""
    same = ("kernel", "arithmetic", "branches")
    return all(getattr(have, n) == getattr(wanted, n) for n in same) and have.describable <= wanted.describable


def distance(have: Key, wanted: Key) -> tuple[int, ...]:
    """The nearest architecture that is not newer, descriptors where they can serve, the nearest class of channels."""
    newer, generations = have.architecture > wanted.architecture, abs(have.architecture - wanted.architecture)
    narrower, channels = have.channels < wanted.channels, abs(have.channels - wanted.channels)
    return newer, generations, not have.describable, narrower, channels


def candidates(key: Key) -> Iterator[Config]:
    """The configurations that a search tries: tiles whose sums fit into the registers of their warps."""
    wgrad, wide = key.kernel == "wgrad", key.arithmetic == "16bit"
    others = {"16bit": (32, 64), "tf32": (16, 32), "ieee": (16,)}[key.arithmetic]
    if wgrad:
        others = (16, 32, 64, 128) if wide else (16, 32, 64)
    tiles = itertools.product((32, 64, 128), CHANNELS, others, (4, 8), (2, 3, 4), (False, True))
    for voxels, block_n, other, warps, stages, descriptors in tiles:
        block_m, block_k = (other, voxels) if wgrad else (voxels, other)
        sums = block_m * block_n * (1 if wgrad else key.branches)
        if block_n > max(16, key.channels) or not 8 <= sums // (32 * warps) <= 128:
            continue
        if descriptors and not (key.describable and key.architecture >= 90):
            continue
        yield Config(block_m, block_n, block_k, warps, stages, descriptors)


TABLE = Table(
    backend="Triton",
    committed=COMMITTED,
    key=Key,
    config=Config,
    check=check,
    fits=fits,
    distance=distance,
    candidates=candidates,
)
