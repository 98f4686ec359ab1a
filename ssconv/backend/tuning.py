"""Tables of kernel configurations by shape class, for any backend: files, choice, search.

A backend commits one table beside its code. With SSCONV_AUTOTUNE=1 every shape class is searched at its first call, on
that call's own tensors. The fastest configuration is saved to the table of this machine (a file in the user's cache
folder, or the one that the backend's environment variable names), which from then on comes before the committed one.
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

    name: of the file on a machine, and in messages. backend: its name in messages. committed: the table beside the
    code. variable: the environment variable that names the machine's file. check: raises ValueError for an impossible
    row. fits: whether the first key's configuration can serve the second. distance: between two keys, the most
    important difference first. candidates: the configurations that a search tries. too_much: names of the exceptions
    that say that a GPU has no room for a configuration.
    """

    name: str
    backend: str
    committed: Path
    variable: str
    key: type[Key]
    config: type[Config]
    check: Callable[[Key, Config], None]
    fits: Callable[[Key, Key], bool]
    distance: Callable[[Key, Key], tuple[int, ...]]
    candidates: Callable[[Key], Iterator[Config]]
    too_much: tuple[str, ...] = ()
    _found: dict[tuple[Path, Key], Config] = dataclasses.field(default_factory=dict)
    _files: dict[Path, dict[Key, Config]] = dataclasses.field(default_factory=dict)

    # ---------------------------------------------------------------------------------------------------------- files

    def machine_table(self) -> Path:
        """The file of this machine, which a search writes and which is read before the committed table."""
        if named := os.environ.get(self.variable):
            return Path(named)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssconv" / f"{self.name}.json"

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

    # --------------------------------------------------------------------------------------------------------- choice

    def forget(self) -> None:
        """Reads the files anew at the next call."""
        self._found.clear()
        self._files.clear()

    def _file(self, path: Path) -> dict[Key, Config]:
        """The table of a file, read once; empty if there is no file."""
        if path not in self._files:
            self._files[path] = self.read(path) if path.exists() else {}
        return self._files[path]

    def lookup(self, key: Key) -> Config:
        """The configuration for a shape class: from this machine's table, else the nearest committed one that fits.

        Raises:
            LookupError: neither table has one.
        """
        at = self.machine_table(), key
        if at not in self._found:
            own = self._file(self.machine_table())
            if key in own:
                self._found[at] = own[key]
            else:
                committed = self._file(self.committed)
                fitting = [k for k in committed if self.fits(k, key)]
                if not fitting:
                    raise LookupError(f"{self.name}: no configuration for {key}")
                self._found[at] = committed[min(fitting, key=lambda k: self.distance(k, key))]
        return self._found[at]

    def choose(self, key: Key, run: Callable[[Config], None], seconds: Callable[[Callable[[], None]], float]) -> Config:
        """The configuration to run a call with; with SSCONV_AUTOTUNE=1 the fastest of `candidates`, which is saved.

        run: makes the call with a configuration. seconds: times a function. Candidates for which the GPU has no room
        are skipped.
        """
        if os.environ.get("SSCONV_AUTOTUNE", "0") != "1":
            return self.lookup(key)
        own = self._file(self.machine_table())
        if key not in own:
            times = {}
            for config in self.candidates(key):
                try:
                    run(config)
                except Exception as error:
                    if type(error).__name__ not in self.too_much:
                        raise
                    continue
                times[config] = seconds(functools.partial(run, config))
            if not times:
                raise LookupError(f"{self.name}: no candidate runs for {key}")
            own[key] = min(times, key=times.__getitem__)
            path = self.machine_table()
            saved = self.read(path) if path.exists() else {}  # another process may have saved since
            self.write(path, saved | own)
            self._found.clear()
        return own[key]
