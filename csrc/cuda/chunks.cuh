// Chunks: 16 bytes of elements, the unit of vector loads and stores.
#pragma once

#include "arithmetic.cuh"

namespace ssconv {

template <class T>
struct Chunk {
  static constexpr int SIZE = 16 / sizeof(T);  // elements
};

// Converts a chunk's elements to floats.
SSCONV_DEVICE void unpack(bf16, const Bytes16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = float_of(bits.word[i] << 16);
    out[2 * i + 1] = float_of(bits.word[i] & 0xffff0000u);
  }
}
SSCONV_DEVICE void unpack(f16, const Bytes16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = to_float(f16{static_cast<uint16_t>(bits.word[i])});
    out[2 * i + 1] = to_float(f16{static_cast<uint16_t>(bits.word[i] >> 16)});
  }
}
SSCONV_DEVICE void unpack(float, const Bytes16& bits, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = float_of(bits.word[i]);
}

// Rounds floats to elements: 4 bytes of them, or a chunk.
template <class T>
SSCONV_DEVICE uint32_t pack_word(const float* in) {
  if constexpr (sizeof(T) == 4) {
    return bits_of(in[0]);
  } else {
    return from_float<T>(in[0]).bits | uint32_t(from_float<T>(in[1]).bits) << 16;
  }
}
template <class T>
SSCONV_DEVICE Bytes16 pack(const float* in) {
  Bytes16 bits;
#pragma unroll
  for (int i = 0; i < 4; ++i) bits.word[i] = pack_word<T>(in + i * (4 / sizeof(T)));
  return bits;
}

// Stores the first `count` of values[0 .. N) to p, as the widest stores that p's alignment allows.
template <class T, int N>
SSCONV_DEVICE void store_run(T* p, const float* values, int count) {
  constexpr int BYTES = N * static_cast<int>(sizeof(T));
  if constexpr (BYTES >= 16) {
    constexpr int SIZE = Chunk<T>::SIZE;
    if (count >= N && reinterpret_cast<uintptr_t>(p) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < N / SIZE; ++i) store(reinterpret_cast<Bytes16*>(p) + i, pack<T>(values + i * SIZE));
      return;
    }
  } else if constexpr (BYTES == 8) {
    if (count >= N && reinterpret_cast<uintptr_t>(p) % 8 == 0) {
      store(reinterpret_cast<Bytes8*>(p), Bytes8{{pack_word<T>(values), pack_word<T>(values + N / 2)}});
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < N; ++i)
    if (i < count) store(p + i, from_float<T>(values[i]));
}

}  // namespace ssconv
