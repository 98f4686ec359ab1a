// The emulator's bodies of csrc/cuda/ptx/convert.cuh.
#pragma once

#include <cmath>
#include <cstring>

namespace ssconv {

inline uint32_t multiply_high(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t(a) * b >> 32); }
inline float fused_multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }
inline float to_float(f16 x) {
  _Float16 h;
  std::memcpy(&h, &x.bits, 2);
  return static_cast<float>(h);
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  const uint32_t b = bits_of(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((b + 0x7fff + (b >> 16 & 1)) >> 16)};
}
template <>
inline f16 from_float<f16>(float x) {
  const _Float16 h = static_cast<_Float16>(x);
  f16 result;
  std::memcpy(&result.bits, &h, 2);
  return result;
}

inline uint32_t round_tf32(uint32_t bits) {
  const bool finite = (bits >> 23 & 0xff) != 0xff;
  return finite ? (bits + 0x1000) & 0xffffe000 : bits;
}

}  // namespace ssconv
