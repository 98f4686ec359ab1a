// What calls the kernels: a function per kernel that picks the instantiation. Null, or what went wrong.
#pragma once

#include "params.h"

namespace ssconv {

struct ConvSm90HaloParams;

enum class Arithmetic : int { bf16 = 0, f16 = 1, tf32 = 2, ieee = 3 };

// The instantiation of a product: branches that a block computes, columns of all of them, and how x is read.
struct ConvSm80Variant {
  int fused, width;
  bool elements;
};

const char* conv_sm80_bf16(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream);
const char* conv_sm80_f16(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream);
const char* conv_sm80_tf32(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream);
const char* conv_sm80_ieee(const ConvSm80Variant& kind, const ConvSm80Params& p, Grid grid, void* stream);
const char* conv_sm90(Arithmetic arithmetic, int fused, int columns, ConvSm90Params& p, Grid grid, void* stream);
const char* conv_sm90_halo(Arithmetic arithmetic, int fused, int columns, ConvSm90HaloParams& p, Grid grid, void* stream);
const char* wgrad_sm90(Arithmetic arithmetic, int rows, WgradSm90Params& p, Grid grid, void* stream);
const char* wgrad_sm80(Arithmetic arithmetic, int rows, const WgradSm80Params& p, Grid grid, void* stream);
const char* wgrad_reduce(const WgradReduceParams& p, Grid grid, void* stream);
const char* pack_weights(Arithmetic arithmetic, const PackWeightsParams& p, Grid grid, void* stream);
const char* pack_input(Format format, const PackInputParams& p, Grid grid, void* stream);
const char* epilogue(Format format, const EpilogueParams& p, Grid grid, void* stream);
const char* epilogue_backward(Format format, const EpilogueBackwardParams& p, Grid grid, void* stream);
const char* upfirdn(Format format, const UpfirdnParams& p, Grid grid, int shared_bytes, void* stream);

// A call in numbers, as ssconv/backend/cuda/launch.py writes it: pointers and sizes, then floats. Null, or what went wrong.
const char* cuda_call(const char* kernel, const int64_t* integers, int64_t integer_count, const double* floats,
                      int64_t float_count);

}  // namespace ssconv
