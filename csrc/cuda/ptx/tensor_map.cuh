// Tiled tensor maps, beside the im2col maps of sm90.cuh.
//
// What is outside of the tensor comes as zeros: halos beyond its edges, channels beyond a branch's.
#pragma once

#include "sm90.cuh"

namespace ssconv {

// Null, or why there is no map of boxes of `channels` by box[0] x box[1] x box[2] voxels (d, h, w) of a sample of x, of
// which data, half, channels_there, size and stride count. span: bytes of the swizzle, those of a voxel; 0: none.
inline const char* make_tiled_map(const Im2col& x, int channels, const int (&box)[3], int span, TensorMap& map) {
#if defined(__CUDACC__)
  static const auto encode = [] {
    void* found = nullptr;
#if CUDART_VERSION >= 12050
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
#else
    cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault);
#endif
    cudaGetLastError();  // ours to report: nobody else shall find it
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  if (encode == nullptr) return "the driver has no cuTensorMapEncodeTiled";
  // Innermost first: C, W, H, D, N.
  const cuuint64_t size[5] = {cuuint64_t(x.channels_there), cuuint64_t(x.size[3]), cuuint64_t(x.size[2]),
                              cuuint64_t(x.size[1]), cuuint64_t(x.size[0])};
  const cuuint64_t stride[4] = {cuuint64_t(x.stride[3]), cuuint64_t(x.stride[2]), cuuint64_t(x.stride[1]),
                                cuuint64_t(x.stride[0])};
  const cuuint32_t extent[5] = {cuuint32_t(channels), cuuint32_t(box[2]), cuuint32_t(box[1]), cuuint32_t(box[0]), 1};
  const cuuint32_t step[5] = {1, 1, 1, 1, 1};
  const CUtensorMapSwizzle swizzle = span == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : span == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                     : span == 32 ? CU_TENSOR_MAP_SWIZZLE_32B
                                                  : CU_TENSOR_MAP_SWIZZLE_NONE;
  const CUresult status = encode(reinterpret_cast<CUtensorMap*>(&map),
                                 x.half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5,
                                 const_cast<void*>(x.data), size, stride, extent, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return status == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled refuses the tensor";
#else
  emulator::Map m = {};
  m.base = static_cast<const char*>(x.data);
  m.element = 2;
  m.size[0] = x.channels_there;
  m.box[0] = channels;
  m.box[4] = 1;
  m.swizzle = static_cast<uint8_t>(span);
  for (int i = 0; i < 4; ++i) {
    m.size[1 + i] = x.size[3 - i];
    m.stride[i] = x.stride[3 - i];
    if (i < 3) m.box[1 + i] = box[2 - i];
    if (m.stride[i] % 16 != 0 || m.stride[i] < 0 || m.stride[i] >> 40 != 0 || m.size[1 + i] < 1)
      return "cuTensorMapEncodeTiled refuses the tensor: a stride";
    if (m.box[1 + i] < 1 || m.box[1 + i] > 256) return "cuTensorMapEncodeTiled refuses the tensor: a box";
  }
  const bool fits = span == 0 ? channels * 2 % 16 == 0 && channels <= 256 : channels * 2 <= span;
  if (!fits || reinterpret_cast<uintptr_t>(x.data) % 16 != 0)
    return "cuTensorMapEncodeTiled refuses the tensor: an address or a box";
  std::memcpy(&map, &m, sizeof m);
  return nullptr;
#endif
}

}  // namespace ssconv
