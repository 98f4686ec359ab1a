// wgrad on sm_80 and later: split-K implicit GEMM with cp.async, ldmatrix and mma.sync.
//
// `low` is the tensor with one voxel per window (the output's gradient of a convolution), `high` the other one. M is
// low's channels, N a branch's taps times high's channels in one sequence of chunks, K the voxels of low. So a block
// serves several taps of few channels, and reads low once for all of them. Each block sums one split of K for one tile
// (BM, 128) and writes fp32 partial sums to the workspace; wgrad_reduce.cuh adds the splits.
#pragma once

#include <cstdio>

#include "pipeline_sm80.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

namespace ssconv {

template <class A, int ROWS>
struct WgradSm80Config {
  using Arithmetic = A;
  using T = typename A::Element;
  static constexpr int THREADS = 128;               // 2 x 2 warps along M and N
  static constexpr int BM = ROWS, BN = 128;         // tile M, tile N
  static constexpr int MI = BM / 32, NI = BN / 16;  // a warp's mma tiles of 16 rows, and of 8 columns
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int BK = 64 / sizeof(T);                // tile K: voxels
  static constexpr int LOW = BM / SIZE, HIGH = BN / SIZE;  // chunks of a voxel
  static constexpr int LOW_BYTES = BK * LOW * 16, HIGH_BYTES = BK * HIGH * 16;
  static constexpr int STAGE = LOW_BYTES + HIGH_BYTES;

  using Accumulators = float[MI][NI][4];

  // The offset of a voxel's chunk in a stage. 16-bit elements are transposed by ldmatrix.trans; floats are read one by
  // one, four voxels by eight channels at a time, which this swizzle keeps in different banks.
  template <int CHUNKS>
  SSCONV_DEVICE static uint32_t chunk_offset(int voxel, int chunk) {
    if constexpr (sizeof(T) == 2) return swizzled_offset<CHUNKS>(voxel, chunk);
    return (voxel * CHUNKS + (chunk ^ (voxel & 3) << 1)) * 16;
  }
};

// Load: each call of `fill` fills one stage with the next BK voxels of low, and of high at the windows of those voxels.
template <class Config>
struct WgradSm80Load {
  using Params = WgradSm80Params;
  using T = typename Config::T;
  static constexpr int SIZE = Config::SIZE, BK = Config::BK, LOW = Config::LOW, HIGH = Config::HIGH;

  const Params& p;
  int low_channel, high_channel;  // in the tensors, of this thread's chunks; -1: beyond the last
  int shift[3];                   // of this thread's tap
  uint32_t k_tile, k_end;         // of the block's split

  SSCONV_DEVICE explicit WgradSm80Load(const Params& params) : p(params) {
    const int tile = block_x() / p.m_tiles, m_tile = block_x() - tile * p.m_tiles;
    int s = 0;
    while (s + 1 < p.branches && tile >= p.branch[s + 1].first_tile) ++s;
    const auto& branch = p.branch[s];
    const int row = m_tile * Config::BM + thread_index() % LOW * SIZE;
    low_channel = row < p.low_channels ? branch.number * p.low_channels + row : -1;
    const int chunks = p.high_channels / SIZE;
    const int chunk = (tile - branch.first_tile) * HIGH + thread_index() % HIGH;
    int tap = chunk / chunks;
    high_channel = tap < branch.extent[0] * branch.extent[1] * branch.extent[2]
                       ? branch.number * p.high_channels + (chunk - tap * chunks) * SIZE
                       : -1;
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      shift[i] = tap % branch.extent[i] - (branch.extent[i] - 1) / 2 + p.geometry.first[i];
      tap /= branch.extent[i];
    }
    k_tile = block_y() * p.steps_per_split;
    k_end = k_tile + p.steps_per_split < static_cast<uint32_t>(p.steps) ? k_tile + p.steps_per_split : p.steps;
  }

  SSCONV_DEVICE void fill(uint32_t stage) {
    if (k_tile < k_end) {
      fill_low(stage);
      fill_high(stage + Config::LOW_BYTES);
      ++k_tile;
    }
    cp_async_commit();
  }

