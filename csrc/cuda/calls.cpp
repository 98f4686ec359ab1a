// From a kernel's name and the bytes of its call to its launch.
#include <cstring>
#include <string>

#include "launch.h"

namespace ssconv {
namespace {

// The last error whose text is put together here.
thread_local std::string message;

const char* conv_sm80(const ConvSm80Params& p, void* stream) {
  switch (p.arithmetic) {
    case Arithmetic::bf16:
      return conv_sm80_bf16(p, stream);
    case Arithmetic::f16:
      return conv_sm80_f16(p, stream);
    case Arithmetic::tf32:
      return conv_sm80_tf32(p, stream);
    default:
      return conv_sm80_ieee(p, stream);
  }
}

template <class Call>
const char* launch_bytes(const char* (*launch)(const Call&, void*), const void* params, size_t bytes, void* stream) {
  if (bytes != sizeof(Call)) {
    message = "params: expected a struct of " + std::to_string(sizeof(Call)) + " bytes; got " + std::to_string(bytes) +
              "; build the module from the sources of this Python package";
    return message.c_str();
  }
  Call call;  // aligned, as the bytes need not be
  std::memcpy(&call, params, sizeof call);
  return launch(call, stream);
}

}  // namespace

const char* cuda_call(const char* kernel, const void* params, size_t bytes, void* stream) {
#define SSCONV_KERNEL(name) \
  if (std::strcmp(kernel, #name) == 0) return launch_bytes(name, params, bytes, stream)
  SSCONV_KERNEL(conv_sm80);
  SSCONV_KERNEL(conv_sm90);
  SSCONV_KERNEL(conv_sm90_halo);
  SSCONV_KERNEL(pack_weights);
  SSCONV_KERNEL(pack_input);
  SSCONV_KERNEL(wgrad_sm80);
  SSCONV_KERNEL(wgrad_sm90);
  SSCONV_KERNEL(wgrad_reduce);
  SSCONV_KERNEL(epilogue);
  SSCONV_KERNEL(epilogue_backward);
  SSCONV_KERNEL(upfirdn);
#undef SSCONV_KERNEL
  return "there is no such kernel";
}

}  // namespace ssconv
