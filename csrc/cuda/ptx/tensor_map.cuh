// Tensor maps (CUtensorMap, sm_90): made on the host, passed to the kernel as a parameter, read by tma_load_*.
//
// A map views one branch's channels of a 16-bit tensor (N, C, D, H, W). What a copy reads outside comes as zeros:
// positions beyond the tensor's edges, channels beyond the branch's.
#pragma once

#include "../params.h"
#include "types.cuh"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace ssconv {

// The tensor that a map views. Strides in bytes, axes N, D, H, W.
struct MapTensor {
  const void* data;
  bool half;  // f16, not bf16
  int channels;
  int size[4];
  int64_t stride[4];
};

// The box that one im2col copy brings: `channels` of each of `pixels` base positions from a given one on, axes D, H, W.
// Base positions go from `lower` to size - 1 + `upper` in steps. Rows of `channels` are swizzled as wgmma expects them.
struct Im2colBox {
  int lower[3], upper[3], step[3];
  int channels, pixels;
};

// Branch `number` of x. The stride of an extent of 1 is arbitrary in torch, and must be valid here.
inline MapTensor branch_of(const Volume& x, int number, int channels, bool half) {
  MapTensor t = {};
  t.data = static_cast<const char*>(x.data) + int64_t(number) * channels * 2;
  t.half = half;
  t.channels = channels;
  int64_t extent = int64_t(channels) * 2;  // bytes of all that lies inside the next dimension
  for (int i = 3; i >= 0; --i) {
    t.size[i] = x.size[i];
    t.stride[i] = x.size[i] > 1 ? x.stride[i == 0 ? 0 : i + 1] * 2 : extent;
    extent = t.stride[i] * t.size[i];
  }
  return t;
}
// Sets the corners along dimension i such that they hold exactly `count` base positions from `lower` on.
inline void set_window(Im2colBox& box, const MapTensor& x, int i, int lower, int step, int count) {
  box.lower[i] = lower;
  box.step[i] = step;
  box.upper[i] = lower + (count - 1) * step - (x.size[i + 1] - 1);
}

// Both make a map; they return null, or why there is none.
//   box: voxels of a tiled copy, D, H, W; `channels` of each. swizzle_bytes: 128, 64, 32: the bytes of a voxel; 0:
//   none.
const char* encode_im2col_map(const MapTensor& x, const Im2colBox& box, TensorMap& map);
const char* encode_tiled_map(const MapTensor& x, int channels, const int (&box)[3], int swizzle_bytes, TensorMap& map);

}  // namespace ssconv

#if !defined(__CUDACC__)
#include "emulator/ptx/tensor_map.h"
#else

namespace ssconv {

// A function of the driver's API, by name. The runtime looks it up, so that the module need not be linked against
// libcuda.
inline void* driver_function(const char* name) {
  void* found = nullptr;
#if CUDART_VERSION >= 12050
  cudaDriverEntryPointQueryResult result;
  cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
  cudaGetDriverEntryPoint(name, &found, cudaEnableDefault);
#endif
  cudaGetLastError();  // clears the error: nobody else shall find it
  return found;
}

inline const char* encode_im2col_map(const MapTensor& x, const Im2colBox& box, TensorMap& map) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap), "a tensor map has 128 bytes");
  static const auto encode =
      reinterpret_cast<decltype(&cuTensorMapEncodeIm2col)>(driver_function("cuTensorMapEncodeIm2col"));
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeIm2col";
  // Innermost first: C, W, H, D, N; corners W, H, D.
  const cuuint64_t size[5] = {cuuint64_t(x.channels), cuuint64_t(x.size[3]), cuuint64_t(x.size[2]),
                              cuuint64_t(x.size[1]), cuuint64_t(x.size[0])};
  const cuuint64_t stride[4] = {cuuint64_t(x.stride[3]), cuuint64_t(x.stride[2]), cuuint64_t(x.stride[1]),
                                cuuint64_t(x.stride[0])};
  const int lower[3] = {box.lower[2], box.lower[1], box.lower[0]};
  const int upper[3] = {box.upper[2], box.upper[1], box.upper[0]};
  const cuuint32_t step[5] = {1, cuuint32_t(box.step[2]), cuuint32_t(box.step[1]), cuuint32_t(box.step[0]), 1};
  const CUtensorMapSwizzle swizzle = box.channels == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : box.channels == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                          : CU_TENSOR_MAP_SWIZZLE_32B;
  const CUresult status =
      encode(reinterpret_cast<CUtensorMap*>(&map),
             x.half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
             const_cast<void*>(x.data), size, stride, lower, upper, box.channels, box.pixels, step,
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeIm2col refuses the tensor";
}

inline const char* encode_tiled_map(const MapTensor& x, int channels, const int (&box)[3], int swizzle_bytes,
                                    TensorMap& map) {
  static const auto encode =
      reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(driver_function("cuTensorMapEncodeTiled"));
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  // Innermost first: C, W, H, D, N.
  const cuuint64_t size[5] = {cuuint64_t(x.channels), cuuint64_t(x.size[3]), cuuint64_t(x.size[2]),
                              cuuint64_t(x.size[1]), cuuint64_t(x.size[0])};
  const cuuint64_t stride[4] = {cuuint64_t(x.stride[3]), cuuint64_t(x.stride[2]), cuuint64_t(x.stride[1]),
                                cuuint64_t(x.stride[0])};
  const cuuint32_t extent[5] = {cuuint32_t(channels), cuuint32_t(box[2]), cuuint32_t(box[1]), cuuint32_t(box[0]), 1};
  const cuuint32_t step[5] = {1, 1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = swizzle_bytes == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : swizzle_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : swizzle_bytes == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                  : CU_TENSOR_MAP_SWIZZLE_NONE;
  const CUresult status = encode(reinterpret_cast<CUtensorMap*>(&map),
                                 x.half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
                                 const_cast<void*>(x.data), size, stride, extent, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses the tensor";
}

}  // namespace ssconv
#endif