 private:
  SSCONV_DEVICE void fill_low(uint32_t to) {
    constexpr int VOXELS = Config::THREADS / LOW;  // at a time
#pragma unroll
    for (int i = 0; i < BK; i += VOXELS) {
      const int v = thread_index() / LOW + i;
      if (v < BK) {
        uint32_t rest = k_tile * BK + v;
        const bool valid = low_channel >= 0 && rest < p.voxels;
        const int64_t w = divmod(p.w, rest), h = divmod(p.h, rest), d = divmod(p.d, rest), n = rest;
        const T* const from = static_cast<const T*>(p.low.data) + n * p.low.stride[0] + low_channel +
                              d * p.low.stride[2] + h * p.low.stride[3] + w * p.low.stride[4];
        cp_async_cg(to + Config::template chunk_offset<LOW>(v, thread_index() % LOW), valid ? from : p.low.data, valid);
      }
    }
  }

  SSCONV_DEVICE void fill_high(uint32_t to) {
    constexpr int VOXELS = Config::THREADS / HIGH;
#pragma unroll
    for (int i = 0; i < BK; i += VOXELS) {
      const int v = thread_index() / HIGH + i;
      uint32_t rest = k_tile * BK + v;
      bool valid = high_channel >= 0 && rest < p.voxels;
      const int w = divmod(p.w, rest) * p.geometry.stride[2] + shift[2];
      const int h = divmod(p.h, rest) * p.geometry.stride[1] + shift[1];
      const int d = divmod(p.d, rest) * p.geometry.stride[0] + shift[0];
      const int64_t n = rest;
      valid = valid && inside(d, p.high.size[1]) && inside(h, p.high.size[2]) && inside(w, p.high.size[3]);
      const T* const from = static_cast<const T*>(p.high.data) + n * p.high.stride[0] + high_channel +
                            d * p.high.stride[2] + h * p.high.stride[3] + w * p.high.stride[4];
      cp_async_cg(to + Config::template chunk_offset<HIGH>(v, thread_index() % HIGH), valid ? from : p.high.data,
                  valid);
    }
  }
};

// Multiply: accumulators (BM, BN) += low (BK, BM) transposed * high (BK, BN) of one stage; K does not run along the
// rows.
template <class Config>
struct WgradSm80Multiply {
  using T = typename Config::T;
  static constexpr int MI = Config::MI, NI = Config::NI, BK = Config::BK, LOW = Config::LOW, HIGH = Config::HIGH;

  SSCONV_DEVICE static void stage(uint32_t low, typename Config::Accumulators& accumulators) {
    const int warp = thread_index() / 32, lane = thread_index() % 32, g = lane / 4, t = lane % 4;
    const int first_row = warp / 2 * (Config::BM / 2), first_column = warp % 2 * (Config::BN / 2);
    const uint32_t high = low + Config::LOW_BYTES;
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int k = 0; k < BK; k += 16) {
        uint32_t a[MI][4], b[NI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i)
          ldmatrix_trans(a[i], low + Config::template chunk_offset<LOW>(k + lane / 16 * 8 + lane % 8,
                                                                        first_row / 8 + 2 * i + lane / 8 % 2));
#pragma unroll
        for (int j = 0; j < NI; j += 2) {
          uint32_t both[4];
          ldmatrix_trans(both, high + Config::template chunk_offset<HIGH>(k + lane / 8 % 2 * 8 + lane % 8,
                                                                          first_column / 8 + j + lane / 16));
          b[j][0] = both[0];
          b[j][1] = both[1];
          b[j + 1][0] = both[2];
          b[j + 1][1] = both[3];
        }
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int j = 0; j < NI; ++j) mma(T{}, accumulators[i][j], a[i], b[j]);
      }
    } else if constexpr (Config::Arithmetic::TENSOR_CORES) {
#pragma unroll 1
      for (int k = 0; k < BK; k += 8) {
        uint32_t a[MI][4];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            a[i][e] = round_tf32(float_bits(low, LOW, k + t + e / 2 * 4, first_row + 16 * i + g + e % 2 * 8));
#pragma unroll
        for (int j = 0; j < NI; ++j) {
          uint32_t b[2];
#pragma unroll
          for (int e = 0; e < 2; ++e)
            b[e] = round_tf32(float_bits(high, HIGH, k + t + 4 * e, first_column + 8 * j + g));
#pragma unroll
          for (int i = 0; i < MI; ++i) mma(T{}, accumulators[i][j], a[i], b);
        }
      }
    } else {  // exact float32 on the CUDA cores; accumulators in mma's layout
#pragma unroll 2
      for (int k = 0; k < BK; ++k) {
        float a[MI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            a[i][half] = float_of(float_bits(low, LOW, k, first_row + 16 * i + 8 * half + g));
#pragma unroll
        for (int j = 0; j < NI; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const float b = float_of(float_bits(high, HIGH, k, first_column + 8 * j + 2 * t + e));
#pragma unroll
            for (int i = 0; i < MI; ++i)
#pragma unroll
              for (int half = 0; half < 2; ++half)
                accumulators[i][j][2 * half + e] = fused_multiply_add(a[i][half], b, accumulators[i][j][2 * half + e]);
          }
        }
      }
    }
  }

 private:
  // One float of a tile in shared memory.
  SSCONV_DEVICE static uint32_t float_bits(uint32_t tile, int chunks_of_row, int voxel, int channel) {
    const int chunk = channel / Config::SIZE ^ (voxel & 3) << 1;
    return bits_of(shared_load<float>(tile + (voxel * chunks_of_row + chunk) * 16 + channel % Config::SIZE * 4));
  }
};

