// The products of sm_90a, compiled for it alone; a build without has the refusal.
#include "launch.h"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "product_sm90.cuh"

namespace ssconv {
namespace {

// x as a branch reads it.
const char* map_branch(TensorProductParams& p, int s, bool half, int pixels) {
  TensorProductParams::Part& b = p.part[s];
  Im2col box = im2col_of(p.x, b.number, p.channels, half);
  box.channels = p.box_channels;
  box.pixels = pixels;
  for (int i = 0; i < 3; ++i) {
    b.lower[i] = (p.geometry.adjoint ? -p.geometry.first[i] : p.geometry.first[i]) - (b.extent[i] - 1) / 2;
    window(box, i, b.lower[i], p.geometry.stride[i], p.size[i]);
  }
  return make_map(box, p.map[s]);
}

template <class A, int S, int BN>
const char* launch_tiles(TensorProductParams& p, Grid grid, void* stream) {
  using Kernel = TensorProduct<A, S, BN>;
  for (int k = 0; k < Kernel::BK / 16; ++k) {
    const int box = 16 * k / p.box_channels, within = 16 * k % p.box_channels;
    p.slices[k] = (box * Kernel::BM * p.box_channels + within) * 2;
  }
  for (int s = 0; s < p.parts; ++s) {
    if (const char* error = map_branch(p, s, std::is_same<A, F16>::value, Kernel::BM)) return error;
  }
  return launch<Kernel>(p, grid, Kernel::SHARED, stream);
}

template <class A>
const char* launch_kind(int fused, int columns, TensorProductParams& p, Grid grid, void* stream) {
#define SSCONV_PRODUCT(S, BN) \
  if (fused == S && columns == BN) return launch_tiles<A, S, BN>(p, grid, stream)
  SSCONV_PRODUCT(1, 64);
  SSCONV_PRODUCT(1, 128);
  SSCONV_PRODUCT(2, 32);
  SSCONV_PRODUCT(2, 64);
  SSCONV_PRODUCT(2, 128);
  SSCONV_PRODUCT(4, 32);
  SSCONV_PRODUCT(4, 64);
#undef SSCONV_PRODUCT
  return "there is no such product kernel";
}

}  // namespace

const char* product_sm90(Arithmetic arithmetic, int fused, int columns, TensorProductParams& p, Grid grid, void* stream) {
  if (arithmetic == Arithmetic::bf16) return launch_kind<Bf16>(fused, columns, p, grid, stream);
  if (arithmetic == Arithmetic::f16) return launch_kind<F16>(fused, columns, p, grid, stream);
  return "the products of sm_90a are of 16 bits";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* product_sm90(Arithmetic, int, int, TensorProductParams&, Grid, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
