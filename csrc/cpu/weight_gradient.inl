// The gradient of the weights: products over positions, added up in a fixed order.

void weight_gradient(const Geometry& g, const Volume& x, const float* x_scale, const Volume& y, const float* y_scale,
                     const Pool& pool) {
  const Class c = {{0, 0, 0}, {y.size[2], y.size[3], y.size[4]}};
  const Tile tile = choose_tile(g, c, y.size[0], WIDE, pool.workers);
  const int64_t nd = ceil_div(c.count[0], tile.d), nh = ceil_div(c.count[1], tile.h), nw = ceil_div(c.count[2], tile.w);
  const int64_t tiles = y.size[0] * nd * nh * nw;
  Scratch starts((g.branches + 1) * 8);
  int64_t* at = reinterpret_cast<int64_t*>(starts.data);
  pack_weights(g, nullptr, at, pool);
  const int64_t floats = at[g.branches];
  // The sum over positions is cut into as many parts as there are workers, while their results stay small. A part's
  // tiles are added in order and the parts at the end: the same number of workers gives the same bits.
  const int64_t parts = most(1, least(least(pool.workers, tiles), (int64_t(1) << 24) / most(floats, 1)));
  Scratch sums(parts * floats * 4);
  int64_t blocks = 0, box = 0;
  for (int64_t o = 0; o < g.out_channels; o += block_width(g.out_channels - o)) ++blocks;
  for (int s = 0; s < g.branches; ++s) {
    int64_t n = box_channels(g.in_channels);
    const int64_t extents[3] = {tile.d, tile.h, tile.w};
    for (int d = 0; d < 3; ++d) n *= span(reach(g, g.branch[s], c, d), g.stride[d], 0, extents[d]).length;
    box = most(box, n);
  }
  distribute(pool, g.branches * parts * blocks, [&](int, auto next) {
    Scratch box_memory(box * 4), gradient(tile.d * tile.h * (tile.w + 4) * WIDE * 4), offsets(2 * tile.d * tile.h * 8);
    int64_t* offset_a = reinterpret_cast<int64_t*>(offsets.data);
    int64_t* offset_b = offset_a + tile.d * tile.h;
    for (int64_t task = next(); task >= 0; task = next()) {
      const int s = int(task / (parts * blocks));
      const int64_t part = task / blocks % parts;
      const Branch& b = g.branch[s];
      if (b.kind != Kind::convolution) continue;
      int64_t o = 0;
      for (int64_t i = task % blocks; i > 0; --i) o += block_width(g.out_channels - o);
      const int width = block_width(g.out_channels - o);
      const int64_t inside = least(width, g.out_channels - o);
      float* to = sums.floats(part * floats + at[s] + o * taps_of(b) * g.in_channels);
      __builtin_memset(to, 0, size_t(taps_of(b) * g.in_channels * width) * 4);
      Reach r[3];
      for (int d = 0; d < 3; ++d) r[d] = reach(g, b, c, d);
      for (int64_t i = part * tiles / parts; i < (part + 1) * tiles / parts; ++i) {
        const int64_t n = i / (nd * nh * nw);
        const int64_t begin[3] = {i / (nh * nw) % nd * tile.d, i / nw % nh * tile.h, i % nw * tile.w};
        int64_t size[3];
        Span spans[3];
        for (int d = 0; d < 3; ++d) {
          const int64_t extents[3] = {tile.d, tile.h, tile.w};
          const int64_t end = least(begin[d] + extents[d], c.count[d]);
          size[d] = end - begin[d];
          spans[d] = span(r[d], g.stride[d], begin[d], end);
        }
        const Box packed = {spans[0], spans[1], spans[2], g.stride[2], g.in_channels};
        pack(packed, x, n, s * g.in_channels,
                 x_scale ? x_scale + (n * g.branches + s) * g.in_channels : nullptr, false, box_memory.floats());
        // The gradient's box: used where it lies if it is as the product wants it, else packed.
        const int64_t channel = s * g.out_channels + o;
        // Three taps along W at once (`triple`): input u meets outputs u, u - 1 and u - 2, eight channels each and side by
        // side in a line with two zeros at its ends.
        const bool sums = triple(g, b);
        const int64_t ends = sums ? 2 : 0, line_floats = (size[2] + 2 * ends) * width;
        const int columns = sums ? 3 * width : width;
        const bool direct = !sums && y.type == Type::f32 && y.stride[1] == 1 && inside == width && y_scale == nullptr;
        Product p = {};
        const float* gradients = direct ? static_cast<const float*>(y.data) : gradient.floats();
        p.step_b = direct ? y.stride[4] : width;
        for (int64_t d = 0; d < size[0] && !direct; ++d)
          for (int64_t h = 0; h < size[1]; ++h) {
            const int64_t from = n * y.stride[0] + channel * y.stride[1] + (begin[0] + d) * y.stride[2] +
                                 (begin[1] + h) * y.stride[3] + begin[2] * y.stride[4];
            float* line = gradient.floats((d * size[1] + h) * line_floats);
            __builtin_memset(line, 0, size_t(ends * width) * 4);
            __builtin_memset(line + line_floats - ends * width, 0, size_t(ends * width) * 4);
            line += ends * width;
            if (y.type == Type::f32 && y.stride[1] == 1 && inside == width && y_scale == nullptr) {
              const float* p = static_cast<const float*>(y.data) + from;
              for (int64_t w = 0; w < size[2]; ++w, line += width, p += y.stride[4])
                for (int k = 0; k < width; k += HALF) store_vector<HALF>(line + k, load_vector<HALF>(p + k));
              continue;
            }
            for (int64_t w = 0; w < size[2]; ++w, line += width) {
              read(y.data, y.type, from + w * y.stride[4], y.stride[1], inside, line);
              if (y_scale != nullptr) {
                const float* scale = y_scale + n * g.branches * g.out_channels + channel;
                for (int64_t k = 0; k < inside; ++k) line[k] *= scale[k];
              }
              for (int64_t k = inside; k < width; ++k) line[k] = 0;
            }
          }
        p.offset_a = offset_a;
        p.offset_b = offset_b;
        p.step_a = packed.pitch();
        p.rows_c = columns;
        p.accumulate = true;
        for (int kd = 0; kd < r[0].count; ++kd)
          for (int kh = 0; kh < r[1].count; ++kh) {
            // Lines whose input line lies inside the volume; the others would add zeros.
            p.batch = 0;
            for (int64_t d = 0; d < size[0]; ++d)
              for (int64_t h = 0; h < size[1]; ++h) {
                const int64_t pd = (begin[0] + d) * g.stride[0] + r[0].shift[kd];
                const int64_t ph = (begin[1] + h) * g.stride[1] + r[1].shift[kh];
                if (pd < 0 || pd >= x.size[2] || ph < 0 || ph >= x.size[3]) continue;
                offset_a[p.batch] = ((pd - packed.d.low) * packed.h.length + ph - packed.h.low) * packed.row();
                offset_b[p.batch++] = direct ? n * y.stride[0] + channel + (begin[0] + d) * y.stride[2] +
                                                   (begin[1] + h) * y.stride[3] + begin[2] * y.stride[4]
                                             : (d * size[1] + h) * line_floats;
              }
            for (int kw = 0; kw < (sums ? 1 : r[2].count); ++kw) {
              const int64_t tap = (int64_t(kd) * b.extent[1] + kh) * b.extent[2] + kw;
              // Positions that read inside the volume along W: outputs, or with `sums` inputs.
              int64_t first = 0, last = size[2] + ends;
              const int64_t from = begin[2] * g.stride[2] + r[2].shift[kw];
              while (first < last && from + first * g.stride[2] < 0) ++first;
              while (last > first && from + (last - 1) * g.stride[2] >= x.size[4]) --last;
              if (first == last) continue;
              p.depth = last - first;
              p.b = gradients + first * p.step_b;
              const int64_t column = packed.column(from + first * g.stride[2] - packed.w.low);
              for (int64_t k = 0; k < packed.blocks(); ++k) {
                p.a = box_memory.floats(k * packed.plane() + column);
                p.c = to + tap * g.in_channels * width + k * packed.pitch() * columns;
                run_product<1, 0>(p, columns, least(packed.pitch(), g.in_channels - k * packed.pitch()));
              }
            }
          }
      }
    }
  });
  // Parts together, and from blocks of columns to the weight's own order.
  distribute(pool, g.branches * blocks, [&](int, auto next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const int s = int(task / blocks);
      const Branch& b = g.branch[s];
      if (b.kind != Kind::convolution) continue;
      int64_t o = 0;
      for (int64_t i = task % blocks; i > 0; --i) o += block_width(g.out_channels - o);
      const int width = block_width(g.out_channels - o);
      const int64_t inside = least(width, g.out_channels - o), rows = taps_of(b) * g.in_channels;
      float* from = sums.floats(at[s] + o * rows);
      for (int64_t part = 1; part < parts; ++part)
        for (int64_t i = 0; i < rows * width; ++i) from[i] += from[part * floats + i];
      // By input channel: its taps' rows of `width` lie far apart and are read once, in order.
      for (int64_t i = 0; i < g.in_channels; ++i)
        for (int kd = 0; kd < b.extent[0]; ++kd)
          for (int kh = 0; kh < b.extent[1]; ++kh)
            for (int kw = 0; kw < b.extent[2]; ++kw) {
              const int64_t line = (int64_t(kd) * b.extent[1] + kh) * b.extent[2] * g.in_channels;
              const float* row = from + (line + (triple(g, b) ? 3 * i + 2 - kw : kw * g.in_channels + i)) * width;
              float* to = b.gradient + o * b.stride[0] + i * b.stride[1] + kd * b.stride[2] + kh * b.stride[3] + kw * b.stride[4];
              for (int64_t k = 0; k < inside; ++k) to[k * b.stride[0]] = row[k];
            }
    }
  });
}
