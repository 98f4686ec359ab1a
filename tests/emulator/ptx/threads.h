// The emulator's bodies of csrc/cuda/ptx/threads.cuh.
#pragma once

#include "../emulator.h"

namespace ssconv {

inline int thread_index() { return emulator::current().thread; }
inline uint32_t block_x() { return emulator::current().block[0]; }
inline uint32_t block_y() { return emulator::current().block[1]; }
inline uint32_t block_z() { return emulator::current().block[2]; }
inline uint32_t blocks_x() { return emulator::current().grid[0]; }

inline void sync_threads() { emulator::barrier(); }

inline float shuffle_xor(float value, int mask) {
  struct Lane {
    float value, result;
    int mask;
  } own{value, 0, mask};
  emulator::collective("shuffle", &own, [](void* const* lanes) {
    for (int l = 0; l < 32; ++l) {
      auto& lane = *static_cast<Lane*>(lanes[l]);
      lane.result = static_cast<Lane*>(lanes[l ^ lane.mask])->value;
    }
  });
  return own.result;
}

inline int warp_uniform(int value) {
  struct Lane {
    int value;
  } own{value};
  emulator::collective("warp_uniform", &own, [](void* const* lanes) {
    for (int l = 1; l < 32; ++l) static_cast<Lane*>(lanes[l])->value = static_cast<Lane*>(lanes[0])->value;
  });
  return own.value;
}
template <int N>
void setmaxnreg_dec() {}
template <int N>
void setmaxnreg_inc() {}

}  // namespace ssconv
