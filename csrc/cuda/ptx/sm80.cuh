// What the CUDA kernels ask of the machine: every primitive once, with two bodies. nvcc takes the device's; any other
// compiler takes the host's, which run on the emulator of tests/emulator, so that the kernels' own sources execute, and
// are checked, where there is no GPU.
//
// Shared memory is addressed in bytes from its start. All pointers of load, store and copy_async are global memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../params.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SSCONV_DEVICE __device__ __forceinline__
#define SSCONV_EITHER __host__ __device__ __forceinline__  // launches ask it, too
#else
#include <cmath>
#include <cstring>

#include "emulator.h"
#define SSCONV_DEVICE inline
#define SSCONV_EITHER inline
#endif

namespace ssconv {

// Storage of the 16-bit formats, the same on both sides.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct alignas(16) Bits16 {
  uint32_t word[4];
};
struct alignas(8) Bits8 {
  uint32_t word[2];
};
struct alignas(8) Pair {
  float x, y;
};
struct alignas(16) Quad {
  float x, y, z, w;
};

#if defined(__CUDACC__)
// ------------------------------------------------------------------------------------------------------- the device

SSCONV_DEVICE int thread_index() { return threadIdx.x; }
SSCONV_DEVICE uint32_t block_x() { return blockIdx.x; }
SSCONV_DEVICE uint32_t block_y() { return blockIdx.y; }
SSCONV_DEVICE uint32_t block_z() { return blockIdx.z; }
SSCONV_DEVICE uint32_t blocks_x() { return gridDim.x; }

SSCONV_DEVICE void sync_threads() { __syncthreads(); }

template <class T>
SSCONV_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
SSCONV_DEVICE void store(T* p, T value) {
  *p = value;
}

#if defined(SSCONV_SM90A)
extern __shared__ __align__(1024) Bits16 shared_memory[];  // as swizzled tiles want it
#else
extern __shared__ Bits16 shared_memory[];
#endif

template <class T>
SSCONV_DEVICE T shared_load(uint32_t at) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(shared_memory) + at);
}
template <class T>
SSCONV_DEVICE void shared_store(uint32_t at, T value) {
  *reinterpret_cast<T*>(reinterpret_cast<char*>(shared_memory) + at) = value;
}
SSCONV_DEVICE uint32_t shared_address(uint32_t at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)) + at;
}

// 16 bytes, or 16 zero bytes where not `there`; both addresses multiples of 16.
SSCONV_DEVICE void copy_async(uint32_t at, const void* p, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(at)), "l"(p), "r"(there ? 16 : 0)
               : "memory");
}
// The same through the L1 cache, for what the block reads again soon.
SSCONV_DEVICE void copy_async_cached(uint32_t at, const void* p, bool there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(at)), "l"(p), "r"(there ? 16 : 0)
               : "memory");
}
SSCONV_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Until at most N of this thread's committed groups are under way.
template <int N>
SSCONV_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

// 8 x 8 matrices of 16 bits, a row of 16 bytes; lanes 8 i .. 8 i + 7 name the rows of matrix i. Lane l receives row l / 4,
// elements 2 (l % 4) and the next; transposed: column l / 4, rows 2 (l % 4) and the next.
SSCONV_DEVICE void load_matrices(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}
SSCONV_DEVICE void load_matrices(uint32_t (&r)[2], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(at))
               : "memory");
}
SSCONV_DEVICE void load_matrices_transposed(uint32_t (&r)[4], uint32_t at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(at))
               : "memory");
}

// c (16, 8) += a (16, 16) * b (16, 8), in the fragments of PTX's mma.m16n8k16.
SSCONV_DEVICE void multiply(bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
SSCONV_DEVICE void multiply(f16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// c (16, 8) += a (16, 8) * b (8, 8) in TF32, mma.m16n8k8.
SSCONV_DEVICE void multiply(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// A float's bits rounded to TF32's ten, ties away from zero.
SSCONV_DEVICE uint32_t round_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

SSCONV_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

SSCONV_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
SSCONV_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SSCONV_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
SSCONV_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

SSCONV_DEVICE float to_float(float x) { return x; }
SSCONV_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
SSCONV_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }
template <class T>
SSCONV_DEVICE T from_float(float x);
template <>
SSCONV_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
SSCONV_DEVICE bf16 from_float<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
SSCONV_DEVICE f16 from_float<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, Kernel::BLOCKS)
    kernel(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

// Null, or what CUDA says against it.
template <class Kernel>
const char* launch(const typename Kernel::Params& params, Grid grid, int shared_bytes, void* stream) {
  const void* function = reinterpret_cast<const void*>(&kernel<Kernel>);
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))};
  if (status == cudaSuccess)
    status = cudaLaunchKernel(function, dim3(grid.x, grid.y, grid.z), dim3(Kernel::THREADS), arguments, shared_bytes,
                              static_cast<cudaStream_t>(stream));
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // ours to report: nobody else shall find it
  return cudaGetErrorString(status);
}

#else
// --------------------------------------------------------------------------------------------------------- the host

inline int thread_index() { return emulator::current().thread; }
inline uint32_t block_x() { return emulator::current().block[0]; }
inline uint32_t block_y() { return emulator::current().block[1]; }
inline uint32_t block_z() { return emulator::current().block[2]; }
inline uint32_t blocks_x() { return emulator::current().grid[0]; }

