#include "launch.h"
#include "wgrad_sm80.cuh"

namespace ssconv {
namespace {

template <class A>
const char* launch_weights(int rows, const WeightParams& p, Grid grid, void* stream) {
#define SSCONV_WEIGHTS(ROWS) \
  if (rows == ROWS) return launch<WeightGradient<A, ROWS>>(p, grid, p.stages * WeightGradient<A, ROWS>::STAGE, stream)
  SSCONV_WEIGHTS(32);
  SSCONV_WEIGHTS(64);
  SSCONV_WEIGHTS(128);
#undef SSCONV_WEIGHTS
  return "there is no such weight gradient kernel";
}

}  // namespace

const char* weight_gradient(Arithmetic arithmetic, int rows, const WeightParams& p, Grid grid, void* stream) {
  switch (arithmetic) {
    case Arithmetic::bf16:
      return launch_weights<Bf16>(rows, p, grid, stream);
    case Arithmetic::f16:
      return launch_weights<F16>(rows, p, grid, stream);
    case Arithmetic::tf32:
      return launch_weights<Tf32>(rows, p, grid, stream);
    default:
      return launch_weights<Ieee>(rows, p, grid, stream);
  }
}

const char* reduce(const ReduceParams& p, Grid grid, void* stream) { return launch<Reduce>(p, grid, 0, stream); }

}  // namespace ssconv
