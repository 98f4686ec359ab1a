// Sizes and offsets of the structs that Python fills (ssconv/backend/cuda/structs.py), for the test that compares them.
#pragma once

#include <cstddef>
#include <vector>

#include "params.h"

namespace ssconv {

struct FieldLayout {
  const char* name;
  size_t offset, size;
};
struct StructLayout {
  const char* name;
  size_t size;
  std::vector<FieldLayout> fields;
};

// The fields of each struct, in their order.
#define SSCONV_FIELDS_Grid(F) F(x) F(y) F(z)
#define SSCONV_FIELDS_Divider(F) F(divisor) F(multiplier) F(shift)
#define SSCONV_FIELDS_Companion(F) F(data) F(format)
#define SSCONV_FIELDS_Volume(F) F(data) F(stride) F(size)
#define SSCONV_FIELDS_Branch(F) F(extent) F(number) F(start)
#define SSCONV_FIELDS_Geometry(F) F(first) F(stride) F(adjoint)
#define SSCONV_FIELDS_Epilogue(F) F(scale) F(bias) F(noise) F(noise_stride) F(slope) F(gain) F(clamp) F(clamped)
#define SSCONV_FIELDS_ConvSm80Params(F)                                                                                \
  F(grid) F(arithmetic) F(fused) F(block_n) F(elementwise) F(stages) F(cached) F(x) F(in_scale) F(weights) F(y) F(z)   \
  F(size) F(in_channels) F(out_channels) F(branches) F(shuffle) F(geometry) F(epilogue) F(box_bits) F(m_tiles)         \
  F(n_tiles) F(branch)
#define SSCONV_FIELDS_ConvSm90Call(F)                                                                                  \
  F(grid) F(arithmetic) F(fused) F(tile_n) F(cluster) F(x) F(weights) F(y) F(z) F(size) F(channels) F(box_channels)    \
  F(padded_channels) F(out_channels) F(branches) F(geometry) F(epilogue) F(outputs) F(slots) F(work) F(n_tiles)        \
  F(m_tiles) F(voxels) F(d) F(h) F(w) F(branch)
#define SSCONV_FIELDS_ConvSm90HaloCall(F)                                                                              \
  F(grid) F(arithmetic) F(fused) F(tile_n) F(x) F(weights) F(y) F(z) F(size) F(channels) F(chunk_channels)             \
  F(swizzled) F(out_channels) F(branches) F(geometry) F(epilogue) F(tile) F(work) F(n_tiles) F(m_tiles) F(d) F(h)      \
  F(w) F(branch)
#define SSCONV_FIELDS_PackWeightsParams(F)                                                                             \
  F(grid) F(arithmetic) F(in_channels) F(padded_channels) F(out_channels) F(tile_n) F(lane_columns) F(swizzled)        \
  F(geometry) F(packed) F(weight) F(stride) F(branch)
#define SSCONV_FIELDS_PackInputParams(F)                                                                               \
  F(grid) F(format) F(x) F(scale) F(out) F(channels) F(padded_channels) F(branches) F(voxels_first) F(voxels) F(d)     \
  F(h) F(w)
#define SSCONV_FIELDS_WgradBranch(F) F(extent) F(number) F(first_tile)
#define SSCONV_FIELDS_WgradSm80Params(F)                                                                               \
  F(grid) F(arithmetic) F(tile_m) F(stages) F(low) F(high) F(low_channels) F(high_channels) F(workspace) F(geometry)   \
  F(m_tiles) F(voxels) F(steps) F(steps_per_split) F(d) F(h) F(w) F(branches) F(branch)
#define SSCONV_FIELDS_WgradSm90Call(F)                                                                                 \
  F(grid) F(arithmetic) F(tile_m) F(low) F(high) F(workspace) F(geometry) F(low_channels) F(high_channels)             \
  F(low_box) F(high_box) F(boxes) F(m_tiles) F(steps) F(steps_per_split) F(d) F(h) F(w) F(branches) F(branch)
#define SSCONV_FIELDS_WgradReduceParams(F)                                                                             \
  F(grid) F(splits) F(m_tiles) F(tile_m) F(rows) F(columns) F(chunk) F(chunks) F(transposed) F(workspace)              \
  F(branches) F(out) F(taps) F(first_tile)
#define SSCONV_FIELDS_EpilogueParams(F)                                                                                \
  F(grid) F(format) F(z) F(y) F(epilogue) F(channels) F(groups) F(threads) F(blocks) F(d) F(h) F(w)
#define SSCONV_FIELDS_EpilogueBackwardParams(F)                                                                        \
  F(grid) F(format) F(gy) F(y) F(z) F(gz) F(scale) F(bias_sums) F(scale_sums) F(noise_sums) F(slope) F(gain)           \
  F(clamp) F(clamped) F(channels) F(groups) F(lanes) F(voxels_per_block) F(blocks) F(d) F(h) F(w)
#define SSCONV_FIELDS_UpfirdnParams(F)                                                                                 \
  F(grid) F(format) F(shared_bytes) F(x) F(y) F(size) F(channels) F(taps) F(length) F(up) F(down) F(padding)           \
  F(border) F(folded) F(tile) F(input_tile) F(block_channels) F(blocks)

inline std::vector<StructLayout> struct_layouts() {
  std::vector<StructLayout> layouts;
#define SSCONV_FIELD(field) {#field, offsetof(Struct, field), sizeof(Struct::field)},
#define SSCONV_LAYOUT(name)                                                            \
  {                                                                                    \
    using Struct = name;                                                               \
    layouts.push_back({#name, sizeof(Struct), {SSCONV_FIELDS_##name(SSCONV_FIELD)}}); \
  }
  SSCONV_LAYOUT(Grid)
  SSCONV_LAYOUT(Divider)
  SSCONV_LAYOUT(Companion)
  SSCONV_LAYOUT(Volume)
  SSCONV_LAYOUT(Branch)
  SSCONV_LAYOUT(Geometry)
  SSCONV_LAYOUT(Epilogue)
  SSCONV_LAYOUT(ConvSm80Params)
  SSCONV_LAYOUT(ConvSm90Call)
  SSCONV_LAYOUT(ConvSm90HaloCall)
  SSCONV_LAYOUT(PackWeightsParams)
  SSCONV_LAYOUT(PackInputParams)
  SSCONV_LAYOUT(WgradBranch)
  SSCONV_LAYOUT(WgradSm80Params)
  SSCONV_LAYOUT(WgradSm90Call)
  SSCONV_LAYOUT(WgradReduceParams)
  SSCONV_LAYOUT(EpilogueParams)
  SSCONV_LAYOUT(EpilogueBackwardParams)
  SSCONV_LAYOUT(UpfirdnParams)
#undef SSCONV_LAYOUT
#undef SSCONV_FIELD
  return layouts;
}

}  // namespace ssconv
