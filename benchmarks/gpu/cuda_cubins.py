"""Reads registers, memory and instructions of the CUDA kernels from the compiled module, and checks their budget.

    python -m benchmarks.gpu.cuda_cubins [--architecture 80 86 89 90] [--out FILE.md]
    python -m benchmarks.gpu.cuda_cubins --update        lowers tests/csrc/cuda_budget.json to the kernels' needs
    python -m benchmarks.gpu.cuda_cubins --accept        raises it too; give the reason in the commit

Per kernel: registers, stack, shared memory with the committed table's stages, tensor-core instructions, asynchronous
copies, and loads and stores of 16 bytes. Exit code 1 where a kernel has a fault (`faults`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.gpu.cubins import count_instructions, tool
from ssconv.backend.cuda import sm90, sm90_halo, table
from ssconv.backend.cuda.table import Key
from ssconv.parser import Parser

ROOT = Path(__file__).resolve().parents[2]
BUDGET = ROOT / "tests" / "csrc" / "cuda_budget.json"
ARITHMETIC = {"Bf16": "16bit", "F16": "16bit", "Tf32": "tf32", "Ieee": "ieee"}
# Two blocks of 128 threads have room for 255 each; one of 384 has for 168, which its warpgroups then share out anew.
MOST_REGISTERS = {"ConvSm80": 255, "WgradSm80": 255, "ConvSm90": 168, "WgradSm90": 168}
MOST_REGISTERS |= {"ConvSm90Halo": 168}
# Up to this many, four blocks of 128 threads fit: kernels that memory limits hide its latency with threads.
MEMORY_BOUND_REGISTERS = 128
# The sums for the gradients of four branches of 16-bit chunks need more; two blocks fit.
EXCEPTIONS = {"EpilogueBackward<f16, 4>": 224, "EpilogueBackward<bf16, 4>": 224, "EpilogueBackward<float, 4>": 160}
EXCEPTIONS |= {"EpilogueBackward<f16, 2>": 144, "EpilogueBackward<bf16, 2>": 144}


@dataclass(frozen=True)
class Cubin:
    """One kernel for one architecture. registers: per thread. stack: bytes of local memory per thread. shared: bytes of
    a block, those of the launch included."""

    architecture: int
    name: str
    registers: int
    stack: int
    shared: int
    instructions: Counter[str]

    @property
    def kind(self) -> str:
        """The kernel's class: ConvSm80, WgradSm80, EpilogueForward, .."""
        return self.name.split("<")[0]

    @property
    def arguments(self) -> list[str]:
        """Lists the arguments of its template."""
        return re.findall(r"[\w]+", self.name)[1:]

    @property
    def tensor_cores(self) -> bool:
        return self.kind in ("ConvSm80", "WgradSm80") and "Ieee" not in self.arguments

    def count(self, *starts: str) -> int:
        """Counts the instructions whose name begins with one of these."""
        return sum(n for name, n in self.instructions.items() if name.startswith(starts))


def module_path() -> Path:
    """Finds the compiled module.

    Raises:
        FileNotFoundError: there is none, or it has no CUDA kernels.
    """
    spec = importlib.util.find_spec("ssconv._C")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("ssconv._C: the package was built without the compiled module")
    module = importlib.import_module("ssconv._C")
    if "cuda" not in module.build_info()["kernels"]:
        raise FileNotFoundError(f"{spec.origin}: built without CUDA kernels")
    return Path(spec.origin)


def architectures(module: Path) -> list[int]:
    """Lists the architectures that the module has machine code for."""
    listed = subprocess.run([tool("cuobjdump"), "-lelf", module], capture_output=True, text=True, check=True).stdout
    return sorted({int(n) for n in re.findall(r"sm_(\d+)", listed)})


