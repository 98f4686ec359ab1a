// The arithmetics that kernels are instantiated for, and small functions that several kernels use.
#pragma once

#include "params.h"
#include "ptx/convert.cuh"
#include "ptx/memory.cuh"
#include "ptx/threads.cuh"

namespace ssconv {

// How the operands of a convolution are stored and multiplied. Accumulators are always fp32.
struct Bf16 {
  using Element = bf16;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "bf16";
};
struct F16 {
  using Element = f16;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "f16";
};
struct Tf32 {
  using Element = float;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "tf32";
};
struct Ieee {
  using Element = float;
  static constexpr bool TENSOR_CORES = false;
  static constexpr const char* NAME = "ieee";
};

SSCONV_DEVICE uint32_t divide(const Divider& d, uint32_t n) { return (multiply_high(n, d.multiplier) + n) >> d.shift; }
// Divides n in place and returns the remainder: takes the last coordinate off a linear index.
SSCONV_DEVICE uint32_t divmod(const Divider& d, uint32_t& n) {
  const uint32_t quotient = divide(d, n), remainder = n - quotient * d.divisor;
  n = quotient;
  return remainder;
}

SSCONV_DEVICE bool inside(int position, int size) {
  return static_cast<unsigned>(position) < static_cast<unsigned>(size);
}

SSCONV_DEVICE float load_companion(const Companion& c, int64_t i) {
  if (c.format == Format::f32) return load(static_cast<const float*>(c.data) + i);
  if (c.format == Format::bf16) return to_float(load(static_cast<const bf16*>(c.data) + i));
  return to_float(load(static_cast<const f16*>(c.data) + i));
}

// The taps of `extent` that reach outputs of parity `offset` along one dimension; see Taps.
SSCONV_EITHER Taps taps_of(int offset, int extent, int first, int stride, bool adjoint) {
  const int half = (extent - 1) / 2;
  if (!adjoint) return {extent, 0, first - half};
  const int reach =
      offset + half - first + 64 * stride;  // positive; tap t fits where reach - t is a multiple of stride
  const int tap = reach % stride;
  return {(extent - tap + stride - 1) / stride, tap, (reach - tap) / stride - 64};
}

}  // namespace ssconv
