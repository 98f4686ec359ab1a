#include "launch.h"
#include "wgrad_sm80.cuh"

namespace ssconv {
namespace {

template <class A>
const char* launch_wgrad_sm80(int rows, const WgradSm80Params& p, Grid grid, void* stream) {
#define SSCONV_WGRAD(ROWS) \
  if (rows == ROWS) return launch<WgradSm80<A, ROWS>>(p, grid, p.stages * WgradSm80<A, ROWS>::STAGE, stream)
  SSCONV_WGRAD(32);
  SSCONV_WGRAD(64);
  SSCONV_WGRAD(128);
#undef SSCONV_WGRAD
  return "there is no such weight gradient kernel";
}

}  // namespace

const char* wgrad_sm80(Arithmetic arithmetic, int rows, const WgradSm80Params& p, Grid grid, void* stream) {
  switch (arithmetic) {
    case Arithmetic::bf16:
      return launch_wgrad_sm80<Bf16>(rows, p, grid, stream);
    case Arithmetic::f16:
      return launch_wgrad_sm80<F16>(rows, p, grid, stream);
    case Arithmetic::tf32:
      return launch_wgrad_sm80<Tf32>(rows, p, grid, stream);
    default:
      return launch_wgrad_sm80<Ieee>(rows, p, grid, stream);
  }
}

const char* wgrad_reduce(const WgradReduceParams& p, Grid grid, void* stream) { return launch<WgradReduce>(p, grid, 0, stream); }

}  // namespace ssconv
