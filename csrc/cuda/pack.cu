// Launches of the kernels that pack weights and inputs for the convolutions.
#include "pack.cuh"
#include "switch.cuh"

namespace ssconv {

const char* pack_weights(Arithmetic arithmetic, const PackWeightsParams& p, Grid grid, void* stream) {
  return SSCONV_SWITCH_ARITHMETIC(arithmetic, A, launch<PackWeights<A>>(p, grid, 0, stream));
}

const char* pack_input(Format format, const PackInputParams& p, Grid grid, void* stream) {
  return SSCONV_SWITCH_FORMAT(format, T, launch<PackInput<T>>(p, grid, 0, stream));
}

}  // namespace ssconv
