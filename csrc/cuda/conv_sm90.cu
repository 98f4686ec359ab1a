// The products of sm_90a, compiled for it alone; a build without has the refusal.
#include <utility>

#include "launch.h"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "conv_sm90.cuh"

namespace ssconv {
namespace {

// Outputs' parities in the order in which weights are packed, the last dimension's fastest; strides that do not part the
// outputs have one.
void number_parities(ConvSm90Params& p) {
  p.parities = 1;
  for (int i = 0; i < 3; ++i) {
    p.pace[i] = p.geometry.adjoint ? 1 : p.geometry.stride[i];
    if (p.geometry.adjoint) p.parities *= p.geometry.stride[i];
  }
  for (int number = 0; number < p.parities; ++number) {
    int rest = number;
    for (int i = 2; i >= 0; --i) {
      const int kinds = p.geometry.adjoint ? p.geometry.stride[i] : 1;
      p.parity[number][i] = rest % kinds;
      rest /= kinds;
    }
  }
}

// The taps of every parity, displaced from the least position that any of them reads. It is of the first one that has taps.
void reach_of(ConvSm90Params& p, ConvSm90Params::Part& b) {
  for (int i = 0; i < 3; ++i) {
    Taps taps[PARITIES];
    bool found = false;
    for (int k = 0; k < p.parities; ++k) {
      taps[k] = taps_of(p.parity[k][i], b.extent[i], p.geometry.first[i], p.geometry.stride[i], p.geometry.adjoint);
      if (taps[k].count == 0 || found) continue;
      b.lower[i] = p.geometry.adjoint ? taps[k].shift - (taps[k].count - 1) : taps[k].shift;
      found = true;
    }
    for (int k = 0; k < p.parities; ++k) {
      b.reach[k].count[i] = taps[k].count;
      b.reach[k].shift[i] = taps[k].shift - b.lower[i];
    }
  }
  for (int k = 0; k < p.parities; ++k) {
    ConvSm90Params::Reach& r = b.reach[k];
    r.start = b.start[k];
    if (r.count[0] * r.count[1] * r.count[2] == 0) r.count[0] = r.count[1] = r.count[2] = 0;
  }
}

// The parity with most taps first, so that what is left at the end is short.
void order_parities(ConvSm90Params& p) {
  const auto taps = [&](int k) {
    int sum = 0;
    for (int s = 0; s < p.parts; ++s) {
      const int(&count)[3] = p.part[s].reach[k].count;
      sum += count[0] * count[1] * count[2];
    }
    return sum;
  };
  for (int k = 1; k < p.parities; ++k) {
    for (int j = k; j > 0 && taps(j) > taps(j - 1); --j) {
      std::swap(p.parity[j], p.parity[j - 1]);
      for (int s = 0; s < p.parts; ++s) std::swap(p.part[s].reach[j], p.part[s].reach[j - 1]);
    }
  }
}

// x as a branch reads it, whatever the parity.
const char* map_branch(ConvSm90Params& p, int s, bool half, int pixels) {
  const ConvSm90Params::Part& b = p.part[s];
  Im2col box = im2col_of(p.x, b.number, p.channels, half);
  box.channels = p.box_channels;
  box.pixels = pixels;
  const uint32_t windows[3] = {p.d.divisor, p.h.divisor, p.w.divisor};
  for (int i = 0; i < 3; ++i) window(box, i, b.lower[i], p.pace[i], windows[i]);
  return make_map(box, p.map[s]);
}

template <class A, int S, int BN, int CLUSTER>
const char* launch_tiles(ConvSm90Params& p, Grid grid, void* stream) {
  using Kernel = ConvSm90<A, S, BN, CLUSTER>;
  for (int k = 0; k < Kernel::BK / 16; ++k) {
    const int box = 16 * k / p.box_channels, within = 16 * k % p.box_channels;
    p.slices[k] = (box * Kernel::BM * p.box_channels + within) * 2;
  }
  number_parities(p);
  for (int s = 0; s < p.parts; ++s) reach_of(p, p.part[s]);
  order_parities(p);
  for (int s = 0; s < p.parts; ++s) {
    if (const char* error = map_branch(p, s, std::is_same<A, F16>::value, Kernel::BM)) return error;
  }
  return launch_clusters<Kernel>(p, grid, CLUSTER, Kernel::SHARED, stream);
}

template <class A>
const char* launch_kind(int fused, int columns, ConvSm90Params& p, Grid grid, void* stream) {
#define SSCONV_CONV(S, BN)                                                                    \
  if (fused == S && columns == BN && p.cluster == 1) return launch_tiles<A, S, BN, 1>(p, grid, stream); \
  if (fused == S && columns == BN && p.cluster == 2) return launch_tiles<A, S, BN, 2>(p, grid, stream)
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

const char* conv_sm90(Arithmetic arithmetic, int fused, int columns, ConvSm90Params& p, Grid grid, void* stream) {
  if (arithmetic == Arithmetic::bf16) return launch_kind<Bf16>(fused, columns, p, grid, stream);
  if (arithmetic == Arithmetic::f16) return launch_kind<F16>(fused, columns, p, grid, stream);
  return "the products of sm_90a are of 16 bits";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* conv_sm90(Arithmetic, int, int, ConvSm90Params&, Grid, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
