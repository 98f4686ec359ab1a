// Which taps reach which outputs, and the packed halo box: the inputs that a tile of outputs reads.

constexpr int MAX_EXTENT = 63;  // taps per dimension; spec.py allows no more

// The taps of a branch that reach a parity class, along one dimension, and which input position each reads at q = 0.
struct AxisTaps {
  int count;
  int tap[MAX_EXTENT];
  int shift[MAX_EXTENT];
};

// One parity class of outputs: step * q + offset with 0 <= q < count. Where the step is 1, all outputs.
struct ParityClass {
  int offset[3];
  int64_t count[3];
};

inline int out_step(const Geometry& g, int d) { return g.adjoint ? g.stride[d] : 1; }
inline int in_stride(const Geometry& g, int d) { return g.adjoint ? 1 : g.stride[d]; }

inline AxisTaps axis_taps(const Geometry& g, const Branch& b, const ParityClass& c, int d) {
  AxisTaps r;
  r.count = 0;
  const int extent = b.kind == Kind::convolution ? b.extent[d] : 1;
  for (int t = 0; t < extent; ++t) {
    const int shift = t - (extent - 1) / 2 + g.first[d];
    if (!g.adjoint) {
      r.tap[r.count] = t;
      r.shift[r.count++] = shift;
    } else {
      const int numerator = c.offset[d] - shift;  // input position q + numerator / stride adds to this output
      if (numerator % g.stride[d] == 0) {
        r.tap[r.count] = t;
        r.shift[r.count++] = numerator / g.stride[d];
      }
    }
  }
  return r;
}

// The taps that read inside 0 .. size - 1 for the output whose input position is `base`: a range, as shifts are
// monotonic.
struct TapRange {
  int begin, end;
};

inline TapRange taps_inside(const AxisTaps& r, int64_t base, int64_t size) {
  TapRange range = {0, r.count};
  const auto outside = [&](int i) { return base + r.shift[i] < 0 || base + r.shift[i] >= size; };
  while (range.begin < range.end && outside(range.begin)) ++range.begin;
  while (range.end > range.begin && outside(range.end - 1)) --range.end;
  return range;
}

// Lists the parity classes that have outputs; returns how many.
inline int parity_classes(const Geometry& g, const int64_t* out, ParityClass* to) {
  int n = 0;
  for (int d = 0; d < out_step(g, 0); ++d)
    for (int h = 0; h < out_step(g, 1); ++h)
      for (int w = 0; w < out_step(g, 2); ++w) {
        ParityClass c = {{d, h, w}, {0, 0, 0}};
        bool empty = false;
        for (int i = 0; i < 3; ++i) {
          c.count[i] = out[i] > c.offset[i] ? ceil_div(out[i] - c.offset[i], out_step(g, i)) : 0;
          empty = empty || c.count[i] == 0;
        }
        if (!empty) to[n++] = c;
      }
  return n;
}

// The input positions [low, low + length) that a range of q reads along one dimension.
struct Interval {
  int64_t low, length;
};

inline Interval read_interval(const AxisTaps& r, int stride, int64_t begin, int64_t end) {
  if (r.count == 0) return {0, 0};
  int lo = r.shift[0], hi = r.shift[0];
  for (int i = 1; i < r.count; ++i) {
    lo = r.shift[i] < lo ? r.shift[i] : lo;
    hi = r.shift[i] > hi ? r.shift[i] : hi;
  }
  return {begin * stride + lo, (end - 1 - begin) * stride + hi - lo + 1};
}

// The packed halo box: [block][d][h][w][pitch], channels in blocks of 16 (or one block of 8), so that the
// micro-kernels' lda is a constant. With stride 2 along W the even positions come before the odd ones: successive
// outputs always read successive positions. Channels rounded up to whole blocks.
inline int64_t box_channels(int64_t channels) {
  return channels <= SMALL_BLOCK ? SMALL_BLOCK : ceil_div(channels, BLOCK) * BLOCK;
}

