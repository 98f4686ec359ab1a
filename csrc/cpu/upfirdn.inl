// upfirdn: zero insertion, padding or cropping, a separable FIR filter, decimation. Along each dimension
//
//     y[o] = sum over t of taps[length - 1 - t] * stuffed[o * down + t - before],  stuffed[i * up] = x[i], else 0
//
// Outside x is 0. Along D the filter's border may say otherwise: x[i] repeats the outer slices ("replicate"), or what
// outputs beyond the first and the last would be is added to those ("fold", the adjoint of "replicate").
//
// A task computes a tile of one sample's output: some slices, some rows, the whole width, all channels, up to 32 at a
// time. It filters W from x into a circular buffer of rows, H from the rows into a circular buffer of planes, D from the
// planes into y. Both buffers stay in the L2 cache, so x is read about once and y is written once. The order of additions does
// not depend on the tiles.

// The samples that an output is computed from, along one dimension: `count` from `first` on, with taps `step` apart.
struct Support {
  int64_t first, count;
  const float* tap;
  int64_t step;
};

// Outputs inside[0] <= o < inside[1] read nothing outside x. Among them, output o + period has the taps of output o, and
// its samples are `advance` further on.
struct Axis {
  Support* supports;  // of each output
  int64_t longest;    // the largest count
  int64_t inside[2];
  int64_t period, advance;
};

inline Axis supports(const Filter& f, int d, int64_t inputs, int64_t outputs, Support* memory) {
  Axis axis = {memory, 1, {0, 0}, f.up[d], f.down[d]};
  int64_t inside = 0;  // the first of the outputs up to this one that read nothing outside x
  for (int64_t o = 0; o < outputs; ++o) {
    const int64_t position = o * f.down[d] - f.before[d], up = f.up[d];
    int64_t t = (up - position % up) % up;
    int64_t i = (position + t) / up;
    const bool before = i < 0;
    if (before) {
      t -= i * up;
      i = 0;
    }
    const int64_t taps = t < f.length[d] ? (f.length[d] - 1 - t) / up + 1 : 0;
    const int64_t count = maximum(0, minimum(taps, inputs - i));
    if (before || count < taps) inside = o + 1;
    if (o + 1 - inside > axis.inside[1] - axis.inside[0]) axis.inside[0] = inside, axis.inside[1] = o + 1;
    memory[o] = {i, count, f.taps[d] + (count ? f.length[d] - 1 - t : 0), -up};
    axis.longest = maximum(axis.longest, count);
  }
  return axis;
}

// Floats that `depth_supports` needs for taps of its own.
inline int64_t border_taps(const Filter& f, int64_t inputs, int64_t outputs) {
  return f.border == Border::zero ? 0 : inputs * (f.border == Border::fold ? minimum(outputs, 2) : outputs);
}

// The supports along D. Outputs that a border other than zero reaches get taps of their own in `taps`: one for each
// sample from the first to the last that they are made of.
inline Axis depth_supports(const Filter& f, int64_t inputs, int64_t outputs, Support* memory, float* taps) {
  Axis axis = supports(f, 0, inputs, outputs, memory);
  if (f.border == Border::zero) return axis;
  const int64_t up = f.up[0], down = f.down[0], before = f.before[0], length = f.length[0];
  for (int64_t o = 0; o < outputs; ++o) {
    // This output is the sum of those from `from` to `to`.
    int64_t from = o, to = o;
    if (f.border == Border::fold) {
      if (o == 0) from = minimum(0, -ceil_div(length - before, down));  // those before it end before x
      if (o == outputs - 1) to = maximum(o, ceil_div((inputs - 1) * up + before, down));  // the next begin behind x
      if (from == to) continue;
    } else if (o * down >= before && o * down - before + length - 1 <= (inputs - 1) * up) {
      continue;
    }
    int64_t low = inputs, high = -1;
    for (int64_t i = 0; i < inputs; ++i) taps[i] = 0;
    for (int64_t q = from; q <= to; ++q)
      for (int64_t t = 0; t < length; ++t) {
        const int64_t position = q * down + t - before;
        if (position % up != 0) continue;
        int64_t i = position / up;
        if (f.border == Border::replicate) i = minimum(maximum(i, 0), inputs - 1);
        if (i < 0 || i >= inputs) continue;
        taps[i] += f.taps[0][length - 1 - t];
        low = minimum(low, i);
        high = maximum(high, i);
      }
    if (high >= low) memory[o] = {low, high - low + 1, taps + low, 1};
    taps += inputs;
  }
  for (int64_t o = 0; o < outputs; ++o) axis.longest = maximum(axis.longest, memory[o].count);
  return axis;
}

