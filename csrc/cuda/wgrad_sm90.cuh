// Weight gradient on sm_90a: as wgrad_sm80.cuh, with bulk copies (im2col) and wgmma.
//
// K runs over low's voxels in the order n, d, h, w, 64 to a stage: boxes of low's channels, and for each box of columns
// (some of high's channels at one tap) high's at the windows of those voxels. Both lie as they come, channels side by side,
// so that K does not run along the rows of either operand. A block sums a share of K for ROWS rows and 128 COLUMNS / 2
// columns of one branch: two warpgroups with half of the rows each or, of few rows, with half of the columns.
#pragma once

#include "common.cuh"
#include "pipeline.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

template <class A, int ROWS>
struct WgradSm90 {
  using T = typename A::Element;
  using Params = WgradSm90Params;
  static constexpr int CONSUMERS = 2;                // warpgroups
  static constexpr int THREADS = 128 * CONSUMERS + 128;
  static constexpr int BLOCKS = 1;
  static constexpr int BK = 64, BN = 128;            // voxels of a stage; columns of a tile
  static constexpr int OWN = 2;                      // tiles of columns of a warpgroup
  static constexpr int TILES = ROWS == 64 ? OWN * CONSUMERS : OWN;  // of a block
  static constexpr int LOW_BYTES = ROWS * BK * 2, HIGH_BYTES = TILES * BN * BK * 2, STAGE = LOW_BYTES + HIGH_BYTES;
  using Ring = ssconv::Ring<220 * 1024 / STAGE, STAGE, CONSUMERS>;
  static constexpr int SHARED = Ring::SHARED;
  static_assert(ROWS == 64 || ROWS == 64 * CONSUMERS, "each warpgroup has 64 rows");

#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "wgrad_sm90<%s, %d>", A::NAME, ROWS);
    return text;
  }
#endif

  // What a block computes: the rows and the tiles of a branch, and the steps of K.
  struct Place {
    int first_tile, row_block, part;
    int step, end;

    SSCONV_DEVICE explicit Place(const Params& p) {
      const int tiles = block_x() / p.row_blocks;
      row_block = block_x() - tiles * p.row_blocks;
      first_tile = tiles * TILES;
      part = 0;
      while (part + 1 < p.parts && first_tile >= p.part[part + 1].first_tile) ++part;
      step = block_y() * p.steps_per_split;
      end = step + p.steps_per_split < p.steps ? step + p.steps_per_split : p.steps;
    }
  };

  SSCONV_DEVICE static void produce(const Params& p, const Place& place) {
    const Params::Part& b = p.part[place.part];
    const int first_box = (place.first_tile - b.first_tile) * (BN / p.high_box);
    const int taps = b.extent[0] * b.extent[1] * b.extent[2];
    Ring ring;
    for (int step = place.step; step < place.end; ++step) {
      ring.wait_free();
      mbarrier_expect(ring.full(), STAGE);
      uint32_t voxel = step * BK;
      int at[4];
      at[3] = divide_off(p.w, voxel);
      at[2] = divide_off(p.h, voxel);
      at[1] = divide_off(p.d, voxel);
      at[0] = voxel;
      for (int c = 0; c < ROWS; c += p.low_box)
        copy_im2col(ring.at() + c * BK * 2, &p.low_map[place.part], ring.full(), place.row_block * ROWS + c, at, {0, 0, 0});
#pragma unroll
      for (int i = 0; i < 3; ++i) at[1 + i] = at[1 + i] * p.geometry.stride[i] + b.lower[i];
      int tap = first_box / p.boxes, box = first_box - tap * p.boxes;
      for (int c = 0; c < TILES * BN; c += p.high_box) {
        const bool real = tap < taps;  // else there are no more columns: zeros
        const int in_plane = b.extent[1] * b.extent[2];
        int shift[3] = {0, 0, 0};
        if (real) {
          shift[0] = tap / in_plane;
          shift[1] = tap % in_plane / b.extent[2];
          shift[2] = tap % b.extent[2];
        }
        copy_im2col(ring.at() + LOW_BYTES + c * BK * 2, &p.high_map[place.part], ring.full(),
                    real ? box * p.high_box : p.high_channels, at, shift);
        if (++box == p.boxes) {
          box = 0;
          ++tap;
        }
      }
      ring.next();
    }
  }

  SSCONV_DEVICE static void consume(const Params& p, const Place& place) {
    const int group = thread_index() / 128, warp = thread_index() % 128 / 32, lane = thread_index() % 32;
    const int row = ROWS == 64 ? 0 : 64 * group, first_tile = ROWS == 64 ? OWN * group : 0;
    const int low_span = 2 * p.low_box, high_span = 2 * p.high_box;  // bytes of a voxel in a box
    const uint64_t low = matrix(shared_address(row * BK * 2), low_span, BK * low_span, 8 * low_span);
    const uint64_t high =
        matrix(shared_address(LOW_BYTES + first_tile * BN * BK * 2), high_span, BK * high_span, 8 * high_span);
    float sums[OWN][BN / 2];
    Ring ring;
    int reading = -1;  // the stage of the step before
#pragma unroll 1
    for (int step = place.step; step < place.end; ++step) {
      ring.wait_full();
      matrix_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; ++k) {
#pragma unroll
        for (int tile = 0; tile < OWN; ++tile)
          matrix_multiply<T, BN, true, true>(sums[tile], further(low, ring.at() + 16 * k * low_span),
                                             further(high, ring.at() + tile * BN * BK * 2 + 16 * k * high_span),
                                             step > place.step || k > 0);
      }
      matrix_commit();
      matrix_wait<1>();
      Ring::release(reading);
      reading = ring.stage;
      ring.next();
    }
    matrix_wait<0>();
    const int64_t tiles = int64_t(blocks_x()) * TILES;  // of all rows
#pragma unroll
    for (int tile = 0; tile < OWN; ++tile) {
      const int64_t number = int64_t(place.first_tile + first_tile + tile) * p.row_blocks + place.row_block;
      float* const to = p.workspace + (block_y() * tiles + number) * (ROWS * BN) +
                        (row + 16 * warp + lane / 4) * BN + lane % 4 * 2;
#pragma unroll
      for (int i = 0; i < BN / 8; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          store(reinterpret_cast<Pair*>(to + half * 8 * BN + 8 * i),
                Pair{sums[tile][4 * i + 2 * half], sums[tile][4 * i + 2 * half + 1]});
    }
  }

  SSCONV_DEVICE static void run(const Params& p) {
    const Place place(p);
    Ring::begin();
    if (thread_index() >= 128 * CONSUMERS) {
      give_registers<24>();
      if (thread_index() == 128 * CONSUMERS) produce(p, place);
      return;
    }
    take_registers<240>();
    consume(p, place);
  }
};

}  // namespace ssconv
