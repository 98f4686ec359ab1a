"""The package as others meet it: metadata, the compiled module, and what setup.py says where it cannot build."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the build reads, so that no test writes into the source tree or meets another test there.

    Without the kernels, which take half a minute to compile; the module under test was built with them.
    """
    copy = tmp_path / "tree"
    for folder in ("ssconv", "csrc"):
        left_out = shutil.ignore_patterns("*.so", "__pycache__", "cpu", "cuda", "bindings.cpp")
        ignore = left_out if folder == "csrc" else shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").write_text("# A copy\n")
    return copy


def setup_py(
    tree: Path, *command: str, path: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs setup.py in `tree` with the settings given and no others; `path` replaces the PATH."""
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SSCONV_CUDA", "SSCONV_CUDA_ARCHS", "CUDA_HOME", "CUDACXX", "CXX", "CC")
    }
    if path is not None:
        inherited["PATH"] = path
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=tree,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def path_with(tmp_path: Path, *programs: str) -> str:
    """A PATH that holds the programs named and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for program in programs:
        found = shutil.which(program)
        if found is None:
            pytest.skip(f"needs {program}")
        (folder / program).symlink_to(found)
    return str(folder)


def fake_nvcc(tmp_path: Path, body: str) -> str:
    """An nvcc that runs the shell lines of `body`."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\n{body}\n")
    nvcc.chmod(0o755)
    return str(nvcc)


def built_info(tree: Path, tmp_path: Path, **environment: str) -> dict[str, object]:
    """build_info() of the module as setup.py builds it here with those settings."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    out = tmp_path / "out"
    result = setup_py(tree, "build_ext", "--build-lib", str(out), "--build-temp", str(tmp_path / "temp"), **environment)
    assert result.returncode == 0, result.stderr
    (library,) = (out / "ssconv").glob("_C*.so")
    assert ".abi3." in library.name
    # In a process of its own: one process loads a library of one path only once.
    shown = subprocess.run(
        [sys.executable, "-c", "import torch, json, _C; print(json.dumps(_C.build_info()))"],
        env={**os.environ, "PYTHONPATH": str(library.parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    return json.loads(shown.stdout)


def test_versions_agree(tree: Path) -> None:
    import ssconv

    result = setup_py(tree, "--version")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == ssconv.__version__
    assert f"\nversion: {ssconv.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {ssconv.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_module_tells_its_build_without_cuda(tree: Path, tmp_path: Path) -> None:
    info = built_info(tree, tmp_path, SSCONV_CUDA="0")
    assert sorted(info) == ["compiler", "cuda", "cuda_arch_list", "cuda_remarks", "cxx_standard", "kernels"]
    assert re.match(r"(gcc|clang) \d+\.\d+", str(info["compiler"]))
    assert info["cxx_standard"] == "C++17"
    assert (info["cuda"], info["cuda_arch_list"], info["cuda_remarks"], info["kernels"]) == (None, [], [], [])


def test_the_headers_of_torch_are_torchs_own() -> None:
    headers = ROOT / "csrc" / "third_party"
    if not torch.__version__.startswith("2.13."):
        pytest.skip("they are those of torch 2.13")
    files = [path.relative_to(headers) for path in sorted(headers.rglob("*.h"))]
    own = Path(torch.__file__).parent / "include"
    assert len(files) > 40
    assert [str(file) for file in files if (own / file).read_bytes() != (headers / file).read_bytes()] == []


@pytest.mark.parametrize("setting", ["1", "auto"])
def test_the_module_records_the_release_of_nvcc(tree: Path, tmp_path: Path, setting: str) -> None:
    nvcc = fake_nvcc(tmp_path, 'echo "Cuda compilation tools, release 12.9, V12.9.41"')
    info = built_info(tree, tmp_path, SSCONV_CUDA=setting, CUDACXX=nvcc)
    assert (info["cuda"], info["kernels"]) == ("12.9", [])


def test_a_second_build_with_other_settings_is_not_the_first(tree: Path, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, 'echo "Cuda compilation tools, release 12.9, V12.9.41"')
    assert built_info(tree, tmp_path, SSCONV_CUDA="1", CUDACXX=nvcc)["cuda"] == "12.9"
    assert built_info(tree, tmp_path, SSCONV_CUDA="0")["cuda"] is None


def test_without_a_compiler_the_module_is_left_out_and_said_so(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = setup_py(tree, "build", "--build-base", str(out), path=path_with(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "the compiled module is left out: there is no C++ compiler" in result.stdout
    assert (out / "lib" / "ssconv" / "__init__.py").exists()
    assert not list(out.rglob("*.so"))


def test_a_compiler_that_is_too_old_is_as_none(tree: Path, tmp_path: Path) -> None:
    old = tmp_path / "g++-4.8"
    old.write_text("#!/bin/sh\necho \"g++: error: unrecognized option '-std=c++17'\" >&2\nexit 1\n")
    old.chmod(0o755)
    result = setup_py(tree, "build", "--build-base", str(tmp_path / "out"), CXX=str(old), SSCONV_CUDA="0")
    assert result.returncode == 0, result.stderr
    assert f"left out: the C++ compiler {old} does not take C++17 (g++: error: unrecognized option" in result.stdout
    assert not list((tmp_path / "out").rglob("*.so"))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param({"SSCONV_CUDA": "1"}, "SSCONV_CUDA=1 asks for CUDA, and nvcc was not found", id="no nvcc"),
        pytest.param({"SSCONV_CUDA": "yes"}, "SSCONV_CUDA: expected 0, 1 or auto; got 'yes'", id="no such setting"),
        pytest.param({"CXX": "no-such-c++"}, "CXX=no-such-c++: there is no such compiler", id="no such compiler"),
        pytest.param({"CUDACXX": "no-such-nvcc"}, "CUDACXX=no-such-nvcc: there is no such compiler", id="no such nvcc"),
    ],
)
def test_what_cannot_be_built_as_asked_is_an_error(
    tree: Path, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    result = setup_py(tree, "build", "--build-base", str(tmp_path / "out"), path=path_with(tmp_path), **environment)
    assert result.returncode != 0
    assert f"ssconv: error: {message}" in result.stderr
    assert "Traceback" not in result.stderr


def test_cuda_asked_for_without_a_compiler_is_an_error(tree: Path, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, 'echo "release 12.9, V12.9.41"')
    result = setup_py(tree, "build", path=path_with(tmp_path), SSCONV_CUDA="1", CUDACXX=nvcc)
    assert result.returncode != 0
    assert "ssconv: error: SSCONV_CUDA=1 asks for CUDA, and there is no C++ compiler" in result.stderr


def test_an_nvcc_that_does_not_run_is_an_error_and_not_passed_over(tree: Path, tmp_path: Path) -> None:
    nvcc = fake_nvcc(tmp_path, 'echo "libcudart is missing" >&2; exit 1')
    result = setup_py(tree, "build", "--build-base", str(tmp_path / "out"), CUDACXX=nvcc)
    assert result.returncode != 0
    assert "libcudart is missing" in result.stderr and "SSCONV_CUDA=0" in result.stderr


def test_a_source_that_does_not_compile_fails_the_build(tree: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    with open(tree / "csrc" / "build_info.cpp", "a") as source:
        source.write("\n#error broken on purpose\n")
    result = setup_py(tree, "build", SSCONV_CUDA="0")
    assert result.returncode != 0
    assert "broken on purpose" in result.stderr


# ------------------------------------------------------------------------------------------------ CUDA kernels

# What stands in for csrc/cuda, so that a build takes a second.
LAUNCH_H = """#include <cstddef>
#include "params.h"
namespace ssconv {
int one();
const char* cuda_call(const char*, const void*, size_t, void*);
}
"""
CALLS_CPP = """#include "launch.h"
const char* ssconv::cuda_call(const char*, const void*, size_t, void*) { return one() == 1 ? nullptr : "not one"; }
"""


@pytest.fixture
def kernels(tree: Path) -> Path:
    """`tree` with a kernel."""
    folder = tree / "csrc" / "cuda"
    folder.mkdir()
    for header in ("params.h", "layout.h"):
        shutil.copy(ROOT / "csrc" / "cuda" / header, folder)
    (folder / "launch.h").write_text(LAUNCH_H)
    (folder / "calls.cpp").write_text(CALLS_CPP)
    (folder / "one.cu").write_text('#include "launch.h"\nint ssconv::one() { return 1; }\n')
    return tree


def toolkit(tmp_path: Path, compiles: str = "", release: str = "13.0") -> str:
    """An nvcc that compiles by the C++ compiler, after the shell lines of `compiles`, and notes its options in a file;
    with a runtime library of nothing."""
    if shutil.which("c++") is None or shutil.which("ar") is None:
        pytest.skip("needs a C++ compiler")
    library = tmp_path / "toolkit" / "lib64"
    library.mkdir(parents=True)
    subprocess.run(["ar", "rc", str(library / "libcudart_static.a")], check=True)
    return fake_nvcc(
        tmp_path,
        f"""case "$1" in
--version) echo "Cuda compilation tools, release {release}, V{release}.1"; exit ;;
--dryrun) echo '#$ TOP={tmp_path}/toolkit' >&2; exit ;;
esac
echo "$@" >> {tmp_path}/calls
{compiles}
for a in "$@"; do case "$last" in -c) from=$a ;; -o) to=$a ;; esac; last=$a; done
echo "$to:" > "$to.d"
exec c++ -fPIC -x c++ -c "$from" -o "$to"
""",
    )


def test_kernels_are_compiled_for_what_is_asked(kernels: Path, tmp_path: Path) -> None:
    info = built_info(kernels, tmp_path, CUDACXX=toolkit(tmp_path), SSCONV_CUDA_ARCHS="86, 90+PTX")
    assert (info["cuda"], info["cuda_arch_list"], info["kernels"]) == ("13.0", ["86", "90+PTX"], ["cuda"])
    (said,) = (tmp_path / "calls").read_text().splitlines()
    assert "arch=compute_86,code=[sm_86,sm_90,compute_86]" in said


def test_kernels_are_compiled_by_default_for_every_card_from_8_0_on(kernels: Path, tmp_path: Path) -> None:
    info = built_info(kernels, tmp_path, CUDACXX=toolkit(tmp_path))
    assert info["cuda_arch_list"] == ["80", "86", "89", "90+PTX"]
    said = (tmp_path / "calls").read_text()
    assert "arch=compute_80,code=[sm_80,sm_86,sm_89,sm_90,compute_80]" in said


@pytest.mark.parametrize("name", ["conv_sm90", "conv_sm90_halo"])
@pytest.mark.parametrize("archs", ["80;90+PTX", "86"])
def test_wgmma_is_compiled_for_sm_90a_alone(kernels: Path, tmp_path: Path, archs: str, name: str) -> None:
    (kernels / "csrc" / "cuda" / f"{name}.cu").write_text("")
    built_info(kernels, tmp_path, CUDACXX=toolkit(tmp_path), SSCONV_CUDA_ARCHS=archs)
    said = {("conv_sm90" in line): line for line in (tmp_path / "calls").read_text().splitlines()}
    assert "sm_90a" not in said[False] and "SSCONV_SM90A" not in said[False]
    if "90" in archs:
        assert "-gencode arch=compute_90a,code=sm_90a -DSSCONV_SM90A" in said[True] and "sm_80" not in said[True]
    else:
        assert "sm_90a" not in said[True] and "SSCONV_SM90A" not in said[True]


def test_what_the_assembler_did_to_wgmma_is_told_and_kept(kernels: Path, tmp_path: Path) -> None:
    said = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized in 'k'"
    nvcc = toolkit(tmp_path, f"""case "$*" in *conv_sm90*) echo "{said}" >&2; echo "{said}" ;; esac""")
    (kernels / "csrc" / "cuda" / "conv_sm90.cu").write_text("")
    info = built_info(kernels, tmp_path, CUDACXX=nvcc)
    assert info["cuda_remarks"] == ["conv_sm90: C7510"]
    options = ("build_ext", "--build-lib", str(tmp_path / "out"), "--build-temp", str(tmp_path / "temp"), "--force")
    again = setup_py(kernels, *options, CUDACXX=nvcc)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2, "the kernels are up to date"
    assert "warning: kernels for 9.0 will be slow; ptxas says of them conv_sm90: C7510" in again.stdout
    assert "warning" not in setup_py(kernels, *options, CUDACXX=nvcc, SSCONV_CUDA="0").stdout


@pytest.mark.parametrize(
    ("archs", "message"),
    [
        ("75;80", "the kernels need compute capability 8.0 (80) or later; got 75"),
        ("sm_80", "expected compute capabilities such as '80;86;89;90+PTX'; got 'sm_80'"),
        (";", "expected compute capabilities"),
    ],
)
def test_architectures_that_cannot_be_are_an_error(kernels: Path, tmp_path: Path, archs: str, message: str) -> None:
    result = setup_py(kernels, "build", CUDACXX=toolkit(tmp_path), SSCONV_CUDA_ARCHS=archs)
    assert result.returncode != 0
    assert f"ssconv: error: SSCONV_CUDA_ARCHS: {message}" in result.stderr


def test_a_kernel_that_does_not_compile_fails_the_build(kernels: Path, tmp_path: Path) -> None:
    nvcc = toolkit(tmp_path, "echo 'ptxas fatal: out of registers'; exit 1")
    result = setup_py(kernels, "build", CUDACXX=nvcc)
    assert result.returncode != 0
    assert "out of registers" in result.stderr and "set SSCONV_CUDA=0 to build without" in result.stderr
    idle = "built without CUDA and cannot use them: SSCONV_CUDA=0 leaves them out" in result.stdout
    assert idle == (torch.version.cuda is None)


@pytest.mark.parametrize("how", ["too old", "no runtime"])
def test_a_toolkit_that_cannot_build_kernels_is_told(kernels: Path, tmp_path: Path, how: str) -> None:
    nvcc = toolkit(tmp_path, release="11.8" if how == "too old" else "13.0")
    reason = f"they need nvcc 12.0 or later; {nvcc} is 11.8"
    if how == "no runtime":
        (tmp_path / "toolkit" / "lib64" / "libcudart_static.a").unlink()
        reason = f"libcudart_static.a, CUDA's runtime, is not in the toolkit of {nvcc}"
    result = setup_py(kernels, "build", CUDACXX=nvcc)
    assert result.returncode == 0, result.stderr
    assert f"the CUDA kernels are left out: {reason}" in result.stdout
    asked = setup_py(kernels, "build", CUDACXX=nvcc, SSCONV_CUDA="1")
    assert asked.returncode != 0
    assert f"ssconv: error: SSCONV_CUDA=1 asks for the CUDA kernels; {reason}" in asked.stderr


def test_the_installed_module_has_the_cuda_kernels_where_it_could_be_built() -> None:
    """And loads without a GPU, saying what is missing."""
    import torch

    import ssconv

    if shutil.which("nvcc") is None or os.environ.get("SSCONV_CUDA") == "0":
        pytest.skip("needs nvcc")
    state = ssconv.backends()["cuda"]
    if torch.version.cuda is None:
        assert state == "not available: this torch is built without CUDA"
    elif not torch.cuda.device_count():
        assert state == "not available: no NVIDIA GPU"
    else:
        assert state == "available"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_test_says_what_it_leaves_out(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 1  # no GPU\necho "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    arguments = {"capture_output": True, "text": True, "cwd": ROOT}
    said = subprocess.run(["make", "-s", "test", "SLOW=0", f"VENV={tmp_path}"], **arguments).stdout.splitlines()
    assert said[0].endswith("-m not (faults or gpu or slow)")
    assert [line.split(": ")[1] for line in said[1:]] == [f"tests marked '{m}'" for m in ("faults", "gpu", "slow")]
    assert "`make faults` runs these" in said[1]
    assert subprocess.run(["make", "-s", "faults", f"VENV={tmp_path}"], **arguments).stdout.endswith("-m faults\n")


def test_make_lists_its_targets() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert listed.returncode == 0, listed.stderr
    for target in ("setup", "demo", "test", "faults", "lint", "wheel", "bench", "clean"):
        assert re.search(rf"^  make {target} +\S", listed.stdout, re.MULTILINE), target


def test_make_setup_names_the_pythons_it_looked_for(tmp_path: Path) -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "setup.py", "constraints.txt"):
        (tmp_path / name).touch()
    result = subprocess.run(
        ["make", "setup", "PYTHON=python-that-is-not-here"], cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert result.returncode != 0
    assert "no Python from 3.10 to 3.13" in result.stderr and "python-that-is-not-here" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_installed_module_has_the_cpu_kernels_where_it_could_be_built() -> None:
    import ssconv

    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    assert ssconv.backends()["cpu"] == "available"


def in_a_copy(tree: Path, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code with the tree's ssconv instead of the installed one, which an editable install also offers."""
    only = "import sys; sys.meta_path = [f for f in sys.meta_path if '__editable__' not in repr(f)]\n"
    return subprocess.run(
        [sys.executable, *options, "-c", only + code],
        env={**os.environ, "PYTHONPATH": str(tree)},
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=900,
    )


ONE_CALL = """
import torch, ssconv
x, w = torch.randn(1, 2, 3, 4, 5), torch.randn(2, 2, 3, 3, 3)
print(ssconv.split_shuffle_conv3d(x, [w]).shape, ssconv.backends()["cpu"])
"""


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        pytest.param("tree", "is not built in the source tree {folder}: run pip install -e . there", id="tree"),
        pytest.param("site", "is not installed: at its installation there was no C++17 compiler", id="installed"),
        pytest.param(
            "hidden", "is in {site}/ssconv, which the source tree {folder} hides; compile it in the tree", id="hidden"
        ),
    ],
)
def test_without_the_module_the_reference_serves_and_a_warning_says_why(
    tree: Path, tmp_path: Path, place: str, reason: str
) -> None:
    if place == "site":
        (tree / "setup.py").unlink()
    site = tmp_path / "site"
    (site / "ssconv").mkdir(parents=True)
    if place == "hidden":
        (site / "ssconv" / "_C.abi3.so").touch()
    code = f"sys.path.append({str(site)!r})\n" + ONE_CALL
    reason = f"the compiled module ssconv._C {reason.format(folder=tree, site=site)}"
    result = in_a_copy(tree, code)
    assert result.returncode == 0, result.stderr
    assert f"torch.Size([1, 2, 3, 4, 5]) not available: {reason}" in result.stdout
    assert result.stderr.count(f"RuntimeWarning: ssconv: {reason}") == 1
    asked = in_a_copy(tree, code.replace("[w])", "[w], backend='cpu')"))
    assert asked.returncode != 0
    assert "backend: 'cpu' was asked for and is not available: the compiled module" in asked.stderr


def test_a_module_that_does_not_load_is_told_and_the_reference_serves(tree: Path) -> None:
    (tree / "ssconv" / "_C.abi3.so").write_bytes(b"not a library")
    result = in_a_copy(tree, ONE_CALL)
    assert result.returncode == 0, result.stderr
    assert "RuntimeWarning: ssconv: the compiled module ssconv._C does not load" in result.stderr
    assert "does not load" in result.stdout


def test_torch_is_found_from_within_an_isolated_build(tree: Path) -> None:
    """pip's isolated build hides site-packages; a torch without CUDA there is told all the same."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    code = "import sys, setuptools; sys.argv = ['setup.py', '--version']; s = {'__name__': 'x'}; "
    code += "exec(compile(open('setup.py').read(), 'setup.py', 'exec'), s); import importlib.util as u; "
    code += "u.find_spec = lambda name: None; print(s['find_torch']())"
    result = in_a_copy(tree, code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("torch")
