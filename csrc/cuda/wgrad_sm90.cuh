// wgrad on sm_90a: split-K implicit GEMM with TMA (im2col) and wgmma; see wgrad_sm80.cuh for M, N and K.
//
// A stage is 64 of K, voxels of low in the order n, d, h, w: boxes of low's channels, and for each box of columns (some
// of high's channels at one tap) high at the windows of those voxels. Both operands lie in shared memory as in the
// tensors, with channels along the rows: MN-major. A block sums one split of K for ROWS rows and 2 or 4 tiles of 128
// columns of one branch. The two consumer warp groups have half of the rows each or, where there are few rows, half of
// the columns.
#pragma once

#include <cstdio>

#include "arithmetic.cuh"
#include "pipeline_sm90.cuh"
#include "ptx/tma.cuh"
#include "ptx/wgmma.cuh"

namespace ssconv {

template <class A, int ROWS>
struct WgradSm90 {
  using T = typename A::Element;
  using Params = WgradSm90Params;
  static constexpr int CONSUMERS = 2;                    // warp groups
  static constexpr int THREADS = 128 * CONSUMERS + 128;  // the producer is a warp group of its own, for setmaxnreg
  static constexpr int BLOCKS = 1;
  static constexpr int BK = 64, BN = 128;                // tile K: voxels; tile N
  static constexpr int NI = 2;                           // column tiles of a consumer
  static constexpr int TILES = ROWS == 64 ? NI * CONSUMERS : NI;  // column tiles of the block
  static constexpr int LOW_BYTES = ROWS * BK * 2, HIGH_BYTES = TILES * BN * BK * 2, STAGE = LOW_BYTES + HIGH_BYTES;
  using Pipeline = ssconv::Pipeline<220 * 1024 / STAGE, STAGE, CONSUMERS>;
  static constexpr int SHARED = Pipeline::END;
  static_assert(ROWS == 64 || ROWS == 64 * CONSUMERS, "a consumer has 64 rows");

