// Weight gradient: products over voxels, split among blocks, then added in a fixed order.
//
// Rows are low's channels, low being what has a voxel per window; columns are a branch's taps times high's channels, as
// one line of chunks, so that a block serves several taps of few channels and reads low once for all of them. A block
// sums over its share of the voxels and leaves a tile of 32-bit floats in a workspace.
#pragma once

#include "common.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

template <class A, int ROWS>
struct WgradSm80 {
  using T = typename A::Element;
  using Params = WgradSm80Params;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 2;
  static constexpr int BM = ROWS, BN = 128;
  static constexpr int MI = BM / 32, NI = BN / 16;  // a warp's tiles of 16 rows and of 8 columns; warps are 2 x 2
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int BK = 64 / sizeof(T);         // voxels of a step
  static constexpr int LOW = BM / SIZE, HIGH = BN / SIZE;  // chunks of a voxel
  static constexpr int LOW_BYTES = BK * LOW * 16, HIGH_BYTES = BK * HIGH * 16;
  static constexpr int STAGE = LOW_BYTES + HIGH_BYTES;

#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "wgrad_sm80<%s, %d>", A::NAME, BM);
    return text;
  }
#endif

  // 16-bit values are turned while they are loaded (ldmatrix.trans); 32-bit ones are read singly, four voxels by eight
  // channels at once, which other places of the chunks keep apart.
  template <int CHUNKS>
  SSCONV_DEVICE static uint32_t place_of(int voxel, int chunk) {
    if constexpr (sizeof(T) == 2) return chunk_at<CHUNKS>(voxel, chunk);
    return (voxel * CHUNKS + (chunk ^ (voxel & 3) << 1)) * 16;
  }

  struct Loader {
    const Params& p;
    int low_channel;     // in low's tensor, of this thread's chunk; -1: there is none
    int high_channel;
    int shift[3];        // of this thread's tap
    uint32_t step, end;

    SSCONV_DEVICE explicit Loader(const Params& params) : p(params) {
      const int tile = block_x() / p.row_blocks, row_block = block_x() - tile * p.row_blocks;
      int s = 0;
      while (s + 1 < p.branches && tile >= p.part[s + 1].first_tile) ++s;
      const auto& part = p.part[s];
      const int row = row_block * BM + thread_index() % LOW * SIZE;
      low_channel = row < p.low_channels ? part.number * p.low_channels + row : -1;
      const int chunks = p.high_channels / SIZE;
      const int chunk = (tile - part.first_tile) * HIGH + thread_index() % HIGH;
      int tap = chunk / chunks;
      high_channel = tap < part.extent[0] * part.extent[1] * part.extent[2]
                         ? part.number * p.high_channels + (chunk - tap * chunks) * SIZE
                         : -1;
#pragma unroll
      for (int i = 2; i >= 0; --i) {
        shift[i] = tap % part.extent[i] - (part.extent[i] - 1) / 2 + p.geometry.first[i];
        tap /= part.extent[i];
      }
      step = block_y() * p.steps_per_split;
      end = step + p.steps_per_split < static_cast<uint32_t>(p.steps) ? step + p.steps_per_split : p.steps;
    }

    SSCONV_DEVICE void fill(uint32_t stage) {
      if (step < end) {
        constexpr int LOW_STEP = THREADS / LOW, HIGH_STEP = THREADS / HIGH;  // voxels at a time
#pragma unroll
        for (int i = 0; i < BK; i += LOW_STEP) {
          const int v = thread_index() / LOW + i;
          if (v < BK) {
            uint32_t rest = step * BK + v;
            const bool there = low_channel >= 0 && rest < p.voxels;
            const int64_t w = divide_off(p.w, rest), h = divide_off(p.h, rest), d = divide_off(p.d, rest), n = rest;
            const T* const from = static_cast<const T*>(p.low.data) + n * p.low.stride[0] + low_channel +
                                  d * p.low.stride[2] + h * p.low.stride[3] + w * p.low.stride[4];
            copy_async(stage + place_of<LOW>(v, thread_index() % LOW), there ? from : p.low.data, there);
          }
        }
#pragma unroll
        for (int i = 0; i < BK; i += HIGH_STEP) {
          const int v = thread_index() / HIGH + i;
          uint32_t rest = step * BK + v;
          bool there = high_channel >= 0 && rest < p.voxels;
          const int w = divide_off(p.w, rest) * p.geometry.stride[2] + shift[2];
          const int h = divide_off(p.h, rest) * p.geometry.stride[1] + shift[1];
          const int d = divide_off(p.d, rest) * p.geometry.stride[0] + shift[0];
          const int64_t n = rest;
          there = there && inside(d, p.high.size[1]) && inside(h, p.high.size[2]) && inside(w, p.high.size[3]);
          const T* const from = static_cast<const T*>(p.high.data) + n * p.high.stride[0] + high_channel +
                                d * p.high.stride[2] + h * p.high.stride[3] + w * p.high.stride[4];
          copy_async(stage + LOW_BYTES + place_of<HIGH>(v, thread_index() % HIGH), there ? from : p.high.data, there);
        }
        ++step;
      }
      copy_commit();
    }
  };

  SSCONV_DEVICE static uint32_t word(uint32_t tile, int chunks_of_row, int voxel, int channel) {
    const int chunk = channel / SIZE ^ (voxel & 3) << 1;
    return bits_of(shared_load<float>(tile + (voxel * chunks_of_row + chunk) * 16 + channel % SIZE * 4));
  }

  SSCONV_DEVICE static void multiply_stage(uint32_t low, float (&sums)[MI][NI][4]) {
    const int warp = thread_index() / 32, lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    const int first_row = warp / 2 * (BM / 2), first_column = warp % 2 * (BN / 2);
    const uint32_t high = low + LOW_BYTES;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int k = 0; k < BK; k += 16) {
        uint32_t a[MI][4], b[NI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i)
          load_matrices_transposed(
              a[i], low + place_of<LOW>(k + lane / 16 * 8 + lane % 8, first_row / 8 + 2 * i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
          uint32_t both[4];
          load_matrices_transposed(
              both, high + place_of<HIGH>(k + lane / 8 % 2 * 8 + lane % 8, first_column / 8 + j + lane / 16));
          b[j][0] = both[0];
          b[j][1] = both[1];
          b[j + 1][0] = both[2];
          b[j + 1][1] = both[3];
        }
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int j = 0; j < NI; ++j) multiply(T{}, sums[i][j], a[i], b[j]);
      }
    } else if constexpr (A::TENSOR_CORES) {
#pragma unroll 1
      for (int k = 0; k < BK; k += 8) {
        uint32_t a[MI][4];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            a[i][e] = round_tf32(word(low, LOW, k + t + e / 2 * 4, first_row + 16 * i + g + e % 2 * 8));
#pragma unroll
        for (int j = 0; j < NI; ++j) {
          uint32_t b[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) b[e] = round_tf32(word(high, HIGH, k + t + 4 * e, first_column + 8 * j + g));
#pragma unroll
          for (int i = 0; i < MI; ++i) multiply(T{}, sums[i][j], a[i], b);
        }
      }
    } else {
#pragma unroll 2
      for (int k = 0; k < BK; ++k) {
        float a[MI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            a[i][half] = float_of(word(low, LOW, k, first_row + 16 * i + 8 * half + g));
#pragma unroll
        for (int j = 0; j < NI; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float b = float_of(word(high, HIGH, k, first_column + 8 * j + 2 * t + e));
#pragma unroll
            for (int i = 0; i < MI; ++i)
#pragma unroll
              for (int half = 0; half < 2; ++half)
                sums[i][j][2 * half + e] = fused_multiply_add(a[i][half], b, sums[i][j][2 * half + e]);
          }
        }
      }
    }
  }

  SSCONV_DEVICE static void run(const Params& p) {
    float sums[MI][NI][4];
#pragma unroll
    for (int i = 0; i < MI; ++i)
#pragma unroll
      for (int j = 0; j < NI; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.f;
    Loader loader(p);
    const uint32_t steps = loader.end > loader.step ? loader.end - loader.step : 0;
    int filled = 0, used = 0;
    for (; filled < p.stages - 1; ++filled) loader.fill(filled * STAGE);
#pragma unroll 1
    for (uint32_t step = 0; step < steps; ++step) {
      wait_for_oldest(p.stages);
      sync_threads();
      loader.fill(filled * STAGE);
      filled = filled + 1 == p.stages ? 0 : filled + 1;
      multiply_stage(used * STAGE, sums);
      used = used + 1 == p.stages ? 0 : used + 1;
    }
    copy_wait<0>();
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    float* const tile = p.workspace + (int64_t(block_y()) * blocks_x() + block_x()) * (BM * BN);
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp / 2 * (BM / 2) + 16 * i + 8 * half + lane / 4;
#pragma unroll
        for (int j = 0; j < NI; ++j) {
          const int column = warp % 2 * (BN / 2) + 8 * j + lane % 4 * 2;
          store(reinterpret_cast<Pair*>(tile + row * BN + column), Pair{sums[i][j][2 * half], sums[i][j][2 * half + 1]});
        }
      }
    }
  }
};

