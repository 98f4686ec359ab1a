// What calls the kernels: a function per kernel that picks the instantiation. Null, or what went wrong.
#pragma once

#include "params.h"

namespace ssconv {

struct HaloParams;

enum class Arithmetic : int { bf16 = 0, f16 = 1, tf32 = 2, ieee = 3 };

// The instantiation of a product: branches that a block computes, columns of all of them, and how x is read.
struct ProductKind {
  int fused, width;
  bool elements;
};

const char* product_bf16(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream);
const char* product_f16(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream);
const char* product_tf32(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream);
const char* product_ieee(const ProductKind& kind, const ProductParams& p, Grid grid, void* stream);
const char* product_sm90(Arithmetic arithmetic, int fused, int columns, TensorProductParams& p, Grid grid, void* stream);
const char* halo_sm90(Arithmetic arithmetic, int fused, int columns, HaloParams& p, Grid grid, void* stream);
const char* weight_gradient_sm90(Arithmetic arithmetic, int rows, TensorWeightParams& p, Grid grid, void* stream);
const char* weight_gradient(Arithmetic arithmetic, int rows, const WeightParams& p, Grid grid, void* stream);
const char* reduce(const ReduceParams& p, Grid grid, void* stream);
const char* pack(Arithmetic arithmetic, const PackParams& p, Grid grid, void* stream);
const char* arrange(Format format, const ArrangeParams& p, Grid grid, void* stream);
const char* epilogue(Format format, const FinishParams& p, Grid grid, void* stream);
const char* epilogue_backward(Format format, const FinishBackwardParams& p, Grid grid, void* stream);
const char* upfirdn(Format format, const FilterParams& p, Grid grid, int shared_bytes, void* stream);

// A call in numbers, as ssconv/backend/cuda/launch.py writes it: pointers and sizes, then floats. Null, or what went wrong.
const char* cuda_call(const char* kernel, const int64_t* integers, int64_t integer_count, const double* floats,
                      int64_t float_count);

}  // namespace ssconv
