// Forward and input gradient: implicit GEMM in gather form.
//
// A block computes the outputs of a box of 128 voxels for WIDTH / S columns (output channels) of each of S branches; the
// branches one after the other, each into accumulators of its own. K runs over a branch's taps and input channels as one
// line, cut into steps of 128 bytes, so that few channels waste nothing. A step's inputs (voxels displaced by the taps)
// and packed weights lie in one of a ring of stages, filled by asynchronous copies ahead of the tensor cores.
//
// The packed weights' columns are permuted such that a lane's accumulators are channels side by side: with the shuffle
// that interleaves S branches a lane owns a run of 2 * NI * S consecutive channels, which it stores in 16-byte pieces.
// The shuffle costs nothing.
#pragma once

#include "common.cuh"

#if !defined(__CUDACC__)
#include <cstdio>
#endif

namespace ssconv {

template <class A, int S, int WIDTH, bool ELEMENTS>
struct ConvSm80 {
  using T = typename A::Element;
  using Params = ConvSm80Params;
  static constexpr int THREADS = 128;
  static constexpr int BLOCKS = 2;
  static constexpr int BM = 128;
  static constexpr int BN = WIDTH / S;       // columns of a branch
  static constexpr int MI = 4, NI = BN / 16;  // a warp's tiles of 16 rows and of 8 columns; warps are 2 x 2
  static constexpr int CHUNKS = 8;           // of 16 bytes, of a row
  static constexpr int SIZE = Chunk<T>::SIZE;
  static constexpr int BK = CHUNKS * SIZE;
  static constexpr int RUN = 2 * NI;
  static constexpr int A_BYTES = BM * CHUNKS * 16, B_BYTES = BN * CHUNKS * 16;
  static constexpr int STAGE = A_BYTES + B_BYTES;
  static_assert(NI >= 1, "a warp has at least one tile of columns");

#if !defined(__CUDACC__)
  static const char* name() {
    static char text[64];
    std::snprintf(text, sizeof text, "conv_sm80<%s, %d, %d%s>", A::NAME, S, WIDTH, ELEMENTS ? ", elements" : "");
    return text;
  }
#endif

  // Steps of K of one branch for the outputs of one parity.
  SSCONV_DEVICE static int steps_of(const Params& p, const Branch& b, const int (&parity)[3], Taps (&taps)[3]) {
#pragma unroll
    for (int i = 0; i < 3; ++i)
      taps[i] = taps_of(parity[i], b.extent[i] > 0 ? b.extent[i] : 1, p.geometry.first[i], p.geometry.stride[i],
                        p.geometry.adjoint);
    if (b.extent[0] <= 0) return 0;
    return (taps[0].count * taps[1].count * taps[2].count * p.in_channels + BK - 1) / BK;
  }

  // The block's voxels and what it computes of them.
  struct Place {
    int column_block, first_branch, last_branch;
    int parity[3], parity_number;
    int origin[4];  // of the box: n, d, h, w, counted in outputs of this parity

    SSCONV_DEVICE explicit Place(const Params& p) {
      uint32_t box = block_x();
      column_block = divide_off(p.column_blocks, box);
      origin[3] = divide_off(p.boxes[2], box) << p.box_bits[3];
      origin[2] = divide_off(p.boxes[1], box) << p.box_bits[2];
      origin[1] = divide_off(p.boxes[0], box) << p.box_bits[1];
      origin[0] = box << p.box_bits[0];
      parity_number = block_y();
      uint32_t rest = block_y();
#pragma unroll
      for (int i = 2; i >= 0; --i) {
        const int pace = p.geometry.adjoint ? p.geometry.stride[i] : 1;
        parity[i] = pace == 2 ? rest & 1 : 0;
        rest = pace == 2 ? rest >> 1 : rest;
      }
      first_branch = S == 1 ? block_z() : 0;
      last_branch = first_branch + S;
    }
  };

  // Coordinates of the box's row relative to its origin.
  SSCONV_DEVICE static void unfold(const Params& p, int row, int (&at)[4]) {
#pragma unroll
    for (int i = 3; i > 0; --i) {
      at[i] = row & ((1 << p.box_bits[i]) - 1);
      row >>= p.box_bits[i];
    }
    at[0] = row;
  }

