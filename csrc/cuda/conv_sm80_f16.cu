#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* product_f16(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream) {
  return launch_product<F16>(kind, p, grid, stream);
}

}  // namespace ssconv