inline void sync_threads() { emulator::barrier(); }

template <class T>
T load(const T* p) {
  emulator::check_global(p, sizeof(T), false);
  return *p;
}
template <class T>
void store(T* p, T value) {
  emulator::check_global(p, sizeof(T), true);
  *p = value;
}
template <class T>
T shared_load(uint32_t at) {
  T value;
  std::memcpy(&value, emulator::shared_read(at, sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void shared_store(uint32_t at, T value) {
  std::memcpy(emulator::shared_write(at, sizeof(T)), &value, sizeof(T));
}

inline void copy_async(uint32_t at, const void* p, bool there) {
  if (there) emulator::check_global(p, 16, false);
  emulator::copy_begin(at, there ? p : nullptr);
}
inline void copy_async_cached(uint32_t at, const void* p, bool there) { copy_async(at, p, there); }
inline void copy_commit() { emulator::copy_commit(); }
template <int N>
void copy_wait() {
  emulator::copy_wait(N);
}

template <int COUNT, bool TRANSPOSED>
void load_matrices_on_host(uint32_t (&r)[COUNT], uint32_t at) {
  struct Mine {
    uint32_t at, *r;
  } mine{at, r};
  emulator::collective(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", &mine, [](void* const* lanes) {
    uint16_t matrix[8][8];
    for (int m = 0; m < COUNT; ++m) {
      for (int row = 0; row < 8; ++row) {
        const uint32_t from = static_cast<Mine*>(lanes[8 * m + row])->at;
        std::memcpy(matrix[row], emulator::shared_read(from, 16, 8 * m + row), 16);
      }
      for (int l = 0; l < 32; ++l) {
        const int i = l / 4, j = 2 * (l % 4);
        const uint32_t low = TRANSPOSED ? matrix[j][i] : matrix[i][j];
        const uint32_t high = TRANSPOSED ? matrix[j + 1][i] : matrix[i][j + 1];
        static_cast<Mine*>(lanes[l])->r[m] = low | high << 16;
      }
    }
  });
}
inline void load_matrices(uint32_t (&r)[4], uint32_t at) { load_matrices_on_host<4, false>(r, at); }
inline void load_matrices(uint32_t (&r)[2], uint32_t at) { load_matrices_on_host<2, false>(r, at); }
inline void load_matrices_transposed(uint32_t (&r)[4], uint32_t at) { load_matrices_on_host<4, true>(r, at); }

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  _Float16 h;
  std::memcpy(&h, &x.bits, 2);
  return static_cast<float>(h);
}
template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t b = bits_of(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  f16 result;
  std::memcpy(&result.bits, &h, 2);
  return result;
}
inline uint32_t round_tf32(uint32_t bits) {
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  return finite ? (bits + 0x1000) & 0xffffe000 : bits;
}

// K values of a fragment's row, as PTX lays them over the lanes: 16 of 16 bits, or 8 of 32 of which TF32 reads 19.
template <class T>
void multiply_on_host(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  struct Mine {
    float* c;
    const uint32_t *a, *b;
  } mine{c, a, b};
  emulator::collective("mma", &mine, [](void* const* lanes) {
    constexpr int PER = 4 / sizeof(T), K = 8 * PER;  // values of a register
    float left[16][K], right[8][K];
    const auto value = [](uint32_t word, int i) {
      if constexpr (sizeof(T) == 2) return to_float(T{static_cast<uint16_t>(word >> 16 * i)});
      return float_of(word & 0xffffe000);
    };
    for (int l = 0; l < 32; ++l) {
      const auto& m = *static_cast<Mine*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < PER; ++i) {
        for (int half = 0; half < 2; ++half) {
          const int k = half * 4 * PER + t * PER + i;
          left[g][k] = value(m.a[2 * half], i);
          left[g + 8][k] = value(m.a[2 * half + 1], i);
          right[g][k] = value(m.b[half], i);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      const auto& m = *static_cast<Mine*>(lanes[l]);
      for (int i = 0; i < 4; ++i) {
        const float *x = left[l / 4 + i / 2 * 8], *y = right[2 * (l % 4) + i % 2];
        float sum = 0;
        for (int k = 0; k < K; ++k) sum += x[k] * y[k];
        m.c[i] += sum;
      }
    }
  });
}
inline void multiply(bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) { multiply_on_host<bf16>(c, a, b); }
inline void multiply(f16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) { multiply_on_host<f16>(c, a, b); }
inline void multiply(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  multiply_on_host<float>(c, a, b);
}

inline float shuffle_xor(float value, int mask) {
  struct Mine {
    float value, result;
    int mask;
  } mine{value, 0, mask};
  emulator::collective("shuffle", &mine, [](void* const* lanes) {
    for (int l = 0; l < 32; ++l) {
      auto& m = *static_cast<Mine*>(lanes[l]);
      m.result = static_cast<Mine*>(lanes[l ^ m.mask])->value;
    }
  });
  return mine.result;
}

inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }
inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }

template <class Kernel>
const char* launch(const typename Kernel::Params& params, Grid grid, int shared_bytes, void*) {
  struct Call {
    static void run(const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); }
  };
  return emulator::launch(Kernel::name(), grid.x, grid.y, grid.z, Kernel::THREADS, shared_bytes, Call::run, &params);
}
#endif

}  // namespace ssconv
