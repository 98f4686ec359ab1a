// What several kernels share.
#pragma once

#include "ptx/sm80.cuh"
#include "params.h"

namespace ssconv {

constexpr int THREADS = 128;

// Arithmetic of the products: how elements are stored and multiplied.
struct Bf16 {
  using Element = bf16;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "bf16";
};
struct F16 {
  using Element = f16;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "f16";
};
struct Tf32 {
  using Element = float;
  static constexpr bool TENSOR_CORES = true;
  static constexpr const char* NAME = "tf32";
};
struct Ieee {
  using Element = float;
  static constexpr bool TENSOR_CORES = false;
  static constexpr const char* NAME = "ieee";
};

SSCONV_DEVICE uint32_t divide(const Divider& d, uint32_t n) { return (multiply_high(n, d.multiplier) + n) >> d.shift; }
// n becomes the quotient, the remainder is returned.
SSCONV_DEVICE uint32_t divide_off(const Divider& d, uint32_t& n) {
  const uint32_t quotient = divide(d, n), remainder = n - quotient * d.divisor;
  n = quotient;
  return remainder;
}

SSCONV_DEVICE bool inside(int at, int size) { return static_cast<unsigned>(at) < static_cast<unsigned>(size); }

SSCONV_DEVICE float companion(const Companion& c, int64_t i) {
  if (c.format == Format::f32) return load(static_cast<const float*>(c.data) + i);
  if (c.format == Format::bf16) return to_float(load(static_cast<const bf16*>(c.data) + i));
  return to_float(load(static_cast<const f16*>(c.data) + i));
}

SSCONV_EITHER Taps taps_of(int offset, int extent, int first, int stride, bool adjoint) {
  const int half = (extent - 1) / 2;
  if (!adjoint) return {extent, 0, first - half};
  const int reach = offset + half - first + 64 * stride;  // positive; tap t fits where reach - t is a multiple of stride
  const int tap = reach % stride;
  return {(extent - tap + stride - 1) / stride, tap, (reach - tap) / stride - 64};
}

// The elements of 16 bytes as floats, and back.
template <class T>
struct Chunk {
  static constexpr int SIZE = 16 / sizeof(T);
};
SSCONV_DEVICE void unpack(bf16, const Bits16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = float_of(bits.word[i] << 16);
    out[2 * i + 1] = float_of(bits.word[i] & 0xffff0000u);
  }
}
SSCONV_DEVICE void unpack(f16, const Bits16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = to_float(f16{static_cast<uint16_t>(bits.word[i])});
    out[2 * i + 1] = to_float(f16{static_cast<uint16_t>(bits.word[i] >> 16)});
  }
}
SSCONV_DEVICE void unpack(float, const Bits16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = float_of(bits.word[i]);
}
template <class T>
SSCONV_DEVICE uint32_t pack_word(const float* in) {
  if constexpr (sizeof(T) == 4) {
    return bits_of(in[0]);
  } else {
    return from_float<T>(in[0]).bits | uint32_t(from_float<T>(in[1]).bits) << 16;
  }
}
template <class T>
SSCONV_DEVICE Bits16 pack(const float* in) {
  Bits16 bits;
#pragma unroll
  for (int i = 0; i < 4; ++i) bits.word[i] = pack_word<T>(in + i * (4 / sizeof(T)));
  return bits;
}

// values[0 .. N) to p, of which the first `count` are wanted; in the widest stores that p's alignment allows.
template <class T, int N>
SSCONV_DEVICE void store_run(T* p, const float* values, int count) {
  constexpr int BYTES = N * static_cast<int>(sizeof(T));
  if constexpr (BYTES >= 16) {
    constexpr int SIZE = Chunk<T>::SIZE;
    if (count >= N && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < N / SIZE; ++i) store(reinterpret_cast<Bits16*>(p) + i, pack<T>(values + i * SIZE));
      return;
    }
  } else if constexpr (BYTES == 8) {
    if (count >= N && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
      store(reinterpret_cast<Bits8*>(p), Bits8{{pack_word<T>(values), pack_word<T>(values + N / 2)}});
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < count) store(p + i, from_float<T>(values[i]));
}

// clamp(gain * lrelu(z)); NaN stays NaN.
SSCONV_DEVICE float activated(const Epilogue& e, float z) {
  float y = (z > 0 ? z : z * e.slope) * e.gain;
  if (e.clamped) {
    y = y > e.clamp ? e.clamp : y;
    y = y < -e.clamp ? -e.clamp : y;
  }
  return y;
}

// The epilogue of the channels channel, channel + step, .., of which `count` exist, for one voxel after the other: their
// biases are read once, their scales once per sample.
template <int N>
struct Finisher {
  const Epilogue& e;
  int channels, channel, step, count;
  int64_t sample = -1;  // whose scales are here
  float bias[N], scale[N];

  SSCONV_DEVICE Finisher(const Epilogue& params, int all, int first, int apart, int wanted)
      : e(params), channels(all), channel(first), step(apart), count(wanted) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      bias[i] = e.bias != nullptr && i < count ? load(e.bias + channel + i * step) : 0.f;
      scale[i] = 1.f;
    }
  }

  // z[0 .. N): the channels' sums, finished in place.
  SSCONV_DEVICE void finish(float* z, int64_t n, int64_t voxel) {
    if (e.scale != nullptr && n != sample) {
      sample = n;
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (i < count) scale[i] = load(e.scale + n * channels + channel + i * step);
    }
    const float noise = e.noise.data != nullptr ? companion(e.noise, n * e.noise_stride + voxel) : 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) z[i] = activated(e, z[i] * scale[i] + noise + bias[i]);
  }
};

// Shared memory is laid out in rows of whole chunks of 16 bytes. A row's chunks change places by its number, so that the
// eight rows that a matrix load reads, and the lanes that store, meet in no bank. CHUNKS: of a row, a power of two >= 4.
template <int CHUNKS>
SSCONV_DEVICE uint32_t chunk_at(int row, int chunk) {
  const int turned = CHUNKS >= 8 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
  return (row * CHUNKS + turned) * 16;
}

// In time for `stages` stages of which the oldest is wanted.
SSCONV_DEVICE void wait_for_oldest(int stages) {
  if (stages == 2)
    copy_wait<0>();
  else if (stages == 3)
    copy_wait<1>();
  else
    copy_wait<2>();
}

}  // namespace ssconv
