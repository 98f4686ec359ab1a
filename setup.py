"""Builds the compiled part, `ssconv._C`; everything else about the package is in pyproject.toml.

Environment variables, read when the package is built:

    SSCONV_CUDA=auto   (default) use nvcc where it is found: $CUDACXX, $CUDA_HOME/bin/nvcc, then the PATH
    SSCONV_CUDA=1      the build fails, and says why, if nvcc or the C++ compiler is missing
    SSCONV_CUDA=0      nvcc is not looked for
    SSCONV_CUDA_ARCHS  what the CUDA kernels are compiled for, "80;86;89;90+PTX" unless told: machine code for each, and
                       where +PTX stands, code that later cards compile for themselves
    CXX                the C++17 compiler

Without a C++ compiler, or without Python's C headers, the module is left out and a message says so (`pip install -v .`
shows it, and `import ssconv` warns of it); the reference backend serves. They are looked for before anything is
compiled: a build that starts and fails is an error, never a reason to go on without.

The build needs no torch, so that pip fetches none for it: the headers of its stable ABI are in csrc/third_party, and
the module's symbols are looked up when it is loaded, in the library that torch has loaded before.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MINIMUM_SETUPTOOLS = (
    77  # the first that reads `license = "Apache-2.0"`; only --no-build-isolation can bring an older one
)


# The kernels do not rely on the order of additions in a source line; the loops are written for their strides already.
COMPILE_ARGS = [
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-version-loops-for-strides",
    "-fvisibility=hidden",
    "-g0",
    "-Wall",
    "-Wextra",
]

TORCH_HEADERS = str(Path("csrc", "third_party"))
TORCH_LIBRARY = "libtorch_cpu.so"  # it has every symbol of torch's stable ABI

DEFAULT_ARCHS = "80;86;89;90+PTX"
MINIMUM_NVCC = (12, 0)  # knows 9.0 and C++17, and parameters that stay in constant memory
CUDA_SOURCES = Path("csrc", "cuda")
NVCC_ARGS = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xfatbin", "-compress-all"]


class BuildError(SystemExit):
    """The build cannot do what was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(f"ssconv: error: {message}")


def cpp_compiler() -> list[str]:
    """The command of the C++ compiler."""
    return shlex.split(os.environ.get("CXX", "").strip() or sysconfig.get_config_var("CXX") or "c++")


def missing_for_cpp() -> str | None:
    """What the compiled module lacks on this machine, or None when it can be built.

    Raises:
        BuildError: CXX names a compiler that is not there.
    """
    asked = os.environ.get("CXX", "").strip()
    command = cpp_compiler()
    compiler = command[0]
    if shutil.which(compiler) is None:
        if asked:
            raise BuildError(f"CXX={asked}: there is no such compiler; correct it or unset CXX")
        return f"there is no C++ compiler ({compiler} is not on the PATH)"
    tried = [*command, "-std=c++17", "-fsyntax-only", "-x", "c++", os.devnull]
    if (old := subprocess.run(tried, capture_output=True, text=True)).returncode != 0:
        said = (old.stderr or old.stdout).strip().splitlines()[:1]
        return f"the C++ compiler {compiler} does not take C++17 ({said[0] if said else 'it says nothing'})"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"Python's C headers are missing ({header}; Debian and Ubuntu have them in python3-dev)"
    return None


