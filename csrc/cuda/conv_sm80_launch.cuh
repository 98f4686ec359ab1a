// The instantiations of ConvSm80 for one arithmetic, each of which takes a while to compile: a file for each
// arithmetic.
#pragma once

#include "conv_sm80.cuh"
#include "launch.h"
#include "launch_kernel.cuh"

namespace ssconv {

template <class A>
const char* launch_conv_sm80(const ConvSm80Params& p, void* stream) {
  if (p.stages < 2 || p.stages > 4) return "stages: expected 2, 3 or 4";
#define SSCONV_CONV(S, WIDTH, ELEMENTS)                                          \
  if (p.fused == S && p.block_n == WIDTH && (p.elementwise != 0) == ELEMENTS) {       \
    using Kernel = ConvSm80<A, S, WIDTH, ELEMENTS>;                              \
    return launch<Kernel>(p, p.grid, p.stages * Kernel::STAGE, stream);          \
  }
  SSCONV_CONV(1, 32, false)
  SSCONV_CONV(1, 64, false)
  SSCONV_CONV(1, 128, false)
  SSCONV_CONV(2, 32, false)
  SSCONV_CONV(2, 64, false)
  SSCONV_CONV(2, 128, false)
  SSCONV_CONV(4, 64, false)
  SSCONV_CONV(4, 128, false)
  SSCONV_CONV(1, 32, true)
  SSCONV_CONV(1, 64, true)
  SSCONV_CONV(2, 32, true)
  SSCONV_CONV(2, 64, true)
  SSCONV_CONV(4, 64, true)
#undef SSCONV_CONV
  return "fused, block_n, elementwise: there is no such instantiation of conv_sm80";
}

}  // namespace ssconv
