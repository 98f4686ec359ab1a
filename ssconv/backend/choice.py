"""Chooses by measurement what serves a call of `backend="auto"` on a GPU.

At the first call of each kind (operation, dtype, class of geometry) the trusted families of kernels and PyTorch's own
operators are timed on the call's own tensors, as cudnn.benchmark does. The fastest serves, and the times are kept in a
file of this machine. A family whose result differs from PyTorch's is not timed and does not serve that kind.

SSCONV_CHOICE=table in the environment times nothing: the first trusted family serves, in its committed configuration.
torch.use_deterministic_algorithms implies it, and so does a CUDA graph that captures a kind not measured before.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssconv.backend import cache, families, pytorch, trust
from ssconv.backend.families import Family, label
from ssconv.backend.gpu import arithmetic, capturing, on
from ssconv.spec import Epilogue, Geometry, Triple

SWITCH = "SSCONV_CHOICE"
SECONDS = 0.5  # that the search of one kind may take
REPEATS = 10  # timings of a candidate, at most
SHARE = 0.05  # of SECONDS that a candidate's timings may take
BEHIND = 2.0  # configurations are searched of families that are at most so many times slower than the fastest
KEPT = 4096  # calls whose candidate is remembered
# Relative norm of the difference between two right results.
AGREES = {"bfloat16": 2e-2, "float16": 4e-3, "tf32": 4e-3, "ieee": 1e-4}


# The arguments of an operation that it may lack.
NAMES = {
    "convolve": ("", "", "bias", "in_scale", "out_scale", "noise"),
    "input_grad": ("", "", "in_scale"),
    "weight_grad": ("", "", "in_scale"),
    "epilogue": ("", "bias", "out_scale", "noise"),
    "epilogue_backward": ("", "", "z", "out_scale"),
    "upfirdn": (),
}


class Candidate(NamedTuple):
    family: Family
    config: Any

    @property
    def label(self) -> str:
        return label(self.family.name, self.config)


# ---------------------------------------------------------------------------------------------- the backend's functions


def convolve(*args: Any) -> tuple[Tensor, Tensor | None]:
    """As `reference.convolve`."""
    return serve("convolve", args)


def input_grad(*args: Any) -> Tensor:
    """As `reference.input_grad`."""
    return serve("input_grad", args)


def weight_grad(*args: Any) -> list[Tensor]:
    """As `reference.weight_grad`."""
    return serve("weight_grad", args)


def epilogue(*args: Any) -> Tensor:
    """As `reference.epilogue`."""
    return serve("epilogue", args)


def epilogue_backward(*args: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As `reference.epilogue_backward`."""
    return serve("epilogue_backward", args)


def upfirdn(
    x: Tensor, taps: Sequence[Tensor | None], up: Triple, down: Triple, padding: Sequence[int], border: str = "zero"
) -> Tensor:
    """As `reference.upfirdn`."""
    return serve("upfirdn", (x, taps, up, down, padding, border))


def serve(operation: str, args: tuple[Any, ...]) -> Any:
    """Computes a call with the candidate that is chosen for its kind."""
    by_table = _table_only()
    call = (operation, by_table, trust.newest(), os.environ.get(families.SWITCH), *_signature(args))
    chosen = _REMEMBERED.get(call)
    if chosen is None:
        chosen, lasting = _choose(operation, args, by_table)
        if lasting:
            if len(_REMEMBERED) >= KEPT:
                _REMEMBERED.clear()
            _REMEMBERED[call] = chosen
    return chosen.family.run(operation, args, chosen.config)


def choices() -> list[tuple[str, str, dict[str, float]]]:
    """Lists what `backend="auto"` chose on the GPUs that this process used, by kind of call.

    Returns:
        (kind, what serves it, {candidate: seconds}) for every kind in the machine's file, the fastest candidate first;
        empty before the first call, and on a CPU, where nothing is measured.

    Example:
        >>> ssconv.choices()
        []
    """
    listed = []
    for store in _STORES.values():
        for kind, times in sorted(store.read().items()):
            ordered = dict(sorted(((n, t) for n, t in times.items() if t is not None), key=lambda item: item[1]))
            if ordered:
                listed.append((kind, next(iter(ordered)), ordered))
    return listed


def open_stores() -> None:
    """Opens the files of every GPU of this machine, for `choices`."""
    for device in trust.devices():
        _store(device)


def _store(device: torch.device) -> cache.Store:
    identity = cache.identity(device)
    if identity not in _STORES:
        _STORES[identity] = cache.Store("choices", identity)
    return _STORES[identity]


_REMEMBERED: dict[tuple[Any, ...], Candidate] = {}
_STORES: dict[tuple[Any, ...], cache.Store] = {}


