// Launches of the epilogue by itself and of its backward pass.
#include "epilogue.cuh"
#include "switch.cuh"

namespace ssconv {
namespace {

// launch<Kernel<T, S>> for S branches; Kernel<T, 0> serves every number that has no instantiation.
template <template <class, int> class Kernel, class T, class Params>
const char* launch_branches(const Params& p, Grid grid, void* stream) {
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

const char* epilogue(Format format, const EpilogueParams& p, Grid grid, void* stream) {
  return SSCONV_SWITCH_FORMAT(format, T, launch_branches<EpilogueForward, T>(p, grid, stream));
}

const char* epilogue_backward(Format format, const EpilogueBackwardParams& p, Grid grid, void* stream) {
  return SSCONV_SWITCH_FORMAT(format, T, launch_branches<EpilogueBackward, T>(p, grid, stream));
}

}  // namespace ssconv
