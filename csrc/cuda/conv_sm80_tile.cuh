// The tiles of the sm_80 convolution: their sizes, and which outputs a block computes.
#pragma once

#include "chunks.cuh"

namespace ssconv {

// The kernel's compile-time numbers. GEMM terms: M is output voxels, N output channels, K taps times input channels.
template <class A, int S, int WIDTH, bool ELEMENTS>
struct ConvSm80Config {
  using Arithmetic = A;
  using T = typename A::Element;
  using Params = ConvSm80Params;
  static constexpr int BRANCHES = S;              // that a block computes
  static constexpr bool BY_ELEMENTS = ELEMENTS;   // x is read element by element, not in chunks
  static constexpr int THREADS = 128;             // 2 x 2 warps along M and N
  static constexpr int BM = 128;                  // tile M
  static constexpr int BN = WIDTH / S;            // tile N, of each branch
  static constexpr int CHUNKS = 8;                // chunks of 16 bytes in tile K
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int BK = CHUNKS * SIZE;        // tile K
  static constexpr int MI = 4, NI = BN / 16;      // a warp's mma tiles of 16 rows, and of 8 columns
  static constexpr int RUN = 2 * NI;              // consecutive columns that a thread holds
  static constexpr int A_BYTES = BM * CHUNKS * 16, B_BYTES = BN * CHUNKS * 16;
  static constexpr int STAGE = A_BYTES + B_BYTES;
  static_assert(NI >= 1, "a warp has at least one mma tile of columns");

  using Accumulators = float[S][MI][NI][4];

  // K of one branch for outputs of one parity, in tiles of BK.
  SSCONV_DEVICE static int k_tiles(const Params& p, const Branch& b, const int (&parity)[3], Taps (&taps)[3]) {
#pragma unroll
    for (int i = 0; i < 3; ++i)
      taps[i] = taps_of(parity[i], b.extent[i] > 0 ? b.extent[i] : 1, p.geometry.first[i], p.geometry.stride[i],
                        p.geometry.adjoint);
    if (b.extent[0] <= 0) return 0;
    return (taps[0].count * taps[1].count * taps[2].count * p.in_channels + BK - 1) / BK;
  }
};

// The block's output tile: a box of 128 voxels of one parity by BN columns of each of its branches.
template <class Config>
struct ConvSm80Tile {
  using Params = ConvSm80Params;
  int n_tile, first_branch, last_branch;
  int parity[3], parity_number;
  int origin[4];  // the box's first voxel: n, d, h, w, counted in outputs of this parity

  SSCONV_DEVICE explicit ConvSm80Tile(const Params& p) {
    uint32_t box = block_x();
    n_tile = divmod(p.n_tiles, box);
    origin[3] = divmod(p.m_tiles[2], box) << p.box_bits[3];
    origin[2] = divmod(p.m_tiles[1], box) << p.box_bits[2];
    origin[1] = divmod(p.m_tiles[0], box) << p.box_bits[1];
    origin[0] = box << p.box_bits[0];
    parity_number = block_y();
    uint32_t rest = block_y();
#pragma unroll
    for (int i = 2; i >= 0; --i) {
      const int parities = p.geometry.adjoint ? p.geometry.stride[i] : 1;
      parity[i] = parities == 2 ? rest & 1 : 0;
      rest = parities == 2 ? rest >> 1 : rest;
    }
    first_branch = Config::BRANCHES == 1 ? block_z() : 0;
    last_branch = first_branch + Config::BRANCHES;
  }

  // The coordinates (n, d, h, w) of the tile's row relative to its origin.
  SSCONV_DEVICE static void row_coordinates(const Params& p, int row, int (&at)[4]) {
#pragma unroll
    for (int i = 3; i > 0; --i) {
      at[i] = row & ((1 << p.box_bits[i]) - 1);
      row >>= p.box_bits[i];
    }
    at[0] = row;
  }
};

// The output of one row of a tile.
template <class Config>
struct ConvSm80Output {
  int64_t n, voxel;  // sample; position in y's (d, h, w)
  int q[3];          // coordinates among the outputs of this parity
  bool exists;

  SSCONV_DEVICE ConvSm80Output(const ConvSm80Params& p, const ConvSm80Tile<Config>& tile, int row) {
    int at[4], out[3];
    tile.row_coordinates(p, row, at);
    n = tile.origin[0] + at[0];
    exists = n < p.x.size[0];
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      q[j] = tile.origin[1 + j] + at[1 + j];
      out[j] = p.geometry.adjoint ? q[j] * p.geometry.stride[j] + tile.parity[j] : q[j];
      exists = exists && out[j] < p.size[j];
    }
    voxel = (static_cast<int64_t>(out[0]) * p.size[1] + out[1]) * p.size[2] + out[2];
  }
};

}  // namespace ssconv
