"""Checks of clusters on the emulator: of its primitives, of the faults that it must notice, and of conv_sm90 in
clusters of two blocks, which load weights for each other. Run by cuda_checks.py."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch

import ssconv
from ssconv.backend.cuda import conv
from tests.support import parity_checks, serving, sm90_checks
from tests.support.sm90_checks import CONVOLUTIONS, SEEDS, address, aligned, must_fail, on_sm90
from tests.support.strategies import tensors_of

ROUNDS = 3


@contextmanager
def clusters(blocks: int) -> Iterator[None]:
    """Lets conv_sm90 serve in clusters of so many blocks, within `on_sm90` or around it."""
    family = {1: "sm90_im2col", 2: "sm90_cluster"}[blocks]
    sm90_checks.FAMILIES.append((family, "sm90_wgrad"))
    try:
        with serving.only(*sm90_checks.FAMILIES[-1]):
            yield
    finally:
        sm90_checks.FAMILIES.pop()


def share(module: ModuleType, rounds: int = ROUNDS, faults: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The bytes that both blocks have written, (2, rounds, 512), and those expected."""
    source = aligned((rounds, 512), np.uint8)
    source[...] = np.random.default_rng(1).integers(0, 256, source.shape)
    out = aligned((2, rounds, 512), np.uint8)
    module.set_ranges([(address(source), source.nbytes, False), (address(out), out.nbytes, True)])
    module.share(address(source), rounds, address(out), faults)
    return out, np.stack([source, source])


def primitives(module: ModuleType) -> None:
    """Bytes copied to both blocks, arrivals at the other's mbarrier, barriers of the cluster; and faults in their
    use."""
    for seed in range(4 * SEEDS):
        module.set_seed(seed)
        for faults in ("", "barrier at the end"):
            found, expected = share(module, faults=faults)
            assert np.array_equal(found, expected)
    for seed in range(SEEDS):
        module.set_seed(seed)
        faulty = functools.partial(share, module)
        must_fail(faulty, "deadlock", faults="no arrival at the other's")
        must_fail(faulty, "deadlock", faults="to itself")
        must_fail(faulty, "blocks that the cluster does not have", faults="to a third")
        must_fail(faulty, "a block that the cluster does not have", faults="of a third")
        must_fail(
            faulty,
            "no barrier of the cluster since",
            "another block that was never",
            faults="no barrier of the cluster",
        )
        must_fail(faulty, "no fence made known", faults="no fence")
        must_fail(faulty, "more arrivals", "deadlock", "asynchronous cop", "not waited", faults="one block's arrivals")
        must_fail(faulty, "threads which are done never reach", "deadlock", faults="a barrier for some")
        must_fail(faulty, "a launch that no card takes", faults="half a cluster")
    # Faults that depend on which thread runs first are noticed in some order.
    noticed(module, "ended", faults="no wait at the end")
    noticed(module, "asynchronous cop", "not waited", "more arrivals", "more bytes", "deadlock", faults="never waits")
    noticed(module, "asynchronous cop", "not waited", faults="freed before it is read")
    noticed(module, "two asynchronous copies at once", "other bytes", faults="the same half")


def noticed(module: ModuleType, *texts: str, faults: str) -> None:
    said = []
    for seed in range(16):
        module.set_seed(seed)
        try:
            found, expected = share(module, faults=faults)
            if not np.array_equal(found, expected):
                raise RuntimeError("other bytes than were there")
        except RuntimeError as error:
            said.append(str(error))
            assert any(text in said[-1] for text in texts), f"expected one of {texts}; got: {said[-1]}"
    assert said, f"{faults}: noticed in none of 16 orders"


def convolutions() -> None:
    """Every instantiation, every box, outputs, first and second derivatives."""
    with clusters(2):
        sm90_checks.convolutions()


def agree() -> None:
    """Clusters give the same bits as single blocks: odd numbers of tiles, one tile, several column tiles, parities."""
    cases = {
        name: CONVOLUTIONS[name] for name in ("split-depth", "dense", "acs4", "many-samples")
    } | parity_checks.LAYERS
    for name, case in cases.items():
        tensors = tensors_of(case, torch.bfloat16)
        found = []
        for blocks, count in ((1, 5), (2, 2), (2, 4), (2, 7), (2, 64)):
            with on_sm90() as used, clusters(blocks):
                conv.multiprocessors = lambda device, count=count: count
                found.append(case.call(ssconv, tensors, "cuda"))
            assert used, f"sm_80's kernel ran for {name}"
        assert all(torch.equal(found[0], other) for other in found[1:]), f"{name}: clusters give other bits"


def adjoints() -> None:
    with clusters(2):
        parity_checks.adjoints()


def quick() -> None:
    """Checks enough to notice a planted fault."""
    with clusters(2):
        for name in ("same-222", "dense-valid", "many-samples"):
            parity_checks.check(parity_checks.ADJOINTS[name], name)
        sm90_checks.quick()