def find_torch() -> Path | None:
    """The folder of the torch that is installed, without importing it, or None. pip's isolated build hides the package
    but not its files."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    folders += [Path(sysconfig.get_path(kind), "torch") for kind in ("platlib", "purelib")]
    return next((f for f in folders if (f / "version.py").exists()), None)


def torch_has_cuda(folder: Path) -> bool:
    """Whether a torch is built for CUDA, by its version file."""
    return re.search(r"^cuda\b[^=\n]*= *None", (folder / "version.py").read_text(), re.MULTILINE) is None


def find_nvcc() -> str | None:
    """The path of nvcc, or None.

    Raises:
        BuildError: CUDACXX names a compiler that is not there.
    """
    home, asked = os.environ.get("CUDA_HOME"), os.environ.get("CUDACXX")
    if asked and shutil.which(asked) is None:
        raise BuildError(f"CUDACXX={asked}: there is no such compiler; correct it or unset CUDACXX")
    candidates = [os.environ.get("CUDACXX"), home and os.path.join(home, "bin", "nvcc"), "nvcc"]
    return next((found for c in candidates if c and (found := shutil.which(c))), None)


def nvcc_version(nvcc: str) -> str:
    """The CUDA release of nvcc, such as "13.0".

    Raises:
        BuildError: nvcc does not run or says nothing of a release.
    """
    result = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", result.stdout)
    if result.returncode != 0 or release is None:
        said = (result.stderr or result.stdout).strip()
        raise BuildError(f"{nvcc} --version failed: {said!r}; mend the CUDA toolkit or set SSCONV_CUDA=0")
    return release.group(1)


def wanted_nvcc() -> str | None:
    """The nvcc to build with, or None where CUDA is not wanted or not there.

    Raises:
        BuildError: SSCONV_CUDA is none of its values, or asks for what is not there.
    """
    wanted = os.environ.get("SSCONV_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise BuildError(f"SSCONV_CUDA: expected 0, 1 or auto; got {wanted!r}")
    nvcc = None if wanted == "0" else find_nvcc()
    if nvcc is None and wanted == "1":
        raise BuildError(
            "SSCONV_CUDA=1 asks for CUDA, and nvcc was not found; looked at $CUDACXX, $CUDA_HOME/bin/nvcc and the "
            "PATH. Install the CUDA toolkit, set CUDA_HOME, or leave SSCONV_CUDA out"
        )
    return nvcc


def architectures() -> list[str]:
    """What SSCONV_CUDA_ARCHS asks for, such as ["80", "90+PTX"].

    Raises:
        BuildError: it is no such list, or has a card that lacks what the kernels use.
    """
    text = os.environ.get("SSCONV_CUDA_ARCHS", DEFAULT_ARCHS)
    archs = [a.strip() for a in text.replace(",", ";").split(";") if a.strip()]
    if not archs or not all(re.fullmatch(r"\d{2,3}(\+PTX)?", a) for a in archs):
        raise BuildError(f"SSCONV_CUDA_ARCHS: expected compute capabilities such as {DEFAULT_ARCHS!r}; got {text!r}")
    if old := [a for a in archs if int(a.removesuffix("+PTX")) < 80]:
        raise BuildError(f"SSCONV_CUDA_ARCHS: the kernels need compute capability 8.0 (80) or later; got {old[0]}")
    return archs


def code_flags(archs: list[str]) -> list[str]:
    """nvcc's options: one front end for all, whose code suits the oldest, then machine code for each."""
    numbers = sorted({int(a.removesuffix("+PTX")) for a in archs})
    codes = [f"sm_{n}" for n in numbers]
    if any(a.endswith("+PTX") for a in archs):
        codes.append(f"compute_{numbers[0]}")
    return ["-gencode", f"arch=compute_{numbers[0]},code=[{','.join(codes)}]"]


def flags_of(source: Path, archs: list[str]) -> list[str]:
    """What a file is compiled for. Those named for sm_90 have wgmma, which sm_90a alone takes: they are compiled for
    that where 9.0 is wanted, else for what the others are, and then refuse every call."""
    if "_sm90" in source.stem and "90" in {a.removesuffix("+PTX") for a in archs}:
        return ["-gencode", "arch=compute_90a,code=sm_90a", "-DSSCONV_SM90A"]
    return code_flags(archs)


def cuda_runtime(nvcc: str) -> str | None:
    """The folder of the toolkit's static runtime library, or None. nvcc may be a script that starts another: it tells
    where its toolkit is."""
    said = subprocess.run([nvcc, "--dryrun", "-c", "nothing.cu"], capture_output=True, text=True).stderr
    found = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    roots = [Path(os.path.realpath(nvcc)).parent.parent, *([Path(found.group(1).strip())] if found else [])]
    folders = [f for root in roots for f in (root / "lib64", root / "lib", *sorted(root.glob("targets/*/lib")))]
    return next((str(f.resolve()) for f in folders if (f / "libcudart_static.a").exists()), None)


