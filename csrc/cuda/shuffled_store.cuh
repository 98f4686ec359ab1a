// The epilogue of the sm_90a convolutions: from wgmma's accumulators to shuffled channels of y.
//
// A warp group holds MI matrices of 64 outputs by BN columns (output channels) of each of S branches. The packed
// weights' columns are permuted such that a thread's accumulators are RUN consecutive columns: the channel shuffle
// interleaves those of S branches to 8 consecutive channels, one store of 16 bytes, and four lanes store 64 consecutive
// bytes. The branches are computed one after the other in the same accumulators; the rounded outputs of the first ones
// wait in registers.
#pragma once

#include "channel_epilogue.cuh"
#include "chunks.cuh"

namespace ssconv {

template <class T, int S, int BN, int MI>
struct ShuffledStore {
  static constexpr int RUN = 8 / S;
  static constexpr int GROUPS = BN / (4 * RUN);  // groups of 4 RUN columns
  static_assert(GROUPS >= 1, "whole runs");

  // A thread's accumulators of one branch, 2 MI rows; and the outputs of all branches, two to a word.
  using Accumulators = float[MI][BN / 2];
  using Outputs = uint32_t[S][GROUPS][2 * MI][RUN / 2];

  // Applies the epilogue to branch s of the tile; with the last branch, stores all branches' outputs.
  // locate(row, n, voxel): the position of a row's output, one of `voxels` of sample n; false where there is none.
  // select(accumulator): the accumulator's value, or 0.
  template <class Params, class Tile, class Locate, class Select>
  SSCONV_DEVICE static void run(const Params& p, const Tile& tile, int s, int64_t voxels,
                                const Accumulators& accumulators, Outputs& outputs, const Locate& locate,
                                const Select& select) {
    const int channels = p.branches * p.out_channels;
    const int branch_channel = p.mapped[tile.first_branch + s].number * p.out_channels;  // its first, in branch order
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      const int column = tile.n_tile * BN + g * 4 * RUN + thread_index() % 4 * RUN;
      const int count = p.out_channels - column;  // columns that exist, if less than RUN
      if (count <= 0) continue;
      const int channel = S > 1 ? column * S : branch_channel + column;
      ChannelEpilogue<RUN> epilogue(p.epilogue, channels, channel + s, S, count);
#pragma unroll
      for (int row = 0; row < 2 * MI; ++row) {
        uint32_t n, voxel;
        if (!locate(row, n, voxel)) continue;
        const int64_t begin = (static_cast<int64_t>(n) * voxels + voxel) * channels;
        float values[RUN];
#pragma unroll
        for (int c = 0; c < RUN; ++c)
          values[c] = select(accumulators[row / 2][(g * RUN / 2 + c / 2) * 4 + 2 * (row % 2) + c % 2]);
        if (p.z != nullptr) store_run<T, RUN>(static_cast<T*>(p.z) + begin + branch_channel + column, values, count);
        epilogue.apply(values, n, voxel);
#pragma unroll
        for (int i = 0; i < RUN / 2; ++i) outputs[s][g][row][i] = pack_word<T>(values + 2 * i);
        if (s == S - 1) store_channels(outputs, g, row, static_cast<T*>(p.y) + begin + channel, count * S);
      }
    }
  }

  // Interleaves the branches' outputs of one row to 8 channels, and stores the first `count`.
  SSCONV_DEVICE static void store_channels(const Outputs& outputs, int g, int row, T* y, int count) {
    uint16_t channel[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) channel[i] = outputs[i % S][g][row][i / S / 2] >> 16 * (i / S % 2);
    if (count >= 8 && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
      Bytes16 chunk;
#pragma unroll
      for (int i = 0; i < 4; ++i) chunk.word[i] = channel[2 * i] | uint32_t(channel[2 * i + 1]) << 16;
      store(reinterpret_cast<Bytes16*>(y), chunk);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (i < count) store(y + i, T{channel[i]});
    }
  }
};

}  // namespace ssconv