def forget() -> None:
    """Reads the files anew at the next call."""
    _REMEMBERED.clear()
    _STORES.clear()
    trust.forget()


# ------------------------------------------------------------------------------------------------------- kinds of calls


def _table_only() -> bool:
    """Whether nothing may be timed.

    Raises:
        ValueError: SSCONV_CHOICE is none of its values.
    """
    asked = os.environ.get(SWITCH, "")
    if asked not in ("", "measure", "table"):
        raise ValueError(f"{SWITCH}: expected measure (the default) or table; got {asked!r}")
    return asked == "table" or torch.are_deterministic_algorithms_enabled()


def _signature(args: Iterable[Any]) -> Iterator[Any]:
    """What decides how a call can be computed: of tensors everything but their values."""
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg.dtype, arg.device, tuple(arg.shape), arg.stride(), arg.data_ptr() % 16 == 0
        elif isinstance(arg, (list, tuple)) and not isinstance(arg, (Geometry, Epilogue)):
            yield tuple(_signature(arg))
        else:
            yield arg
    yield torch.backends.cudnn.conv.fp32_precision


def kind_of(operation: str, args: tuple[Any, ...]) -> str:
    """A call's kind as text. Extents are rounded up to powers of two."""
    x = args[0]
    words = [operation, "tf32" if arithmetic(x.dtype) == "tf32" else str(x.dtype).removeprefix("torch.")]
    geometry = next((a for a in args if isinstance(a, Geometry)), None)
    settings = next((a for a in args if isinstance(a, Epilogue)), None)
    channels = [str(x.shape[1])]
    if operation in ("convolve", "input_grad"):
        count, at = len(geometry.branches), 0 if operation == "convolve" else 1
        channels.append(str(args[1][0].shape[at] * count if len(args[1]) else x.shape[1]))
    elif operation == "weight_grad":
        channels.append(str(args[1].shape[1]))
    words.append(">".join(channels))
    if geometry is not None:
        words.append("+".join("x".join(map(str, b)) if min(b) > 0 else "-" for b in geometry.branches))
        words.append("stride" + "".join(map(str, geometry.stride)))
        words += [geometry.padding, "transposed"] if geometry.transposed else [geometry.padding]
    elif operation == "upfirdn":
        _, taps, up, down, _, border = args
        lengths = "x".join("-" if t is None else str(t.shape[0]) for t in taps)
        words.append(f"{lengths} up{''.join(map(str, up))} down{''.join(map(str, down))}")
        words += [border] if border != "zero" else []
    if settings is not None and settings.groups > 1:
        words.append(f"shuffle{settings.groups}")
    words += [name for name, a in zip(NAMES[operation], args, strict=False) if name and isinstance(a, Tensor)]
    sizes = [1 << max(0, n - 1).bit_length() for n in (x.shape[0], *x.shape[2:])]
    native = x.is_contiguous(memory_format=torch.channels_last_3d)
    return " ".join([*words, "at", "x".join(map(str, sizes)), "" if native else "strided"]).strip()


# --------------------------------------------------------------------------------------------------------------- choice


def _candidates(operation: str, args: tuple[Any, ...]) -> list[Family]:
    """The families that may serve a call, in their order of preference: those of the first backend that has trusted
    ones for it (Triton compiles for seconds at each kind, so that it comes only where CUDA does not), then PyTorch."""
    device = args[0].device
    every = trust.families_of(device)
    for backend in dict.fromkeys(family.backend for family in every):
        able = [f for f in every if f.backend == backend and families.allowed(f.name)]
        trusted = trust.trusted(device, [f.name for f in able])
        found = [f for f in able if f.name in trusted and operation in f.operations]
        found = [f for f in found if next(f.configs(operation, args), _NOTHING) is not _NOTHING]
        if found:
            return [*found, pytorch.FAMILY]
    return [pytorch.FAMILY]


_NOTHING = object()


def _choose(operation: str, args: tuple[Any, ...], by_table: bool) -> tuple[Candidate, bool]:
    """The candidate for a call, and whether it stays the same for the next one."""
    found = _candidates(operation, args)
    first = Candidate(found[0], next(found[0].configs(operation, args)))
    if len(found) == 1 and not trust.lasting(args[0].device):
        return first, False
    if by_table:
        return first, True
    device = args[0].device
    store = _store(device)
    kind = kind_of(operation, args)
    times = store.entries.get(kind)
    if not _covers(times, found):
        times = store.read().get(kind)
    if not _covers(times, found):  # not measured, or when other families were trusted
        if capturing():
            return first, False
        times = search(operation, args, found)
        store.save({kind: times})
    by_label = {}
    for family in found:
        for config in family.configs(operation, args):
            by_label[label(family.name, config)] = Candidate(family, config)
    known = [name for name, seconds in times.items() if seconds is not None and name in by_label]
    return (by_label[min(known, key=times.__getitem__)] if known else first), True


