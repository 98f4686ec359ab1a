// The emulator's bodies of csrc/cuda/ptx/mbarrier.cuh.
#pragma once

#include "../emulator.h"

namespace ssconv {

inline void mbarrier_init(uint32_t smem, int count) { emulator::mbarrier_init(smem, count); }
inline void fence_mbarrier_init() { emulator::fence_mbarrier_init(); }
inline void mbarrier_arrive(uint32_t smem) { emulator::mbarrier_arrive(smem, 0); }
inline void mbarrier_arrive_expect_tx(uint32_t smem, uint32_t bytes) { emulator::mbarrier_arrive(smem, bytes); }
inline void mbarrier_wait(uint32_t smem, uint32_t parity) { emulator::mbarrier_wait(smem, parity); }
inline void mbarrier_arrive_cluster(uint32_t smem, uint32_t rank) { emulator::mbarrier_arrive_cluster(smem, rank); }

}  // namespace ssconv
