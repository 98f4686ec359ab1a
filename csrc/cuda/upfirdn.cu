// Launches of the resampling kernel.
#include "switch.cuh"
#include "upfirdn.cuh"

namespace ssconv {

const char* upfirdn(Format format, const UpfirdnParams& p, Grid grid, int shared_bytes, void* stream) {
  return SSCONV_SWITCH_FORMAT(format, T, launch<Upfirdn<T>>(p, grid, shared_bytes, stream));
}

}  // namespace ssconv
