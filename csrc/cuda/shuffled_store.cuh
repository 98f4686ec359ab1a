// From wgmma's sums to channels of y, for sm_90a's products.
//
// A block's warpgroup has MI matrices of 64 outputs by BN columns of each of S branches. The packed weights' columns are
// permuted such that a lane's sums are RUN columns side by side: the shuffle interleaves those of S branches to 8
// channels, one store of 16 bytes, and four lanes 64 bytes side by side. The branches come one after the other; what is
// finished of them waits in registers, rounded, for the last.
#pragma once

#include "ptx/sm90.cuh"
#include "common.cuh"

namespace ssconv {

template <class T, int S, int BN, int MI>
struct ShuffledOutputs {
  static constexpr int RUN = 8 / S;
  static constexpr int GROUPS = BN / (4 * RUN);  // of columns, 4 RUN each
  static_assert(GROUPS >= 1, "whole runs");

  // One branch's sums of this thread's 2 MI rows, and the other branches' finished outputs, two to a word.
  using Sums = float[MI][BN / 2];
  using Finished = uint32_t[S][GROUPS][2 * MI][RUN / 2];

  // Finishes branch s of the tile; the last one's outputs are stored with those of the branches before.
  // place(row, n, voxel): where a row's output lies among `voxels` of sample n, false where there is none.
  // value(sum): what counts of a sum.
  template <class Params, class Tile, class Place, class Value>
  SSCONV_DEVICE static void finish(const Params& p, const Tile& tile, int s, int64_t voxels, const Sums& sums,
                                   Finished& finished, const Place& place, const Value& value) {
    const int channels = p.branches * p.out_channels;
    const int in_branches = p.part[tile.first_branch + s].number * p.out_channels;  // the branch's first channel there
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const int first = tile.column_block * BN + g * 4 * RUN + thread_index() % 4 * RUN;
      const int count = p.out_channels - first;  // columns that there are, if less than RUN
      if (count <= 0) continue;
      const int channel = S > 1 ? first * S : in_branches + first;
      Finisher<RUN> finisher(p.epilogue, channels, channel + s, S, count);
#pragma unroll
      for (int row = 0; row < 2 * MI; ++row) {
        uint32_t n, voxel;
        if (!place(row, n, voxel)) continue;
        const int64_t begin = (static_cast<int64_t>(n) * voxels + voxel) * channels;
        float own[RUN];
#pragma unroll
        for (int c = 0; c < RUN; ++c)
          own[c] = value(sums[row / 2][(g * RUN / 2 + c / 2) * 4 + 2 * (row % 2) + c % 2]);
        if (p.z != nullptr) store_run<T, RUN>(static_cast<T*>(p.z) + begin + in_branches + first, own, count);
        finisher.finish(own, n, voxel);
#pragma unroll
        for (int i = 0; i < RUN / 2; ++i) finished[s][g][row][i] = pack_word<T>(own + 2 * i);
        if (s == S - 1) store(finished, g, row, static_cast<T*>(p.y) + begin + channel, count * S);
      }
    }
  }

  // A run of 8 channels to y, of which the first `count` are wanted.
  SSCONV_DEVICE static void store(const Finished& finished, int g, int row, T* y, int count) {
    uint16_t channel[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) channel[i] = finished[i % S][g][row][i / S / 2] >> 16 * (i / S % 2);
    if (count >= 8 && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
      Bits16 all;
#pragma unroll
      for (int i = 0; i < 4; ++i) all.word[i] = channel[2 * i] | uint32_t(channel[2 * i + 1]) << 16;
      ssconv::store(reinterpret_cast<Bits16*>(y), all);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) ssconv::store(y + i, T{channel[i]});
    }
  }
};

}  // namespace ssconv
