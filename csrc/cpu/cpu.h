// The CPU kernels' parameters and launches: plain structs, no torch. bindings.cpp fills them.
//
// Everything is one linear map and its relatives. With q the output grid of a parity class,
//
//     z[n, s, o, step * q + offset] = sum over channel i and tap t of  weight_s[o, i, t] * x[n, s, i, stride * q + shift_s(t)]
//
// A convolution is one class with step 1; an adjoint (input gradient, transposed convolution) has stride 1 and, where the
// convolution's stride is 2, one class per parity of the output, each with the taps that reach it.
#pragma once
#include <cstdint>

namespace ssconv {

enum class Type : int { f32, bf16, f16 };

// Strides in elements, axes N, C, D, H, W.
struct Volume {
  void* data;
  Type type;
  int64_t size[5];
  int64_t stride[5];
};

enum class Kind : int { convolution, identity, absent };

// One branch. Its weight, or the gradient of its weight, is seen as (out, in, kd, kh, kw) whatever its memory order.
struct Branch {
  Kind kind;
  int extent[3];
  const void* weight;
  float* gradient;
  int64_t stride[5];
};

// Which input sample a tap reads: stride[d] * q + shift. `first` is the input position of the first window centre.
struct Geometry {
  int branches;
  const Branch* branch;
  Type weight_type;
  int stride[3];
  int first[3];
  bool adjoint;
  int64_t in_channels, out_channels;  // per branch
};

// y = clamp(gain * act(scale * z + noise + bias)), channels shuffled over `groups`; null where a part is missing.
struct Epilogue {
  int groups;
  float slope, gain, clamp;  // slope 1: linear; clamp < 0: unbounded
  const float* scale;        // (N, C) in the output's channel order
  const float* bias;         // (C,)
  const float* noise;        // (N or 1, 1, D, H, W)
  int64_t noise_stride;      // elements per sample; 0 where the batch shares it
};

// A separable FIR between zero insertion and decimation, axes D, H, W. Negative `before` crops.
struct Filter {
  const float* taps[3];
  int length[3], up[3], down[3], before[3];
};

// Calls run(worker, context) for worker = 0 .. workers-1, in parallel.
struct Pool {
  int workers;
  void (*launch)(int workers, void (*run)(int worker, void* context), void* context);
};

struct Kernels {
  const char* name;
  // z = A (in_scale x), y = epilogue(z); z, in branch order, is written where it is not null.
  void (*convolve)(const Geometry&, const Volume& x, const float* in_scale, const Epilogue&, const Volume& y,
                   const Volume* z, const Pool&);
  // gradient[o, i, t] = sum over n and q of g[n, s, o, q] * x[n, s, i, stride * q + shift_s(t)] for each convolution
  // branch s. The scales, (N, channels) of their tensors, may be null.
  void (*weight_gradient)(const Geometry&, const Volume& x, const float* x_scale, const Volume& g, const float* g_scale,
                          const Pool&);
  // The epilogue alone, from z in branch order.
  void (*epilogue)(const Volume& z, const Epilogue&, const Volume& y, const Pool&);
  // gz = unshuffle(scale * pre), pre = gain * act'(y) * gy; sums of pre: bias (C,), noise, scale (with z in branch order).
  void (*epilogue_backward)(const Volume& gy, const Volume& y, const Volume* z, const Epilogue&, const Volume& gz,
                            float* bias, float* noise, bool noise_shared, float* scale, const Pool&);
  // y = decimate(filter(pad(zero-insert(x)))), each output the sum of the samples in its span.
  void (*upfirdn)(const Filter&, const Volume& x, const Volume& y, const Pool&);
};

// The best that this processor runs; or the one of that name, null where it does not run here.
const Kernels* cpu_kernels();
const Kernels* cpu_kernels(const char* name);

}  // namespace ssconv
