// Prints CuTe's numbers on layouts as JSON, for tests/csrc/test_cute_oracle.py: how operands of wgmma lie in shared
// memory and their descriptors, swizzles, and the fragments of wgmma, mma.sync and ldmatrix.
//
//   layouts FILE    (stdout is CuTe's: on a host it complains of every shared-memory address)
#include <cstdio>
#include <vector>

#include <cuda.h>

static std::vector<unsigned long long> arguments;  // of the last call of cuTensorMapEncodeTiled, innermost first

extern "C" CUresult CUDAAPI cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void*,
                                                   const cuuint64_t* size, const cuuint64_t* stride,
                                                   const cuuint32_t* box, const cuuint32_t* step, CUtensorMapInterleave,
                                                   CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                                   CUtensorMapFloatOOBfill) {
  arguments.assign(size, size + rank);
  arguments.insert(arguments.end(), stride, stride + rank - 1);
  arguments.insert(arguments.end(), box, box + rank);
  arguments.insert(arguments.end(), step, step + rank);
  arguments.push_back(swizzle);
  return CUDA_SUCCESS;
}

#include <cute/tensor.hpp>
#include <cute/atom/copy_traits_sm90_tma.hpp>
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

using namespace cute;
using T = bfloat16_t;
using SM90::GMMA::Major;
namespace gmma = SM90::GMMA;

namespace {

FILE* out;
const char* comma = "";

void key(const char* name) {
  std::fprintf(out, "%s\n\"%s\": ", comma, name);
  comma = ",";
}

// [[f(0, 0), f(0, 1), ..], ..]
template <class F>
void table(int rows, int columns, F f) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j)
      std::fprintf(out, "%s%s%llu%s", j == 0 ? (i == 0 ? "[" : ",") : "", j == 0 ? "[" : ",",
                   static_cast<unsigned long long>(f(i, j)), j + 1 < columns ? "" : i + 1 < rows ? "]" : "]]");
}

// An operand (rows, K) in shared memory: the byte where each element lies, and the descriptors of its tiles of ROWS (64
// of A, the columns of B) by slices of 16 of K.
template <int ROWS, Major MAJOR, class L>
void operand(const char* name, L layout) {
  alignas(1024) static T image[512 * 64];
  Tensor s = make_tensor(make_smem_ptr(image), layout);
  key(name);
  std::fprintf(out, "{\"bytes\": ");
  table(size<0>(s), size<1>(s), [&](int i, int j) {
    return reinterpret_cast<char*>(&s(i, j)) - reinterpret_cast<char*>(image);
  });
  const auto descriptors = make_tensor<gmma::smem_desc<MAJOR>>(zipped_divide(s, Shape<Int<ROWS>, _16>{}));
  std::fprintf(out, ", \"descriptors\": ");
  table(size<0>(s) / ROWS, size<1>(s) / 16, [&](int i, int k) { return uint64_t(descriptors(0, make_coord(i, k))); });
  std::fprintf(out, "}");
}

// A layout's (thread, value) -> element.
template <class L>
void fragment(const char* name, L layout) {
  key(name);
  table(size<0>(layout), size<1>(layout), [&](int t, int v) { return layout(t, v); });
}

// The same of ldmatrix, from bits to elements of 16 bits.
template <class L>
void matrix(const char* name, L layout) {
  key(name);
  table(size<0>(layout), size<1>(layout) / 16, [&](int t, int v) { return layout(t, 16 * v) / 16; });
}

template <class S>
void swizzle(const char* name, S f) {
  key(name);
  table(1, 256, [&](int, int i) { return f(16 * i); });
}

// A tiled copy of voxels, each a swizzled row of C channels, from x (2, 7, 11, 13, 3 C) in the order n, d, h, w, c.
template <int C, class S, class BOX>
void box(const char* name, S swizzle, BOX voxels) {
  const T* const x = nullptr;
  const auto size = make_shape(3 * C, 13, 11, 7, 2);
  const Tensor from = make_tensor(make_gmem_ptr(x), make_layout(size, compact_col_major(size)));
  const auto to = composition(swizzle, smem_ptr_flag_bits<16>{}, make_layout(append(prepend(voxels, Int<C>{}), _1{})));
  make_tma_copy(SM90_TMA_LOAD{}, from, to);
  key(name);
  table(1, arguments.size(), [&](int, int i) { return arguments[i]; });
}

// Planes of 8 channels, each with all pixels, as the halo kernel's: 8 x 8 pixels of a box `PITCH` pixels wide and of
// PIXELS in all, by 32 channels.
template <int PITCH, int PIXELS>
auto planes() {
  return make_layout(make_shape(make_shape(_8{}, _8{}), make_shape(_8{}, _4{})),
                     make_stride(make_stride(_8{}, Int<8 * PITCH>{}), make_stride(_1{}, Int<8 * PIXELS>{})));
}

}  // namespace

