// fprop and dgrad of stride 1 on sm_90a, with the halo kept in shared memory: a tile's input is loaded once, not once
// per tap.
//
// A block stays on its multiprocessor and computes tile after tile: a box of outputs of one sample by BN columns
// (output channels) of each of S branches. The halo box that a branch reads of it, 64 channels (or 32, or 16) at a
// time, stays in a buffer while all taps multiply it; the next chunk of channels, or the next branch's or tile's, is
// loaded into the other buffer meanwhile. The weights come through a pipeline of their own, 64 of K a stage, in the
// order chunk, tap, channel.
//
// wgmma's 64 rows are 8 groups of 8 rows at a stride that the smem descriptor states: 8 neighbours along W, on 8 rows
// of the halo box. So another tap is another start address, and nothing is copied or masked. A tile is MI wgmma tiles
// of 8 x 8 outputs for each of two consumer warp groups, in any arrangement that makes a box.
//
// The layout of a pixel's channels is the host's choice:
//   plain: planes of 8 channels, each with all pixels, 16 bytes a pixel, no swizzle. A wgmma tile may start at any
//     pixel. TMA then copies rows of 16 bytes, at a rate that is not known.
//   swizzled: a pixel's channels are one swizzled row of 32, 64 or 128 bytes. A wgmma tile then starts in any row of a
//     swizzle atom. By PTX's definition, base offset = (start of the atom >> 7) & 7, it is 0 here: the atoms start
//     where the buffer does, at a multiple of 1024 bytes, whatever row the wgmma tile starts at.
//
// shuffled_store.cuh is the epilogue.
#pragma once

#include <cstdio>

#include "pipeline_sm90.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"
#include "shuffled_store.cuh"

namespace ssconv {

template <class A, int S, int BN>
struct ConvSm90Halo {
  using T = typename A::Element;
  using Params = ConvSm90HaloParams;
  static constexpr int CONSUMERS = 2;                    // warp groups
  static constexpr int THREADS = 128 * CONSUMERS + 128;  // the producers are a warp group of their own, for setmaxnreg
  static constexpr int BLOCKS = 1;
  static constexpr int MI = S * BN > 128 ? 2 : BN == 128 ? 2 : 4;  // wgmma tiles of a consumer
  static constexpr int BK = 64, SLICES = BK / 16;  // K of a stage of weights; slices are wgmma's 16 of K
  static constexpr int STAGE = BN * BK * 2, STAGES = BN == 128 ? 4 : BN == 64 ? 12 : 16;  // of weights
  static constexpr int BUFFER = (225 * 1024 - STAGES * STAGE) / 2 / 1024 * 1024;          // of a halo box, one of two
  static constexpr int MBARRIERS = STAGES * STAGE + 2 * BUFFER;
  using Weights = Pipeline<STAGES, STAGE, CONSUMERS, 0, MBARRIERS>;
  using Inputs = Pipeline<2, BUFFER, CONSUMERS, STAGES * STAGE, Weights::END>;
  static constexpr int STAGGER = Inputs::END, SHARED = STAGGER + 8;  // an mbarrier, see `consume`
  static_assert(SHARED <= 226 * 1024 && MI * CONSUMERS <= MATRICES, "shared memory, and wgmma tiles in Params");

  using Store = ShuffledStore<T, S, BN, MI>;
  using Accumulators = typename Store::Accumulators;
  using Outputs = typename Store::Outputs;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm90_halo<%s, %d, %d>", A::NAME, S, BN);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    if (thread_index() == 0) mbarrier_init(STAGGER, 4);
    Weights::init();
    Inputs::init();
    if (thread_index() >= 128 * CONSUMERS) {
      setmaxnreg_dec<24>();
      if (thread_index() == 128 * CONSUMERS) produce_weights(p);
      if (thread_index() == 128 * CONSUMERS + 32) produce_inputs(p);
      return;
    }
    setmaxnreg_inc<240>();
    consume(p);
  }

  struct Tile {
    int n_tile, first_branch;
    int at[4];  // the first output: n, d, h, w

    SSCONV_DEVICE Tile(const Params& p, uint32_t number) {
      n_tile = divmod(p.n_tiles, number);
      uint32_t tile = divmod(p.m_tiles, number);
      first_branch = S == 1 ? number : 0;
      at[3] = divmod(p.w, tile) * p.tile[2];
      at[2] = divmod(p.h, tile) * p.tile[1];
      at[1] = divmod(p.d, tile) * p.tile[0];
      at[0] = tile;
    }
  };

  // ------------------------------------------------------------------------------------------------------------ load

