// The launches: a function per kernel that picks the instantiation. Each returns null, or what went wrong.
#pragma once

#include <cstddef>

#include "params.h"

namespace ssconv {

const char* conv_sm80_bf16(const ConvSm80Params& p, void* stream);
const char* conv_sm80_f16(const ConvSm80Params& p, void* stream);
const char* conv_sm80_tf32(const ConvSm80Params& p, void* stream);
const char* conv_sm80_ieee(const ConvSm80Params& p, void* stream);
const char* conv_sm90(const ConvSm90Call& call, void* stream);
const char* conv_sm90_halo(const ConvSm90HaloCall& call, void* stream);
const char* pack_weights(const PackWeightsParams& p, void* stream);
const char* pack_input(const PackInputParams& p, void* stream);
const char* wgrad_sm80(const WgradSm80Params& p, void* stream);
const char* wgrad_sm90(const WgradSm90Call& call, void* stream);
const char* wgrad_reduce(const WgradReduceParams& p, void* stream);
const char* epilogue(const EpilogueParams& p, void* stream);
const char* epilogue_backward(const EpilogueBackwardParams& p, void* stream);
const char* upfirdn(const UpfirdnParams& p, void* stream);

// Launches a kernel by its name, with the bytes of its call's struct. Null, or what went wrong.
const char* cuda_call(const char* kernel, const void* params, size_t bytes, void* stream);

}  // namespace ssconv