def ninja() -> str | None:
    """The path of ninja, or None. Its package may be installed where the PATH does not lead."""
    beside = Path(sysconfig.get_path("scripts"), "ninja")
    return shutil.which("ninja") or (str(beside) if beside.exists() else None)


def compile_kernels(nvcc: str, folder: Path) -> list[str]:
    """Compiles csrc/cuda/*.cu into `folder`, what is not up to date there; the paths of the objects.

    By ninja, or where there is none by as many compilers at once as there are processors, everything anew.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted(CUDA_SOURCES.glob("*.cu"))
    objects = [folder / f"{s.stem}.o" for s in sources]
    command = [nvcc, *NVCC_ARGS]
    flags = [flags_of(s, architectures()) for s in sources]
    if host := os.environ.get("CXX", "").strip():
        command += ["-ccbin", shlex.split(host)[0]]
    torch = find_torch()
    idle = torch is not None and not torch_has_cuda(torch)
    note = "; the torch here is built without CUDA and cannot use them: SSCONV_CUDA=0 leaves them out" if idle else ""
    print(
        f"ssconv: CUDA kernels for {';'.join(architectures())} by {nvcc}: {len(sources)} files, some minutes{note}",
        flush=True,
    )
    if tool := ninja():
        lines = [
            "rule nvcc",
            f"  command = {shlex.join(command)} $flags -MD -MF $out.d -c $in -o $out > $out.log 2>&1"
            " || { cat $out.log; false; }",
            "  depfile = $out.d",
            "  deps = gcc",
            *(
                f"build {o.absolute()}: nvcc {s.absolute()}\n  flags = {shlex.join(f)}"
                for s, o, f in zip(sources, objects, flags)
            ),
        ]
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        done = subprocess.run([tool, "-C", str(folder)], capture_output=True, text=True)
        failed = [done] if done.returncode != 0 else []
    else:
        print("ssconv: ninja is not installed: every kernel is compiled anew (pip install ninja)", flush=True)

        def compile_one(one: tuple[Path, str, list[str]]) -> subprocess.CompletedProcess[str]:
            source, out, own = one
            done = subprocess.run([*command, *own, "-c", str(source), "-o", out], capture_output=True, text=True)
            Path(f"{out}.log").write_text(done.stdout + done.stderr)
            return done

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            failed = [r for r in pool.map(compile_one, zip(sources, map(str, objects), flags)) if r.returncode != 0]
    if failed:
        said = "\n".join((r.stdout + r.stderr).strip() for r in failed)
        raise BuildError(f"{nvcc} failed; mend it, or set SSCONV_CUDA=0 to build without:\n{said}")
    return [str(o) for o in objects]


def remarks(objects: list[str]) -> list[str]:
    """What the assembler did to wgmma, such as "conv_sm90: C7510" (it waits after every one), by the logs that
    `compile_kernels` leaves beside its objects. Another release of nvcc may do what the one we compile with did not."""
    found = []
    for path in objects:
        said = Path(f"{path}.log").read_text()
        codes = sorted(set(re.findall(r"C75\d\d", said))) or re.findall("Potential Performance Loss", said)[:1]
        found += [f"{Path(path).stem}: {code}" for code in codes]
    return found


def link_stand_in(folder: Path) -> None:
    """Links an empty libtorch_cpu.so into `folder`. A module linked with it asks the loader for torch's."""
    folder.mkdir(parents=True, exist_ok=True)
    output = ["-o", str(folder / TORCH_LIBRARY), f"-Wl,-soname,{TORCH_LIBRARY}"]
    subprocess.run([*cpp_compiler(), "-shared", *output, "-x", "c++", os.devnull], check=True)


