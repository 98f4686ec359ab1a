"""keep_freed_memory: freed blocks are taken again without page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
import ssconv

def faults(mebibytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(mebibytes, 2**18)  # freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

kept = sys.argv[1] == "kept" and ssconv.keep_freed_memory()
faults(96)
print(kept, faults(64))
"""


def measured(how: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_large_block_is_taken_again_without_page_faults():
    kept, faults = measured("kept")
    if not kept:
        pytest.skip("no glibc here: the setting has no effect")
    _, usual = measured("usual")
    assert faults < 16 < usual, "a fault maps 4 KiB, or 2 MiB of the 64 at most"
