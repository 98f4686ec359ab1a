// From the numbers of a call to a kernel's parameters. The order is that of ssconv/cuda_backend.py.
#include <cstring>
#include <string>

#include "conv_sm90_halo.h"
#include "launch.h"

namespace ssconv {
namespace {

class Arguments {
 public:
  Arguments(const int64_t* integers, int64_t integer_count, const double* floats, int64_t float_count)
      : integer_(integers), integers_end_(integers + integer_count), float_(floats), floats_end_(floats + float_count) {}

  int64_t wide() { return integer_ < integers_end_ ? *integer_++ : (short_ = true, 0); }
  int integer() { return static_cast<int>(wide()); }
  template <class T = void>
  T* pointer() {
    return reinterpret_cast<T*>(static_cast<uintptr_t>(wide()));
  }
  float number() { return float_ < floats_end_ ? static_cast<float>(*float_++) : (short_ = true, 0.f); }
  template <class T, size_t N>
  void integers(T (&out)[N]) {
    for (T& value : out) value = static_cast<T>(wide());
  }

  Grid grid() {
    Grid g;
    g.x = static_cast<uint32_t>(wide());
    g.y = static_cast<uint32_t>(wide());
    g.z = static_cast<uint32_t>(wide());
    return g;
  }
  Divider divider() {
    const auto divisor = static_cast<uint32_t>(wide());
    uint32_t shift = 0;
    while (shift < 32 && (uint64_t(1) << shift) < divisor) ++shift;
    const uint64_t multiplier =
        divisor == 0 ? 0 : ((uint64_t(1) << 32) * ((uint64_t(1) << shift) - divisor)) / divisor + 1;
    return {divisor, static_cast<uint32_t>(multiplier), shift};
  }
  Companion companion() {
    const void* data = pointer();
    return {data, static_cast<Format>(integer())};
  }
  Volume volume() {
    Volume v;
    v.data = pointer();
    integers(v.stride);
    integers(v.size);
    return v;
  }
  Geometry geometry() {
    Geometry g;
    integers(g.first);
    integers(g.stride);
    g.adjoint = integer();
    return g;
  }
  Epilogue epilogue() {
    Epilogue e;
    e.scale = pointer<const float>();
    e.bias = pointer<const float>();
    e.noise = companion();
    e.noise_stride = wide();
    e.clamped = integer();
    e.slope = number();
    e.gain = number();
    e.clamp = number();
    return e;
  }
  int count(int most) {
    const int n = integer();
    if (n < 0 || n > most) short_ = true;
    return short_ ? 0 : n;
  }
  Branch branch() {
    Branch b;
    integers(b.extent);
    b.number = integer();
    integers(b.start);
    return b;
  }
  // Whether every number was used and none was missing.
  bool complete() const { return !short_ && integer_ == integers_end_ && float_ == floats_end_; }

