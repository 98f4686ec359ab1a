"""Checks of what Triton compiles without a GPU, run by test_triton.py in processes of their own.

    python tests/support/triton_compile_checks.py {configurations | whole | few_channels} ARCHITECTURE
    python tests/support/triton_compile_checks.py {batches | without_a_gpu}

Exit code 0: all pass; 3: one fails, and stderr names it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import torch

import ssconv
from benchmarks.gpu.triton_cubins import call, compiling, faults, inspect
from ssconv.backend.triton import launch as triton_backend
from ssconv.backend.triton import table as triton_table
from ssconv.spec import KERNEL_SETS, Epilogue, Geometry


def configurations(architecture: str) -> None:
    """Every configuration of the committed table: no spills, tensor cores, asynchronous copies, shared memory."""
    table = triton_table.TABLE.read(triton_table.COMMITTED)
    chosen = {k: c for k, c in table.items() if k.architecture == int(architecture)}
    assert len(chosen) > 20
    for key, config in chosen.items():
        with compiling(key.architecture, key.arithmetic) as compiled:
            call(key)
        cubin = inspect(compiled[-1])
        found = faults(key, config, cubin)
        if key.arithmetic == "16bit" and not {"LDGSTS", "UTMALDG"} & set(cubin.instructions):
            found.append("no asynchronous copies")
        assert not found, f"{key}, {config}: {'; '.join(found)}"


def whole(architecture: str) -> None:
    """With every part of the epilogue, z kept and scales on the way in; the memory-bound kernels too."""
    table = triton_table.TABLE.read(triton_table.COMMITTED)
    for key, config in table.items():
        if key.architecture == int(architecture) and key.channels == 64 and key.arithmetic == "16bit":
            with compiling(key.architecture, key.arithmetic) as compiled:
                call(key, full=True)
            found = faults(key, config, inspect(compiled[-1]))
            assert not found, f"{key}, {config}: {'; '.join(found)}"
    for channels, groups in ((64, 2), (64, 4), (48, 3), (16, 1)):
        with compiling(int(architecture)) as compiled:
            z = torch.zeros(2, channels, 8, 8, 8, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
            scale, noise = torch.zeros(2, channels), torch.zeros(2, 1, 8, 8, 8)
            settings = Epilogue(groups, 0.2, 1.4, 256.0)
            triton_backend.epilogue(z, scale[0], scale, noise, settings)
            triton_backend.epilogue_backward(z, z, z, scale, settings, True, 2)
            triton_backend.upfirdn(z, [torch.zeros(4)] * 3, (2, 2, 2), (1, 1, 1), (2, 1) * 3)
        assert len(compiled) == 3
        for kernel in compiled:
            assert not inspect(kernel).stack, f"{kernel.metadata.name} spills with {channels} channels, {groups} groups"


def few_channels(architecture: str) -> None:
    """Triton makes constants of arguments that are 1: every kernel compiles with one channel and one voxel."""
    batch = 1
    strides = (((1, 1, 1), False), ((2, 1, 2), False), ((2, 2, 2), True))
    cases = (
        (1, 1, "dense", (1, 1, 1), strides),
        (2, 6, "split_depth", (3, 5, 2), strides[1:]),
        (12, 4, "acs4", (3, 1, 2), strides[:1]),
    )
    for cin, cout, kernels, size, chosen in cases:
        branches = KERNEL_SETS[kernels]
        for stride, transposed in chosen:
            geometry, count = Geometry(branches, stride, transposed=transposed), len(branches)
            x, scale_in, scale_out = torch.zeros(batch, cin, *size), torch.zeros(batch, cin), torch.zeros(batch, cout)
            weights = [torch.zeros(cout // count, cin // count, *k) for k in branches]
            with compiling(int(architecture)) as compiled:
                noise = torch.zeros(1, 1, *geometry.output_size(size))
                settings = Epilogue(count, 0.2, 1.4, 2.0)
                y, z = triton_backend.convolve(
                    x, weights, scale_out[0], scale_in, scale_out, noise, geometry, settings, True
                )
                gz, *_ = triton_backend.epilogue_backward(y, y, z, scale_out, settings, True, 1)
                triton_backend.input_grad(gz, weights, scale_in, geometry, size)
                triton_backend.weight_grad(gz, x, scale_in, geometry)
                triton_backend.epilogue(z, scale_out[0], scale_out, noise, settings)
                triton_backend.upfirdn(x, [torch.zeros(3)] * 3, (2, 1, 1), (1, 2, 1), (1, 1) * 3)
            assert len(compiled) >= 6
    three, settings = Geometry(((3, 3, 3), (0, 0, 0), (-1, -1, -1))), Epilogue(3)
    with compiling(int(architecture)) as compiled:
        x, weights = torch.zeros(2, 3, 3, 4, 5), [torch.zeros(1, 1, 3, 3, 3)]
        triton_backend.convolve(x, weights, None, None, None, None, three, settings, True)
        triton_backend.input_grad(x, weights, None, three, x.shape[2:])
        triton_backend.weight_grad(x, x, None, three)
        triton_backend.epilogue_backward(x, x, x, None, settings, True, 2)
    assert len(compiled) == 4


def batches() -> None:
    """One kernel serves every batch size, and every size of volume that has the same boxes."""
    geometry, settings = Geometry(((3, 3, 3), (1, 3, 3)), stride=(1, 2, 2)), Epilogue(2, 0.2, 1.4)
    kernels: dict[str, set[int]] = {}

    def collect(compiled: list) -> None:
        for kernel in compiled:
            kernels.setdefault(kernel.metadata.name, set()).add(id(kernel))

    kept = []  # so that no two kernels have the same id
    for batch in (1, 2, 3, 7, 8, 16, 17, 32):
        for edge in (16, 32):
            with compiling(90) as compiled:
                x = torch.zeros(batch, 64, edge, edge, edge, dtype=torch.bfloat16)
                x = x.contiguous(memory_format=torch.channels_last_3d)
                weights = [torch.zeros(32, 32, *k, dtype=torch.bfloat16) for k in geometry.branches]
                bias, scale = torch.zeros(64), torch.zeros(batch, 64)
                y, z = triton_backend.convolve(x, weights, bias, scale, scale, None, geometry, settings, True)
                gz, *_ = triton_backend.epilogue_backward(y, y, z, scale, settings, True, -1)
                triton_backend.input_grad(gz, weights, scale, geometry, x.shape[2:])
                triton_backend.weight_grad(gz, x, scale, geometry)
                triton_backend.epilogue(z, bias, scale, None, settings)
                triton_backend.upfirdn(x, [torch.zeros(4)] * 3, (1, 2, 2), (1, 1, 1), (2, 1) * 3)
            kept += compiled
            collect(compiled)
    counts = {name: len(ids) for name, ids in kernels.items()}
    # conv_kernel: fprop and dgrad.
    expected = dict.fromkeys(("wgrad_kernel", "epilogue_kernel", "epilogue_backward_kernel", "upfirdn_kernel"), 1)
    expected["conv_kernel"] = 2
    assert counts == expected, f"compiled {counts}, expected {expected}"


def without_a_gpu() -> None:
    """Without a GPU and without the interpreter the backend's state names both."""
    state = ssconv.backends()["triton"]
    assert "GPU" in state and "TRITON_INTERPRET" in state, state


CHECKS: dict[str, Callable[..., None]] = {
    c.__name__: c for c in (configurations, whole, few_channels, batches, without_a_gpu)
}


def main(name: str, *arguments: str) -> int:
    assert not triton_backend.INTERPRETED, "unset TRITON_INTERPRET"
    torch.set_num_threads(1)
    try:
        CHECKS[name](*arguments)
    except AssertionError:
        traceback.print_exc()
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
