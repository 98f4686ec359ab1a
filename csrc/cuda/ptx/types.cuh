// What all primitives share: the function attributes, and the types that are stored.
//
// Each header of this folder holds the PTX primitives of one kind, each as one small inline function. nvcc compiles the
// bodies here. Any other compiler takes the bodies of tests/emulator/ptx, which run on an emulator: so the kernels' own
// sources are executed and checked where there is no GPU.
//
// Shared memory is addressed by byte offsets from its start (`smem`). Other pointers are global memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define SSCONV_DEVICE __device__ __forceinline__
#define SSCONV_EITHER __host__ __device__ __forceinline__  // the launches on the host call it too
#else
#define SSCONV_DEVICE inline
#define SSCONV_EITHER inline
#endif

namespace ssconv {

// 16-bit floats, as stored.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Units of vector loads and stores.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};
struct alignas(8) Bytes8 {
  uint32_t word[2];
};
struct alignas(8) Float2 {
  float x, y;
};
struct alignas(16) Float4 {
  float x, y, z, w;
};

}  // namespace ssconv