def _covers(times: dict[str, float | None] | None, found: Sequence[Family]) -> bool:
    """Whether every family has been measured."""
    return times is not None and {f.name for f in found} <= {name.partition("[")[0] for name in times}


def search(operation: str, args: tuple[Any, ...], found: Sequence[Family]) -> dict[str, float | None]:
    """Times the candidates of a call: PyTorch, every family, then their other configurations while time is left.

    Returns:
        seconds by the candidate's label; None of those that differ from PyTorch or do not run.
    """
    end = time.perf_counter() + SECONDS
    device = args[0].device
    pytorch_family, families_of_ours = found[-1], found[:-1]
    expected = None
    with contextlib.suppress(torch.OutOfMemoryError):  # the kernels need less than PyTorch
        expected = pytorch_family.run(operation, args, next(pytorch_family.configs(operation, args)))
    every = {f.name: [Candidate(f, c) for c in f.configs(operation, args)] for f in found}
    order = [every[pytorch_family.name][0], *(every[f.name][0] for f in families_of_ours)]
    order += every[pytorch_family.name][1:]
    times: dict[str, float | None] = {}

    def measure(candidate: Candidate) -> None:
        run = functools.partial(candidate.family.run, operation, args, candidate.config)
        try:
            result = run()  # which is the warm-up, too
            if candidate.family is not pytorch_family and expected is not None:
                difference = deviation(result, expected)
                times[candidate.label] = None
                if not difference <= _agreement(args[0].dtype):
                    warnings.warn(
                        f"ssconv: {candidate.label} differs from PyTorch by {difference:.2g} of the norm for "
                        f"{kind_of(operation, args)} and does not serve it; please report this",
                        RuntimeWarning,
                        stacklevel=5,
                    )
                    return
            del result
            times[candidate.label] = median_seconds(run, device)
        except torch.OutOfMemoryError:
            times.pop(candidate.label, None)  # there may be room another time
        except Exception as error:  # of a compiler, say
            times[candidate.label] = None
            if candidate.family is pytorch_family:
                raise
            warnings.warn(
                f"ssconv: {candidate.label} does not run and does not serve {kind_of(operation, args)}: {error}",
                RuntimeWarning,
                stacklevel=5,
            )

    for candidate in order:
        if time.perf_counter() < end or not times:
            measure(candidate)
    limit = BEHIND * min((t for t in times.values() if t is not None), default=0.0)
    close = [f for f in families_of_ours if (times.get(every[f.name][0].label) or math.inf) <= limit]
    for family in sorted(close, key=lambda f: times[every[f.name][0].label] or 0.0):
        for candidate in every[family.name][1:]:
            if time.perf_counter() >= end:
                return times
            measure(candidate)
    return times


def deviation(found: Any, expected: Any) -> float:
    """Norm of the difference of two results relative to the expected one's; the largest of all their tensors.

    Both are rounded to the expected one's dtype. Where that overflows, as gradients in float16 may, or has NaN, nothing
    is compared; an infinity or NaN where it is far from either is infinitely wrong.
    """
    pairs = [(found, expected)] if isinstance(found, Tensor) else list(zip(found, expected, strict=True))
    worst = 0.0
    for one, other in pairs:
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or not one.numel():
            continue
        one = one.to(other.dtype)
        if bool((~one.isfinite() & (other.abs() < torch.finfo(other.dtype).max / 2)).any()):
            return math.inf
        compared = one.isfinite() & other.isfinite()
        one, other = (torch.where(compared, t, 0).float() for t in (one, other))
        norm, off = (float(torch.linalg.vector_norm(t, dtype=torch.float64)) for t in (other, one - other))
        worst = max(worst, off / norm if norm else off)
    return worst


def _agreement(dtype: torch.dtype) -> float:
    kind = arithmetic(dtype)
    return AGREES[str(dtype).removeprefix("torch.") if kind == "16bit" else kind]


def median_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call on a device in seconds, of as many as fit into a share of a search. It ran before."""
    times: list[float] = []
    with on(device):
        end = time.perf_counter() + SHARE * SECONDS
        while len(times) < REPEATS and (not times or time.perf_counter() < end):
            times.append(_seconds(run, device))
    return statistics.median(times)


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        begin, done = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        done.record()
        done.synchronize()
        return begin.elapsed_time(done) / 1e3
    _finish(device)
    begin_at = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - begin_at


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
