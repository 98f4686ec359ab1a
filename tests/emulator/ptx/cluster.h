// The emulator's bodies of csrc/cuda/ptx/cluster.cuh.
#pragma once

#include "../emulator.h"

namespace ssconv {

inline uint32_t cluster_rank() { return emulator::current().rank; }
inline void cluster_sync() { emulator::cluster_barrier(); }

}  // namespace ssconv
