// What the host tells the kernels. ssconv/backend/cuda/structs.py has the same structs field by field and fills them;
// layout.h lists their fields, and a test compares sizes and offsets.
//
// Sizes are counts, strides are in elements. A tensor (N, S*C, D, H, W) has S branches of C channels; "branch order"
// puts branch s's channel j at s*C + j, the shuffle at j*S + s.
//
// Every call's struct begins with the grid and the arithmetic (or format) of the launch, then what chooses the kernel's
// template arguments. Where a launch adds tensor maps and tables to what the host told, the kernel takes a struct that
// is derived from the call's.
#pragma once

#include <cstdint>

namespace ssconv {

struct Grid {
  uint32_t x, y, z;
};

// How elements are stored and multiplied: float32 as TF32, or exactly (ieee).
enum class Arithmetic : int { bf16 = 0, f16 = 1, tf32 = 2, ieee = 3 };

enum class Format : int { f32 = 0, bf16 = 1, f16 = 2 };

// Division of n < 2^31 by a constant: (n * multiplier / 2^32 + n) >> shift.
struct Divider {
  uint32_t divisor, multiplier, shift;
};

// Noise or taps: contiguous, in a format of their own; null where there is none.
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
  int extent[3];            // of its kernel; (0, 0, 0): the identity; (-1, -1, -1): no output
  int number;               // of the branch among all
  int64_t start[PARITIES];  // where its packed weights begin for outputs of each parity, in chunks of 16 bytes
};

// Along one dimension, for outputs of one parity: how many taps reach them, the first, the first one's displacement.
// The next taps are `stride` further in the adjoint (displacement one less), else one (one more).
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
  Grid grid;
  Arithmetic arithmetic;
  int fused;             // branches that a block computes
  int block_n;           // columns (output channels) of a block, all its branches together
  int elementwise;       // x is read element by element, not in chunks of 16 bytes
  int stages;            // of the pipeline in shared memory, 2 to 4
  int cached;            // x is copied through the L1 cache, where the next taps find most of it
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
  Divider m_tiles[3];    // boxes along d, h, w
  Divider n_tiles;       // of columns
  Branch branch[BRANCHES];
};

// A CUtensorMap.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// As ConvSm80Params, for sm_90a. Every branch has weights.
struct ConvSm90Call {
  Grid grid;
  Arithmetic arithmetic;  // bf16 or f16
  int fused;              // branches that a block computes
  int tile_n;             // columns (output channels) of each branch of a block
  int cluster;            // blocks that share weights: 1 or 2
  Volume x;
  const void* weights;    // packed and swizzled, K per tap padded to whole boxes
  void *y, *z;
  int size[3];            // of y: d, h, w
  int channels;           // of a branch, in x
  int box_channels;       // of a bulk copy: 16, 32 or 64
  int padded_channels;    // of a tap in K
  int out_channels;       // of a branch
  int branches;           // all of them
  Geometry geometry;
  Epilogue epilogue;
  uint32_t outputs;       // of a parity, all samples
  uint32_t slots;         // tiles of a parity: of all columns and of the branches that blocks do not compute together
  uint32_t work;          // tiles of all parities
  Divider n_tiles, m_tiles;  // m_tiles: of a cluster
  Divider voxels, d, h, w;   // of a sample of y; of a parity's outputs, along a dimension
  Branch branch[FUSED];
};

// x comes through tensor maps, one of each branch's channels. The adjoint of a stride is as many problems as outputs
// have parities: each reads x at taps of its own, all through the same maps, and writes every other voxel. They have
// equally many outputs, of which some may lie outside.
struct ConvSm90Params : ConvSm90Call {
  TensorMap map[FUSED];
  uint32_t slices[4];       // where in a stage's inputs the 16 of K after one another begin, bytes
  int input_stride[3];      // input positions from an output to the next
  int parities;
  int parity[PARITIES][3];  // the one with most taps first
  // The taps of one parity: how many, three zeros if none; the first one's displacement from the map's base position.
  // The displacement of the next is one more, in the adjoint one less.
  struct ParityTaps {
    int count[3], shift[3];
    int64_t start;            // of its packed weights, in chunks of 16 bytes
  };
  struct MappedBranch {
    int number;                 // of the branch among all
    int lower[3];               // base position of the first output
    ParityTaps taps[PARITIES];  // in the order of `parity`
  } mapped[FUSED];
};

constexpr int MATRICES = 8;    // of 64 outputs, the most of a tile
constexpr int HALO_TAPS = 27;  // the most of a branch

// As ConvSm90Call, for the kernel that keeps its input with its halo in shared memory. Strides are 1.
struct ConvSm90HaloCall {
  Grid grid;
  Arithmetic arithmetic;  // bf16 or f16
  int fused;              // branches that a block computes
  int tile_n;             // columns (output channels) of each branch of a block
  Volume x;
  const void* weights;    // packed and swizzled; K is chunk after chunk of channels, in each tap after tap
  void *y, *z;
  int size[3];            // of y: d, h, w
  int channels;           // of a branch, in x
  int chunk_channels;     // of a branch that are in shared memory at a time: 16, 32 or 64
  int swizzled;           // a pixel's channels lie in one swizzled row, else in planes of 8 channels of all pixels
  int out_channels;       // of a branch
  int branches;           // all of them
  Geometry geometry;
  Epilogue epilogue;
  int tile[3];            // outputs of a tile, d, h, w; h and w in eights
  uint32_t work;          // tiles, of all columns and of the branches that blocks do not compute together
  Divider n_tiles, m_tiles, d, h, w;  // m_tiles: of all samples; d, h, w: along a dimension
  Branch branch[FUSED];   // start[0] counts
};

