// Prints what CuTe makes of convolutions, for tests/csrc/test_cute_oracle.py: the arguments with which it would call
// cuTensorMapEncodeIm2col, and where in x it finds the input of every output at every tap.
//
//   im2col PROBLEMS FILE
//
// PROBLEMS: a line each: operation (0 fprop, 1 wgrad, 2 dgrad), then N D H W of the activation, extents of the kernel,
// padding and strides along D, H, W, and channels. FILE: 32-bit integers, a record for each problem: `arguments`, taps
// D H W, outputs, then [tap d][tap h][tap w][output], the voxel of x in the order n, d, h, w, or -1 outside.
#include <cstdio>
#include <fstream>
#include <vector>

#include <cuda.h>

// What CuTe passes on: sizes, byte strides, corners, steps, box (channels, pixels), swizzle; innermost first.
static std::vector<int> arguments;

extern "C" CUresult CUDAAPI cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t rank, void*,
                                            const cuuint64_t* size, const cuuint64_t* stride, const int* lower,
                                            const int* upper, cuuint32_t channels, cuuint32_t pixels,
                                            const cuuint32_t* step, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  arguments.assign(size, size + rank);
  arguments.insert(arguments.end(), stride, stride + rank - 1);
  arguments.insert(arguments.end(), lower, lower + rank - 2);
  arguments.insert(arguments.end(), upper, upper + rank - 2);
  arguments.insert(arguments.end(), step, step + rank);
  arguments.insert(arguments.end(), {int(channels), int(pixels), int(swizzle)});
  return CUDA_SUCCESS;
}

#include <cute/tensor.hpp>
#include <cute/atom/copy_traits_sm90_im2col.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>
#include <cutlass/conv/convnd_problem_shape.hpp>
#include <cutlass/conv/collective/detail.hpp>

using namespace cute;
using T = bfloat16_t;
using cutlass::conv::Operator;
namespace conv = cutlass::conv::collective::detail;

namespace {

struct Problem {
  int size[4], kernel[3], padding[3], stride[3], channels;
};

template <Operator OP>
void print(const Problem& q, std::ofstream& out) {
  const auto three = [](const int(&v)[3]) { return cute::array<int, 3>{v[0], v[1], v[2]}; };
  const cutlass::conv::ConvProblemShape<OP, 3> shape(
      cutlass::conv::Mode::kCrossCorrelation, {q.size[0], q.size[1], q.size[2], q.size[3], q.channels},
      {q.channels, q.kernel[0], q.kernel[1], q.kernel[2], q.channels}, three(q.padding), three(q.padding),
      three(q.stride), {1, 1, 1}, 1);
  // The tensor that is read by im2col: x, or for dgrad the gradient of the output.
  const auto extent = OP == Operator::kWgrad ? shape.shape_B : shape.shape_A;
  const auto voxels = make_layout(make_shape(extent[3], extent[2], extent[1], extent[0]));
  const auto strides = transform(voxels.stride(), [&](auto s) { return int64_t(s) * q.channels; });
  auto dilation = reverse(cute::array<int, 3>{1, 1, 1});
  if (OP == Operator::kDgrad) dilation = {-1, -1, -1};
  const auto copy = [&](auto tensor, auto tile) {
    return make_im2col_tma_copy(SM90_TMA_LOAD_IM2COL{}, tensor, tile, product_each(cute::shape(tile)), Int<1>{},
                                cute::shape(conv::compute_lower_corner_whd(shape)),
                                cute::shape(conv::compute_upper_corner_whd(shape)),
                                reverse(cute::shape(shape.lower_padding)), reverse(cute::shape(shape.upper_padding)),
                                reverse(cute::shape(shape.traversal_stride)),
                                cute::shape(conv::compute_lower_srt(shape)), cute::shape(dilation));
  };
  const auto number = [](int i) { return i; };
  const auto list = [&](auto positions, auto at) {  // at(output, tap) of `positions`, as CuTe orders them
    const int outputs = OP == Operator::kWgrad ? size<1>(positions) : size<0>(positions);
    std::vector<int> record = arguments;
    record.insert(record.end(), {q.kernel[0], q.kernel[1], q.kernel[2], outputs});
    for (int t = 0; t < q.kernel[0]; ++t)
      for (int r = 0; r < q.kernel[1]; ++r)
        for (int s = 0; s < q.kernel[2]; ++s)
          for (int m = 0; m < outputs; ++m) {
            const auto c = flatten(at(m, make_coord(0, s, r, t)));  // c, w, h, d, n, s, r, t
            const int w = get<1>(c) + get<5>(c), h = get<2>(c) + get<6>(c), d = get<3>(c) + get<7>(c), n = get<4>(c);
            const bool inside = w >= 0 && w < extent[3] && h >= 0 && h < extent[2] && d >= 0 && d < extent[1];
            record.push_back(inside ? voxels(w, h, d, n) : -1);
          }
    out.write(reinterpret_cast<const char*>(record.data()), record.size() * sizeof(int));
  };
  const T* const x = nullptr;
  if constexpr (OP == Operator::kWgrad) {
    const auto tile = tile_to_shape(SM90::GMMA::Layout_MN_SW128_Atom<T>{}, Shape<_64, _64>{});
    const auto layout = make_layout(make_shape(q.channels, voxels.shape()), make_stride(_1{}, strides));
    const auto load = copy(make_tensor(make_gmem_ptr(x), layout), tile);
    const auto positions = load.get_tma_tensor(0);
    list(positions, [&](int m, auto k) { return positions(k, number(m)); });
  } else {
    const auto tile = tile_to_shape(SM90::GMMA::Layout_K_SW128_Atom<T>{}, Shape<_128, _64>{});
    const auto layout = make_layout(make_shape(voxels.shape(), q.channels), make_stride(strides, _1{}));
    const auto load = copy(make_tensor(make_gmem_ptr(x), layout), tile);
    const auto positions = load.get_tma_tensor(0);
    list(positions, [&](int m, auto k) { return positions(number(m), k); });
  }
}

}  // namespace

int main(int, char** files) {
  std::ifstream in(files[1]);
  std::ofstream out(files[2], std::ios::binary);
  int operation;
  while (in >> operation) {
    Problem q;
    for (int& v : q.size) in >> v;
    for (int& v : q.kernel) in >> v;
    for (int& v : q.padding) in >> v;
    for (int& v : q.stride) in >> v;
    in >> q.channels;
    if (operation == 0) print<Operator::kFprop>(q, out);
    if (operation == 1) print<Operator::kWgrad>(q, out);
    if (operation == 2) print<Operator::kDgrad>(q, out);
  }
  return out.close(), out.fail();
}
