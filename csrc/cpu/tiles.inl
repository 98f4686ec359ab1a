// The tiles of a convolution: their size, and the prefetch of the next one's input.

struct Tile {
  int64_t d, h, w;
};

// Chooses a tile whose packed input (`boxes` at a time) and results stay in the L2 cache, with at least four tiles per
// worker.
Tile choose_tile(const Geometry& g, const ParityClass& c, int64_t samples, int64_t z_floats, int workers,
                 int64_t boxes = 1) {
  constexpr int64_t BOX = 112 * 1024, RESULT = 64 * 1024;  // floats
  Tile t = {1, 1, minimum(c.count[2], 64)};
  int64_t widest[3] = {1, 1, 1};
  for (int s = 0; s < g.branches; ++s)
    for (int d = 0; d < 3 && g.branch[s].kind == Kind::convolution; ++d)
      widest[d] = maximum(widest[d], g.adjoint ? ceil_div(g.branch[s].extent[d], g.stride[d]) : g.branch[s].extent[d]);
  const auto reads = [&](int d, int64_t outputs) { return (outputs - 1) * in_stride(g, d) + widest[d]; };
  const auto fits = [&](const Tile& u) {
    const int64_t box = reads(0, u.d) * reads(1, u.h) * reads(2, u.w) * box_channels(g.in_channels);
    return box * boxes <= BOX && u.d * u.h * u.w * z_floats <= RESULT;
  };
  while (t.w > 8 && !fits(t)) t.w = ceil_div(t.w, 2);
  // Grow along D or H, whichever reduces the halo's share more.
  for (;;) {
    const Tile deeper = {minimum(2 * t.d, c.count[0]), t.h, t.w}, higher = {t.d, minimum(2 * t.h, c.count[1]), t.w};
    const bool d = deeper.d > t.d && fits(deeper), h = higher.h > t.h && fits(higher);
    if (!d && !h) break;
    t = d && (!h || reads(0, t.d) * t.h > reads(1, t.h) * t.d) ? deeper : higher;
  }
  auto tasks = [&] {
    return samples * ceil_div(c.count[0], t.d) * ceil_div(c.count[1], t.h) * ceil_div(c.count[2], t.w);
  };
  while (tasks() < 4 * workers && t.d * t.h > 1) (t.d > 1 ? t.d : t.h) = ceil_div(t.d > 1 ? t.d : t.h, 2);
  return t;
}

// Prefetches the input of the next tile into the L2 cache, a few lines per step, while this tile is computed.
struct Prefetcher {
  const char* data;
  int64_t stride_d, stride_h, line_bytes, heights, lines, steps, calls, done;

  Prefetcher(const Volume& x, int64_t n, const Interval* spans, int64_t of_steps)
      : lines(0), steps(of_steps), calls(0), done(0) {
    const int64_t item = x.type == Type::f32 ? 4 : 2;
    if (x.stride[1] != 1 || x.stride[4] < x.size[1]) return;  // its channels are not contiguous
    int64_t low[3], size[3];
    for (int d = 0; d < 3; ++d) {
      low[d] = maximum(spans[d].low, 0);
      size[d] = minimum(spans[d].low + spans[d].length, x.size[2 + d]) - low[d];
      if (size[d] <= 0) return;
    }
    data = static_cast<const char*>(x.data) +
           (n * x.stride[0] + low[0] * x.stride[2] + low[1] * x.stride[3] + low[2] * x.stride[4]) * item;
    stride_d = x.stride[2] * item;
    stride_h = x.stride[3] * item;
    line_bytes = ((size[2] - 1) * x.stride[4] + x.size[1]) * item;
    heights = size[1];
    lines = size[0] * size[1];
  }

  void step() {
    const int64_t until = minimum(lines, lines * ++calls / steps);
    for (; done < until; ++done) {
      const char* line = data + done / heights * stride_d + done % heights * stride_h;
      for (int64_t i = 0; i < line_bytes; i += 64) __builtin_prefetch(line + i, 0, 2);
    }
  }
};
