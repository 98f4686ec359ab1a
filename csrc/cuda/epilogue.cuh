// The epilogue as a kernel of its own, and its backward pass. Each reads and writes every tensor once: memory-bound.
#pragma once

#include <cstdio>

#include "channel_epilogue.cuh"
#include "chunks.cuh"

namespace ssconv {

// A thread's run of consecutive channels of y (shuffled order): one chunk of each of S branches. S = 0: any other
// number of branches; the run is a chunk of y, and branch order is read and written element by element.
template <class T, int S>
struct ChannelRun {
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int LENGTH = SIZE * (S == 0 ? 1 : S);

  // Reads the run from channel `first` on of a voxel at p, of a tensor in branch order, and shuffles it.
  SSCONV_DEVICE static void read_branches(const T* p, int64_t stride, int first, int channels, int groups,
                                          float (&out)[LENGTH]) {
    const int per_branch = channels / groups;
    if constexpr (S > 0) {
      const T* const from = p + first / S * stride;
      if (stride == 1 && first + LENGTH <= channels && per_branch % SIZE == 0 &&
          reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float values[SIZE];
          unpack(T{}, load(reinterpret_cast<const Bytes16*>(from + s * per_branch)), values);
#pragma unroll
          for (int j = 0; j < SIZE; ++j) out[j * S + s] = values[j];
        }
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < LENGTH; ++i) {
      const int c = first + i;
      out[i] = c < channels ? to_float(load(p + (c % groups * per_branch + c / groups) * stride)) : 0.f;
    }
  }

  // Un-shuffles the run and writes it in branch order.
  SSCONV_DEVICE static void write_branches(T* p, int first, int channels, int groups, const float (&values)[LENGTH]) {
    const int per_branch = channels / groups;
    if constexpr (S > 0) {
#pragma unroll
      for (int s = 0; s < S; ++s) {
        float own[SIZE];
#pragma unroll
        for (int j = 0; j < SIZE; ++j) own[j] = values[j * S + s];
        store_run<T, SIZE>(p + s * per_branch + first / S, own, (channels - first) / S);
      }
    } else {
#pragma unroll
      for (int i = 0; i < LENGTH; ++i) {
        const int c = first + i;
        if (c < channels) store(p + c % groups * per_branch + c / groups, from_float<T>(values[i]));
      }
    }
  }

  // Reads the run from a tensor in shuffled order.
  SSCONV_DEVICE static void read(const T* p, int64_t stride, int first, int channels, float (&out)[LENGTH]) {
    const T* const from = p + first * stride;
    if (stride == 1 && first + LENGTH <= channels && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
#pragma unroll
      for (int i = 0; i < LENGTH; i += SIZE) unpack(T{}, load(reinterpret_cast<const Bytes16*>(from + i)), out + i);
      return;
    }
#pragma unroll
    for (int i = 0; i < LENGTH; ++i) out[i] = first + i < channels ? to_float(load(from + i * stride)) : 0.f;
  }
};

// The offset of voxel number `voxel` of sample n.
SSCONV_DEVICE int64_t voxel_offset(const Volume& v, int64_t n, uint32_t voxel, const Divider& d, const Divider& h,
                                   const Divider& w) {
  const int64_t at_w = divmod(w, voxel), at_h = divmod(h, voxel), at_d = divmod(d, voxel);
  return n * v.stride[0] + at_d * v.stride[2] + at_h * v.stride[3] + at_w * v.stride[4];
}

// y = epilogue(z): a thread computes one run of one voxel.
template <class T, int S>
struct EpilogueForward {
  using Params = EpilogueParams;
  using Run = ChannelRun<T, S>;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int SHARED = 0;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "epilogue<%d bytes, %d>", static_cast<int>(sizeof(T)), S);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    const int64_t voxels = static_cast<int64_t>(p.z.size[1]) * p.z.size[2] * p.z.size[3];
    uint32_t sample = block_x();
    const int64_t i = int64_t(divmod(p.blocks, sample)) * THREADS + thread_index();
    const int64_t n = sample, voxel = i / p.threads;
    if (voxel >= voxels) return;
    const int first = static_cast<int>(i - voxel * p.threads) * Run::LENGTH;
    float values[Run::LENGTH];
    const int64_t from = voxel_offset(p.z, n, static_cast<uint32_t>(voxel), p.d, p.h, p.w);
    Run::read_branches(static_cast<const T*>(p.z.data) + from, p.z.stride[1], first, p.channels, p.groups, values);
    ChannelEpilogue<Run::LENGTH>(p.epilogue, p.channels, first, 1, p.channels - first).apply(values, n, voxel);
    store_run<T, Run::LENGTH>(static_cast<T*>(p.y) + (n * voxels + voxel) * p.channels + first, values,
                              p.channels - first);
  }
};

