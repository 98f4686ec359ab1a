"""Fixtures of the tests that need compiled programs: each is built once for all test processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import cuda_faults, cute, emulated, forked
from tests.support.forked import Server


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder that build(folder) fills, in the first test process that asks for it."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            build(folder)
            (folder / "built").touch()
    return folder


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator's module as the sources are."""
    try:
        emulated.compiler()
    except FileNotFoundError:
        pytest.skip("needs a C++ compiler")
    return built_once(tmp_path_factory, "emulator", cuda_faults.build) / "emulated.so"


@pytest.fixture(scope="session")
def cute_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of tests/csrc/cute."""
    try:
        emulated.compiler(), cute.cute_headers(), cute.cuda_headers()
    except FileNotFoundError as error:
        pytest.skip(f"needs {error}")
    return built_once(tmp_path_factory, "cute", lambda folder: cute.compile_programs(cute.NAMES, folder))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with forked.server(tmp_path_factory.mktemp("checks") / "log") as running:
        yield running
