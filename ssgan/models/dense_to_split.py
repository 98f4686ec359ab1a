"""Starts a split 2D network from a trained dense one of the same widths: it keeps the weights that the split has.

A dense 3x3 convolution W (O, I, 1, 3, 3) becomes S branches that shuffle (`ssconv.convert.branch_weights`):

    W_s[j, i] = f[j*S + s] * W[j*S + s, s*I/S + i], restricted to the middle taps that the branch's kernel has

so channel j*S + s of the result is dense channel j*S + s restricted to the input channels s*I/S .. (s+1)*I/S - 1 of
branch s, and f restores the sum of squares of that channel's weights, hence its variance for white input. The taps are
chosen in the plane, before the weight is inflated along depth: (3, 3, 3) and (1, 3, 3) keep all nine taps of a slice,
(3, 1, 3) of "acs4" the middle row, (3, 3, 1) the middle column. Biases, styles, noise and 1x1 layers are copied.

A modulated convolution is demodulated by the norm of the kept weights, so f cancels there and depth_gain stays 1 until
inflation. "separable" keeps the whole dense convolution in its first stage and starts its second, (3, 1, 1) along
depth, as the identity: in 2D it computes the same as the dense network.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssconv.convert import branch_weights
from ssgan.models.layers import BranchWeights
from ssgan.utils.errors import UserError


def select_weights(dense: nn.Module, split: nn.Module) -> dict[str, str]:
    """Loads a dense 2D network into a 2D one of another architecture and the same widths, in place.

    Returns the name of every tensor that is not copied unchanged, with "selected" or "identity".

    Raises:
        UserError: the networks do not fit together; the message names the tensor.
    """
    source = dict(dense.named_parameters()) | dict(dense.named_buffers())
    dense_layers = {name: module for name, module in dense.named_modules() if isinstance(module, BranchWeights)}
    actions: dict[str, str] = {}
    values: dict[str, Tensor] = {}
    for prefix, module in split.named_modules():
        if not isinstance(module, BranchWeights):
            continue
        before = dense_layers.get(prefix)
        if before is None:  # the second of the separable stages
            chosen, action = [_identity(module)], "identity"
        elif len(before.weights) > 1:
            raise UserError(f"{prefix}: expected a dense network to select from; it has {len(before.weights)} branches")
        elif before.kernels == module.kernels:
            continue
        else:
            effective = before.weights[0].detach() * before.gains[0]
            chosen, action = branch_weights(effective, module.kernels), "selected"
        for i, (weight, gain) in enumerate(zip(chosen, module.gains, strict=True)):
            values[f"{prefix}.weights.{i}"] = weight / gain
            actions[f"{prefix}.weights.{i}"] = action
        values[f"{prefix}.depth_gain"] = torch.ones_like(module.depth_gain)
        actions[f"{prefix}.depth_gain"] = action
    with torch.no_grad():
        for name, tensor in (dict(split.named_parameters()) | dict(split.named_buffers())).items():
            value = values.get(name, source.get(name))
            if value is None or value.shape != tensor.shape:
                got = None if value is None else tuple(value.shape)
                raise UserError(f"{name}: expected {tuple(tensor.shape)} in the dense network; got {got}")
            tensor.copy_(value)
    return actions


def _identity(module: BranchWeights) -> Tensor:
    """The identity as a weight (C, C, 1, 1, 1)."""
    if len(module.kernels) != 1 or module.kernels[0] != (1, 1, 1):
        raise UserError(f"a second stage of kernels {module.kernels} has no counterpart in a dense network")
    return torch.eye(len(module.weights[0])).to(module.weights[0])[:, :, None, None, None]
