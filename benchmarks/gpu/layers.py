"""Times every contender on the layers of a GPU run; appends JSON lines to one file, layer by layer.

    python -m benchmarks.gpu.layers --out layers.jsonl [--budget 150] [--part 1/3] [--dtype bf16] [--layers NAME ...]

Each contender is checked on random data before it is timed; a wrong one is named, left out, and the exit code is 1. A
layer whose records are in the file already, for the same commit, device and dtype, is not measured again. What the
budget does not reach is recorded as skipped. Without a GPU: exit code 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.gpu.cases import DTYPES, GPU_LAYERS, PASSES, gpu_backends, gpu_contenders, part, work
from benchmarks.gpu.environment import about, refuse_without_gpu
from benchmarks.gpu.timing import Ceilings, CudaDevice, Device, Prepare, ceilings, measure_on
from benchmarks.operator.cases import Contender, Layer, layer_input
from benchmarks.operator.check import TOLERANCE_TF32, check, second_derivatives

KIND = "gpu layer"
PLACE = "cuda"
TOLERANCES = {"tf32": TOLERANCE_TF32, "fp32": 1e-4}  # weights' gradients are sums of millions of terms here
SKIPPED = "out of time"
ENOUGH = 8.0  # seconds without which a layer is not begun
ONLY_WHOLE = (
    "forward",
    "full step",
)  # what can be taken apart under torch.compile, which computes all gradients at once

Record = dict[str, Any]


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """PyTorch's switches for the run: TF32 where it is asked for, cuDNN tries its kernels and takes the fastest."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, dtype == "tf32", dtype == "tf32"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def passes_of(contender: Contender) -> list[str]:
    """The passes that can be timed."""
    return [what for what in PASSES if contender.twice or what in ONLY_WHOLE]


Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(layer: Layer, contender: Contender) -> Inputs:
    """x, which wants a gradient, the upstream gradient, and a cotangent of the input gradient."""
    x, upstream = layer_input(layer, contender)
    return x.requires_grad_(), upstream, layer_input(layer, contender, seed=5)[0]


def prepared(contender: Contender, what: str, data: Inputs) -> Prepare:
    """One pass on `data`, in the contender's surroundings; see `_prepared`."""
    prepare = _prepared(contender, what, data)
    if not contender.environment:
        return prepare

    def inside(function: Callable[[], object]) -> object:
        with contender.surroundings():
            return function()

    def outer() -> Callable[[], object]:
        with contender.surroundings():
            function = prepare()
        return lambda: inside(function)

    return outer


def _prepared(contender: Contender, what: str, data: Inputs) -> Prepare:
    """One pass on `data`. What comes before it (the graph of a gradient) is prepared untimed.

    "full step" is forward and all gradients, those of the scales too; "double backward" is what R1 asks of a layer: the
    input gradient with a graph, and that gradient's derivatives for the weights and the upstream gradient.
    """
    x, upstream, v = data
    if what == "forward":

        def forward() -> object:
            with torch.no_grad():
                return contender.forward(x)

        return lambda: forward
    if what == "double backward":
        return lambda: lambda: second_derivatives(contender, x, upstream, v)
    leaves = {
        "input gradient": (x,),
        "weight gradient": contender.parameters,
        "full step": (x, *contender.parameters, *contender.scales),
    }[what]
    if what == "full step":
        return lambda: lambda: torch.autograd.grad(contender.forward(x), leaves, upstream)

    def graph() -> Callable[[], object]:
        y = contender.forward(x)
        return lambda: torch.autograd.grad(y, leaves, upstream)

    return graph


def peak_bytes(contender: Contender, data: Inputs, device: Device) -> int:
    """What one full step adds to the device's memory at its peak, beyond input, upstream gradient and parameters."""
    step = prepared(contender, "full step", data)()
    before = device.reset_peak()
    step()
    return device.peak() - before


def kernel_names(contender: Contender, data: Inputs) -> list[str]:
    """The device kernels of one full step, the longest first, as torch.profiler names them."""
    from torch.profiler import ProfilerActivity, profile

    step = prepared(contender, "full step", data)()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        step()
        torch.cuda.synchronize()
    rows = [e for e in profiler.key_averages() if e.device_type == torch.autograd.DeviceType.CUDA]
    return [e.key for e in sorted(rows, key=lambda e: -e.self_device_time_total)]


def measure_layer(
    layer: Layer,
    entrants: Sequence[Contender],
    device: Device,
    ceiling: Ceilings,
    *,
    dtype: str,
    seconds: float,
    repeats: int,
    profiled: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Record]:
    """Checks, then times the contenders; one record for each and each pass, an "error" where there is no figure."""
    deadline = clock() + seconds
    tolerance = TOLERANCES.get(dtype)
    records: list[Record] = []
    good: list[Contender] = []

    def record(contender: Contender, what: str, **values: Any) -> None:
        head = {"layer": layer.name, "pass": what, "kernels": contender.kernels}
        records.append({**head, "implementation": contender.implementation, "dtype": dtype, **values})

    @contextmanager
    def guarded(contender: Contender, what: str) -> Iterator[None]:
        """An error of any library goes into the record: the others are still to be measured."""
        try:
            yield
        except torch.OutOfMemoryError:
            record(contender, what, error="out of memory")
        except Exception as error:
            record(contender, what, error=f"{type(error).__name__}: {str(error).strip()[:500]}")
        else:
            return
        _forget(device)

    for contender in entrants:
        with guarded(contender, "check"), contender.surroundings():
            check(layer, contender, tolerance, twice=contender.twice)
            good.append(contender)
    data = {c.memory_format: inputs(layer, c) for c in good}  # shared by those of one layout
    for number, what in enumerate(PASSES):
        share = max(deadline - clock(), 0.0) / (len(PASSES) - number)
        able, functions = {}, {}
        for contender in good:
            if what in passes_of(contender):
                function = prepared(contender, what, data[contender.memory_format])
                with guarded(contender, what):  # once alone: one that fails does not take the others with it
                    function()()
                    able[contender.name], functions[contender.name] = contender, function
        # A quarter is left for warming up.
        times = measure_on(device, functions, warmup=2, repeats=repeats, budget=0.75 * share, clock=clock)
        for name, (timing, launch) in times.items():
            contender = able[name]
            shared = data[contender.memory_format]
            least = work(layer, contender.kernels, what, DTYPES[dtype].itemsize)
            extra = {"peak_bytes": peak_bytes(contender, shared, device)} if what == "full step" else {}
            if profiled and what == "full step" and contender.implementation.startswith("nn."):
                with guarded(contender, "profile"):
                    extra["device_kernels"] = kernel_names(contender, shared)
            record(
                contender,
                what,
                seconds=timing.to_json(),
                launch_seconds=launch,
                operations=least.operations,
                bytes=least.bytes,
                floor_seconds=least.floor(ceiling.operations_per_second, ceiling.bytes_per_second),
                **extra,
            )
    return records


