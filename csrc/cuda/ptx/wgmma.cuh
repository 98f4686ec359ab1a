// wgmma (sm_90a): asynchronous matrix products of a warp group (4 warps) with both operands in shared memory.
#pragma once

#include "memory.cuh"

namespace ssconv {

// The smem descriptor of an operand at `address`. swizzle: bytes of its swizzled rows, 128, 64 or 32; 0: no swizzle,
// core matrices of 8 rows of 16 bytes. `leading` and `stride` are byte offsets:
//   K-major (K runs along the rows): stride is from one group of 8 rows to the next; leading, from one 8 of K to the
//     next, matters only without swizzle.
//   MN-major: stride is from one 8 of K to the next, leading from one swizzled row's worth of M or N to the next;
//     without swizzle the two are exchanged.
SSCONV_DEVICE uint64_t smem_descriptor(uint32_t address, int swizzle, uint32_t leading, uint32_t stride) {
  const uint64_t layout = swizzle == 128 ? 1 : swizzle == 64 ? 2 : swizzle == 32 ? 3 : 0;
  return (address >> 4 & 0x3fff) | uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32 |
         layout << 62;
}
// The descriptor of the same operand `bytes` further on.
SSCONV_DEVICE uint64_t advance_descriptor(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }
// The same in units of 16 bytes, as 32-bit arithmetic on the lower word, which holds the whole address.
SSCONV_DEVICE uint64_t advance_descriptor_16(uint64_t descriptor, uint32_t units) {
  return (descriptor & 0xffffffff00000000) | (static_cast<uint32_t>(descriptor) + units);
}

}  // namespace ssconv

#if !defined(__CUDACC__)
#include "emulator/ptx/wgmma.h"
#else

namespace ssconv {

// Orders register accesses and wgmma: needed before the first wgmma, and after accumulators were touched.
SSCONV_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
SSCONV_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most N of this warp's committed groups are in flight.
template <int N>
SSCONV_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}

// c (64, N) = a (64, 16) * b (16, N), or += with `accumulate`, by a warp group; a and b are smem descriptors. The
// element at row 16 warp + lane / 4 + 8 half and column 8 i + 2 (lane % 4) + e is c[4 i + 2 half + e] of its thread.
// TA, TB: the operand is MN-major (transposed), not K-major.
#define SSCONV_C4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SSCONV_C16(i) SSCONV_C4(i), SSCONV_C4(i + 4), SSCONV_C4(i + 8), SSCONV_C4(i + 12)
#define SSCONV_WGMMA32(type)                                                                                          \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %20, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type " {"                                                \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"                                 \
      "}, %16, %17, add, 1, 1, %18, %19;\n}\n"                                                                        \
      : SSCONV_C16(0)                                                                                                 \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(accumulate)))
#define SSCONV_WGMMA64(type)                                                                                          \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %36, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {"                                                \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
               "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"                                                     \
      "}, %32, %33, add, 1, 1, %34, %35;\n}\n"                                                                        \
      : SSCONV_C16(0), SSCONV_C16(16)                                                                                 \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(accumulate)))
#define SSCONV_WGMMA128(type)                                                                                         \
  asm volatile(                                                                                                       \
      "{\n.reg .pred add;\nsetp.ne.b32 add, %68, 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {"                                               \
               "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
               "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
               "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
               "%62, %63"                                                                                             \
      "}, %64, %65, add, 1, 1, %66, %67;\n}\n"                                                                        \
      : SSCONV_C16(0), SSCONV_C16(16), SSCONV_C16(32), SSCONV_C16(48)                                                 \
      : "l"(a), "l"(b), "n"(int(TA)), "n"(int(TB)), "r"(int(accumulate)))
template <class T, int N, bool TA = false, bool TB = false>
SSCONV_DEVICE void wgmma(float (&c)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N == 32 || N == 64 || N == 128, "the widths that the kernels use");
  constexpr bool BF16 = std::is_same<T, bf16>::value;
  if constexpr (N == 32 && BF16) SSCONV_WGMMA32("bf16");
  if constexpr (N == 32 && !BF16) SSCONV_WGMMA32("f16");
  if constexpr (N == 64 && BF16) SSCONV_WGMMA64("bf16");
  if constexpr (N == 64 && !BF16) SSCONV_WGMMA64("f16");
  if constexpr (N == 128 && BF16) SSCONV_WGMMA128("bf16");
  if constexpr (N == 128 && !BF16) SSCONV_WGMMA128("f16");
}

}  // namespace ssconv
#endif
