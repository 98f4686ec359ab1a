#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_f16(const ConvSm80Params& p, void* stream) { return launch_conv_sm80<F16>(p, stream); }

}  // namespace ssconv
