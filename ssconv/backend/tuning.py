"""Tables of kernel configurations by shape class: files, the nearest class, the other candidates.

A backend commits one table beside its code. Its configurations are what a family of kernels begins with; `choice`
measures them and others where it may.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
Config = TypeVar("Config")

CHANNELS = (16, 32, 64, 128)  # classes of a branch's output channels; the last one has all beyond
BRANCHES = (1, 2, 4)  # computed together
ARITHMETIC = ("16bit", "tf32", "ieee")


def channel_class(channels: int) -> int:
    """The class of a number of output channels of a branch: rounded up to one of CHANNELS, at most the last."""
    return next((c for c in CHANNELS if channels <= c), CHANNELS[-1])


def check_value(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError if the value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, allowed))}; got {value!r}")


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Generic[Key, Config]):
    """One backend's configurations. Key and Config are frozen dataclasses of numbers and words.

    backend: its name in messages. committed: the file beside the code. check: raises ValueError for an impossible row.
    fits: whether the first key's configuration can serve the second. distance: between two keys, the most important
    difference first. candidates: the configurations that can serve a key.
    """

    backend: str
    committed: Path
    key: type[Key]
    config: type[Config]
    check: Callable[[Key, Config], None]
    fits: Callable[[Key, Key], bool]
    distance: Callable[[Key, Key], tuple[int, ...]]
    candidates: Callable[[Key], Iterator[Config]]

    def _row(self, entry: Any) -> tuple[Key, Config]:
        """One entry of a file as key and configuration, checked."""
        if not isinstance(entry, dict) or not isinstance(entry.get("config"), dict):
            raise ValueError(f"expected the names of a key and config; got {entry!r}")
        try:
            key = self.key(**{n: v for n, v in entry.items() if n != "config"})
            config = self.config(**entry["config"])
        except TypeError as error:
            raise ValueError(f"{error}; got {entry!r}") from None
        self.check(key, config)
        return key, config

    def read(self, path: Path) -> dict[Key, Config]:
        """Reads a table from a file.

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
                key, config = self._row(entry)
                table[key] = config
        except ValueError as error:
            raise ValueError(
                f"{path}: entry {number}: not a table of {self.backend} configurations: {error}; "
                "repair or delete the file"
            ) from None
        return table

    def write(self, path: Path, table: dict[Key, Config]) -> None:
        """Saves a table in one step: a reader never sees half of it."""
        rows = sorted(table.items(), key=lambda row: dataclasses.astuple(row[0]))  # type: ignore[call-overload]
        lines = [
            json.dumps(dataclasses.asdict(key) | {"config": dataclasses.asdict(config)})  # type: ignore[call-overload]
            for key, config in rows
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
            file.write("[\n" + ",\n".join(lines) + "\n]\n")
        os.replace(file.name, path)

    @functools.cached_property
    def _rows(self) -> dict[Key, Config]:
        return self.read(self.committed)

    @functools.cache  # noqa: B019 - tables live as long as the process
    def lookup(self, key: Key) -> Config:
        """The committed configuration of the nearest shape class that fits.

        Raises:
            LookupError: there is none.
        """
        fitting = [k for k in self._rows if self.fits(k, key)]
        if not fitting:
            raise LookupError(f"{self.committed}: no configuration for {key}")
        return self._rows[min(fitting, key=lambda k: self.distance(k, key))]

    def configs(self, key: Key) -> Iterator[Config]:
        """The committed configuration of a shape class, then the other candidates."""
        default = self.lookup(key)
        yield default
        yield from (config for config in self.candidates(key) if config != default)
