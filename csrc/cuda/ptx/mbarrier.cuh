// mbarrier (sm_90): barriers in shared memory, 8 bytes each, that count arrivals of threads and bytes of bulk copies.
//
// A phase ends when all arrivals and all expected bytes are there. Phases have parity 0, 1, 0, ...
#pragma once

#include "memory.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/mbarrier.h"
#else

namespace ssconv {

// count: arrivals that end a phase.
SSCONV_DEVICE void mbarrier_init(uint32_t smem, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(smem)), "r"(count) : "memory");
}
// Makes this thread's mbarrier_init visible to bulk copies, and to the other blocks of the cluster.
SSCONV_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory"); }
SSCONV_DEVICE void mbarrier_arrive(uint32_t smem) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(smem)) : "memory");
}
// Arrives, and lets the phase also wait for `bytes` bytes of bulk copies.
SSCONV_DEVICE void mbarrier_arrive_expect_tx(uint32_t smem, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(smem)), "r"(bytes)
               : "memory");
}
// Waits for the end of the phase with this parity.
SSCONV_DEVICE void mbarrier_wait(uint32_t smem, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred over;\n"
      "AGAIN:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@over bra DONE;\n"
      "bra AGAIN;\n"
      "DONE:\n"
      "}\n" ::"r"(shared_address(smem)),
      "r"(parity)
      : "memory");
}
// Arrives at the mbarrier at the same offset in the cluster's block `rank`. Its default scope, the block, suffices: it
// signals that wgmmas have read, not what threads have written. .release.cluster would flush memory each time.
SSCONV_DEVICE void mbarrier_arrive_cluster(uint32_t smem, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 there;\n"
      "mapa.shared::cluster.u32 there, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
      "}\n" ::"r"(shared_address(smem)),
      "r"(rank)
      : "memory");
}

}  // namespace ssconv
#endif
