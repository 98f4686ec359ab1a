"""The structs between Python and the CUDA kernels: the same fields at the same offsets on both sides."""

from __future__ import annotations

import ctypes
import inspect
import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssconv.backend.cuda import structs
from tests.support import emulated

PROGRAM = """
#include <cstdio>

#include "cuda/layout.h"

int main() {
  std::printf("{");
  const char* comma = "";
  for (const auto& layout : ssconv::struct_layouts()) {
    std::printf("%s\\"%s\\": [%zu, [", comma, layout.name, layout.size);
    comma = "";
    for (const auto& f : layout.fields) {
      std::printf("%s[\\"%s\\", %zu, %zu]", comma, f.name, f.offset, f.size);
      comma = ", ";
    }
    std::printf("]]");
    comma = ", ";
  }
  std::printf("}");
}
"""
STRUCTS = dict(inspect.getmembers(structs, lambda s: inspect.isclass(s) and issubclass(s, ctypes.Structure)))
del STRUCTS["Structure"]


def layout_of(struct: type[ctypes.Structure]) -> list[object]:
    """As the C++ side lists it."""
    fields = [[name, getattr(struct, name).offset, getattr(struct, name).size] for name, _ in struct._fields_]
    return [ctypes.sizeof(struct), fields]


@pytest.fixture(scope="module")
def in_cpp(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """What the C++ compiler makes of csrc/cuda/params.h."""
    try:
        compiler = emulated.compiler()
    except FileNotFoundError:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("structs")
    (folder / "main.cpp").write_text(PROGRAM)
    command = [*compiler, "-std=c++17", f"-I{emulated.ROOT / 'csrc'}", str(folder / "main.cpp"), "-o"]
    subprocess.run([*command, str(folder / "main")], check=True, capture_output=True)
    said = subprocess.run([str(folder / "main")], check=True, capture_output=True, text=True).stdout
    return json.loads(said)


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_are_where_the_kernels_read_them(name, in_cpp):
    assert layout_of(STRUCTS[name]) == in_cpp[name]


def test_no_struct_is_on_one_side_alone(in_cpp):
    assert set(in_cpp) == set(STRUCTS)


def test_the_numbers_of_branches_are_the_same():
    text = (emulated.ROOT / "csrc" / "cuda" / "params.h").read_text()
    for name in ("FUSED", "BRANCHES", "PARITIES"):
        assert f"constexpr int {name} = {getattr(structs, name)};" in text


def test_the_compiled_module_has_the_same_structs():
    compiled = pytest.importorskip("ssconv._C")
    if not hasattr(compiled, "cuda_structs"):
        pytest.skip("the module was built without CUDA kernels")
    assert {n: layout_of(s) for n, s in STRUCTS.items()} == json.loads(json.dumps(compiled.cuda_structs()))


def test_the_compiled_module_refuses_a_struct_of_another_size():
    compiled = pytest.importorskip("ssconv._C")
    if not hasattr(compiled, "cuda_structs"):
        pytest.skip("the module was built without CUDA kernels")
    size = ctypes.sizeof(structs.UpfirdnParams)
    with pytest.raises(RuntimeError, match=f"upfirdn: params: expected a struct of {size} bytes; got {size - 8}"):
        compiled.cuda_call("upfirdn", bytes(size - 8), 0)


ADDRESS = 2**63 + 5
NESTED = {
    "epilogue.noise.data": (structs.ConvSm80Params, lambda p: setattr(p.epilogue.noise, "data", ADDRESS)),
    "weight[3]": (structs.PackWeightsParams, lambda p: p.weight.__setitem__(3, ADDRESS)),
    "taps[2].data": (structs.UpfirdnParams, lambda p: setattr(p.taps[2], "data", ADDRESS)),
}


@pytest.mark.parametrize("path", NESTED)
def test_offsets_of_nested_fields(path):
    struct, fill = NESTED[path]
    params = struct()
    fill(params)
    at, found = structs.offset_of(struct, path), bytes(params)
    assert int.from_bytes(found[at : at + 8], "little") == ADDRESS
    assert not any(found[:at]) and not any(found[at + 8 :])


@given(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_a_divider_divides(n, divisor):
    d = structs.Divider.by(divisor)
    high = n * d.multiplier >> 32
    assert (high + n) >> d.shift == n // divisor
    assert d.multiplier < 2**32