@functools.cache
def _plain_name(mangled: str) -> str:
    """Demangles a kernel's name to, for example, Product<Bf16, 2, 128, false>."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        raise FileNotFoundError("c++filt: expected on the PATH; it comes with the C++ compiler's binutils")
    said = subprocess.run([filt, mangled], capture_output=True, text=True, check=True).stdout
    found = re.search(r"kernel<(.+?) ?>\(", said.replace("ssconv::", ""))
    return found.group(1) if found else said.strip()


def _usage(module: Path, architecture: int) -> dict[str, tuple[int, int, int]]:
    """Reads registers, stack and static shared memory by mangled name."""
    said = subprocess.run(
        [tool("cuobjdump"), "-res-usage", "-arch", f"sm_{architecture}", module],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    pattern = r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    return {n: (int(r), max(int(st), int(lo)), int(sh)) for n, r, st, sh, lo in re.findall(pattern, said)}


def _code(module: Path, architecture: int) -> Iterator[tuple[str, Counter[str]]]:
    """Counts instructions by mangled name. The text has a hundred megabytes, so it is read line by line."""
    command = [tool("cuobjdump"), "-sass", "-arch", f"sm_{architecture}", str(module)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name, lines = "", []
        for line in process.stdout:
            if "Function :" in line:
                if name:
                    yield name, count_instructions(lines)
                name, lines = line.split()[-1], []
            elif "*/  " in line:
                lines.append(line[:100])
        if name:
            yield name, count_instructions(lines)
    if process.returncode:
        raise RuntimeError(f"cuobjdump -sass failed with exit code {process.returncode}")


def launched_shared(name: str, architecture: int) -> int:
    """Dynamic shared memory of a block: for sm_80's convolutions and weight gradients, the most that the committed
    table asks for; for sm_90a's kernels, what their headers compute."""
    kind, arguments = name.split("<")[0], re.findall(r"\w+", name)[1:]
    if kind == "ConvSm90":
        return conv_sm90_shared(int(arguments[2]))
    if kind == "ConvSm90Halo":
        return sm90_halo.shared_bytes(int(arguments[2]))
    if kind == "WgradSm90":
        stage = (int(arguments[1]) + (512 if arguments[1] == "64" else 256)) * 128
        return 220 * 1024 // stage * (stage + 16)
    if kind not in ("ConvSm80", "WgradSm80"):
        return 0
    rows = table.TABLE.read(table.TABLE.committed)
    if kind == "ConvSm80":
        branches, width, singly = int(arguments[1]), int(arguments[2]), arguments[3] == "true"
        wanted = ("product", branches, width, singly)
    else:
        wanted = ("weights", 1, int(arguments[1]), False)
    arithmetic, family = ARITHMETIC[arguments[0]], table.family(architecture)

    def asked(key: Key, width: int) -> bool:
        mine = (key.kernel, key.branches, width, key.singly)
        return mine == wanted and key.architecture == family and key.arithmetic == arithmetic

    bytes_asked = [table.stage_bytes(k, c.width) * c.stages for k, c in rows.items() if asked(k, c.width)]
    return max(bytes_asked, default=0)


