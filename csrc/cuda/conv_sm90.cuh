// fprop and dgrad on sm_90a: persistent, warp-specialised implicit GEMM with TMA (im2col) and wgmma.
//
// A block stays on its multiprocessor and computes tile after tile: 256 outputs, consecutive in the order n, d, h, w,
// by BN columns (output channels) of each of S branches. One producer thread fills the pipeline's stages; two consumer
// warp groups multiply, each for half of the outputs. A stage is 64 of K: the outputs' inputs at one tap and 64
// channels (or at 2 taps and 32 channels, or 4 taps and 16), each tap a TMA box of its own; and the packed weights,
// which lie in memory as they lie in the stage. K is padded with zeros: beyond a branch's channels its tensor map reads
// zeros, and so do the weights.
//
// The branches are computed one after the other in the same accumulators; shuffled_store.cuh is the epilogue.
//
// dgrad of a strided convolution: the outputs of each parity have tiles of their own, whose K is the taps that reach
// them.
#pragma once

#include <cstdio>

#include "pipeline_sm90.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "shuffled_store.cuh"

namespace ssconv {

template <class A, int S, int BN, int CLUSTER>
struct ConvSm90 {
  using T = typename A::Element;
  using Params = ConvSm90Params;
  static constexpr int CONSUMERS = 2;                    // warp groups
  static constexpr int THREADS = 128 * CONSUMERS + 128;  // the producer is a warp group of its own, for setmaxnreg
  static constexpr int BLOCKS = 1;
  static constexpr int MI = 2, ROWS = 64 * MI;           // a consumer's wgmma tiles of 64 rows, and their rows
  static constexpr int BM = ROWS * CONSUMERS;            // tile M
  static constexpr int BK = 64;                          // tile K
  static constexpr int A_BYTES = BM * BK * 2, B_BYTES = BN * BK * 2, STAGE = A_BYTES + B_BYTES;
  static constexpr int STAGES = 220 * 1024 / STAGE < 6 ? 220 * 1024 / STAGE : 6;
  using Pipeline = ssconv::Pipeline<STAGES, STAGE, CONSUMERS>;
  static constexpr int SHARED = Pipeline::END;
  static_assert(STAGES >= 3, "a pipeline");

  using Store = ShuffledStore<T, S, BN, MI>;
  using Accumulators = typename Store::Accumulators;
  using Outputs = typename Store::Outputs;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm90<%s, %d, %d, %d>", A::NAME, S, BN, CLUSTER);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    Pipeline::template init<CLUSTER>();
    if (thread_index() >= 128 * CONSUMERS) {
      setmaxnreg_dec<24>();
      if (thread_index() == 128 * CONSUMERS) produce(p);
      return;
    }
    setmaxnreg_inc<240>();
    consume(p);
  }

  // Calls body(tile) for each of the block's tiles.
  template <class Body>
  SSCONV_DEVICE static void for_each_tile(const Params& p, Body body) {
    for (uint32_t number = block_x() / CLUSTER; number < p.work; number += blocks_x() / CLUSTER) body(Tile(p, number));
  }