  // Fills the stages, step by step through the branches.
  struct Loader {
    const Params& p;
    const Place& place;
    int branch, left;  // steps that are left of it
    Taps taps[3];
    int number;        // of the branch among all
    int channel;       // of this thread in its tap: in chunks, or in elements
    int tap[3];
    const Bits16* weights;
    // By chunks: this thread's column of chunks and its rows' offsets (in chunks) and coordinates (a byte each) in the
    // box. By elements: its row.
    int offset[ELEMENTS ? 1 : 8];
    uint32_t relative[ELEMENTS ? 1 : 8];
    int row_at[4];

    SSCONV_DEVICE Loader(const Params& params, const Place& where) : p(params), place(where) {
      if constexpr (ELEMENTS) {
        unfold(p, thread_index(), row_at);
      } else {
        const int per_chunk = SIZE;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          int at[4];
          unfold(p, thread_index() / CHUNKS + 16 * i, at);
          const bool there = place.origin[0] + at[0] < p.x.size[0];
          relative[i] = at[1] * pace(0) | at[2] * pace(1) << 8 | at[3] * pace(2) << 16 | (there ? 0u : 1u << 31);
          offset[i] = at[0] * static_cast<int>(p.x.stride[0] / per_chunk) +
                      at[1] * pace(0) * static_cast<int>(p.x.stride[2] / per_chunk) +
                      at[2] * pace(1) * static_cast<int>(p.x.stride[3] / per_chunk) +
                      at[3] * pace(2) * static_cast<int>(p.x.stride[4] / per_chunk);
        }
      }
      begin(place.first_branch);
    }

    // Input positions from one output of the box to the next.
    SSCONV_DEVICE int pace(int i) const { return p.geometry.adjoint ? 1 : p.geometry.stride[i]; }

    SSCONV_DEVICE void begin(int b) {
      for (left = 0; b < place.last_branch; ++b) {
        left = steps_of(p, p.branch[b], place.parity, taps);
        if (left > 0) break;
      }
      branch = b;
      if (left == 0) return;
      number = p.branch[b].number;
      weights = static_cast<const Bits16*>(p.weights) + p.branch[b].start[place.parity_number] +
                static_cast<int64_t>(place.column_block) * left * (BN * CHUNKS);
      channel = tap[0] = tap[1] = tap[2] = 0;
      if constexpr (!ELEMENTS) advance(thread_index() % CHUNKS);
    }

    SSCONV_DEVICE void advance(int n) {
      const int per_tap = ELEMENTS ? p.in_channels : p.in_channels / SIZE;
      channel += n;
      while (channel >= per_tap) {
        channel -= per_tap;
        if (++tap[2] < taps[2].count) continue;
        tap[2] = 0;
        if (++tap[1] < taps[1].count) continue;
        tap[1] = 0;
        ++tap[0];
      }
    }

    // Input position, along dimension i, of the box's first voxel at this thread's tap.
    SSCONV_DEVICE int position(int i) const {
      return place.origin[1 + i] * pace(i) + taps[i].shift + (p.geometry.adjoint ? -tap[i] : tap[i]);
    }

    SSCONV_DEVICE void fill_chunks(uint32_t stage) {
      const int d = position(0), h = position(1), w = position(2);
      const bool real = tap[0] < taps[0].count;
      const int64_t elements = place.origin[0] * p.x.stride[0] + d * p.x.stride[2] + h * p.x.stride[3] +
                               w * p.x.stride[4] + static_cast<int64_t>(number) * p.in_channels;
      const int64_t base = elements / SIZE + channel;  // a multiple: strides and channels are whole chunks
      const int column = thread_index() % CHUNKS;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const uint32_t r = relative[i];
        const bool there = real && r >> 31 == 0 && inside(d + (r & 255), p.x.size[1]) &&
                           inside(h + (r >> 8 & 255), p.x.size[2]) && inside(w + (r >> 16 & 255), p.x.size[3]);
        const auto* x = static_cast<const Bits16*>(p.x.data);
        const uint32_t to = stage + chunk_at<CHUNKS>(thread_index() / CHUNKS + 16 * i, column);
        const Bits16* const from = there ? x + (base + offset[i]) : x;
        if (p.cached)
          copy_async_cached(to, from, there);
        else
          copy_async(to, from, there);
      }
      advance(CHUNKS);
    }

