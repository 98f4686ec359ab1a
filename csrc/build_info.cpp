// ssconv._C.build_info(): what the compiled module was built with and which kernels it holds.
//
// Plain CPython, limited API of 3.10: one build loads under every Python from 3.10 on. The macros SSCONV_* come from
// setup.py.
#include <Python.h>

#include <string>
#include <utility>
#include <vector>

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

PyObject* kernels() {
#ifdef SSCONV_CPU_KERNELS
  return Py_BuildValue("[s]", "cpu");
#else
  return PyList_New(0);
#endif
}

PyObject* build_info(PyObject*, PyObject*) {
  const std::vector<std::pair<const char*, PyObject*>> fields = {
      {"compiler", text(compiler())}, {"cxx_standard", text(cxx_standard())}, {"cuda", cuda_version()},
      {"cuda_arch_list", PyList_New(0)}, {"kernels", kernels()},
  };
  PyObject* info = PyDict_New();
  bool ok = info != nullptr;
  for (const auto& [name, value] : fields) ok = ok && value != nullptr && PyDict_SetItemString(info, name, value) == 0;
  for (const auto& field : fields) Py_XDECREF(field.second);
  if (ok) return info;
  Py_XDECREF(info);
  return nullptr;
}

PyMethodDef methods[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info() -> dict\n\n"
     "compiler (str), cxx_standard (str), cuda (version of nvcc, str, or None where the build had none),\n"
     "cuda_arch_list (list of str: architectures with kernels), kernels (list of str: their names)."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The compiled part of ssconv.", 0, methods, nullptr, nullptr, nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModuleDef_Init(&module); }
