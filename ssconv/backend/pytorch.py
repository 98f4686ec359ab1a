"""PyTorch's own operators as a rival of the kernels on a GPU: convolutions, concatenation, shuffle and activation as a
user would write them, in the dtype of the tensors.

It computes the same as `reference`, but 16-bit tensors stay 16-bit between the operators.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssconv.backend import reference
from ssconv.backend.families import CONVOLUTION, EPILOGUE, UPFIRDN, WGRAD, Family
from ssconv.spec import Epilogue


class Composition(NamedTuple):
    """contiguous: convolutions read and write (N, C, D, H, W) in this order, not channels_last_3d. grouped: branches of
    equal extents are one grouped convolution."""

    contiguous: bool = False
    grouped: bool = False


def configs(operation: str, args: tuple[Any, ...]) -> Iterator[Composition]:
    """The ways to compute a call."""
    yield Composition()
    if operation in CONVOLUTION + WGRAD:
        yield Composition(contiguous=True)
        geometry = {"convolve": 6, "input_grad": 3, "weight_grad": 3}[operation]
        if reference.can_group(args[geometry]):
            yield Composition(grouped=True)
            yield Composition(contiguous=True, grouped=True)


def run(operation: str, args: tuple[Any, ...], config: Composition) -> Any:
    """Computes a call."""
    from ssconv.backend import choice  # which has this family among its own

    dtype = args[0].dtype

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype)

    def laid_out(t: Tensor) -> Tensor:
        kind = torch.contiguous_format if config.contiguous else torch.channels_last_3d
        return t.contiguous(memory_format=kind)

    if operation == "convolve":
        x, weights, bias, in_scale, out_scale, noise, geometry, settings, save_z = args
        z = reference.forward(laid_out(x), weights, in_scale, geometry, cast, config.grouped)
        plain = bias is None and out_scale is None and noise is None and settings == Epilogue()
        y = z if plain else choice.epilogue(z, bias, out_scale, noise, settings)
        return y, z if save_z else None
    if operation == "input_grad":
        g, *rest = args
        return reference.input_grad(laid_out(g), *rest, cast, config.grouped)
    if operation == "weight_grad":
        g, x, *rest = args
        return reference.weight_grad(laid_out(g), laid_out(x), *rest, cast, config.grouped)
    return getattr(reference, operation)(*args, cast)


FAMILY = Family("pytorch", "pytorch", CONVOLUTION + WGRAD + EPILOGUE + UPFIRDN, configs, run)
