// The emulator's bodies of csrc/cuda/ptx/tma.cuh.
#pragma once

#include <cstring>

#include "../emulator.h"

namespace ssconv {

inline void fence_proxy_async() { emulator::fence_proxy_async(); }

inline emulator::Map emulated_map(const TensorMap* map) {
  emulator::Map m;
  static_assert(sizeof m <= sizeof *map, "an emulator::Map travels in a TensorMap's bytes");
  std::memcpy(&m, map, sizeof m);
  return m;
}
inline void tma_load_im2col(uint32_t smem, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4],
                            const int (&tap)[3]) {
  const auto offset = [&](int i) { return static_cast<uint16_t>(tap[i]); };
  emulator::tma_load(smem, emulated_map(map), mbarrier, {c, base[3], base[2], base[1], base[0]},
                     {offset(2), offset(1), offset(0)});
}
inline void tma_load_tile(uint32_t smem, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4]) {
  emulator::tma_load(smem, emulated_map(map), mbarrier, {c, base[3], base[2], base[1], base[0]}, {0, 0, 0});
}
inline void bulk_load(uint32_t smem, const void* p, uint32_t bytes, uint32_t mbarrier) {
  emulator::bulk_load(smem, p, bytes, mbarrier);
}
inline void bulk_load_multicast(uint16_t blocks, uint32_t smem, const void* p, uint32_t bytes, uint32_t mbarrier) {
  emulator::bulk_load_multicast(blocks, smem, p, bytes, mbarrier);
}

}  // namespace ssconv
