// The pipeline of the sm_90a kernels: stages of shared memory that a producer warp fills by bulk copies and consumer
// warp groups read, in a circle.
#pragma once

#include "ptx/cluster.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/threads.cuh"

namespace ssconv {

// One thread's state in the pipeline: its stage, and the parity of the stage's current use. Each stage has two
// mbarriers: full (the stage's bytes have arrived) and empty (all warps of all CONSUMERS warp groups are done with it).
//   STAGE      bytes of a stage
//   START      offset of the first stage in shared memory
//   MBARRIERS  offset of the mbarriers
template <int STAGES, int STAGE, int CONSUMERS, int START = 0, int MBARRIERS = START + STAGES * STAGE>
struct Pipeline {
  static constexpr int FULL = MBARRIERS, EMPTY = FULL + 8 * STAGES;
  static constexpr int END = EMPTY + 8 * STAGES;  // of its shared memory
  int stage = 0;
  uint32_t parity = 0;

  // Initialises the mbarriers; all threads of the block call it. BLOCKS: of the cluster, 1 or 2. Two blocks copy into
  // each other's stages, so the warps of both signal which stages are empty.
  template <int BLOCKS = 1>
  SSCONV_DEVICE static void init() {
    if (thread_index() == 0) {
#pragma unroll
      for (int i = 0; i < STAGES; ++i) {
        mbarrier_init(FULL + 8 * i, 1);
        mbarrier_init(EMPTY + 8 * i, 4 * CONSUMERS * BLOCKS);
      }
      fence_mbarrier_init();
    }
    if constexpr (BLOCKS > 1)
      cluster_sync();
    else
      sync_threads();
  }

  SSCONV_DEVICE uint32_t offset() const { return START + stage * STAGE; }
  SSCONV_DEVICE uint32_t full_barrier() const { return FULL + 8 * stage; }
  SSCONV_DEVICE void wait_full() const { mbarrier_wait(FULL + 8 * stage, parity); }
  SSCONV_DEVICE void wait_empty() const { mbarrier_wait(EMPTY + 8 * stage, parity ^ 1); }
  SSCONV_DEVICE void next() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }

  // Signals that this warp is done with a stage; -1: none.
  template <int BLOCKS = 1>
  SSCONV_DEVICE static void release(int stage) {
    if (stage < 0 || thread_index() % 32 != 0) return;
    mbarrier_arrive(EMPTY + 8 * stage);
    if constexpr (BLOCKS > 1) mbarrier_arrive_cluster(EMPTY + 8 * stage, cluster_rank() ^ 1);
  }
};

}  // namespace ssconv
