// Small kernels around single primitives of csrc/cuda/ptx, for tests/support/sm90_checks.py. Their arguments choose
// what they do; `faults` names what they leave out or do wrong.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>

#include "cuda/launch_kernel.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/threads.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/ptx/wgmma.cuh"

namespace py = pybind11;
using namespace ssconv;

namespace {

bool has(const std::string& faults, const char* one) { return faults.find(one) != std::string::npos; }

template <class Kernel>
void run(const typename Kernel::Params& p) {
  if (const char* error = launch<Kernel>(p, {1, 1, 1}, Kernel::SHARED, nullptr)) throw std::runtime_error(error);
}

// Copies a box to shared memory, and all of that to `out`.
struct CopyParams {
  TensorMap map;
  const void* flat;  // not null: `bytes` contiguous bytes are copied, not a box
  int c, base[4], tap[3];
  bool tiled;
  uint32_t bytes, expected;
  char* out;
  std::string faults;
};
struct CopyBox {
  using Params = CopyParams;
  static constexpr int THREADS = 32, BLOCKS = 1, SHARED = 64 * 1024 + 8, BARRIER = 64 * 1024;
  static const char* name() { return "copy"; }
  static void run(const Params& p) {
    if (thread_index() == 0) {
      if (!has(p.faults, "no initialisation")) mbarrier_init(BARRIER, 1);
      if (!has(p.faults, "no mbarrier fence")) fence_mbarrier_init();
    }
    if (!has(p.faults, "no barrier")) sync_threads();
    if (thread_index() == (has(p.faults, "no barrier") ? 1 : 0)) {
      if (has(p.faults, "stored before")) shared_store(0, Bytes16{});
      mbarrier_arrive_expect_tx(BARRIER, p.expected);
      if (p.flat != nullptr) {
        bulk_load(0, p.flat, p.bytes, BARRIER);
      } else if (p.tiled) {
        tma_load_tile(0, &p.map, BARRIER, p.c, p.base);
      } else {
        tma_load_im2col(0, &p.map, BARRIER, p.c, p.base, p.tap);
      }
      if (has(p.faults, "stored while")) shared_store(16, Bytes16{});
      if (has(p.faults, "arrives twice")) mbarrier_arrive(BARRIER);
    }
    if (!has(p.faults, "no wait")) mbarrier_wait(BARRIER, has(p.faults, "the other parity") ? 1 : 0);
    for (uint32_t at = thread_index() * 16; at < p.bytes; at += 512)
      store(reinterpret_cast<Bytes16*>(p.out + at), shared_load<Bytes16>(at));
  }
};

// d = the sum over steps of a * b. a's image fills shared memory from its start, b's follows.
struct Side {
  int span, leading, stride, advance;
  bool transposed;
  int start;  // byte offset in the image
};
struct MatrixParams {
  const Bytes16 *a, *b;
  int a_chunks, b_chunks;
  Side left, right;
  int steps;
  float* out;  // (128, N / 2)
  std::string faults;
};
template <class T, int N>
struct MultiplyMatrices {
  using Params = MatrixParams;
  static constexpr int THREADS = 128, BLOCKS = 1, SHARED = 128 * 1024;
  static const char* name() { return "matrices"; }
  template <bool TA, bool TB>
  static void steps(const Params& p, float (&sums)[N / 2]) {
    const uint64_t a = smem_descriptor(p.left.start, p.left.span, p.left.leading, p.left.stride);
    const uint64_t b = smem_descriptor(p.a_chunks * 16 + p.right.start, p.right.span, p.right.leading, p.right.stride);
    for (int k = 0; k < p.steps; ++k)
      wgmma<T, N, TA, TB>(sums, advance_descriptor(a, k * p.left.advance), advance_descriptor(b, k * p.right.advance),
                          k > 0);
  }
  static void run(const Params& p) {
    for (int i = thread_index(); i < p.a_chunks + p.b_chunks; i += THREADS)
      shared_store(i * 16, load(i < p.a_chunks ? p.a + i : p.b + (i - p.a_chunks)));
    if (!has(p.faults, "no proxy fence")) fence_proxy_async();
    if (!has(p.faults, "no barrier")) sync_threads();
    float sums[N / 2];
    if (!has(p.faults, "no wgmma fence")) wgmma_fence();
    if (p.left.transposed && p.right.transposed) steps<true, true>(p, sums);
    if (p.left.transposed && !p.right.transposed) steps<true, false>(p, sums);
    if (!p.left.transposed && p.right.transposed) steps<false, true>(p, sums);
    if (!p.left.transposed && !p.right.transposed) steps<false, false>(p, sums);
    if (!has(p.faults, "no commit")) wgmma_commit();
    if (has(p.faults, "stored while")) shared_store(thread_index() * 16, Bytes16{});
    if (has(p.faults, "accumulators touched")) sums[1] = 1;
    if (has(p.faults, "read before")) store(p.out, sums[0]);
    if (!has(p.faults, "no wait")) wgmma_wait<0>();
    if (has(p.faults, "no second fence")) {
      steps<false, false>(p, sums);
      wgmma_commit();
      wgmma_wait<0>();
    }
    for (int i = 0; i < N / 2; ++i) store(p.out + thread_index() * (N / 2) + i, sums[i]);
  }
};

template <class T>
void multiply(int n, const MatrixParams& p) {
  if (n == 32) run<MultiplyMatrices<T, 32>>(p);
  if (n == 64) run<MultiplyMatrices<T, 64>>(p);
  if (n == 128) run<MultiplyMatrices<T, 128>>(p);
}

using Ints = std::vector<int64_t>;

template <class To>
void fill(const Ints& from, To& to) {
  for (size_t i = 0; i < from.size(); ++i) to[i] = static_cast<std::decay_t<decltype(to[0])>>(from[i]);
}

}  // namespace

