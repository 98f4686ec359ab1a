// Registers the ops torch.ops.ssconv_kernels.*: each turns its tensors into the CPU kernels' plain structs. The caller
// (ssconv/backend/cpu.py) allocates the results and has checked the call (ssconv/spec.py). Uses torch's stable ABI: one
// build loads under every torch from 2.11 on.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <optional>
#include <string>
#include <vector>

#include "cpu/cpu.h"

namespace {

using ssconv::Branch;
using ssconv::Epilogue;
using ssconv::Filter;
using ssconv::Geometry;
using ssconv::Kernels;
using ssconv::Kind;
using ssconv::Pool;
using ssconv::Type;
using ssconv::Volume;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Ints = std::vector<int64_t>;

const Kernels* kernels = ssconv::cpu_kernels();

Type type_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    default:
      STD_TORCH_CHECK(false, "ssconv_kernels: expected float32, bfloat16 or float16");
  }
}

Volume volume(const Tensor& t) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == 5, "ssconv_kernels: expected a CPU tensor (N, C, D, H, W)");
  Volume v{t.data_ptr(), type_of(t), {}, {}};
  for (int i = 0; i < 5; ++i) {
    v.size[i] = t.size(i);
    v.stride[i] = t.stride(i);
  }
  return v;
}

// A result that is about to be written for the first time. Asks Linux for pages of 2 MiB instead of 4 KiB: the page
// faults (2 us each) would take a tenth of a large convolution's time.
Volume result(const Tensor& t) {
  const Volume v = volume(t);
#if defined(__linux__)
  constexpr uintptr_t PAGE = uintptr_t(1) << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(v.data) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(v.data) + uintptr_t(t.numel()) * t.element_size()) / PAGE * PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // may be refused
#endif
  return v;
}

const float* floats(const std::optional<Tensor>& t) {
  if (!t.has_value()) return nullptr;
  STD_TORCH_CHECK(t->is_cpu() && t->scalar_type() == ScalarType::Float && t->is_contiguous(),
                  "ssconv_kernels: expected a contiguous float32 CPU tensor");
  return static_cast<const float*>(t->data_ptr());
}

Epilogue epilogue_of(const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                     const std::optional<Tensor>& noise, int64_t groups, double slope, double gain,
                     std::optional<double> clamp) {
  const int64_t shared = noise.has_value() && noise->size(0) == 1;
  const int64_t per_sample = noise.has_value() ? noise->size(2) * noise->size(3) * noise->size(4) : 0;
  return {static_cast<int>(groups),
          static_cast<float>(slope),
          static_cast<float>(gain),
          clamp ? static_cast<float>(*clamp) : -1.f,
          floats(scale),
          floats(bias),
          floats(noise),
          shared ? 0 : per_sample};
}

// The kernels' description of the branches. `branches`: the ints of ConvSpec.encode(), three per branch. swapped: the
// weight's first axis is the input channel. gradients: the tensors are results, weight gradients.
struct BranchList {
  std::vector<Branch> list;
  Geometry geometry;
  BranchList(const Tensors& weights, bool gradients, const Ints& branches, const Ints& stride, const Ints& first,
             bool adjoint, bool swapped, int64_t in_channels, int64_t out_channels) {
    const int count = static_cast<int>(branches.size() / 3);
    size_t next = 0;
    Type type = Type::f32;
    for (int s = 0; s < count; ++s) {
      Branch b{Kind::convolution, {1, 1, 1}, nullptr, nullptr, {}};
      if (branches[3 * s] <= 0) {
        b.kind = branches[3 * s] == 0 ? Kind::identity : Kind::absent;
      } else {
        STD_TORCH_CHECK(next < weights.size(), "ssconv_kernels: fewer weights than branches");
        const Tensor& w = weights[next++];
        type = type_of(w);
        for (int d = 0; d < 3; ++d) {
          b.extent[d] = static_cast<int>(branches[3 * s + d]);
          STD_TORCH_CHECK(w.size(2 + d) == b.extent[d], "ssconv_kernels: a weight's extents differ from its branch");
        }
        for (int i = 0; i < 5; ++i) b.stride[i] = w.stride(i);
        if (swapped) std::swap(b.stride[0], b.stride[1]);
        if (gradients) b.gradient = static_cast<float*>(w.data_ptr());
        b.weight = w.data_ptr();
      }
      list.push_back(b);
    }
    geometry = {count, list.data(), type, {}, {}, adjoint, in_channels / count, out_channels / count};
    for (int d = 0; d < 3; ++d) {
      geometry.stride[d] = static_cast<int>(stride[d]);
      geometry.first[d] = static_cast<int>(first[d]);
    }
  }
};

void launch(int workers, void (*run)(int, void*), void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run(static_cast<int>(i), context);
  });
}

Pool pool() { return {static_cast<int>(torch::stable::get_num_threads()), launch}; }

void convolve(const Tensor& x, const Tensors& weights, const std::optional<Tensor>& in_scale,
              const std::optional<Tensor>& scale, const std::optional<Tensor>& bias, const std::optional<Tensor>& noise,
              const Ints& branches, const Ints& stride, const Ints& first, bool adjoint, bool swapped, int64_t groups,
              double slope, double gain, std::optional<double> clamp, const Tensor& y, const std::optional<Tensor>& z) {
  const BranchList b(weights, false, branches, stride, first, adjoint, swapped, x.size(1), y.size(1));
  const Volume out = result(y);
  const Volume pre = z.has_value() ? result(*z) : out;
  kernels->convolve(b.geometry, volume(x), floats(in_scale),
                    epilogue_of(scale, bias, noise, groups, slope, gain, clamp), out, z.has_value() ? &pre : nullptr,
                    pool());
}

