"""The CUDA kernels without a GPU: their sources run on the emulator, also with planted faults.

Each check of cuda_checks.py runs in a process of its own: the emulator stands in for the GPU of a whole process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cuda_faults, emulated, forked
from tests.support.cuda_faults import FAULTS
from tests.support.forked import Server


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emulator's module as the sources are, built once for all test processes."""
    try:
        emulated.compiler()
    except FileNotFoundError:
        pytest.skip("needs a C++ compiler")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    module = shared / "emulator" / "emulated.so"
    with (shared / "emulator.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return module if module.exists() else cuda_faults.build(module.parent)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with forked.server(tmp_path_factory.mktemp("checks") / "log") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    "checks",
    [
        ("halo_quick",), ("halo_convolutions",),
        ("every_kernel",), ("drawn_convolutions",), ("named", "tf32"), ("tiles", "orders"), ("configurations",),
        ("drawn_filters", "filters", "second_derivatives"),
        ("accepted", "surroundings", "kinks", "batches", "halves"), ("quick", "quick_filters"),
        ("sm90_primitives", "sm90_quick"), ("sm90_convolutions",), ("parities", "parity_layers", "parity_quick"),
        ("clusters", "cluster_quick"), ("cluster_convolutions",), ("proving",),
    ],
    ids="-".join,
)  # fmt: skip
def test_on_the_emulator(checks, emulator, server):
    done = server.run("cuda_checks.py", str(emulator), *checks)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[f.what.replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(fault, tmp_path, emulator, server):
    done = cuda_faults.check(fault, tmp_path / "fault", emulator, server)
    assert done.returncode == 3, f"{fault.what}: exit code {done.returncode}; {done.stderr[-1500:]}"
