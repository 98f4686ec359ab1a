"""How the ops `torch.ops.ssconv.*` are registered, and what their results must be like.

torch.library, torch.compile and torch.export know tensors, numbers and lists of integers. The rest of ssconv passes a
`Geometry` and an `Epilogue`. `plain` and `Op.grouped` turn the one form into the other, and nothing else does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssconv.spec import Epilogue, Geometry

# The arguments of a schema that stand for a grouped value. Exported programs hold them: they do not change.
GROUPS = {
    "Geometry geometry": "int[] branches, int[] stride, bool valid, bool transposed",
    "Epilogue epilogue": "int groups, float slope, float gain, float? clamp",
}


def plain(args: Sequence[Any]) -> list[Any]:
    """Arguments of an op as its schema has them. Those that are so already stay as they are."""
    result: list[Any] = []
    for arg in args:
        if isinstance(arg, Geometry):
            branches = [extent for branch in arg.branches for extent in branch]
            result += [branches, list(arg.stride), arg.padding == "valid", arg.transposed]
        elif isinstance(arg, Epilogue):
            result += [arg.groups, arg.negative_slope, arg.gain, arg.clamp]
        else:
            result.append(arg)
    return result


def _geometry(branches: Sequence[int], stride: Sequence[int], valid: bool, transposed: bool) -> Geometry:
    extents = tuple(zip(branches[::3], branches[1::3], branches[2::3], strict=True))
    return Geometry(extents, (stride[0], stride[1], stride[2]), "valid" if valid else "same", transposed)


class Op:
    """A registered op.

    name: short, such as "forward". arguments: as torch.library.define has them, but with "Geometry geometry" and
    "Epilogue epilogue" for grouped values; tensors come first. result: its type in the schema.
    """

    def __init__(self, name: str, arguments: str, result: str) -> None:
        kinds = [argument.split()[0] for argument in arguments.split(", ")]
        makers = {"Geometry": _geometry, "Epilogue": Epilogue}
        self._groups = [(i, makers[kind]) for i, kind in enumerate(kinds) if kind in makers]
        for group, schema in GROUPS.items():
            arguments = arguments.replace(group, schema)
        self.name = f"ssconv::{name}"
        torch.library.define(self.name, f"({arguments}) -> {result}")
        self.packet = getattr(torch.ops.ssconv, name)

    def grouped(self, args: Sequence[Any]) -> list[Any]:
        """The inverse of `plain`: arguments as the schema has them -> with a Geometry and an Epilogue."""
        args = list(args)
        for position, make in self._groups:  # each takes four
            args[position : position + 4] = [make(*args[position : position + 4])]
        return args

    def kernel(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Registers the implementation, for every device. It takes grouped arguments and plain tensors, and no autocast
        acts within."""

        def run(*args: Any) -> Any:
            args = tuple(map(_without_subclass, args))
            device = args[0].device.type
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return compute(*self.grouped(args))
            return compute(*self.grouped(args))

        torch.library.impl(self.name, "CompositeExplicitAutograd", functools.wraps(compute)(run))
        return compute

    def fake(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Registers what gives shapes, dtypes and layouts without values. It takes grouped arguments."""
        torch.library.register_fake(self.name, lambda *args: compute(*self.grouped(args)))
        return compute


def _without_subclass(arg: Any) -> Any:
    """A tensor, or a list of them, as plain tensors. A subclass such as MONAI's MetaTensor has methods of its own; its
    `__torch_function__` makes the op's results its own again, as with PyTorch's operators."""
    if isinstance(arg, Tensor):
        return arg if type(arg) is Tensor else arg.as_subclass(Tensor)
    return [_without_subclass(a) for a in arg] if isinstance(arg, list) else arg


def own_result(t: Tensor, dtype: torch.dtype, *others: Tensor) -> Tensor:
    """t in `dtype` and channels_last_3d, in memory that it shares with none of `others`, as an op's result must be."""
    t = t.to(dtype).contiguous(memory_format=torch.channels_last_3d)
    shares = any(t.untyped_storage().data_ptr() == o.untyped_storage().data_ptr() for o in others)
    return t.clone(memory_format=torch.preserve_format) if shares else t


def input_gradient(gx: Tensor | None, contiguous: bool) -> Tensor | None:
    """Makes the gradient of a contiguous input contiguous. With another layout than its tensor, a gradient makes
    torch's InstanceNorm give wrong gradients for a batch of one (torch 2.13)."""
    return gx.contiguous() if gx is not None and contiguous else gx


def empty_result(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An uninitialised tensor (N, C, D, H, W) with the dtype and device of `like`, channels_last_3d."""
    return like.new_empty(tuple(shape)).contiguous(memory_format=torch.channels_last_3d)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over voxels are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def any_needed(need: bool | Sequence[bool]) -> bool:
    """Whether a gradient is wanted of an argument, which may be a list of tensors."""
    return any(need) if isinstance(need, (list, tuple)) else bool(need)
