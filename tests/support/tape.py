"""A stand-in for CUDA graphs on a CPU: operations are recorded as PyTorch dispatches them, and repeated on the same
tensors. So whatever the host put into a recording stays in it: numbers, shapes, branches, tensors made on the way.
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
    """An operation that a graph cannot hold, or not as it is meant."""


def refuse(func: Any, args: tuple[Any, ...]) -> None:
    """Raises HostDecides for an operation of `READS` or `RANDOM`, or an index by a mask."""
    name = func._schema.name.split("::")[1]
    masked = name.startswith("index") and any(
        isinstance(t, Tensor) and t.dtype in (torch.bool, torch.uint8) for t in tree_leaves(args[1:2])
    )
    if name in READS or name in RANDOM or masked:
        raise HostDecides(f"{func} within a piece")


class Tape(TorchDispatchMode):
    """What ran under it, to be run again in place."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse(func, args)
        found = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, found))
        return found

    def run(self) -> None:
        """Every operation again, its results into the tensors that it gave when it was recorded."""
        known = [t for op in self.operations for t in tree_leaves(op[1:]) if isinstance(t, Tensor)]
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(known)):  # as a GPU: unseen
            for func, args, kwargs, found in self.operations:
                returns = func._schema.returns
                results = zip(tree_leaves(func(*args, **kwargs)), tree_leaves(found), strict=True)
                for i, (result, place) in enumerate(results):
                    if isinstance(result, Tensor) and returns[min(i, len(returns) - 1)].alias_info is None:
                        place.copy_(result)

    def forget(self) -> None:
        """Spoils everything that it made, as another graph in the same memory may."""
        for func, _, _, found in self.operations:
            for result, returned in zip(tree_leaves(found), func._schema.returns):
                if isinstance(result, Tensor) and returned.alias_info is None and result.is_floating_point():
                    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(result):
                        result.fill_(torch.nan)


class TapeRecorder:
    """`ssgan.training.cuda_graphs.Recorder` on a CPU. As with a capture, no value is there before the first replay."""

    def __init__(self) -> None:
        self.warmed = self.recordings = 0
        self.tapes: list[Tape] = []

    def warm(self, work: Callable[..., Any], inputs: Iterable[Tensor | None]) -> Any:
        self.warmed += 1
        return work(*inputs)

    def record(self, work: Callable[..., Any], inputs: Iterable[Tensor | None]) -> tuple[Any, Callable[[], None]]:
        self.recordings += 1
        tape = Tape()
        self.tapes.append(tape)
        with tape:
            outputs = work(*inputs)
        tape.forget()
        return outputs, tape.run
