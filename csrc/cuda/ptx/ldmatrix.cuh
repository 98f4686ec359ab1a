// ldmatrix (sm_80): a warp loads 8 x 8 matrices of 16-bit elements from shared memory into fragments.
//
// A matrix row is 16 bytes; lanes 8 i .. 8 i + 7 give the addresses of matrix i's rows. Lane l receives row l / 4,
// elements 2 (l % 4) and 2 (l % 4) + 1; transposed: column l / 4, rows 2 (l % 4) and 2 (l % 4) + 1.
#pragma once

#include "memory.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/ldmatrix.h"
#else

namespace ssconv {

SSCONV_DEVICE void ldmatrix(uint32_t (&r)[4], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(smem))
               : "memory");
}
SSCONV_DEVICE void ldmatrix(uint32_t (&r)[2], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(smem))
               : "memory");
}
SSCONV_DEVICE void ldmatrix_trans(uint32_t (&r)[4], uint32_t smem) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(smem))
               : "memory");
}

}  // namespace ssconv
#endif
