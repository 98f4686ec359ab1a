"""One run in several processes (torchrun): who writes, what is summed, and which images of a batch each one has.

A step is the same for any number of processes: random draws are those of the whole batch and each process takes its
images' rows; gradients and losses are summed over the processes, each weighted by its share of the batch; whole
minibatch-std groups stay together. What differs from one process is the order of additions.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ssgan.utils.errors import ConfigError, UserError

BUCKET = 2**23  # numbers summed in one call: 32 MiB of float32
TIMEOUT = 1800.0  # seconds to wait for the others; the main process measures and draws while they wait


class DistributedError(UserError):
    """Another process of the run has ended or does not answer."""


class Group:
    """The processes of a run. Every method is collective: all processes call it, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def main(self) -> bool:
        """True in the one process that writes."""
        return self.rank == 0

    def _call(self, what: str, *tensors: Tensor) -> None:
        began = time.monotonic()
        try:
            dist.all_reduce(*tensors) if what == "sum" else dist.broadcast(*tensors, src=0)
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
                flat = torch.cat([t.reshape(-1) for t in bucket])
                self._call("sum", flat)
                for t, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    t.copy_(part.view(t.shape))
                bucket, held = [], 0

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        votes = torch.tensor([float(flag)], device=device)
        self.sum([votes])
        return bool(votes > 0)

    def tell(self, text: str, device: torch.device) -> str:
        """The main process's text, at most 4096 bytes; also a barrier."""
        if self.size == 1:
            return text
        line = torch.zeros(4096, dtype=torch.uint8, device=device)
        if self.main:
            data = text.encode()[:4096]
            line[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device) if data else 0
        self._call("tell", line)
        return bytes(line.cpu().tolist()).rstrip(b"\0").decode()

    def check_together(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        """Raises DistributedError where the processes' weights are not the same bits."""
        if self.size == 1:
            return
        sums = torch.stack([t.detach().double().sum() for t in tensors if t.numel()])
        own = torch.tensor([float(sums.sum()), float(sums.abs().sum())], dtype=torch.float64, device=device)
        first = own.clone()
        self._call("tell", first)
        if self.any(not torch.equal(own, first), device):
            raise DistributedError(
                "the processes' weights have drifted apart, so nothing was saved; are all on the same kind of device "
                "and release of PyTorch?"
            )


SINGLE = Group()


def join(device: torch.device, timeout: float = TIMEOUT) -> Group:
    """The group that torchrun's environment names, by NCCL on GPUs and gloo elsewhere; SINGLE without torchrun."""
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
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def std_group(batch: int, limit: int) -> int:
    """Samples in a minibatch-std group of a batch: the largest divisor that does not exceed `limit`."""
    return next(g for g in range(min(limit, batch), 0, -1) if batch % g == 0)


def split_batch(batch: int, limit: int, parts: int) -> list[list[int]]:
    """Which samples of a batch each part has, so that every minibatch-std group is whole in one part.

    With G groups, group m holds the samples m, m + G, m + 2 G, .. (`layers.MinibatchStd`); a part has consecutive
    groups, in the order in which the layer finds the same groups again.

    Raises:
        ConfigError: there are more parts than groups.
    """
    size = std_group(batch, limit)
    groups = batch // size
    if groups < parts:
        raise ConfigError(
            f"a batch of {batch} has {groups} minibatch-std groups of {size}, too few for {parts} parts (processes "
            f"times --accumulate); give a batch of a multiple of {limit * parts}, or fewer parts"
        )
    bounds = [groups * k // parts for k in range(parts + 1)]
    return [[i * groups + m for i in range(size) for m in range(low, high)] for low, high in itertools.pairwise(bounds)]


def split_evenly(count: int, parts: int) -> list[list[int]]:
    """Consecutive shares of `count` samples; a part may be empty."""
    bounds = [count * k // parts for k in range(parts + 1)]
    return [list(range(low, high)) for low, high in itertools.pairwise(bounds)]