class BuildWithKernels(build_ext):
    """build_ext that makes the library to link with, and compiles the CUDA kernels, first."""

    def build_extension(self, ext: Extension) -> None:
        if sys.platform == "darwin":  # its linker can leave symbols to the loader; no Mac was at hand to try it
            ext.extra_link_args += ["-undefined", "dynamic_lookup"]
        else:
            link_stand_in(Path(self.build_temp, "torch"))
            # The linker would leave it out: it has no symbol that is needed.
            stand_in = str(Path(self.build_temp, "torch", TORCH_LIBRARY))
            ext.extra_link_args += ["-Wl,--push-state,--no-as-needed", stand_in, "-Wl,--pop-state"]
        nvcc = getattr(ext, "nvcc", None)
        if nvcc is not None:
            ext.extra_objects = compile_kernels(nvcc, Path(self.build_temp, "cuda"))
            found = remarks(ext.extra_objects)
            if found:
                print(
                    f"ssconv: warning: kernels for 9.0 will be slow; ptxas says of them {', '.join(found)}", flush=True
                )
            ext.define_macros.append(("SSCONV_CUDA_REMARKS", f'"{";".join(found)}"'))
        super().build_extension(ext)


def compiled_module() -> list[Extension]:
    """The extension `ssconv._C`, or no extension where this machine cannot compile."""
    nvcc = wanted_nvcc()
    macros: list[tuple[str, str | None]] = []
    if nvcc is not None:
        macros.append(("SSCONV_CUDA_VERSION", f'"{nvcc_version(nvcc)}"'))
    missing = missing_for_cpp()
    if missing is not None:
        if os.environ.get("SSCONV_CUDA") == "1":
            raise BuildError(f"SSCONV_CUDA=1 asks for CUDA, and {missing}")
        print(f"ssconv: the compiled module is left out: {missing}; the reference backend serves")
        return []
    sources = sorted(str(p) for folder in ("csrc", "csrc/cpu") for p in Path(folder).glob("*.cpp"))
    if "csrc/bindings.cpp" in sources:
        macros.append(("SSCONV_CPU_KERNELS", None))
    module = Extension(
        "ssconv._C",
        sources=sources,
        depends=sorted(str(p) for kind in ("*.h", "*.inl", "*.cuh", "*.cu") for p in Path("csrc").rglob(kind)),
        language="c++",
        # The ABI of torch 2.11: the module loads under that release and later ones.
        define_macros=[("Py_LIMITED_API", "0x030A0000"), ("TORCH_TARGET_VERSION", "0x020b000000000000"), *macros],
        extra_compile_args=[*COMPILE_ARGS, "-isystem", TORCH_HEADERS],
        py_limited_api=True,
    )
    if nvcc is not None and (CUDA_SOURCES / "calls.cpp").exists():
        add_kernels(module, nvcc)
    return [module]


def add_kernels(module: Extension, nvcc: str) -> None:
    """Makes the CUDA kernels part of the module, or says why they are not.

    Raises:
        BuildError: SSCONV_CUDA=1, and this toolkit cannot build them.
    """
    release, runtime, reason = nvcc_version(nvcc), cuda_runtime(nvcc), ""
    if tuple(int(n) for n in release.split(".")) < MINIMUM_NVCC:
        reason = f"they need nvcc {'.'.join(map(str, MINIMUM_NVCC))} or later; {nvcc} is {release}"
    elif runtime is None:
        reason = f"libcudart_static.a, CUDA's runtime, is not in the toolkit of {nvcc}"
    if reason and os.environ.get("SSCONV_CUDA") == "1":
        raise BuildError(f"SSCONV_CUDA=1 asks for the CUDA kernels; {reason}")
    if reason:
        print(f"ssconv: the CUDA kernels are left out: {reason}")
        return
    module.nvcc = nvcc
    module.sources.append(str(CUDA_SOURCES / "calls.cpp"))
    module.define_macros.append(("SSCONV_CUDA_KERNELS", f'"{";".join(architectures())}"'))
    module.library_dirs.append(runtime)
    module.libraries += ["cudart_static", "dl", "rt", "pthread"]


if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
    raise BuildError(
        f"setuptools {MINIMUM_SETUPTOOLS} or later is needed; found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or build without --no-build-isolation"
    )
setup(
    ext_modules=compiled_module(),
    cmdclass={"build_ext": BuildWithKernels},
    options={
        "bdist_wheel": {"py_limited_api": "cp310"},
        # setuptools takes an object file for fresh when its source is older, whatever the macros or the compiler.
        "build_ext": {"force": True},
    },
)
