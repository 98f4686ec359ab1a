"""`SplitShuffleConv3d`, the operator as a module that can replace nn.Conv3d."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ssconv.functional import split_shuffle_conv3d
from ssconv.ops import flops
from ssconv.spec import (
    IDENTITY,
    KERNEL_SETS,
    Activation,
    KernelSet,
    Padding,
    check_branches,
    check_defaults,
    check_epilogue,
    check_geometry,
)

torch.fx.wrap(
    "split_shuffle_conv3d"
)  # symbolic tracing keeps the call whole: it asks for shapes, which a Proxy has not


class BranchWeights(nn.ParameterList):
    """The weights of a layer. Calling it returns them as a list.

    A call runs its forward pre-hooks. torch.nn.utils.prune, and weight_norm and spectral_norm of torch.nn.utils,
    compute the weights in such hooks, before each forward.
    """

    __call__ = nn.Module.__call__

    def forward(self) -> list[Tensor]:
        return list(self)


class SplitShuffleConv3d(nn.Module):
    """Channel-split 3D convolution with channel shuffle; (N, Cin, D, H, W) -> (N, Cout, D', H', W').

    With the default ((3, 3, 3), (1, 3, 3)) half of the channels see depth and the other half stay in plane: a third of
    the weights of a dense 3x3x3 convolution.

    Args:
        in_channels, out_channels: multiples of the number of branches.
        kernel_sizes: extents (kd, kh, kw) per branch, odd, or None for the identity; or the name of a set of
            `ssconv.KERNEL_SETS` ("dense", "grouped", "split_depth", "acs4").
        stride, padding, transposed, shuffle: as in `ssconv.split_shuffle_conv3d`.
        bias: whether to add a learned bias.
        activation: "linear" or "lrelu" (slope 0.2), fused into the convolution.
        dilation, groups, padding_mode: keywords of nn.Conv3d, for code that passes them on. Only the defaults.
        device, dtype: of the parameters.

    Attributes:
        weights: ParameterList, one (Cout/S, Cin/S, kd, kh, kw) per branch that has a weight, initialised as in
            nn.Conv3d. Parametrizations and pruning take it and the number of a branch:
            `torch.nn.utils.parametrizations.weight_norm(conv.weights, "0")`.
        bias: (Cout,) or None.

    Under torch.autocast it computes in the autocast dtype, as nn.Conv3d does.

    Raises:
        ValueError: the message names the argument, what was expected, what was given and what to do.

    Example:
        >>> conv = SplitShuffleConv3d(16, 32, stride=2, activation="lrelu")
        >>> conv(torch.randn(1, 16, 9, 12, 10)).shape
        torch.Size([1, 32, 5, 6, 5])
    """

    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_sizes: KernelSet | Sequence[Sequence[int] | None] = ((3, 3, 3), (1, 3, 3)),
        *,
        stride: int | Sequence[int] = 1,
        padding: Padding = "same",
        transposed: bool = False,
        shuffle: bool = True,
        bias: bool = True,
        activation: Activation = "linear",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        flops.register()
        check_defaults(dilation, groups, padding_mode)
        if isinstance(kernel_sizes, str):
            if kernel_sizes not in KERNEL_SETS:
                raise ValueError(
                    f"kernel_sizes: expected extents or one of {', '.join(KERNEL_SETS)}; got {kernel_sizes!r}"
                )
            kernel_sizes = KERNEL_SETS[kernel_sizes]
        branches = check_branches(kernel_sizes)
        self.stride = check_geometry(branches, in_channels, out_channels, stride, padding, transposed)
        check_epilogue(activation, 0.2, None)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_sizes = tuple(None if b == IDENTITY else b for b in branches)
        self.padding, self.transposed, self.shuffle, self.activation = padding, transposed, shuffle, activation
        per_branch = (out_channels // len(branches), in_channels // len(branches))
        self.weights = BranchWeights(
            nn.Parameter(torch.empty(*per_branch, *k, device=device, dtype=dtype)) for k in self.kernel_sizes if k
        )
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises each branch as nn.Conv3d does: uniform within 1/sqrt(fan_in)."""
        bound = 0.0
        for weight in self.weights:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            bound = max(bound, 1 / math.sqrt(weight[0].numel()))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool, missing: list[str],
        unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        """As nn.Module's; a convolution's own weight is an error, also with strict=False, which would drop it."""
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)
        if f"{prefix}weight" in state_dict:
            errors.append(
                f"{prefix}weight is the weight of the nn.Conv3d that a SplitShuffleConv3d has replaced; expected "
                f"{prefix}weights.0 and further; load ssconv.convert_state_dict(state_dict, model) instead"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, Cin, D, H, W) -> (N, Cout, D', H', W'); as nn.Conv3d it also takes a sample without N."""
        if isinstance(x, Tensor) and x.dim() == 4:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        remaining = iter(self.weights())
        return split_shuffle_conv3d(
            x,
            [None if k is None else next(remaining) for k in self.kernel_sizes],
            self.bias,
            stride=self.stride,
            padding=self.padding,
            transposed=self.transposed,
            shuffle=self.shuffle,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_sizes={self.kernel_sizes}"]
        defaults = {
            "stride": (1, 1, 1),
            "padding": "same",
            "transposed": False,
            "shuffle": True,
            "activation": "linear",
        }
        parts += [f"{n}={getattr(self, n)!r}" for n, v in defaults.items() if getattr(self, n) != v]
        return ", ".join(parts + ([] if self.bias is not None else ["bias=False"]))