  // One producer thread loads the halo boxes of all of the block's tiles, another the weights: each runs as far ahead
  // as its pipeline allows.
  SSCONV_DEVICE static void produce_inputs(const Params& p) {
    Inputs pipeline;
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const Tile tile(p, number);
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) {
        const Params::MappedBranch& b = p.mapped[s];
        const int base[4] = {tile.at[0], tile.at[1] + b.lower[0], tile.at[2] + b.lower[1], tile.at[3] + b.lower[2]};
#pragma unroll 1
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
          pipeline.wait_empty();
          mbarrier_arrive_expect_tx(pipeline.full_barrier(), b.expected);
#pragma unroll 1
          for (int i = 0; i < p.copies; ++i)
            tma_load_tile(pipeline.offset() + i * b.plane, &p.map[s], pipeline.full_barrier(),
                          chunk * p.chunk_channels + i * p.copy_channels, base);
          pipeline.next();
        }
      }
    }
  }

  SSCONV_DEVICE static void produce_weights(const Params& p) {
    Weights pipeline;
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const Tile tile(p, number);
#pragma unroll 1
      for (int s = tile.first_branch; s < tile.first_branch + S; ++s) {
        const int k_tiles = p.chunks * p.mapped[s].steps;
        const Bytes16* weights = static_cast<const Bytes16*>(p.weights) + p.mapped[s].start +
                                 static_cast<int64_t>(tile.n_tile) * k_tiles * (STAGE / 16);
#pragma unroll 1
        for (int k_tile = 0; k_tile < k_tiles; ++k_tile) {
          pipeline.wait_empty();
          mbarrier_arrive_expect_tx(pipeline.full_barrier(), STAGE);
          bulk_load(pipeline.offset(), weights, STAGE, pipeline.full_barrier());
          weights += STAGE / 16;
          pipeline.next();
        }
      }
    }
  }

  // -------------------------------------------------------------------------------------------------------- multiply

  // A consumer warp group. The second one starts when the first has read most of the pipeline's weights: staggered so,
  // one multiplies while the other runs the epilogue.
  SSCONV_DEVICE static void consume(const Params& p) {
    Weights weights;
    Inputs inputs;
    const bool is_first = warp_uniform(thread_index() / 128) == 0;
    if (!is_first) mbarrier_wait(STAGGER, 0);
    for (uint32_t number = block_x(); number < p.work; number += blocks_x()) {
      const int first_branch = Tile(p, number).first_branch;
      Accumulators accumulators;
      Outputs outputs;
#pragma unroll
      for (int s = 0; s < S; ++s) {
        const Params::MappedBranch& b = p.mapped[first_branch + s];
        const int stagger = s == 0 && is_first && number == block_x() ? STAGES - 1 : 0;
        if (p.chunk_channels == 64) {
          multiply_branch<4>(p, b, accumulators, weights, inputs, stagger);
        } else if (p.chunk_channels == 32) {
          multiply_branch<2>(p, b, accumulators, weights, inputs, stagger);
        } else {
          multiply_branch<1>(p, b, accumulators, weights, inputs, stagger);
        }
        store_branch(p, number, s, accumulators, outputs);
      }
    }
  }

  // accumulators = the branch's convolution, G slices of K at a time: those of one tap, so that a chunk ends with a
  // group. stagger: stages of weights to read before the second warp group may start; 0: it has started. At the latest
  // it starts after the first chunk, since the third chunk's buffer becomes empty only when both warp groups have read
  // it.
  template <int G>
  SSCONV_DEVICE static void multiply_branch(const Params& p, const Params::MappedBranch& b, Accumulators& accumulators,
                                            Weights& weights, Inputs& inputs, int stagger) {
    const uint64_t b_first = smem_descriptor(shared_address(0), 128, 0, 1024);
    const uint16_t* const tile_offset = b.matrix + warp_uniform(thread_index() / 128) * MI;
    int previous_stage = -1, previous_buffer = -1;
#pragma unroll 1
    for (int chunk = 0; chunk < p.chunks; ++chunk) {
      inputs.wait_full();
      const uint64_t a_first = smem_descriptor(shared_address(inputs.offset()), p.span, b.leading, b.stride);
#pragma unroll 1
      for (int slice = 0; slice < b.slices; slice += G) {
        const int in_stage = slice % SLICES;  // a chunk's last stage may hold fewer slices
        if (in_stage == 0) weights.wait_full();
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < G; ++k) {
          const uint64_t a_slice = advance_descriptor_16(a_first, b.slice[slice + k]);
          const uint64_t b_slice = advance_descriptor_16(b_first, weights.offset() / 16 + 2 * (in_stage + k));
#pragma unroll
          for (int m = 0; m < MI; ++m)
            wgmma<T, BN>(accumulators[m], advance_descriptor_16(a_slice, tile_offset[m]), b_slice,
                         chunk > 0 || slice > 0 || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the wgmmas of the group before are done: with its stage and buffer
        if (in_stage == 0) {
          Weights::release(previous_stage);
          previous_stage = weights.stage;
          if (stagger > 0 && --stagger == 0) start_second_group();
        }
        if (slice == 0) {
          Inputs::release(previous_buffer);
          previous_buffer = inputs.stage;
        }
        if (in_stage == SLICES - G || slice == b.slices - G) weights.next();
      }
      inputs.next();
      if (stagger > 0) start_second_group();
      stagger = 0;
    }
    wgmma_wait<0>();
    Weights::release(previous_stage);
    Inputs::release(previous_buffer);
  }

  SSCONV_DEVICE static void start_second_group() {
    if (thread_index() % 32 == 0) mbarrier_arrive(STAGGER);
  }

  // ----------------------------------------------------------------------------------------------------------- store

  // Applies the epilogue to branch s of the tile.
  SSCONV_DEVICE static void store_branch(const Params& p, uint32_t number, int s, const Accumulators& accumulators,
                                         Outputs& outputs) {
    const Tile tile(p, number);
    const int warp = warp_uniform(thread_index() / 32), lane = thread_index() % 32;
    const int64_t voxels = int64_t(p.size[0]) * p.size[1] * p.size[2];
    Store::run(
        p, tile, s, voxels, accumulators, outputs,
        [&](int row, uint32_t& n, uint32_t& voxel) {  // row 8 h + w of a wgmma tile
          const uint8_t(&origin)[3] = p.origin[warp / 4 * MI + row / 2];
          const int d = tile.at[1] + origin[0];
          const int h = tile.at[2] + origin[1] + 2 * (warp % 4) + row % 2;
          const int w = tile.at[3] + origin[2] + lane / 4;
          n = tile.at[0];
          voxel = (uint32_t(d) * p.size[1] + h) * p.size[2] + w;
          return d < p.size[0] && h < p.size[1] && w < p.size[2];
        },
        [](float accumulator) { return accumulator; });
  }
};

}  // namespace ssconv
