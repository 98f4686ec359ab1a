// cp.async (sm_80): asynchronous copies of 16 bytes from global to shared memory, in commit groups per thread.
#pragma once

#include "memory.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/cp_async.h"
#else

namespace ssconv {

// Copies 16 bytes past the L1 cache, or writes 16 zero bytes where not `valid`. Both addresses are multiples of 16.
SSCONV_DEVICE void cp_async_cg(uint32_t smem, const void* p, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(smem)), "l"(p),
               "r"(valid ? 16 : 0)
               : "memory");
}
// The same through the L1 cache, for data that the block reads again soon.
SSCONV_DEVICE void cp_async_ca(uint32_t smem, const void* p, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(smem)), "l"(p),
               "r"(valid ? 16 : 0)
               : "memory");
}
SSCONV_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most N of this thread's committed groups are in flight.
template <int N>
SSCONV_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}

}  // namespace ssconv
#endif
