// Weights in the order in which the products read them.

// A branch's weight as blocks of columns: the block at channel o0 holds [block of inputs][tap][input][width], in the
// order in which the products read it, with zeros beyond the last channel.
inline int64_t taps_of(const Branch& b) { return int64_t(b.extent[0]) * b.extent[1] * b.extent[2]; }

// With one vector of channels a vector of weights would be used once per input it is multiplied by, and the loads would
// set the pace. So in such a block of channels the three taps along W become columns: one product over all inputs of a
// line gives each input's share in its three outputs, and the shares are added up afterwards. For gradients the same the
// other way round. `width`: of the block (`block_width`).
inline bool triple(const Geometry& g, const Branch& b, int width) {
  return SSCONV_TRIPLE_ROWS > 0 && (width == EIGHT || width == LANES) && b.extent[2] == 3 && g.stride[2] == 1;
}

// Lines that share a vector in such a block: two where eight channels are half of one.
inline int lines_in_vector(int width) { return width < LANES ? SIDES : 1; }

void pack_weight_block(const Geometry& g, const Branch& b, int64_t o0, int width, float* to) {
  const int64_t inside = least(width, g.out_channels - o0), taps = taps_of(b), columns = triple(g, b, width) ? b.extent[2] : 1;
  // An input's weights one row per tap, then each row to its place: a weight's taps lie together, and its channels so far
  // apart that they fall on each other in the cache.
  Scratch rows(taps * width * 4);
  __builtin_memset(rows.data, 0, size_t(taps * width) * 4);
  for (int64_t i0 = 0; i0 < g.in_channels; i0 += BLOCK) {
    const int64_t inputs = least(BLOCK, g.in_channels - i0);
    for (int64_t i = 0; i < inputs; ++i) {
      for (int64_t o = 0; o < inside; ++o) {
        float* row = rows.floats(o);
        const int64_t at = (o0 + o) * b.stride[0] + (i0 + i) * b.stride[1];
        for (int64_t kd = 0; kd < b.extent[0]; ++kd)
          for (int64_t kh = 0; kh < b.extent[1]; ++kh)
            for (int64_t kw = 0; kw < b.extent[2]; ++kw, row += width)
              *row = load(b.weight, g.weight_type, at + kd * b.stride[2] + kh * b.stride[3] + kw * b.stride[4]);
      }
      for (int64_t t = 0; t < taps; ++t) {
        // The three taps of a line in the order of the outputs that an input adds to: an adjoint's as they are.
        const int64_t column = g.adjoint ? t % columns : columns - 1 - t % columns;
        __builtin_memcpy(to + ((t / columns * inputs + i) * columns + column) * width, rows.floats(t * width), size_t(width) * 4);
      }
    }
    to += taps * inputs * width;
  }
}

// All branches, block by block on all workers. at[s] is where branch s begins.
void pack_weights(const Geometry& g, float* to, int64_t* at, const Pool& pool) {
  const int64_t columns = padded(g.out_channels);
  int64_t total = 0;
  for (int s = 0; s < g.branches; ++s) {
    at[s] = total;
    if (g.branch[s].kind == Kind::convolution) total += columns * taps_of(g.branch[s]) * g.in_channels;
  }
  if (to == nullptr) {
    at[g.branches] = total;
    return;
  }
  int64_t blocks = 0;
  for (int64_t o = 0; o < g.out_channels; o += block_width(g.out_channels - o)) ++blocks;
  distribute(pool, blocks * g.branches, [&](int, auto next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int s = int(task / blocks);
      const Branch& b = g.branch[s];
      if (b.kind != Kind::convolution) continue;
      int64_t o = 0;
      for (int64_t i = task % blocks; i > 0; --i) o += block_width(g.out_channels - o);
      pack_weight_block(g, b, o, block_width(g.out_channels - o), to + at[s] + o * taps_of(b) * g.in_channels);
    }
  });
}
