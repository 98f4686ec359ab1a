"""Which tile, warps and stages the Triton kernels run with: a table per architecture and shape class, and the search.

`triton_table.json`, beside this file, is what is committed. With SSCONV_AUTOTUNE=1 every shape class is searched at its
first call, on that call's own tensors, and what won is saved to the table of this machine (SSCONV_TRITON_TABLE, or
ssconv/triton_table.json in the user's cache folder), which from then on comes before the committed one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).with_name("triton_table.json")
KERNELS = ("product", "weights")
ARITHMETIC = ("16bit", "tf32", "ieee")
COLUMNS = (16, 32, 64, 128)  # classes of a branch's output channels; the last one has all beyond
BRANCHES = (1, 2, 4)
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
        group = next((c for c in COLUMNS if columns <= c), COLUMNS[-1])
        return cls(kernel, FAMILIES.get(architecture // 10, architecture), arithmetic, branches, group, describable)


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


# --------------------------------------------------------------------------------------------------------- the files


def machine_table() -> Path:
    """Where a search on this machine saves, and what is read before the committed table."""
    if named := os.environ.get("SSCONV_TRITON_TABLE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssconv" / "triton_table.json"


def _row(entry: Any) -> tuple[Key, Config]:
    """One entry of a file."""
    if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
        raise ValueError(f"expected the names of a key and config; got {entry!r}")
    try:
        key, config = Key(**{n: v for n, v in entry.items() if n != "config"}), Config(**entry["config"])
    except TypeError as error:
        raise ValueError(f"{error}; got {entry!r}") from None
    for name, value, allowed in (
        ("kernel", key.kernel, KERNELS),
        ("arithmetic", key.arithmetic, ARITHMETIC),
        ("branches", key.branches, BRANCHES),
        ("columns", key.columns, COLUMNS),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}; got {value!r}")
    for name, least in (("voxels", 16), ("columns", 16), ("depth", 16), ("warps", 1)):
        value = getattr(config, name)
        if not isinstance(value, int) or value < least or value & (value - 1):
            raise ValueError(f"config {name}: expected a power of two of at least {least}; got {value!r}")
    if config.descriptors and not key.describable:
        raise ValueError(f"config descriptors: expected false where describable is; got {entry!r}")
    return key, config


def read(path: Path) -> dict[Key, Config]:
    """The table in a file.

    Raises:
        ValueError: it is not such a table; the message names the file, the entry and what was expected.
    """
    number = 0
    try:
        entries = json.loads(path.read_text())
        if not isinstance(entries, list):
            raise ValueError(f"expected a list of entries; got {type(entries).__name__}")
        table = {}
        for entry in entries:
            number += 1
            key, config = _row(entry)
            table[key] = config
    except ValueError as error:
        raise ValueError(
            f"{path}: entry {number}: not a table of Triton configurations: {error}; repair or delete the file"
        ) from None
    return table


def write(path: Path, table: dict[Key, Config]) -> None:
    """Saves a table in one step: a reader never sees half of it."""
    rows = sorted(table.items(), key=lambda row: dataclasses.astuple(row[0]))
    lines = [json.dumps(dataclasses.asdict(key) | {"config": dataclasses.asdict(config)}) for key, config in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        file.write("[\n" + ",\n".join(lines) + "\n]\n")
    os.replace(file.name, path)


# ---------------------------------------------------------------------------------------------------------- the choice


@functools.cache
def _tables(machine: Path) -> tuple[dict[Key, Config], dict[Key, Config]]:
    """This machine's table and the committed one."""
    return (read(machine) if machine.exists() else {}), read(COMMITTED)


def lookup(key: Key) -> Config:
    """The configuration for a shape class: this machine's own, else the committed one of the nearest architecture that
    is not newer and the nearest class of columns, with descriptors only where they can serve.

    Raises:
        LookupError: neither table has one.
    """
    own, committed = _tables(machine_table())
    if key in own:
        return own[key]
    fitting = [
        k
        for k in committed
        if (k.kernel, k.arithmetic, k.branches) == (key.kernel, key.arithmetic, key.branches)
        and k.describable <= key.describable
    ]
    if not fitting:
        raise LookupError(f"triton_table: no configuration for {key}")

    def distance(k: Key) -> tuple[int, ...]:
        """How far from what was asked for, what matters most first."""
        newer, narrower = k.architecture > key.architecture, k.columns < key.columns
        return newer, abs(k.architecture - key.architecture), not k.describable, narrower, abs(k.columns - key.columns)

    return committed[min(fitting, key=distance)]


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


def choose(key: Key, run: Callable[[Config], None], seconds: Callable[[Callable[[], None]], float]) -> Config:
    """The configuration to run a call with; with SSCONV_AUTOTUNE=1 the fastest of `candidates`, which is saved.

    run: the call with a configuration. seconds: how long a function takes. A candidate that the GPU has no room for is
    passed over.
    """
    if os.environ.get("SSCONV_AUTOTUNE", "0") != "1":
        return lookup(key)
    path = machine_table()
    own = _tables(path)[0]
    if key not in own:
        times = {}
        for config in candidates(key):
            try:
                run(config)
            except Exception as error:
                if type(error).__name__ not in ("OutOfResources", "PTXASError"):
                    raise
                continue
            times[config] = seconds(functools.partial(run, config))
        if not times:
            raise LookupError(f"triton_table: no candidate runs for {key}")
        own[key] = min(times, key=times.__getitem__)
        saved = read(path) if path.exists() else {}  # another process may have saved since
        write(path, saved | own)
    return own[key]
