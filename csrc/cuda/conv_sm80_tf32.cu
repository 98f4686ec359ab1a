#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_tf32(const ConvSm80Params& p, void* stream) { return launch_conv_sm80<Tf32>(p, stream); }

}  // namespace ssconv