// Combines `count` rows with the taps: to[p] = sum over k of tap[k * step] * from[k][p], L * V floats per position p.
template <int L, int V, int COUNT>
inline void combine_count(const float* const* from, int64_t from_pitch, const Support& r, int64_t positions, float* to,
                          int64_t to_pitch) {
  typedef typename Vector<L>::type vector;
  const int64_t count = COUNT ? COUNT : r.count;
  float tap[COUNT ? COUNT : 1];
  const float* run[COUNT ? COUNT : 1];
  for (int k = 0; k < COUNT; ++k) {
    tap[k] = r.tap[k * r.step];
    run[k] = from[k];
  }
  for (int64_t p = 0; p < positions; ++p) {
    vector sum[V];
    for (int v = 0; v < V; ++v) sum[v] = vector{};
    for (int64_t k = 0; k < count; ++k) {
      const float c = COUNT ? tap[COUNT ? k : 0] : r.tap[k * r.step];
      const float* at = (COUNT ? run[COUNT ? k : 0] : from[k]) + p * from_pitch;
      for (int v = 0; v < V; ++v) sum[v] += load_vector<L>(at + v * L) * c;
    }
    for (int v = 0; v < V; ++v) store_vector<L>(to + p * to_pitch + v * L, sum[v]);
  }
}

// The same, with the count a constant where it is at most 4.
template <int L, int V>
inline void combine_rows(const float* const* from, int64_t from_pitch, const Support& r, int64_t positions, float* to,
                         int64_t to_pitch) {
  switch (r.count) {
    case 1:
      return combine_count<L, V, 1>(from, from_pitch, r, positions, to, to_pitch);
    case 2:
      return combine_count<L, V, 2>(from, from_pitch, r, positions, to, to_pitch);
    case 3:
      return combine_count<L, V, 3>(from, from_pitch, r, positions, to, to_pitch);
    case 4:
      return combine_count<L, V, 4>(from, from_pitch, r, positions, to, to_pitch);
    default:
      return combine_count<L, V, 0>(from, from_pitch, r, positions, to, to_pitch);
  }
}

// Filters one row along W: to[o] = sum over k of tap * x[(first + k) * pitch]. from: memory for pointers to samples.
template <int L, int V>
inline void filter_row(const float* x, int64_t pitch, const Axis& axis, int64_t outputs, const float** from,
                       float* to) {
  const auto filter = [&](int64_t o, int64_t count, int64_t advance, int64_t period) {
    const Support& r = axis.supports[o];
    for (int64_t k = 0; k < r.count; ++k) from[k] = x + (r.first + k) * pitch;
    combine_rows<L, V>(from, advance * pitch, r, count, to + o * L * V, period * L * V);
  };
  const int64_t first = axis.inside[0], last = axis.inside[1];
  for (int64_t o = 0; o < first; ++o) filter(o, 1, 0, 0);
  for (int64_t o = first; o < minimum(first + axis.period, last); ++o)
    filter(o, ceil_div(last - o, axis.period), axis.advance, axis.period);
  for (int64_t o = last; o < outputs; ++o) filter(o, 1, 0, 0);
}

// A tile: outputs begin[d] <= o < end[d] along D and H, channels `channel` .. `channel + channels - 1` of sample n.
struct FilterTile {
  int64_t n, channel, channels, begin[2], end[2];
};

