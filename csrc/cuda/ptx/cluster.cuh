// Thread block clusters (sm_90).
#pragma once

#include "types.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/cluster.h"
#else

namespace ssconv {

// This block's number in its cluster.
SSCONV_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
  return rank;
}
// The barrier of all threads of the cluster. Before its last one, the shared memory of all blocks exists.
SSCONV_DEVICE void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release;\n"
      "barrier.cluster.wait.acquire;\n" ::
          : "memory");
}

}  // namespace ssconv
#endif
