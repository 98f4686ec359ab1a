"""The calls by which a family of kernels proves itself, and the process that makes them.

Operands of an exact check are small integers and powers of two, so that every sum is exact in float32, and with it in
whatever way a right kernel adds: the result must be the float64 one, rounded once. Other checks have normally
distributed operands and a tolerance by arithmetic. Every call is made twice and must give the same bits; memory of
results begins as NaN.

`python -m ssconv.backend.checks` is the process: it reads its request from the command line, writes a JSON line for
every step, and ends when its input does, so that it never outlives the one that asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import math
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from ssconv.backend import reference
from ssconv.backend.families import Family
from ssconv.spec import ABSENT, IDENTITY, KERNEL_SETS, Epilogue, Geometry, Triple

ARITHMETIC = {"bf16": torch.bfloat16, "f16": torch.float16, "ieee": torch.float32, "tf32": torch.float32}
# Largest error relative to the root mean square of the exact result, of operands that are not exact.
TOLERANCE = {"bf16": 3e-2, "f16": 4e-3, "tf32": 8e-3, "ieee": 5e-5}
FAILED = 3  # exit code of a process that stops after a failed check: the GPU's state may be damaged
NO_ROOM = 4  # exit code for too little memory

SPLIT, ACS4 = KERNEL_SETS["split_depth"], KERNEL_SETS["acs4"]


class Check(NamedTuple):
    """One call. brief: it is also for kernels that are compiled at each. make: gives its arguments on a device, the
    same each time."""

    operation: str
    name: str
    arithmetic: str
    exact: bool
    brief: bool
    make: Callable[[torch.device], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Convolution:
    """Channels are a branch's, size and batch the input's. layout: "native" (channels_last_3d), "contiguous", or
    "strided" (every second row of a larger tensor). random: also with operands that are not exact."""

    branches: tuple[Triple, ...]
    cin: int
    cout: int
    size: Triple = (5, 9, 11)
    batch: int = 2
    stride: Triple = (1, 1, 1)
    padding: str = "same"
    transposed: bool = False
    shuffle: bool = True
    scaled: bool = False
    noise: bool = False
    layout: str = "native"
    random: bool = False
    only: tuple[str, ...] = tuple(ARITHMETIC)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.branches, self.stride, self.padding, self.transposed)


CONVOLUTIONS = {
    "split 64 to 64": Convolution(SPLIT, 64, 64, random=True),
    "split 32 to 32, scaled": Convolution(SPLIT, 32, 32, scaled=True, noise=True),
    "split 40 to 72, scaled": Convolution(SPLIT, 40, 72, scaled=True, random=True),
    "split 16 to 16": Convolution(SPLIT, 16, 16, size=(3, 7, 17)),
    "split 5 to 7": Convolution(SPLIT, 5, 7, scaled=True, noise=True, layout="contiguous"),
    "split 24 to 24, strided": Convolution(SPLIT, 24, 24, layout="strided"),
    "dense 1 to 32": Convolution(((3, 3, 3),), 1, 32, layout="contiguous"),
    "dense 3 to 19, stride 2": Convolution(((3, 3, 3),), 3, 19, stride=(2, 2, 2), layout="contiguous"),
    "dense 64 to 64": Convolution(((3, 3, 3),), 64, 64, scaled=True),
    "dense 128 to 128": Convolution(((3, 3, 3),), 128, 128, size=(4, 8, 8), batch=1),
    "depth only": Convolution(((3, 1, 1),), 64, 48, size=(9, 4, 5)),
    "width only": Convolution(((1, 1, 5),), 48, 64, size=(3, 4, 19)),
    "one tap": Convolution(((1, 1, 1),), 48, 64),
    "grouped 64 to 64": Convolution(((3, 3, 3),) * 2, 64, 64, batch=1),
    "grouped, unshuffled, valid": Convolution(((3, 3, 3),) * 2, 32, 64, padding="valid", shuffle=False),
    "acs4 32 to 32": Convolution(ACS4, 32, 32, scaled=True, noise=True),
    "acs4 64 to 64": Convolution(ACS4, 64, 64, size=(4, 8, 9), batch=1),
    "acs4 16 to 24": Convolution(ACS4, 16, 24, size=(3, 4, 9)),
    "split, stride 2": Convolution(SPLIT, 64, 128, size=(6, 9, 11), stride=(2, 2, 2), scaled=True),
    "split, stride 1 2 2": Convolution(SPLIT, 32, 64, stride=(1, 2, 2), padding="valid"),
    "split, transposed": Convolution(SPLIT, 64, 32, size=(3, 4, 5), stride=(2, 2, 2), transposed=True, scaled=True),
    "valid, transposed": Convolution(SPLIT, 32, 32, size=(3, 4, 5), stride=(2, 1, 2), padding="valid", transposed=True),
    "an identity branch": Convolution(((3, 3, 3), IDENTITY), 16, 16),
    "an absent branch": Convolution(((3, 3, 3), ABSENT), 32, 32),
    "eighteen branches": Convolution(((1, 1, 3), (1, 3, 1)) * 9, 2, 3, size=(3, 4, 5)),
    "many samples": Convolution(SPLIT, 32, 32, size=(1, 3, 5), batch=37),
    # More tiles than a GPU has multiprocessors.
    "large": Convolution(SPLIT, 64, 64, size=(24, 33, 31), random=True, only=("bf16", "tf32")),
    "large, acs4": Convolution(ACS4, 32, 32, size=(24, 33, 31), only=("f16",)),
}


class Draw:
    """Draws operands, the same for the same name: small integers and powers of two if exact, else normal."""

    def __init__(self, name: str, arithmetic: str, exact: bool, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
        self.dtype, self.exact = ARITHMETIC[arithmetic], exact

    def values(self, shape: Sequence[int], most: int = 2, dtype: torch.dtype | None = None) -> Tensor:
        """Integers of at most `most`, or normal values."""
        drawn = {"generator": self.generator, "device": self.generator.device}
        t = torch.randint(-most, most + 1, tuple(shape), **drawn) if self.exact else torch.randn(tuple(shape), **drawn)
        return t.to(dtype or self.dtype)

    def scales(self, shape: Sequence[int]) -> Tensor:
        """1/2, 1 or 2, or values around 1, in float32."""
        if self.exact:
            return torch.exp2(self.values(shape, 1, torch.float32))
        return 1 + 0.25 * self.values(shape, dtype=torch.float32)

    def volume(self, shape: Sequence[int], layout: str = "native", most: int = 2) -> Tensor:
        """(N, C, D, H, W) in a layout."""
        if layout == "strided":
            n, c, d, h, w = shape
            return self.volume((n, c, d, 2 * h, w), most=most)[:, :, :, ::2]
        t = self.values(shape, most)
        return t if layout == "contiguous" else t.contiguous(memory_format=torch.channels_last_3d)


# Calls of the kernels that are compiled at each: every way of reading and of striding, by arithmetic.
BRIEF = {
    "bf16": {
        "split 64 to 64", "split 5 to 7", "split, stride 2", "split, transposed", "acs4 16 to 24", "two branches",
        "three branches", "up, 64 channels", "down, 5 channels",
    },
    "f16": {"split 64 to 64", "two branches"},
    "ieee": {"split 64 to 64", "split 5 to 7", "two branches", "up, 64 channels"},
    "tf32": {"split 64 to 64"},
}  # fmt: skip
SETTINGS = {True: Epilogue(1, 0.25, 2.0, 64.0), False: Epilogue(1, 0.2, 2**0.5, 3.0)}  # by exactness


def convolution_arguments(operation: str, case: Convolution, draw: Draw) -> tuple[Any, ...]:
    geometry, count = case.geometry, len(case.branches)
    kernels = [b for b in case.branches if b not in (IDENTITY, ABSENT)]
    x_shape = (case.batch, count * case.cin, *case.size)
    size = geometry.output_size(case.size)
    y_shape = (case.batch, count * case.cout, *size)
    in_scale = draw.scales(x_shape[:2]) if case.scaled else None
    scale = 1 if draw.exact else 1 / math.sqrt(case.cin * max(math.prod(k) for k in kernels))
    weights = [draw.values((case.cout, case.cin, *k), 1) * scale for k in kernels]
    if operation == "convolve":
        x = draw.volume(x_shape, case.layout)
        out_scale = draw.scales(y_shape[:2]) if case.scaled else None
        noise = draw.values((case.batch, 1, *size), 4) if case.noise else None
        settings = SETTINGS[draw.exact]._replace(groups=count if case.shuffle else 1)
        bias = draw.values((y_shape[1],), 4)
        return x, weights, bias, in_scale, out_scale, noise, geometry, settings, case.scaled
    if operation == "input_grad":
        return draw.volume(y_shape), weights, in_scale, geometry, list(case.size)
    return draw.volume(y_shape), draw.volume(x_shape, case.layout), in_scale, geometry


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """An epilogue over (batch, channels, *size), with everything that it can have, or nothing."""

    channels: int
    groups: int
    full: bool = True
    noise_batch: int = 2
    size: Triple = (5, 7, 9)
    layout: str = "native"


EPILOGUES = {
    "two branches": Pointwise(128, 2),
    "four branches": Pointwise(64, 4, noise_batch=1, size=(3, 16, 17)),
    "three branches": Pointwise(39, 3, size=(4, 5, 6)),
    "one branch": Pointwise(40, 1, layout="strided"),
    "five channels": Pointwise(5, 1, layout="contiguous"),
    "shuffle alone": Pointwise(96, 2, full=False),
    "large": Pointwise(64, 2, size=(24, 33, 31)),
}


def _epilogue_arguments(operation: str, case: Pointwise, draw: Draw) -> tuple[Any, ...]:
    shape = (2, case.channels, *case.size)
    settings = Epilogue(case.groups)
    bias = scale = noise = None
    if case.full:
        settings = SETTINGS[draw.exact]._replace(groups=case.groups, clamp=24.0 if draw.exact else 3.0)
        bias, scale = draw.values((case.channels,), 4), draw.scales(shape[:2])
        noise = draw.values((case.noise_batch, 1, *case.size), 4)
    z = draw.volume(shape, case.layout, most=16)
    if operation == "epilogue":
        return z, bias, scale, noise, settings
    y = reference.epilogue(*_wide((z, bias, scale, noise)), settings).to(draw.dtype)
    gy = draw.volume(shape, case.layout, most=3)
    native = y.contiguous(memory_format=torch.channels_last_3d)
    return gy, native, z if case.full else None, scale, settings, case.full, case.noise_batch if case.full else -1


UPFIRDNS: dict[str, tuple[tuple[int | None, ...], Triple, Triple, tuple[int, ...], str]] = {
    "up": ((4, 4, 4), (2, 2, 2), (1, 1, 1), (2, 1, 2, 1, 2, 1), "replicate"),
    "up, adjoint": ((4, 4, 4), (1, 1, 1), (2, 2, 2), (1, 2, 1, 2, 1, 2), "fold"),
    "down": ((4, 4, 4), (1, 1, 1), (2, 2, 2), (1, 1, 1, 1, 1, 1), "replicate"),
    "down, adjoint": ((4, 4, 4), (2, 2, 2), (1, 1, 1), (2, 2, 2, 2, 2, 2), "fold"),
    "in plane": ((None, 4, 4), (1, 2, 2), (1, 1, 1), (0, 0, 2, 1, 2, 1), "zero"),
    "blur, cropped": ((3, 4, 6), (1, 1, 1), (1, 1, 1), (1, 1, -1, 2, 3, 2), "zero"),
    "long": ((None, 12, 12), (1, 2, 2), (1, 2, 2), (0, 0, 6, 5, 6, 5), "zero"),
    "no filter": ((None, None, None), (1, 1, 1), (2, 1, 2), (0, 0, 0, 0, 0, 0), "zero"),
}


def _upfirdn_arguments(name: str, channels: int, draw: Draw) -> tuple[Any, ...]:
    lengths, up, down, padding, border = UPFIRDNS[name]
    x = draw.volume((2, channels, 5, 8, 11), "contiguous" if channels == 5 else "native")
    taps = tuple(None if n is None else draw.values((n,), 3, torch.float32) / 4 for n in lengths)
    return x, taps, up, down, list(padding), border


def matrix(device: torch.device) -> Iterator[Check]:
    """Every check for a device."""
    for arithmetic in ARITHMETIC:
        if arithmetic == "tf32" and device.type != "cuda":
            continue
        for name, case in CONVOLUTIONS.items():
            for operation in ("convolve", "input_grad", "weight_grad"):
                for exact in (True, False) if case.random else (True,):
                    if arithmetic in case.only:
                        yield check_of(operation, name, arithmetic, exact, convolution_arguments, case)
        if arithmetic == "tf32":  # which nothing else knows
            continue
        for name, pointwise in EPILOGUES.items():
            for operation in ("epilogue", "epilogue_backward"):
                for exact in (True, False):
                    yield check_of(operation, name, arithmetic, exact, _epilogue_arguments, pointwise)
        for name in UPFIRDNS:
            for channels in (64, 5):
                for exact in (True, False):
                    text = f"{name}, {channels} channels"
                    yield check_of(
                        "upfirdn", text, arithmetic, exact, lambda _, c, draw, n=name: _upfirdn_arguments(n, c, draw),
                        channels,
                    )  # fmt: skip


def check_of(
    operation: str, name: str, arithmetic: str, exact: bool, arguments: Callable[[str, Any, Draw], Any], case: Any
) -> Check:
    text = f"{operation}, {arithmetic}, {name}, {'exact' if exact else 'random'}"

    def make(device: torch.device) -> tuple[Any, ...]:
        return arguments(operation, case, Draw(text, arithmetic, exact, device))

    return Check(operation, text, arithmetic, exact, exact and name in BRIEF[arithmetic], make)


# ------------------------------------------------------------------------------------------------------------ one check


def _wide(args: Sequence[Any]) -> list[Any]:
    """The arguments in float64."""
    return [
        a.double() if isinstance(a, Tensor) else _wide(a) if type(a) in (list, tuple) and a and _tensors(a) else a
        for a in args
    ]


def _tensors(found: Any) -> list[Tensor]:
    """The tensors of a result or of arguments."""
    if isinstance(found, Tensor):
        return [found]
    return [t for part in found for t in _tensors(part)] if type(found) in (list, tuple) else []


@contextlib.contextmanager
def _surroundings(arithmetic: str) -> Iterator[None]:
    """The arithmetic of float32, and NaN in uninitialised memory."""
    conv, deterministic = torch.backends.cudnn.conv, torch.are_deterministic_algorithms_enabled()
    before = conv.fp32_precision
    conv.fp32_precision = "tf32" if arithmetic == "tf32" else "ieee"
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        conv.fp32_precision = before
        torch.use_deterministic_algorithms(deterministic)


def expected(check: Check, args: tuple[Any, ...]) -> list[Tensor]:
    """The results of a call in float64."""
    return _tensors(getattr(reference, check.operation)(*_wide(args)))


def error_of(family: Family, check: Check, config: Any, args: tuple[Any, ...], exact: Sequence[Tensor]) -> float:
    """The largest error of a call, relative to the root mean square of the exact result.

    Raises:
        ArithmeticError: a result is wrong, or differs between two calls; the message says how.
    """
    runs = [_tensors(family.run(check.operation, args, config)) for _ in range(2)]
    worst = 0.0
    for number, (one, two, right) in enumerate(zip(*runs, exact, strict=True)):
        if one.shape != right.shape:
            raise ArithmeticError(f"result {number}: shape {tuple(one.shape)} instead of {tuple(right.shape)}")
        if not torch.equal(one.isnan(), two.isnan()) or not torch.equal(one.nan_to_num(), two.nan_to_num()):
            raise ArithmeticError(f"result {number}: two calls differ")
        wrong = (one != right.to(one.dtype)) if check.exact else one.isnan()
        if count := int(wrong.sum()):
            at = tuple(int(i) for i in wrong.nonzero()[0])
            raise ArithmeticError(
                f"result {number}: {count} of {one.numel()} values are wrong, the first at {at}: {float(one[at]):.6g} "
                f"instead of {float(right[at]):.6g}"
            )
        norm = float(right.square().mean().sqrt()) or 1.0
        worst = max(worst, float((one.double() - right).abs().max()) / norm if one.numel() else 0.0)
    if not worst <= TOLERANCE[check.arithmetic] and not check.exact:
        raise ArithmeticError(
            f"off by {worst:.2g} of the root mean square, more than {TOLERANCE[check.arithmetic]:.2g}"
        )
    return 0.0 if check.exact else worst


# ---------------------------------------------------------------------------------------------------------- the process


def run_family(family: Family, checks: Sequence[Check], device: torch.device, emit: Callable[..., None]) -> None:
    """Makes every check that a family can, in its default configuration and in turn one other.

    A family of Triton's compiles for each call: it makes the brief checks, in its default configuration.

    Raises:
        ArithmeticError: a result is wrong; or whatever else a call raises.
    """
    compiles = family.backend == "triton"
    wanted = [c for c in checks if c.operation in family.operations and (c.brief or not compiles)]
    for number, check in enumerate(wanted):
        emit("begin", check=check.name)
        args = check.make(device)
        with _surroundings(check.arithmetic):
            configs = list(family.configs(check.operation, args))
            if not configs:
                continue
            others = [] if compiles else configs[1:]
            exact = expected(check, args)
            for config in [configs[0], *([others[number % len(others)]] if others else [])]:
                emit("done", error=error_of(family, check, config, args, exact))


def _watch_input() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Checks the families that the command line's JSON names: device, provider (a module), families."""
    request = json.loads(sys.argv[1])
    out: TextIO = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed goes to stderr
    threading.Thread(target=_watch_input, daemon=True).start()

    def emit(event: str, **what: Any) -> None:
        out.write(json.dumps({"event": event, **what}) + "\n")

    device = torch.device(request["device"])
    provider = importlib.import_module(request["provider"])
    every = {family.name: family for family in provider.of_device(device)}
    checks = list(getattr(provider, "matrix", matrix)(device))
    torch.zeros(1, device=device).sum().item()
    emit("ready")
    for name in request["families"]:
        emit("family", name=name)
        start = time.perf_counter()
        try:
            run_family(every[name], checks, device, emit)
        except (torch.OutOfMemoryError, MemoryError) as error:
            emit("no room", reason=str(error).splitlines()[0])
            os._exit(NO_ROOM)
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            wrong = isinstance(error, ArithmeticError)
            emit("failed", reason=lines[0] if wrong else f"{type(error).__name__}: {lines[0]}")
            out.flush()
            os._exit(FAILED)
        emit("passed", seconds=time.perf_counter() - start)
    out.flush()
    os._exit(0)  # a damaged GPU could hang at the ordinary end


if __name__ == "__main__":
    main()
