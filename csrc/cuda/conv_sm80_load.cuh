// Load: fills the stages of the sm_80 convolution from global memory.
#pragma once

#include "conv_sm80_tile.cuh"
#include "pipeline_sm80.cuh"

namespace ssconv {

// Fills one stage per call of `fill`: a tile of A (the voxels that BK of K read, taps times channels in one sequence)
// and a tile of B (packed weights). Goes through the K tiles of the block's branches in order.
template <class Config>
struct ConvSm80Load {
  using Params = typename Config::Params;
  using T = typename Config::T;
  static constexpr bool ELEMENTS = Config::BY_ELEMENTS;
  static constexpr int CHUNKS = Config::CHUNKS, SIZE = Config::SIZE, BN = Config::BN;

  const Params& p;
  const ConvSm80Tile<Config>& tile;
  int branch, tiles_left;  // K tiles of the branch
  Taps taps[3];
  int number;              // of the branch among all
  int channel;             // this thread's channel within its tap: in chunks, or in elements
  int tap[3];
  const Bytes16* weights;
  // By chunks: this thread loads one column of chunks, of 8 rows. Their offsets in x (in chunks) relative to the tile's
  // origin, and their input coordinates d, h, w relative to it (a byte each; bit 31: the sample does not exist).
  int offset[ELEMENTS ? 1 : 8];
  uint32_t relative[ELEMENTS ? 1 : 8];
  // By elements: this thread loads one row.
  int row_at[4];

  SSCONV_DEVICE ConvSm80Load(const Params& params, const ConvSm80Tile<Config>& output_tile)
      : p(params), tile(output_tile) {
    if constexpr (ELEMENTS) {
      tile.row_coordinates(p, thread_index(), row_at);
    } else {
      const int per_chunk = SIZE;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        int at[4];
        tile.row_coordinates(p, thread_index() / CHUNKS + 16 * i, at);
        const bool exists = tile.origin[0] + at[0] < p.x.size[0];
        relative[i] = at[1] * input_stride(0) | at[2] * input_stride(1) << 8 | at[3] * input_stride(2) << 16 |
                      (exists ? 0u : 1u << 31);
        offset[i] = at[0] * static_cast<int>(p.x.stride[0] / per_chunk) +
                    at[1] * input_stride(0) * static_cast<int>(p.x.stride[2] / per_chunk) +
                    at[2] * input_stride(1) * static_cast<int>(p.x.stride[3] / per_chunk) +
                    at[3] * input_stride(2) * static_cast<int>(p.x.stride[4] / per_chunk);
      }
    }
    begin_branch(tile.first_branch);
  }

  SSCONV_DEVICE void fill(uint32_t stage) {
    if (tiles_left > 0) {
      if constexpr (ELEMENTS)
        fill_elements(stage);
      else
        fill_chunks(stage);
#pragma unroll
      for (int j = thread_index(); j < BN * CHUNKS; j += Config::THREADS)
        cp_async_cg(stage + Config::A_BYTES + swizzled_offset<CHUNKS>(j / CHUNKS, j % CHUNKS), weights + j, true);
      weights += BN * CHUNKS;
      if (--tiles_left == 0) begin_branch(branch + 1);
    }
    cp_async_commit();
  }

 private:
  // Input positions from one output of the tile to the next, along dimension i.
  SSCONV_DEVICE int input_stride(int i) const { return p.geometry.adjoint ? 1 : p.geometry.stride[i]; }

  SSCONV_DEVICE void begin_branch(int b) {
    for (tiles_left = 0; b < tile.last_branch; ++b) {
      tiles_left = Config::k_tiles(p, p.branch[b], tile.parity, taps);
      if (tiles_left > 0) break;
    }
    branch = b;
    if (tiles_left == 0) return;
    number = p.branch[b].number;
    weights = static_cast<const Bytes16*>(p.weights) + p.branch[b].start[tile.parity_number] +
              static_cast<int64_t>(tile.n_tile) * tiles_left * (BN * CHUNKS);
    channel = tap[0] = tap[1] = tap[2] = 0;
    if constexpr (!ELEMENTS) advance(thread_index() % CHUNKS);
  }

  // Moves n channels (chunks, or elements) along K.
  SSCONV_DEVICE void advance(int n) {
    const int per_tap = ELEMENTS ? p.in_channels : p.in_channels / SIZE;
    channel += n;
    while (channel >= per_tap) {
      channel -= per_tap;
      if (++tap[2] < taps[2].count) continue;
      tap[2] = 0;
      if (++tap[1] < taps[1].count) continue;
      tap[1] = 0;
      ++tap[0];
    }
  }

  // The input position, along dimension i, that the tile's first voxel reads at this thread's tap.
  SSCONV_DEVICE int position(int i) const {
    return tile.origin[1 + i] * input_stride(i) + taps[i].shift + (p.geometry.adjoint ? -tap[i] : tap[i]);
  }

  SSCONV_DEVICE void fill_chunks(uint32_t stage) {
    const int d = position(0), h = position(1), w = position(2);
    const bool in_k = tap[0] < taps[0].count;  // else K has ended: zeros
    const int64_t elements = tile.origin[0] * p.x.stride[0] + d * p.x.stride[2] + h * p.x.stride[3] +
                             w * p.x.stride[4] + static_cast<int64_t>(number) * p.in_channels;
    const int64_t base = elements / SIZE + channel;  // divisible: strides and channels are whole chunks
    const int column = thread_index() % CHUNKS;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t r = relative[i];
      const bool valid = in_k && r >> 31 == 0 && inside(d + (r & 255), p.x.size[1]) &&
                         inside(h + (r >> 8 & 255), p.x.size[2]) && inside(w + (r >> 16 & 255), p.x.size[3]);
      const auto* x = static_cast<const Bytes16*>(p.x.data);
      const uint32_t to = stage + swizzled_offset<CHUNKS>(thread_index() / CHUNKS + 16 * i, column);
      const Bytes16* const from = valid ? x + (base + offset[i]) : x;
      if (p.cached)
        cp_async_ca(to, from, valid);
      else
        cp_async_cg(to, from, valid);
    }
    advance(CHUNKS);
  }

  SSCONV_DEVICE void fill_elements(uint32_t stage) {
    const int64_t n = tile.origin[0] + row_at[0];
    const bool sample = n < p.x.size[0];
#pragma unroll 1
    for (int c = 0; c < CHUNKS; ++c) {
      float values[SIZE];
#pragma unroll
      for (int i = 0; i < SIZE; ++i) {
        const int d = position(0) + row_at[1] * input_stride(0);
        const int h = position(1) + row_at[2] * input_stride(1);
        const int w = position(2) + row_at[3] * input_stride(2);
        const bool valid = sample && tap[0] < taps[0].count && inside(d, p.x.size[1]) && inside(h, p.x.size[2]) &&
                           inside(w, p.x.size[3]);
        values[i] = 0;
        if (valid) {
          const int64_t c_all = static_cast<int64_t>(number) * p.in_channels + channel;
          const int64_t at = n * p.x.stride[0] + c_all * p.x.stride[1] + d * p.x.stride[2] + h * p.x.stride[3] +
                             w * p.x.stride[4];
          values[i] = to_float(load(static_cast<const T*>(p.x.data) + at));
          if (p.in_scale != nullptr) values[i] *= load(p.in_scale + n * p.branches * p.in_channels + c_all);
        }
        advance(1);
      }
      shared_store(stage + swizzled_offset<CHUNKS>(thread_index(), c), pack<T>(values));
    }
  }
};

}  // namespace ssconv
