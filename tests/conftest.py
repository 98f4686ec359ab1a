"""What every test runs under: poisoned uninitialised memory, one thread, the same hypothesis draws everywhere."""

from __future__ import annotations

import functools

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests first: at the end of a run on several processes only short ones are left to share."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory():
    """torch.empty gives NaN (and the largest integers), so that reading what nobody wrote cannot pass."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    was = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads()
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)  # tensors are tiny: threads cost more than they bring
    assert torch.empty(3).isnan().all()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(was)
    torch.utils.deterministic.fill_uninitialized_memory = before


@pytest.fixture
def graphs_on_a_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs without a GPU, after a single warm-up."""
    from ssgan.training import accumulation, cuda_graphs
    from tests.support.tape import TapeRecorder

    monkeypatch.setattr(accumulation, "Graphs", functools.partial(cuda_graphs.Graphs, warmup=1))
    monkeypatch.setattr(accumulation, "check", lambda device, processes: None)
    monkeypatch.setattr(accumulation, "CudaRecorder", lambda device: TapeRecorder())
