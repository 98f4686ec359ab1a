"""Times every contender on every layer and writes one JSON-lines file per machine and commit.

python -m benchmarks.operator.run [--threads 2] [--repeats 15] [--layers 2x32x32^3 ...] [--out benchmarks/results]
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.operator.cases import LAYERS, Contender, Layer, contenders, layer_input
from benchmarks.operator.check import check
from benchmarks.operator.memory import can_measure, peak_of
from benchmarks.operator.timing import measure
from ssconv.parser import Parser

PASSES = ("forward", "forward+backward", "double backward")


def step(layer: Layer, contender: Contender, what: str) -> Callable[[], object]:
    """Gives one call of a pass on fixed random data.

    "forward" has no graph; "forward+backward" goes to all gradients; "double backward" is an R1 step: the input
    gradient with a graph, the mean of its square, and that penalty's gradients for the weights.
    """
    x, upstream = layer_input(layer, contender)
    if what == "forward":

        def forward() -> object:
            with torch.no_grad():
                return contender.forward(x)

        return forward
    x.requires_grad_()
    if what == "double backward":
        weights = contender.parameters[:-1]

        def penalty() -> object:
            (gradient,) = torch.autograd.grad(contender.forward(x), x, upstream, create_graph=True)
            return torch.autograd.grad(gradient.square().mean(), weights)

        return penalty
    leaves = (x, *contender.parameters)
    return lambda: torch.autograd.grad(contender.forward(x), leaves, upstream)


def processor() -> str:
    """Gives the CPU's model name, or the architecture where the system does not report one."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """Gives the measured commit, with "-dirty" if the tree differs from it; "uncommitted" if there is none."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short=10", "HEAD")
    except FileNotFoundError:
        return "uncommitted"
    if head.returncode != 0:
        return "uncommitted"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def environment() -> dict[str, Any]:
    """Gives what the figures depend on besides the code."""
    import ssconv

    return {
        "device": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ssconv": ssconv.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def file_name(about: dict[str, Any]) -> str:
    """Gives <cpu>-<threads>t-<commit>.jsonl in lower case, safe on any file system."""
    device = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", about["device"].lower())).strip("-")
    return f"{device}-{about['threads']}t-{about['commit']}.jsonl"


def run(
    layers: Sequence[Layer], *, repeats: int, budget: float, memory: bool = True, compiled: bool = True
) -> list[dict[str, Any]]:
    """Checks, then times every contender on the layers; gives one record per layer, contender and pass.

    memory: also the peak memory of a step, each in a process of its own, where the system reports it. compiled: also
    the contenders under torch.compile.
    """
    about = environment()
    records = []
    for layer in layers:
        if compiled:
            torch.compiler.reset()  # otherwise all layers' closures count as one function, and few are compiled
        entrants = contenders(layer, compiled)
        for contender in entrants:
            check(layer, contender)
        for what in PASSES:
            chosen = [c for c in entrants if c.twice or what != "double backward"]
            times = measure({c.name: step(layer, c, what) for c in chosen}, repeats=repeats, budget=budget)
            for contender in chosen:
                timing = times[contender.name]
                records.append(
                    {
                        **about,
                        "layer": layer.name,
                        "pass": what,
                        "kernels": contender.kernels,
                        "implementation": contender.implementation,
                        "dtype": "float32",
                        "seconds": timing.to_json(),
                    }
                )
                print(f"{layer.name:>10}  {what:<16}  {contender.name:<40}  {timing.median * 1e3:9.2f} ms", flush=True)
        for contender in entrants if memory and can_measure() else []:
            if "compiled" in contender.implementation:
                continue  # the compiler's own memory would be in it
            peak = peak_of(layer.name, contender.name, about["threads"])
            records.append(
                {
                    **about,
                    "layer": layer.name,
                    "pass": "memory",
                    "kernels": contender.kernels,
                    "implementation": contender.implementation,
                    "dtype": "float32",
                    "bytes": peak,
                }
            )
            print(f"{layer.name:>10}  {'peak memory':<16}  {contender.name:<40}  {peak / 2**20:9.1f} MiB", flush=True)
    return records


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.operator.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", nargs="+", metavar="NAME", choices=[layer.name for layer in LAYERS], default=None)
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: 2)")
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each contender (default: 15)")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds per layer and pass (default: 60)")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of a step")
    parser.add_argument("--no-compile", action="store_true", help="leave out the contenders under torch.compile")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    args = parser.parse_args(argv)
    if args.threads < 1 or args.repeats < 1:
        parser.error("--threads and --repeats: expected at least 1")
    torch.set_num_threads(args.threads)
    layers = [layer for layer in LAYERS if args.layers is None or layer.name in args.layers]
    records = run(
        layers, repeats=args.repeats, budget=args.budget, memory=not args.no_memory, compiled=not args.no_compile
    )
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / file_name(records[0])
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
