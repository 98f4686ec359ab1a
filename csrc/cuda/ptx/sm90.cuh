// What sm_90a adds to sm80.cuh: mbarriers, bulk copies (TMA) and wgmma, each with two bodies as there.
//
// An mbarrier is 8 bytes of shared memory, which like all of it is addressed in bytes from its start; that start is a
// multiple of 1024. A tensor map is made on the host and handed to the kernel as a parameter.
#pragma once

#include "sm80.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace ssconv {

// What a box of an im2col map (N, C, D, H, W) is: `pixels` outputs' positions from a given one on, `channels` each, with
// the bytes swizzled as wgmma wants rows of that many. Base positions go from `lower` to size - 1 + `upper` in steps.
struct Im2col {
  const void* data;
  bool half;          // f16, not bf16
  int channels_there; // beyond them zeros
  int size[4];        // n, d, h, w
  int64_t stride[4];  // bytes
  int lower[3], upper[3], step[3];  // d, h, w
  int channels, pixels;
};

// The channels of branch `number`, all voxels; its box is still to be told. An extent of 1 has any stride.
inline Im2col im2col_of(const Volume& x, int number, int channels, bool half) {
  Im2col box = {};
  box.data = static_cast<const char*>(x.data) + int64_t(number) * channels * 2;
  box.half = half;
  box.channels_there = channels;
  int64_t whole = int64_t(channels) * 2;  // bytes of what lies inside the next dimension
  for (int i = 3; i >= 0; --i) {
    box.size[i] = x.size[i];
    box.stride[i] = x.size[i] > 1 ? x.stride[i == 0 ? 0 : i + 1] * 2 : whole;
    whole = box.stride[i] * box.size[i];
  }
  return box;
}
// Along dimension i, `count` base positions from `lower` on: the corners hold exactly those.
inline void window(Im2col& box, int i, int lower, int step, int count) {
  box.lower[i] = lower;
  box.step[i] = step;
  box.upper[i] = lower + (count - 1) * step - (box.size[i + 1] - 1);
}

// A matrix in shared memory for wgmma: rows of `span` bytes (32, 64, 128: as swizzled; 0: core matrices of 8 rows of 16
// bytes). K along the rows: stride is between groups of 8 rows, leading only matters without swizzle (the next 8 of K).
// Else: stride is to the next 8 of K, leading to the next span of M or N; without swizzle the other way round.
SSCONV_DEVICE uint64_t matrix(uint32_t address, int span, uint32_t leading, uint32_t stride) {
  const uint64_t layout = span == 128 ? 1 : span == 64 ? 2 : span == 32 ? 3 : 0;
  return (address >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32 |
         layout << 62;
}
// The same matrix some bytes further on.
SSCONV_DEVICE uint64_t further(uint64_t matrix, uint32_t bytes) { return matrix + (bytes >> 4); }
// The same, some chunks of 16 bytes further on: the address does not leave the lower word.
SSCONV_DEVICE uint64_t chunks_further(uint64_t matrix, uint32_t chunks) {
  return (matrix & 0xffffffff00000000) | (static_cast<uint32_t>(matrix) + chunks);
}

#if defined(__CUDACC__)
// ------------------------------------------------------------------------------------------------------- the device

SSCONV_DEVICE void mbarrier_init(uint32_t at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(at)), "r"(count) : "memory");
}
// Makes this thread's initialisations known to bulk copies.
SSCONV_DEVICE void mbarrier_fence() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
SSCONV_DEVICE void mbarrier_arrive(uint32_t at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(at)) : "memory");
}
// Arrives, and the phase also waits for that many bytes of bulk copies.
SSCONV_DEVICE void mbarrier_expect(uint32_t at, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(at)), "r"(bytes)
               : "memory");
}
// Until the phase of that parity (0 for the first) is over.
SSCONV_DEVICE void mbarrier_wait(uint32_t at, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra DONE;\n"
      "bra AGAIN;\n"
      "DONE:\n"
      "}\n" ::"r"(shared_address(at)),
      "r"(parity)
      : "memory");
}
// The same on an mbarrier of another block of the cluster, at the same address there. Of the block's scope, since it tells
// that wgmmas have read, not what threads have written: .release.cluster would flush and wait for memory each time.
SSCONV_DEVICE void mbarrier_arrive_at(uint32_t at, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(at)),
      "r"(rank)
      : "memory");
}
// This block's number in its cluster.
SSCONV_DEVICE uint32_t block_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster, whose shared memory is there until its last one.
SSCONV_DEVICE void sync_cluster() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}
// A warpgroup's registers per thread from now on: fewer, or more when others have given theirs.
template <int N>
SSCONV_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
SSCONV_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

