"""The CUDA kernels without a GPU: their sources run on the emulator, also with planted faults.

Each check of cuda_checks.py runs in a process of its own: the emulator stands in for the GPU of a whole process.
"""

from __future__ import annotations

import pytest

from tests.support import cuda_faults
from tests.support.cuda_faults import FAULTS


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
