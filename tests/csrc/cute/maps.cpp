// Prints the arguments with which csrc/cuda/ptx/tensor_map.cuh would call the driver's cuTensorMapEncodeIm2col and
// cuTensorMapEncodeTiled, as the CUDA build has it and the emulator never runs it, for tests/csrc/test_cute_oracle.py.
//
//   maps < BOXES
//
// BOXES: a line each: N D H W of the tensor, its byte strides, channels. Then im2col, lower and upper corner and steps
// along D, H, W, channels and pixels; or tiled, channels, D, H, W of the box, bytes of the swizzle. The output has the
// order of `arguments` in im2col.cpp and layouts.cpp.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>

#include <cuda_runtime.h>

#define __CUDACC__  // the CUDA build's half of the headers; nothing of it runs on a device here
#include "cuda/ptx/tensor_map.cuh"

namespace {

template <class V>
void list(const V* values, int count) {
  for (int i = 0; i < count; ++i) std::printf("%d ", int(values[i]));
}

CUresult print_im2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void*, const cuuint64_t* size,
                      const cuuint64_t* stride, const int* lower, const int* upper, cuuint32_t channels,
                      cuuint32_t pixels, const cuuint32_t* step, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                      CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  list(size, rank), list(stride, rank - 1), list(lower, rank - 2), list(upper, rank - 2), list(step, rank);
  std::printf("%d %d %d\n", int(channels), int(pixels), int(swizzle));
  return CUDA_SUCCESS;
}

CUresult print_tiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void*, const cuuint64_t* size,
                     const cuuint64_t* stride, const cuuint32_t* box, const cuuint32_t* step, CUtensorMapInterleave,
                     CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  list(size, rank), list(stride, rank - 1), list(box, rank), list(step, rank);
  std::printf("%d\n", int(swizzle));
  return CUDA_SUCCESS;
}

}  // namespace

// The runtime's functions that tensor_map.cuh calls, of older and newer toolkits: the driver's functions are ours.
extern "C" cudaError_t CUDARTAPI cudaGetDriverEntryPoint(const char* name, void** found, unsigned long long,
                                                         cudaDriverEntryPointQueryResult*) {
  const bool tiled = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
  *found = tiled ? reinterpret_cast<void*>(print_tiled) : reinterpret_cast<void*>(print_im2col);
  return cudaSuccess;
}
extern "C" cudaError_t CUDARTAPI cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned,
                                                                  unsigned long long,
                                                                  cudaDriverEntryPointQueryResult*) {
  return cudaGetDriverEntryPoint(name, found, 0, nullptr);
}
extern "C" cudaError_t CUDARTAPI cudaGetLastError() { return cudaSuccess; }

int main() {
  using namespace ssconv;
  MapTensor x = {};
  Im2colBox box = {};
  static char data[16];
  x.data = data;
  const auto read = [](auto& values) {
    for (auto& v : values) std::cin >> v;
  };
  while (std::cin >> x.size[0] >> x.size[1] >> x.size[2] >> x.size[3]) {
    read(x.stride);
    std::string kind;
    std::cin >> x.channels >> kind;
    TensorMap map;
    const char* error = nullptr;
    if (kind == "im2col") {
      read(box.lower);
      read(box.upper);
      read(box.step);
      std::cin >> box.channels >> box.pixels;
      error = encode_im2col_map(x, box, map);
    } else {
      int channels, extent[3], swizzle;
      std::cin >> channels;
      read(extent);
      std::cin >> swizzle;
      error = encode_tiled_map(x, channels, extent, swizzle, map);
    }
    if (error != nullptr) return std::puts(error), 1;
  }
}
