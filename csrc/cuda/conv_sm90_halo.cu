// The products of sm_90a with the halo in shared memory, compiled for it alone; a build without has the refusal.
#include "conv_sm90_halo.h"
#include "launch.h"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "ptx/tensor_map.cuh"
#include "conv_sm90_halo.cuh"

namespace ssconv {
namespace {

constexpr int ROWS = 8;  // of a matrix's group, and groups of a matrix: outputs along W and H

// A branch's input with the halo, as it lies in a buffer and as wgmma reads it from there.
const char* describe_branch(ConvSm90HaloParams& p, int s, bool half, uint32_t buffer) {
  ConvSm90HaloParams::Part& b = p.part[s];
  const int taps = b.extent[0] * b.extent[1] * b.extent[2];
  if (taps < 1 || taps > HALO_TAPS) return "a branch has more taps than a product with the halo in shared memory takes";
  int box[3];
  for (int i = 0; i < 3; ++i) {
    box[i] = p.tile[i] + b.extent[i] - 1;
    b.lower[i] = (p.geometry.adjoint ? -p.geometry.first[i] : p.geometry.first[i]) - (b.extent[i] - 1) / 2;
  }
  const uint32_t pixels = box[0] * box[1] * box[2];
  const uint32_t pixel = p.copy_channels * 2;  // bytes
  b.plane = (pixels * pixel + 127) / 128 * 128;
  b.expected = p.copies * pixels * pixel;
  if (p.copies * b.plane > buffer) return "a tile's input does not fit into its buffer";
  b.slices = taps * (p.chunk / 16);
  b.steps = (b.slices + 3) / 4;
  b.leading = p.swizzled ? 0 : b.plane;
  b.stride = box[2] * pixel;
  const auto place = [&](int d, int h, int w) { return ((d * box[1] + h) * box[2] + w) * pixel / 16; };
  for (int i = 0; i < MATRICES; ++i) b.matrix[i] = place(p.origin[i][0], p.origin[i][1], p.origin[i][2]);
  for (int i = 0; i < b.slices; ++i) {
    const int tap = i / (p.chunk / 16), within = i % (p.chunk / 16);
    int shift[3] = {tap / b.extent[2] / b.extent[1], tap / b.extent[2] % b.extent[1], tap % b.extent[2]};
    for (int j = 0; j < 3; ++j) shift[j] = p.geometry.adjoint ? b.extent[j] - 1 - shift[j] : shift[j];
    b.slice[i] = place(shift[0], shift[1], shift[2]) + within * (p.swizzled ? 2 : 2 * b.plane / 16);
  }
  return make_tiled_map(im2col_of(p.x, b.number, p.channels, half), p.copy_channels, box, p.span, p.map[s]);
}

template <class A, int S, int BN>
const char* launch_tiles(ConvSm90HaloParams& p, Grid grid, void* stream) {
  using Kernel = ConvSm90Halo<A, S, BN>;
  const int across = p.tile[2] / ROWS, down = p.tile[1] / ROWS;
  if (p.tile[1] % ROWS != 0 || p.tile[2] % ROWS != 0 || p.tile[0] * down * across != Kernel::MI * Kernel::CONSUMERS)
    return "a tile is not of the kernel's outputs";
  for (int i = 0; i < Kernel::MI * Kernel::CONSUMERS; ++i) {
    p.origin[i][0] = i / across / down;
    p.origin[i][1] = i / across % down * ROWS;
    p.origin[i][2] = i % across * ROWS;
  }
  p.copy_channels = p.swizzled ? p.chunk : 8;
  p.span = p.swizzled ? p.chunk * 2 : 0;
  p.copies = p.chunk / p.copy_channels;
  p.chunks = (p.channels + p.chunk - 1) / p.chunk;
  for (int s = 0; s < p.parts; ++s) {
    if (const char* error = describe_branch(p, s, std::is_same<A, F16>::value, Kernel::BUFFER)) return error;
  }
  return launch<Kernel>(p, grid, Kernel::SHARED, stream);
}

template <class A>
const char* launch_kind(int fused, int columns, ConvSm90HaloParams& p, Grid grid, void* stream) {
#define SSCONV_CONV(S, BN) \
  if (fused == S && columns == BN) return launch_tiles<A, S, BN>(p, grid, stream)
  SSCONV_CONV(1, 32);
  SSCONV_CONV(1, 64);
  SSCONV_CONV(1, 128);
  SSCONV_CONV(2, 32);
  SSCONV_CONV(2, 64);
  SSCONV_CONV(2, 128);
  SSCONV_CONV(4, 32);
  SSCONV_CONV(4, 64);
#undef SSCONV_CONV
  return "there is no such convolution kernel";
}

}  // namespace

const char* conv_sm90_halo(Arithmetic arithmetic, int fused, int columns, ConvSm90HaloParams& p, Grid grid, void* stream) {
  if (p.chunk != 16 && p.chunk != 32 && p.chunk != 64) return "a chunk has 16, 32 or 64 channels";
  if (arithmetic == Arithmetic::bf16) return launch_kind<Bf16>(fused, columns, p, grid, stream);
  if (arithmetic == Arithmetic::f16) return launch_kind<F16>(fused, columns, p, grid, stream);
  return "the products of sm_90a are of 16 bits";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* conv_sm90_halo(Arithmetic, int, int, ConvSm90HaloParams&, Grid, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
