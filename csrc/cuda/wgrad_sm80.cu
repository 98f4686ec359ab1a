// Launches of the weight gradient of sm_80, and of the sum over its splits.
#include "switch.cuh"
#include "wgrad_reduce.cuh"
#include "wgrad_sm80.cuh"

namespace ssconv {
namespace {

template <class A>
const char* launch_rows(const WgradSm80Params& p, void* stream) {
#define SSCONV_WGRAD(ROWS)                                              \
  if (p.tile_m == ROWS) {                                                 \
    using Kernel = WgradSm80<A, ROWS>;                                  \
    return launch<Kernel>(p, p.grid, p.stages * Kernel::STAGE, stream); \
  }
  SSCONV_WGRAD(32)
  SSCONV_WGRAD(64)
  SSCONV_WGRAD(128)
#undef SSCONV_WGRAD
  return "tile_m: expected 32, 64 or 128";
}

}  // namespace

const char* wgrad_sm80(const WgradSm80Params& p, void* stream) {
  if (p.stages < 2 || p.stages > 4) return "stages: expected 2, 3 or 4";
  return SSCONV_SWITCH_ARITHMETIC(p.arithmetic, A, launch_rows<A>(p, stream));
}

const char* wgrad_reduce(const WgradReduceParams& p, void* stream) {
  return launch<WgradReduce>(p, p.grid, 0, stream);
}

}  // namespace ssconv
