// Small kernels that show how single instructions lay matrices over shared memory and over the threads of a warp, and
// the trace of launches: tests/support/cute_checks.py compares both with CuTe's numbers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cuda/launch_kernel.cuh"
#include "cuda/ptx/ldmatrix.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/threads.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace py = pybind11;
using namespace ssconv;
using namespace py::literals;

namespace {

template <class Kernel>
void run(const typename Kernel::Params& p) {
  if (const char* error = launch<Kernel>(p, {1, 1, 1}, Kernel::SHARED, nullptr)) throw std::runtime_error(error);
}

// Fills shared memory with an image, 16 bytes at a time.
struct Image {
  const Bytes16* data;
  int chunks;

  void load_all(int threads) const {
    for (int i = thread_index(); i < chunks; i += threads) shared_store(i * 16, load(data + i));
    fence_proxy_async();
    sync_threads();
  }
};

// out (128, n / 2): each thread's accumulators, the sum of a[k] * b[k] over smem descriptors of the image.
struct WgmmaParams {
  Image image;
  std::vector<uint64_t> a, b;
  bool a_transposed, b_transposed;
  float* out;
};
template <int N>
struct MultiplyDescribed {
  using Params = WgmmaParams;
  static constexpr int THREADS = 128, BLOCKS = 1, SHARED = 200 * 1024;
  static const char* name() { return "described matrices"; }
  template <bool TA, bool TB>
  static void steps(const Params& p, float (&sums)[N / 2]) {
    for (size_t k = 0; k < p.a.size(); ++k) wgmma<bf16, N, TA, TB>(sums, p.a[k], p.b[k], k > 0);
  }
  static void run(const Params& p) {
    p.image.load_all(THREADS);
    float sums[N / 2];
    wgmma_fence();
    if (p.a_transposed && p.b_transposed) steps<true, true>(p, sums);
    if (p.a_transposed && !p.b_transposed) steps<true, false>(p, sums);
    if (!p.a_transposed && p.b_transposed) steps<false, true>(p, sums);
    if (!p.a_transposed && !p.b_transposed) steps<false, false>(p, sums);
    wgmma_commit();
    wgmma_wait<0>();
    for (int i = 0; i < N / 2; ++i) store(p.out + thread_index() * (N / 2) + i, sums[i]);
  }
};

// c (32, 4): each lane's accumulators of one mma.sync of a (32, 4) and b (32, 2).
struct MmaParams {
  const uint32_t *a, *b;
  float* c;
};
template <class T>
struct MultiplyFragments {
  using Params = MmaParams;
  static constexpr int THREADS = 32, BLOCKS = 1, SHARED = 0;
  static const char* name() { return "fragments"; }
  static void run(const Params& p) {
    uint32_t a[4], b[2];
    float c[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; ++i) a[i] = load(p.a + 4 * thread_index() + i);
    for (int i = 0; i < 2; ++i) b[i] = load(p.b + 2 * thread_index() + i);
    mma(T{}, c, a, b);
    for (int i = 0; i < 4; ++i) store(p.c + 4 * thread_index() + i, c[i]);
  }
};

// out (32, COUNT): what ldmatrix gives each lane, whose row lies 16 bytes behind the row of the lane before.
struct LdmatrixParams {
  Image image;
  uint32_t* out;
};
template <int COUNT, bool TRANSPOSED>
struct LoadMatrices {
  using Params = LdmatrixParams;
  static constexpr int THREADS = 32, BLOCKS = 1, SHARED = 512;
  static const char* name() { return "ldmatrix"; }
  static void run(const Params& p) {
    p.image.load_all(THREADS);
    uint32_t words[COUNT];
    const uint32_t at = thread_index() % (8 * COUNT) * 16;
    if constexpr (TRANSPOSED) ldmatrix_trans(words, at);
    else ldmatrix(words, at);
    for (int i = 0; i < COUNT; ++i) store(p.out + COUNT * thread_index() + i, words[i]);
  }
};

template <class T, int N>
std::vector<T> list(const T (&values)[N]) {
  return {values, values + N};
}

}  // namespace

void bind_fragments(py::module_& m) {
  m.def("smem_descriptor", &smem_descriptor);
  m.def("multiply_described", [](int n, uintptr_t image, int bytes, const std::vector<uint64_t>& a,
                                 const std::vector<uint64_t>& b, bool a_transposed, bool b_transposed, uintptr_t out) {
    const WgmmaParams p = {{reinterpret_cast<const Bytes16*>(image), bytes / 16}, a, b, a_transposed, b_transposed,
                           reinterpret_cast<float*>(out)};
    if (n == 32) run<MultiplyDescribed<32>>(p);
    if (n == 64) run<MultiplyDescribed<64>>(p);
    if (n == 128) run<MultiplyDescribed<128>>(p);
  });
  m.def("multiply_fragments", [](bool tf32, uintptr_t a, uintptr_t b, uintptr_t c) {
    const MmaParams p = {reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b),
                         reinterpret_cast<float*>(c)};
    tf32 ? run<MultiplyFragments<float>>(p) : run<MultiplyFragments<bf16>>(p);
  });
  m.def("load_matrices", [](int count, bool transposed, uintptr_t image, uintptr_t out) {
    const LdmatrixParams p = {{reinterpret_cast<const Bytes16*>(image), 8 * count}, reinterpret_cast<uint32_t*>(out)};
    if (count == 2) run<LoadMatrices<2, false>>(p);
    if (count == 4) transposed ? run<LoadMatrices<4, true>>(p) : run<LoadMatrices<4, false>>(p);
  });
  m.def("start_trace", [] { emulator::settings().trace = std::make_unique<emulator::Trace>(); });
  m.def("end_trace", [] {
    const auto trace = std::move(emulator::settings().trace);
    py::list copies, products;
    for (const auto& c : trace->copies)
      copies.append(py::dict("base"_a = reinterpret_cast<uintptr_t>(c.map.base), "size"_a = list(c.map.size),
                             "stride"_a = list(c.map.stride), "lower"_a = list(c.map.lower),
                             "upper"_a = list(c.map.upper), "step"_a = list(c.map.step), "channels"_a = c.map.box[0],
                             "coordinate"_a = c.coordinate, "offset"_a = c.offset, "voxels"_a = c.voxels));
    for (const auto& p : trace->products)
      products.append(py::make_tuple(p.a, p.b, p.n, p.a_transposed, p.b_transposed));
    return py::make_tuple(copies, products);
  }, "What the launches since start_trace asked of TMA, copy by copy (innermost dimension first), and of wgmma.");
}
