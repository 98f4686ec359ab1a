// The ring of stages through which one warp hands what bulk copies bring to warpgroups that multiply it.
#pragma once

#include "ptx/sm90.cuh"

namespace ssconv {

// A thread's place in the ring: a stage, and the parity of its current use. The stages' mbarriers follow them: one each
// that is over when its bytes are there, one each when all consumers' warps are done with it. START, MBARRIERS: where both
// lie; SHARED: the end.
template <int STAGES, int STAGE, int CONSUMERS, int START = 0, int MBARRIERS = START + STAGES * STAGE>
struct Ring {
  static constexpr int FULL = MBARRIERS, FREE = FULL + 8 * STAGES;
  static constexpr int SHARED = FREE + 8 * STAGES;
  int stage = 0;
  uint32_t parity = 0;

  // All threads of the block, before any uses it. BLOCKS: of a cluster, 1 or 2; two bring bytes into each other's stages,
  // and so tell each other what is free.
  template <int BLOCKS = 1>
  SSCONV_DEVICE static void begin() {
    if (thread_index() == 0) {
#pragma unroll
      for (int i = 0; i < STAGES; ++i) {
        mbarrier_init(FULL + 8 * i, 1);
        mbarrier_init(FREE + 8 * i, 4 * CONSUMERS * BLOCKS);
      }
      mbarrier_fence();
    }
    if constexpr (BLOCKS > 1)
      sync_cluster();
    else
      sync_threads();
  }

  SSCONV_DEVICE uint32_t at() const { return START + stage * STAGE; }
  SSCONV_DEVICE uint32_t full() const { return FULL + 8 * stage; }
  SSCONV_DEVICE void wait_full() const { mbarrier_wait(FULL + 8 * stage, parity); }
  SSCONV_DEVICE void wait_free() const { mbarrier_wait(FREE + 8 * stage, parity ^ 1); }
  SSCONV_DEVICE void next() {
    if (++stage < STAGES) return;
    stage = 0;
    parity ^= 1;
  }

  // This warp is done with a stage; -1 is none.
  template <int BLOCKS = 1>
  SSCONV_DEVICE static void release(int stage) {
    if (stage < 0 || thread_index() % 32 != 0) return;
    mbarrier_arrive(FREE + 8 * stage);
    if constexpr (BLOCKS > 1) mbarrier_arrive_at(FREE + 8 * stage, block_rank() ^ 1);
  }
};

}  // namespace ssconv
