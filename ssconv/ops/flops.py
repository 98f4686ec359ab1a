"""Operation counts of the ops for torch.utils.flop_counter.FlopCounterMode: two for each multiply-add.

The formulas get shapes in place of tensors. They are registered when the first layer is made, not at import: PyTorch's
counter imports Triton, which takes longer than ssconv itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch

Shape = Sequence[int]


def _multiply_adds(images: int, positions: Shape, weights: Sequence[Shape]) -> int:
    return 2 * images * math.prod(positions) * sum(math.prod(w) for w in weights)


def _forward(x, weights, bias, in_scale, out_scale, noise, branches, stride, valid, transposed, *rest, out_shape):
    return _multiply_adds(x[0], (x if transposed else out_shape[0])[2:], weights)


def _input_grad(g, weights, in_scale, branches, stride, valid, transposed, size, *rest, out_shape):
    return _multiply_adds(g[0], (out_shape if transposed else g)[2:], weights)


def _weight_grad(g, x, in_scale, branches, stride, valid, transposed, *rest, out_shape):
    return _multiply_adds(x[0], (x if transposed else g)[2:], out_shape)


@functools.cache
def register() -> None:
    """Makes FlopCounterMode count the convolutions of the ops."""
    from torch.utils.flop_counter import register_flop_formula

    ops = torch.ops.ssconv
    formulas: dict[Any, Any] = {
        ops.forward: _forward, ops.input_grad: _input_grad, ops.weight_grad: _weight_grad,
    }  # fmt: skip
    for op, formula in formulas.items():
        register_flop_formula(op)(formula)
