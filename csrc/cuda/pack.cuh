// Packs weights into the order in which the convolutions read them, and inputs into a layout that they can read.
#pragma once

#include "chunks.cuh"

namespace ssconv {

// Packs weights: per parity of the outputs and branch, [block of columns][K tile][column][8 chunks], with zeros where
// there is no weight. Element e of K is channel e % padded_channels of tap e / padded_channels, among the taps that
// reach the parity. For conv_sm90_halo K is cut further: it is that for one chunk of channels after the other, each in
// whole K tiles. The columns are permuted such that a thread's accumulators are `run` consecutive output channels.
template <class A>
struct PackWeights {
  using T = typename A::Element;
  using Params = PackWeightsParams;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int SIZE = Chunk<T>::SIZE, CHUNKS = 8, BK = SIZE * CHUNKS;

  static const char* name() { return "pack_weights"; }

  SSCONV_DEVICE static void run(const Params& p) {
    const Branch& b = p.branch[block_y()];
    if (b.extent[0] <= 0) return;
    Taps taps[3];
    uint32_t parity = block_z();
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      const int parities = p.geometry.adjoint ? p.geometry.stride[i] : 1;
      taps[i] = taps_of(parities == 2 ? parity & 1 : 0, b.extent[i], p.geometry.first[i], p.geometry.stride[i],
                        p.geometry.adjoint);
      parity = parities == 2 ? parity >> 1 : parity;
    }
    const int count = taps[0].count * taps[1].count * taps[2].count;
    const int chunk_channels = p.swizzled > 1 ? p.swizzled : p.padded_channels;
    const int chunk_tiles = (count * chunk_channels + BK - 1) / BK;  // K tiles of a chunk of channels
    const int k_tiles = chunk_tiles * (p.padded_channels / chunk_channels);
    const int blocks = (p.out_channels + p.tile_n - 1) / p.tile_n;
    const int64_t total = static_cast<int64_t>(blocks) * k_tiles * p.tile_n * CHUNKS;
    const int64_t* const stride = p.stride[block_y()];
    const T* const weight = static_cast<const T*>(p.weight[block_y()]);
    Bytes16* const packed = static_cast<Bytes16*>(p.packed) + b.start[block_z()];
    for (int64_t j = int64_t(block_x()) * THREADS + thread_index(); j < total; j += int64_t(blocks_x()) * THREADS) {
      const int packed_column = j / CHUNKS % p.tile_n;
      const int chunk = j % CHUNKS ^ (p.swizzled ? packed_column % 8 : 0);
      const int k_tile = j / CHUNKS / p.tile_n % k_tiles;
      const int block = j / CHUNKS / p.tile_n / k_tiles;
      const int column = block * p.tile_n + source_column(p, packed_column);
      float values[SIZE];
#pragma unroll
      for (int i = 0; i < SIZE; ++i) {
        const int k = (k_tile % chunk_tiles * CHUNKS + chunk) * SIZE + i;
        const int channel = k_tile / chunk_tiles * chunk_channels + k % chunk_channels, tap = k / chunk_channels;
        values[i] = 0;
        if (tap < count && channel < p.in_channels && column < p.out_channels)
          values[i] = load_weight(p, weight, stride, taps, tap, channel, column);
      }
      store(packed + j, pack<T>(values));
    }
  }

  // The output channel that a packed column holds, both counted within the block: wgmma and mma give a lane columns 8 i
  // + 2 lane + {0, 1}, which shall be its `run` consecutive channels.
  SSCONV_DEVICE static int source_column(const Params& p, int packed_column) {
    const int half = 4 * p.lane_columns, in_half = packed_column % half;
    const int lane = in_half % 8 / 2, within = in_half / 8 * 2 + in_half % 2;
    return packed_column / half * half + lane * p.lane_columns + within;
  }

  // `tap` counts those that reach the parity.
  SSCONV_DEVICE static float load_weight(const Params& p, const T* weight, const int64_t* stride, const Taps (&taps)[3],
                                         int tap, int channel, int column) {
    const int step_d = p.geometry.adjoint ? p.geometry.stride[0] : 1;
    const int step_h = p.geometry.adjoint ? p.geometry.stride[1] : 1;
    const int step_w = p.geometry.adjoint ? p.geometry.stride[2] : 1;
    const int d = taps[0].first + tap / taps[2].count / taps[1].count * step_d;
    const int h = taps[1].first + tap / taps[2].count % taps[1].count * step_h;
    const int w = taps[2].first + tap % taps[2].count * step_w;
    const int64_t at = column * stride[0] + channel * stride[1] + d * stride[2] + h * stride[3] + w * stride[4];
    const float value = to_float(load(weight + at));
    if (sizeof(T) == 4 && A::TENSOR_CORES) return float_of(round_tf32(bits_of(value)));
    return value;
  }
};

// Copies x with contiguous channels, scaled, each branch's channels padded with zeros: a thread writes one chunk.
template <class T>
struct PackInput {
  using Params = PackInputParams;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;

  static const char* name() { return "pack_input"; }

  SSCONV_DEVICE static void run(const Params& p) {
    constexpr int SIZE = Chunk<T>::SIZE;
    const int chunks = p.branches * p.padded_channels / SIZE;  // of a voxel
    const int64_t i = int64_t(block_x()) * THREADS + thread_index();
    if (i >= p.voxels * chunks) return;
    const int64_t voxel = p.voxels_first ? i % p.voxels : i / chunks;  // of all samples
    const int chunk = static_cast<int>(p.voxels_first ? i / p.voxels : i % chunks);
    const int branch = chunk * SIZE / p.padded_channels, first = chunk * SIZE - branch * p.padded_channels;
    uint32_t rest = static_cast<uint32_t>(voxel);
    const int64_t w = divmod(p.w, rest), h = divmod(p.h, rest), d = divmod(p.d, rest), n = rest;
    const int64_t channel = static_cast<int64_t>(branch) * p.channels + first;
    const T* const x = static_cast<const T*>(p.x.data) + n * p.x.stride[0] + channel * p.x.stride[1] +
                       d * p.x.stride[2] + h * p.x.stride[3] + w * p.x.stride[4];
    float values[SIZE];
    if (p.x.stride[1] == 1 && first + SIZE <= p.channels && reinterpret_cast<uintptr_t>(x) % 16 == 0) {
      unpack(T{}, load(reinterpret_cast<const Bytes16*>(x)), values);
    } else {
#pragma unroll
      for (int j = 0; j < SIZE; ++j) values[j] = first + j < p.channels ? to_float(load(x + j * p.x.stride[1])) : 0.f;
    }
    if (p.scale != nullptr) {
#pragma unroll
      for (int j = 0; j < SIZE; ++j)
        if (first + j < p.channels) values[j] *= load(p.scale + n * p.branches * p.channels + channel + j);
    }
    store(static_cast<Bytes16*>(p.out) + voxel * chunks + chunk, pack<T>(values));
  }
};

}  // namespace ssconv