void bind_primitives(py::module_& m) {
  m.def("copy_im2col", [](uintptr_t x, const Ints& size, const Ints& stride, const Ints& lower, const Ints& upper,
                          const Ints& step, int channels_there, int channels, int pixels, int c, const Ints& base,
                          const Ints& tap, uint32_t expected, uintptr_t out, const std::string& faults) {
    MapTensor tensor = {};
    tensor.data = reinterpret_cast<const void*>(x);
    tensor.channels = channels_there;
    fill(size, tensor.size);
    fill(stride, tensor.stride);
    Im2colBox box = {};
    fill(lower, box.lower);
    fill(upper, box.upper);
    fill(step, box.step);
    box.channels = channels;
    box.pixels = pixels;
    CopyParams p = {};
    if (const char* error = encode_im2col_map(tensor, box, p.map)) throw std::runtime_error(error);
    p.c = c;
    fill(base, p.base);
    fill(tap, p.tap);
    p.bytes = channels * pixels * 2;
    p.expected = expected;
    p.out = reinterpret_cast<char*>(out);
    p.faults = faults;
    run<CopyBox>(p);
  });
  m.def("copy_tile", [](uintptr_t x, const Ints& size, const Ints& stride, const Ints& box, int swizzle, int c,
                        const Ints& base, uintptr_t out) {  // size and box: c, w, h, d, n
    emulator::Map map = {};
    map.base = reinterpret_cast<const char*>(x);
    fill(size, map.size);
    fill(stride, map.stride);
    fill(box, map.box);
    map.element = 2;
    map.swizzle = static_cast<uint8_t>(swizzle);
    CopyParams p = {};
    std::memcpy(&p.map, &map, sizeof map);
    p.tiled = true;
    p.c = c;
    fill(base, p.base);
    p.bytes = 2;
    for (int64_t b : box) p.bytes *= static_cast<uint32_t>(b);
    p.expected = p.bytes;
    p.out = reinterpret_cast<char*>(out);
    run<CopyBox>(p);
  });
  m.def("copy_bulk", [](uintptr_t x, uint32_t bytes, uintptr_t out) {
    CopyParams p = {};
    p.flat = reinterpret_cast<const void*>(x);
    p.bytes = p.expected = bytes;
    p.out = reinterpret_cast<char*>(out);
    run<CopyBox>(p);
  });
  m.def("multiply", [](bool half, int n, uintptr_t a, int a_bytes, uintptr_t b, int b_bytes, const Ints& left,
                       const Ints& right, int steps, uintptr_t out, const std::string& faults) {
    const auto side = [](const Ints& s) {
      return Side{int(s[0]), int(s[1]), int(s[2]), int(s[3]), s[4] != 0, s.size() > 5 ? int(s[5]) : 0};
    };
    const MatrixParams p = {reinterpret_cast<const Bytes16*>(a), reinterpret_cast<const Bytes16*>(b), a_bytes / 16,
                            b_bytes / 16, side(left), side(right), steps, reinterpret_cast<float*>(out), faults};
    half ? multiply<f16>(n, p) : multiply<bf16>(n, p);
  });
}
