"""Builds the compiled part, `ssconv._C`; everything else about the package is in pyproject.toml.

Environment variables, read when the package is built:

    SSCONV_CUDA=auto   (default) use nvcc where it is found: $CUDACXX, $CUDA_HOME/bin/nvcc, then the PATH
    SSCONV_CUDA=1      the build fails, and says why, if nvcc or the C++ compiler is missing
    SSCONV_CUDA=0      nvcc is not looked for
    CXX                the C++17 compiler

Without a C++ compiler, or without Python's or torch's C++ headers, the module is left out and a message says so (`pip
install -v .` shows it, `ssconv.backends()` tells it later); the reference backend serves. They are looked for before
anything is compiled: a build that starts and fails is an error, never a reason to go on without.

The module is built against the headers of torch's stable ABI. Those of the torch that is installed are used, also in
pip's isolated build, which hides the package but not its files; only where there is none does pip fetch a torch for the
build.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import setuptools
from setuptools import Extension, setup

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


class BuildError(SystemExit):
    """The build cannot do what was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__(f"ssconv: error: {message}")


def missing_for_cpp() -> str | None:
    """What the compiled module lacks on this machine, or None when it can be built.

    Raises:
        BuildError: CXX names a compiler that is not there.
    """
    asked = os.environ.get("CXX", "").strip()
    compiler = shlex.split(asked or sysconfig.get_config_var("CXX") or "c++")[0]
    if shutil.which(compiler) is None:
        if asked:
            raise BuildError(f"CXX={asked}: there is no such compiler; correct it or unset CXX")
        return f"there is no C++ compiler ({compiler} is not on the PATH)"
    header = Path(sysconfig.get_paths()["include"], "Python.h")
    if not header.exists():
        return f"Python's C headers are missing ({header}; Debian and Ubuntu have them in python3-dev)"
    return None


def find_torch() -> Path | None:
    """The folder of the torch that is installed, without importing it, or None."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    folders += [Path(sysconfig.get_path(kind), "torch") for kind in ("platlib", "purelib")]
    return next((f for f in folders if (f / "include" / "torch" / "csrc" / "stable" / "library.h").exists()), None)


def find_nvcc() -> str | None:
    """The path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME")
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


def cuda_macros() -> list[tuple[str, str | None]]:
    """Macros that tell the module about CUDA.

    Kernels join here: csrc/*.cu become objects of nvcc, one per source, for the architectures of SSCONV_CUDA_ARCHS
    (default 80;86;89;90), which `compiled_module` then links as extra_objects.
    """
    wanted = os.environ.get("SSCONV_CUDA", "auto")
    if wanted not in ("0", "1", "auto"):
        raise BuildError(f"SSCONV_CUDA: expected 0, 1 or auto; got {wanted!r}")
    nvcc = None if wanted == "0" else find_nvcc()
    if nvcc is None:
        if wanted == "1":
            raise BuildError(
                "SSCONV_CUDA=1 asks for CUDA, and nvcc was not found; looked at $CUDACXX, $CUDA_HOME/bin/nvcc and the "
                "PATH. Install the CUDA toolkit, set CUDA_HOME, or leave SSCONV_CUDA out"
            )
        return []
    return [("SSCONV_CUDA_VERSION", f'"{nvcc_version(nvcc)}"')]


def compiled_module() -> list[Extension]:
    """The extension `ssconv._C`, or no extension where this machine cannot compile."""
    macros = cuda_macros()
    missing = missing_for_cpp()
    if missing is not None:
        if os.environ.get("SSCONV_CUDA") == "1":
            raise BuildError(f"SSCONV_CUDA=1 asks for CUDA, and {missing}")
        print(f"ssconv: the compiled module is left out: {missing}; the reference backend serves")
        return []
    torch = find_torch()
    if torch is None:  # also when pip only asks what the build needs, and hears of torch from `setup_requires`
        print("ssconv: the compiled module is left out: no torch is installed to build against; the reference serves")
        return []
    sources = sorted(str(p) for p in Path("csrc").glob("*.cpp"))
    if "csrc/bindings.cpp" in sources:
        macros.append(("SSCONV_CPU_KERNELS", None))
    return [
        Extension(
            "ssconv._C",
            sources=sources,
            depends=sorted(str(p) for kind in ("*.h", "*.inl") for p in Path("csrc").rglob(kind)),
            language="c++",
            include_dirs=[str(torch / "include")],
            library_dirs=[str(torch / "lib")],
            libraries=["torch", "torch_cpu", "c10"],
            # The ABI of torch 2.11: the module loads under that release and later ones.
            define_macros=[("Py_LIMITED_API", "0x030A0000"), ("TORCH_TARGET_VERSION", "0x020b000000000000"), *macros],
            extra_compile_args=COMPILE_ARGS,
            py_limited_api=True,
        )
    ]


if int(setuptools.__version__.split(".")[0]) < MINIMUM_SETUPTOOLS:
    raise BuildError(
        f"setuptools {MINIMUM_SETUPTOOLS} or later is needed; found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or build without --no-build-isolation"
    )
setup(
    ext_modules=compiled_module(),
    setup_requires=["torch>=2.11"] if missing_for_cpp() is None and find_torch() is None else [],
    options={
        "bdist_wheel": {"py_limited_api": "cp310"},
        # setuptools takes an object file for fresh when its source is older, whatever the macros or the compiler.
        "build_ext": {"force": True},
    },
)
