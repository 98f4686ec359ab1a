// Forward and input gradient of stride 1 on sm_90a that bring a tile's input once, with its halo, not once per tap.
//
// A block stays on its multiprocessor and takes tile after tile: a box of outputs in one sample, by BN columns of each of
// S branches. What a branch reads of it, 64 channels (or 32, or 16) at a time, stays in shared memory while all taps
// multiply it: the copy of the next chunk, of the next branch or tile, is under way meanwhile. A ring brings the weights,
// 64 of K a stage, in the order chunk, tap, channel.
//
// wgmma's 64 rows are 8 groups of 8, which stand apart as the descriptor says: 8 neighbours along W, on 8 rows of the
// halo. So another tap is another address to begin at, and nothing is copied or masked. A tile is MI matrices of 8 x 8
// outputs for each of two warpgroups, in any box that they make.
//
// How a pixel's channels lie is the host's choice:
//   plain: pieces of 8 channels, each of all pixels, 16 bytes a pixel. A matrix may begin at any pixel: no swizzle has to
//     agree. Copies move 16 bytes a pixel, at a rate that is not known.
//   swizzled: a pixel is a swizzled row of 32, 64 or 128 bytes, brought by one copy. A matrix then begins in any row of the
//     swizzle's pattern. By PTX's definition of the base offset, (start of the pattern >> 7) & 7, it is 0 here: the pattern
//     starts where the buffer does, at a multiple of 1024, whatever row the matrix begins at.
//
// Epilogue and stores are those of shuffled_store.cuh.
#pragma once

#include "ptx/sm90.cuh"
#include "common.cuh"
#include "pipeline.cuh"
#include "shuffled_store.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

template <class A, int S, int BN>
struct ConvSm90Halo {
  using T = typename A::Element;
  using Params = ConvSm90HaloParams;
  static constexpr int CONSUMERS = 2;                    // warpgroups
  static constexpr int THREADS = 128 * CONSUMERS + 128;  // registers are given and taken by warpgroups
  static constexpr int BLOCKS = 1;
  static constexpr int MI = S * BN > 128 ? 2 : BN == 128 ? 2 : 4;  // matrices of a warpgroup
  static constexpr int BK = 64, SLICES = BK / 16;
  static constexpr int STAGE = BN * BK * 2, STAGES = BN == 128 ? 4 : BN == 64 ? 12 : 16;  // of weights
  static constexpr int BUFFER = (225 * 1024 - STAGES * STAGE) / 2 / 1024 * 1024;  // of inputs, one of two
  static constexpr int MBARRIERS = STAGES * STAGE + 2 * BUFFER;
  using Weights = Ring<STAGES, STAGE, CONSUMERS, 0, MBARRIERS>;
  using Inputs = Ring<2, BUFFER, CONSUMERS, STAGES * STAGE, Weights::SHARED>;
  static constexpr int LEAD = Inputs::SHARED, SHARED = LEAD + 8;  // an mbarrier
  static_assert(SHARED <= 226 * 1024 && MI * CONSUMERS <= MATRICES, "room");

#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm90_halo<%s, %d, %d>", A::NAME, S, BN);
    return text;
  }
