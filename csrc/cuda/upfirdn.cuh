// upfirdn3d in one pass: a block loads the voxels that its output tile needs into shared memory and filters them there
// along W, H and D.
//
// y[o] = sum over t of f[length - 1 - t] * x'[o * down + t - padding] along each dimension, where x' has up - 1 zeros
// after every sample of x, and zeros outside. Along D `border` may say otherwise: x' repeats the outer slices, or what
// outputs beyond the first and the last would be is added to those.
#pragma once

#include "chunks.cuh"

namespace ssconv {

template <class T>
struct Upfirdn {
  using Params = UpfirdnParams;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int WIDE = 8;  // channels of a thread

  static const char* name() { return "upfirdn"; }

  // The block's tile: sample, channels, the first output along D, H, W, and the first sample of x that it reads, which
  // may lie outside x.
  struct Tile {
    int64_t n;
    int channel, first[3], source[3];

    SSCONV_DEVICE explicit Tile(const Params& p) {
      uint32_t b = block_x();
      channel = divmod(p.blocks[0], b) * p.block_channels;
      first[2] = divmod(p.blocks[1], b) * p.tile[2];
      first[1] = divmod(p.blocks[2], b) * p.tile[1];
      first[0] = divmod(p.blocks[3], b) * p.tile[0];
      n = b;
#pragma unroll
      for (int i = 0; i < 3; ++i) source[i] = first_source(p, i, first[i]);
      if (first[0] == 0) source[0] = first_source(p, 0, -p.folded[0]);
    }
  };

  // Shared memory, fp32: first the source tile (source_d, source_h, source_w), whose place the tile filtered along H
  // (source_d, h, w) takes later; then, from `second` on, the tile filtered along W (source_d, source_h, w).
  SSCONV_DEVICE static void run(const Params& p) {
    const Tile tile(p);
    const int groups = p.block_channels / WIDE;   // threads of a voxel
    const uint32_t cell = p.block_channels * 4;  // bytes of a voxel
    const int in = p.input_tile[1] * p.input_tile[2], out = p.tile[1] * p.tile[2];
    const uint32_t second = p.input_tile[0] * (in > out ? in : out) * cell;
    for (int i = thread_index(); i < p.input_tile[0] * p.input_tile[1] * p.input_tile[2] * groups; i += THREADS) {
      const int c = i % groups * WIDE, w = i / groups % p.input_tile[2];
      const int h = i / groups / p.input_tile[2] % p.input_tile[1], d = i / groups / p.input_tile[2] / p.input_tile[1];
      float values[WIDE];
      load_source(p, tile, d, h, w, c, values);
      put(i / groups * cell + c * 4, values);
    }
    sync_threads();
    for (int i = thread_index(); i < p.input_tile[0] * p.input_tile[1] * p.tile[2] * groups; i += THREADS) {
      const int c = i % groups * WIDE, w = i / groups % p.tile[2], row = i / groups / p.tile[2];
      float sum[WIDE] = {};
      filter(p, 2, tile.first[2] + w, tile.source[2], row * p.input_tile[2] * cell + c * 4, cell, sum);
      put(second + i / groups * cell + c * 4, sum);
    }
    sync_threads();
    for (int i = thread_index(); i < p.input_tile[0] * p.tile[1] * p.tile[2] * groups; i += THREADS) {
      const int c = i % groups * WIDE, w = i / groups % p.tile[2], h = i / groups / p.tile[2] % p.tile[1],
                d = i / groups / p.tile[2] / p.tile[1];
      float sum[WIDE] = {};
      filter(p, 1, tile.first[1] + h, tile.source[1], second + (d * p.input_tile[1] * p.tile[2] + w) * cell + c * 4,
             p.tile[2] * cell, sum);
      put(i / groups * cell + c * 4, sum);
    }
    sync_threads();
    for (int i = thread_index(); i < p.tile[0] * p.tile[1] * p.tile[2] * groups; i += THREADS) {
      const int c = i % groups * WIDE, w = i / groups % p.tile[2], h = i / groups / p.tile[2] % p.tile[1],
                d = i / groups / p.tile[2] / p.tile[1];
      const int at_d = tile.first[0] + d, at_h = tile.first[1] + h, at_w = tile.first[2] + w;
      if (at_d >= p.size[0] || at_h >= p.size[1] || at_w >= p.size[2] || tile.channel + c >= p.channels) continue;
      float sum[WIDE] = {};
      const uint32_t column = (h * p.tile[2] + w) * cell + c * 4, step = p.tile[1] * p.tile[2] * cell;
      const int last = at_d == p.size[0] - 1 ? at_d + p.folded[1] : at_d;
      for (int o = at_d == 0 ? -p.folded[0] : at_d; o <= last; ++o) filter(p, 0, o, tile.source[0], column, step, sum);
      const int64_t voxel = ((tile.n * p.size[0] + at_d) * p.size[1] + at_h) * p.size[2] + at_w;
      store_run<T, WIDE>(static_cast<T*>(p.y) + voxel * p.channels + tile.channel + c, sum,
                         p.channels - tile.channel - c);
    }
  }

