// The epilogue of one voxel's channels: y = clamp(gain * lrelu(scale * z + noise + bias)).
#pragma once

#include "arithmetic.cuh"

namespace ssconv {

// clamp(gain * lrelu(z)); NaN stays NaN.
SSCONV_DEVICE float activation(const Epilogue& e, float z) {
  float y = (z > 0 ? z : z * e.slope) * e.gain;
  if (e.clamped) {
    y = y > e.clamp ? e.clamp : y;
    y = y < -e.clamp ? -e.clamp : y;
  }
  return y;
}

// Applies the epilogue to the channels first, first + step, ... (the first `count` of N), voxel after voxel. It reads
// their biases once, and their scales once per sample.
template <int N>
struct ChannelEpilogue {
  const Epilogue& e;
  int channels, first, step, count;  // channels: of y
  int64_t sample = -1;               // whose scales are loaded
  float bias[N], scale[N];

  SSCONV_DEVICE ChannelEpilogue(const Epilogue& epilogue, int all, int first_channel, int channel_step, int wanted)
      : e(epilogue), channels(all), first(first_channel), step(channel_step), count(wanted) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      bias[i] = e.bias != nullptr && i < count ? load(e.bias + first + i * step) : 0.f;
      scale[i] = 1.f;
    }
  }

  // z[0 .. N): the channels' accumulators at voxel `voxel` of sample n; becomes y.
  SSCONV_DEVICE void apply(float* z, int64_t n, int64_t voxel) {
    if (e.scale != nullptr && n != sample) {
      sample = n;
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (i < count) scale[i] = load(e.scale + n * channels + first + i * step);
    }
    const float noise = e.noise.data != nullptr ? load_companion(e.noise, n * e.noise_stride + voxel) : 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = activation(e, z[i] * scale[i] + noise + bias[i]);
  }
};

}  // namespace ssconv
