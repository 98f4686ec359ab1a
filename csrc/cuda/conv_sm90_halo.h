// What the host tells the products of sm_90a that keep their input with its halo in shared memory (conv_sm90_halo.cuh).
#pragma once

#include "params.h"

namespace ssconv {

constexpr int MATRICES = 8;   // of 64 outputs, the most of a tile
constexpr int HALO_TAPS = 27; // the most of a branch

// y = epilogue of the branches' convolutions of x, or of their adjoints; every branch has weights, strides are 1.
struct ConvSm90HaloParams {
  TensorMap map[FUSED];  // boxes of a branch's channels: what one bulk copy of a tile's input brings
  Volume x;
  const void* weights;   // packed and swizzled; K is chunk after chunk of channels, in each tap after tap
  void *y, *z;
  int size[3];           // of y: d, h, w
  int channels;          // of a branch, in x
  int chunk;             // channels of a branch that are in shared memory at a time: 16, 32 or 64
  int swizzled;          // a pixel's channels lie in one swizzled row, else in pieces of 8 channels, each piece of all pixels
  int out_channels;      // of a branch
  int branches;          // all of them
  Geometry geometry;
  Epilogue epilogue;
  int tile[3];           // outputs of a tile, d, h, w; h and w in eights
  Divider column_blocks, tiles, d, h, w;  // tiles: of all samples; d, h, w: along a dimension
  uint32_t work;         // tiles of all column blocks and branches that are computed apart
  int parts;
  // From here on worked out of what is above, by conv_sm90_halo.
  int chunks;            // of a branch
  int copies, copy_channels;  // bulk copies of a chunk
  int span;              // bytes of a swizzled row, 0 for none
  uint8_t origin[MATRICES][3];  // of a tile's matrices: d, h, w of the first output
  struct Part {
    int extent[3], number;
    int64_t start;       // of its packed weights, in chunks of 16 bytes
    int lower[3];        // input position of the first output's first tap
    int steps;           // stages of weights of a chunk
    int slices;          // 16s of K of a chunk
    uint32_t plane;      // bytes from one bulk copy to the next
    uint32_t expected;   // bytes of a chunk
    uint32_t leading, stride;  // of a matrix of inputs, as its descriptor has them
    // Where a matrix's outputs and a slice of K begin, in 16s of bytes from the chunk's first.
    uint16_t matrix[MATRICES], slice[HALO_TAPS * 4];
  } part[FUSED];
};

}  // namespace ssconv