#endif

  struct Tile {
    int column_block, first_branch;
    int at[4];  // its first output: n, d, h, w

    SSCONV_DEVICE Tile(const Params& p, uint32_t number) {
      column_block = divide_off(p.column_blocks, number);
      uint32_t tile = divide_off(p.tiles, number);
      first_branch = S == 1 ? number : 0;
      at[3] = divide_off(p.w, tile) * p.tile[2];
      at[2] = divide_off(p.h, tile) * p.tile[1];
      at[1] = divide_off(p.d, tile) * p.tile[0];
      at[0] = tile;
    }
  };

  // One thread brings the inputs of all of the block's tiles, another the weights: each runs as far ahead as its ring goes.
  SSCONV_DEVICE static void produce_inputs(const Params& p) {
    Inputs ring;
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const Tile tile(p, number);
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) {
        const Params::Part& b = p.part[s];
        const int base[4] = {tile.at[0], tile.at[1] + b.lower[0], tile.at[2] + b.lower[1], tile.at[3] + b.lower[2]};
#pragma unroll 1
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          ring.wait_free();
          mbarrier_expect(ring.full(), b.expected);
#pragma unroll 1
          for (int i = 0; i < p.copies; ++i)
            copy_tile(ring.at() + i * b.plane, &p.map[s], ring.full(), chunk * p.chunk + i * p.copy_channels, base);
          ring.next();
        }
      }
    }
  }

  SSCONV_DEVICE static void produce_weights(const Params& p) {
    Weights ring;
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const Tile tile(p, number);
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) {
        const int steps = p.chunks * p.part[s].steps;
        const Bits16* weights = static_cast<const Bits16*>(p.weights) + p.part[s].start +
                                static_cast<int64_t>(tile.column_block) * steps * (STAGE / 16);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          ring.wait_free();
          mbarrier_expect(ring.full(), STAGE);
          copy_bulk(ring.at(), weights, STAGE, ring.full());
          weights += STAGE / 16;
          ring.next();
        }
      }
    }
  }

  using Outputs = ShuffledOutputs<T, S, BN, MI>;
  using Sums = typename Outputs::Sums;
  using Finished = typename Outputs::Finished;

  // Finishes branch s of the tile; see ShuffledOutputs.
  SSCONV_DEVICE static void finish(const Params& p, uint32_t number, int s, const Sums& sums, Finished& finished) {
    const Tile tile(p, number);
    const int warp = uniform(thread_index() / 32), lane = thread_index() % 32;
    const int64_t voxels = int64_t(p.size[0]) * p.size[1] * p.size[2];
    Outputs::finish(
        p, tile, s, voxels, sums, finished,
        [&](int row, uint32_t& n, uint32_t& voxel) {  // a matrix's row is 8 h + w
          const uint8_t(&origin)[3] = p.origin[warp / 4 * MI + row / 2];
          const int d = tile.at[1] + origin[0];
          const int h = tile.at[2] + origin[1] + 2 * (warp % 4) + row % 2;
          const int w = tile.at[3] + origin[2] + lane / 4;
          n = tile.at[0];
          voxel = (uint32_t(d) * p.size[1] + h) * p.size[2] + w;
          return d < p.size[0] && h < p.size[1] && w < p.size[2];
        },
        [](float sum) { return sum; });
  }

  // The second warpgroup may begin.
  SSCONV_DEVICE static void give_lead() {
    if (thread_index() % 32 == 0) mbarrier_arrive(LEAD);
  }

  // A branch's sums, G slices of K at a time: as many as a tap has, so that no chunk ends within them. lead: stages to go
  // before the second warpgroup may begin; in the first chunk, since the third's buffer waits for both.
  template <int G>
  SSCONV_DEVICE static void multiply(const Params& p, const Params::Part& b, Sums& sums, Weights& weights, Inputs& inputs,
                                     int lead) {
    const uint64_t columns = matrix(shared_address(0), 128, 0, 1024);
    const uint16_t* const places = b.matrix + uniform(thread_index() / 128) * MI;
    int reading = -1, before = -1;  // the stage of the slices before, the buffer of the chunk before
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      inputs.wait_full();
      const uint64_t pixels = matrix(shared_address(inputs.at()), p.span, b.leading, b.stride);
#pragma unroll 1
      for (int slice = 0; slice < b.slices; slice += G) {
        const int within = slice % SLICES;  // of the stage; a chunk's last may have fewer
        if (within == 0) weights.wait_full();
        matrix_fence();
#pragma unroll
        for (int k = 0; k < G; ++k) {
          const uint64_t begin = chunks_further(pixels, b.slice[slice + k]);
          const uint64_t own = chunks_further(columns, weights.at() / 16 + 2 * (within + k));
#pragma unroll
          for (int m = 0; m < MI; ++m)
            matrix_multiply<T, BN>(sums[m], chunks_further(begin, places[m]), own, chunk > 0 || slice > 0 || k > 0);
        }
        matrix_commit();
        matrix_wait<1>();  // only now have all ended that read the stage and the buffer before
        if (within == 0) {
          Weights::release(reading);
          reading = weights.stage;
          if (lead > 0 && --lead == 0) give_lead();
        }
        if (slice == 0) {
          Inputs::release(before);
          before = inputs.stage;
        }
        if (within == SLICES - G || slice == b.slices - G) weights.next();
      }
      inputs.next();
      if (lead > 0) give_lead();
      lead = 0;
    }
    matrix_wait<0>();
    Weights::release(reading);
    Inputs::release(before);
  }

  SSCONV_DEVICE static void consume(const Params& p) {
    Weights weights;
    Inputs inputs;
    // Ahead of the second from the start, the first warpgroup stays so: while one finishes a tile, the other multiplies.
    const bool ahead = uniform(thread_index() / 128) == 0;
    if (!ahead) mbarrier_wait(LEAD, 0);
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const int first_branch = Tile(p, number).first_branch;
      Sums sums;
      Finished finished;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const Params::Part& b = p.part[first_branch + s];
        const int lead = s == 0 && ahead && number == block_x() ? STAGES - 1 : 0;
        if (p.chunk == 64) {
          multiply<4>(p, b, sums, weights, inputs, lead);
        } else if (p.chunk == 32) {
          multiply<2>(p, b, sums, weights, inputs, lead);
        } else {
          multiply<1>(p, b, sums, weights, inputs, lead);
        }
        finish(p, number, s, sums, finished);
      }
    }
  }

  SSCONV_DEVICE static void run(const Params& p) {
    if (thread_index() == 0) mbarrier_init(LEAD, 4);
    Weights::begin();
    Inputs::begin();
    if (thread_index() >= 128 * CONSUMERS) {
      give_registers<24>();
      if (thread_index() == 128 * CONSUMERS) produce_weights(p);
      if (thread_index() == 128 * CONSUMERS + 32) produce_inputs(p);
      return;
    }
    take_registers<240>();
    consume(p);
  }
};

}  // namespace ssconv