struct ConvSm90HaloParams : ConvSm90HaloCall {
  TensorMap map[FUSED];         // boxes of a branch's channels: what one bulk copy of a tile's input brings
  int chunks;                   // of a branch
  int copies, copy_channels;    // bulk copies of a chunk
  int span;                     // bytes of a swizzled row, 0 for none
  uint8_t origin[MATRICES][3];  // of a tile's matrices: d, h, w of the first output
  struct MappedBranch {
    int extent[3], number;
    int64_t start;              // of its packed weights, in chunks of 16 bytes
    int lower[3];               // input position of the first output's first tap
    int steps;                  // stages of weights of a chunk
    int slices;                 // 16s of K of a chunk
    uint32_t plane;             // bytes from one bulk copy to the next
    uint32_t expected;          // bytes of a chunk
    uint32_t leading, stride;   // of a matrix of inputs, as its descriptor has them
    // Where a matrix's outputs and a slice of K begin, in 16s of bytes from the chunk's first.
    uint16_t matrix[MATRICES], slice[HALO_TAPS * 4];
  } mapped[FUSED];
};

// Weights as the convolutions read them.
struct PackWeightsParams {
  Grid grid;
  Arithmetic arithmetic;
  int in_channels;       // real
  int padded_channels;   // as the convolution reads x
  int out_channels;
  int tile_n;            // columns of each branch of a block
  int lane_columns;      // that a lane's accumulators have side by side
  int swizzled;          // rows of 128 bytes as wgmma reads them; above 1: and K in chunks of that many channels
  Geometry geometry;
  void* packed;
  const void* weight[BRANCHES];
  int64_t stride[BRANCHES][5];  // the convolution's output channel, its input channel, kd, kh, kw
  Branch branch[BRANCHES];
};

// out (N * voxels, S * padded_channels): x * scale, channels side by side, zeros beyond a branch's channels.
struct PackInputParams {
  Grid grid;
  Format format;
  Volume x;
  const float* scale;
  void* out;
  int channels, padded_channels;  // of a branch
  int branches;
  int voxels_first;      // neighbouring threads take neighbouring voxels, not channels
  int64_t voxels;        // of all samples
  Divider d, h, w;
};

// Columns are a branch's taps times high's channels, as one line, cut into tiles.
struct WgradBranch {
  int extent[3];   // of its kernel
  int number;      // of the branch among all
  int first_tile;  // tiles of columns of the branches before
};

// workspace (splits, tiles, tile_m, 128) of partial sums over voxels p of low[p, row] * high[p*stride + shift, column].
struct WgradSm80Params {
  Grid grid;
  Arithmetic arithmetic;
  int tile_m;            // rows of a block
  int stages;            // of the pipeline in shared memory, 2 to 4
  Volume low, high;      // channels side by side, 16-byte aligned
  int low_channels, high_channels;  // of a branch, padded to chunks
  float* workspace;
  Geometry geometry;
  int m_tiles;           // of rows
  uint32_t voxels;       // of low, all samples
  int steps, steps_per_split;
  Divider d, h, w;       // of low's voxels
  int branches;
  WgradBranch branch[BRANCHES];
};

// As WgradSm80Params, for sm_90a. workspace (splits, tiles, tile_m, 128).
struct WgradSm90Call {
  Grid grid;
  Arithmetic arithmetic;            // bf16 or f16
  int tile_m;                       // rows of a block: 64 or 128
  Volume low, high;
  float* workspace;
  Geometry geometry;
  int low_channels, high_channels;  // of a branch
  int low_box, high_box;            // channels of a bulk copy: 16, 32 or 64
  int boxes;                        // of high's channels, of a tap
  int m_tiles;                      // of rows
  int steps, steps_per_split;       // of 64 voxels of low, all samples
  Divider d, h, w;                  // of low's voxels
  int branches;                     // here
  WgradBranch branch[FUSED];
};

// low and high come through tensor maps, one of each branch's channels.
struct WgradSm90Params : WgradSm90Call {
  TensorMap low_map[FUSED], high_map[FUSED];
  struct MappedBranch : WgradBranch {
    int lower[3];  // of high, of the first window's first tap
  } mapped[FUSED];
};

struct WgradReduceParams {
  Grid grid;
  int splits;
  int m_tiles, tile_m;   // tiles of rows, rows of a tile
  int rows, columns;     // real channels of low and high
  int chunk, chunks;     // channels of a chunk, chunks of a tap
  int transposed;        // low's channels are the weight's input channels
  const float* workspace;
  int branches;
  float* out[BRANCHES];  // (Cout/S, Cin/S, taps) of each branch
  int taps[BRANCHES];
  int first_tile[BRANCHES + 1];
};

// One pass over a tensor in branch order.
struct EpilogueParams {
  Grid grid;
  Format format;
  Volume z;
  void* y;
  Epilogue epilogue;
  int channels, groups;
  int threads;               // per voxel
  Divider blocks, d, h, w;   // blocks: of a sample
};

struct EpilogueBackwardParams {
  Grid grid;
  Format format;
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

// What upfirdn takes for the samples beyond the ends of D; the numbers are those of ssconv.spec.BORDERS.
enum class Border : int { zero = 0, replicate = 1, fold = 2 };

struct UpfirdnParams {
  Grid grid;
  Format format;
  int shared_bytes;      // of a block
  Volume x;
  void* y;               // channels_last_3d
  int size[3];           // of y
  int channels;
  Companion taps[3];
  int length[3], up[3], down[3], padding[3];
  Border border;         // along D
  int folded[2];         // with Border::fold: outputs that are added to the first along D, and to the last
  int tile[3];           // voxels of y per block
  int input_tile[3];     // voxels of x that a tile needs
  int block_channels;    // a multiple of 8
  Divider blocks[4];     // of channels, then along w, h, d
};

}  // namespace ssconv
