"""The CUDA backend's families of kernels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ssconv.backend.cuda import conv, launch
from ssconv.backend.families import CONVOLUTION, EPILOGUE, UPFIRDN, WGRAD, Family
from ssconv.backend.gpu import too_large


def _conv_family(name: str) -> Family:
    calls = {"convolve": conv.forward, "input_grad": conv.dgrad}

    def run(operation: str, args: tuple[Any, ...], config: Any) -> Any:
        y, z = calls[operation](*args).run((name, config))
        return (y, z) if operation == "convolve" else y

    return Family(name, "cuda", CONVOLUTION, lambda operation, args: calls[operation](*args).configs(name), run)


def _wgrad_family(name: str) -> Family:
    def configs(operation: str, args: tuple[Any, ...]) -> Iterator[Any]:
        g, x, _, geometry = args
        return conv.wgrad(g, x, geometry).configs(name)

    def run(operation: str, args: tuple[Any, ...], config: Any) -> Any:
        return conv.weight_grad(*args, chosen=(name, config))

    return Family(name, "cuda", WGRAD, configs, run)


def _only_family(name: str, operations: tuple[str, ...]) -> Family:
    """The family of operations that the backend computes in one way."""

    def configs(operation: str, args: tuple[Any, ...]) -> Iterator[Any]:
        if not too_large(args[0].shape[2:]):
            yield None

    return Family(name, "cuda", operations, configs, lambda operation, args, _: getattr(launch, operation)(*args))


FAMILIES = (
    *map(_conv_family, conv.CONV_FAMILIES),
    *map(_wgrad_family, conv.WGRAD_FAMILIES),
    _only_family("cuda_epilogue", EPILOGUE),
    _only_family("cuda_upfirdn", UPFIRDN),
)
