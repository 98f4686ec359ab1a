"""Which tile, warps and stages the Triton kernels run with: a table per architecture and shape class, and the search.

`table.json`, beside this file, is what is committed; `tuning` says what comes before it and how a search is
asked for. The file of this machine is named by SSCONV_TRITON_TABLE.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssconv.backend.tuning import ARITHMETIC, BRANCHES, COLUMNS, Table, check_value, column_class

COMMITTED = Path(__file__).with_name("table.json")
KERNELS = ("product", "weights")
# Cards of one generation share a table. Those without much shared memory (8.6, 8.9, 12.0) share sm_80's.
FAMILIES = {8: 80, 9: 90, 10: 100, 12: 80}


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by. architecture: compute capability, such as 90. branches: computed together.
    columns: output channels of a branch, rounded up to a class. describable: tensor descriptors can read the
    tensors."""

    kernel: str
    architecture: int
    arithmetic: str
    branches: int
    columns: int
    describable: bool

    @classmethod
    def of(cls, kernel: str, architecture: int, arithmetic: str, branches: int, columns: int, describable: bool) -> Key:
        family = FAMILIES.get(architecture // 10, architecture)
        return cls(kernel, family, arithmetic, branches, column_class(columns), describable)


@dataclass(frozen=True)
class Config:
    """voxels: of a tile's box. columns: output channels of a branch. depth: channels per step ("product"), or the other
    channels of the tile ("weights"). descriptors: whether tensor descriptors load the tiles."""

    voxels: int
    columns: int
    depth: int
    warps: int
    stages: int
    descriptors: bool = False


def check(key: Key, config: Config) -> None:
    """Raises ValueError for a row that cannot be."""
    check_value("kernel", key.kernel, KERNELS)
    check_value("arithmetic", key.arithmetic, ARITHMETIC)
    check_value("branches", key.branches, BRANCHES)
    check_value("columns", key.columns, COLUMNS)
    for name, least in (("voxels", 16), ("columns", 16), ("depth", 16), ("warps", 1)):
        value = getattr(config, name)
        if not isinstance(value, int) or value < least or value & (value - 1):
            raise ValueError(f"config {name}: expected a power of two of at least {least}; got {value!r}")
    if config.descriptors and not key.describable:
        raise ValueError(f"config descriptors: expected false where describable is; got {key}")


def fits(have: Key, wanted: Key) -> bool:
    same = ("kernel", "arithmetic", "branches")
    return all(getattr(have, n) == getattr(wanted, n) for n in same) and have.describable <= wanted.describable


def distance(have: Key, wanted: Key) -> tuple[int, ...]:
    """The nearest architecture that is not newer, descriptors where they can serve, the nearest class of columns."""
    newer, narrower = have.architecture > wanted.architecture, have.columns < wanted.columns
    apart = abs(have.architecture - wanted.architecture), abs(have.columns - wanted.columns)
    return newer, apart[0], not have.describable, narrower, apart[1]


def candidates(key: Key) -> Iterator[Config]:
    """What a search tries: tiles whose sums fit into the registers of their warps."""
    wide = key.arithmetic == "16bit"
    depths = {"16bit": (32, 64), "tf32": (16, 32), "ieee": (16,)}[key.arithmetic]
    if key.kernel == "weights":
        depths = (16, 32, 64, 128) if wide else (16, 32, 64)
    tiles = itertools.product((32, 64, 128), COLUMNS, depths, (4, 8), (2, 3, 4), (False, True))
    for voxels, columns, depth, warps, stages, descriptors in tiles:
        sums = depth * columns if key.kernel == "weights" else voxels * columns * key.branches
        if columns > max(16, key.columns) or not 8 <= sums // (32 * warps) <= 128:
            continue
        if descriptors and not (key.describable and key.architecture >= 90):
            continue
        yield Config(voxels, columns, depth, warps, stages, descriptors)


TABLE = Table(
    name="triton_table",
    backend="Triton",
    committed=COMMITTED,
    variable="SSCONV_TRITON_TABLE",
    key=Key,
    config=Config,
    check=check,
    fits=fits,
    distance=distance,
    candidates=candidates,
    too_much=("OutOfResources", "PTXASError"),
)
