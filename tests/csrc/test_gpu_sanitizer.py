"""The CUDA kernels under NVIDIA's compute-sanitizer: memory, races, uninitialised reads, barriers.

A process of its own for each tool runs the cases below, every instantiation's path with sizes that no tile divides. The
allocator keeps nothing back, so that an access beside a tensor is one beside an allocation.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.cubins import tool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
ROOT = Path(__file__).parents[2]

PROGRAM = """
import torch, ssconv
from tests.support import halo_checks
from tests.support.sm90_checks import CONVOLUTIONS
from tests.support.kernel_checks import LARGE
from tests.support.parity_checks import LAYERS
from ssconv.backend.cuda import sm90
from tests.support.strategies import CONV_CASES, UPFIRDN_CASES, tensors_of
from ssconv.backend.cuda import conv
from tests.support.serving import only

sm90.MIN_CHANNELS = 8
sm90_cases = [CONVOLUTIONS[name] for name in ("split-depth-narrow", "grouped-stride", "dense-few", "many-samples")]
sm90_cases += [LAYERS[name] for name in ("transposed-2", "strided-2")]
cases = [*LARGE.values(), *sm90_cases]
halo = [halo_checks.CONVOLUTIONS[name] for name in ("split-depth-narrow", "dense-few", "unshuffled", "many-samples")]
cases += [CONV_CASES["split-depth-full"], CONV_CASES["transposed-stride-2"], *UPFIRDN_CASES.values()]


def run(case, dtype):
    tensors = tensors_of(case, dtype, "cuda", requires_grad=True)
    y = case.call(ssconv, tensors, "cuda")
    leaves = [t for t in tensors.values() if t.requires_grad]
    torch.autograd.grad(y, leaves, torch.ones_like(y))


for number, case in enumerate(cases):
    for dtype in (torch.bfloat16, torch.float32):
        torch.backends.cudnn.allow_tf32 = number % 2 == 0
        with only(("sm90_im2col", "sm90_cluster")[number % 2], "sm90_wgrad"):
            run(case, dtype)
if conv.sm90_unavailable(torch.device("cuda")) is None:
    for number, case in enumerate(halo):
        with halo_checks.on_halo(halo_checks.LAYOUTS[number % 2]) as used:
            run(case, torch.bfloat16)
        assert used
torch.cuda.synchronize()
print("ran", len(cases), "cases")
"""


@pytest.mark.parametrize("name", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_under_the_sanitizer(name):
    import ssconv

    if ssconv.backends()["cuda"] != "available":
        pytest.skip(f"the CUDA backend is {ssconv.backends()['cuda']}")
    try:
        sanitizer = tool("compute-sanitizer")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    }
    command = [sanitizer, "--tool", name, "--error-exitcode", "9", sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "ran" in done.stdout, (done.stdout + done.stderr)[-3000:]