// A number that all lanes of the warp have alike, such as its warpgroup's: the compiler then computes with it, and what
// follows of it, once per warp.
SSCONV_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// This thread's own stores to shared memory are there for wgmma and bulk copies.
SSCONV_DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// The box at base position (n, d, h, w), each pixel displaced by `tap`; the channels begin at c.
SSCONV_DEVICE void copy_im2col(uint32_t at, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4],
                               const int (&tap)[3]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2], {%8, %9, %10};\n" ::"r"(shared_address(at)),
      "l"(map), "r"(shared_address(mbarrier)), "r"(c), "r"(base[3]), "r"(base[2]), "r"(base[1]), "r"(base[0]),
      "h"(static_cast<uint16_t>(tap[2])), "h"(static_cast<uint16_t>(tap[1])), "h"(static_cast<uint16_t>(tap[0]))
      : "memory");
}
// The box of a tiled map.
SSCONV_DEVICE void copy_tile(uint32_t at, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2];\n" ::"r"(shared_address(at)),
      "l"(map), "r"(shared_address(mbarrier)), "r"(c), "r"(base[3]), "r"(base[2]), "r"(base[1]), "r"(base[0])
      : "memory");
}
// Bytes side by side; addresses and size are multiples of 16.
SSCONV_DEVICE void copy_bulk(uint32_t at, const void* p, uint32_t bytes, uint32_t mbarrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(at)),
               "l"(p), "r"(bytes), "r"(shared_address(mbarrier))
               : "memory");
}

// The same to the blocks of the cluster whose bits are set, at the same addresses in each, also the mbarrier.
SSCONV_DEVICE void copy_bulk_to(uint16_t blocks, uint32_t at, const void* p, uint32_t bytes, uint32_t mbarrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;\n" ::
          "r"(shared_address(at)),
      "l"(p), "r"(bytes), "r"(shared_address(mbarrier)), "h"(blocks)
      : "memory");
}

// Before the first wgmma, and between other uses of its accumulators and a wgmma.
SSCONV_DEVICE void matrix_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
SSCONV_DEVICE void matrix_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Until at most N of this warp's committed groups are under way.
template <int N>
SSCONV_DEVICE void matrix_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

// sums (64, N) = a (64, 16) * b (16, N), or with `add` += that, by a warpgroup. Row 16 warp + lane / 4 + 8 half and column 8 i + 2 (lane % 4) + e
// are sums[4 i + 2 half + e]. TA, TB: K does not run along the rows.
#define SSCONV_SUMS4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SSCONV_SUMS16(i) SSCONV_SUMS4(i), SSCONV_SUMS4(i + 4), SSCONV_SUMS4(i + 8), SSCONV_SUMS4(i + 12)
#define SSCONV_WGMMA32(type)                                                                                          \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %20, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {"                                                \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                                 \
      "}, %16, %17, add, 1, 1, %18, %19;\n}\n"                                                                        \
      : SSCONV_SUMS16(0)                                                                                              \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(add)))
#define SSCONV_WGMMA64(type)                                                                                          \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %36, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                                \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
               "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                                                     \
      "}, %32, %33, add, 1, 1, %34, %35;\n}\n"                                                                        \
      : SSCONV_SUMS16(0), SSCONV_SUMS16(16)                                                                           \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(add)))
#define SSCONV_WGMMA128(type)                                                                                         \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %68, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                               \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
               "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
               "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
               "%62, %63"                                                                                             \
      "}, %64, %65, add, 1, 1, %66, %67;\n}\n"                                                                        \
      : SSCONV_SUMS16(0), SSCONV_SUMS16(16), SSCONV_SUMS16(32), SSCONV_SUMS16(48)                                     \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(add)))
