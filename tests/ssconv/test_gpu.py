"""Every backend that runs on the GPU: values and derivatives, streams, graphs, the compiler, size, and training.

The checks are those of the other tests (`strategies`) and of `gpu_checks`, which test_gpu_checks.py runs on a CPU.
"""

from __future__ import annotations

import copy
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ssconv
from benchmarks.gpu.cases import hopper_state, serving
from tests.support import gpu_checks, halo_checks, parity_checks, sm90_checks
from tests.support.gpu_checks import check_against_float64, check_both_ends, check_compiled, smooth, split_depth
from tests.support.strategies import CONV_CASES, UPFIRDN_CASES, check_forward, check_gradients, tensors_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
GPU = torch.cuda.is_available()
SERVING = serving("cuda") if GPU else []
MADE_FOR_IT = [name for name in SERVING if name != "reference"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_backend = pytest.mark.parametrize("backend", SERVING)
SM90 = sm90_checks.CONVOLUTIONS | parity_checks.LAYERS


@pytest.fixture(autouse=True)
def without_tf32() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before
    torch.cuda.empty_cache()


# ------------------------------------------------------------------------------------------------- values


@by_backend
@by_dtype
@pytest.mark.parametrize("case", CONV_CASES.values(), ids=CONV_CASES)
def test_convolutions(case, dtype, backend):
    check_forward(ssconv, case, dtype, backend, "cuda")
    check_gradients(ssconv, case, dtype, backend, "cuda")


@by_backend
@by_dtype
@pytest.mark.parametrize("case", UPFIRDN_CASES.values(), ids=UPFIRDN_CASES)
def test_filters(case, dtype, backend):
    check_forward(ssconv, case, dtype, backend, "cuda")
    check_gradients(ssconv, case, dtype, backend, "cuda")


@by_backend
@by_dtype
@pytest.mark.parametrize("case", gpu_checks.LARGE.values(), ids=gpu_checks.LARGE)
def test_large_odd_shapes_and_second_derivatives(case, dtype, backend):
    check_against_float64(case, dtype, backend, "cuda")


@by_backend
@pytest.mark.parametrize("case", gpu_checks.SMALL.values(), ids=gpu_checks.SMALL)
def test_second_derivatives_of_every_option(case, backend):
    check_against_float64(case, torch.float32, backend, "cuda")


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", SM90.values(), ids=SM90)
def test_convolutions_of_sm_90a(case, dtype, monkeypatch):
    """Every instantiation, also where it would leave few channels to sm_80's; the same bits twice, and in clusters."""
    if (state := hopper_state("cuda")) != "available":
        pytest.skip(f"the products of sm_90a are {state}")
    from ssconv.backend.cuda import sm90
    from tests.support.serving import only

    monkeypatch.setattr(sm90, "MIN_CHANNELS", 8)
    sm90.conv_unsupported.cache_clear()
    try:
        tensors = tensors_of(case, dtype, "cuda")
        found = {}
        for family in ("sm90_im2col", "sm90_cluster"):
            with only(family, "sm90_wgrad"):
                check_against_float64(case, dtype, "cuda", "cuda")
                first, second = (case.call(ssconv, tensors, "cuda") for _ in range(2))
                assert torch.equal(first, second)
                found[family] = first
        assert torch.equal(*found.values()), "clusters give other bits"
        with only():
            assert gpu_checks.deviation(first, case.call(ssconv, tensors, "cuda").double()) < gpu_checks.NORMS[dtype]
    finally:
        sm90.conv_unsupported.cache_clear()


@pytest.mark.parametrize("case", parity_checks.ADJOINTS.values(), ids=parity_checks.ADJOINTS)
def test_adjoints_of_a_stride_are_exact(case, monkeypatch):
    if (state := hopper_state("cuda")) != "available":
        pytest.skip(f"the products of sm_90a are {state}")
    from ssconv.backend.cuda import launch as cuda_backend
    from ssconv.backend.cuda import sm90

    monkeypatch.setattr(sm90, "MIN_CHANNELS", 8)
    sm90.conv_unsupported.cache_clear()
    try:
        g, weights = case.tensors()
        native = [parity_checks.native(t).cuda() for t in (g, *weights)]
        found = cuda_backend.input_grad(native[0], native[1:], None, case.geometry, case.size)
        assert torch.equal(found.cpu().double(), case.expected(g, weights))
    finally:
        sm90.conv_unsupported.cache_clear()


@pytest.mark.parametrize("backend", MADE_FOR_IT)
def test_a_repeated_call_gives_the_same_bits(backend):
    case = gpu_checks.LARGE["split-depth"]
    tensors = tensors_of(case, torch.bfloat16, "cuda", requires_grad=True)

    def results() -> list[Tensor]:
        y = case.call(ssconv, tensors, backend)
        return [y, *torch.autograd.grad(y, [t for t in tensors.values() if t.requires_grad], torch.ones_like(y))]

    for one, other in zip(results(), results(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", halo_checks.LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("case", halo_checks.CONVOLUTIONS.values(), ids=halo_checks.CONVOLUTIONS)
def test_convolutions_with_the_halo_in_shared_memory(case, dtype, family):
    """Every instantiation in both layouts, in all tilings in turn; and nearly the same as the other layout. A failure
    of "sm90_halo_swizzled" alone says that a swizzled matrix may not begin in any row."""
    if (state := hopper_state("cuda")) != "available":
        pytest.skip(f"the products of sm_90a are {state}")
    with halo_checks.on_halo(family) as used:
        check_against_float64(case, dtype, "cuda", "cuda")
    assert used and all(row[4] == (family == "sm90_halo_swizzled") for row in used)
    tensors, results = tensors_of(case, dtype, "cuda"), []
    for one in (family, family, "sm90_halo"):
        with halo_checks.on_halo(one, fixed=True):
            results.append(case.call(ssconv, tensors, "cuda"))
    assert torch.equal(results[0], results[1]), "not the same bits twice"
    assert gpu_checks.deviation(results[0], results[2].double()) < gpu_checks.NORMS[dtype]


# --------------------------------------------------------------------------------------------------- size


@pytest.fixture
def alone() -> Iterator[None]:
    """Lets one test process at a time run: two that find the memory free would take it from each other."""
    with (Path(tempfile.gettempdir()) / "ssconv-gpu-memory.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        torch.cuda.empty_cache()


@pytest.mark.parametrize("backend", MADE_FOR_IT)
@pytest.mark.parametrize("operator", [split_depth, smooth], ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(1, 16, 520, 512, 512), (520, 16, 16, 128, 128)], ids=["volume", "batch"])
def test_more_than_two_to_the_31_elements(shape, operator, backend, alone):
    elements = int(np.prod(shape))
    assert elements > 2**31
    wanted = 10 * 2 * elements  # input, output, gradients of both, what autograd and the backend keep, bf16
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < wanted:
        pytest.skip(f"wants {wanted / 2**30:.0f} GiB of free GPU memory; {free / 2**30:.0f} are free")
    check_both_ends(operator, shape, torch.bfloat16, backend, "cuda")


@pytest.mark.parametrize("backend", MADE_FOR_IT)
def test_five_billion_elements(backend, alone):
    shape = (5, 64, 256, 256, 256)
    elements = int(np.prod(shape))
    assert elements > 5e9
    wanted = 3 * 2 * elements  # input, output and half as much again for what the checks compute in float64
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < wanted:
        pytest.skip(f"wants {wanted / 2**30:.0f} GiB of free GPU memory; {free / 2**30:.0f} are free")
    check_both_ends(split_depth, shape, torch.bfloat16, backend, "cuda", backward=False)


@pytest.mark.parametrize("backend", MADE_FOR_IT)
def test_channels_last_inputs_are_not_copied(backend, alone):
    """A forward takes its output and little more, a step its gradients: no copy of x or of the upstream gradient."""
    x = torch.randn(2, 64, 48, 48, 48, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    weights = [torch.randn(32, 32, k, 3, 3, device="cuda", dtype=torch.bfloat16, requires_grad=True) for k in (3, 1)]
    bias = torch.zeros(64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    volume, slack = x.numel() * 2, 16 * 2**20  # packed weights, sums of splits

    def call() -> Tensor:
        return ssconv.split_shuffle_conv3d(x, weights, bias, activation="lrelu", backend=backend)

    gy = torch.randn_like(call())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = call()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= volume + slack
    y.backward(gy)
    torch.cuda.synchronize()
    # the output, the gradient before the epilogue, that of x
    assert torch.cuda.max_memory_allocated() - before <= 3 * volume + slack


# ------------------------------------------------------------------------------ streams, graphs, compiler


def conv_step(backend: str, device: str = "cuda") -> tuple[list[Tensor], gpu_checks.Step]:
    """Leaves of a call with every argument, x first, and a function from these to output and gradients."""
    return gpu_checks.step_of(CONV_CASES["split-depth-full"], torch.float32, backend, device)


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    """Asserts equality within float32's rounding: another stream or graph may change the order of additions."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


@by_backend
def test_another_stream(backend):
    leaves, step = conv_step(backend)
    expected = step(*leaves)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    busy = torch.randn(4096, 4096, device="cuda")
    with torch.cuda.stream(stream):
        # x gets its values late on this stream: a kernel on the default stream would read them too early.
        late = torch.full_like(leaves[0].detach(), float("nan"))
        for _ in range(20):
            busy = busy @ busy / 64
        late.copy_(leaves[0].detach())
        found = step(late.requires_grad_(), *leaves[1:])
    stream.synchronize()
    close(found, expected)


@by_backend
def test_graph_capture_and_replay(backend):
    leaves, step = conv_step(backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(*leaves)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(*leaves)
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            for leaf in leaves:
                leaf.copy_(torch.randn_like(leaf))
        graph.replay()
        torch.cuda.synchronize()
        close([t.clone() for t in captured], step(*leaves))


@by_backend
def test_compiled_without_a_break(backend):
    check_compiled(backend, "cuda", "inductor")


@by_backend
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one(backend):
    leaves, step = conv_step(backend)
    others, step_there = conv_step(backend, "cuda:1")
    with torch.cuda.device(0):
        found = step_there(*others)
    assert all(t.device.index == 1 for t in found)
    close([t.to("cuda:0") for t in found], step(*leaves))


@by_backend
def test_autocast_computes_in_its_dtype(backend):
    layer = ssconv.SplitShuffleConv3d(8, 16).to("cuda")
    x = torch.randn(2, 8, 5, 9, 7, device="cuda", requires_grad=True)
    with torch.autocast("cuda", torch.bfloat16):
        weights = list(layer.weights)
        y = ssconv.split_shuffle_conv3d(x, weights, layer.bias, backend=backend)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    plain = copy.deepcopy(layer)
    wide = x.detach().clone().requires_grad_()
    exact = ssconv.split_shuffle_conv3d(wide, list(plain.weights), plain.bias, backend="reference")
    exact.square().sum().backward()
    assert gpu_checks.deviation(y, exact) < 1e-2
    assert gpu_checks.deviation(x.grad, wide.grad) < 2e-2
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


# ----------------------------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("backend", MADE_FOR_IT)
def test_two_hundred_steps_stay_close_to_the_reference(backend):
    gpu_checks.check_training_together(backend, "reference", 200, "cuda")


@pytest.mark.parametrize("backend", MADE_FOR_IT)
@pytest.mark.parametrize("case", gpu_checks.GRAPHED)
def test_training_with_cuda_graphs_is_the_same(case, backend):
    gpu_checks.check_replayed_training(case, backend, 16, "cuda")