def _forget(device: Device) -> None:
    """Gives memory back, so that what failed does not stand in the way of the next."""
    device.synchronise()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def done(path: Path, head: Record) -> set[tuple[str, str]]:
    """(layer, dtype) that the file has figures of, for the same commit and device."""
    if not path.exists():
        return set()
    records = [json.loads(line) for line in path.read_text().splitlines()]
    same = [r for r in records if all(r.get(k) == head.get(k) for k in ("commit", "device"))]
    return {(r["layer"], r["dtype"]) for r in same if "seconds" in r}


def run(
    layers: Sequence[Layer],
    path: Path,
    *,
    head: Record,
    device: Device,
    place: str,
    ceiling: Ceilings,
    dtype: str,
    backends: Sequence[str],
    budget: float,
    repeats: int,
    compiled: bool = True,
    profiled: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measures the layers and appends to `path`; the number of ssconv's contenders that failed.

    head: goes into every record. budget: seconds for all layers; each gets an equal share of what is left.
    """
    deadline = clock() + budget
    path.parent.mkdir(parents=True, exist_ok=True)
    known = done(path, head)
    failed = 0
    head = {"kind": KIND, **head, "ceilings": vars(ceiling)}
    bar = tqdm(layers, unit="layer", disable=None)
    for number, layer in enumerate(bar):
        bar.set_description(layer.name)
        if (layer.name, dtype) in known:
            continue
        left = deadline - clock()
        if left < ENOUGH:
            print(f"{layer.name}: skipped, {SKIPPED}", flush=True)
            _append(path, head, [{"layer": layer.name, "dtype": dtype, "skipped": SKIPPED}])
            continue
        if compiled:
            torch.compiler.reset()  # else the ninth closure of one kind is not compiled
        entrants = gpu_contenders(layer, DTYPES[dtype], place, backends, compiled)
        records = measure_layer(
            layer, entrants, device, ceiling, dtype=dtype, seconds=left / (len(layers) - number), repeats=repeats,
            profiled=profiled, clock=clock,
        )  # fmt: skip
        for r in records:
            failed += "error" in r and r["implementation"].startswith("ssconv")
            print(_line(r), flush=True)
        _append(path, head, records)
        del entrants
        _forget(device)
    return failed


def _append(path: Path, head: Record, records: Sequence[Record]) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({**head, **record}) + "\n" for record in records)


def _line(r: Record) -> str:
    name = f"{r['layer']:>28}  {r['pass']:<15}  {r['kernels'] + ', ' + r['implementation']:<40}"
    if "error" in r:
        return f"{name}  {r['error']}"
    median = r["seconds"]["median"]
    return f"{name}  {median * 1e3:9.3f} ms  {100 * r['floor_seconds'] / median:5.1f} % of the floor"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.layers", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--layers", nargs="+", metavar="NAME", choices=[layer.name for layer in GPU_LAYERS])
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th layer from the I-th")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds for all layers (default: 150)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls at most (default: 20)")
    parser.add_argument("--no-compile", action="store_true", help="leave out what runs under torch.compile")
    parser.add_argument("--no-profile", action="store_true", help="leave out the names of the rivals' kernels")
    args = parser.parse_args(argv)
    try:
        layers = part([a for a in GPU_LAYERS if args.layers is None or a.name in args.layers], args.part)
    except ValueError as error:
        parser.error(str(error))
    refuse_without_gpu("gpu_run")
    begun = time.perf_counter()
    backends, head = gpu_backends(), about()
    if not backends:
        print("ssconv has no backend for this GPU: only the rivals are measured", flush=True)
    if "warning" in head:
        print(f"warning: {head['warning']}", flush=True)
    with precision(args.dtype):
        device = CudaDevice()
        ceiling = ceilings(device, PLACE, DTYPES[args.dtype])
        print(
            f"{head['device']}: {ceiling.operations_per_second / 1e12:.0f} TFLOP/s in {args.dtype}, "
            f"{ceiling.bytes_per_second / 1e12:.2f} TB/s",
            flush=True,
        )
        failed = run(
            layers, args.out, head=head, device=device, place=PLACE, ceiling=ceiling, dtype=args.dtype,
            backends=backends, budget=args.budget - (time.perf_counter() - begun), repeats=args.repeats,
            compiled=not args.no_compile, profiled=not args.no_profile,
        )  # fmt: skip
    if failed:
        print(f"gpu_run: {failed} measurements of ssconv failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