template <class T, int N, bool TA = false, bool TB = false>
SSCONV_DEVICE void matrix_multiply(float (&sums)[N / 2], uint64_t a, uint64_t b, bool add) {
  static_assert(N == 32 || N == 64 || N == 128, "the widths that the kernels use");
  constexpr bool BF16 = std::is_same<T, bf16>::value;
  if constexpr (N == 32 && BF16) SSCONV_WGMMA32("bf16");
  if constexpr (N == 32 && !BF16) SSCONV_WGMMA32("f16");
  if constexpr (N == 64 && BF16) SSCONV_WGMMA64("bf16");
  if constexpr (N == 64 && !BF16) SSCONV_WGMMA64("f16");
  if constexpr (N == 128 && BF16) SSCONV_WGMMA128("bf16");
  if constexpr (N == 128 && !BF16) SSCONV_WGMMA128("f16");
}

// `launch` with the blocks side by side along x in clusters of so many.
template <class Kernel>
const char* launch_clusters(const typename Kernel::Params& params, Grid grid, int cluster, int shared_bytes,
                            void* stream) {
  if (cluster == 1) return launch<Kernel>(params, grid, shared_bytes, stream);
  const void* function = reinterpret_cast<const void*>(&kernel<Kernel>);
  cudaLaunchAttribute size = {};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = cluster;
  size.val.clusterDim.y = size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(Kernel::THREADS);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &size;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))};
  cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status == cudaSuccess) status = cudaLaunchKernelExC(&config, function, arguments);
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // ours to report: nobody else shall find it
  return cudaGetErrorString(status);
}

// Null, or why there is no such map. The driver makes it; its entry point is asked of the runtime, so that nothing has to
// be linked.
inline const char* make_map(const Im2col& box, TensorMap& map) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a tensor map has 128 bytes");
  static const auto encode = [] {
    void* found = nullptr;
#if CUDART_VERSION >= 12050
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeIm2col", &found, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeIm2col", &found, cudaEnableDefault);
#endif
    cudaGetLastError();  // ours to report: nobody else shall find it
    return reinterpret_cast<decltype(&cuTensorMapEncodeIm2col)>(found);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeIm2col";
  // Innermost first: C, W, H, D, N; corners W, H, D.
  const cuuint64_t size[5] = {cuuint64_t(box.channels_there), cuuint64_t(box.size[3]), cuuint64_t(box.size[2]),
                              cuuint64_t(box.size[1]), cuuint64_t(box.size[0])};
  const cuuint64_t stride[4] = {cuuint64_t(box.stride[3]), cuuint64_t(box.stride[2]), cuuint64_t(box.stride[1]),
                                cuuint64_t(box.stride[0])};
  const int lower[3] = {box.lower[2], box.lower[1], box.lower[0]};
  const int upper[3] = {box.upper[2], box.upper[1], box.upper[0]};
  const cuuint32_t step[5] = {1, cuuint32_t(box.step[2]), cuuint32_t(box.step[1]), cuuint32_t(box.step[0]), 1};
  const CUtensorMapSwizzle swizzle = box.channels == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box.channels == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                          : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult status =
      encode(reinterpret_cast<CUtensorMap*>(&map),
             box.half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
             const_cast<void*>(box.data), size, stride, lower, upper, box.channels, box.pixels, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeIm2col refuses the tensor";
}

#else
// --------------------------------------------------------------------------------------------------------- the host

inline uint32_t shared_address(uint32_t at) { return at; }
inline void mbarrier_init(uint32_t at, int count) { emulator::mbarrier_init(at, count); }
inline void mbarrier_fence() { emulator::mbarrier_fence(); }
inline void mbarrier_arrive(uint32_t at) { emulator::mbarrier_arrive(at, 0); }
inline void mbarrier_expect(uint32_t at, uint32_t bytes) { emulator::mbarrier_arrive(at, bytes); }
inline void mbarrier_wait(uint32_t at, uint32_t parity) { emulator::mbarrier_wait(at, parity); }
inline void mbarrier_arrive_at(uint32_t at, uint32_t rank) { emulator::mbarrier_arrive_at(at, rank); }
inline uint32_t block_rank() { return emulator::current().rank; }
inline void sync_cluster() { emulator::cluster_barrier(); }
inline void proxy_fence() { emulator::proxy_fence(); }
inline int uniform(int value) { return value; }
template <int N>
void give_registers() {}
template <int N>
void take_registers() {}

