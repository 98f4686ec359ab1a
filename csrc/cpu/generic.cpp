// The CPU kernels for the architecture's baseline: 16 registers of 4 floats on x86-64 (SSE2), 32 on 64-bit ARM (NEON).
#include <stdio.h>
#include <stdlib.h>

#include "cpu.h"

#define SSCONV_ISA generic
#define SSCONV_NAME "generic"
#define SSCONV_LANES 4
#if defined(__aarch64__)
#define SSCONV_WIDE_ROWS 12
#define SSCONV_NARROW_ROWS 16
#else
#define SSCONV_WIDE_ROWS 5
#define SSCONV_NARROW_ROWS 12
#endif
#define SSCONV_THREE_TAP_ROWS 0
#define SSCONV_HALF 0
#include "kernels.inl"
