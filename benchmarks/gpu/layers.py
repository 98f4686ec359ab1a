"""Times every contender on the layers of a GPU run and appends JSON lines to one file, layer by layer.

    python -m benchmarks.gpu.layers --out layers.jsonl [--budget 150] [--part 1/3] [--dtype bf16] [--layers NAME ...]

Each contender is checked on random data before it is timed; a wrong one is named and left out, and the exit code is 1.
A layer whose records are in the file already, for the same commit, device and dtype, is not measured again. Layers that
the budget does not reach are recorded as skipped. Without a GPU: exit code 2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.gpu.cases import DTYPES, GPU_LAYERS, gpu_backends, gpu_contenders, part
from benchmarks.gpu.environment import about, refuse_without_gpu
from benchmarks.gpu.figures import Record, append, measured
from benchmarks.gpu.roofline import PASSES, Peaks, measure_peaks, work
from benchmarks.gpu.timing import CudaTimer, Prepare, Timer, measure_on
from benchmarks.operator.cases import Contender, Layer, layer_input
from benchmarks.operator.check import TOLERANCE_TF32, check, second_derivatives
from ssconv.parser import Parser

KIND = "gpu layer"
DEVICE = "cuda"
TOLERANCES = {"tf32": TOLERANCE_TF32, "fp32": 1e-4}  # weights' gradients are sums of millions of terms here
SKIPPED = "out of time"
LEAST_SECONDS = 8.0  # with less left, a layer is skipped
# The passes that can be timed under torch.compile, which computes all gradients at once.
COMPILED_PASSES = ("forward", "full step")


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Sets PyTorch's switches for the run: TF32 if asked for; cuDNN tries its kernels and takes the fastest."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = True, dtype == "tf32", dtype == "tf32"
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def passes_of(contender: Contender) -> list[str]:
    """Lists the passes that can be timed."""
    return [what for what in PASSES if contender.twice or what in COMPILED_PASSES]


Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(layer: Layer, contender: Contender) -> Inputs:
    """Draws x, which requires a gradient, the upstream gradient, and a cotangent of the input gradient."""
    x, upstream = layer_input(layer, contender)
    return x.requires_grad_(), upstream, layer_input(layer, contender, seed=5)[0]


def prepared(contender: Contender, what: str, data: Inputs) -> Prepare:
    """Prepares one pass on `data` (see `_prepared`), under the contender's environment variables."""
    prepare = _prepared(contender, what, data)
    if not contender.environment:
        return prepare

    def inside(function: Callable[[], object]) -> object:
        with contender.with_environment():
            return function()

    def outer() -> Callable[[], object]:
        function = inside(prepare)
        return lambda: inside(function)

    return outer


def _prepared(contender: Contender, what: str, data: Inputs) -> Prepare:
    """Prepares one pass on `data`. The graph that a gradient needs is built untimed.

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


def peak_bytes(contender: Contender, data: Inputs, timer: Timer) -> int:
    """Measures what one full step adds to the device's memory at its peak, beyond inputs and parameters."""
    step = prepared(contender, "full step", data)()
    before = timer.reset_peak()
    step()
    return timer.peak() - before


def kernel_names(contender: Contender, data: Inputs) -> list[str]:
    """Names the device kernels of one full step, the longest first, as torch.profiler has them."""
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
    timer: Timer,
    peaks: Peaks,
    *,
    dtype: str,
    seconds: float,
    repeats: int,
    profiled: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Record]:
    """Checks, then times the contenders. Gives a record for each and each pass, with an "error" where it failed."""
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
        free_memory(timer)

    for contender in entrants:
        with guarded(contender, "check"), contender.with_environment():
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
        times = measure_on(timer, functions, warmup=2, repeats=repeats, budget=0.75 * share, clock=clock)
        for name, (timing, launch) in times.items():
            contender = able[name]
            shared = data[contender.memory_format]
            least = work(layer, contender.kernels, what, DTYPES[dtype].itemsize)
            extra = {"peak_bytes": peak_bytes(contender, shared, timer)} if what == "full step" else {}
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
                roofline_seconds=least.seconds(peaks),
                **extra,
            )
    return records