    SSCONV_DEVICE void fill_elements(uint32_t stage) {
      const int64_t n = place.origin[0] + row_at[0];
      const bool sample = n < p.x.size[0];
#pragma unroll 1
      for (int c = 0; c < CHUNKS; ++c) {
        float values[SIZE];
#pragma unroll
        for (int i = 0; i < SIZE; ++i) {
          const int d = position(0) + row_at[1] * pace(0);
          const int h = position(1) + row_at[2] * pace(1);
          const int w = position(2) + row_at[3] * pace(2);
          const bool there = sample && tap[0] < taps[0].count && inside(d, p.x.size[1]) && inside(h, p.x.size[2]) &&
                             inside(w, p.x.size[3]);
          values[i] = 0;
          if (there) {
            const int64_t c_all = static_cast<int64_t>(number) * p.in_channels + channel;
            const int64_t at = n * p.x.stride[0] + c_all * p.x.stride[1] + d * p.x.stride[2] + h * p.x.stride[3] +
                               w * p.x.stride[4];
            values[i] = to_float(load(static_cast<const T*>(p.x.data) + at));
            if (p.in_scale != nullptr) values[i] *= load(p.in_scale + n * p.branches * p.in_channels + c_all);
          }
          advance(1);
        }
        shared_store(stage + chunk_at<CHUNKS>(thread_index(), c), pack<T>(values));
      }
    }