void weight_gradient(const Tensor& x, const std::optional<Tensor>& x_scale, const Tensor& g,
                     const std::optional<Tensor>& g_scale, const Ints& branches, const Ints& stride, const Ints& first,
                     bool swapped, const Tensors& gradients) {
  const BranchList b(gradients, true, branches, stride, first, false, swapped, x.size(1), g.size(1));
  kernels->wgrad(b.geometry, volume(x), floats(x_scale), volume(g), floats(g_scale), pool());
}

void epilogue(const Tensor& z, const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& noise, int64_t groups, double slope, double gain,
              std::optional<double> clamp, const Tensor& y) {
  kernels->epilogue(volume(z), epilogue_of(scale, bias, noise, groups, slope, gain, clamp), result(y), pool());
}

void epilogue_backward(const Tensor& gy, const Tensor& y, const std::optional<Tensor>& z,
                       const std::optional<Tensor>& scale, int64_t groups, double slope, double gain,
                       std::optional<double> clamp, const Tensor& gz, const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& noise, const std::optional<Tensor>& scale_gradient) {
  const Volume g = volume(gy);
  const Volume pre = z.has_value() ? volume(*z) : g;
  const auto out = [](const std::optional<Tensor>& t) { return const_cast<float*>(floats(t)); };
  kernels->epilogue_backward(g, volume(y), z.has_value() ? &pre : nullptr,
                             epilogue_of(scale, std::nullopt, std::nullopt, groups, slope, gain, clamp), result(gz),
                             out(bias), out(noise), noise.has_value() && noise->size(0) == 1, out(scale_gradient),
                             pool());
}

void upfirdn(const Tensor& x, const std::optional<Tensor>& taps_d, const std::optional<Tensor>& taps_h,
             const std::optional<Tensor>& taps_w, const Ints& up, const Ints& down, const Ints& before, int64_t border,
             const Tensor& y) {
  static const float one = 1;
  Filter f;
  const std::optional<Tensor>* taps[3] = {&taps_d, &taps_h, &taps_w};
  for (int d = 0; d < 3; ++d) {
    const float* given = floats(*taps[d]);
    f.taps[d] = given ? given : &one;
    f.length[d] = given ? static_cast<int>((*taps[d])->numel()) : 1;
    f.up[d] = static_cast<int>(up[d]);
    f.down[d] = static_cast<int>(down[d]);
    f.before[d] = static_cast<int>(before[d]);
  }
  f.border = static_cast<ssconv::Border>(border);
  kernels->upfirdn(f, volume(x), result(y), pool());
}

std::string cpu_instruction_set() { return kernels->name; }

// For tests, which compare the instruction sets. Returns whether this processor has that one.
bool set_cpu_instruction_set(const std::string& name) {
  const Kernels* k = ssconv::cpu_kernels(name.c_str());
  if (k != nullptr) kernels = k;
  return k != nullptr;
}

}  // namespace

STABLE_TORCH_LIBRARY(ssconv_kernels, m) {
  m.def(
      "convolve(Tensor x, Tensor[] weights, Tensor? in_scale, Tensor? scale, Tensor? bias, Tensor? noise, "
      "int[] branches, int[] stride, int[] first, bool adjoint, bool swapped, int groups, float slope, float gain, "
      "float? clamp, Tensor(a!) y, Tensor(b!)? z) -> ()");
  m.def(
      "weight_gradient(Tensor x, Tensor? x_scale, Tensor g, Tensor? g_scale, int[] branches, int[] stride, int[] "
      "first, "
      "bool swapped, Tensor(a!)[] gradients) -> ()");
  m.def(
      "epilogue(Tensor z, Tensor? scale, Tensor? bias, Tensor? noise, int groups, float slope, float gain, float? "
      "clamp, "
      "Tensor(a!) y) -> ()");
  m.def(
      "epilogue_backward(Tensor gy, Tensor y, Tensor? z, Tensor? scale, int groups, float slope, float gain, "
      "float? clamp, Tensor(a!) gz, Tensor(b!)? bias, Tensor(c!)? noise, Tensor(d!)? scale_gradient) -> ()");
  m.def(
      "upfirdn(Tensor x, Tensor? taps_d, Tensor? taps_h, Tensor? taps_w, int[] up, int[] down, int[] before, "
      "int border, Tensor(a!) y) -> ()");
  m.def("cpu_instruction_set() -> str");
  m.def("set_cpu_instruction_set(str name) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(ssconv_kernels, CPU, m) {
  m.impl("convolve", TORCH_BOX(&convolve));
  m.impl("weight_gradient", TORCH_BOX(&weight_gradient));
  m.impl("epilogue", TORCH_BOX(&epilogue));
  m.impl("epilogue_backward", TORCH_BOX(&epilogue_backward));
  m.impl("upfirdn", TORCH_BOX(&upfirdn));
}

STABLE_TORCH_LIBRARY_IMPL(ssconv_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_instruction_set", TORCH_BOX(&cpu_instruction_set));
  m.impl("set_cpu_instruction_set", TORCH_BOX(&set_cpu_instruction_set));
}
