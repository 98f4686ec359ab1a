#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_tf32(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream) {
  return launch_conv_sm80<Tf32>(kind, p, grid, stream);
}

}  // namespace ssconv