    SSCONV_DEVICE void fill(uint32_t stage) {
      if (left > 0) {
        if constexpr (ELEMENTS)
          fill_elements(stage);
        else
          fill_chunks(stage);
#pragma unroll
        for (int j = thread_index(); j < BN * CHUNKS; j += THREADS)
          copy_async(stage + A_BYTES + chunk_at<CHUNKS>(j / CHUNKS, j % CHUNKS), weights + j, true);
        weights += BN * CHUNKS;
        if (--left == 0) begin(branch + 1);
      }
      copy_commit();
    }
  };

  // sums += the stage's inputs times its weights.
  SSCONV_DEVICE static void multiply_stage(uint32_t stage, float (&sums)[MI][NI][4], int chunks) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int first_row = warp / 2 * 64, first_column = warp % 2 * (BN / 2);
    const uint32_t weights = stage + A_BYTES;
    if constexpr (A::TENSOR_CORES) {
#pragma unroll
      for (int k = 0; k < CHUNKS; k += 2) {
        if (ELEMENTS && k >= chunks) break;
        uint32_t a[MI][4], b[NI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i) {
          load_matrices(a[i], stage + chunk_at<CHUNKS>(first_row + 16 * i + lane % 16, k + lane / 16));
          if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int j = 0; j < 4; ++j) a[i][j] = round_tf32(a[i][j]);
          }
        }
        if constexpr (NI == 1) {
          load_matrices(b[0], weights + chunk_at<CHUNKS>(first_column + lane % 8, k + lane / 8 % 2));
        } else {
#pragma unroll
          for (int j = 0; j < NI; j += 2) {
            uint32_t both[4];
            load_matrices(both,
                          weights + chunk_at<CHUNKS>(first_column + 8 * j + lane / 16 * 8 + lane % 8, k + lane / 8 % 2));
            b[j][0] = both[0];
            b[j][1] = both[1];
            b[j + 1][0] = both[2];
            b[j + 1][1] = both[3];
          }
        }
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int j = 0; j < NI; ++j) multiply(T{}, sums[i][j], a[i], b[j]);
      }
    } else {  // exact float32 on the CUDA cores, sums laid out as tensor cores do
      const int g = lane / 4, t = lane % 4;
#pragma unroll 1
      for (int k = 0; k < chunks; ++k) {
        Quad a[MI][2];
#pragma unroll
        for (int i = 0; i < MI; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            a[i][half] = shared_load<Quad>(stage + chunk_at<CHUNKS>(first_row + 16 * i + 8 * half + g, k));
#pragma unroll
        for (int j = 0; j < NI; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const Quad b = shared_load<Quad>(weights + chunk_at<CHUNKS>(first_column + 8 * j + 2 * t + e, k));
#pragma unroll
            for (int i = 0; i < MI; ++i) {
#pragma unroll
              for (int half = 0; half < 2; ++half) {
                float& sum = sums[i][j][2 * half + e];
                sum = fused_multiply_add(a[i][half].x, b.x, sum);
                sum = fused_multiply_add(a[i][half].y, b.y, sum);
                sum = fused_multiply_add(a[i][half].z, b.z, sum);
                sum = fused_multiply_add(a[i][half].w, b.w, sum);
              }
            }
          }
        }
      }
    }
  }

  // An output of the block: its row's sample, its coordinates among those of this parity, and in y.
  struct Output {
    int64_t n, voxel;
    int q[3];
    bool there;

    SSCONV_DEVICE Output(const Params& p, const Place& place, int row) {
      int at[4], out[3];
      unfold(p, row, at);
      n = place.origin[0] + at[0];
      there = n < p.x.size[0];
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        q[j] = place.origin[1 + j] + at[1 + j];
        out[j] = p.geometry.adjoint ? q[j] * p.geometry.stride[j] + place.parity[j] : q[j];
        there = there && out[j] < p.size[j];
      }
      voxel = (static_cast<int64_t>(out[0]) * p.size[1] + out[1]) * p.size[2] + out[2];
    }
  };

  SSCONV_DEVICE static int64_t voxels(const Params& p) {
    return static_cast<int64_t>(p.size[0]) * p.size[1] * p.size[2];
  }

  // This thread's rows of accumulators, in order: which two of a tile's four numbers, of which tile, whose output.
  template <class Body>
  SSCONV_DEVICE static void for_each_output(const Params& p, const Place& place, Body body) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < MI; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Output out(p, place, warp / 2 * 64 + 16 * i + 8 * half + lane / 4);
        if (out.there) body(i, half, out);
      }
    }
  }

  // The branch's channels of one output, to z in branch order where that is kept.
  SSCONV_DEVICE static void take(const Params& p, const float (&sums)[NI][4], int half, int64_t begin, int own, int count,
                                 float (&values)[RUN]) {
#pragma unroll
    for (int c = 0; c < RUN; ++c) values[c] = sums[c / 2][2 * half + c % 2];
    if (p.z != nullptr) store_run<T, RUN>(static_cast<T*>(p.z) + begin + own, values, count);
  }

  SSCONV_DEVICE static void write(const Params& p, const Place& place, const float (&sums)[S][MI][NI][4]) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int first = place.column_block * BN + warp % 2 * (BN / 2) + lane % 4 * RUN;
    const int count = p.out_channels - first;  // columns that there are, if less than RUN
    if (count <= 0) return;
    const int channels = p.branches * p.out_channels;
    if (S > 1 && p.shuffle) {
      Finisher<S * RUN> finisher(p.epilogue, channels, first * S, 1, count * S);
      for_each_output(p, place, [&](int i, int half, const Output& out) {
        const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
        float run[S * RUN];
#pragma unroll
        for (int s = 0; s < S; ++s) {
          float values[RUN];
          take(p, sums[s][i], half, begin, p.branch[place.first_branch + s].number * p.out_channels + first, count, values);
#pragma unroll
          for (int c = 0; c < RUN; ++c) run[c * S + s] = values[c];
        }
        finisher.finish(run, out.n, out.voxel);
        store_run<T, S * RUN>(static_cast<T*>(p.y) + begin + first * S, run, count * S);
      });
      return;
    }
