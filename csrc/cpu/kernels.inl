// The CPU kernels, compiled once per instruction set. avx512.cpp, avx2.cpp and generic.cpp define
//   SSCONV_ISA             their namespace
//   SSCONV_LANES           floats per vector register
//   SSCONV_WIDE_ROWS       rows of the GEMM micro-kernel that is two vectors wide, SSCONV_NARROW_ROWS of the one that
//   is
//                          one vector wide, SSCONV_THREE_TAP_ROWS of the one that is three vectors wide (0: too few
//                          registers)
//   SSCONV_HALF            1: registers of half as many lanes exist
// and include this file. It uses nothing of the C++ library: the linker keeps one copy of an inline function for all
// files, and that copy could be the one compiled for a newer processor.
//
// The algorithm (convolution.inl): a task computes one tile, a box of the output grid. For each branch it packs the
// input box with its halo into scratch memory that stays in the L2 cache (zeros outside the volume, channels scaled,
// float32). Each row of outputs is then one batch-reduce GEMM, one matrix product (positions x Cin) . (Cin x Cout) per
// tap, whose accumulators stay in registers over all taps and input channels. The epilogue takes the tile from the
// cache and interleaves the branches as it stores. So x is read about once, y is written once, and there is no other
// traffic. Branches of one vector of channels or less skip the packing where they can (`fuse_three_taps` in
// pack_weights.inl): they do so little arithmetic per sample that the copy would show.

namespace ssconv {
namespace SSCONV_ISA {

constexpr int LANES = SSCONV_LANES;
constexpr int WIDE = 2 * LANES;
constexpr int HALF = SSCONV_HALF ? LANES / 2 : LANES;
constexpr int NARROWEST = 8;  // channels of the narrowest branches, see `fuse_three_taps` in pack_weights.inl
constexpr int LINES_PER_VECTOR = LANES > NARROWEST ? 2 : 1;  // lines of eight channels in one vector
constexpr int BLOCK = 16, SMALL_BLOCK = 8;  // channels of a packed position, see `HaloBox` in geometry.inl

// A vector of L floats: in a register, and in memory at any alignment.
template <int L>
struct Vector {
  typedef float type __attribute__((vector_size(L * 4)));
  typedef float memory __attribute__((vector_size(L * 4), aligned(4), may_alias));
};

template <int L>
inline typename Vector<L>::type load_vector(const float* p) {
  return *reinterpret_cast<const typename Vector<L>::memory*>(p);
}

template <int L>
inline void store_vector(float* p, typename Vector<L>::type v) {
  *reinterpret_cast<typename Vector<L>::memory*>(p) = v;
}

// A vector that holds LINES lines (1 or 2), each in its part of the lanes: the first at a, the second at b.
//   broadcast: one float of each line, repeated over its lanes; load: consecutive floats of each line; load_to_all: the
//   same floats for both; sum: the lines added; first, second: one line's lanes.
template <int L, int LINES>
struct PackedLines {
  typedef typename Vector<L>::type vector;
  static float broadcast(const float* a, const float*) { return *a; }
  static vector load(const float* a, const float*) { return load_vector<L>(a); }
  static vector load_to_all(const float* a) { return load_vector<L>(a); }
  static vector sum(vector v) { return v; }
  static vector first(vector v) { return v; }
  static vector second(vector v) { return v; }
};
#if SSCONV_LANES >= 16  // one instruction each; compilers do not find them by themselves
template <>
struct PackedLines<16, 2> {
  typedef Vector<16>::type vector;
  typedef Vector<8>::type half;
  static vector broadcast(const float* a, const float* b) {
    return (vector)_mm512_mask_broadcastss_ps(_mm512_set1_ps(*a), 0xff00, _mm_load_ss(b));
  }
  static vector load(const float* a, const float* b) {
    return (vector)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
  }
  static vector load_to_all(const float* a) { return (vector)_mm512_broadcast_f32x8(_mm256_loadu_ps(a)); }
  static half sum(vector v) { return first(v) + second(v); }
  static half first(vector v) { return (half)_mm512_castps512_ps256((__m512)v); }
  static half second(vector v) { return (half)_mm512_extractf32x8_ps((__m512)v, 1); }
};
#endif

inline int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t maximum(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#include "floats.inl"
#include "workers.inl"
#include "gemm.inl"
#include "geometry.inl"
#include "pack_weights.inl"
#include "epilogue.inl"
#include "tiles.inl"
#include "convolution.inl"
#include "wgrad.inl"
#include "upfirdn.inl"

extern const Kernels KERNELS;
const Kernels KERNELS = {SSCONV_NAME, convolve, wgrad, epilogue, epilogue_backward, upfirdn};

}  // namespace SSCONV_ISA
}  // namespace ssconv
