// The emulator's bodies of csrc/cuda/ptx/wgmma.cuh.
#pragma once

#include "../emulator.h"
#include "convert.h"

namespace ssconv {

inline void wgmma_fence() { emulator::wgmma_fence(); }
inline void wgmma_commit() { emulator::wgmma_commit(); }
template <int N>
void wgmma_wait() {
  emulator::wgmma_wait(N);
}
template <class T, int N, bool TA = false, bool TB = false>
void wgmma(float (&c)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  emulator::wgmma({c, N, a, b, TA, TB, accumulate, [](uint16_t bits) { return to_float(T{bits}); }});
}

}  // namespace ssconv