def free_memory(timer: Timer) -> None:
    """Gives cached memory back, so that what has failed takes none from the next contender."""
    timer.synchronise()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def run(
    layers: Sequence[Layer],
    path: Path,
    *,
    head: Record,
    timer: Timer,
    device: str,
    peaks: Peaks,
    dtype: str,
    backends: Sequence[str],
    budget: float,
    repeats: int,
    compiled: bool = True,
    profiled: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Measures the layers and appends to `path`. Gives the number of ssconv's measurements that failed.

    head: goes into every record. budget: seconds for all layers; each gets an equal share of what is left.
    """
    deadline = clock() + budget
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(r["layer"], r["dtype"]) for r in measured(path, head)}
    failed = 0
    head = {"kind": KIND, **head, "peaks": vars(peaks)}
    bar = tqdm(layers, unit="layer", disable=None)
    for number, layer in enumerate(bar):
        bar.set_description(layer.name)
        if (layer.name, dtype) in known:
            continue
        left = deadline - clock()
        if left < LEAST_SECONDS:
            print(f"{layer.name}: skipped, {SKIPPED}", flush=True)
            append(path, head, [{"layer": layer.name, "dtype": dtype, "skipped": SKIPPED}])
            continue
        if compiled:
            torch.compiler.reset()  # else the ninth closure of one kind is not compiled
        entrants = gpu_contenders(layer, DTYPES[dtype], device, backends, compiled)
        records = measure_layer(
            layer, entrants, timer, peaks, dtype=dtype, seconds=left / (len(layers) - number), repeats=repeats,
            profiled=profiled, clock=clock,
        )  # fmt: skip
        for r in records:
            failed += "error" in r and r["implementation"].startswith("ssconv")
            print(_line(r), flush=True)
        append(path, head, records)
        del entrants
        free_memory(timer)
    return failed


def _line(r: Record) -> str:
    name = f"{r['layer']:>28}  {r['pass']:<15}  {r['kernels'] + ', ' + r['implementation']:<40}"
    if "error" in r:
        return f"{name}  {r['error']}"
    median = r["seconds"]["median"]
    return f"{name}  {median * 1e3:9.3f} ms  {100 * r['roofline_seconds'] / median:5.1f} % of the roofline"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.layers", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--layers", nargs="+", metavar="NAME", choices=[layer.name for layer in GPU_LAYERS])
    parser.add_argument("--part", default="1/1", metavar="I/N", help="only every N-th layer from the I-th")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--budget", type=float, default=150.0, help="seconds for all layers (default: 150)")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls at most (default: 20)")
    parser.add_argument("--no-compile", action="store_true", help="leave out the contenders under torch.compile")
    parser.add_argument("--no-profile", action="store_true", help="leave out the names of PyTorch's kernels")
    args = parser.parse_args(argv)
    try:
        layers = part([a for a in GPU_LAYERS if args.layers is None or a.name in args.layers], args.part)
    except ValueError as error:
        parser.error(str(error))
    refuse_without_gpu("benchmarks.gpu.layers")
    begun = time.perf_counter()
    backends, head = gpu_backends(), about()
    if not backends:
        print("ssconv has no backend for this GPU: only the rivals are measured", flush=True)
    if "warning" in head:
        print(f"warning: {head['warning']}", flush=True)
    with precision(args.dtype):
        timer = CudaTimer()
        peaks = measure_peaks(timer, DEVICE, DTYPES[args.dtype])
        print(
            f"{head['device']}: {peaks.operations_per_second / 1e12:.0f} TFLOP/s in {args.dtype}, "
            f"{peaks.bytes_per_second / 1e12:.2f} TB/s",
            flush=True,
        )
        failed = run(
            layers, args.out, head=head, timer=timer, device=DEVICE, peaks=peaks, dtype=args.dtype,
            backends=backends, budget=args.budget - (time.perf_counter() - begun), repeats=args.repeats,
            compiled=not args.no_compile, profiled=not args.no_profile,
        )  # fmt: skip
    if failed:
        print(f"benchmarks.gpu.layers: {failed} measurements of ssconv failed; {args.out} says why", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
