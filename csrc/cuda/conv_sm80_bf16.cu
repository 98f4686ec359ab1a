#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_bf16(const ConvSm80Params& p, void* stream) { return launch_conv_sm80<Bf16>(p, stream); }

}  // namespace ssconv
