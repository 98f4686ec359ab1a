"""Which blocks, stages and splits the CUDA kernels run with: a table per architecture and shape class, and the search.

`table.json`, beside this file, is what is committed; `tuning` says what comes before it and how a search is asked
for. The file of this machine is named by SSCONV_CUDA_TABLE.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssconv.backend.tuning import ARITHMETIC, BRANCHES, Table, check_value
from ssconv.backend.tuning import CHANNELS as COLUMNS
from ssconv.backend.tuning import channel_class as column_class

KERNELS = ("product", "weights")
WIDTHS = (32, 64, 128)
STAGES = (2, 3, 4)
PROGRAMS = (128, 256, 512, 1024, 2048)
CACHED_COLUMNS = 64  # so few columns leave the tensor cores waiting for the L2 cache, unless L1 helps [estimate]
SINGLY_WIDTHS = (32, 64)  # instantiations that read x by elements
# Cards by the shared memory of a block: 8.0 and 8.7 have 163 KiB, 8.6, 8.9 and 12.x have 99, 9.0 and 10.x have 227.
FAMILIES = {80: 80, 86: 86, 87: 80, 89: 86}
GENERATIONS = {8: 86, 9: 90, 10: 90, 11: 90, 12: 86}
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Key:
    """What a configuration is chosen by. architecture: the family of cards, 80, 86 or 90. branches: computed together.
    columns: output channels of a branch, or for "weights" its rows, rounded up to a class. singly: x is read by
    elements."""

    kernel: str
    architecture: int
    arithmetic: str
    branches: int
    columns: int
    singly: bool = False

    @classmethod
    def of(cls, kernel: str, architecture: int, arithmetic: str, branches: int, columns: int, singly: bool) -> Key:
        return cls(kernel, family(architecture), arithmetic, branches, column_class(columns), singly)


@dataclass(frozen=True)
class Config:
    """width: columns of a block, all branches together ("product"), or its rows ("weights"). stages: of the ring in
    shared memory. programs: about how many blocks a weight gradient is split into; 0 for "product". cached: x comes
    through the L1 cache, in which the next taps find most of it again; false for "weights" and elements."""

    width: int
    stages: int
    programs: int = 0
    cached: bool = False


def family(architecture: int) -> int:
    """The family of a compute capability such as 89; one that is not known yet counts as having the least memory."""
    return FAMILIES.get(architecture, GENERATIONS.get(architecture // 10, 86))


def stage_bytes(key: Key, width: int) -> int:
    """Shared memory of one stage: 128 voxels and the columns of one branch, 128 bytes each; or 64 bytes' voxels of a
    weight gradient's rows and 128 columns."""
    if key.kernel == "product":
        return (128 + width // key.branches) * 128
    return 64 * (width + 128)


def check(key: Key, config: Config) -> None:
    """Raises ValueError for a row that no kernel serves or that has no room on its card."""
    check_value("kernel", key.kernel, KERNELS)
    check_value("architecture", key.architecture, tuple(SHARED))
    check_value("arithmetic", key.arithmetic, ARITHMETIC)
    check_value("branches", key.branches, BRANCHES if key.kernel == "product" else (1,))
    check_value("columns", key.columns, COLUMNS)
    widths = SINGLY_WIDTHS if key.singly else WIDTHS
    least = 16 * key.branches if key.kernel == "product" else 32
    check_value("config width", config.width, tuple(w for w in widths if w >= least))
    check_value("config stages", config.stages, STAGES)
    if key.kernel == "weights" and not (isinstance(config.programs, int) and config.programs >= 1):
        raise ValueError(f"config programs: expected a positive number of blocks; got {config.programs!r}")
    if config.cached not in ((False, True) if key.kernel == "product" and not key.singly else (False,)):
        raise ValueError(f"config cached: expected false where x is not read in chunks; got {config.cached!r}")
    if (needed := stage_bytes(key, config.width) * config.stages) > SHARED[key.architecture]:
        raise ValueError(
            f"config stages: {config.stages} need {needed} bytes of shared memory; "
            f"{key.architecture // 10}.{key.architecture % 10} has {SHARED[key.architecture]}"
        )


def fits(have: Key, wanted: Key) -> bool:
    """A configuration of another card serves where it has room: those of 8.6 everywhere, 8.0's on 9.0 too."""
    if SHARED[have.architecture] > SHARED[wanted.architecture]:
        return False
    same = ("kernel", "arithmetic", "branches", "singly")
    return all(getattr(have, name) == getattr(wanted, name) for name in same)


def distance(have: Key, wanted: Key) -> tuple[int, ...]:
    return (
        abs(SHARED[have.architecture] - SHARED[wanted.architecture]),
        int(have.columns < wanted.columns),
        abs(have.columns - wanted.columns),
    )


def candidates(key: Key) -> Iterator[Config]:
    """What a search tries: every instantiation that has room."""
    programs = PROGRAMS if key.kernel == "weights" else (0,)
    for width, stages, split, cached in itertools.product(WIDTHS, STAGES, programs, (False, True)):
        config = Config(width, stages, split, cached)
        try:
            check(key, config)
        except ValueError:
            continue
        yield config


TABLE = Table(
    name="cuda_table",
    backend="CUDA",
    committed=Path(__file__).with_name("table.json"),
    variable="SSCONV_CUDA_TABLE",
    key=Key,
    config=Config,
    check=check,
    fits=fits,
    distance=distance,
    candidates=candidates,
)


def starting_point() -> dict[Key, Config]:
    """The committed table before any search: the narrowest block that holds a class's columns, as many stages as leave
    room for two blocks on a multiprocessor, at least two and at most four.

    python -m ssconv.backend.cuda.table writes it.
    """
    table = {}
    for architecture, arithmetic, columns in itertools.product(SHARED, ARITHMETIC, COLUMNS):
        for branches, singly in itertools.product(BRANCHES, (False, True)):
            key = Key("product", architecture, arithmetic, branches, columns, singly)
            widths = [w for w in (SINGLY_WIDTHS if singly else WIDTHS) if w >= 16 * branches]
            width = next((w for w in widths if w >= branches * columns), widths[-1])
            table[key] = Config(width, _stages(key, width), cached=not singly and columns <= CACHED_COLUMNS)
        key = Key("weights", architecture, arithmetic, 1, columns)
        width = next((w for w in WIDTHS if w >= columns), WIDTHS[-1])
        table[key] = Config(width, _stages(key, width), 512)
    return table


def _stages(key: Key, width: int) -> int:
    fit = SHARED[key.architecture] // 2 // stage_bytes(key, width)
    return max(2, min(4, fit))


if __name__ == "__main__":
    TABLE.write(TABLE.committed, starting_point())
    print(f"{len(TABLE.read(TABLE.committed))} configurations in {TABLE.committed}")
