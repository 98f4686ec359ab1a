// The weight gradient of sm_90a, compiled for it alone; a build without has the refusal.
#include "launch.h"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "wgrad_sm90.cuh"

namespace ssconv {
namespace {

// low's voxels one after the other, and high's at their windows.
const char* map_part(WgradSm90Params& p, int s, bool half, int pixels) {
  WgradSm90Params::Part& b = p.part[s];
  Im2col low = im2col_of(p.low, b.number, p.low_channels, half);
  Im2col high = im2col_of(p.high, b.number, p.high_channels, half);
  low.channels = p.low_box;
  high.channels = p.high_box;
  low.pixels = high.pixels = pixels;
  for (int i = 0; i < 3; ++i) {
    b.lower[i] = p.geometry.first[i] - (b.extent[i] - 1) / 2;
    window(low, i, 0, 1, p.low.size[1 + i]);
    window(high, i, b.lower[i], p.geometry.stride[i], p.low.size[1 + i]);
  }
  const char* const error = make_map(low, p.low_map[s]);
  return error != nullptr ? error : make_map(high, p.high_map[s]);
}

template <class A, int ROWS>
const char* launch_rows(WgradSm90Params& p, Grid grid, void* stream) {
  using Kernel = WgradSm90<A, ROWS>;
  for (int s = 0; s < p.parts; ++s)
    if (const char* error = map_part(p, s, std::is_same<A, F16>::value, Kernel::BK)) return error;
  return launch<Kernel>(p, grid, Kernel::SHARED, stream);
}

template <class A>
const char* launch_kind(int rows, WgradSm90Params& p, Grid grid, void* stream) {
  if (rows == 64) return launch_rows<A, 64>(p, grid, stream);
  if (rows == 128) return launch_rows<A, 128>(p, grid, stream);
  return "there is no such weight gradient kernel";
}

}  // namespace

const char* wgrad_sm90(Arithmetic arithmetic, int rows, WgradSm90Params& p, Grid grid, void* stream) {
  if (arithmetic == Arithmetic::bf16) return launch_kind<Bf16>(rows, p, grid, stream);
  if (arithmetic == Arithmetic::f16) return launch_kind<F16>(rows, p, grid, stream);
  return "the weight gradient of sm_90a is of 16 bits";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* wgrad_sm90(Arithmetic, int, WgradSm90Params&, Grid, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
