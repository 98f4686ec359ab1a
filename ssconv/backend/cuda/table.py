"""The configurations of sm_80's kernels (block sizes, stages, splits) by architecture and shape class.

`table.json`, beside this file, is the committed table. The names of keys and values are those of the file: kernel
"product" is conv_sm80, "weights" wgrad_sm80; "singly" means that x is read element by element.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssconv.backend.tuning import ARITHMETIC, BRANCHES, CHANNELS, Table, channel_class, check_value

KERNELS = ("product", "weights")
WIDTHS = (32, 64, 128)
STAGES = (2, 3, 4)
PROGRAMS = (128, 256, 512, 1024, 2048)
CACHED_COLUMNS = 64  # so few columns leave the tensor cores waiting for the L2 cache, unless L1 helps [estimate]
SINGLY_WIDTHS = (32, 64)  # of the instantiations that read x element by element
# Cards by the shared memory of a block: 8.0 and 8.7 have 163 KiB, 8.6, 8.9 and 12.x have 99, 9.0 and 10.x have 227.
FAMILIES = {80: 80, 86: 86, 87: 80, 89: 86}
GENERATIONS = {8: 86, 9: 90, 10: 90, 11: 90, 12: 86}
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Key:
    """The class of calls that share a configuration. architecture: the family of cards, 80, 86 or 90. branches: of a
    block. columns: output channels of a branch, or for "weights" its rows, rounded up to a class. singly: x is read
    element by element."""

    kernel: str
    architecture: int
    arithmetic: str
    branches: int
    columns: int
    singly: bool = False

    @classmethod
    def of(cls, kernel: str, architecture: int, arithmetic: str, branches: int, columns: int, singly: bool) -> Key:
        return cls(kernel, family(architecture), arithmetic, branches, channel_class(columns), singly)


@dataclass(frozen=True)
class Config:
    """width: columns of a block, of all its branches ("product"), or its rows ("weights"). stages: of the pipeline in
    shared memory. programs: about how many blocks a weight gradient is split into; 0 for "product". cached: x is loaded
    through the L1 cache, where the next taps find most of it; false for "weights" and where x is read element by
    element."""

    width: int
    stages: int
    programs: int = 0
    cached: bool = False


def family(architecture: int) -> int:
    """The family of a compute capability such as 89. An unknown one counts as having the least shared memory."""
    return FAMILIES.get(architecture, GENERATIONS.get(architecture // 10, 86))


def stage_bytes(key: Key, width: int) -> int:
    """Shared memory of one stage: 128 voxels and the columns of one branch with 128 bytes of K each; or of a weight
    gradient, 64 bytes of voxels for each of its rows and 128 columns."""
    if key.kernel == "product":
        return (128 + width // key.branches) * 128
    return 64 * (width + 128)


def check(key: Key, config: Config) -> None:
    """Raises ValueError for a row that no kernel has been compiled for, or that does not fit into its card's shared
    memory."""
    check_value("kernel", key.kernel, KERNELS)
    check_value("architecture", key.architecture, tuple(SHARED))
    check_value("arithmetic", key.arithmetic, ARITHMETIC)
    check_value("branches", key.branches, BRANCHES if key.kernel == "product" else (1,))
    check_value("columns", key.columns, CHANNELS)
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
    """Whether a configuration can serve another class: also on a card with more shared memory, so 8.6's serve
    everywhere and 8.0's on 9.0 too."""
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
    """The configurations that a search tries: every instantiation that fits."""
    programs = PROGRAMS if key.kernel == "weights" else (0,)
    for width, stages, split, cached in itertools.product(WIDTHS, STAGES, programs, (False, True)):
        config = Config(width, stages, split, cached)
        try:
            check(key, config)
        except ValueError:
            continue
        yield config


TABLE = Table(
    backend="CUDA",
    committed=Path(__file__).with_name("table.json"),
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
    for architecture, arithmetic, columns in itertools.product(SHARED, ARITHMETIC, CHANNELS):
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