  // Tiles are dealt out in waves, one tile for each cluster: a wave of the first parity, then the same slots of the
  // second parity, and so on. So all blocks compute equally many of each parity, and the L2 cache still holds their
  // inputs.
  struct Tile {
    int parity, n_tile, first_branch;
    uint32_t output;  // the tile's first output, among those of its parity

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
      n_tile = divmod(p.n_tiles, number);
      output = (divmod(p.m_tiles, number) * CLUSTER + (CLUSTER > 1 ? cluster_rank() : 0)) * BM;
      first_branch = S == 1 ? number : 0;
    }
  };

  SSCONV_DEVICE static int k_tiles(const Params& p, const Params::ParityTaps& r) {
    return (r.count[0] * r.count[1] * r.count[2] * p.padded_channels + BK - 1) / BK;
  }

  // ------------------------------------------------------------------------------------------------------------ load

  // The producer thread: fills the stages for all of the block's tiles.
  SSCONV_DEVICE static void produce(const Params& p) {
    Pipeline pipeline;
    for_each_tile(p, [&](const Tile& tile) {
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) load_branch(p, tile, s, pipeline);
    });
    if constexpr (CLUSTER > 1) {  // the other block signals in this block's shared memory: wait until it is done
#pragma unroll 1
      for (int i = 0; i < STAGES; ++i) {
        pipeline.wait_empty();
        pipeline.next();
      }
    }
  }

  SSCONV_DEVICE static void load_branch(const Params& p, const Tile& tile, int s, Pipeline& pipeline) {
    const Params::MappedBranch& b = p.mapped[s];
    const Params::ParityTaps& r = b.taps[tile.parity];
    const int tiles = k_tiles(p, r);
    const Bytes16* weights = static_cast<const Bytes16*>(p.weights) + r.start +
                             static_cast<int64_t>(tile.n_tile) * tiles * (B_BYTES / 16);
    int base[4];  // input position of the tile's first output
    output_coordinates(p, tile.output, base);
#pragma unroll
    for (int i = 0; i < 3; ++i) base[1 + i] = base[1 + i] * p.input_stride[i] + b.lower[i];
    int tap[3] = {0, 0, 0}, channel = 0;
#pragma unroll 1
    for (int k_tile = 0; k_tile < tiles; ++k_tile) {
      const uint32_t stage = pipeline.offset(), full = pipeline.full_barrier();
      pipeline.wait_empty();
      mbarrier_arrive_expect_tx(full, STAGE);
      for (int first = 0; first < BK; first += p.box_channels) {
        const bool in_k = tap[0] < r.count[0];  // else K has ended: zeros
        int shift[3] = {0, 0, 0};
        if (in_k) {
#pragma unroll
          for (int i = 0; i < 3; ++i) shift[i] = p.geometry.adjoint ? r.shift[i] - tap[i] : tap[i];
        }
        tma_load_im2col(stage + first * BM * 2, &p.map[s], full, in_k ? channel : p.padded_channels, base, shift);
        channel += p.box_channels;
        if (channel < p.padded_channels) continue;
        channel = 0;
        if (++tap[2] < r.count[2]) continue;
        tap[2] = 0;
        if (++tap[1] < r.count[1]) continue;
        tap[1] = 0;
        ++tap[0];
      }
      load_weights(stage + A_BYTES, weights, full);
      weights += B_BYTES / 16;
      pipeline.next();
    }
  }

  // The blocks of a cluster compute the same columns: each loads half of the weights, for both.
  SSCONV_DEVICE static void load_weights(uint32_t to, const Bytes16* weights, uint32_t full) {
    if constexpr (CLUSTER > 1) {
      const uint32_t half = cluster_rank() * (B_BYTES / 2);
      bulk_load_multicast(3, to + half, weights + half / 16, B_BYTES / 2, full);
    } else {
      bulk_load(to, weights, B_BYTES, full);
    }
  }

  // Sample and coordinates of an output, among those of its parity.
  SSCONV_DEVICE static void output_coordinates(const Params& p, uint32_t output, int (&at)[4]) {
    at[3] = divmod(p.w, output);
    at[2] = divmod(p.h, output);
    at[1] = divmod(p.d, output);
    at[0] = output;
  }

  // -------------------------------------------------------------------------------------------------------- multiply

  // The smem descriptors of the warp group's rows of A, and of B, in a stage at offset 0.
  struct Operands {
    int span;  // bytes of a row of A: its swizzle
    uint64_t a, b;

    SSCONV_DEVICE explicit Operands(const Params& p) : span(2 * p.box_channels) {
      const int group = warp_uniform(thread_index() / 128);
      a = smem_descriptor(shared_address(group * ROWS * span), span, 0, 8 * span);
      b = smem_descriptor(shared_address(A_BYTES), 128, 0, 1024);
    }
  };

  // A consumer warp group.
  SSCONV_DEVICE static void consume(const Params& p) {
    const Operands operands(p);
    Pipeline pipeline;
    for_each_tile(p, [&](const Tile& tile) {
      Accumulators accumulators;
      Outputs outputs;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const int tiles = k_tiles(p, p.mapped[tile.first_branch + s].taps[tile.parity]);
        multiply_branch(p, operands, tiles, accumulators, pipeline);
        store_branch(p, tile, s, accumulators, outputs);
      }
    });
  }

  // accumulators = the warp group's rows of A times B, over all K tiles.
  SSCONV_DEVICE static void multiply_branch(const Params& p, const Operands& operands, int tiles,
                                            Accumulators& accumulators, Pipeline& pipeline) {
    int previous = -1;  // stage of the K tile before
#pragma unroll 1
    for (int k_tile = 0; k_tile < tiles; ++k_tile) {
      pipeline.wait_full();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; ++k) {
        const uint64_t b = advance_descriptor(operands.b, pipeline.offset() + 32 * k);
#pragma unroll
        for (int m = 0; m < MI; ++m) {
          const uint64_t a = advance_descriptor(operands.a, pipeline.offset() + p.slices[k] + 64 * m * operands.span);
          wgmma<T, BN>(accumulators[m], a, b, k_tile > 0 || k > 0);
        }
      }
      wgmma_commit();
      wgmma_wait<1>();  // the wgmmas of the K tile before are done
      Pipeline::template release<CLUSTER>(previous);
      previous = pipeline.stage;
      pipeline.next();
    }
    wgmma_wait<0>();
    Pipeline::template release<CLUSTER>(previous);
  }

  // ----------------------------------------------------------------------------------------------------------- store

  // Applies the epilogue to branch s of the tile. A parity that no tap reaches has no accumulators: zeros.
  SSCONV_DEVICE static void store_branch(const Params& p, const Tile& tile, int s, const Accumulators& accumulators,
                                         Outputs& outputs) {
    const int warp = warp_uniform(thread_index() / 32), lane = thread_index() % 32;
    const Params::ParityTaps& taps = p.mapped[tile.first_branch + s].taps[tile.parity];
    const uint32_t first_row = tile.output + warp / 4 * ROWS + warp % 4 * 16 + lane / 4;
    Store::run(
        p, tile, s, p.voxels.divisor, accumulators, outputs,
        [&](int row, uint32_t& n, uint32_t& voxel) {
          return locate(p, tile, first_row + 64 * (row / 2) + 8 * (row % 2), n, voxel);
        },
        [&](float accumulator) { return taps.count[0] > 0 ? accumulator : 0.f; });
  }

  // An output's sample and its voxel in y; false where there is none.
  SSCONV_DEVICE static bool locate(const Params& p, const Tile& tile, uint32_t output, uint32_t& n, uint32_t& voxel) {
    if (output >= p.outputs) return false;
    if (p.parities == 1) {
      n = output;
      voxel = divmod(p.voxels, n);
      return true;
    }
    n = output;  // divided in place, dimension by dimension: few registers are left here
    const Divider* const count[3] = {&p.d, &p.h, &p.w};
    uint32_t step = 1;
    bool exists = true;
    voxel = 0;
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      const uint32_t at = divmod(*count[i], n) * p.geometry.stride[i] + p.parity[tile.parity][i];
      exists = exists && at < static_cast<uint32_t>(p.size[i]);
      voxel += at * step;
      step *= p.size[i];
    }
    return exists;
  }
};

}  // namespace ssconv
