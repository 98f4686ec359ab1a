// Launches of the convolution of sm_90a that keeps its input with its halo in shared memory: where a tile's inputs lie
// there, its tensor maps. Compiled for sm_90a alone; a build without it refuses every call.
#include "launch.h"
#include "launch_kernel.cuh"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "conv_sm90_halo.cuh"

namespace ssconv {
namespace {

constexpr int ROWS = 8;  // of a matrix's group, and groups of a matrix: outputs along W and H

// Works out how a branch's input lies in a buffer and how wgmma reads it from there, and makes its map.
const char* describe_branch(ConvSm90HaloParams& p, int s, uint32_t buffer) {
  ConvSm90HaloParams::MappedBranch& b = p.mapped[s];
  for (int i = 0; i < 3; ++i) b.extent[i] = p.branch[s].extent[i];
  b.number = p.branch[s].number;
  b.start = p.branch[s].start[0];
  const int taps = b.extent[0] * b.extent[1] * b.extent[2];
  if (taps < 1 || taps > HALO_TAPS) return "branch: expected a kernel of 1 to 27 taps";
  int box[3];
  for (int i = 0; i < 3; ++i) {
    box[i] = p.tile[i] + b.extent[i] - 1;
    b.lower[i] = (p.geometry.adjoint ? -p.geometry.first[i] : p.geometry.first[i]) - (b.extent[i] - 1) / 2;
  }
  const uint32_t pixels = box[0] * box[1] * box[2];
  const uint32_t pixel = p.copy_channels * 2;  // bytes
  b.plane = (pixels * pixel + 127) / 128 * 128;
  b.expected = p.copies * pixels * pixel;
  if (p.copies * b.plane > buffer) return "tile: its input does not fit into a buffer of shared memory";
  b.slices = taps * (p.chunk_channels / 16);
  b.steps = (b.slices + 3) / 4;
  b.leading = p.swizzled ? 0 : b.plane;
  b.stride = box[2] * pixel;
  const auto offset = [&](int d, int h, int w) { return ((d * box[1] + h) * box[2] + w) * pixel / 16; };
  for (int i = 0; i < MATRICES; ++i) b.matrix[i] = offset(p.origin[i][0], p.origin[i][1], p.origin[i][2]);
  for (int i = 0; i < b.slices; ++i) {
    const int tap = i / (p.chunk_channels / 16), within = i % (p.chunk_channels / 16);
    int shift[3] = {tap / b.extent[2] / b.extent[1], tap / b.extent[2] % b.extent[1], tap % b.extent[2]};
    for (int j = 0; j < 3; ++j) shift[j] = p.geometry.adjoint ? b.extent[j] - 1 - shift[j] : shift[j];
    b.slice[i] = offset(shift[0], shift[1], shift[2]) + within * (p.swizzled ? 2 : 2 * b.plane / 16);
  }
  const bool half = p.arithmetic == Arithmetic::f16;
  const MapTensor x = branch_of(p.x, b.number, p.channels, half);
  return encode_tiled_map(x, p.copy_channels, box, p.span, p.map[s]);
}

template <class A, int S, int BN>
const char* launch_tiles(const ConvSm90HaloCall& call, void* stream) {
  using Kernel = ConvSm90Halo<A, S, BN>;
  ConvSm90HaloParams p = {};
  static_cast<ConvSm90HaloCall&>(p) = call;
  const int across = p.tile[2] / ROWS, down = p.tile[1] / ROWS;
  if (p.tile[1] % ROWS != 0 || p.tile[2] % ROWS != 0 || p.tile[0] * down * across != Kernel::MI * Kernel::CONSUMERS)
    return "tile: expected as many outputs as the kernel computes, H and W in eights";
  for (int i = 0; i < Kernel::MI * Kernel::CONSUMERS; ++i) {
    p.origin[i][0] = i / across / down;
    p.origin[i][1] = i / across % down * ROWS;
    p.origin[i][2] = i % across * ROWS;
  }
  p.copy_channels = p.swizzled ? p.chunk_channels : 8;
  p.span = p.swizzled ? p.chunk_channels * 2 : 0;
  p.copies = p.chunk_channels / p.copy_channels;
  p.chunks = (p.channels + p.chunk_channels - 1) / p.chunk_channels;
  for (int s = 0; s < p.branches; ++s) {
    if (const char* error = describe_branch(p, s, Kernel::BUFFER)) return error;
  }
  return launch<Kernel>(p, p.grid, Kernel::SHARED, stream);
}

template <class A>
const char* launch_arithmetic(const ConvSm90HaloCall& call, void* stream) {
#define SSCONV_CONV(S, BN) \
  if (call.fused == S && call.tile_n == BN) return launch_tiles<A, S, BN>(call, stream);
  SSCONV_CONV(1, 32)
  SSCONV_CONV(1, 64)
  SSCONV_CONV(1, 128)
  SSCONV_CONV(2, 32)
  SSCONV_CONV(2, 64)
  SSCONV_CONV(2, 128)
  SSCONV_CONV(4, 32)
  SSCONV_CONV(4, 64)
#undef SSCONV_CONV
  return "fused, tile_n: there is no such instantiation of conv_sm90_halo";
}

}  // namespace

const char* conv_sm90_halo(const ConvSm90HaloCall& call, void* stream) {
  if (call.branches < 1 || call.branches > FUSED) return "branches: expected 1 to 4 branches";
  const int chunk = call.chunk_channels;
  if (chunk != 16 && chunk != 32 && chunk != 64) return "chunk_channels: expected 16, 32 or 64";
  if (call.arithmetic == Arithmetic::bf16) return launch_arithmetic<Bf16>(call, stream);
  if (call.arithmetic == Arithmetic::f16) return launch_arithmetic<F16>(call, stream);
  return "arithmetic: conv_sm90_halo takes bf16 and f16";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* conv_sm90_halo(const ConvSm90HaloCall&, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
