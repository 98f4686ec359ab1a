// The emulator's bodies of csrc/cuda/launch_kernel.cuh.
#pragma once

#include "emulator.h"

namespace ssconv {

template <class Kernel>
const char* launch_clusters(const typename Kernel::Params& params, Grid grid, int cluster, int shared_bytes, void*) {
  struct Call {
    static void run(const void* p) { Kernel::run(*static_cast<const typename Kernel::Params*>(p)); }
  };
  return emulator::launch(Kernel::name(), grid.x, grid.y, grid.z, Kernel::THREADS, shared_bytes, Call::run, &params,
                          cluster);
}

template <class Kernel>
const char* launch(const typename Kernel::Params& params, Grid grid, int shared_bytes, void* stream) {
  return launch_clusters<Kernel>(params, grid, 1, shared_bytes, stream);
}

}  // namespace ssconv