  using Accumulators = float[NI][BN / 2];

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "wgrad_sm90<%s, %d>", A::NAME, ROWS);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    const Tile tile(p);
    Pipeline::init();
    if (thread_index() >= 128 * CONSUMERS) {
      setmaxnreg_dec<24>();
      if (thread_index() == 128 * CONSUMERS) produce(p, tile);
      return;
    }
    setmaxnreg_inc<240>();
    Accumulators accumulators;
    multiply(p, tile, accumulators);
    store_tile(p, tile, accumulators);
  }

  // What the block computes: rows and column tiles of a branch, and the K tiles of a split.
  struct Tile {
    int first_tile, m_tile, branch;
    int k_begin, k_end;

    SSCONV_DEVICE explicit Tile(const Params& p) {
      const int tiles = block_x() / p.m_tiles;
      m_tile = block_x() - tiles * p.m_tiles;
      first_tile = tiles * TILES;
      branch = 0;
      while (branch + 1 < p.branches && first_tile >= p.mapped[branch + 1].first_tile) ++branch;
      k_begin = block_y() * p.steps_per_split;
      k_end = k_begin + p.steps_per_split < p.steps ? k_begin + p.steps_per_split : p.steps;
    }
  };

  // A consumer's part of the block's tile.
  SSCONV_DEVICE static int first_row() { return ROWS == 64 ? 0 : 64 * warp_uniform(thread_index() / 128); }
  SSCONV_DEVICE static int first_column_tile() { return ROWS == 64 ? NI * warp_uniform(thread_index() / 128) : 0; }

  // The producer thread: fills the stages.
  SSCONV_DEVICE static void produce(const Params& p, const Tile& tile) {
    const Params::MappedBranch& b = p.mapped[tile.branch];
    const int first_box = (tile.first_tile - b.first_tile) * (BN / p.high_box);
    const int taps = b.extent[0] * b.extent[1] * b.extent[2];
    Pipeline pipeline;
    for (int k_tile = tile.k_begin; k_tile < tile.k_end; ++k_tile) {
      pipeline.wait_empty();
      mbarrier_arrive_expect_tx(pipeline.full_barrier(), STAGE);
      uint32_t voxel = k_tile * BK;
      int at[4];
      at[3] = divmod(p.w, voxel);
      at[2] = divmod(p.h, voxel);
      at[1] = divmod(p.d, voxel);
      at[0] = voxel;
      for (int c = 0; c < ROWS; c += p.low_box)
        tma_load_im2col(pipeline.offset() + c * BK * 2, &p.low_map[tile.branch], pipeline.full_barrier(),
                        tile.m_tile * ROWS + c, at, {0, 0, 0});
#pragma unroll
      for (int i = 0; i < 3; ++i) at[1 + i] = at[1 + i] * p.geometry.stride[i] + b.lower[i];
      int tap = first_box / p.boxes, box = first_box - tap * p.boxes;
      for (int c = 0; c < TILES * BN; c += p.high_box) {
        const bool in_n = tap < taps;  // else the columns have ended: zeros
        const int in_plane = b.extent[1] * b.extent[2];
        int shift[3] = {0, 0, 0};
        if (in_n) {
          shift[0] = tap / in_plane;
          shift[1] = tap % in_plane / b.extent[2];
          shift[2] = tap % b.extent[2];
        }
        tma_load_im2col(pipeline.offset() + LOW_BYTES + c * BK * 2, &p.high_map[tile.branch], pipeline.full_barrier(),
                        in_n ? box * p.high_box : p.high_channels, at, shift);
        if (++box == p.boxes) {
          box = 0;
          ++tap;
        }
      }
      pipeline.next();
    }
  }

  // accumulators = low transposed * high over the split's K tiles: 64 rows and NI column tiles of this warp group.
  SSCONV_DEVICE static void multiply(const Params& p, const Tile& tile, Accumulators& accumulators) {
    const int low_span = 2 * p.low_box, high_span = 2 * p.high_box;  // bytes of a voxel in a box: the swizzle
    const uint64_t low = smem_descriptor(shared_address(first_row() * BK * 2), low_span, BK * low_span, 8 * low_span);
    const uint64_t high = smem_descriptor(shared_address(LOW_BYTES + first_column_tile() * BN * BK * 2), high_span,
                                          BK * high_span, 8 * high_span);
    Pipeline pipeline;
    int previous = -1;  // stage of the K tile before
#pragma unroll 1
    for (int k_tile = tile.k_begin; k_tile < tile.k_end; ++k_tile) {
      pipeline.wait_full();
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; ++k) {
#pragma unroll
        for (int i = 0; i < NI; ++i)
          wgmma<T, BN, true, true>(
              accumulators[i], advance_descriptor(low, pipeline.offset() + 16 * k * low_span),
              advance_descriptor(high, pipeline.offset() + i * BN * BK * 2 + 16 * k * high_span),
              k_tile > tile.k_begin || k > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();  // the wgmmas of the K tile before are done
      Pipeline::release(previous);
      previous = pipeline.stage;
      pipeline.next();
    }
    wgmma_wait<0>();
  }

  // Stores the partial sums to the workspace.
  SSCONV_DEVICE static void store_tile(const Params& p, const Tile& tile, const Accumulators& accumulators) {
    const int warp = thread_index() % 128 / 32, lane = thread_index() % 32;
    const int64_t tiles = int64_t(blocks_x()) * TILES;  // of all rows
#pragma unroll
    for (int i = 0; i < NI; ++i) {
      const int64_t number = int64_t(tile.first_tile + first_column_tile() + i) * p.m_tiles + tile.m_tile;
      float* const to = p.workspace + (block_y() * tiles + number) * (ROWS * BN) +
                        (first_row() + 16 * warp + lane / 4) * BN + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < BN / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store(reinterpret_cast<Float2*>(to + half * 8 * BN + 8 * j),
                Float2{accumulators[i][4 * j + 2 * half], accumulators[i][4 * j + 2 * half + 1]});
    }
  }
};

}  // namespace ssconv
