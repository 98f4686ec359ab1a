// Forward and input gradient on sm_90a: implicit GEMM with bulk copies (im2col) and wgmma.
//
// A block stays on its multiprocessor and takes tile after tile: 256 outputs, side by side in the order n, d, h, w, of BN
// columns of each of S branches. One warp fills a ring of stages; two warpgroups, each with half of the outputs, multiply.
// A stage is 64 of K: the outputs' inputs at one tap and 64 channels, or at 2 taps and 32, or 4 and 16, each a box of its
// own, and the packed weights, which lie in memory as they lie in the stage. K ends in zeros: beyond a branch's channels
// its map has none, and neither have the weights.
//
// The branches come one after the other into the same accumulators; shuffled_store.cuh has what becomes of their sums.
//
// In the adjoint of a stride, outputs of each parity have tiles of their own, whose K are the taps that reach them.
#pragma once

#include "ptx/sm90.cuh"
#include "common.cuh"
#include "pipeline.cuh"
#include "shuffled_store.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

template <class A, int S, int BN, int CLUSTER>
struct ConvSm90 {
  using T = typename A::Element;
  using Params = ConvSm90Params;
  static constexpr int CONSUMERS = 2;              // warpgroups
  static constexpr int THREADS = 128 * CONSUMERS + 128;  // registers are given and taken by warpgroups
  static constexpr int BLOCKS = 1;
  static constexpr int MI = 2, ROWS = 64 * MI;     // of a warpgroup: matrices, and their rows
  static constexpr int BM = ROWS * CONSUMERS;
  static constexpr int BK = 64;
  static constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
  static constexpr int STAGES = 220 * 1024 / STAGE < 6 ? 220 * 1024 / STAGE : 6;
  using Ring = ssconv::Ring<STAGES, STAGE, CONSUMERS>;
  static constexpr int SHARED = Ring::SHARED;
  static_assert(STAGES >= 3, "a ring");

#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm90<%s, %d, %d, %d>", A::NAME, S, BN, CLUSTER);
    return text;
  }
