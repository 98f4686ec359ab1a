// The epilogue by itself, and its backward: each one pass, limited by memory.
#pragma once

#include "common.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

// A thread's run of shuffled channels: RUN = one chunk of each of S branches. S = 0 stands for any other number, whose
// channels are read and written singly.
template <class T, int S>
struct Run {
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int LENGTH = SIZE * (S == 0 ? 1 : S);

  // The shuffled channels first .. first + LENGTH of a voxel of a tensor in branch order that begins at p.
  SSCONV_DEVICE static void read_branches(const T* p, int64_t stride, int first, int channels, int groups,
                                          float (&out)[LENGTH]) {
    const int part = channels / groups;
    if constexpr (S > 0) {
      const T* const from = p + first / S * stride;
      if (stride == 1 && first + LENGTH <= channels && part % SIZE == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float values[SIZE];
          unpack(T{}, load(reinterpret_cast<const Bits16*>(from + s * part)), values);
#pragma unroll
          for (int j = 0; j < SIZE; ++j) out[j * S + s] = values[j];
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < LENGTH; ++i) {
      const int c = first + i;
      out[i] = c < channels ? to_float(load(p + (c % groups * part + c / groups) * stride)) : 0.f;
    }
  }

  SSCONV_DEVICE static void write_branches(T* p, int first, int channels, int groups, const float (&values)[LENGTH]) {
    const int part = channels / groups;
    if constexpr (S > 0) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
        float own[SIZE];
#pragma unroll
        for (int j = 0; j < SIZE; ++j) own[j] = values[j * S + s];
        store_run<T, SIZE>(p + s * part + first / S, own, (channels - first) / S);
      }
    } else {
#pragma unroll
      for (int i = 0; i < LENGTH; ++i) {
        const int c = first + i;
        if (c < channels) store(p + c % groups * part + c / groups, from_float<T>(values[i]));
      }
    }
  }

  // The channels first .. first + LENGTH as they lie.
  SSCONV_DEVICE static void read(const T* p, int64_t stride, int first, int channels, float (&out)[LENGTH]) {
    const T* const from = p + first * stride;
    if (stride == 1 && first + LENGTH <= channels && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < LENGTH; i += SIZE) unpack(T{}, load(reinterpret_cast<const Bits16*>(from + i)), out + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < LENGTH; ++i) out[i] = first + i < channels ? to_float(load(from + i * stride)) : 0.f;
  }
};

// Offset of a voxel, given by its number in the sample.
SSCONV_DEVICE int64_t offset_of(const Volume& v, int64_t n, uint32_t voxel, const Divider& d, const Divider& h,
                                const Divider& w) {
  const int64_t at_w = divide_off(w, voxel), at_h = divide_off(h, voxel), at_d = divide_off(d, voxel);
  return n * v.stride[0] + at_d * v.stride[2] + at_h * v.stride[3] + at_w * v.stride[4];
}

template <class T, int S>
struct EpilogueForward {
  using Params = EpilogueParams;
  using Own = Run<T, S>;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int SHARED = 0;
#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "epilogue<%d bytes, %d>", static_cast<int>(sizeof(T)), S);
    return text;
  }
#endif

  SSCONV_DEVICE static void run(const Params& p) {
    const int64_t voxels = static_cast<int64_t>(p.z.size[1]) * p.z.size[2] * p.z.size[3];
    uint32_t sample = block_x();
    const int64_t i = int64_t(divide_off(p.blocks, sample)) * THREADS + thread_index();
    const int64_t n = sample, voxel = i / p.threads;
    if (voxel >= voxels) return;
    const int first = static_cast<int>(i - voxel * p.threads) * Own::LENGTH;
    float values[Own::LENGTH];
    const int64_t from = offset_of(p.z, n, static_cast<uint32_t>(voxel), p.d, p.h, p.w);
    Own::read_branches(static_cast<const T*>(p.z.data) + from, p.z.stride[1], first, p.channels, p.groups, values);
    Finisher<Own::LENGTH>(p.epilogue, p.channels, first, 1, p.channels - first).finish(values, n, voxel);
    store_run<T, Own::LENGTH>(static_cast<T*>(p.y) + (n * voxels + voxel) * p.channels + first, values,
                              p.channels - first);
  }
};

// gz in branch order, and sums of pre = gy * dy / d(scale * shuffle(z) + noise + bias): over a block's voxels of pre and
// of pre * shuffle(z), per channel; over the channels, per voxel. `lanes` threads share a voxel; a block has
// THREADS / lanes voxels at a time, and adds in an order that does not change.
template <class T, int S>
struct EpilogueBackward {
  using Params = EpilogueBackwardParams;
  using Own = Run<T, S>;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int L = Own::LENGTH;
  static constexpr int VOXELS = 256;  // the most of a block
  static constexpr int SUMS = VOXELS * 4;                // bytes: noise sums of the voxels, then the warps' channel sums
  static constexpr int SHARED = SUMS + THREADS / 32 * 32 * L * 4;
#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "epilogue_backward<%d bytes, %d>", static_cast<int>(sizeof(T)), S);
    return text;
  }
