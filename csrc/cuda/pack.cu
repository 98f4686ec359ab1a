// Launches of the kernels that pack weights and inputs for the convolutions.
#include "pack.cuh"
#include "switch.cuh"

namespace ssconv {

const char* pack_weights(const PackWeightsParams& p, void* stream) {
  return SSCONV_SWITCH_ARITHMETIC(p.arithmetic, A, launch<PackWeights<A>>(p, p.grid, 0, stream));
}

const char* pack_input(const PackInputParams& p, void* stream) {
  return SSCONV_SWITCH_FORMAT(p.format, T, launch<PackInput<T>>(p, p.grid, 0, stream));
}

}  // namespace ssconv
