// Launches of the weight gradient of sm_90a: its tensor maps. Compiled for sm_90a alone; a build without it refuses
// every call.
#include "launch.h"
#include "launch_kernel.cuh"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "wgrad_sm90.cuh"

namespace ssconv {
namespace {

// Makes a branch's maps: low's voxels one after the other, and high's at their windows.
const char* map_branch(WgradSm90Params& p, int s, int pixels) {
  WgradSm90Params::MappedBranch& b = p.mapped[s];
  static_cast<WgradBranch&>(b) = p.branch[s];
  const bool half = p.arithmetic == Arithmetic::f16;
  const MapTensor low = branch_of(p.low, b.number, p.low_channels, half);
  const MapTensor high = branch_of(p.high, b.number, p.high_channels, half);
  Im2colBox low_box = {}, high_box = {};
  low_box.channels = p.low_box;
  high_box.channels = p.high_box;
  low_box.pixels = high_box.pixels = pixels;
  for (int i = 0; i < 3; ++i) {
    b.lower[i] = p.geometry.first[i] - (b.extent[i] - 1) / 2;
    set_window(low_box, low, i, 0, 1, p.low.size[1 + i]);
    set_window(high_box, high, i, b.lower[i], p.geometry.stride[i], p.low.size[1 + i]);
  }
  const char* const error = encode_im2col_map(low, low_box, p.low_map[s]);
  return error != nullptr ? error : encode_im2col_map(high, high_box, p.high_map[s]);
}

template <class A, int ROWS>
const char* launch_rows(const WgradSm90Call& call, void* stream) {
  using Kernel = WgradSm90<A, ROWS>;
  WgradSm90Params p = {};
  static_cast<WgradSm90Call&>(p) = call;
  for (int s = 0; s < p.branches; ++s)
    if (const char* error = map_branch(p, s, Kernel::BK)) return error;
  return launch<Kernel>(p, p.grid, Kernel::SHARED, stream);
}

template <class A>
const char* launch_arithmetic(const WgradSm90Call& call, void* stream) {
  if (call.tile_m == 64) return launch_rows<A, 64>(call, stream);
  if (call.tile_m == 128) return launch_rows<A, 128>(call, stream);
  return "tile_m: expected 64 or 128";
}

}  // namespace

const char* wgrad_sm90(const WgradSm90Call& call, void* stream) {
  if (call.branches < 1 || call.branches > FUSED) return "branches: expected 1 to 4 branches";
  if (call.arithmetic == Arithmetic::bf16) return launch_arithmetic<Bf16>(call, stream);
  if (call.arithmetic == Arithmetic::f16) return launch_arithmetic<F16>(call, stream);
  return "arithmetic: wgrad_sm90 takes bf16 and f16";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* wgrad_sm90(const WgradSm90Call&, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