// Store: the block's tile of partial sums to the workspace.
template <class Config>
SSCONV_DEVICE void wgrad_sm80_store(const WgradSm80Params& p, const typename Config::Accumulators& accumulators) {
  constexpr int BM = Config::BM, BN = Config::BN;
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  float* const tile = p.workspace + (int64_t(block_y()) * blocks_x() + block_x()) * (BM * BN);
#pragma unroll
  for (int i = 0; i < Config::MI; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp / 2 * (BM / 2) + 16 * i + 8 * half + lane / 4;
#pragma unroll
      for (int j = 0; j < Config::NI; ++j) {
        const int column = warp % 2 * (BN / 2) + 8 * j + lane % 4 * 2;
        store(reinterpret_cast<Float2*>(tile + row * BN + column),
              Float2{accumulators[i][j][2 * half], accumulators[i][j][2 * half + 1]});
      }
    }
  }
}

template <class A, int ROWS>
struct WgradSm80 {
  using Config = WgradSm80Config<A, ROWS>;
  using Params = WgradSm80Params;
  static constexpr int THREADS = Config::THREADS;
  static constexpr int BLOCKS = 2;
  static constexpr int STAGE = Config::STAGE;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "wgrad_sm80<%s, %d>", A::NAME, ROWS);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    typename Config::Accumulators accumulators;
    clear(accumulators);
    WgradSm80Load<Config> loader(p);
    const uint32_t k_tiles = loader.k_end > loader.k_tile ? loader.k_end - loader.k_tile : 0;
    int fill = 0, read = 0;  // the stages to fill and to read next
    for (; fill < p.stages - 1; ++fill) loader.fill(fill * STAGE);
#pragma unroll 1
    for (uint32_t k_tile = 0; k_tile < k_tiles; ++k_tile) {
      wait_for_oldest_stage(p.stages);
      sync_threads();  // the stage has arrived for all threads, and all have read the one before
      loader.fill(fill * STAGE);
      fill = next_stage(fill, p.stages);
      WgradSm80Multiply<Config>::stage(read * STAGE, accumulators);
      read = next_stage(read, p.stages);
    }
    cp_async_wait<0>();
    wgrad_sm80_store<Config>(p, accumulators);
  }

  SSCONV_DEVICE static void clear(typename Config::Accumulators& accumulators) {
#pragma unroll
    for (int i = 0; i < Config::MI; ++i)
#pragma unroll
      for (int j = 0; j < Config::NI; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) accumulators[i][j][e] = 0.f;
  }
};

}  // namespace ssconv
