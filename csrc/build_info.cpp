// ssconv._C.build_info(): what the compiled module was built with and which kernels it holds.
//
// Plain CPython, limited API of 3.10: one build loads under every Python from 3.10 on. The macros SSCONV_* come from
// setup.py.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string>
#include <utility>
#include <vector>

#if defined(SSCONV_CUDA_KERNELS)
#include "cuda/launch.h"
#include "cuda/layout.h"
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

// 201703 -> "C++17"
std::string cxx_standard() { return "C++" + std::to_string(__cplusplus / 100 % 100); }

PyObject* cuda_version() {
#ifdef SSCONV_CUDA_VERSION
  return PyUnicode_FromString(SSCONV_CUDA_VERSION);
#else
  Py_RETURN_NONE;
#endif
}

PyObject* text(const std::string& value) {
  return PyUnicode_FromStringAndSize(value.data(), static_cast<Py_ssize_t>(value.size()));
}

PyObject* list_of(const std::vector<std::string>& values) {
  PyObject* list = PyList_New(0);
  for (const std::string& value : values) {
    PyObject* item = list != nullptr ? text(value) : nullptr;
    if (item == nullptr || PyList_Append(list, item) != 0) Py_CLEAR(list);
    Py_XDECREF(item);
  }
  return list;
}

PyObject* kernels() {
  std::vector<std::string> names;
#ifdef SSCONV_CPU_KERNELS
  names.push_back("cpu");
#endif
#ifdef SSCONV_CUDA_KERNELS
  names.push_back("cuda");
#endif
  return list_of(names);
}

#ifndef SSCONV_CUDA_REMARKS
#define SSCONV_CUDA_REMARKS ""
#endif

// Of a text such as 80;90+PTX.
PyObject* parts_of(std::string rest) {
  std::vector<std::string> names;
  for (size_t end; (end = rest.find(';')) != std::string::npos; rest.erase(0, end + 1)) names.push_back(rest.substr(0, end));
  if (!rest.empty()) names.push_back(rest);
  return list_of(names);
}

PyObject* cuda_architectures() {
#ifdef SSCONV_CUDA_KERNELS
  return parts_of(SSCONV_CUDA_KERNELS);
#else
  return parts_of("");
#endif
}

PyObject* build_info(PyObject*, PyObject*) {
  const std::vector<std::pair<const char*, PyObject*>> fields = {
      {"compiler", text(compiler())}, {"cxx_standard", text(cxx_standard())}, {"cuda", cuda_version()},
      {"cuda_arch_list", cuda_architectures()}, {"cuda_remarks", parts_of(SSCONV_CUDA_REMARKS)}, {"kernels", kernels()},
  };
  PyObject* info = PyDict_New();
  bool ok = info != nullptr;
  for (const auto& [name, value] : fields) ok = ok && value != nullptr && PyDict_SetItemString(info, name, value) == 0;
  for (const auto& field : fields) Py_XDECREF(field.second);
  if (ok) return info;
  Py_XDECREF(info);
  return nullptr;
}

#ifdef SSCONV_CUDA_KERNELS
PyObject* cuda_call(PyObject*, PyObject* args) {
  const char *kernel, *params;
  Py_ssize_t bytes;
  unsigned long long stream;
  if (!PyArg_ParseTuple(args, "sy#K", &kernel, &params, &bytes, &stream)) return nullptr;
  const char* error =
      ssconv::cuda_call(kernel, params, static_cast<size_t>(bytes), reinterpret_cast<void*>(static_cast<uintptr_t>(stream)));
  if (error == nullptr) Py_RETURN_NONE;
  PyErr_Format(PyExc_RuntimeError, "ssconv: CUDA kernel %s: %s", kernel, error);
  return nullptr;
}

PyObject* cuda_structs(PyObject*, PyObject*) {
  PyObject* structs = PyDict_New();
  for (const ssconv::StructLayout& layout : ssconv::struct_layouts()) {
    PyObject* fields = PyList_New(0);
    for (const ssconv::FieldLayout& f : layout.fields) {
      PyObject* field = Py_BuildValue("(snn)", f.name, static_cast<Py_ssize_t>(f.offset), static_cast<Py_ssize_t>(f.size));
      if (field == nullptr || fields == nullptr || PyList_Append(fields, field) != 0) Py_CLEAR(fields);
      Py_XDECREF(field);
    }
    PyObject* entry = fields == nullptr ? nullptr : Py_BuildValue("(nN)", static_cast<Py_ssize_t>(layout.size), fields);
    if (entry == nullptr || structs == nullptr || PyDict_SetItemString(structs, layout.name, entry) != 0) Py_CLEAR(structs);
    Py_XDECREF(entry);
  }
  return structs;
}
#endif

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info() -> dict\n\n"
     "compiler (str), cxx_standard (str), cuda (version of nvcc, str, or None where the build had none),\n"
     "cuda_arch_list (list of str: architectures with kernels), cuda_remarks (list of str: what the assembler did to\n"
     "wgmma that makes it slow), kernels (list of str: their names)."},
#ifdef SSCONV_CUDA_KERNELS
    {"cuda_call", cuda_call, METH_VARARGS,
     "cuda_call(kernel: str, params: bytes, stream: int) -> None\n\n"
     "Launches a kernel of csrc/cuda on the current device; params is its struct of csrc/cuda/params.h.\n"
     "Raises RuntimeError where the struct has another size or CUDA refuses the launch."},
    {"cuda_structs", cuda_structs, METH_NOARGS,
     "cuda_structs() -> dict[str, tuple[int, list[tuple[str, int, int]]]]\n\n"
     "The structs of csrc/cuda/params.h that Python fills: size, and name, offset and size of each field."},
#endif
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The compiled part of ssconv.", 0, methods, nullptr, nullptr, nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&module); }
