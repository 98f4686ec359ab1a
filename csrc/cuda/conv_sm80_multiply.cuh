// Multiply: one stage of the sm_80 convolution.
#pragma once

#include "conv_sm80_tile.cuh"
#include "pipeline_sm80.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace ssconv {

// accumulators (BM, BN) += A (BM, BK) * B (BK, BN) of the stage. A and B lie in shared memory with K along their rows.
// A warp computes 64 x BN / 2 of it. `chunks`: of K, that are not all zeros.
template <class Config>
SSCONV_DEVICE void conv_sm80_multiply(uint32_t stage, int chunks,
                                      float (&accumulators)[Config::MI][Config::NI][4]) {
  using T = typename Config::T;
  constexpr int MI = Config::MI, NI = Config::NI, CHUNKS = Config::CHUNKS;
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int first_row = warp / 2 * 64, first_column = warp % 2 * (Config::BN / 2);
  const uint32_t weights = stage + Config::A_BYTES;
  if constexpr (Config::Arithmetic::TENSOR_CORES) {
#pragma unroll
    for (int k = 0; k < CHUNKS; k += 2) {
      if (Config::BY_ELEMENTS && k >= chunks) break;
      uint32_t a[MI][4], b[NI][2];
#pragma unroll
      for (int i = 0; i < MI; ++i) {
        ldmatrix(a[i], stage + swizzled_offset<CHUNKS>(first_row + 16 * i + lane % 16, k + lane / 16));
        if constexpr (sizeof(T) == 4) {
#pragma unroll
          for (int j = 0; j < 4; ++j) a[i][j] = round_tf32(a[i][j]);
        }
      }
      if constexpr (NI == 1) {
        ldmatrix(b[0], weights + swizzled_offset<CHUNKS>(first_column + lane % 8, k + lane / 8 % 2));
      } else {
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
          uint32_t both[4];
          ldmatrix(both, weights + swizzled_offset<CHUNKS>(first_column + 8 * j + lane / 16 * 8 + lane % 8,
                                                           k + lane / 8 % 2));
          b[j][0] = both[0];
          b[j][1] = both[1];
          b[j + 1][0] = both[2];
          b[j + 1][1] = both[3];
        }
      }
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j) mma(T{}, accumulators[i][j], a[i], b[j]);
    }
  } else {  // exact float32 on the CUDA cores; accumulators in mma's layout
    const int g = lane / 4, t = lane % 4;
#pragma unroll 1
    for (int k = 0; k < chunks; ++k) {
      Float4 a[MI][2];
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          a[i][half] = shared_load<Float4>(stage + swizzled_offset<CHUNKS>(first_row + 16 * i + 8 * half + g, k));
#pragma unroll
      for (int j = 0; j < NI; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const Float4 b = shared_load<Float4>(weights + swizzled_offset<CHUNKS>(first_column + 8 * j + 2 * t + e, k));
#pragma unroll
          for (int i = 0; i < MI; ++i) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& sum = accumulators[i][j][2 * half + e];
              sum = fused_multiply_add(a[i][half].x, b.x, sum);
              sum = fused_multiply_add(a[i][half].y, b.y, sum);
              sum = fused_multiply_add(a[i][half].z, b.z, sum);
              sum = fused_multiply_add(a[i][half].w, b.w, sum);
            }
          }
        }
      }
    }
  }
}

}  // namespace ssconv
