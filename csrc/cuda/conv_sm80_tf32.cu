#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* product_tf32(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream) {
  return launch_product<Tf32>(kind, p, grid, stream);
}

}  // namespace ssconv
