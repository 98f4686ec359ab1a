"""Runs every test with poisoned uninitialised memory, on one thread, with the same hypothesis draws."""

from __future__ import annotations

import functools
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for child processes

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "ssgan",
    derandomize=True,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ssgan")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's `make test &`; child processes would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs slow tests first, so that at the end of a run several processes share short ones."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory():
    """Makes torch.empty give NaN (and the largest integers), so that a read of unwritten memory shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    was = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)  # the tensors are too small for more threads to pay
    assert torch.empty(3).isnan().all()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(was)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def graphs_on_a_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays CUDA graphs without a GPU, after a single warm-up."""
    from ssgan.training import accumulation, cuda_graphs
    from tests.support.tape import TapeRecorder

    monkeypatch.setattr(accumulation, "Graphs", functools.partial(cuda_graphs.Graphs, warmup=1))
    monkeypatch.setattr(accumulation, "check", lambda device, processes: None)
    monkeypatch.setattr(accumulation, "CudaRecorder", lambda device: TapeRecorder())
