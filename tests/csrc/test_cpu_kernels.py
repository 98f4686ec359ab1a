"""The compiled CPU kernels on every instruction set that runs here, and the faults that their checks must notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import ssconv
from ssconv import backends

STATE = backends()["cpu"]
pytestmark = pytest.mark.skipif(STATE != "available", reason=f"the CPU backend is {STATE}")
ROOT = Path(__file__).parents[2]
CHECKS = {  # a process each
    "values": ("small", "conversions", "kinks", "nan_and_infinity", "no_samples"),
    "workers": ("workers",),
    "guard_pages": ("guard_pages",),
    "filters": ("filters", "filters_16_bit", "filter_workers"),
    "wide": ("wide_float32", "wide_16_bit"),
}
LINUX = sys.platform == "linux"


def instruction_sets() -> list[str]:
    if STATE != "available":
        return ["generic"]
    kernels = torch.ops.ssconv_kernels
    before = kernels.cpu_instruction_set()
    found = [name for name in ("generic", "avx2", "avx512") if kernels.set_cpu_instruction_set(name)]
    kernels.set_cpu_instruction_set(before)
    return found


def run(instruction_set: str, *checks: str, package: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The checks in a process in which the kernels' scratch memory is full of NaN."""
    path = os.pathsep.join([str(package), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "SSCONV_POISON": "1", "PYTHONFAULTHANDLER": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, str(ROOT / "tests" / "support" / "cpu_kernel_checks.py"), instruction_set, *checks]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
@pytest.mark.parametrize("checks", CHECKS)
@pytest.mark.parametrize("instruction_set", instruction_sets())
def test_instruction_set(instruction_set, checks):
    if checks == "guard_pages" and not LINUX:
        pytest.skip("pages are protected by Linux's mprotect")
    done = run(instruction_set, *CHECKS[checks])
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_best_instruction_set_is_chosen():
    assert torch.ops.ssconv_kernels.cpu_instruction_set() == instruction_sets()[-1]
    assert not torch.ops.ssconv_kernels.set_cpu_instruction_set("sse9")


# -------------------------------------------------------------------------------------------------- planted faults


@dataclass(frozen=True)
class Fault:
    """What is wrong, where (the one `old` in csrc/cpu/`file` becomes `new`), and the check that must notice."""

    what: str
    file: str
    old: str
    new: str
    check: str = "small"
    instruction_set: str = "generic"


FAULTS = [
    Fault("bf16 rounds half up", "floats.inl", "0x7fffu + ((b.u >> 16) & 1)", "0x8000u", "conversions"),
    Fault("NaN rounds to infinity", "floats.inl", "nan ? (b.u >> 16) | 0x40 : rounded", "rounded", "conversions"),
    Fault("fp16 infinity is 65536", "floats.inl", "if (b.f >= 65536.f)", "if (false)", "conversions"),
    Fault("fp16 overflows late", "floats.inl", "b.u >= (143u << 23)", "b.u >= (144u << 23)", "conversions"),
    Fault("fp16 denormals", "floats.inl", "b.u < (113u << 23)", "b.u < (112u << 23)", "conversions"),
    Fault("zeros outside are not written", "geometry.inl",
          "for (int64_t w = last; w < box.w.length; ++w) __builtin_memset(to + box.column(w), 0, PITCH * 4);", ""),
    Fault("the line after the volume is read", "geometry.inl", "base + r.shift[i] >= size", "base + r.shift[i] > size"),
    Fault("odd positions begin one early", "geometry.inl", "((w.length + 1) / 2)", "(w.length / 2)"),
    Fault("scales of the first block for all", "geometry.inl", "scale ? scale + b * PITCH", "scale ? scale"),
    Fault("parity of an adjoint", "geometry.inl", "numerator % g.stride[d] == 0", "numerator % g.stride[d] != 0"),
    Fault("last block of inputs replaces the others", "convolution.inl",
          "p.accumulate = k > 0;", "p.accumulate = false;"),
    Fault("a tile wider than the volume", "convolution.inl",
          "minimum(end[2], c.count[2])};", "end[2]};", "guard_pages"),
    Fault("sums straight into an output of other channels", "convolution.inl",
          "pitch == g.out_channels;", "true;", "guard_pages"),
    Fault("sums of one parity side by side", "convolution.inl", "out_step(g, 1) * y.stride[3],", "y.stride[3],"),
    Fault("the other branch's sums straight over the first's", "convolution.inl", "++s, sums.at += pitch", "++s"),
    Fault("noise of the wrong parity", "convolution.inl", "noise[w * step];", "noise[w];"),
    Fault("z of all branches in one place", "convolution.inl", "s * g.out_channels * z->stride[1]", "0"),
    Fault("taps left out on one side only", "convolution.inl", "rd.end != last_d.end ||", ""),
    Fault("a tap inside is left out", "convolution.inl", "at < 0 && at + step >= 0", "at <= 0 && at + step >= 0"),
    Fault("every piece leaves out its last row", "gemm.inl", "m == rows ? skip_last_row : 0", "skip_last_row"),
    Fault("the gradient's first position is left out", "wgrad.inl",
          "from + first * g.stride[2] < 0", "from + first * g.stride[2] <= 0"),
    Fault("clamp before gain", "epilogue.inl",
          "  t *= e.gain;\n  const T bound = e.clamp - T{};\n  t = t > bound ? bound : t;",
          "  const T bound = e.clamp - T{};\n  t = t > bound ? bound : t;\n  t *= e.gain;"),
    Fault("branches swapped in the tail", "epilogue.inl", "k * e.groups + s]", "k * e.groups + e.groups - 1 - s]"),
    Fault("four branches in another order", "epilogue.inl",
          "al = Pair<L>::low(t[0], t[2 % G])", "al = Pair<L>::low(t[0], t[1 % G])"),
    Fault("side of the knee", "epilogue.inl", "e.gain > 0 ? 1.f : -1.f", "1.f"),
    Fault("at 0 the positive side's slope", "epilogue.inl", "y * s.side > 0", "y * s.side >= 0", "kinks"),
    Fault("clamped below, and yet a gradient", "epilogue.inl", "(y < bound) & (y > -bound)", "(y < bound)"),
    Fault("noise of one channel's first positions for all", "epilogue.inl",
          "load_vector<LANES>(line.noise + w) : vector{};", "load_vector<LANES>(line.noise) : vector{};"),
    Fault("positions of one channel side by side", "epilogue.inl", "from[i * step];", "from[i];"),
    Fault("results of one channel side by side", "epilogue.inl", "to[i * step] = v[i];", "to[i] = v[i];"),
    Fault("bias gradient of one channel's last positions", "epilogue.inl",
          "*l.bias += sum_of<LANES>(bias);", "*l.bias += 0;"),
    Fault("noise gradient of one channel is replaced", "epilogue.inl",
          "load_vector<LANES>(l.noise + w) + t);", "t);"),
    Fault("bias gradient of one piece", "epilogue.inl",
          "for (int64_t task = 0; task < tasks; ++task) sum += bias_sums",
          "for (int64_t task = 0; task < 1; ++task) sum += bias_sums"),
    Fault("shared noise of the last sample", "epilogue.inl", "if (!noise_shared || n == 0)", "if (true)"),
    Fault("sums start from what was there", "gemm.inl",
          "p.accumulate ? *c + sum[i][v] : sum[i][v]", "*c + sum[i][v]"),
    Fault("every piece of rows begins after the first", "gemm.inl", "p.a += m * LDA;", "p.a += LDA;"),
    Fault("the second part is forgotten", "wgrad.inl",
          "int64_t split = 1; split < splits", "int64_t split = 2; split < splits", "workers"),
    Fault("positions of one sample", "wgrad.inl",
          "const int64_t n = i / (nd * nh * nw);", "const int64_t n = 0;"),
    Fault("scale of the other sample", "wgrad.inl", "x_scale + (n * g.branches + s)", "x_scale + s"),
    Fault("the last task is nobody's", "workers.inl",
          "return i < q.count ? i : -1;", "return i < q.count - 1 ? i : -1;"),
    Fault("three taps in another order", "pack_weights.inl",
          "g.adjoint ? t % columns : columns - 1 - t % columns", "t % columns", "small", "avx2"),
    Fault("one tap's share twice", "gemm.inl", "out[i] += sum[i - v][v]", "out[i] += sum[i - v][0]", "small",
          "avx2"),
    Fault("a line's last outputs are not stored", "gemm.inl", "(i < M || i < M + p.tail)", "i < M", "small",
          "avx2"),
    Fault("one output for the next rows instead of two", "gemm.inl",
          "store_vector<LANES>(p.carry + (i - M) * LANES", "store_vector<LANES>(p.carry", "small", "avx2"),
    Fault("outputs that nothing adds to are not cleared", "convolution.inl",
          "rows > 0 ? minimum(touched, end[2]) : end[2]", "begin[2]", "small", "avx2"),
    Fault("a scaled input is read where it lies", "convolution.inl",
          "x.stride[1] == 1 && in_scale == nullptr;", "x.stride[1] == 1;", "small", "avx2"),
    Fault("a gradient's inputs where they lie, one by one", "wgrad.inl",
          "g.stride[2] * x.stride[4]", "x.stride[4]"),
    Fault("a gradient's scale is forgotten where its input lies well", "wgrad.inl",
          "v.stride[1] == 1 && scale == nullptr;", "v.stride[1] == 1;"),
    Fault("offsets of all blocks are the first's", "convolution.inl",
          "offset_a[j - count] + box.plane();", "offset_a[j - count];"),
    Fault("taps of a gradient reversed", "wgrad.inl", "3 * i + 2 - kw : kw", "3 * i + kw : kw", "small",
          "avx2"),
    Fault("the other line of a vector reads the first's inputs", "convolution.inl",
          "ph + other + r[1].shift[i1]);", "ph + r[1].shift[i1]);", "small", "avx512"),
    Fault("the other line of a vector reads outside the volume", "convolution.inl",
          "h < 0 || h >= x.size[3] ? zeros : k", "k", "small", "avx512"),
    Fault("taps that only the first line has inside", "convolution.inl", "l < lines; ++l) wanted", "l < 1; ++l) wanted",
          "small", "avx512"),
    Fault("the second half of a tile one line early", "convolution.inl",
          "(lines - 1) * heights * to.h;", "(lines - 1) * (heights - 1) * to.h;", "small", "avx512"),
    Fault("the second block of channels has the first's weights", "convolution.inl",
          "packed + n * packed_step + packed_at[s] + o * tap_count(b) * g.in_channels;\n          p.c",
          "packed + n * packed_step + packed_at[s];\n          p.c", "small", "avx512"),
    Fault("the first sample's scaled weights for all", "convolution.inl",
          "scaled ? floats : 0};", "0};", "small", "avx512"),
    Fault("weights scaled as the first branch's", "pack_weights.inl",
          "scale ? scale + s * g.in_channels", "scale ? scale", "small", "avx512"),
    Fault("dot products of unscaled inputs", "convolution.inl",
          "(in_scale ? in_scale[(n * g.branches + s) * g.in_channels + i] : 1.f)", "1.f"),
    Fault("a dot product without its last channels", "gemm.inl",
          "for (; i < count; ++i) rest += a[i] * b[i];", "", "small", "generic"),
    Fault("an odd line out counts twice", "wgrad.inl",
          "offset_b[p.batch++] = zeros;", "offset_b[p.batch++] = offset_b[0];", "small", "avx512"),
    Fault("a gradient of every other line", "kernels.inl", "first(v) + second(v)", "first(v)", "small", "avx512"),
    Fault("a window of gradients that stands still", "gemm.inl", "w[(first + v) % 3]", "w[v]", "small", "avx512"),
    Fault("taps not reversed", "upfirdn.inl",
          "memory[o] = {i, count, f.taps[d] + (count ? f.length[d] - 1 - t : 0), -up};",
          "memory[o] = {i, count, f.taps[d] + (count ? t : 0), up};", "filters"),
    Fault("a phase of the zero insertion", "upfirdn.inl",
          "(up - position % up) % up", "(up + position % up) % up", "filters"),
    Fault("cropped on the left by one sample less", "upfirdn.inl", "      t -= i * up;\n", "", "filters"),
    Fault("the filter reads beyond the input", "upfirdn.inl",
          "maximum(0, minimum(taps, inputs - i))", "taps", "guard_pages"),
    Fault("a ring of planes that is too short", "upfirdn.inl", "axis.longest = maximum(axis.longest, count);",
          "axis.longest = maximum(1, count - (d == 0));", "filters"),
    Fault("a ring that is too short for the border", "upfirdn.inl",
          "axis.longest = maximum(axis.longest, memory[o].count);", "", "filters"),
    Fault("what lies behind the last slice is not added", "upfirdn.inl",
          "to = maximum(o, ", "to = minimum(o, ", "filters"),
    Fault("the last slice is not repeated", "upfirdn.inl", "i = minimum(maximum(i, 0), inputs - 1);",
          "i = maximum(i, 0);", "filters"),
    Fault("a plane is thought to be there", "upfirdn.inl",
          "for (have = maximum(have, r.first); have < r.first + r.count; ++have) fill_plane(have);",
          "for (have = maximum(have, r.first + (o > tile.begin[0])); have < r.first + r.count; ++have) "
          "fill_plane(have);",
          "filters"),
    Fault("the second block of channels is the first", "upfirdn.inl", "tile.channel * x.stride[1];", "0;", "filters"),
    Fault("a last block of channels without its zeros", "upfirdn.inl",
          "const bool whole = tile.channels == WIDTH;", "const bool whole = true;", "guard_pages"),
    Fault("every piece of height to the first's place", "upfirdn.inl",
          "(tile.begin[1] + h) * y.stride[3]", "h * y.stride[3]", "filters"),
    Fault("no zeros at a line's ends", "wgrad.inl",
          "__builtin_memset(line, 0, size_t(ends * width) * 4);", "", "small", "avx2"),
]  # fmt: skip


class Builder:
    """Builds copies of the package whose compiled module has one instruction set's kernels, from changed sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = folder / "objects"
        self.objects.mkdir()
        self.compiler = shutil.which(os.environ.get("CXX", "c++"))
        include = Path(torch.__file__).parent / "include"
        flags = ["-I", str(include), "-I", sysconfig.get_paths()["include"], "-DSSCONV_CPU_KERNELS"]
        flags += ["-DPy_LIMITED_API=0x030A0000", "-DTORCH_TARGET_VERSION=0x020b000000000000ULL"]
        for name in ("bindings", "build_info", "cpu/dispatch"):
            self.compile(ROOT / "csrc" / f"{name}.cpp", self.objects / f"{Path(name).name}.o", flags)

    def compile(self, source: Path, result: Path, flags: list[str] = []) -> None:  # noqa: B006
        command = [self.compiler, "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", *flags]
        done = subprocess.run([*command, "-c", str(source), "-o", str(result)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    def package(self, name: str, instruction_set: str, fault: Fault | None) -> Path:
        folder = self.folder / name
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        shutil.copytree(ROOT / "ssconv", folder / "ssconv", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        if fault is not None:
            path = folder / "csrc" / "cpu" / fault.file
            text = path.read_text()
            assert text.count(fault.old) == 1, (
                f"{fault.file} has {text.count(fault.old)} of {fault.old!r}: plant it elsewhere"
            )
            path.write_text(text.replace(fault.old, fault.new))
        self.compile(folder / "csrc" / "cpu" / f"{instruction_set}.cpp", folder / "kernels.o")
        others = [n for n in ("generic", "avx2", "avx512") if n != instruction_set]
        stub = "".join(
            f"namespace {n} {{ extern const Kernels KERNELS; const Kernels KERNELS = {{}}; }}\n" for n in others
        )
        (folder / "stub.cpp").write_text(f'#include "csrc/cpu/cpu.h"\nnamespace ssconv {{\n{stub}}}\n')
        self.compile(folder / "stub.cpp", folder / "stub.o")
        objects = [folder / "kernels.o", folder / "stub.o", *sorted(self.objects.glob("*.o"))]
        module = folder / "ssconv" / "_C.abi3.so"
        libraries = ["-L", Path(torch.__file__).parent / "lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run([self.compiler, "-shared", "-o", module, *objects, *libraries], check=True)
        return folder


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> Builder:
    if shutil.which(os.environ.get("CXX", "c++")) is None or not LINUX:
        pytest.skip("builds faulty kernels with a C++ compiler on Linux; there is none here")
    return Builder(tmp_path_factory.mktemp("faults"))


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", [n for n in ("generic", "avx2") if n in instruction_sets()])
def test_an_unchanged_copy_passes(instruction_set, builder):
    folder = builder.package(f"unchanged_{instruction_set}", instruction_set, None)
    done = run(
        instruction_set,
        "small",
        "filters",
        "filter_workers",
        "conversions",
        "kinks",
        "workers",
        "guard_pages",
        package=folder,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f.what.replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(number, builder):
    fault = FAULTS[number]
    if fault.instruction_set not in instruction_sets():
        pytest.skip(f"this processor does not run {fault.instruction_set}")
    folder = builder.package(f"fault_{number}", fault.instruction_set, fault)
    done = run(fault.instruction_set, fault.check, package=folder)
    if fault.check == "guard_pages":
        assert done.returncode in (3, -11), f"{fault.what}: exit code {done.returncode}; {done.stderr[-1000:]}"
    else:
        assert done.returncode == 3, f"{fault.what}: exit code {done.returncode}; {done.stderr[-1000:]}"
    shutil.rmtree(folder)


def test_the_copies_are_of_this_package():
    assert Path(ssconv.__file__).parent == ROOT / "ssconv", "the planted faults go into the sources of another checkout"
