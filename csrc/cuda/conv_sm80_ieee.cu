#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_ieee(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream) {
  return launch_conv_sm80<Ieee>(kind, p, grid, stream);
}

}  // namespace ssconv