// The splits' tiles added, the first split first, to where the weights' gradients lie.
struct WgradReduce {
  using Params = WgradReduceParams;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static const char* name() { return "wgrad_reduce"; }

  SSCONV_DEVICE static void run(const Params& p) {
    constexpr int BN = 128;
    const int64_t tile_size = int64_t(p.block_rows) * BN;
    const int64_t total = tile_size * p.row_blocks * p.first_tile[p.branches];
    const int64_t i = int64_t(block_x()) * THREADS + thread_index();
    if (i >= total) return;
    const int number = static_cast<int>(i / tile_size), in_tile = static_cast<int>(i % tile_size);
    const int tile = number / p.row_blocks, row = number % p.row_blocks * p.block_rows + in_tile / BN;
    int s = 0;
    while (s + 1 < p.branches && tile >= p.first_tile[s + 1]) ++s;
    const int column = (tile - p.first_tile[s]) * BN + in_tile % BN;
    const int tap = column / p.chunk / p.chunks;
    const int channel = column / p.chunk % p.chunks * p.chunk + column % p.chunk;
    if (row >= p.rows || tap >= p.taps[s] || channel >= p.columns) return;
    float sum = 0;
    for (int split = 0; split < p.splits; ++split) sum += load(p.workspace + split * total + i);
    const int64_t at = p.transposed ? int64_t(channel) * p.rows + row : int64_t(row) * p.columns + channel;
    store(p.out[s] + at * p.taps[s] + tap, sum);
  }
};

}  // namespace ssconv
