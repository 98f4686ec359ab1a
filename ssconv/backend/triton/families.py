"""The Triton backend's families of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssconv.backend.families import CONVOLUTION, EPILOGUE, UPFIRDN, WGRAD, Family
from ssconv.backend.gpu import too_large
from ssconv.backend.triton import launch
from ssconv.backend.triton.table import TABLE


def _configs(operation: str, args: tuple[Any, ...]) -> Iterator[Any]:
    """The configurations that can compute a call, the default first."""
    if operation == "convolve":
        x, weights, _, _, _, _, geometry, settings, _ = args
        size = geometry.output_size(x.shape[2:])
        channels = weights[0].shape[0] if len(weights) else x.shape[1] // len(geometry.branches)
        key = launch.conv_key(x, geometry, settings.groups, geometry.transposed, channels)
    elif operation == "input_grad":
        g, weights, _, geometry, size = args
        channels = weights[0].shape[1] if len(weights) else g.shape[1] // len(geometry.branches)
        key = launch.conv_key(g, geometry, 1, not geometry.transposed, channels)
    elif operation == "weight_grad":
        g, x, _, geometry = args
        low, high = (x, g) if geometry.transposed else (g, x)
        size, key = low.shape[2:], launch.wgrad_key(low, high, geometry)
    else:
        size, key = args[0].shape[2:], None
    if not too_large(size):
        yield from [None] if key is None else TABLE.configs(key)


def _family(name: str, operations: tuple[str, ...]) -> Family:
    def run(operation: str, args: tuple[Any, ...], config: Any) -> Any:
        options = {} if config is None else {"config": config}
        return getattr(launch, operation)(*args, **options)

    return Family(name, "triton", operations, _configs, run)


FAMILIES = (
    _family("triton_conv", CONVOLUTION),
    _family("triton_wgrad", WGRAD),
    _family("triton_epilogue", EPILOGUE),
    _family("triton_upfirdn", UPFIRDN),
)