template <int WIDTH>
inline void filter_tile(const Volume& x, const Volume& y, const Axis* axis, const FilterTile& tile) {
  constexpr int L = WIDTH % LANES ? SMALL_BLOCK : LANES, V = WIDTH / L;
  const int64_t width = y.size[4], line = width * WIDTH, height = tile.end[1] - tile.begin[1];
  const bool whole = tile.channels == WIDTH;
  const bool x_direct = whole && x.type == Type::f32 && x.stride[1] == 1;
  const bool y_direct = whole && y.type == Type::f32 && y.stride[1] == 1;
  Scratch planes(axis[0].longest * height * line * 4), rows(axis[1].longest * line * 4);
  Scratch in(x_direct ? 0 : x.size[4] * WIDTH * 4), out(y_direct ? 0 : line * 4);
  Scratch pointers(maximum(maximum(axis[0].longest, axis[1].longest), axis[2].longest) * int64_t(sizeof(float*)));
  const float** from = reinterpret_cast<const float**>(pointers.data);
  const auto plane = [&](int64_t d) { return planes.floats(d % axis[0].longest * height * line); };
  const auto row = [&](int64_t h) { return rows.floats(h % axis[1].longest * line); };
  const int64_t origin = tile.n * x.stride[0] + tile.channel * x.stride[1];

  const auto fill_row = [&](int64_t d, int64_t h) {
    const int64_t at = origin + d * x.stride[2] + h * x.stride[3];
    if (x_direct) {
      filter_row<L, V>(static_cast<const float*>(x.data) + at, x.stride[4], axis[2], width, from, row(h));
      return;
    }
    for (int64_t w = 0; w < x.size[4]; ++w) {
      float* to = in.floats(w * WIDTH);
      read_run(x.data, x.type, at + w * x.stride[4], x.stride[1], tile.channels, to);
      for (int64_t c = tile.channels; c < WIDTH; ++c) to[c] = 0;
    }
    filter_row<L, V>(in.floats(), WIDTH, axis[2], width, from, row(h));
  };
  const auto fill_plane = [&](int64_t d) {
    int64_t have = 0;
    for (int64_t o = tile.begin[1]; o < tile.end[1]; ++o) {
      const Support& r = axis[1].supports[o];
      for (have = maximum(have, r.first); have < r.first + r.count; ++have) fill_row(d, have);
      for (int64_t k = 0; k < r.count; ++k) from[k] = row(r.first + k);
      combine_rows<L, V>(from, WIDTH, r, width, plane(d) + (o - tile.begin[1]) * line, WIDTH);
    }
  };
  int64_t have = 0;
  for (int64_t o = tile.begin[0]; o < tile.end[0]; ++o) {
    const Support& r = axis[0].supports[o];
    // An output of no sample may have a `first` behind that of the next output, which repeats the last sample.
    if (r.count > 0)
      for (have = maximum(have, r.first); have < r.first + r.count; ++have) fill_plane(have);
    for (int64_t h = 0; h < height; ++h) {
      for (int64_t k = 0; k < r.count; ++k) from[k] = plane(r.first + k) + h * line;
      const int64_t at = tile.n * y.stride[0] + tile.channel * y.stride[1] + o * y.stride[2] +
                         (tile.begin[1] + h) * y.stride[3];
      if (y_direct) {
        combine_rows<L, V>(from, WIDTH, r, width, static_cast<float*>(y.data) + at, y.stride[4]);
        continue;
      }
      combine_rows<L, V>(from, WIDTH, r, width, out.floats(), WIDTH);
      for (int64_t w = 0; w < width; ++w)
        write_run(out.floats(w * WIDTH), tile.channels, y.data, y.type, at + w * y.stride[4], y.stride[1]);
    }
  }
}

inline void upfirdn(const Filter& f, const Volume& x, const Volume& y, const Pool& pool) {
  constexpr int64_t CACHE = int64_t(1) << 19;  // bytes of a tile's planes
  Scratch memory((y.size[2] + y.size[3] + y.size[4]) * int64_t(sizeof(Support)));
  Scratch taps(border_taps(f, x.size[2], y.size[2]) * 4);
  Support* at = reinterpret_cast<Support*>(memory.data);
  Axis axis[3] = {depth_supports(f, x.size[2], y.size[2], at, taps.floats())};
  for (int d = 1; d < 3; ++d) axis[d] = supports(f, d, x.size[2 + d], y.size[2 + d], at += y.size[1 + d]);
  constexpr int WIDEST = 2 * BLOCK;  // channels at a time
  const int64_t widest = minimum(WIDEST, ceil_div(y.size[1], SMALL_BLOCK) * SMALL_BLOCK);
  const int64_t fit = maximum(1, CACHE / (axis[0].longest * y.size[4] * widest * 4));
  const int64_t h_tiles = ceil_div(y.size[3], minimum(fit, y.size[3]));
  const int64_t height = ceil_div(y.size[3], h_tiles);
  // Each tile along D filters its border planes anew, so there are only as many as the workers need.
  const int64_t wanted = ceil_div(4 * pool.workers, maximum(1, y.size[0] * h_tiles));
  const int64_t depth = ceil_div(y.size[2], maximum(1, minimum(wanted, y.size[2] / 4)));
  const int64_t d_tiles = ceil_div(y.size[2], depth);
  const int64_t elements = y.size[0] * y.size[1] * y.size[2] * y.size[3] * y.size[4];
  distribute(pool, y.size[0] * d_tiles * h_tiles, elements, [&](int, auto next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t n = task / (h_tiles * d_tiles), d = task / h_tiles % d_tiles * depth, h = task % h_tiles * height;
      // All channels in one task: tasks of other channels would share cache lines of y.
      for (int64_t channel = 0; channel < y.size[1]; channel += WIDEST) {
        const FilterTile tile = {n, channel, minimum(WIDEST, y.size[1] - channel), {d, h},
                                 {minimum(d + depth, y.size[2]), minimum(h + height, y.size[3])}};
        if (tile.channels <= SMALL_BLOCK)
          filter_tile<SMALL_BLOCK>(x, y, axis, tile);
        else if (tile.channels <= BLOCK)
          filter_tile<BLOCK>(x, y, axis, tile);
        else if (tile.channels <= BLOCK + SMALL_BLOCK)
          filter_tile<BLOCK + SMALL_BLOCK>(x, y, axis, tile);
        else
          filter_tile<WIDEST>(x, y, axis, tile);
      }
    }
  });
}
