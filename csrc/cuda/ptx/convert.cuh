// Conversions between number formats, and single arithmetic instructions.
#pragma once

#include "types.cuh"

#if !defined(__CUDACC__)
#include "emulator/ptx/convert.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace ssconv {

SSCONV_DEVICE uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
SSCONV_DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
SSCONV_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
SSCONV_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

SSCONV_DEVICE float to_float(float x) { return x; }
SSCONV_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
SSCONV_DEVICE float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// Rounds to nearest even.
template <class T>
SSCONV_DEVICE T from_float(float x);
template <>
SSCONV_DEVICE float from_float<float>(float x) {
  return x;
}
template <>
SSCONV_DEVICE bf16 from_float<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
SSCONV_DEVICE f16 from_float<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Rounds a float's bits to the 10-bit mantissa of TF32, ties away from zero.
SSCONV_DEVICE uint32_t round_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

}  // namespace ssconv
#endif
