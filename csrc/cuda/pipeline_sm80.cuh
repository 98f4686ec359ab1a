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

// The stages' numbers: the next to fill, and the next to read.
struct StageCounters {
  int stages, fill = 0, read = 0;

  SSCONV_DEVICE int next_fill() { return step(fill); }
  SSCONV_DEVICE int next_read() { return step(read); }

 private:
  SSCONV_DEVICE int step(int& stage) const {
    const int current = stage;
    stage = stage + 1 == stages ? 0 : stage + 1;
    return current;
  }
};

}  // namespace ssconv
