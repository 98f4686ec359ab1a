// Launches of the resampling kernel.
#include "switch.cuh"
#include "upfirdn.cuh"

namespace ssconv {

const char* upfirdn(const UpfirdnParams& p, void* stream) {
  return SSCONV_SWITCH_FORMAT(p.format, T, launch<Upfirdn<T>>(p, p.grid, p.shared_bytes, stream));
}

}  // namespace ssconv