#pragma unroll
    for (int s = 0; s < S; ++s) {
      const int number = p.branch[place.first_branch + s].number;
      const int own = number * p.out_channels + first;  // in branch order
      const int step = p.shuffle ? p.branches : 1;      // one branch of many: its shuffled channels lie apart
      const int channel = p.shuffle ? first * p.branches + number : own;
      Finisher<RUN> finisher(p.epilogue, channels, channel, step, count);
      for_each_output(p, place, [&](int i, int half, const Output& out) {
        const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
        float values[RUN];
        take(p, sums[s][i], half, begin, own, count, values);
        finisher.finish(values, out.n, out.voxel);
        T* const y = static_cast<T*>(p.y) + begin + channel;
        if (step == 1) {
          store_run<T, RUN>(y, values, count);
        } else {
#pragma unroll
          for (int c = 0; c < RUN; ++c)
            if (c < count) store(y + c * step, from_float<T>(values[c]));
        }
      });
    }
  }

  // An identity's channels, over what `write` of the same thread left there.
  SSCONV_DEVICE static void pass_through(const Params& p, const Place& place, const Branch& b) {
    const int warp = thread_index() / 32, lane = thread_index() % 32;
    const int first = place.column_block * BN + warp % 2 * (BN / 2) + lane % 4 * RUN;
    const int channels = p.branches * p.out_channels;
#pragma unroll 1
    for (int i = 0; i < 2 * MI * RUN; ++i) {
      const int column = first + i % RUN;
      const Output out(p, place, warp / 2 * 64 + i / RUN * 8 + lane / 4);
      if (!out.there || column >= p.out_channels) continue;
      const int64_t channel = static_cast<int64_t>(b.number) * p.in_channels + column;
      int64_t at = out.n * p.x.stride[0] + channel * p.x.stride[1];
      bool there = true;
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        const int d = out.q[j] + taps_of(0, 1, p.geometry.first[j], 1, p.geometry.adjoint).shift;
        there = there && inside(d, p.x.size[1 + j]);
        at += d * p.x.stride[2 + j];
      }
      float value[1] = {there ? to_float(load(static_cast<const T*>(p.x.data) + at)) : 0.f};
      if (p.in_scale != nullptr) value[0] *= load(p.in_scale + out.n * p.branches * p.in_channels + channel);
      const int64_t begin = (out.n * voxels(p) + out.voxel) * channels;
      const int own = b.number * p.out_channels + column, shuffled = column * p.branches + b.number;
      if (p.z != nullptr) store(static_cast<T*>(p.z) + begin + own, from_float<T>(value[0]));
      Finisher<1>(p.epilogue, channels, p.shuffle ? shuffled : own, 1, 1).finish(value, out.n, out.voxel);
      store(static_cast<T*>(p.y) + begin + (p.shuffle ? shuffled : own), from_float<T>(value[0]));
    }
  }

  SSCONV_DEVICE static void run(const Params& p) {
    const Place place(p);
    float sums[S][MI][NI][4];
#pragma unroll
    for (int s = 0; s < S; ++s)
#pragma unroll
      for (int i = 0; i < MI; ++i)
#pragma unroll
        for (int j = 0; j < NI; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) sums[s][i][j][e] = 0.f;
    Loader loader(p, place);
    int filled = 0, used = 0;  // stages of the ring
    for (; filled < p.stages - 1; ++filled) loader.fill(filled * STAGE);
#pragma unroll
    for (int s = 0; s < S; ++s) {
      Taps taps[3];
      const Branch& b = p.branch[place.first_branch + s];
      const int steps = steps_of(p, b, place.parity, taps);
      int rest = taps[0].count * taps[1].count * taps[2].count * p.in_channels;  // of K
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        wait_for_oldest(p.stages);
        sync_threads();  // the stage is there for all, and all are done with the one before
        loader.fill(filled * STAGE);
        filled = filled + 1 == p.stages ? 0 : filled + 1;
        multiply_stage(used * STAGE, sums[s], rest < BK ? (rest + SIZE - 1) / SIZE : CHUNKS);
        used = used + 1 == p.stages ? 0 : used + 1;
        rest -= BK;
      }
    }
    copy_wait<0>();
    write(p, place, sums);
#pragma unroll 1
    for (int s = place.first_branch; s < place.last_branch; ++s)
      if (p.branch[s].extent[0] == 0) pass_through(p, place, p.branch[s]);
  }
};

}  // namespace ssconv
