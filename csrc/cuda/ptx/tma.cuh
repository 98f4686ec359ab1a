// Bulk copies from global to shared memory (TMA, sm_90). One thread issues a copy; its bytes complete the mbarrier's
// phase.
#pragma once

#include "memory.cuh"
#include "tensor_map.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/tma.h"
#else

namespace ssconv {

// Makes this thread's own stores to shared memory visible to wgmma and bulk copies (the async proxy).
SSCONV_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }

// Copies a box of an im2col map, channels from c on: the pixels from base position (n, d, h, w) on, each displaced by
// `tap` (d, h, w).
SSCONV_DEVICE void tma_load_im2col(uint32_t smem, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4],
                                   const int (&tap)[3]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2], {%8, %9, %10};\n" ::"r"(shared_address(smem)),
      "l"(map), "r"(shared_address(mbarrier)), "r"(c), "r"(base[3]), "r"(base[2]), "r"(base[1]), "r"(base[0]),
      "h"(static_cast<uint16_t>(tap[2])), "h"(static_cast<uint16_t>(tap[1])), "h"(static_cast<uint16_t>(tap[0]))
      : "memory");
}
// Copies a box of a tiled map, channels from c on, from voxel (n, d, h, w) on.
SSCONV_DEVICE void tma_load_tile(uint32_t smem, const TensorMap* map, uint32_t mbarrier, int c, const int (&base)[4]) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6, "
      "%7}], [%2];\n" ::"r"(shared_address(smem)),
      "l"(map), "r"(shared_address(mbarrier)), "r"(c), "r"(base[3]), "r"(base[2]), "r"(base[1]), "r"(base[0])
      : "memory");
}
// Copies contiguous bytes; addresses and size are multiples of 16.
SSCONV_DEVICE void bulk_load(uint32_t smem, const void* p, uint32_t bytes, uint32_t mbarrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n" ::"r"(
                   shared_address(smem)),
               "l"(p), "r"(bytes), "r"(shared_address(mbarrier))
               : "memory");
}
// The same to each block of the cluster whose bit is set, at the same offsets there, the mbarrier's included.
SSCONV_DEVICE void bulk_load_multicast(uint16_t blocks, uint32_t smem, const void* p, uint32_t bytes,
                                       uint32_t mbarrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;\n" ::"r"(shared_address(smem)),
      "l"(p), "r"(bytes), "r"(shared_address(mbarrier)), "h"(blocks)
      : "memory");
}

}  // namespace ssconv
#endif
