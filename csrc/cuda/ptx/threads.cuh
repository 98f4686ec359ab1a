// A thread's place in its block and grid, the block's barrier, warp shuffles, and registers per thread.
#pragma once

#include "types.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/threads.h"
#else

namespace ssconv {

SSCONV_DEVICE int thread_index() { return threadIdx.x; }
SSCONV_DEVICE uint32_t block_x() { return blockIdx.x; }
SSCONV_DEVICE uint32_t block_y() { return blockIdx.y; }
SSCONV_DEVICE uint32_t block_z() { return blockIdx.z; }
SSCONV_DEVICE uint32_t blocks_x() { return gridDim.x; }

SSCONV_DEVICE void sync_threads() { __syncthreads(); }

// The value of the lane whose number differs by the bits of `mask`.
SSCONV_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// A value that is the same in all lanes of the warp, such as the warp group's number. The compiler then computes with
// it, and with what follows from it, once per warp.
SSCONV_DEVICE int warp_uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// setmaxnreg: sets the registers per thread of the calling warp group, fewer than before or more (sm_90a). `inc` waits
// until the other warp groups have released enough.
template <int N>
SSCONV_DEVICE void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N));
}
template <int N>
SSCONV_DEVICE void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N));
}

}  // namespace ssconv
#endif
