"""Measures the peak memory of one forward + backward step, in a process of its own.

    python -m benchmarks.operator.memory 2x32x32^3 "split_depth/ssconv cpu" [--threads 2]

The figure is the highest resident size during the step, less the resident size before it, when input, upstream gradient
and parameters already exist and the libraries have been warmed up on a small layer. Linux only.
"""

from __future__ import annotations

import ctypes
import gc
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.operator.cases import LAYERS, Contender, Layer, contenders, layer_input
from ssconv.parser import Parser

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure() -> bool:
    """Says whether this system reports the peak memory of a process and lets it be reset."""
    return STATUS.exists() and CLEAR.exists()


def _kib(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"{STATUS}: there is no {field}")
    return int(found.group(1))


def give_back() -> None:
    """What was freed goes back to the system (glibc): a step that used it again would seem to need less."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def added(layer: Layer, contender: Contender) -> int:
    """Bytes that one forward + backward step adds at its peak; results are freed before it ends."""
    x, upstream = layer_input(layer, contender)
    x.requires_grad_()
    for p in contender.parameters:  # resident, not only reserved
        p.detach().mul_(1.0)
    give_back()
    CLEAR.write_text("5")  # resets the peak
    before = _kib("VmRSS")
    torch.autograd.grad(contender.forward(x), (x, *contender.parameters), upstream)
    return (_kib("VmHWM") - before) * 1024


def peak_of(layer: str, contender: str, threads: int) -> int:
    """`added` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.operator.memory", layer, contender, "--threads", str(threads)]
    root = Path(__file__).resolve().parents[2]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.operator.memory", description=__doc__.partition("\n")[0])
    parser.add_argument("layer", choices=[layer.name for layer in LAYERS])
    parser.add_argument("contender", help="such as 'dense/nn.Conv3d channels_last'")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    if not can_measure():
        parser.error("this system has no /proc/self/clear_refs; peak memory is measured on Linux")
    torch.set_num_threads(args.threads)

    def one(layer: Layer) -> Contender:
        named = {c.name: c for c in contenders(layer)}
        if args.contender not in named:
            parser.error(f"contender: expected one of {', '.join(named)}; got {args.contender!r}")
        return named[args.contender]

    layer = next(layer for layer in LAYERS if layer.name == args.layer)
    small = Layer(1, layer.channels, 4)
    added(small, one(small))
    print(added(layer, one(layer)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