struct HaloBox {
  Interval d, h, w;
  int stride_w;
  int64_t channels;
  int64_t pitch() const { return channels <= SMALL_BLOCK ? SMALL_BLOCK : BLOCK; }
  int64_t blocks() const { return ceil_div(channels, BLOCK); }
  int64_t row() const { return w.length * pitch(); }
  int64_t plane() const { return d.length * h.length * row(); }
  int64_t floats() const { return blocks() * plane(); }
  int64_t column(int64_t u) const { return (stride_w == 1 ? u : (u & 1) * ((w.length + 1) / 2) + (u >> 1)) * pitch(); }
  int64_t at(int64_t pd, int64_t ph, int64_t pw) const {
    return ((pd - d.low) * h.length + ph - h.low) * row() + column(pw - w.low);
  }
};

// Reads `count` channels of one position, at most a block, as float32, and scales them.
template <int PITCH>
inline void read_block(const void* base, Type type, int64_t at, int64_t step, int64_t count, const float* scale,
                       float* to) {
  if (type == Type::f32 && step == 1 && count == PITCH)
    __builtin_memcpy(to, static_cast<const float*>(base) + at, PITCH * 4);
  else
    read_run(base, type, at, step, count, to);
  if (scale != nullptr) {
    if (count == PITCH)
      for (int i = 0; i < PITCH; ++i) to[i] *= scale[i];
    else
      for (int64_t i = 0; i < count; ++i) to[i] *= scale[i];
  }
}

// Packs the box's inputs of sample n, from channel0 on. outside: whether lines outside the volume along D and H are
// written (as zeros); the GEMMs leave them out.
template <int PITCH>
void pack_box(const HaloBox& box, const Volume& x, int64_t n, int64_t channel0, const float* scale, bool outside,
              float* to) {
  // Positions before, inside and after the volume along W.
  const int64_t inner_first = minimum(maximum(-box.w.low, 0), box.w.length);
  const int64_t inner_last = maximum(inner_first, minimum(x.size[4] - box.w.low, box.w.length));
  for (int64_t b = 0; b < box.blocks(); ++b) {
    const int64_t count = minimum(PITCH, box.channels - b * PITCH);
    const float* factor = scale ? scale + b * PITCH : nullptr;
    for (int64_t d = 0; d < box.d.length; ++d)
      for (int64_t h = 0; h < box.h.length; ++h, to += box.row()) {
        const int64_t pd = box.d.low + d, ph = box.h.low + h;
        if (pd < 0 || pd >= x.size[2] || ph < 0 || ph >= x.size[3]) {
          if (outside) __builtin_memset(to, 0, size_t(box.row()) * 4);
          continue;
        }
        const int64_t first = inner_first, last = inner_last;
        for (int64_t w = 0; w < first; ++w) __builtin_memset(to + box.column(w), 0, PITCH * 4);
        for (int64_t w = last; w < box.w.length; ++w) __builtin_memset(to + box.column(w), 0, PITCH * 4);
        const int64_t at = n * x.stride[0] + (channel0 + b * PITCH) * x.stride[1] + pd * x.stride[2] +
                           ph * x.stride[3] + box.w.low * x.stride[4];
        if (box.stride_w == 1 && x.type == Type::f32 && x.stride[1] == 1 && count == PITCH && factor == nullptr) {
          const float* from = static_cast<const float*>(x.data) + at + first * x.stride[4];
          float* position = to + first * PITCH;
          for (int64_t w = first; w < last; ++w, from += x.stride[4], position += PITCH)
            __builtin_memcpy(position, from, PITCH * 4);
          continue;
        }
        for (int64_t w = first; w < last; ++w)
          read_block<PITCH>(x.data, x.type, at + w * x.stride[4], x.stride[1], count, factor, to + box.column(w));
      }
  }
}

inline void pack_input(const HaloBox& box, const Volume& x, int64_t n, int64_t channel0, const float* scale,
                       bool outside, float* to) {
  if (box.pitch() == BLOCK)
    pack_box<BLOCK>(box, x, n, channel0, scale, outside, to);
  else
    pack_box<SMALL_BLOCK>(box, x, n, channel0, scale, outside, to);
}
