// What the host tells the kernels. Sizes are counts, strides are in elements. A tensor (N, S*C, D, H, W) has S branches
// of C channels; "branch order" puts branch s's channel j at s*C + j, the shuffle at j*S + s.
#pragma once

#include <cstdint>

namespace ssconv {

struct Grid {
  uint32_t x, y, z;
};

enum class Format : int { f32 = 0, bf16 = 1, f16 = 2 };

// Division of n < 2^31 by a constant: (n * multiplier / 2^32 + n) >> shift.
struct Divider {
  uint32_t divisor, multiplier, shift;
};

// Noise and taps: contiguous, in a format of their own; null where there is none.
struct Companion {
  const void* data;
  Format format;
};

struct Volume {
  const void* data;
  int64_t stride[5];  // n, c, d, h, w
  int size[4];        // n, d, h, w
};

constexpr int FUSED = 4;      // the most branches that one block computes
constexpr int BRANCHES = 16;  // the most that one launch serves
constexpr int PARITIES = 8;

struct Branch {
  int extent[3];            // (0, 0, 0): the identity; (-1, -1, -1): nothing
  int number;               // of the branch among all
  int64_t start[PARITIES];  // where its packed weights begin, in chunks of 16 bytes
};

// Along one dimension, for outputs of one parity: how many taps reach them, the first, the first one's displacement. The
// next taps are `stride` further in the adjoint (displacement one less), else one (one more).
struct Taps {
  int count, first, shift;
};

struct Geometry {
  int first[3];   // input position of the first window centre
  int stride[3];  // of the convolution, 1 or 2
  int adjoint;    // its transpose
};

struct Epilogue {
  const float *scale, *bias;  // (N, S*C), (S*C,); null where there is none
  Companion noise;
  int64_t noise_stride;  // from sample to sample; 0 where they share it
  float slope, gain, clamp;
  int clamped;
};

// y = epilogue of the branches' convolutions of x, or of the adjoints.
struct ConvSm80Params {
  Volume x;
  const float* in_scale; // (N, S*C); only where x is read by elements
  const void* weights;   // packed
  void *y, *z;           // channels_last_3d; z, before the epilogue and in branch order, may be null
  int size[3];           // of y: d, h, w
  int in_channels;       // of a branch, as x is read (with what it is padded by)
  int out_channels;      // of a branch
  int branches;          // all of them
  int shuffle;
  Geometry geometry;
  Epilogue epilogue;
  int box_bits[4];       // the block's voxels: a box of powers of two (n, d, h, w)
  Divider boxes[3];      // along d, h, w
  Divider column_blocks;
  int stages;
  int cached;            // x is copied through the L1 cache, where the next taps find most of it
  Branch branch[BRANCHES];
};

// A CUtensorMap.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// As ConvSm80Params, for sm_90a: x comes through tensor maps, one of each branch's channels. Every branch has weights. The
// adjoint of a stride is as many problems as outputs have parities: each reads x at taps of its own, all through the same
// maps, and writes every other voxel. They have equally many outputs, of which some may lie outside.
struct ConvSm90Params {
  TensorMap map[FUSED];
  Volume x;
  const void* weights;   // packed and swizzled, K per tap padded to whole boxes
  void *y, *z;
  int size[3];           // of y: d, h, w
  uint32_t outputs;      // of a parity, all samples
  int channels;          // of a branch, in x
  int box_channels;      // of a bulk copy: 16, 32 or 64
  int padded_channels;   // of a tap in K
  int out_channels;      // of a branch
  int branches;          // all of them
  Geometry geometry;
  Epilogue epilogue;
  Divider column_blocks, tiles, voxels, d, h, w;  // tiles: of a cluster; voxels: of a sample of y; d, h, w: outputs of a parity
  uint32_t slots;        // tiles of all column blocks and branches that are computed apart, of a parity
  uint32_t work;         // the same of all parities
  int cluster;           // blocks that share weights: 1 or 2
  uint32_t slices[4];    // where in a stage's inputs the 16 of K after one another begin, bytes
  int pace[3];           // input positions from an output to the next
  int parities;
  int parity[PARITIES][3];  // the one with most taps first
  int parts;
  // The taps of one parity: how many, three zeros if none; the first one's displacement from the map's base position. The
  // next are one further, in the adjoint one less.
  struct Reach {
    int count[3], shift[3];
    int64_t start;       // of its packed weights, in chunks of 16 bytes
  };
  struct Part {
    int extent[3], number;
    int64_t start[PARITIES];  // as packed: parities in the order of their number
    int lower[3];             // base position of the first output
    Reach reach[PARITIES];    // in the order of `parity`
  } part[FUSED];
};

struct PackWeightsParams {
  const void* weight[BRANCHES];
  int64_t stride[BRANCHES][5];  // the product's output channel, its input channel, kd, kh, kw
  Branch branch[BRANCHES];
  void* packed;
  int in_channels;       // real
  int padded_channels;   // as the product reads x
  int out_channels;
  int columns;           // of a block, per branch
  int run;               // columns that a lane owns side by side
  int swizzled;          // rows of 128 bytes as wgmma reads them; above 1: and K in chunks of that many channels
  Geometry geometry;
};

// out (N * voxels, S * padded): x * scale, channels side by side, zeros beyond a branch's channels.
struct PackInputParams {
  Volume x;
  const float* scale;
  void* out;
  int channels, padded;  // of a branch
  int branches;
  int voxels_first;      // neighbouring threads take neighbouring voxels, not channels
  int64_t voxels;        // of all samples
  Divider d, h, w;
};

// workspace (splits, tiles, BM, 128) of partial sums over voxels p of low[p, row] * high[p*stride + shift, column].
struct WgradSm80Params {
  Volume low, high;      // channels side by side, 16-byte aligned
  int low_channels, high_channels;  // of a branch, padded to chunks
  float* workspace;
  Geometry geometry;
  int branches;
  int row_blocks;
  uint32_t voxels;       // of low, all samples
  int steps, steps_per_split;
  Divider d, h, w;       // of low's voxels
  int stages;
  struct Part {
    int extent[3], number;
    int first_tile;      // column tiles of the branches before
  } part[BRANCHES + 1];  // one more: the number of all column tiles
};

// As WgradSm80Params, for sm_90a: low and high come through tensor maps, one of each branch's channels. Columns are a branch's
// taps times the boxes of high's channels, as one line. workspace (splits, tiles, rows of a block, 128).
struct WgradSm90Params {
  TensorMap low_map[FUSED], high_map[FUSED];
  Volume low, high;
  float* workspace;
  Geometry geometry;
  int low_channels, high_channels;  // of a branch
  int low_box, high_box;            // channels of a bulk copy: 16, 32 or 64
  int boxes;                        // of high's channels, of a tap
  int row_blocks;
  int steps, steps_per_split;       // of 64 voxels of low, all samples
  Divider d, h, w;                  // of low's voxels
  int parts;
  struct Part {
    int extent[3], number;
    int lower[3];                   // of high, of the first window's first tap
    int first_tile;                 // tiles of 128 columns of the branches before
  } part[FUSED];
};

struct WgradReduceParams {
  const float* workspace;
  float* out[BRANCHES];  // (Cout/S, Cin/S, taps) of each branch
  int taps[BRANCHES];
  int first_tile[BRANCHES + 1];
  int branches;
  int splits;
  int row_blocks, block_rows;
  int rows, columns;     // real channels of low and high
  int chunk, chunks;     // channels of a chunk, chunks of a tap
  int transposed;        // low's channels are the weight's input channels
};

// One pass over a tensor in branch order.
struct EpilogueParams {
  Volume z;
  void* y;
  Epilogue epilogue;
  int channels, groups;
  int threads;               // per voxel
  Divider blocks, d, h, w;   // blocks: of a sample
};

struct EpilogueBackwardParams {
  Volume gy, y, z;       // z.data may be null
  void* gz;
  const float* scale;
  float *bias_sums, *scale_sums;  // (N, blocks, C), or null
  float* noise_sums;              // (N, voxels), or null
  float slope, gain, clamp;
  int clamped;
  int channels, groups;
  int lanes;             // threads that share a voxel, a power of two up to 32
  int voxels_per_block;
  Divider blocks, d, h, w;
};

struct UpfirdnParams {
  Volume x;
  void* y;               // channels_last_3d
  int size[3];           // of y
  int channels;
  Companion taps[3];
  int length[3], up[3], down[3], padding[3];
  int tile[3];           // voxels of y per block
  int source[3];         // voxels of x that a tile needs
  int width;             // channels of a block, a multiple of 8
  Divider blocks[4];     // of channels, then along w, h, d
};

}  // namespace ssconv
