// From a value known at run time to a template argument: the expression is compiled for each of the types.
//
//   SSCONV_SWITCH_FORMAT(p.format, T, launch<Upfirdn<T>>(p, p.grid, p.shared_bytes, stream))
#pragma once

#include "arithmetic.cuh"
#include "launch.h"
#include "launch_kernel.cuh"

// T: the element type of a format (bf16, f16 or float). The expression gives a const char*.
#define SSCONV_SWITCH_FORMAT(format, T, ...) \
  [&]() -> const char* {                     \
    switch (format) {                        \
      case Format::bf16: {                   \
        using T = bf16;                      \
        return __VA_ARGS__;                  \
      }                                      \
      case Format::f16: {                    \
        using T = f16;                       \
        return __VA_ARGS__;                  \
      }                                      \
      default: {                             \
        using T = float;                     \
        return __VA_ARGS__;                  \
      }                                      \
    }                                        \
  }()

// A: Bf16, F16, Tf32 or Ieee.
#define SSCONV_SWITCH_ARITHMETIC(arithmetic, A, ...) \
  [&]() -> const char* {                             \
    switch (arithmetic) {                            \
      case Arithmetic::bf16: {                       \
        using A = Bf16;                              \
        return __VA_ARGS__;                          \
      }                                              \
      case Arithmetic::f16: {                        \
        using A = F16;                               \
        return __VA_ARGS__;                          \
      }                                              \
      case Arithmetic::tf32: {                       \
        using A = Tf32;                              \
        return __VA_ARGS__;                          \
      }                                              \
      default: {                                     \
        using A = Ieee;                              \
        return __VA_ARGS__;                          \
      }                                              \
    }                                                \
  }()
