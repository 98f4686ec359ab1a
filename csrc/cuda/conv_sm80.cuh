// fprop and dgrad on sm_80 and later: implicit GEMM with cp.async, ldmatrix and mma.sync, in gather form.
//
// A block computes an output tile: a box of 128 voxels by WIDTH / S columns (output channels) of each of S branches,
// one branch after the other, each in accumulators of its own. K runs over a branch's taps and input channels in one
// sequence, cut into tiles of 128 bytes, so that branches of few channels waste nothing. Pipeline stages hold a K tile
// of the inputs (voxels displaced by the taps) and of the packed weights; cp.async fills them ahead of the tensor
// cores.
#pragma once

#include <cstdio>

#include "conv_sm80_load.cuh"
#include "conv_sm80_multiply.cuh"
#include "conv_sm80_store.cuh"

namespace ssconv {

template <class A, int S, int WIDTH, bool ELEMENTS>
struct ConvSm80 {
  using Config = ConvSm80Config<A, S, WIDTH, ELEMENTS>;
  using Params = ConvSm80Params;
  using Store = ConvSm80Store<Config>;
  static constexpr int THREADS = Config::THREADS;
  static constexpr int BLOCKS = 2;
  static constexpr int STAGE = Config::STAGE;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm80<%s, %d, %d%s>", A::NAME, S, WIDTH, ELEMENTS ? ", elements" : "");
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    const ConvSm80Tile<Config> tile(p);
    typename Config::Accumulators accumulators;
    clear(accumulators);
    ConvSm80Load<Config> loader(p, tile);
    int fill = 0, read = 0;  // the stages to fill and to read next
    for (; fill < p.stages - 1; ++fill) loader.fill(fill * STAGE);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      Taps taps[3];
      const int k_tiles = Config::k_tiles(p, p.branch[tile.first_branch + s], tile.parity, taps);
      int k_left = taps[0].count * taps[1].count * taps[2].count * p.in_channels;
#pragma unroll 1
      for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
        wait_for_oldest_stage(p.stages);
        sync_threads();  // the stage has arrived for all threads, and all have read the one before
        loader.fill(fill * STAGE);
        fill = next_stage(fill, p.stages);
        const int chunks = k_left < Config::BK ? (k_left + Config::SIZE - 1) / Config::SIZE : Config::CHUNKS;
        conv_sm80_multiply<Config>(read * STAGE, chunks, accumulators[s]);
        read = next_stage(read, p.stages);
        k_left -= Config::BK;
      }
    }
    cp_async_wait<0>();
    Store::store_tile(p, tile, accumulators);
#pragma unroll 1
    for (int s = tile.first_branch; s < tile.last_branch; ++s)
      if (p.branch[s].extent[0] == 0) Store::store_identity(p, tile, p.branch[s]);
  }

  SSCONV_DEVICE static void clear(typename Config::Accumulators& accumulators) {
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int i = 0; i < Config::MI; ++i)
#pragma unroll
        for (int j = 0; j < Config::NI; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) accumulators[s][i][j][e] = 0.f;
  }
};

}  // namespace ssconv
