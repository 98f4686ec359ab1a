// The emulator's bodies of csrc/cuda/ptx/mma.cuh.
#pragma once

#include "../emulator.h"
#include "convert.h"

namespace ssconv {

// The fragments as PTX lays them over the lanes. K is 16 for 16-bit elements, and 8 for floats, of which TF32 reads the
// upper 19 bits.
template <class T>
void emulated_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) {
  struct Lane {
    float* c;
    const uint32_t *a, *b;
  } own{c, a, b};
  emulator::collective("mma", &own, [](void* const* lanes) {
    constexpr int PER_WORD = 4 / sizeof(T), K = 8 * PER_WORD;
    float left[16][K], right[8][K];
    const auto value = [](uint32_t word, int i) {
      if constexpr (sizeof(T) == 2) return to_float(T{static_cast<uint16_t>(word >> 16 * i)});
      return float_of(word & 0xffffe000);
    };
    for (int l = 0; l < 32; ++l) {
      const auto& lane = *static_cast<Lane*>(lanes[l]);
      const int g = l / 4, t = l % 4;
      for (int i = 0; i < PER_WORD; ++i) {
        for (int half = 0; half < 2; ++half) {
          const int k = half * 4 * PER_WORD + t * PER_WORD + i;
          left[g][k] = value(lane.a[2 * half], i);
          left[g + 8][k] = value(lane.a[2 * half + 1], i);
          right[g][k] = value(lane.b[half], i);
        }
      }
    }
    for (int l = 0; l < 32; ++l) {
      const auto& lane = *static_cast<Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i) {
        const float *x = left[l / 4 + i / 2 * 8], *y = right[2 * (l % 4) + i % 2];
        float sum = 0;
        for (int k = 0; k < K; ++k) sum += x[k] * y[k];
        lane.c[i] += sum;
      }
    }
  });
}
inline void mma(bf16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) { emulated_mma<bf16>(c, a, b); }
inline void mma(f16, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) { emulated_mma<f16>(c, a, b); }
inline void mma(float, float (&c)[4], const uint32_t (&a)[4], const uint32_t* b) { emulated_mma<float>(c, a, b); }

}  // namespace ssconv
