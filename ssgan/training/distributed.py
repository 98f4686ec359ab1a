"""Data-parallel training (torchrun): collective operations, and how a batch is split over processes.

A step is the same for any number of processes: each process draws random numbers for the whole batch and takes the rows
of its own samples; gradients and losses are weighted by the fraction of the batch and summed over the processes; every
minibatch-std group stays in one process. Only the order of additions depends on the number of processes.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ssgan.utils.errors import ConfigError, UserError

BUCKET = 2**23  # elements summed in one call: 32 MiB of float32
TIMEOUT = 1800.0  # seconds to wait for other processes; they wait while the main one measures and draws snapshots


class DistributedError(UserError):
    """Another process of the run has ended or does not answer."""


class Group:
    """The processes of a run. Every method is collective: all processes call it, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """True in rank 0, the only process that writes files."""
        return self.rank == 0

    def _call(self, collective: Callable[[Tensor], object], tensor: Tensor) -> None:
        began = time.monotonic()
        try:
            collective(tensor)
        except (RuntimeError, dist.DistError) as error:
            waited = time.monotonic() - began
            raise DistributedError(
                f"process {self.rank} of {self.size}: another process of this run has ended or does not answer "
                f"(waited {waited:.0f} s: {str(error).splitlines()[0][:200]}); checkpoints are intact, start the same "
                "command again to go on, with any number of processes"
            ) from error

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Sums each tensor over the processes, in place; all have the dtype and device of the first."""
        if self.size == 1 or not tensors:
            return
        bucket: list[Tensor] = []
        held = 0
        for i, tensor in enumerate(tensors):
            bucket.append(tensor)
            held += tensor.numel()
            if held >= BUCKET or i == len(tensors) - 1:
                if len(bucket) == 1 and tensor.is_contiguous():
                    self._call(dist.all_reduce, tensor)
                else:
                    flat = torch.cat([t.reshape(-1) for t in bucket])
                    self._call(dist.all_reduce, flat)
                    for t, summed in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                        t.copy_(summed.view(t.shape))
                bucket, held = [], 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Returns whether the flag is set in any process."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=device)
        self.sum([votes])
        return bool(votes > 0)

    def broadcast(self, text: str, device: torch.device) -> str:
        """Returns the main process's text, at most 4096 bytes, in every process."""
        if self.size == 1:
            return text
        line = torch.zeros(4096, dtype=torch.uint8, device=device)
        if self.main:
            data = text.encode()[:4096]
            line[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device) if data else 0
        self._call(_broadcast, line)
        return bytes(line.cpu().tolist()).rstrip(b"\0").decode()

    def barrier(self, device: torch.device) -> None:
        """Waits until every process has come here."""
        self.broadcast("", device)

    def check_together(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Raises DistributedError unless all processes have the same weights, bit for bit."""
        if self.size == 1:
            return
        sums = torch.stack([t.detach().double().sum() for t in tensors if t.numel()])
        own = torch.tensor([float(sums.sum()), float(sums.abs().sum())], dtype=torch.float64, device=device)
        first = own.clone()
        self._call(_broadcast, first)
        if self.any(not torch.equal(own, first), device):
            raise DistributedError(
                "the processes' weights have drifted apart, so nothing was saved; are all on the same kind of device "
                "and release of PyTorch?"
            )


SINGLE = Group()


def _broadcast(tensor: Tensor) -> None:
    dist.broadcast(tensor, src=0)


def join(device: torch.device, timeout: float = TIMEOUT) -> Group:
    """Joins the processes of torchrun, by NCCL on GPUs and gloo elsewhere. Returns SINGLE without torchrun."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return SINGLE
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"the processes of torchrun do not find each other: {error}") from error
    return Group(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Ends what `join` began."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def std_group(batch: int, limit: int) -> int:
    """Size of a batch's minibatch-std groups: the largest divisor of the batch that does not exceed `limit`."""
    return next(g for g in range(min(limit, batch), 0, -1) if batch % g == 0)


def split_batch(batch: int, limit: int, count: int) -> list[list[int]]:
    """Splits the samples of a batch into `count` micro-batches that hold whole minibatch-std groups.

    With G groups, group m holds the samples m, m + G, m + 2 G, .. (`layers.MinibatchStd`). A micro-batch has
    consecutive groups, its samples ordered so that the layer finds the same groups in it.

    Raises:
        ConfigError: there are more micro-batches than groups.
    """
    size = std_group(batch, limit)
    groups = batch // size
    if groups < count:
        raise ConfigError(
            f"a batch of {batch} has {groups} minibatch-std groups of {size}, too few for {count} micro-batches "
            f"(processes times --accumulate); give a batch that is a multiple of {limit * count}, or fewer of them"
        )
    bounds = [groups * k // count for k in range(count + 1)]
    return [[i * groups + m for i in range(size) for m in range(low, high)] for low, high in itertools.pairwise(bounds)]


def split_evenly(batch: int, count: int) -> list[list[int]]:
    """Splits the samples of a batch into `count` consecutive micro-batches, which may be empty."""
    bounds = [batch * k // count for k in range(count + 1)]
    return [list(range(low, high)) for low, high in itertools.pairwise(bounds)]
