// Launches of the epilogue by itself and of its backward pass.
#include "epilogue.cuh"
#include "switch.cuh"

namespace ssconv {
namespace {

// launch<Kernel<T, S>> for S branches; Kernel<T, 0> serves every number that has no instantiation.
template <template <class, int> class Kernel, class T, class Params>
const char* launch_branches(const Params& p, void* stream) {
  switch (p.groups) {
    case 1:
      return launch<Kernel<T, 1>>(p, p.grid, Kernel<T, 1>::SHARED, stream);
    case 2:
      return launch<Kernel<T, 2>>(p, p.grid, Kernel<T, 2>::SHARED, stream);
    case 4:
      return launch<Kernel<T, 4>>(p, p.grid, Kernel<T, 4>::SHARED, stream);
    default:
      return launch<Kernel<T, 0>>(p, p.grid, Kernel<T, 0>::SHARED, stream);
  }
}

}  // namespace

const char* epilogue(const EpilogueParams& p, void* stream) {
  return SSCONV_SWITCH_FORMAT(p.format, T, launch_branches<EpilogueForward, T>(p, stream));
}

const char* epilogue_backward(const EpilogueBackwardParams& p, void* stream) {
  return SSCONV_SWITCH_FORMAT(p.format, T, launch_branches<EpilogueBackward, T>(p, stream));
}

}  // namespace ssconv
