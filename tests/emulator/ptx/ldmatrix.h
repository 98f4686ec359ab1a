// The emulator's bodies of csrc/cuda/ptx/ldmatrix.cuh.
#pragma once

#include <cstring>

#include "../emulator.h"

namespace ssconv {

template <int COUNT, bool TRANSPOSED>
void emulated_ldmatrix(uint32_t (&r)[COUNT], uint32_t smem) {
  struct Lane {
    uint32_t smem, *r;
  } own{smem, r};
  emulator::collective(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", &own, [](void* const* lanes) {
    uint16_t matrix[8][8];
    for (int m = 0; m < COUNT; ++m) {
      for (int row = 0; row < 8; ++row) {
        const uint32_t from = static_cast<Lane*>(lanes[8 * m + row])->smem;
        std::memcpy(matrix[row], emulator::shared_read(from, 16, 8 * m + row), 16);
      }
      for (int l = 0; l < 32; ++l) {
        const int i = l / 4, j = 2 * (l % 4);
        const uint32_t low = TRANSPOSED ? matrix[j][i] : matrix[i][j];
        const uint32_t high = TRANSPOSED ? matrix[j + 1][i] : matrix[i][j + 1];
        static_cast<Lane*>(lanes[l])->r[m] = low | high << 16;
      }
    }
  });
}
inline void ldmatrix(uint32_t (&r)[4], uint32_t smem) { emulated_ldmatrix<4, false>(r, smem); }
inline void ldmatrix(uint32_t (&r)[2], uint32_t smem) { emulated_ldmatrix<2, false>(r, smem); }
inline void ldmatrix_trans(uint32_t (&r)[4], uint32_t smem) { emulated_ldmatrix<4, true>(r, smem); }

}  // namespace ssconv
