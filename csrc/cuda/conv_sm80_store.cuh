// Store: the epilogue of the sm_80 convolution, from accumulators to y, and to z where it is kept.
#pragma once

#include "channel_epilogue.cuh"
#include "conv_sm80_tile.cuh"

namespace ssconv {

template <class Config>
struct ConvSm80Store {
  using Params = typename Config::Params;
  using T = typename Config::T;
  using Tile = ConvSm80Tile<Config>;
  using Output = ConvSm80Output<Config>;
  static constexpr int S = Config::BRANCHES, MI = Config::MI, NI = Config::NI, BN = Config::BN, RUN = Config::RUN;

  // Stores the tile's branches that have weights. The packed weights' columns are permuted such that a thread's
  // accumulators are RUN consecutive channels of each branch: with the shuffle over S branches, S * RUN consecutive
  // ones.
  SSCONV_DEVICE static void store_tile(const Params& p, const Tile& tile,
                                       const typename Config::Accumulators& accumulators) {
    const int first = first_column(tile);
    const int count = p.out_channels - first;  // columns that exist, if less than RUN
    if (count <= 0) return;
    const int channels = p.branches * p.out_channels;
    if (S > 1 && p.shuffle) {
      ChannelEpilogue<S * RUN> epilogue(p.epilogue, channels, first * S, 1, count * S);
      for_each_output(p, tile, [&](int i, int half, const Output& out) {
        const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
        float run[S * RUN];
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float values[RUN];
          const int own = p.branch[tile.first_branch + s].number * p.out_channels + first;
          take_channels(p, accumulators[s][i], half, begin + own, count, values);
#pragma unroll
          for (int c = 0; c < RUN; ++c) run[c * S + s] = values[c];
        }
        epilogue.apply(run, out.n, out.voxel);
        store_run<T, S * RUN>(static_cast<T*>(p.y) + begin + first * S, run, count * S);
      });
      return;
    }
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int number = p.branch[tile.first_branch + s].number;
      const int own = number * p.out_channels + first;  // in branch order
      const int step = p.shuffle ? p.branches : 1;      // from one of the branch's channels to the next, in y
      const int channel = p.shuffle ? first * p.branches + number : own;
      ChannelEpilogue<RUN> epilogue(p.epilogue, channels, channel, step, count);
      for_each_output(p, tile, [&](int i, int half, const Output& out) {
        const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
        float values[RUN];
        take_channels(p, accumulators[s][i], half, begin + own, count, values);
        epilogue.apply(values, out.n, out.voxel);
        T* const y = static_cast<T*>(p.y) + begin + channel;
        if (step == 1) {
          store_run<T, RUN>(y, values, count);
        } else {
#pragma unroll
          for (int c = 0; c < RUN; ++c)
            if (c < count) store(y + c * step, from_float<T>(values[c]));
        }
      });
    }
  }

  // Stores an identity branch: x's channels through the epilogue. Overwrites what `store_tile` of the same thread
  // stored.
  SSCONV_DEVICE static void store_identity(const Params& p, const Tile& tile, const Branch& b) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int first = first_column(tile);
    const int channels = p.branches * p.out_channels;
#pragma unroll 1
    for (int i = 0; i < 2 * MI * RUN; ++i) {
      const int column = first + i % RUN;
      const Output out(p, tile, warp / 2 * 64 + i / RUN * 8 + lane / 4);
      if (!out.exists || column >= p.out_channels) continue;
      const int64_t channel = static_cast<int64_t>(b.number) * p.in_channels + column;
      int64_t at = out.n * p.x.stride[0] + channel * p.x.stride[1];
      bool valid = true;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int d = out.q[j] + taps_of(0, 1, p.geometry.first[j], 1, p.geometry.adjoint).shift;
        valid = valid && inside(d, p.x.size[1 + j]);
        at += d * p.x.stride[2 + j];
      }
      float value[1] = {valid ? to_float(load(static_cast<const T*>(p.x.data) + at)) : 0.f};
      if (p.in_scale != nullptr) value[0] *= load(p.in_scale + out.n * p.branches * p.in_channels + channel);
      const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
      const int own = b.number * p.out_channels + column, shuffled = column * p.branches + b.number;
      if (p.z != nullptr) store(static_cast<T*>(p.z) + begin + own, from_float<T>(value[0]));
      ChannelEpilogue<1>(p.epilogue, channels, p.shuffle ? shuffled : own, 1, 1).apply(value, out.n, out.voxel);
      store(static_cast<T*>(p.y) + begin + (p.shuffle ? shuffled : own), from_float<T>(value[0]));
    }
  }

 private:
  // This thread's first column among the branch's output channels.
  SSCONV_DEVICE static int first_column(const Tile& tile) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    return tile.n_tile * BN + warp % 2 * (BN / 2) + lane % 4 * RUN;
  }

  SSCONV_DEVICE static int64_t voxels(const Params& p) {
    return static_cast<int64_t>(p.size[0]) * p.size[1] * p.size[2];
  }

  // Calls body(i, half, output) for each row of this thread's accumulators: of mma tile i, the upper or lower half.
  template <class Body>
  SSCONV_DEVICE static void for_each_output(const Params& p, const Tile& tile, Body body) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Output out(p, tile, warp / 2 * 64 + 16 * i + 8 * half + lane / 4);
        if (out.exists) body(i, half, out);
      }
    }
  }

  // Takes one row's channels of one branch from the accumulators, and stores them to z (from `to` on) where it is kept.
  SSCONV_DEVICE static void take_channels(const Params& p, const float (&accumulators)[NI][4], int half, int64_t to,
                                          int count, float (&values)[RUN]) {
#pragma unroll
    for (int c = 0; c < RUN; ++c) values[c] = accumulators[c / 2][2 * half + c % 2];
    if (p.z != nullptr) store_run<T, RUN>(static_cast<T*>(p.z) + to, values, count);
  }
};

}  // namespace ssconv
