// The pipeline of the sm_80 kernels: stages of shared memory that all threads of a block fill with cp.async, in a
// circle.
#pragma once

#include "chunks.cuh"
#include "ptx/cp_async.cuh"

namespace ssconv {

// The offset of a chunk in a tile whose rows are CHUNKS chunks, a power of two >= 4. The row's number swizzles the
// chunks, so that the eight rows that an ldmatrix reads, and the lanes that store, meet in no bank.
template <int CHUNKS>
SSCONV_DEVICE uint32_t swizzled_offset(int row, int chunk) {
  const int swizzled = CHUNKS >= 8 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return (row * CHUNKS + swizzled) * 16;
}

// Waits until the oldest of `stages` stages has arrived: this thread's copies of it.
SSCONV_DEVICE void wait_for_oldest_stage(int stages) {
  if (stages == 2)
    cp_async_wait<0>();
  else if (stages == 3)
    cp_async_wait<1>();
  else
    cp_async_wait<2>();
}

// The number of the stage after `stage`, in the circle.
SSCONV_DEVICE int next_stage(int stage, int stages) { return stage + 1 == stages ? 0 : stage + 1; }

}  // namespace ssconv
