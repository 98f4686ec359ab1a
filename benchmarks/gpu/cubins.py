"""Reads machine code: finds the tools of the CUDA toolkit and counts instructions."""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# An instruction's line: its address, a predicate perhaps, its name.
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@functools.cache
def tool(name: str) -> str:
    """Finds a tool of the CUDA toolkit; Triton's wheel carries cuobjdump and nvdisasm.

    Raises:
        FileNotFoundError: it is in neither.
    """
    triton = find_spec("triton")
    folders = [Path(os.environ[v], "bin") for v in ("CUDA_HOME", "CUDA_PATH") if v in os.environ]
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    if triton is not None and triton.origin is not None:
        folders.append(Path(triton.origin).parent / "backends" / "nvidia" / "bin")
    found = shutil.which(name) or next((str(f / name) for f in folders if (f / name).exists()), None)
    if found is None:
        raise FileNotFoundError(
            f"{name}: expected on the PATH, in $CUDA_HOME/bin or beside nvcc; Triton's wheel has cuobjdump and nvdisasm"
        )
    return found


def count_instructions(lines: Iterable[str]) -> Counter[str]:
    """Counts each instruction of a disassembly by its whole name, such as HMMA.16816.F32.BF16."""
    return Counter(m.group(1) for line in lines if (m := INSTRUCTION.match(line)))
