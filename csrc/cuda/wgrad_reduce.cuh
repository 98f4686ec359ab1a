// The last step of split-K wgrad: adds the splits' partial sums, in the order of the splits, into the weight gradients.
#pragma once

#include "arithmetic.cuh"

namespace ssconv {

// One thread computes one element of the gradients.
struct WgradReduce {
  using Params = WgradReduceParams;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static const char* name() { return "wgrad_reduce"; }

  SSCONV_DEVICE static void run(const Params& p) {
    constexpr int BN = 128;
    const int64_t tile_size = int64_t(p.tile_m) * BN;
    const int64_t total = tile_size * p.m_tiles * p.first_tile[p.branches];
    const int64_t i = int64_t(block_x()) * THREADS + thread_index();
    if (i >= total) return;
    const int number = static_cast<int>(i / tile_size), in_tile = static_cast<int>(i % tile_size);
    const int tile = number / p.m_tiles, row = number % p.m_tiles * p.tile_m + in_tile / BN;
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
