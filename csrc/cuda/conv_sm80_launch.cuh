// The instantiations of Product for one arithmetic.
#pragma once

#include "launch.h"
#include "conv_sm80.cuh"

namespace ssconv {

template <class A>
const char* launch_product(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream) {
#define SSCONV_PRODUCT(S, WIDTH, ELEMENTS)                                                     \
  if (kind.fused == S && kind.width == WIDTH && kind.elements == ELEMENTS)                    \
    return launch<Product<A, S, WIDTH, ELEMENTS>>(p, grid, p.stages * Product<A, S, WIDTH, ELEMENTS>::STAGE, stream)
  SSCONV_PRODUCT(1, 64, false);
  SSCONV_PRODUCT(2, 64, false);
  SSCONV_PRODUCT(2, 64, true);
  SSCONV_PRODUCT(4, 64, false);
  SSCONV_PRODUCT(1, 32, true);
  SSCONV_PRODUCT(1, 128, false);
  SSCONV_PRODUCT(2, 128, false);
  SSCONV_PRODUCT(4, 128, false);
  SSCONV_PRODUCT(1, 32, false);
  SSCONV_PRODUCT(2, 32, false);
  SSCONV_PRODUCT(1, 64, true);
  SSCONV_PRODUCT(2, 32, true);
  SSCONV_PRODUCT(4, 64, true);
#undef SSCONV_PRODUCT
  return "there is no such product kernel";
}

}  // namespace ssconv
