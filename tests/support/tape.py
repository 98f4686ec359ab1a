"""A stand-in for CUDA graphs on a CPU: records operations as PyTorch dispatches them and repeats them on the same
tensors. As in a graph, everything that the host decided is fixed by the recording: numbers, shapes, branches, tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Values read by the host, shapes that depend on data, random numbers (whose state is not the recording's), and tensors
# made of Python numbers: these are copied from the host's memory.
READS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "nonzero_static", "masked_select", "lift_fresh"}
READS |= {"unique_consecutive", "_unique", "_unique2", "unique_dim", "bincount", "histc", "repeat_interleave"}
RANDOM = {"rand", "randn", "rand_like", "randn_like", "randint", "randperm", "normal_", "uniform_", "random_"}
RANDOM |= {"bernoulli", "bernoulli_", "multinomial", "normal", "native_dropout", "randint_like", "exponential_"}


class HostDecides(AssertionError):
    """An operation that a graph cannot hold, or would hold with the value of the recording."""


def refuse(func: Any, args: tuple[Any, ...]) -> None:
    """Raises HostDecides for an operation of `READS` or `RANDOM`, or an index by a mask."""
    name = func._schema.name.split("::")[1]
    masked = name.startswith("index") and any(
        isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2])
    )
    if name in READS or name in RANDOM or masked:
        raise HostDecides(f"{func} within a segment")


class Tape(TorchDispatchMode):
    """Records the operations under it, to run them again in place."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse(func, args)
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    def run(self) -> None:
        """Runs every operation again and writes its results into the tensors that it returned when it was recorded."""
        tensors = [t for op in self.operations for t in tree_leaves(op[1:]) if isinstance(t, Tensor)]
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(tensors)):  # as a GPU: unseen
            for func, args, kwargs, found in self.operations:
                returns = func._schema.returns
                results = zip(tree_leaves(func(*args, **kwargs)), tree_leaves(found), strict=True)
                for i, (result, recorded) in enumerate(results):
                    if isinstance(result, Tensor) and returns[min(i, len(returns) - 1)].alias_info is None:
                        recorded.copy_(result)

    def forget(self) -> None:
        """Fills everything that it made with NaN, as another graph in the same memory may overwrite it."""
        for func, _, _, found in self.operations:
            for result, returned in zip(tree_leaves(found), func._schema.returns):
                if isinstance(result, Tensor) and returned.alias_info is None and result.is_floating_point():
                    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(result):
                        result.fill_(torch.nan)


class TapeRecorder:
    """`ssgan.training.cuda_graphs.Recorder` on a CPU. As with a capture, outputs hold no values before a replay."""

    def __init__(self) -> None:
        self.warmed = self.recordings = 0
        self.tapes: list[Tape] = []

    def warm(self, segment: Callable[..., Any], inputs: Iterable[Any]) -> Any:
        self.warmed += 1
        return segment(*inputs)

    def record(self, segment: Callable[..., Any], inputs: Iterable[Any]) -> tuple[Any, Callable[[], None]]:
        self.recordings += 1
        tape = Tape()
        self.tapes.append(tape)
        with tape:
            outputs = segment(*inputs)
        tape.forget()
        return outputs, tape.run
