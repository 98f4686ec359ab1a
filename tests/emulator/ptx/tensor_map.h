// The emulator's bodies of csrc/cuda/ptx/tensor_map.cuh: an emulator::Map travels in the TensorMap's bytes. They refuse
// what the driver's functions refuse.
#pragma once

#include <cstring>

#include "../emulator.h"

namespace ssconv {

inline const char* encode_im2col_map(const MapTensor& x, const Im2colBox& box, TensorMap& map) {
  emulator::Map m = {};
  m.base = static_cast<const char*>(x.data);
  m.element = 2;
  m.im2col = true;
  m.size[0] = x.channels;
  m.box[0] = box.channels;
  m.box[1] = box.pixels;
  m.swizzle = static_cast<uint8_t>(2 * box.channels);
  for (int i = 0; i < 4; ++i) {
    m.size[1 + i] = x.size[3 - i];
    m.stride[i] = x.stride[3 - i];
    if (m.stride[i] % 16 != 0 || m.stride[i] < 0 || m.stride[i] >> 40 != 0 || m.size[1 + i] < 1)
      return "cuTensorMapEncodeIm2col refuses the tensor: a stride";
  }
  for (int i = 0; i < 3; ++i) {
    const int lower = box.lower[2 - i], upper = box.upper[2 - i], step = box.step[2 - i];
    if (lower < -16 || lower > 15 || upper < -16 || upper > 15 || step < 1 || step > 8)
      return "cuTensorMapEncodeIm2col refuses the tensor: a corner or a step";
    m.lower[i] = static_cast<int8_t>(lower);
    m.upper[i] = static_cast<int8_t>(upper);
    m.step[i] = static_cast<uint8_t>(step);
  }
  if (reinterpret_cast<uintptr_t>(x.data) % 16 != 0 || box.pixels > 1024 || box.channels > 256)
    return "cuTensorMapEncodeIm2col refuses the tensor: an address or a box";
  std::memcpy(&map, &m, sizeof m);
  return nullptr;
}

inline const char* encode_tiled_map(const MapTensor& x, int channels, const int (&box)[3], int swizzle_bytes,
                                    TensorMap& map) {
  emulator::Map m = {};
  m.base = static_cast<const char*>(x.data);
  m.element = 2;
  m.size[0] = x.channels;
  m.box[0] = channels;
  m.box[4] = 1;
  m.swizzle = static_cast<uint8_t>(swizzle_bytes);
  for (int i = 0; i < 4; ++i) {
    m.size[1 + i] = x.size[3 - i];
    m.stride[i] = x.stride[3 - i];
    if (i < 3) m.box[1 + i] = box[2 - i];
    if (m.stride[i] % 16 != 0 || m.stride[i] < 0 || m.stride[i] >> 40 != 0 || m.size[1 + i] < 1)
      return "cuTensorMapEncodeTiled refuses the tensor: a stride";
    if (m.box[1 + i] < 1 || m.box[1 + i] > 256) return "cuTensorMapEncodeTiled refuses the tensor: a box";
  }
  const bool fits = swizzle_bytes == 0 ? channels * 2 % 16 == 0 && channels <= 256 : channels * 2 <= swizzle_bytes;
  if (!fits || reinterpret_cast<uintptr_t>(x.data) % 16 != 0)
    return "cuTensorMapEncodeTiled refuses the tensor: an address or a box";
  std::memcpy(&map, &m, sizeof m);
  return nullptr;
}

}  // namespace ssconv
