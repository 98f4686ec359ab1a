"""The registered ops under torch.func: grad, jvp and vmap, in any nesting.

torch.func.grad rejects what torch.library registers as an op's autograd, and forward-mode AD drops the tangent at such
an op. So an eager call that wants a derivative goes through a torch.autograd.Function, which has a rule for each
transform (and costs less per call). torch.compile and torch.export see the op itself.

PyTorch raises errors of its own for torch.func.grad within torch.compile, and for is_grads_batched=True and
vectorize=True of torch.autograd, whose older vmap takes no op with a list of tensors. Outside of torch.compile,
torch.func.vmap, jacrev and jacfwd do the same work.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ssconv.ops.registration import Op, plain


def transformable(
    op: Op,
    setup: Callable[..., None],
    vjp: Callable[..., tuple],
    jvp: Callable[..., Any],
    per_sample: Callable[..., Sequence[int]],
) -> Callable[..., Any]:
    """Registers an op's derivatives and its batching rule; returns the function to call it by.

    The function and all rules take grouped arguments; PyTorch's transforms see plain ones (see `registration`).

    Args:
        op: the registered op, whose tensors come before its other arguments.
        setup: (ctx, args, output) saves what vjp reads.
        vjp: (ctx, need, *cotangents) -> a gradient or None for each of the tensors; need tells which are wanted.
        jvp: (args, output, tangents) -> tangents of the output; those that come are None where they are zero.
        per_sample: the arguments -> positions of those with one row per sample, if the result has one row per sample
            too; no positions if the op sums over samples.
    """
    packet = op.packet

    def rows(*args):
        return per_sample(*op.grouped(args))

    def call(*args):
        args = plain(args)
        flat = _flat(args)
        tensors = [t for t in flat if isinstance(t, Tensor)]
        if not torch.compiler.is_compiling():
            grad = torch.is_grad_enabled()
            routed = any((grad and t.requires_grad) or _transformed(t) for t in tensors)
            return Routed.apply(*flat) if routed else packet(*args)
        if any(_is_dual(t) for t in tensors):
            raise RuntimeError(
                f"{op.name}: forward-mode AD (torch.func.jvp, jacfwd, hessian) is not traced by torch.compile; "
                "leave this function out of the compiled region, or compile without fullgraph=True"
            )
        return packet(*args)

    class Rules(torch.autograd.Function):
        @staticmethod
        def forward(*flat):
            output = packet(*_nested(flat, flat[1]))
            return tuple(output) if isinstance(output, list) else output

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup(ctx, op.grouped(_nested(inputs, inputs[1])), output)
            ctx.save_for_forward(*(t for t in inputs if isinstance(t, Tensor)), *_several(output))
            ctx.constants = [None if isinstance(t, Tensor) else (t,) for t in inputs]
            ctx.single = isinstance(output, Tensor)

        @staticmethod
        def backward(ctx, *cotangents):
            second = ctx.constants[1]
            need = _nested(ctx.needs_input_grad, None if second is None else second[0])
            grads = _flat(_for_all(vjp(ctx, need, *cotangents), len(need)))
            return tuple(g if isinstance(g, Tensor) else None for g in grads)

        @staticmethod
        def jvp(ctx, *tangents):
            saved = iter(ctx.saved_tensors)
            inputs = [next(saved) if c is None else c[0] for c in ctx.constants]
            output = next(saved) if ctx.single else tuple(saved)
            return jvp(op.grouped(_nested(inputs, inputs[1])), output, _nested(tangents, inputs[1]))

        @staticmethod
        def vmap(info, in_dims, *flat):
            return _batched(call, rows, info.batch_size, in_dims, flat)

    Rules.forward.__signature__ = inspect.signature(Rules.forward)  # else Function.apply derives it at every call
    Routed = type(op.name.replace("::", "_"), (Rules,), {})  # the name that grad_fn and errors of autograd show

    def registered_vjp(ctx, *cotangents):
        if isinstance(cotangents[0], (list, tuple)):
            (cotangents,) = cotangents
        need = ctx.needs_input_grad
        return _for_all(vjp(ctx, need, *cotangents), len(need))

    def registered_setup(ctx, inputs, output):
        setup(ctx, op.grouped(inputs), output)

    def registered_vmap(info, in_dims, *args):
        return _batched(packet, rows, info.batch_size, _flat(in_dims), _flat(args))

    torch.library.register_autograd(op.name, registered_vjp, setup_context=registered_setup)
    torch.library.register_vmap(op.name, registered_vmap)
    return call


def _for_all(grads: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    """Gradients of the tensors, which come first -> of all arguments."""
    return grads + (None,) * (count - len(grads))


def _is_dual(t: Tensor) -> bool:
    return forward_ad.unpack_dual(t).tangent is not None


def _transformed(t: Tensor) -> bool:
    """Whether a transform of torch.func, or forward-mode AD by itself, tracks this tensor."""
    return torch.func.debug_unwrap(t, recurse=False) is not t or _is_dual(t)


class Plus(torch.autograd.Function):
    """a + b for the rules of jvp. PyTorch runs these with forward-mode AD switched off; an outer jvp sees only the
    autograd.Functions in them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a, b):
        return a + b

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g, g

    @staticmethod
    def jvp(ctx, a, b):
        return Plus.apply(a, b)


