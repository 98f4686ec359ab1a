// The CPU kernels' bodies, compiled once per instruction set: cpu_avx512.cpp and its siblings define
//   SSCONV_ISA (namespace), SSCONV_LANES (floats per register), SSCONV_WIDE_ROWS, SSCONV_NARROW_ROWS (rows of sums that
//   fit in the registers two vectors and one vector wide), SSCONV_TRIPLE_ROWS (three vectors wide; 0: with too few
//   registers), SSCONV_HALF (1: a register of half the lanes exists)
// and include this. Nothing of the C++ library is used here: an inline function of it, compiled for a newer processor,
// could be the copy that the linker keeps for all.
//
// How a convolution goes: a task is a box of the output grid. For each branch the input box with its halo is packed into
// a scratch that stays in the L2 cache (zeros outside, channels scaled, float32), then each row of outputs is a batch of
// small matrix products, one per tap, (positions x Cin) . (Cin x channels), whose sums stay in registers over all taps
// and input channels. The box's results go through the epilogue, which interleaves the branches as it stores. So x is
// read about once and y written once; there is no other traffic. Branches of a vector or two go without the
// packed box where they can (`triple` in weights.inl): with so few products per sample the copy is felt.

namespace ssconv {
namespace SSCONV_ISA {

constexpr int LANES = SSCONV_LANES;
constexpr int WIDE = 2 * LANES;
constexpr int HALF = SSCONV_HALF ? LANES / 2 : LANES;
constexpr int EIGHT = 8;  // channels of the narrowest branches, see `triple` in weights.inl
constexpr int SIDES = LANES > EIGHT ? 2 : 1;  // lines of eight channels that share a vector
constexpr int BLOCK = 16, SMALL_BLOCK = 8;  // channels of a packed position, see `Box` in geometry.inl

// A vector of L floats in registers, and the same in memory, where it need not be aligned.
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

// What a vector holds of two lines, a half of it each. spread: the float at a and the one at b; load: the floats from a on
// and those from b on; load_twice: the same for both; sum: of the halves. With SIDE of 1 there is one line, at a.
template <int L, int SIDE>
struct Lines {
  typedef typename Vector<L>::type vector;
  static float spread(const float* a, const float*) { return *a; }
  static vector load(const float* a, const float*) { return load_vector<L>(a); }
  static vector load_twice(const float* a) { return load_vector<L>(a); }
  static vector sum(vector v) { return v; }
  static vector first(vector v) { return v; }
  static vector second(vector v) { return v; }
};
#if SSCONV_LANES >= 16  // intrinsics: one instruction each, which compilers do not find by themselves
template <>
struct Lines<16, 2> {
  typedef Vector<16>::type vector;
  typedef Vector<8>::type half;
  static vector spread(const float* a, const float* b) {
    return (vector)_mm512_mask_broadcastss_ps(_mm512_set1_ps(*a), 0xff00, _mm_load_ss(b));
  }
  static vector load(const float* a, const float* b) {
    return (vector)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(a)), _mm256_loadu_ps(b), 1);
  }
  static vector load_twice(const float* a) { return (vector)_mm512_broadcast_f32x8(_mm256_loadu_ps(a)); }
  static half sum(vector v) { return first(v) + second(v); }
  static half first(vector v) { return (half)_mm512_castps512_ps256((__m512)v); }
  static half second(vector v) { return (half)_mm512_extractf32x8_ps((__m512)v, 1); }
};
#endif

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

#include "floats.inl"
#include "workers.inl"

#include "product.inl"

#include "geometry.inl"

#include "weights.inl"

#include "epilogue.inl"

#include "convolution.inl"
#include "weight_gradient.inl"
#include "upfirdn.inl"

extern const Kernels KERNELS;
const Kernels KERNELS = {SSCONV_NAME, convolve, weight_gradient, epilogue, epilogue_backward, upfirdn};

}  // namespace SSCONV_ISA
}  // namespace ssconv
