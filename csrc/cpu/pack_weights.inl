// Packs weights into the order in which the GEMM micro-kernels read them: a branch's output channels in blocks
// (`block_width`), each block as [block of input channels][tap][input channel][width], with zeros beyond the last
// output channel.

inline int64_t tap_count(const Branch& b) { return int64_t(b.extent[0]) * b.extent[1] * b.extent[2]; }

// Whether a block of output channels fuses the three taps along W into the columns of one GEMM. A block of one vector
// (or less) would use each vector of weights once per load and be bound by loads. So it computes, for each input
// position of a line, the terms of all three outputs that the position adds to, and adds them up in registers. wgrad
// does the reverse. `width`: of the block, in floats.
inline bool fuse_three_taps(const Geometry& g, const Branch& b, int width) {
  return SSCONV_THREE_TAP_ROWS > 0 && (width == NARROWEST || width == LANES) && b.extent[2] == 3 && g.stride[2] == 1;
}

// Lines of such a block that share a vector: two where eight channels are half a vector.
inline int lines_per_vector(int width) { return width < LANES ? LINES_PER_VECTOR : 1; }

// scale: factors of the branch's input channels, or null.
void pack_weight_block(const Geometry& g, const Branch& b, int64_t o0, int width, const float* scale, float* to) {
  const int64_t inside = minimum(width, g.out_channels - o0), taps = tap_count(b),
                columns = fuse_three_taps(g, b, width) ? b.extent[2] : 1;
  // First gathers an input channel's weights as one row per tap, then copies the rows: a weight's taps are contiguous,
  // and its channels are so far apart that they evict each other from the cache.
  Scratch rows(taps * width * 4);
  __builtin_memset(rows.data, 0, size_t(taps * width) * 4);
  for (int64_t i0 = 0; i0 < g.in_channels; i0 += BLOCK) {
    const int64_t inputs = minimum(BLOCK, g.in_channels - i0);
    for (int64_t i = 0; i < inputs; ++i) {
      const float factor = scale ? scale[i0 + i] : 1.f;
      for (int64_t o = 0; o < inside; ++o) {
        float* row = rows.floats(o);
        const int64_t at = (o0 + o) * b.stride[0] + (i0 + i) * b.stride[1];
        for (int64_t kd = 0; kd < b.extent[0]; ++kd)
          for (int64_t kh = 0; kh < b.extent[1]; ++kh)
            for (int64_t kw = 0; kw < b.extent[2]; ++kw, row += width)
              *row = factor * load(b.weight, g.weight_type,
                                   at + kd * b.stride[2] + kh * b.stride[3] + kw * b.stride[4]);
      }
      for (int64_t t = 0; t < taps; ++t) {
        // Fused taps are in the order of the outputs that an input adds to: reversed, except in the adjoint.
        const int64_t column = g.adjoint ? t % columns : columns - 1 - t % columns;
        __builtin_memcpy(to + ((t / columns * inputs + i) * columns + column) * width, rows.floats(t * width),
                         size_t(width) * 4);
      }
    }
    to += taps * inputs * width;
  }
}

// Packs all branches, one task per block. at[s] becomes the offset, in floats, of branch s in `to`. With `to` = null it
// computes the offsets alone, and the total as at[branches]. scale: factors of all input channels, or null.
void pack_weights(const Geometry& g, const float* scale, float* to, int64_t* at, const Pool& pool) {
  const int64_t columns = padded(g.out_channels);
  int64_t total = 0;
  for (int s = 0; s < g.branches; ++s) {
    at[s] = total;
    if (g.branch[s].kind == Kind::convolution) total += columns * tap_count(g.branch[s]) * g.in_channels;
  }
  if (to == nullptr) {
    at[g.branches] = total;
    return;
  }
  int64_t blocks = 0;
  for (int64_t o = 0; o < g.out_channels; o += block_width(g.out_channels - o)) ++blocks;
  distribute(pool, blocks * g.branches, total, [&](int, auto next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int s = int(task / blocks);
      const Branch& b = g.branch[s];
      if (b.kind != Kind::convolution) continue;
      int64_t o = 0;
      for (int64_t i = task % blocks; i > 0; --i) o += block_width(g.out_channels - o);
      pack_weight_block(g, b, o, block_width(g.out_channels - o), scale ? scale + s * g.in_channels : nullptr,
                        to + at[s] + o * tap_count(b) * g.in_channels);
    }
  });
}
