#include "conv_sm80_launch.cuh"

namespace ssconv {

const char* product_ieee(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream) {
  return launch_product<Ieee>(kind, p, grid, stream);
}

}  // namespace ssconv
