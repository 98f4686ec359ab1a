// The CPU kernels for x86-64 with AVX-512 (F, BW, DQ, VL): 32 registers of 16 floats.
#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#define SSCONV_ISA avx512
#define SSCONV_NAME "avx512"
#define SSCONV_LANES 16
#define SSCONV_WIDE_ROWS 14
#define SSCONV_NARROW_ROWS 24
#define SSCONV_THREE_TAP_ROWS 8
#define SSCONV_HALF 1
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
