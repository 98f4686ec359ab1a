// Arguments and entry points of the CPU kernels: plain structs without torch. bindings.cpp fills them.
//
// All convolutions are written in gather form. For branch s, output channel o and position q of the output grid
//
//     z[n, s, o, step * q + offset] = sum over channel i and tap t of  weight_s[o, i, t] * x[n, s, i, stride * q +
//     shift_s(t)]
//
// fprop has step 1. dgrad and the transposed convolution (`adjoint`) have stride 1; where the convolution's stride is
// 2, their outputs fall into parity classes (step 2, offset 0 or 1), each with the taps that reach it.
#pragma once
#include <cstdint>

namespace ssconv {

enum class Type : int { f32, bf16, f16 };

// A tensor (N, C, D, H, W); strides in elements.
struct Volume {
  void* data;
  Type type;
  int64_t size[5];
  int64_t stride[5];
};

// A branch convolves its channels, passes them through, or gives zeros.
enum class Kind : int { convolution, identity, absent };

// One branch. `stride` views its weight, or its weight's gradient, as (out, in, kd, kh, kw) in any memory order.
struct Branch {
  Kind kind;
  int extent[3];  // taps along D, H, W
  const void* weight;
  float* gradient;
  int64_t stride[5];
};

// The branches and their strides. Axes D, H, W.
struct Geometry {
  int branches;
  const Branch* branch;
  Type weight_type;
  int stride[3];
  int first[3];  // input position of the first window's centre: 0 with padding "same"
  bool adjoint;  // dgrad, or a transposed convolution
  int64_t in_channels, out_channels;  // per branch
};

// y = clamp(gain * lrelu(scale * z + noise + bias)), its channels shuffled over `groups`. Null pointers leave a term
// out.
struct Epilogue {
  int groups;
  float slope, gain, clamp;  // slope 1: no activation; clamp < 0: no bound
  const float* scale;        // (N, C) in the output's channel order
  const float* bias;         // (C,)
  const float* noise;        // (N or 1, 1, D, H, W)
  int64_t noise_stride;      // elements per sample; 0: all samples share the noise
};

// What upfirdn takes for the samples beyond the ends of D; the numbers are those of ssconv.spec.BORDERS.
enum class Border : int { zero = 0, replicate = 1, fold = 2 };

// upfirdn: zero insertion by `up`, a separable FIR filter, decimation by `down`; axes D, H, W.
struct Filter {
  const float* taps[3];
  int length[3], up[3], down[3];
  int before[3];  // zeros before the first sample; negative: samples cropped
  Border border;  // along D
};

// A thread pool: `launch` calls run(worker, context) for worker = 0 .. workers - 1, in parallel.
struct Pool {
  int workers;
  void (*launch)(int workers, void (*run)(int worker, void* context), void* context);
};

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  // Computes z = A (in_scale * x) and y = epilogue(z). Writes z, in branch order, too where it is not null.
  void (*convolve)(const Geometry&, const Volume& x, const float* in_scale, const Epilogue&, const Volume& y,
                   const Volume* z, const Pool&);
  // Computes each branch's weight gradient [o, i, t] = sum over n and q of g[n, s, o, q] * x[n, s, i, stride * q +
  // shift_s(t)]. The scales, (N, channels) of x and of g, may be null.
  void (*wgrad)(const Geometry&, const Volume& x, const float* x_scale, const Volume& g, const float* g_scale,
                          const Pool&);
  // Applies the epilogue alone, to z in branch order.
  void (*epilogue)(const Volume& z, const Epilogue&, const Volume& y, const Pool&);
  // Computes gz = unshuffle(scale * pre), pre = gain * lrelu'(y) * gy, and the gradients of bias (C,), noise and scale,
  // which are sums of pre (for scale of pre * z, z in branch order).
  void (*epilogue_backward)(const Volume& gy, const Volume& y, const Volume* z, const Epilogue&, const Volume& gz,
                            float* bias, float* noise, bool noise_shared, float* scale, const Pool&);
  // Computes y = decimate(filter(pad(zero-insert(x)))).
  void (*upfirdn)(const Filter&, const Volume& x, const Volume& y, const Pool&);
};

// Returns the kernels of the best instruction set that this processor has; of the one named, or null where it has it
// not.
const Kernels* cpu_kernels();
const Kernels* cpu_kernels(const char* name);

}  // namespace ssconv
