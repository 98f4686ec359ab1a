"""Describes the GPU and what is installed beside it, and refuses to go on where there is no GPU.

python -m benchmarks.gpu.environment --folder         # prints gpu-<name>-<commit>; exit code 2 without a GPU
python -m benchmarks.gpu.environment --write FILE     # writes card, driver, versions and backends as JSON
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.operator.run import commit as tree_commit
from ssconv.parser import Parser

NO_GPU = 2  # exit code
LEAST_CUDNN = (9, 15)  # releases before it are slow or wrong: pytorch#163539, #166122, #167024
USED = ("torch", "triton", "numpy", "pytest", "hypothesis", "xdist", "tqdm", "matplotlib", "safetensors", "nibabel")


def no_gpu_reason() -> str | None:
    """Gives one sentence that says why nothing can be measured here, or None where there is a GPU."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed for {sys.executable}; nothing was run."
    import torch

    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA GPU here; nothing was run."
    return None


def refuse_without_gpu(program: str) -> None:
    """Ends the process with exit code 2 and one sentence where there is no GPU."""
    reason = no_gpu_reason()
    if reason is not None:
        print(f"{program}: {reason}", file=sys.stderr)
        raise SystemExit(NO_GPU)


def commit() -> str:
    """Gives the tree's commit; $COMMIT for a copy without git."""
    return os.environ.get("COMMIT") or tree_commit()


def missing() -> list[str]:
    """Lists the packages that some part uses and that are not installed."""
    return [name for name in USED if importlib.util.find_spec(name) is None]


def cudnn_warning(version: int | None) -> str | None:
    """Warns of a cuDNN that is known to be slow or wrong; version as torch has it, 91501 = 9.15.1."""
    least = ".".join(map(str, LEAST_CUDNN))
    if version is None:
        return f"there is no cuDNN; PyTorch's layers need {least} or later"
    found = (version // 10000, version // 100 % 100)
    if found < LEAST_CUDNN:
        return (
            f"cuDNN {found[0]}.{found[1]} is older than {least}: releases before it are slow or wrong for 3D in 16 bit"
        )
    return None


def driver() -> str:
    """Gives the driver's version as nvidia-smi reports it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.split()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return output[0] if output else "unknown"


def about() -> dict[str, Any]:
    """Gives what the figures depend on besides the code; goes into every record."""
    import torch

    import ssconv

    card = torch.cuda.get_device_properties(0)
    found = {
        "device": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_bytes": card.total_memory,
        "l2_bytes": getattr(card, "L2_cache_size", 0),
        "driver": driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "ssconv": ssconv.__version__,
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    warning = cudnn_warning(found["cudnn"])
    return found | ({"warning": warning} if warning else {})


def version_of(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def folder(device: str, at: str) -> str:
    """Gives gpu-<device>-<commit> in lower case, safe on any file system."""
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}-{at}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.environment", description=__doc__.partition("\n")[0])
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--folder", action="store_true", help="print the name of the folder of results")
    wanted.add_argument("--write", type=Path, metavar="FILE", help="write card, driver, versions and backends as JSON")
    parser.add_argument("--build", default=None, help="with --write: how the build went, in words")
    parser.add_argument("--program", default="benchmarks.gpu.environment", help="the name at the head of an error")
    args = parser.parse_args(argv)
    refuse_without_gpu(args.program)
    found = about()
    if args.folder:
        print(folder(found["device"], found["commit"]))
        return 0
    import ssconv
    from benchmarks.gpu.cases import hopper_state, serving

    found |= {
        "backends": ssconv.backends(),
        "sm_90a kernels": hopper_state("cuda"),
        "serving_gpu": serving("cuda"),
        "missing": missing(),
    }
    if args.build is not None:
        found["build"] = args.build
    args.write.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{found['device']}, torch {found['torch']}, cuDNN {found['cudnn']}; backends: {found['backends']}")
    if found["missing"]:
        print(f"not installed: {', '.join(found['missing'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
