// The kernels that memory limits.
#include "upfirdn.cuh"
#include "epilogue.cuh"
#include "launch.h"
#include "pack.cuh"

namespace ssconv {
namespace {

// launch<Kernel<T, S>> for a number of branches.
template <template <class, int> class Kernel, class T, class Params>
const char* launch_groups(const Params& p, Grid grid, void* stream) {
  switch (p.groups) {
    case 1:
      return launch<Kernel<T, 1>>(p, grid, Kernel<T, 1>::SHARED, stream);
    case 2:
      return launch<Kernel<T, 2>>(p, grid, Kernel<T, 2>::SHARED, stream);
    case 4:
      return launch<Kernel<T, 4>>(p, grid, Kernel<T, 4>::SHARED, stream);
    default:
      return launch<Kernel<T, 0>>(p, grid, Kernel<T, 0>::SHARED, stream);
  }
}

}  // namespace

// `call` with T the element type of a format.
#define SSCONV_FORMATS(format, call)                    \
  switch (format) {                                     \
    case Format::bf16: {                                \
      using T = bf16;                                   \
      return call;                                      \
    }                                                   \
    case Format::f16: {                                 \
      using T = f16;                                    \
      return call;                                      \
    }                                                   \
    default: {                                          \
      using T = float;                                  \
      return call;                                      \
    }                                                   \
  }

const char* pack(Arithmetic arithmetic, const PackParams& p, Grid grid, void* stream) {
  switch (arithmetic) {
    case Arithmetic::bf16:
      return launch<Pack<Bf16>>(p, grid, 0, stream);
    case Arithmetic::f16:
      return launch<Pack<F16>>(p, grid, 0, stream);
    case Arithmetic::tf32:
      return launch<Pack<Tf32>>(p, grid, 0, stream);
    default:
      return launch<Pack<Ieee>>(p, grid, 0, stream);
  }
}

const char* arrange(Format format, const ArrangeParams& p, Grid grid, void* stream) {
  SSCONV_FORMATS(format, launch<Arrange<T>>(p, grid, 0, stream))
}

const char* epilogue(Format format, const FinishParams& p, Grid grid, void* stream) {
  SSCONV_FORMATS(format, (launch_groups<Finish, T>(p, grid, stream)))
}

const char* epilogue_backward(Format format, const FinishBackwardParams& p, Grid grid, void* stream) {
  SSCONV_FORMATS(format, (launch_groups<FinishBackward, T>(p, grid, stream)))
}

const char* upfirdn(Format format, const FilterParams& p, Grid grid, int shared_bytes, void* stream) {
  SSCONV_FORMATS(format, launch<Filter<T>>(p, grid, shared_bytes, stream))
}

}  // namespace ssconv