  // The first sample of x that output o's filter reads along dimension i; may lie outside x.
  SSCONV_DEVICE static int first_source(const Params& p, int i, int o) {
    const int position = o * p.down[i] - p.padding[i];
    return position >= 0 ? (position + p.up[i] - 1) / p.up[i] : -(-position / p.up[i]);
  }

  // Loads 8 channels, from the tile's channel c on, of voxel (d, h, w) of the source tile; zeros outside x.
  SSCONV_DEVICE static void load_source(const Params& p, const Tile& tile, int d, int h, int w, int c,
                                        float (&values)[8]) {
    const int first = tile.channel + c;
#pragma unroll
    for (int j = 0; j < WIDE; ++j) values[j] = 0.f;
    d += tile.source[0];
    if (p.border == Border::replicate) d = d < 0 ? 0 : d < p.x.size[1] ? d : p.x.size[1] - 1;
    if (!inside(d, p.x.size[1]) || !inside(tile.source[1] + h, p.x.size[2]) ||
        !inside(tile.source[2] + w, p.x.size[3]))
      return;
    const T* const from = static_cast<const T*>(p.x.data) + tile.n * p.x.stride[0] + first * p.x.stride[1] +
                          d * p.x.stride[2] + (tile.source[1] + h) * p.x.stride[3] +
                          (tile.source[2] + w) * p.x.stride[4];
    if (p.x.stride[1] == 1 && first + WIDE <= p.channels && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int j = 0; j < WIDE; j += Chunk<T>::SIZE)
        unpack(T{}, load(reinterpret_cast<const Bytes16*>(from + j)), values + j);
    } else {
#pragma unroll
      for (int j = 0; j < WIDE; ++j)
        if (first + j < p.channels) values[j] = to_float(load(from + j * p.x.stride[1]));
    }
  }

  // Adds output o of the filter along dimension i to sum[0 .. 8). The samples lie in shared memory from `at` on, `step`
  // bytes apart; the first of them is sample `source`.
  SSCONV_DEVICE static void filter(const Params& p, int i, int o, int source, uint32_t at, uint32_t step,
                                   float (&sum)[8]) {
    const int first = first_source(p, i, o);
    const int tap = first * p.up[i] - (o * p.down[i] - p.padding[i]);
    at += (first - source) * step;
    for (int t = tap; t < p.length[i]; t += p.up[i], at += step) {
      const float f = p.taps[i].data == nullptr ? 1.f : load_companion(p.taps[i], p.length[i] - 1 - t);
      const Float4 low = shared_load<Float4>(at), high = shared_load<Float4>(at + 16);
      sum[0] = fused_multiply_add(f, low.x, sum[0]);
      sum[1] = fused_multiply_add(f, low.y, sum[1]);
      sum[2] = fused_multiply_add(f, low.z, sum[2]);
      sum[3] = fused_multiply_add(f, low.w, sum[3]);
      sum[4] = fused_multiply_add(f, high.x, sum[4]);
      sum[5] = fused_multiply_add(f, high.y, sum[5]);
      sum[6] = fused_multiply_add(f, high.z, sum[6]);
      sum[7] = fused_multiply_add(f, high.w, sum[7]);
    }
  }

  // Stores 8 floats to shared memory.
  SSCONV_DEVICE static void put(uint32_t at, const float (&v)[8]) {
    shared_store(at, Float4{v[0], v[1], v[2], v[3]});
    shared_store(at + 16, Float4{v[4], v[5], v[6], v[7]});
  }
};

}  // namespace ssconv