#endif

  // Adds each thread's sums over the threads with its channels and writes them to out[first ..].
  SSCONV_DEVICE static void write_sums(const Params& p, float (&sums)[L], float* out, int first_channel) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < L; ++i)
      for (int mask = p.lanes; mask < 32; mask *= 2) sums[i] += shuffle_xor(sums[i], mask);
    if (lane < p.lanes) {
#pragma unroll
      for (int i = 0; i < L; ++i) shared_store(SUMS + ((warp * p.lanes + lane) * L + i) * 4, sums[i]);
    }
    sync_threads();
    for (int i = thread_index(); i < p.lanes * L; i += THREADS) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < THREADS / 32; ++w) sum += shared_load<float>(SUMS + (w * p.lanes * L + i) * 4);
      if (first_channel + i < p.channels) store(out + first_channel + i, sum);
    }
    sync_threads();
  }

  SSCONV_DEVICE static void run(const Params& p) {
    uint32_t n = block_x();
    const uint32_t block = divide_off(p.blocks, n);
    const int64_t voxels = static_cast<int64_t>(p.y.size[1]) * p.y.size[2] * p.y.size[3];
    const int lane = thread_index() & (p.lanes - 1), group = thread_index() / p.lanes;
    const int step = THREADS / p.lanes;
    for (int first_channel = 0; first_channel < p.channels; first_channel += p.lanes * L) {
      const int first = first_channel + lane * L;
      float bias[L], scale[L];
#pragma unroll
      for (int i = 0; i < L; ++i) bias[i] = scale[i] = 0.f;
      for (int v = group; v < p.voxels_per_block; v += step) {
        const int64_t voxel = int64_t(block) * p.voxels_per_block + v;
        float total = 0;
        if (voxel < voxels && first < p.channels) {
          float pre[L], y[L];
          const auto number = static_cast<uint32_t>(voxel);
          Own::read(static_cast<const T*>(p.gy.data) + offset_of(p.gy, n, number, p.d, p.h, p.w), p.gy.stride[1], first,
                    p.channels, pre);
          Own::read(static_cast<const T*>(p.y.data) + offset_of(p.y, n, number, p.d, p.h, p.w), p.y.stride[1], first,
                    p.channels, y);
#pragma unroll
          for (int i = 0; i < L; ++i) {
            pre[i] *= p.gain;
            if (!((p.gain > 0 ? y[i] : -y[i]) > 0)) pre[i] *= p.slope;
            if (p.clamped && !(y[i] < p.clamp && y[i] > -p.clamp)) pre[i] = 0;
            if (first + i >= p.channels) pre[i] = 0;
            bias[i] += pre[i];
            total += pre[i];
          }
          if (p.z.data != nullptr) {
            float z[L];
            Own::read_branches(static_cast<const T*>(p.z.data) + offset_of(p.z, n, number, p.d, p.h, p.w),
                               p.z.stride[1], first, p.channels, p.groups, z);
#pragma unroll
            for (int i = 0; i < L; ++i) scale[i] += pre[i] * z[i];
          }
          if (p.scale != nullptr) {
#pragma unroll
            for (int i = 0; i < L; ++i)
              if (first + i < p.channels) pre[i] *= load(p.scale + int64_t(n) * p.channels + first + i);
          }
          Own::write_branches(static_cast<T*>(p.gz) + (n * voxels + voxel) * p.channels, first, p.channels, p.groups,
                              pre);
        }
        if (p.noise_sums != nullptr) {
          for (int mask = 1; mask < p.lanes; mask *= 2) total += shuffle_xor(total, mask);
          if (lane == 0) {
            const float before = first_channel == 0 ? 0.f : shared_load<float>(v * 4);
            shared_store(v * 4, before + total);
          }
        }
      }
      const int64_t row = int64_t(block_x()) * p.channels;
      if (p.bias_sums != nullptr) write_sums(p, bias, p.bias_sums + row, first_channel);
      if (p.scale_sums != nullptr) write_sums(p, scale, p.scale_sums + row, first_channel);
    }
    if (p.noise_sums == nullptr) return;
    sync_threads();
    for (int v = thread_index(); v < p.voxels_per_block; v += THREADS) {
      const int64_t voxel = int64_t(block) * p.voxels_per_block + v;
      if (voxel < voxels) store(p.noise_sums + n * voxels + voxel, shared_load<float>(v * 4));
    }
  }
};

}  // namespace ssconv
