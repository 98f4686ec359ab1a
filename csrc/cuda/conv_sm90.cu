// Launches of the im2col convolution of sm_90a: its taps by parity, its tensor maps. Compiled for sm_90a alone; a build
// without it refuses every call.
#include <utility>

#include "launch.h"
#include "launch_kernel.cuh"

#if defined(SSCONV_SM90A) || !defined(__CUDACC__)
#include "conv_sm90.cuh"

namespace ssconv {
namespace {

// Lists the outputs' parities in the order in which weights are packed, the last dimension's fastest. A forward
// convolution has one.
void list_parities(ConvSm90Params& p) {
  p.parities = 1;
  for (int i = 0; i < 3; ++i) {
    p.input_stride[i] = p.geometry.adjoint ? 1 : p.geometry.stride[i];
    if (p.geometry.adjoint) p.parities *= p.geometry.stride[i];
  }
  for (int number = 0; number < p.parities; ++number) {
    int rest = number;
    for (int i = 2; i >= 0; --i) {
      const int along = p.geometry.adjoint ? p.geometry.stride[i] : 1;
      p.parity[number][i] = rest % along;
      rest /= along;
    }
  }
}

// Finds the taps of every parity. They are displaced from the least position that any parity reads, which is that of
// the first parity with taps.
void find_taps(ConvSm90Params& p, const Branch& branch, ConvSm90Params::MappedBranch& b) {
  b.number = branch.number;
  for (int i = 0; i < 3; ++i) {
    Taps taps[PARITIES];
    bool found = false;
    for (int k = 0; k < p.parities; ++k) {
      taps[k] =
          taps_of(p.parity[k][i], branch.extent[i], p.geometry.first[i], p.geometry.stride[i], p.geometry.adjoint);
      if (taps[k].count == 0 || found) continue;
      b.lower[i] = p.geometry.adjoint ? taps[k].shift - (taps[k].count - 1) : taps[k].shift;
      found = true;
    }
    for (int k = 0; k < p.parities; ++k) {
      b.taps[k].count[i] = taps[k].count;
      b.taps[k].shift[i] = taps[k].shift - b.lower[i];
    }
  }
  for (int k = 0; k < p.parities; ++k) {
    ConvSm90Params::ParityTaps& r = b.taps[k];
    r.start = branch.start[k];
    if (r.count[0] * r.count[1] * r.count[2] == 0) r.count[0] = r.count[1] = r.count[2] = 0;
  }
}

// Puts the parity with most taps first, so that the last wave of tiles is short.
void order_parities(ConvSm90Params& p) {
  const auto taps = [&](int k) {
    int sum = 0;
    for (int s = 0; s < p.branches; ++s) {
      const int(&count)[3] = p.mapped[s].taps[k].count;
      sum += count[0] * count[1] * count[2];
    }
    return sum;
  };
  for (int k = 1; k < p.parities; ++k) {
    for (int j = k; j > 0 && taps(j) > taps(j - 1); --j) {
      std::swap(p.parity[j], p.parity[j - 1]);
      for (int s = 0; s < p.branches; ++s) std::swap(p.mapped[s].taps[j], p.mapped[s].taps[j - 1]);
    }
  }
}

// Makes the map by which a branch reads x, the same for every parity.
const char* map_branch(ConvSm90Params& p, int s, int pixels) {
  const ConvSm90Params::MappedBranch& b = p.mapped[s];
  const MapTensor x = branch_of(p.x, b.number, p.channels, p.arithmetic == Arithmetic::f16);
  Im2colBox box = {};
  box.channels = p.box_channels;
  box.pixels = pixels;
  const uint32_t windows[3] = {p.d.divisor, p.h.divisor, p.w.divisor};
  for (int i = 0; i < 3; ++i) set_window(box, x, i, b.lower[i], p.input_stride[i], windows[i]);
  return encode_im2col_map(x, box, p.map[s]);
}

template <class A, int S, int BN, int CLUSTER>
const char* launch_tiles(const ConvSm90Call& call, void* stream) {
  using Kernel = ConvSm90<A, S, BN, CLUSTER>;
  ConvSm90Params p = {};
  static_cast<ConvSm90Call&>(p) = call;
  for (int k = 0; k < Kernel::BK / 16; ++k) {
    const int box = 16 * k / p.box_channels, within = 16 * k % p.box_channels;
    p.slices[k] = (box * Kernel::BM * p.box_channels + within) * 2;
  }
  list_parities(p);
  for (int s = 0; s < p.branches; ++s) find_taps(p, p.branch[s], p.mapped[s]);
  order_parities(p);
  for (int s = 0; s < p.branches; ++s) {
    if (const char* error = map_branch(p, s, Kernel::BM)) return error;
  }
  return launch_clusters<Kernel>(p, p.grid, CLUSTER, Kernel::SHARED, stream);
}

template <class A>
const char* launch_arithmetic(const ConvSm90Call& call, void* stream) {
#define SSCONV_CONV(S, BN)                                       \
  if (call.fused == S && call.tile_n == BN && call.cluster == 1) \
    return launch_tiles<A, S, BN, 1>(call, stream);              \
  if (call.fused == S && call.tile_n == BN && call.cluster == 2) \
    return launch_tiles<A, S, BN, 2>(call, stream);
  SSCONV_CONV(1, 64)
  SSCONV_CONV(1, 128)
  SSCONV_CONV(2, 32)
  SSCONV_CONV(2, 64)
  SSCONV_CONV(2, 128)
  SSCONV_CONV(4, 32)
  SSCONV_CONV(4, 64)
#undef SSCONV_CONV
  return "fused, tile_n, cluster: there is no such instantiation of conv_sm90";
}

}  // namespace

const char* conv_sm90(const ConvSm90Call& call, void* stream) {
  if (call.branches < 1 || call.branches > FUSED) return "branches: expected 1 to 4 branches";
  if (call.arithmetic == Arithmetic::bf16) return launch_arithmetic<Bf16>(call, stream);
  if (call.arithmetic == Arithmetic::f16) return launch_arithmetic<F16>(call, stream);
  return "arithmetic: conv_sm90 takes bf16 and f16";
}

}  // namespace ssconv

#else

namespace ssconv {

const char* conv_sm90(const ConvSm90Call&, void*) {
  return "the module was compiled without sm_90a (SSCONV_CUDA_ARCHS)";
}

}  // namespace ssconv
#endif
