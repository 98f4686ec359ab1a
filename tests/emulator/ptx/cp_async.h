// The emulator's bodies of csrc/cuda/ptx/cp_async.cuh.
#pragma once

#include "../emulator.h"

namespace ssconv {

inline void cp_async_cg(uint32_t smem, const void* p, bool valid) {
  if (valid) emulator::check_global(p, 16, false);
  emulator::cp_async(smem, valid ? p : nullptr);
}
inline void cp_async_ca(uint32_t smem, const void* p, bool valid) { cp_async_cg(smem, p, valid); }
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int N>
void cp_async_wait() {
  emulator::cp_async_wait(N);
}

}  // namespace ssconv
