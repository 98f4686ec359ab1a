// Launches a kernel from the host. A kernel is a struct with
//   Params               its one argument
//   run(const Params&)   its device code
//   THREADS, BLOCKS      threads of a block; blocks that shall fit on a multiprocessor at once
//   name()               for the emulator's messages
#pragma once

#include "params.h"
#include "ptx/types.cuh"

#if !defined(__CUDACC__)
#include "emulator/launch_kernel.h"
#else
#include <cuda_runtime.h>

namespace ssconv {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::THREADS, Kernel::BLOCKS)
    kernel(const __grid_constant__ typename Kernel::Params params) {
  Kernel::run(params);
}

// Launches with `cluster` neighbouring blocks along x as a cluster. Returns null, or CUDA's error message.
template <class Kernel>
const char* launch_clusters(const typename Kernel::Params& params, Grid grid, int cluster, int shared_bytes,
                            void* stream) {
  const void* function = reinterpret_cast<const void*>(&kernel<Kernel>);
  cudaLaunchAttribute size = {};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = cluster;
  size.val.clusterDim.y = size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(Kernel::THREADS);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &size;
  config.numAttrs = cluster > 1;
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  void* arguments[] = {const_cast<void*>(static_cast<const void*>(&params))};
  if (status == cudaSuccess) status = cudaLaunchKernelExC(&config, function, arguments);
  if (status == cudaSuccess) return nullptr;
  cudaGetLastError();  // clears the error: nobody else shall find it
  return cudaGetErrorString(status);
}

template <class Kernel>
const char* launch(const typename Kernel::Params& params, Grid grid, int shared_bytes, void* stream) {
  return launch_clusters<Kernel>(params, grid, 1, shared_bytes, stream);
}

}  // namespace ssconv
#endif
