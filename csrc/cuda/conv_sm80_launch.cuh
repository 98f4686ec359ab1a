// The instantiations of ConvSm80 for one arithmetic.
#pragma once

#include "launch.h"
#include "conv_sm80.cuh"

namespace ssconv {

template <class A>
const char* launch_conv_sm80(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream) {
#define SSCONV_CONV(S, WIDTH, ELEMENTS)                                                     \
  if (kind.fused == S && kind.width == WIDTH && kind.elements == ELEMENTS)                    \
    return launch<ConvSm80<A, S, WIDTH, ELEMENTS>>(p, grid, p.stages * ConvSm80<A, S, WIDTH, ELEMENTS>::STAGE, stream)
  SSCONV_CONV(1, 64, false);
  SSCONV_CONV(2, 64, false);
  SSCONV_CONV(2, 64, true);
  SSCONV_CONV(4, 64, false);
  SSCONV_CONV(1, 32, true);
  SSCONV_CONV(1, 128, false);
  SSCONV_CONV(2, 128, false);
  SSCONV_CONV(4, 128, false);
  SSCONV_CONV(1, 32, false);
  SSCONV_CONV(2, 32, false);
  SSCONV_CONV(1, 64, true);
  SSCONV_CONV(2, 32, true);
  SSCONV_CONV(4, 64, true);
#undef SSCONV_CONV
  return "there is no such convolution kernel";
}

}  // namespace ssconv