 private:
  const int64_t *integer_, *integers_end_;
  const double *float_, *floats_end_;
  bool short_ = false;
};

constexpr const char* WRONG_COUNT = "the call has not the numbers that this kernel takes";

const char* call_conv_sm80(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  ConvSm80Variant kind;
  kind.fused = a.integer();
  kind.width = a.integer();
  kind.elements = a.integer() != 0;
  ConvSm80Params p = {};
  p.stages = a.integer();
  p.cached = a.integer();
  p.x = a.volume();
  p.in_scale = a.pointer<const float>();
  p.weights = a.pointer();
  p.y = a.pointer();
  p.z = a.pointer();
  a.integers(p.size);
  p.in_channels = a.integer();
  p.out_channels = a.integer();
  p.branches = a.integer();
  p.shuffle = a.integer();
  p.geometry = a.geometry();
  p.epilogue = a.epilogue();
  a.integers(p.box_bits);
  for (Divider& d : p.boxes) d = a.divider();
  p.column_blocks = a.divider();
  const int count = a.count(BRANCHES);
  for (int s = 0; s < count; ++s) p.branch[s] = a.branch();
  if (!a.complete() || p.stages < 2 || p.stages > 4) return WRONG_COUNT;
  switch (arithmetic) {
    case Arithmetic::bf16:
      return conv_sm80_bf16(kind, p, grid, stream);
    case Arithmetic::f16:
      return conv_sm80_f16(kind, p, grid, stream);
    case Arithmetic::tf32:
      return conv_sm80_tf32(kind, p, grid, stream);
    default:
      return conv_sm80_ieee(kind, p, grid, stream);
  }
}

const char* call_conv_sm90(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  const int fused = a.integer(), block_columns = a.integer();
  ConvSm90Params p = {};
  p.x = a.volume();
  p.weights = a.pointer();
  p.y = a.pointer();
  p.z = a.pointer();
  a.integers(p.size);
  p.channels = a.integer();
  p.box_channels = a.integer();
  p.padded_channels = a.integer();
  p.out_channels = a.integer();
  p.branches = a.integer();
  p.geometry = a.geometry();
  p.epilogue = a.epilogue();
  p.outputs = static_cast<uint32_t>(a.wide());
  p.slots = static_cast<uint32_t>(a.wide());
  p.work = static_cast<uint32_t>(a.wide());
  p.column_blocks = a.divider();
  p.tiles = a.divider();
  p.voxels = a.divider();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  p.cluster = a.integer();
  p.parts = a.count(FUSED);
  for (int s = 0; s < p.parts; ++s) {
    const Branch b = a.branch();
    for (int i = 0; i < 3; ++i) p.part[s].extent[i] = b.extent[i];
    p.part[s].number = b.number;
    for (int i = 0; i < PARITIES; ++i) p.part[s].start[i] = b.start[i];
  }
  return a.complete() ? conv_sm90(arithmetic, fused, block_columns, p, grid, stream) : WRONG_COUNT;
}

const char* call_conv_sm90_halo(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  const int fused = a.integer(), block_columns = a.integer();
  ConvSm90HaloParams p = {};
  p.x = a.volume();
  p.weights = a.pointer();
  p.y = a.pointer();
  p.z = a.pointer();
  a.integers(p.size);
  p.channels = a.integer();
  p.chunk = a.integer();
  p.swizzled = a.integer();
  p.out_channels = a.integer();
  p.branches = a.integer();
  p.geometry = a.geometry();
  p.epilogue = a.epilogue();
  a.integers(p.tile);
  p.work = static_cast<uint32_t>(a.wide());
  p.column_blocks = a.divider();
  p.tiles = a.divider();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  p.parts = a.count(FUSED);
  for (int s = 0; s < p.parts; ++s) {
    const Branch b = a.branch();
    for (int i = 0; i < 3; ++i) p.part[s].extent[i] = b.extent[i];
    p.part[s].number = b.number;
    p.part[s].start = b.start[0];
  }
  return a.complete() ? conv_sm90_halo(arithmetic, fused, block_columns, p, grid, stream) : WRONG_COUNT;
}

const char* call_pack_weights(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  PackWeightsParams p = {};
  p.packed = a.pointer();
  p.in_channels = a.integer();
  p.padded_channels = a.integer();
  p.out_channels = a.integer();
  p.columns = a.integer();
  p.run = a.integer();
  p.swizzled = a.integer();
  p.geometry = a.geometry();
  const int count = a.count(BRANCHES);
  for (int s = 0; s < count; ++s) {
    p.weight[s] = a.pointer();
    a.integers(p.stride[s]);
    p.branch[s] = a.branch();
  }
  return a.complete() ? pack_weights(arithmetic, p, grid, stream) : WRONG_COUNT;
}

const char* call_pack_input(Arguments& a, Format format, void* stream) {
  const Grid grid = a.grid();
  PackInputParams p = {};
  p.x = a.volume();
  p.scale = a.pointer<const float>();
  p.out = a.pointer();
  p.channels = a.integer();
  p.padded = a.integer();
  p.branches = a.integer();
  p.voxels_first = a.integer();
  p.voxels = a.wide();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  return a.complete() ? pack_input(format, p, grid, stream) : WRONG_COUNT;
}

const char* call_wgrad_sm80(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  const int rows = a.integer();
  WgradSm80Params p = {};
  p.stages = a.integer();
  p.low = a.volume();
  p.high = a.volume();
  p.low_channels = a.integer();
  p.high_channels = a.integer();
  p.workspace = a.pointer<float>();
  p.geometry = a.geometry();
  p.row_blocks = a.integer();
  p.voxels = static_cast<uint32_t>(a.wide());
  p.steps = a.integer();
  p.steps_per_split = a.integer();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  p.branches = a.count(BRANCHES);
  for (int s = 0; s < p.branches; ++s) {
    a.integers(p.part[s].extent);
    p.part[s].number = a.integer();
    p.part[s].first_tile = a.integer();
  }
  if (!a.complete() || p.stages < 2 || p.stages > 4) return WRONG_COUNT;
  return wgrad_sm80(arithmetic, rows, p, grid, stream);
}

const char* call_wgrad_sm90(Arguments& a, Arithmetic arithmetic, void* stream) {
  const Grid grid = a.grid();
  const int rows = a.integer();
  WgradSm90Params p = {};
  p.low = a.volume();
  p.high = a.volume();
  p.workspace = a.pointer<float>();
  p.geometry = a.geometry();
  p.low_channels = a.integer();
  p.high_channels = a.integer();
  p.low_box = a.integer();
  p.high_box = a.integer();
  p.boxes = a.integer();
  p.row_blocks = a.integer();
  p.steps = a.integer();
  p.steps_per_split = a.integer();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  p.parts = a.count(FUSED);
  for (int s = 0; s < p.parts; ++s) {
    a.integers(p.part[s].extent);
    p.part[s].number = a.integer();
    p.part[s].first_tile = a.integer();
  }
  return a.complete() ? wgrad_sm90(arithmetic, rows, p, grid, stream) : WRONG_COUNT;
}

const char* call_wgrad_reduce(Arguments& a, void* stream) {
  const Grid grid = a.grid();
  WgradReduceParams p = {};
  p.workspace = a.pointer<const float>();
  p.splits = a.integer();
  p.row_blocks = a.integer();
  p.block_rows = a.integer();
  p.rows = a.integer();
  p.columns = a.integer();
  p.chunk = a.integer();
  p.chunks = a.integer();
  p.transposed = a.integer();
  p.branches = a.count(BRANCHES);
  for (int s = 0; s < p.branches; ++s) {
    p.out[s] = a.pointer<float>();
    p.taps[s] = a.integer();
    p.first_tile[s] = a.integer();
  }
  p.first_tile[p.branches] = a.integer();
  return a.complete() ? wgrad_reduce(p, grid, stream) : WRONG_COUNT;
}

const char* call_epilogue(Arguments& a, Format format, void* stream) {
  const Grid grid = a.grid();
  EpilogueParams p = {};
  p.z = a.volume();
  p.y = a.pointer();
  p.epilogue = a.epilogue();
  p.channels = a.integer();
  p.groups = a.integer();
  p.threads = a.integer();
  p.blocks = a.divider();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  return a.complete() ? epilogue(format, p, grid, stream) : WRONG_COUNT;
}

const char* call_epilogue_backward(Arguments& a, Format format, void* stream) {
  const Grid grid = a.grid();
  EpilogueBackwardParams p = {};
  p.gy = a.volume();
  p.y = a.volume();
  p.z = a.volume();
  p.gz = a.pointer();
  p.scale = a.pointer<const float>();
  p.bias_sums = a.pointer<float>();
  p.scale_sums = a.pointer<float>();
  p.noise_sums = a.pointer<float>();
  p.clamped = a.integer();
  p.channels = a.integer();
  p.groups = a.integer();
  p.lanes = a.integer();
  p.voxels_per_block = a.integer();
  p.blocks = a.divider();
  p.d = a.divider();
  p.h = a.divider();
  p.w = a.divider();
  p.slope = a.number();
  p.gain = a.number();
  p.clamp = a.number();
  return a.complete() ? epilogue_backward(format, p, grid, stream) : WRONG_COUNT;
}

const char* call_upfirdn(Arguments& a, Format format, void* stream) {
  const Grid grid = a.grid();
  const int shared_bytes = a.integer();
  UpfirdnParams p = {};
  p.x = a.volume();
  p.y = a.pointer();
  a.integers(p.size);
  p.channels = a.integer();
  for (Companion& taps : p.taps) taps = a.companion();
  a.integers(p.length);
  a.integers(p.up);
  a.integers(p.down);
  a.integers(p.padding);
  a.integers(p.tile);
  a.integers(p.source);
  p.width = a.integer();
  for (Divider& d : p.blocks) d = a.divider();
  return a.complete() ? upfirdn(format, p, grid, shared_bytes, stream) : WRONG_COUNT;
}

}  // namespace

const char* cuda_call(const char* kernel, const int64_t* integers, int64_t integer_count, const double* floats,
                      int64_t float_count) {
  Arguments a(integers, integer_count, floats, float_count);
  void* const stream = a.pointer();
  const int kind = a.integer();  // arithmetic, or format
  const auto is = [kernel](const char* name) { return std::strcmp(kernel, name) == 0; };
  if (is("conv_sm80")) return call_conv_sm80(a, static_cast<Arithmetic>(kind), stream);
  if (is("conv_sm90")) return call_conv_sm90(a, static_cast<Arithmetic>(kind), stream);
  if (is("conv_sm90_halo")) return call_conv_sm90_halo(a, static_cast<Arithmetic>(kind), stream);
  if (is("pack_weights")) return call_pack_weights(a, static_cast<Arithmetic>(kind), stream);
  if (is("pack_input")) return call_pack_input(a, static_cast<Format>(kind), stream);
  if (is("wgrad_sm80")) return call_wgrad_sm80(a, static_cast<Arithmetic>(kind), stream);
  if (is("wgrad_sm90")) return call_wgrad_sm90(a, static_cast<Arithmetic>(kind), stream);
  if (is("wgrad_reduce")) return call_wgrad_reduce(a, stream);
  if (is("epilogue")) return call_epilogue(a, static_cast<Format>(kind), stream);
  if (is("epilogue_backward")) return call_epilogue_backward(a, static_cast<Format>(kind), stream);
  if (is("upfirdn")) return call_upfirdn(a, static_cast<Format>(kind), stream);
  return "there is no such kernel";
}

}  // namespace ssconv
