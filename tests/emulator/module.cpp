// The Python module of the kernels of csrc/cuda on the emulator.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string_view>
#include <tuple>

#include "cuda/launch.h"
#include "emulator.h"

namespace py = pybind11;

void bind_primitives(py::module_& m);
void bind_clusters(py::module_& m);
void bind_fragments(py::module_& m);

PYBIND11_MODULE(SSCONV_MODULE, m) {
  bind_primitives(m);
  bind_clusters(m);
  bind_fragments(m);
  m.def(
      "call",
      [](const std::string& kernel, const py::bytes& params, uintptr_t stream) {
        const std::string_view bytes = params;
        const char* error =
            ssconv::cuda_call(kernel.c_str(), bytes.data(), bytes.size(), reinterpret_cast<void*>(stream));
        if (error != nullptr) throw std::runtime_error(error);
      },
      "Runs a kernel as ssconv._C.cuda_call does, on the CPU; a fault raises RuntimeError with kernel, block and thread.");
  m.def(
      "set_ranges",
      [](const std::vector<std::tuple<uintptr_t, size_t, bool>>& ranges) {
        auto& list = emulator::settings().ranges;
        list.clear();
        for (const auto& [begin, bytes, writable] : ranges) {
          const char* p = reinterpret_cast<const char*>(begin);
          list.push_back({p, p + bytes, writable});
        }
      },
      "The memory that kernels may touch: (address, bytes, writable) each.");
  m.def("set_seed", [](uint64_t seed) {
    emulator::settings().seed = seed;
    emulator::settings().launches = 0;
  }, "Sets the seed of the order of blocks, warps and lanes.");
}
