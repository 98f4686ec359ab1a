#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* conv_sm80_ieee(const ConvSm80Params& p, void* stream) { return launch_conv_sm80<Ieee>(p, stream); }

}  // namespace ssconv
