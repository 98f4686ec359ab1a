// Loads and stores of global and shared memory.
#pragma once

#include "types.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/memory.h"
#else

namespace ssconv {

template <class T>
SSCONV_DEVICE T load(const T* p) {
  return *p;
}
template <class T>
SSCONV_DEVICE void store(T* p, T value) {
  *p = value;
}

#if defined(SSCONV_SM90A)
extern __shared__ __align__(1024) Bytes16 shared_memory[];  // the alignment of a 128-byte swizzle atom
#else
extern __shared__ Bytes16 shared_memory[];
#endif

template <class T>
SSCONV_DEVICE T shared_load(uint32_t smem) {
  return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(shared_memory) + smem);
}
template <class T>
SSCONV_DEVICE void shared_store(uint32_t smem, T value) {
  *reinterpret_cast<T*>(reinterpret_cast<char*>(shared_memory) + smem) = value;
}
// The address in the shared state space, as PTX instructions take it.
SSCONV_DEVICE uint32_t shared_address(uint32_t smem) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory)) + smem;
}

}  // namespace ssconv
#endif
