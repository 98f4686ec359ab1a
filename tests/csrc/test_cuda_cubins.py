"""Checks of the machine code of the CUDA kernels, as `make setup` compiled it: no spills, tensor cores, wide loads and
stores, and no more registers and shared memory than the committed budget."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections import Counter

import pytest

from benchmarks.gpu import cuda_cubins
from benchmarks.gpu.cubins import count_instructions, tool
from benchmarks.gpu.cuda_cubins import Cubin, architectures, cubins, faults, module_path, over_budget, write_budget
from ssconv.backend.cuda import sm90, sm90_halo


@pytest.fixture(scope="module")
def module():
    try:
        tool("cuobjdump")
        return module_path()
    except FileNotFoundError as error:
        pytest.skip(f"{error}; pip install . builds the kernels where nvcc is found")


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 86, 89, 90])
def test_no_kernel_has_a_fault_or_is_over_its_budget(architecture, module):
    """86 and 89 run the same instructions as 80, so only registers, stack and shared memory are read there."""
    if architecture not in architectures(module):
        pytest.skip(f"the module has no code for sm_{architecture} (SSCONV_CUDA_ARCHS)")
    code = architecture in (80, 90)
    found = cubins(architecture, module, code)
    assert len(found) >= 90
    wrong = [f"{c.name}: {f}" for c in found for f in faults(c) if code or not f.startswith("no ")]
    assert not wrong, "\n".join(wrong)
    if architecture == 90:
        kinds = Counter(c.kind for c in found)
        assert kinds["ConvSm90"] == 4 * sum(map(len, sm90.TILE_N.values()))
        assert kinds["ConvSm90Halo"] == 2 * sum(map(len, sm90_halo.TILE_N.values()))
        assert kinds["WgradSm90"] == 4
    release = importlib.import_module("ssconv._C").build_info()["cuda"]
    if release != json.loads(cuda_cubins.BUDGET.read_text())["nvcc"]:
        pytest.skip(f"the budget is of another nvcc than {release}; the rest was checked")
    wrong = over_budget(found)
    assert not wrong, "\n".join(wrong)
    assert {c.name for c in found} == set(cuda_cubins.read_budget()[f"sm_{architecture}"]), "the budget has others"


def test_the_assembler_serialises_no_wgmma(module):
    """setup.py keeps its remarks: C7510 and similar ones."""
    if 90 not in architectures(module):
        pytest.skip("the module has no code for sm_90 (SSCONV_CUDA_ARCHS)")
    assert importlib.import_module("ssconv._C").build_info()["cuda_remarks"] == []


def test_the_convolutions_of_sm_90a_fit_into_shared_memory():
    """Shared memory as the headers compute it, for each number of columns."""
    for columns in {c for widths in sm90.TILE_N.values() for c in widths}:
        shared = cuda_cubins.conv_sm90_shared(columns)
        assert 100 * 1024 < shared <= 227 * 1024
    for columns in {c for widths in sm90_halo.TILE_N.values() for c in widths}:
        assert 200 * 1024 < sm90_halo.shared_bytes(columns) <= 227 * 1024


CODE = Counter(
    {"HMMA.16816.F32.BF16": 64, "LDGSTS.E.BYPASS.128": 20, "LDSM.16.M88.4": 20, "STG.E.128": 8, "LDG.E.128": 1}
)
GOOD = {
    "ConvSm80<Bf16, 2, 128, false>": Cubin(80, "ConvSm80<Bf16, 2, 128, false>", 244, 0, 73728, CODE),
    "ConvSm80<Ieee, 1, 64, true>": Cubin(
        90, "ConvSm80<Ieee, 1, 64, true>", 163, 0, 50000, Counter({"LDGSTS.E.BYPASS.128": 9, "STG.E.128": 8})
    ),
    "WgradSm80<Tf32, 64>": Cubin(86, "WgradSm80<Tf32, 64>", 155, 0, 50000, CODE - Counter("LDSM.16.M88.4")),
    "ConvSm90<Bf16, 2, 128, 2>": Cubin(
        90,
        "ConvSm90<Bf16, 2, 128, 2>",
        168,
        0,
        196672,
        Counter(
            {
                "HGMMA.64x128x16.F32.BF16": 8,
                "WARPGROUP.DEPBAR.LE": 3,
                "UTMALDG.5D.IM2COL": 1,
                "UBLKCP.S.G.MULTICAST": 1,
                "SYNCS.ARRIVE.TRANS64.RED.A1T0": 4,
                "UCGABAR_WAIT": 1,
                "MEMBAR.ALL.GPU": 1,
                "SYNCS.PHASECHK.TRANS64.TRYWAIT": 4,
                "USETMAXREG.TRY_ALLOC.CTAPOOL": 1,
                "STG.E.128": 16,
            }
        ),
    ),
    "ConvSm90Halo<Bf16, 2, 64>": Cubin(
        90,
        "ConvSm90Halo<Bf16, 2, 64>",
        168,
        0,
        231552,
        Counter(
            {
                "HGMMA.64x64x16.F32.BF16": 56,
                "WARPGROUP.DEPBAR.LE": 12,
                "UTMALDG.5D": 1,
                "UBLKCP": 1,
                "SYNCS.PHASECHK.TRANS64.TRYWAIT": 4,
                "USETMAXREG.TRY_ALLOC.CTAPOOL": 1,
                "STG.E.128": 16,
            }
        ),
    ),
    "WgradSm90<F16, 64>": Cubin(
        90,
        "WgradSm90<F16, 64>",
        168,
        0,
        221232,
        Counter(
            {
                "HGMMA.64x128x16.F32": 8,
                "WARPGROUP.DEPBAR.LE": 2,
                "UTMALDG.5D.IM2COL": 2,
                "SYNCS.PHASECHK.TRANS64.TRYWAIT": 2,
                "USETMAXREG.TRY_ALLOC.CTAPOOL": 1,
            }
        ),
    ),
    "EpilogueBackward<f16, 2>": Cubin(
        89, "EpilogueBackward<f16, 2>", 138, 0, 0, Counter({"STG.E.128": 2, "LDG.E.128": 6})
    ),
}


@pytest.mark.parametrize("cubin", GOOD.values(), ids=GOOD)
def test_a_good_kernel_has_no_faults(cubin):
    assert faults(cubin) == []


def without(cubin: Cubin, start: str) -> Cubin:
    kept = Counter({n: c for n, c in cubin.instructions.items() if not n.startswith(start)})
    return dataclasses.replace(cubin, instructions=kept)


CONV, BACKWARD = GOOD["ConvSm80<Bf16, 2, 128, false>"], GOOD["EpilogueBackward<f16, 2>"]
CONV_SM90 = GOOD["ConvSm90<Bf16, 2, 128, 2>"]
ALONE = dataclasses.replace(
    CONV_SM90,
    name="ConvSm90<Bf16, 2, 128, 1>",
    instructions=CONV_SM90.instructions
    - Counter({"UCGABAR_WAIT": 1, "UBLKCP.S.G.MULTICAST": 1})
    + Counter({"UBLKCP.S.G": 1}),
)
GOOD[ALONE.name] = ALONE
BAD = {
    "stack": (dataclasses.replace(CONV, stack=8), "8 bytes of stack"),
    "local memory": (
        dataclasses.replace(CONV, instructions=CODE + Counter({"LDL.LU": 2, "STL": 1})), "3 accesses to local memory"
    ),
    "shared memory": (dataclasses.replace(CONV, architecture=86, shared=131072), "131072 bytes of shared memory"),
    "registers": (dataclasses.replace(BACKWARD, registers=180), "180 registers"),
    "no tensor cores": (without(CONV, "HMMA"), "HMMA"),
    "no asynchronous copies": (without(CONV, "LDGSTS"), "LDGSTS"),
    "no matrix loads": (without(CONV, "LDSM"), "LDSM"),
    "narrow stores": (without(CONV, "STG"), "STG.E.128"),
    "no wgmma": (without(CONV_SM90, "HGMMA"), "HGMMA"),
    "no multicast": (
        dataclasses.replace(
            CONV_SM90, instructions=without(CONV_SM90, "UBLKCP").instructions + Counter({"UBLKCP.S.G": 1})
        ),
        "bulk copy to both blocks",
    ),
    "no arrivals at the other block": (without(CONV_SM90, "SYNCS.ARRIVE"), "SYNCS.ARRIVE.TRANS64.RED"),
    "no barrier of the cluster": (without(CONV_SM90, "UCGABAR"), "UCGABAR_WAIT"),
    "memory flushed at every stage": (
        dataclasses.replace(CONV_SM90, instructions=CONV_SM90.instructions + Counter({"MEMBAR.ALL.GPU": 4})),
        "MEMBAR.ALL.GPU",
    ),
    "no im2col": (without(CONV_SM90, "UTMALDG"), "UTMALDG.5D.IM2COL"),
    "serialised": (
        dataclasses.replace(CONV_SM90, instructions=CONV_SM90.instructions + Counter({"WARPGROUP.DEPBAR.LE": 9})),
        "serialised",
    ),
    "descriptors that are not warp-uniform": (
        dataclasses.replace(CONV_SM90, instructions=CONV_SM90.instructions + Counter({"R2UR": 19})), "R2UR"
    ),
    "no tile": (without(GOOD["ConvSm90Halo<Bf16, 2, 64>"], "UTMALDG"), "UTMALDG.5D"),
    "too many registers for three warpgroups": (dataclasses.replace(CONV_SM90, registers=176), "176 registers"),
    "narrow loads": (without(BACKWARD, "LDG"), "LDG.E.128"),
    "narrow stores of what memory limits": (without(BACKWARD, "STG"), "STG.E.128"),
}  # fmt: skip


@pytest.mark.parametrize(("cubin", "message"), BAD.values(), ids=BAD)
def test_a_fault_in_a_kernel_is_named(cubin, message):
    (said,) = faults(cubin)
    assert message in said


def test_the_budget_only_improves(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_cubins, "BUDGET", tmp_path / "budget.json")
    assert write_budget([CONV], "13.0", accept=False) == []
    assert over_budget([CONV]) == []
    worse = dataclasses.replace(CONV, registers=245)
    (said,) = over_budget([worse])
    assert "245 registers" in said and "the budget is 244" in said
    assert len(write_budget([worse], "13.0", accept=False)) == 1 and over_budget([worse])
    better = dataclasses.replace(CONV, registers=200)
    assert write_budget([better], "13.0", accept=False) == []
    assert over_budget([CONV]), "the budget did not improve"
    assert "is of nvcc 13.0" in write_budget([better], "13.1", accept=False)[0]
    assert write_budget([worse], "13.1", accept=True) == [] and over_budget([worse]) == []
    (said,) = over_budget([dataclasses.replace(CONV, name="ConvSm80<Bf16, 2, 32, true>")])
    assert "not in budget.json" in said


def test_instructions_are_counted_by_name():
    text = """
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;   /* 0x00000a00ff017624 */
                                                                             /* 0x000fe400078e00ff */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], [R4.64] ;       /* 0x0000000000037919 */
        /*0020*/              @UP1 LDGSTS.E.BYPASS.128 [R3], [R4.64] ;       /* 0x0000000000037919 */
    """
    assert count_instructions(text.splitlines()) == {"IMAD.MOV.U32": 1, "LDGSTS.E.BYPASS.128": 2}
