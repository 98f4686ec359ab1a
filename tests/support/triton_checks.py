"""Checks of the Triton kernels in Triton's interpreter, run by test_triton.py in processes of their own.

    TRITON_INTERPRET=1 python tests/support/triton_checks.py [CHECK ...]

Exit code 0: all pass; 3: one fails, and stderr names it. torch.empty gives NaN here, so that elements that no kernel
writes are found. Expected values come from the oracle, or for second derivatives from the reference in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings

import ssconv
from ssconv.backend.dispatch import resolve
from ssconv.backend.triton import launch as triton_backend
from ssconv.backend.triton import table as triton_table
from ssconv.backend.triton.table import Config, Key
from ssconv.spec import Epilogue
from tests.support import kernel_checks
from tests.support.gpu_checks import check_against_float64, check_compiled
from tests.support.kernel_checks import LARGE
from tests.support.strategies import CONV_CASES, UPFIRDN_CASES, Case, conv_cases, upfirdn_cases


@contextmanager
def table(conv: tuple[int, int, int], wgrad: tuple[int, int, int], descriptors: bool = False) -> Iterator[None]:
    """Runs every call with these tiles (M, N, K)."""
    rows = {}
    for kernel, tile in (("conv", conv), ("wgrad", wgrad)):
        for arithmetic, branches, channels, describable in itertools.product(
            triton_table.ARITHMETIC, triton_table.BRANCHES, triton_table.CHANNELS, (False, True)
        ):
            key = Key(kernel, 80, arithmetic, branches, channels, describable)
            rows[key] = Config(*tile, 4, 2, descriptors and describable)
    with tempfile.TemporaryDirectory() as folder:
        changed = dataclasses.replace(triton_table.TABLE, committed=Path(folder) / "table.json")
        changed.write(changed.committed, rows)
        triton_backend.TABLE = changed
        try:
            yield
        finally:
            triton_backend.TABLE = triton_table.TABLE


def whole_volumes():
    """Tiles as large as the small cases: the interpreter takes as long for a large tile as for a small one."""
    return table(conv=(256, 16, 32), wgrad=(16, 16, 128))


check = functools.partial(kernel_checks.check, backend="triton")


def named() -> None:
    """Every named case of both operators, all gradients."""
    with whole_volumes():
        for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
            check(case, torch.float32)


def named_16_bit() -> None:
    with whole_volumes():
        for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
            check(case, torch.float16)


def _drawn(strategy: Callable, count: int) -> None:
    @given(case=strategy())
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def draw(case: Case) -> None:
        check(case, torch.float32 if case.seed % 3 else torch.float16)

    with whole_volumes():
        draw()


def drawn_convolutions() -> None:
    """The whole option space."""
    _drawn(functools.partial(conv_cases, max_size=4), 40)


def drawn_filters() -> None:
    _drawn(upfirdn_cases, 60)


def tiles() -> None:
    """More boxes, blocks and steps than one, by pointers."""
    with table((16, 16, 16), (16, 16, 16)):
        for case in LARGE.values():
            check(case, torch.float32)
    with table(conv=(32, 32, 16), wgrad=(32, 16, 32)):
        for name in ("split-depth", "four-branches", "stride-2", "one-branch"):
            check(LARGE[name], torch.float16)


def descriptors() -> None:
    """The same by tensor descriptors, where they can read the tensors."""
    used = []
    real = triton_backend._descriptor
    triton_backend._descriptor = lambda *args: used.append(args[1:]) or real(*args)
    try:
        with table((16, 16, 16), (16, 16, 16), descriptors=True):
            for name in ("aligned", "valid", "one-branch", "many-samples-aligned", "stride-2", "split-depth"):
                before = len(used)
                check(dataclasses.replace(LARGE[name], layout="channels_last"), torch.float32)
                check(dataclasses.replace(LARGE[name], layout="channels_last"), torch.float16)
                aligned = name not in ("split-depth", "stride-2")
                assert (len(used) > before) or not aligned, f"{name}: no descriptor was used"
    finally:
        triton_backend._descriptor = real


def second_derivatives() -> None:
    """Of every option, against the reference in float64: gradgradcheck would drown in float32's rounding."""
    for name in ("tiny-full", "tiny-constant-scales", "transposed-valid-stride-212", "acs4-full-bf16-companions"):
        check_against_float64(CONV_CASES[name], torch.float32, "triton", "cpu")
    for name in ("smooth", "crop"):
        check_against_float64(UPFIRDN_CASES[name], torch.float32, "triton", "cpu")


def surroundings() -> None:
    kernel_checks.surroundings("triton")
    with table((16, 16, 16), (16, 16, 16)):
        kernel_checks.infinities("triton")


def kinks() -> None:
    kernel_checks.kinks("triton")


def batches() -> None:
    kernel_checks.batches("triton")


def serving() -> None:
    """Dtypes and sizes that the backend takes; on a CPU it serves only by name; torch.compile sees one graph."""
    assert ssconv.backends()["triton"] == "available"
    x, weights = torch.zeros(1, 2, 2, 2, 2), [torch.zeros(1, 1, 1, 1, 1)] * 2
    for dtype in (torch.float32, torch.float16):
        assert resolve("auto", x.to(dtype)) in ("cpu", "reference")
        assert resolve("triton", x.to(dtype)) == "triton"
    for dtype in (torch.float64, torch.bfloat16):
        try:
            ssconv.split_shuffle_conv3d(x.to(dtype), [w.to(dtype) for w in weights], backend="triton")
        except RuntimeError as error:
            assert "serves float32, float16 on cpu" in str(error) and str(dtype) in str(error), error
        else:
            raise AssertionError(f"{dtype} did not raise")
    many = torch.zeros(1).expand(1, 2, 2**11, 2**10, 2**10)
    try:
        triton_backend.epilogue(many.to("meta"), None, None, None, Epilogue())
    except ValueError as error:
        assert "2048, 1024, 1024" in str(error), error
    else:
        raise AssertionError("a sample of 2^31 voxels did not raise")
    check_compiled("triton", "cpu", "aot_eager")


def quick() -> None:
    """Enough to notice a planted fault."""
    names = "many-samples", "four-branches", "three-branches", "transposed", "stride-2", "split-depth", "identity"
    with table((16, 16, 16), (16, 16, 16)):
        for name in names:
            check(LARGE[name], torch.float32)
    with whole_volumes():
        check(CONV_CASES["shared-noise-negative-gain"], torch.float32)
        check(CONV_CASES["split-depth-valid-stride-2"], torch.float32)


def filters() -> None:
    for case in UPFIRDN_CASES.values():
        check(case, torch.float32)


CHECKS: dict[str, Callable[[], None]] = {
    c.__name__: c
    for c in (
        serving, named, named_16_bit, drawn_convolutions, drawn_filters, tiles, descriptors, second_derivatives,
        surroundings, kinks, batches, quick, filters,
    )
}  # fmt: skip


def main(*names: str) -> int:
    if not triton_backend.INTERPRETED:
        print("triton_checks: set TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)
    triton_backend.PROGRAMS = 16  # splits enough, and not a program per box
    np.seterr(all="ignore")  # the interpreter computes masked lanes too
    for name in names or CHECKS:
        try:
            CHECKS[name]()
        except AssertionError:
            traceback.print_exc()
            print(f"check failed: {name}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