inline emulator::Map map_on_host(const TensorMap* map) {
  emulator::Map m;
  static_assert(sizeof m <= sizeof *map, "it travels in a tensor map's place");
  std::memcpy(&m, map, sizeof m);
  return m;
}
inline void copy_im2col(uint32_t at, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4],
                        const int (&tap)[3]) {
  const auto offset = [&](int i) { return static_cast<uint16_t>(tap[i]); };
  emulator::copy_map(at, map_on_host(map), mbarrier, {c, base[3], base[2], base[1], base[0]},
                     {offset(2), offset(1), offset(0)});
}
inline void copy_tile(uint32_t at, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4]) {
  emulator::copy_map(at, map_on_host(map), mbarrier, {c, base[3], base[2], base[1], base[0]}, {0, 0, 0});
}
inline void copy_bulk(uint32_t at, const void* p, uint32_t bytes, uint32_t mbarrier) {
  emulator::copy_bulk(at, p, bytes, mbarrier);
}
inline void copy_bulk_to(uint16_t blocks, uint32_t at, const void* p, uint32_t bytes, uint32_t mbarrier) {
  emulator::copy_bulk(at, p, bytes, mbarrier, blocks);
}
template <class Kernel>
const char* launch_clusters(const typename Kernel::Params& params, Grid grid, int cluster, int shared_bytes, void*) {
  struct Call {
    static void run(const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); }
  };
  return emulator::launch(Kernel::name(), grid.x, grid.y, grid.z, Kernel::THREADS, shared_bytes, Call::run, &params,
                          cluster);
}

inline void matrix_fence() { emulator::matrix_fence(); }
inline void matrix_commit() { emulator::matrix_commit(); }
template <int N>
void matrix_wait() {
  emulator::matrix_wait(N);
}
template <class T, int N, bool TA = false, bool TB = false>
void matrix_multiply(float (&sums)[N / 2], uint64_t a, uint64_t b, bool add) {
  emulator::matrix_multiply({sums, N, a, b, TA, TB, add, [](uint16_t bits) { return to_float(T{bits}); }});
}

inline const char* make_map(const Im2col& box, TensorMap& map) {
  emulator::Map m = {};
  m.base = static_cast<const char*>(box.data);
  m.element = 2;
  m.im2col = true;
  m.size[0] = box.channels_there;
  m.box[0] = box.channels;
  m.box[1] = box.pixels;
  m.swizzle = static_cast<uint8_t>(2 * box.channels);
  for (int i = 0; i < 4; ++i) {
    m.size[1 + i] = box.size[3 - i];
    m.stride[i] = box.stride[3 - i];
    if (m.stride[i] % 16 != 0 || m.stride[i] < 0 || m.stride[i] >> 40 != 0 || m.size[1 + i] < 1)
      return "cuTensorMapEncodeIm2col refuses the tensor: a stride";
  }
  for (int i = 0; i < 3; ++i) {
    const int lower = box.lower[2 - i], upper = box.upper[2 - i], step = box.step[2 - i];
    if (lower < -16 || lower > 15 || upper < -16 || upper > 15 || step < 1 || step > 8)
      return "cuTensorMapEncodeIm2col refuses the tensor: a corner or a step";
    m.lower[i] = static_cast<int8_t>(lower);
    m.upper[i] = static_cast<int8_t>(upper);
    m.step[i] = static_cast<uint8_t>(step);
  }
  if (reinterpret_cast<uintptr_t>(box.data) % 16 != 0 || box.pixels > 1024 || box.channels > 256)
    return "cuTensorMapEncodeIm2col refuses the tensor: an address or a box";
  std::memcpy(&map, &m, sizeof m);
  return nullptr;
}
#endif

}  // namespace ssconv