int main(int, char** arguments) {
  out = std::fopen(arguments[1], "w");
  std::fprintf(out, "{");
  const auto pixels = make_shape(_256{}, _64{});  // a stage of conv_sm90: rows first, then the next box of channels
  operand<64, Major::K>("K 128", tile_to_shape(gmma::Layout_K_SW128_Atom<T>{}, pixels));
  operand<64, Major::K>("K 64", tile_to_shape(gmma::Layout_K_SW64_Atom<T>{}, pixels));
  operand<64, Major::K>("K 32", tile_to_shape(gmma::Layout_K_SW32_Atom<T>{}, pixels));
  operand<64, Major::K>("K 0", tile_to_shape(gmma::Layout_K_INTER_Atom<T>{}, pixels));
  operand<128, Major::K>("K 128 of B", tile_to_shape(gmma::Layout_K_SW128_Atom<T>{}, pixels));
  // A stage of wgrad_sm90: a box of channels has all voxels, then comes the next box.
  const auto order = Step<_2, _1>{};
  const auto columns = make_shape(_512{}, _64{});
  operand<64, Major::MN>("MN 128", tile_to_shape(gmma::Layout_MN_SW128_Atom<T>{}, pixels, order));
  operand<64, Major::MN>("MN 64", tile_to_shape(gmma::Layout_MN_SW64_Atom<T>{}, pixels, order));
  operand<64, Major::MN>("MN 32", tile_to_shape(gmma::Layout_MN_SW32_Atom<T>{}, pixels, order));
  operand<64, Major::MN>("MN 0", tile_to_shape(gmma::Layout_MN_INTER_Atom<T>{}, pixels, order));
  operand<128, Major::MN>("MN 128 of B", tile_to_shape(gmma::Layout_MN_SW128_Atom<T>{}, columns, order));
  operand<128, Major::MN>("MN 64 of B", tile_to_shape(gmma::Layout_MN_SW64_Atom<T>{}, columns, order));
  operand<128, Major::MN>("MN 32 of B", tile_to_shape(gmma::Layout_MN_SW32_Atom<T>{}, columns, order));
  operand<64, Major::K>("planes 10 100", planes<10, 100>());
  operand<64, Major::K>("planes 18 162", planes<18, 162>());

  box<8>("box 8 0", Swizzle<0, 4, 3>{}, Shape<_10, _12, _4>{});
  box<64>("box 64 128", Swizzle<3, 4, 3>{}, Shape<_8, _9, _3>{});

  // The driver's numbers of the swizzles of 0, 32, 64 and 128 bytes.
  key("driver's swizzles");
  const auto mode = [](auto s) {
    return TMA::to_CUtensorMapSwizzle(cute::detail::get_tma_swizzle_bits(s), cute::detail::get_tma_swizzle_base(s));
  };
  const int modes[] = {mode(Swizzle<0, 4, 3>{}), mode(Swizzle<1, 4, 3>{}), mode(Swizzle<2, 4, 3>{}),
                       mode(Swizzle<3, 4, 3>{})};
  table(1, 4, [&](int, int i) { return modes[i]; });
  swizzle("swizzle 128", Swizzle<3, 4, 3>{});
  swizzle("swizzle 64", Swizzle<2, 4, 3>{});
  swizzle("swizzle 32", Swizzle<1, 4, 3>{});

  fragment("wgmma 32", MMA_Traits<SM90_64x32x16_F32BF16BF16_SS<Major::K, Major::K>>::CLayout{});
  fragment("wgmma 64", MMA_Traits<SM90_64x64x16_F32BF16BF16_SS<Major::K, Major::K>>::CLayout{});
  fragment("wgmma 128", MMA_Traits<SM90_64x128x16_F32BF16BF16_SS<Major::K, Major::K>>::CLayout{});
  using Half = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;
  using Tf32 = MMA_Traits<SM80_16x8x8_F32TF32TF32F32_TN>;
  fragment("mma 16 A", Half::ALayout{});
  fragment("mma 16 B", Half::BLayout{});
  fragment("mma 16 C", Half::CLayout{});
  fragment("mma tf32 A", Tf32::ALayout{});
  fragment("mma tf32 B", Tf32::BLayout{});
  fragment("mma tf32 C", Tf32::CLayout{});
  matrix("ldmatrix 2 from", Copy_Traits<SM75_U32x2_LDSM_N>::SrcLayout{});
  matrix("ldmatrix 2 to", Copy_Traits<SM75_U32x2_LDSM_N>::DstLayout{});
  matrix("ldmatrix 4 from", Copy_Traits<SM75_U32x4_LDSM_N>::SrcLayout{});
  matrix("ldmatrix 4 to", Copy_Traits<SM75_U32x4_LDSM_N>::DstLayout{});
  matrix("ldmatrix transposed 4 from", Copy_Traits<SM75_U16x8_LDSM_T>::SrcLayout{});
  matrix("ldmatrix transposed 4 to", Copy_Traits<SM75_U16x8_LDSM_T>::DstLayout{});
  std::fprintf(out, "\n}\n");
  return std::fclose(out);
}
