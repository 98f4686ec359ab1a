"""What is timed: the layers, and everything that can compute one of them.

Every contender is one 3x3x3 layer with bias and leaky ReLU (slope 0.2) over (N, C, E, E, E) float32, C in, C out. A
dense layer has every weight; "grouped" and "split_depth" split the channels into two branches and shuffle them
afterwards. They compute different functions of different cost: that difference is what the operator is for, so the
figure of merit is time against the best dense layer in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2


@dataclass(frozen=True)
class Layer:
    """One layer's extents: (batch, channels, edge, edge, edge) in and out."""

    batch: int
    channels: int
    edge: int

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.channels}x{self.edge}^3"

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.channels, self.edge, self.edge, self.edge)


LAYERS = (Layer(2, 32, 32), Layer(2, 64, 32), Layer(4, 128, 16), Layer(8, 256, 8), Layer(1, 16, 64), Layer(1, 64, 64))

# Kernel set -> extents per branch. Written out here too: the check must not take them from what it checks.
KERNELS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "dense": ((3, 3, 3),),
    "grouped": ((3, 3, 3), (3, 3, 3)),
    "split_depth": ((3, 3, 3), (1, 3, 3)),
}


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    kernels: a key of KERNELS. implementation: who computes. forward: x -> y. parameters: the leaves whose gradients
    count, bias last. branches: from tensors shaped like parameters without the bias to one (Cout/S, Cin/S, kd, kh, kw)
    per branch. memory_format: of the input. bias_before_shuffle: the bias is numbered as the branches are, not as the
    output is.
    """

    kernels: str
    implementation: str
    forward: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    branches: Callable[[Sequence[Tensor]], list[Tensor]]
    memory_format: torch.memory_format
    bias_before_shuffle: bool = False

    @property
    def name(self) -> str:
        return f"{self.kernels}/{self.implementation}"

    def expand(self, tensors: Sequence[Tensor]) -> Tensor:
        """Weights, or their gradients, as one dense (Cout, Cin, 3, 3, 3) with explicit zeros, rows in output order."""
        branches = self.branches(tensors)
        count = len(branches)
        rows, columns = branches[0].shape[:2]
        dense = branches[0].new_zeros(rows * count, columns * count, 3, 3, 3)
        for s, branch in enumerate(branches):
            middle = (slice((3 - k) // 2, (3 + k) // 2) for k in branch.shape[2:])
            dense[(slice(s, None, count), slice(s * columns, (s + 1) * columns), *middle)] = branch
        return dense

    def expand_bias(self, bias: Tensor) -> Tensor:
        """The bias, or its gradient, (Cout,) in output order."""
        count = len(KERNELS[self.kernels])
        return bias.view(count, -1).t().flatten() if self.bias_before_shuffle else bias


def layer_input(layer: Layer, contender: Contender, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x and the upstream gradient of y, both (N, C, E, E, E), standard normal, in the contender's layout."""
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (torch.randn(layer.shape, generator=generator) for _ in range(2))
    return tuple(t.contiguous(memory_format=contender.memory_format) for t in (x, upstream))  # type: ignore[return-value]


def contenders(layer: Layer) -> list[Contender]:
    """Everything that computes the layer here: PyTorch's own modules and every available backend of ssconv."""
    return [
        *(_torch_conv(layer, "dense", name) for name in ("contiguous", "channels_last")),
        *(_torch_conv(layer, "grouped", name) for name in ("contiguous", "channels_last")),
        *_ssconv(layer),
    ]


def _torch_conv(layer: Layer, kernels: str, layout: str) -> Contender:
    """nn.Conv3d, followed by the shuffle that PyTorch offers where there are groups."""
    groups = len(KERNELS[kernels])
    memory_format = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}[layout]
    torch.manual_seed(1)
    conv = nn.Conv3d(layer.channels, layer.channels, 3, padding=1, groups=groups).to(memory_format=memory_format)

    def forward(x: Tensor) -> Tensor:
        z = conv(x)
        if groups > 1:
            z = F.channel_shuffle(z, groups)
        return F.leaky_relu(z, SLOPE)

    return Contender(
        kernels,
        f"nn.Conv3d {layout}",
        forward,
        (conv.weight, conv.bias),
        lambda tensors: list(tensors[0].chunk(groups)),
        memory_format,
        bias_before_shuffle=groups > 1,
    )


def _ssconv(layer: Layer) -> list[Contender]:
    import ssconv

    found = []
    for backend, state in ssconv.backends().items():
        if state != "available":
            continue
        for kernels, extents in KERNELS.items():
            torch.manual_seed(1)
            conv = ssconv.SplitShuffleConv3d(layer.channels, layer.channels, extents)
            weights, bias = tuple(conv.weights), conv.bias

            def forward(
                x: Tensor, weights: tuple[Tensor, ...] = weights, bias: Tensor = bias, backend: str = backend
            ) -> Tensor:
                return ssconv.split_shuffle_conv3d(
                    x, weights, bias, activation="lrelu", negative_slope=SLOPE, backend=backend
                )

            found.append(
                Contender(
                    kernels, f"ssconv {backend}", forward, (*weights, bias), lambda t: list(t), torch.channels_last_3d
                )
            )
    return found
