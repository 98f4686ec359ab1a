// The CPU kernels for x86-64 with AVX2 and FMA: 16 registers of 8 floats.
#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif
#define SSCONV_ISA avx2
#define SSCONV_NAME "avx2"
#define SSCONV_LANES 8
#define SSCONV_WIDE_ROWS 6
#define SSCONV_NARROW_ROWS 12
#define SSCONV_THREE_TAP_ROWS 4
#define SSCONV_HALF 1
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
