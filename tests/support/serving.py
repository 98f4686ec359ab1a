"""Chooses what the CUDA backend computes with in a test: families of kernels, and configurations of sm_80's."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssconv.backend import families
from ssconv.backend.cuda import conv
from ssconv.backend.cuda.table import TABLE, Config, Key


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Lets these families alone serve, and those of sm_80 what they cannot."""
    before = os.environ.get(families.SWITCH)
    os.environ[families.SWITCH] = ",".join((*names, "sm80_conv", "sm80_wgrad"))
    try:
        yield
    finally:
        del os.environ[families.SWITCH]
        if before is not None:
            os.environ[families.SWITCH] = before


def configure(rows: dict[Key, Config]) -> None:
    """Makes a table that of sm_80's kernels from now on."""
    with tempfile.TemporaryDirectory() as folder:
        table = dataclasses.replace(TABLE, committed=Path(folder, "table.json"))
        table.write(table.committed, rows)
        _ = table._rows  # read before the file goes
    conv.TABLE = table