// gz = unshuffle(scale * pre) in branch order, with pre = gain * lrelu'(y) * gy (0 where y was clamped); and sums of
// pre: for the bias over a block's voxels, per channel; for the scale the same of pre * shuffle(z); for the noise over
// channels, per voxel. `lanes` threads share a voxel, so a block has THREADS / lanes voxels at a time. It adds in a
// fixed order.
template <class T, int S>
struct EpilogueBackward {
  using Params = EpilogueBackwardParams;
  using Run = ChannelRun<T, S>;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 1;
  static constexpr int L = Run::LENGTH;
  static constexpr int VOXELS = 256;  // the most of a block
  // Shared memory, floats: a noise sum for each voxel, then the warps' channel sums.
  static constexpr int CHANNEL_SUMS = VOXELS * 4;
  static constexpr int SHARED = CHANNEL_SUMS + THREADS / 32 * 32 * L * 4;

  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "epilogue_backward<%d bytes, %d>", static_cast<int>(sizeof(T)), S);
    return text;
  }

  SSCONV_DEVICE static void run(const Params& p) {
    uint32_t n = block_x();
    const uint32_t block = divmod(p.blocks, n);
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
        float noise = 0;
        if (voxel < voxels && first < p.channels) run_voxel(p, n, voxel, voxels, first, bias, scale, noise);
        if (p.noise_sums != nullptr) add_noise(p, v, first_channel, lane, noise);
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

  // One run of one voxel: writes gz, and adds to the sums.
  SSCONV_DEVICE static void run_voxel(const Params& p, uint32_t n, int64_t voxel, int64_t voxels, int first,
                                      float (&bias)[L], float (&scale)[L], float& noise) {
    float pre[L], y[L];
    const auto number = static_cast<uint32_t>(voxel);
    Run::read(static_cast<const T*>(p.gy.data) + voxel_offset(p.gy, n, number, p.d, p.h, p.w), p.gy.stride[1], first,
              p.channels, pre);
    Run::read(static_cast<const T*>(p.y.data) + voxel_offset(p.y, n, number, p.d, p.h, p.w), p.y.stride[1], first,
              p.channels, y);
#pragma unroll
    for (int i = 0; i < L; ++i) {
      pre[i] *= p.gain;
      if (!((p.gain > 0 ? y[i] : -y[i]) > 0)) pre[i] *= p.slope;
      if (p.clamped && !(y[i] < p.clamp && y[i] > -p.clamp)) pre[i] = 0;
      if (first + i >= p.channels) pre[i] = 0;
      bias[i] += pre[i];
      noise += pre[i];
    }
    if (p.z.data != nullptr) {
      float z[L];
      Run::read_branches(static_cast<const T*>(p.z.data) + voxel_offset(p.z, n, number, p.d, p.h, p.w), p.z.stride[1],
                         first, p.channels, p.groups, z);
#pragma unroll
      for (int i = 0; i < L; ++i) scale[i] += pre[i] * z[i];
    }
    if (p.scale != nullptr) {
#pragma unroll
      for (int i = 0; i < L; ++i)
        if (first + i < p.channels) pre[i] *= load(p.scale + int64_t(n) * p.channels + first + i);
    }
    Run::write_branches(static_cast<T*>(p.gz) + (n * voxels + voxel) * p.channels, first, p.channels, p.groups, pre);
  }

  // Adds the lanes' noise sums of voxel v of the block to those of the channels before.
  SSCONV_DEVICE static void add_noise(const Params& p, int v, int first_channel, int lane, float noise) {
    for (int mask = 1; mask < p.lanes; mask *= 2) noise += shuffle_xor(noise, mask);
    if (lane == 0) {
      const float before = first_channel == 0 ? 0.f : shared_load<float>(v * 4);
      shared_store(v * 4, before + noise);
    }
  }

  // Adds each thread's channel sums over the threads with the same channels, and writes them to out[first_channel ..].
  SSCONV_DEVICE static void write_sums(const Params& p, float (&sums)[L], float* out, int first_channel) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < L; ++i)
      for (int mask = p.lanes; mask < 32; mask *= 2) sums[i] += shuffle_xor(sums[i], mask);
    if (lane < p.lanes) {
#pragma unroll
      for (int i = 0; i < L; ++i) shared_store(CHANNEL_SUMS + ((warp * p.lanes + lane) * L + i) * 4, sums[i]);
    }
    sync_threads();
    for (int i = thread_index(); i < p.lanes * L; i += THREADS) {
      float sum = 0;
#pragma unroll
      for (int w = 0; w < THREADS / 32; ++w) sum += shared_load<float>(CHANNEL_SUMS + (w * p.lanes * L + i) * 4);
      if (first_channel + i < p.channels) store(out + first_channel + i, sum);
    }
    sync_threads();
  }
};

}  // namespace ssconv