def plus(*terms: Tensor | None) -> Tensor | None:
    """The sum of the terms, where None is zero; None if all are."""
    given = [t for t in terms if t is not None]
    return functools.reduce(Plus.apply, given) if given else None


# An autograd.Function takes no list of tensors. If an op has one, it is the second argument: its tensors go to the end,
# and its length becomes the second argument. The positions of the other arguments stay.


def _flat(args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of an op -> of its autograd.Function."""
    if isinstance(args[1], (list, tuple)):
        return (args[0], len(args[1]), *args[2:], *args[1])
    return tuple(args)


def _nested(flat: Sequence[Any], second: Any) -> tuple[Any, ...]:
    """The inverse of `_flat`, also for gradients or tangents; `second` is the second of the flat arguments."""
    if not isinstance(second, int):
        return tuple(flat)
    end = len(flat) - second
    return (flat[0], list(flat[end:]), *flat[2:end])


def _several(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, (list, tuple)) else (output,)


def _batched(
    call: Callable[..., Any],
    per_sample: Callable[..., Sequence[int]],
    size: int,
    dims: Sequence[int | None],
    flat: Sequence[Any],
) -> tuple[Any, Any]:
    """The rule of vmap: returns results and the positions of vmap's dimension in them.

    If only per-sample arguments have vmap's dimension, one call with a batch of vmap's size times the samples does all.
    If weights have it (an ensemble), or the op sums over samples (per-sample gradients), there is one call per element.

    Results are contiguous, as those of PyTorch's own rules: GroupNorm rejects channels_last_3d under vmap.
    """
    # For lists of numbers, and for the length of the list of tensors, PyTorch's dims have other forms; none is batched.
    dims = [dim if isinstance(t, Tensor) else None for t, dim in zip(flat, dims, strict=True)]
    positions = per_sample(*_nested(flat, flat[1]))
    if all(i in positions for i, dim in enumerate(dims) if dim is not None):
        samples = flat[0].shape[0 if dims[0] != 0 else 1]
        joined = [
            _joined(t, dim, size, samples) if i in positions and t is not None else t
            for i, (t, dim) in enumerate(zip(flat, dims, strict=True))
        ]
        output = call(*_nested(joined, flat[1]))
        # A result that was not requested is an empty vector.
        result = [t if t.dim() == 1 else t.unflatten(0, (size, samples)).contiguous() for t in _several(output)]
        out_dims = [None if t.dim() == 1 else 0 for t in result]
    else:
        # For an empty ensemble one call on zeros gives the shapes.
        elements = [_element(flat, dims, i) for i in range(size)] or [_element(flat, dims, None)]
        outputs = [call(*_nested(element, flat[1])) for element in elements]
        output = outputs[0]
        result = [torch.stack(ts)[:size].contiguous() for ts in zip(*(_several(o) for o in outputs), strict=True)]
        out_dims = [0] * len(result)
    if isinstance(output, Tensor):
        return result[0], out_dims[0]
    return type(output)(result), type(output)(out_dims)


def _joined(t: Tensor, dim: int | None, size: int, samples: int) -> Tensor:
    """(samples, ...) with or without vmap's dimension -> (size * samples, ...).

    Without it, a single row that all samples share stays a single row.
    """
    if dim is None:
        return t if t.shape[0] != samples else t.expand(size, *t.shape).flatten(0, 1)
    t = t.movedim(dim, 0)
    return t.expand(size, samples, *t.shape[2:]).flatten(0, 1)


def _element(flat: Sequence[Any], dims: Sequence[int | None], index: int | None) -> list[Any]:
    """The arguments of one element along vmap's dimension; zeros for None."""

    def pick(t: Tensor, dim: int) -> Tensor:
        return t.new_zeros(t.movedim(dim, 0).shape[1:]) if index is None else t.select(dim, index)

    return [t if dim is None else pick(t, dim) for t, dim in zip(flat, dims, strict=True)]