#endif

  SSCONV_DEVICE static int steps_of(const Params& p, const Params::Reach& r) {
    return (r.count[0] * r.count[1] * r.count[2] * p.padded_channels + BK - 1) / BK;
  }

  // Tiles are dealt out in waves of one for each block: of the first parity, then the same places' of the second, and so on,
  // so that all blocks have as many of each and the L2 cache still holds what they read.
  struct Tile {
    int parity, column_block, first_branch;
    uint32_t output;  // the first of the tile, among those of its parity

    SSCONV_DEVICE Tile(const Params& p, uint32_t number) {
      parity = 0;
      if (p.parities > 1) {
        const uint32_t clusters = blocks_x() / CLUSTER;
        const uint32_t first = number / (clusters * p.parities) * clusters;  // slot of the wave
        const uint32_t slots = p.slots - first < clusters ? p.slots - first : clusters;
        number -= first * p.parities;
        parity = number / slots;
        number += first - parity * slots;
      }
      column_block = divide_off(p.column_blocks, number);
      output = (divide_off(p.tiles, number) * CLUSTER + (CLUSTER > 1 ? block_rank() : 0)) * BM;
      first_branch = S == 1 ? number : 0;
    }
  };

  // Sample and coordinates of an output, among those of its parity.
  SSCONV_DEVICE static void unfold(const Params& p, uint32_t output, int (&at)[4]) {
    at[3] = divide_off(p.w, output);
    at[2] = divide_off(p.h, output);
    at[1] = divide_off(p.d, output);
    at[0] = output;
  }

  // One thread fills the stages of all of the block's tiles.
  SSCONV_DEVICE static void produce(const Params& p) {
    Ring ring;
    for (uint32_t number = block_x() / CLUSTER; number < p.work; number += blocks_x() / CLUSTER) {
      const Tile tile(p, number);
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) {
        const Params::Part& b = p.part[s];
        const Params::Reach& r = b.reach[tile.parity];
        const int steps = steps_of(p, r);
        const Bits16* weights = static_cast<const Bits16*>(p.weights) + r.start +
                                static_cast<int64_t>(tile.column_block) * steps * (B_BYTES / 16);
        int base[4];
        unfold(p, tile.output, base);
#pragma unroll
        for (int i = 0; i < 3; ++i) base[1 + i] = base[1 + i] * p.pace[i] + b.lower[i];
        int tap[3] = {0, 0, 0}, channel = 0;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          const uint32_t stage = ring.at(), full = ring.full();
          ring.wait_free();
          mbarrier_expect(full, STAGE);
          for (int first = 0; first < BK; first += p.box_channels) {
            const bool real = tap[0] < r.count[0];  // else K is at its end: zeros
            int shift[3] = {0, 0, 0};
            if (real) {
#pragma unroll
              for (int i = 0; i < 3; ++i) shift[i] = p.geometry.adjoint ? r.shift[i] - tap[i] : tap[i];
            }
            copy_im2col(stage + first * BM * 2, &p.map[s], full, real ? channel : p.padded_channels, base, shift);
            channel += p.box_channels;
            if (channel < p.padded_channels) continue;
            channel = 0;
            if (++tap[2] < r.count[2]) continue;
            tap[2] = 0;
            if (++tap[1] < r.count[1]) continue;
            tap[1] = 0;
            ++tap[0];
          }
          if constexpr (CLUSTER > 1) {
            const uint32_t half = block_rank() * (B_BYTES / 2);
            copy_bulk_to(3, stage + A_BYTES + half, weights + half / 16, B_BYTES / 2, full);
          } else {
            copy_bulk(stage + A_BYTES, weights, B_BYTES, full);
          }
          weights += B_BYTES / 16;
          ring.next();
        }
      }
    }
    if constexpr (CLUSTER > 1) {  // this block's shared memory is there until the other one has freed its stages in it
#pragma unroll 1
      for (int i = 0; i < STAGES; ++i) {
        ring.wait_free();
        ring.next();
      }
    }
  }

  using Outputs = ShuffledOutputs<T, S, BN, MI>;
  using Sums = typename Outputs::Sums;
  using Finished = typename Outputs::Finished;

  // An output's sample and its voxel in y; false where there is none.
  SSCONV_DEVICE static bool locate(const Params& p, const Tile& tile, uint32_t output, uint32_t& n, uint32_t& voxel) {
    if (output >= p.outputs) return false;
    if (p.parities == 1) {
      n = output;
      voxel = divide_off(p.voxels, n);
      return true;
    }
    n = output;  // what is left of it, dimension by dimension; few registers are left here
    const Divider* const count[3] = {&p.d, &p.h, &p.w};
    uint32_t step = 1;
    bool there = true;
    voxel = 0;
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      const uint32_t at = divide_off(*count[i], n) * p.geometry.stride[i] + p.parity[tile.parity][i];
      there = there && at < static_cast<uint32_t>(p.size[i]);
      voxel += at * step;
      step *= p.size[i];
    }
    return there;
  }

  // Finishes branch s of the tile; see ShuffledOutputs. A parity that no tap reaches has no sums: zeros.
  SSCONV_DEVICE static void finish(const Params& p, const Tile& tile, int s, const Sums& sums, Finished& finished) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const Params::Reach& reach = p.part[tile.first_branch + s].reach[tile.parity];
    const uint32_t first_row = tile.output + warp / 4 * ROWS + warp % 4 * 16 + lane / 4;
    Outputs::finish(
        p, tile, s, p.voxels.divisor, sums, finished,
        [&](int row, uint32_t& n, uint32_t& voxel) {
          return locate(p, tile, first_row + 64 * (row / 2) + 8 * (row % 2), n, voxel);
        },
        [&](float sum) { return reach.count[0] > 0 ? sum : 0.f; });
  }

  SSCONV_DEVICE static void consume(const Params& p) {
    const int group = thread_index() / 128;
    const int span = 2 * p.box_channels;  // bytes of a row of inputs
    const uint64_t inputs = matrix(shared_address(group * ROWS * span), span, 0, 8 * span);
    const uint64_t columns = matrix(shared_address(A_BYTES), 128, 0, 1024);
    Ring ring;
    for (uint32_t number = block_x() / CLUSTER; number < p.work; number += blocks_x() / CLUSTER) {
      const Tile tile(p, number);
      Sums sums;
      Finished finished;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const int steps = steps_of(p, p.part[tile.first_branch + s].reach[tile.parity]);
        int reading = -1;  // the stage of the step before
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          ring.wait_full();
          matrix_fence();
#pragma unroll
          for (int k = 0; k < BK / 16; ++k) {
            const uint64_t b = further(columns, ring.at() + 32 * k);
#pragma unroll
            for (int m = 0; m < MI; ++m)
              matrix_multiply<T, BN>(sums[m], further(inputs, ring.at() + p.slices[k] + 64 * m * span), b, step > 0 || k > 0);
          }
          matrix_commit();
          matrix_wait<1>();
          Ring::template release<CLUSTER>(reading);
          reading = ring.stage;
          ring.next();
        }
        matrix_wait<0>();
        Ring::template release<CLUSTER>(reading);
        finish(p, tile, s, sums, finished);
      }
    }
  }

  SSCONV_DEVICE static void run(const Params& p) {
    Ring::template begin<CLUSTER>();
    if (thread_index() >= 128 * CONSUMERS) {
      give_registers<24>();
      if (thread_index() == 128 * CONSUMERS) produce(p);
      return;
    }
    take_registers<240>();
    consume(p);
  }
};

}  // namespace ssconv