def conv_sm90_shared(columns: int) -> int:
    """Bytes of the pipeline and its mbarriers, as csrc/cuda/conv_sm90.cuh computes them."""
    stage = (sm90.TILE_M + columns) * 128
    stages = min(6, 220 * 1024 // stage)
    return stages * (stage + 16)


def cubins(architecture: int, module: Path, code: bool = True) -> list[Cubin]:
    """Every kernel of the module for one architecture, sm_90a's among those of 90. Without `code` the instructions are
    not read, which takes most of the time."""
    usage = _usage(module, architecture)
    read = _code(module, architecture) if code else ((name, Counter()) for name in usage)
    found = []
    for mangled, instructions in tqdm(
        read, desc=f"sm_{architecture}", total=len(usage), unit="kernel", disable=None, leave=False
    ):
        registers, stack, shared = usage[mangled]
        name = _plain_name(mangled)
        shared += launched_shared(name, architecture)
        found.append(Cubin(architecture, name, registers, stack, shared, instructions))
    return sorted(found, key=lambda c: c.name)


def stores_whole_chunks(cubin: Cubin) -> bool:
    """Whether a lane owns 16 bytes side by side. A convolution's lane owns an eighth of the block's columns; a weight
    gradient stores pairs of sums, its reduction single ones; other numbers of branches than 1, 2 and 4 are stored
    channel by channel."""
    if cubin.kind == "ConvSm80":
        element = 2 if {"Bf16", "F16"} & set(cubin.arguments) else 4
        return int(cubin.arguments[2]) // 8 * element >= 16
    if cubin.kind in ("WgradSm80", "WgradSm90", "WgradReduce"):
        return False
    if cubin.kind in ("ConvSm90", "ConvSm90Halo"):
        return True
    return "0" not in cubin.arguments


def faults(cubin: Cubin) -> list[str]:
    """Lists a kernel's faults: spills, too much memory, missing instructions."""
    found = []
    if cubin.stack or cubin.count("LDL", "STL"):
        found.append(f"spills: {cubin.stack} bytes of stack, {cubin.count('LDL', 'STL')} accesses to local memory")
    if cubin.shared > table.SHARED[table.family(cubin.architecture)]:
        found.append(f"{cubin.shared} bytes of shared memory are more than the card has")
    most = MOST_REGISTERS.get(cubin.kind, EXCEPTIONS.get(cubin.name, MEMORY_BOUND_REGISTERS))
    if cubin.registers > most:
        found.append(f"{cubin.registers} registers; at most {most} were meant")
    if cubin.tensor_cores and not cubin.count("HMMA"):
        found.append("no tensor-core instruction (HMMA)")
    if cubin.kind in ("ConvSm80", "WgradSm80") and not cubin.count("LDGSTS.E.BYPASS.128"):
        found.append("no asynchronous copies of 16 bytes (LDGSTS)")
    if cubin.tensor_cores and "Tf32" not in cubin.arguments and not cubin.count("LDSM"):
        found.append("no matrix loads (LDSM)")
    if cubin.kind in ("ConvSm90", "WgradSm90", "ConvSm90Halo"):
        found += [
            f"no {what} ({name})"
            for name, what in (
                ("HGMMA", "tensor-core instruction of a warpgroup"),
                (
                    ("UTMALDG.5D", "bulk copy of a tile")
                    if cubin.kind == "ConvSm90Halo"
                    else ("UTMALDG.5D.IM2COL", "bulk copy of an im2col box")
                ),
                ("UBLKCP", "bulk copy of packed weights"),
                ("SYNCS.PHASECHK.TRANS64.TRYWAIT", "wait at an mbarrier"),
                ("USETMAXREG", "change of a warpgroup's registers"),
            )
            if not cubin.count(name) and (cubin.kind, name) != ("WgradSm90", "UBLKCP")
        ]
        if cubin.kind == "ConvSm90" and cubin.arguments[3] == "2":
            found += [
                f"no {what} ({name})"
                for name, what in (
                    ("UBLKCP.S.G.MULTICAST", "bulk copy to both blocks"),
                    ("SYNCS.ARRIVE.TRANS64.RED", "arrival at the other block's mbarrier"),
                    ("UCGABAR_WAIT", "barrier of the cluster"),
                )
                if not cubin.count(name)
            ]
            if cubin.count("MEMBAR.ALL.GPU") > 1:
                found.append("a barrier of all memory besides the cluster's own (MEMBAR.ALL.GPU)")
        if cubin.count("WARPGROUP.DEPBAR") >= cubin.count("HGMMA") > 0:
            found.append("a wait after every HGMMA: the compiler serialised them")
        if cubin.kind != "ConvSm90Halo" and cubin.count("R2UR") >= 2 * cubin.count("HGMMA") > 0:
            found.append("moves to uniform registers at every HGMMA (R2UR): its descriptors are not warp-uniform")
    if stores_whole_chunks(cubin) and not cubin.count("STG.E.128"):
        found.append("no store of 16 bytes (STG.E.128)")
    epilogue = cubin.kind in ("EpilogueForward", "EpilogueBackward")
    if epilogue and "0" not in cubin.arguments and not cubin.count("LDG.E.128"):
        found.append("no load of 16 bytes (LDG.E.128)")
    return found


# ------------------------------------------------------------------------------------------------------- the budget


def read_budget() -> dict[str, dict[str, list[int]]]:
    """Reads registers and shared memory by architecture and kernel; "nvcc" is the release that built them."""
    return json.loads(BUDGET.read_text())


def over_budget(found: Sequence[Cubin]) -> list[str]:
    """Lists the kernels that take more than the budget allows, or are not in it."""
    budget = read_budget()
    wrong = []
    for cubin in found:
        allowed = budget[f"sm_{cubin.architecture}"].get(cubin.name)
        if allowed is None:
            wrong.append(f"sm_{cubin.architecture} {cubin.name}: not in {BUDGET.name}")
        elif cubin.registers > allowed[0] or cubin.shared > allowed[1]:
            wrong.append(
                f"sm_{cubin.architecture} {cubin.name}: {cubin.registers} registers and {cubin.shared} bytes of shared "
                f"memory; the budget is {allowed[0]} and {allowed[1]}"
            )
    return wrong


def write_budget(found: Sequence[Cubin], release: str, accept: bool) -> list[str]:
    """Lowers the budget to what was found; with `accept` raises it too. Returns the rows that were left unchanged."""
    before = read_budget() if BUDGET.exists() else {}
    if before.get("nvcc") != release and not accept and before:
        return [f"the budget is of nvcc {before['nvcc']}; this is {release}: --accept takes its numbers"]
    after: dict[str, dict[str, list[int]]] = {}
    left = []
    for cubin in found:
        new = [cubin.registers, cubin.shared]
        old = before.get(f"sm_{cubin.architecture}", {}).get(cubin.name)
        if old is not None and not accept:
            left += [f"sm_{cubin.architecture} {cubin.name}: {new} is not within {old}"] * (new > old)
            new = [min(pair) for pair in zip(new, old, strict=True)]
        after.setdefault(f"sm_{cubin.architecture}", {})[cubin.name] = new
    lines = [f'  "nvcc": {json.dumps(release)}']
    for architecture, rows in after.items():
        inner = ",\n".join(f"    {json.dumps(n)}: {json.dumps(v)}" for n, v in rows.items())
        lines.append(f'  "{architecture}": {{\n{inner}\n  }}')
    BUDGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    return left


HEAD = (
    "| architecture | kernel | registers | stack, B | shared, KiB | HMMA, HGMMA | LDGSTS, UTMALDG, UBLKCP "
    "| 16-byte loads | 16-byte stores |\n" + "|---" * 9 + "|"
)


def row(c: Cubin) -> str:
    products, copies = c.count("HMMA", "HGMMA"), c.count("LDGSTS", "UTMALDG", "UBLKCP")
    return (
        f"| sm_{c.architecture} | {c.name} | {c.registers} | {c.stack} | {c.shared / 1024:.1f} | {products} | {copies} "
        f"| {c.count('LDG.E.128')} | {c.count('STG.E.128')} |"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.cuda_cubins", description=__doc__.split("\n\n")[0])
    parser.add_argument("--architecture", type=int, nargs="+", help="default: all that the module has")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    parser.add_argument("--update", action="store_true", help=f"lower {BUDGET.name} to the kernels' needs")
    parser.add_argument("--accept", action="store_true", help=f"write the kernels' needs to {BUDGET.name}")
    args = parser.parse_args(argv)
    try:
        module = module_path()
        chosen = args.architecture or architectures(module)
        found = [c for a in chosen for c in cubins(a, module)]
    except FileNotFoundError as error:
        parser.error(str(error))
    release = importlib.import_module("ssconv._C").build_info()["cuda"]
    text = "\n".join([HEAD, *map(row, found)]) + "\n"
    if args.out:
        args.out.write_text(f"nvcc {release}. Kernels of `csrc/cuda`, compiled without a GPU.\n\n{text}")
    else:
        print(text)
    if args.update or args.accept:
        if set(chosen) != set(architectures(module)):
            parser.error("--architecture: the budget is written for all of them")
        for line in write_budget(found, release, args.accept):
            print(line, file=sys.stderr)
    wrong = [f"sm_{c.architecture} {c.name}: {f}" for c in found for f in faults(c)]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
