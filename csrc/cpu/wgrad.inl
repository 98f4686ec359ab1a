// wgrad: GEMMs whose K is the output positions (split-K), summed in a fixed order.

// The inputs that a branch reads for a tile of outputs: the packed halo box, or x in place.
struct InputView {
  AxisTaps r[3];
  HaloBox box;
  const float* data;
  int64_t step;                      // floats between the inputs of successive outputs
  int64_t in_place, d, h, w, block;  // strides of x, used in place
  int64_t line(int64_t pd, int64_t ph) const {
    return in_place ? pd * d + ph * h + box.w.low * w : ((pd - box.d.low) * box.h.length + ph - box.h.low) * box.row();
  }
  int64_t column(int64_t k, int64_t pw) const {  // of block k of the channels, from the line's start
    return in_place ? k * block + (pw - box.w.low) * w : k * box.plane() + box.column(pw - box.w.low);
  }
};

// A block of a branch's output channels, and its accumulated sums.
struct ChannelBlock {
  int branch, width;      // width in floats, padded
  int64_t first, inside;  // first channel, and how many exist
  float* sums;            // [tap][input channel][width]
};

struct Wgrad {
  const Geometry& g;
  const Volume& x;
  const float* x_scale;
  const Volume& y;
  const float* y_scale;

  // Whether the micro-kernels can read v in place.
  static bool contiguous_f32(const Volume& v, const float* scale) {
    return v.type == Type::f32 && v.stride[1] == 1 && scale == nullptr;
  }

  InputView inputs(int s, int64_t n, const int64_t* begin, const int64_t* size, float* memory) const {
    InputView in;
    const ParityClass c = {{0, 0, 0}, {y.size[2], y.size[3], y.size[4]}};
    Interval spans[3];
    for (int d = 0; d < 3; ++d) {
      in.r[d] = axis_taps(g, g.branch[s], c, d);
      spans[d] = read_interval(in.r[d], g.stride[d], begin[d], begin[d] + size[d]);
    }
    in.box = {spans[0], spans[1], spans[2], g.stride[2], g.in_channels};
    in.in_place = contiguous_f32(x, x_scale) && x.stride[4] <= 2 * BLOCK;  // with larger strides packing is faster
    in.d = x.stride[2];
    in.h = x.stride[3];
    in.w = x.stride[4];
    in.block = in.box.pitch();
    in.data = in.in_place ? static_cast<const float*>(x.data) + n * x.stride[0] + s * g.in_channels : memory;
    in.step = in.in_place ? g.stride[2] * x.stride[4] : in.box.pitch();
    if (!in.in_place)
      pack_input(in.box, x, n, s * g.in_channels, x_scale ? x_scale + (n * g.branches + s) * g.in_channels : nullptr,
                 false, memory);
    return in;
  }

  // Adds one tile's terms to the block's sums. `memory` holds the tile's output gradients where they must be copied;
  // the offset arrays hold one number per line.
  void add(const InputView& in, const ChannelBlock& to, int64_t n, const int64_t* begin, const int64_t* size,
           float* memory, int64_t* offset_a, int64_t* offset_b, Prefetcher* prefetcher) const {
    const Branch& b = g.branch[to.branch];
    const int width = to.width;
    const int64_t channel = to.branch * g.out_channels + to.first;
    // With the taps along W fused, input u meets the outputs u, u - 1 and u - 2: three consecutive vectors of a line
    // that has two zeros at each end.
    const bool fused = fuse_three_taps(g, b, width);
    const int64_t ends = fused ? 2 : 0, line_floats = (size[2] + 2 * ends) * width;
    const int columns = fused ? 3 * width : width;
    const bool whole = contiguous_f32(y, y_scale) && to.inside == width, in_place = whole && !fused;
    GemmArgs p = {};
    const float* gradients = in_place ? static_cast<const float*>(y.data) : memory;
    p.k_stride_b = in_place ? y.stride[4] : width;
    for (int64_t d = 0; d < size[0] && !in_place; ++d)
      for (int64_t h = 0; h < size[1]; ++h) {
        const int64_t from = n * y.stride[0] + channel * y.stride[1] + (begin[0] + d) * y.stride[2] +
                             (begin[1] + h) * y.stride[3] + begin[2] * y.stride[4];
        float* line = memory + (d * size[1] + h) * line_floats;
        __builtin_memset(line, 0, size_t(ends * width) * 4);
        __builtin_memset(line + line_floats - ends * width, 0, size_t(ends * width) * 4);
        line += ends * width;
        if (whole) {
          const float* p = static_cast<const float*>(y.data) + from;
          for (int64_t w = 0; w < size[2]; ++w, line += width, p += y.stride[4])
            for (int k = 0; k < width; k += HALF) store_vector<HALF>(line + k, load_vector<HALF>(p + k));
          continue;
        }
        for (int64_t w = 0; w < size[2]; ++w, line += width) {
          read_run(y.data, y.type, from + w * y.stride[4], y.stride[1], to.inside, line);
          if (y_scale != nullptr) {
            const float* scale = y_scale + n * g.branches * g.out_channels + channel;
            for (int64_t k = 0; k < to.inside; ++k) line[k] *= scale[k];
          }
          for (int64_t k = to.inside; k < width; ++k) line[k] = 0;
        }
      }
    // Where two lines share a vector, the last of an odd number is paired with a line of zeros.
    const bool paired = fused && lines_per_vector(width) == 2;
    const int64_t zeros = size[0] * size[1] * line_floats;
    if (paired) __builtin_memset(memory + zeros, 0, size_t(line_floats) * 4);
    p.offset_a = offset_a;
    p.offset_b = offset_b;
    p.k_stride_a = in.step;
    p.ldc = columns;
    p.accumulate = true;
    const AxisTaps* r = in.r;
    for (int kd = 0; kd < r[0].count; ++kd)
      for (int kh = 0; kh < r[1].count; ++kh) {
        if (prefetcher) prefetcher[0].step(), prefetcher[1].step();
        // The batch: lines whose input line lies inside the volume; the others would add zeros.
        p.batch = 0;
        for (int64_t d = 0; d < size[0]; ++d)
          for (int64_t h = 0; h < size[1]; ++h) {
            const int64_t pd = (begin[0] + d) * g.stride[0] + r[0].shift[kd];
            const int64_t ph = (begin[1] + h) * g.stride[1] + r[1].shift[kh];
            if (pd < 0 || pd >= x.size[2] || ph < 0 || ph >= x.size[3]) continue;
            offset_a[p.batch] = in.line(pd, ph);
            offset_b[p.batch++] = in_place ? n * y.stride[0] + channel + (begin[0] + d) * y.stride[2] +
                                                 (begin[1] + h) * y.stride[3] + begin[2] * y.stride[4]
                                           : (d * size[1] + h) * line_floats;
          }
        if (p.batch == 0) continue;
        if (paired && p.batch % 2 != 0) {
          offset_a[p.batch] = offset_a[0];
          offset_b[p.batch++] = zeros;
        }
        for (int kw = 0; kw < (fused ? 1 : r[2].count); ++kw) {
          const int64_t tap = (int64_t(kd) * b.extent[1] + kh) * b.extent[2] + kw;
          // K: the positions that read inside the volume along W: outputs, or with `fused` inputs.
          int64_t first = 0, last = size[2] + ends;
          const int64_t from = begin[2] * g.stride[2] + r[2].shift[kw];
          while (first < last && from + first * g.stride[2] < 0) ++first;
          while (last > first && from + (last - 1) * g.stride[2] >= x.size[4]) --last;
          if (first == last) continue;
          p.depth = last - first;
          p.b = gradients + first * p.k_stride_b;
          for (int64_t k = 0; k < in.box.blocks(); ++k) {
            p.a = in.data + in.column(k, from + first * g.stride[2]);
            p.c = to.sums + tap * g.in_channels * width + k * in.box.pitch() * columns;
            const int64_t rows = minimum(in.box.pitch(), g.in_channels - k * in.box.pitch());
            paired ? run_paired_gemm(p, rows) : run_gemm<1, 0>(p, columns, rows);
          }
        }
      }
  }
};

void wgrad(const Geometry& g, const Volume& x, const float* x_scale, const Volume& y, const float* y_scale,
                     const Pool& pool) {
  const ParityClass c = {{0, 0, 0}, {y.size[2], y.size[3], y.size[4]}};
  const Wgrad work = {g, x, x_scale, y, y_scale};
  const Tile tile = choose_tile(g, c, y.size[0], WIDE, pool.workers);
  const int64_t nd = ceil_div(c.count[0], tile.d), nh = ceil_div(c.count[1], tile.h), nw = ceil_div(c.count[2], tile.w);
  const int64_t tiles = y.size[0] * nd * nh * nw;
  Scratch starts((g.branches + 1) * 8);
  int64_t* at = reinterpret_cast<int64_t*>(starts.data);
  pack_weights(g, nullptr, nullptr, at, pool);
  const int64_t floats = at[g.branches];
  // Split-K: the tiles are divided among splits, as long as the splits' results stay small. Each split adds its tiles
  // in order, and the splits are added in order at the end: the same number of workers gives the same bits. Where the
  // sums of all channel blocks fit into the L2 cache beside a tile, one task computes them all, so that x and y come
  // from memory once; else a task computes one block.
  const bool all_blocks = floats <= 16 * 1024;
  const int64_t splits = maximum(
      1, minimum(minimum((all_blocks ? 16 : 1) * pool.workers, tiles), (int64_t(1) << 24) / maximum(floats, 1)));
  Scratch sums(splits * floats * 4);
  int64_t blocks = 0, box = 0, steps = 0;
  for (int64_t o = 0; o < g.out_channels; o += block_width(g.out_channels - o)) ++blocks;
  AxisTaps widest[3] = {};
  for (int s = 0; s < g.branches; ++s) {
    int64_t n = box_channels(g.in_channels);
    const int64_t extents[3] = {tile.d, tile.h, tile.w};
    for (int d = 0; d < 3; ++d) {
      const AxisTaps r = axis_taps(g, g.branch[s], c, d);
      if (r.count > widest[d].count) widest[d] = r;
      n *= read_interval(r, g.stride[d], 0, extents[d]).length;
    }
    box = maximum(box, n);
    if (g.branch[s].kind == Kind::convolution) steps += blocks * g.branch[s].extent[0] * g.branch[s].extent[1];
  }
  const auto channel_block = [&](int64_t block,
                                 int64_t split) {  // the blocks of all branches are numbered in one sequence
    ChannelBlock to;
    to.branch = int(block / blocks);
    to.first = 0;
    for (int64_t i = block % blocks; i > 0; --i) to.first += block_width(g.out_channels - to.first);
    to.width = block_width(g.out_channels - to.first);
    to.inside = minimum(to.width, g.out_channels - to.first);
    to.sums = sums.floats(split * floats + at[to.branch] + to.first * tap_count(g.branch[to.branch]) * g.in_channels);
    return to;
  };
  const auto tile_coordinates = [&](int64_t i, int64_t* begin, int64_t* size) {  // of tile i; returns its sample
    const int64_t n = i / (nd * nh * nw);
    const int64_t from[3] = {i / (nh * nw) % nd * tile.d, i / nw % nh * tile.h, i % nw * tile.w};
    const int64_t extents[3] = {tile.d, tile.h, tile.w};
    for (int d = 0; d < 3; ++d) {
      begin[d] = from[d];
      size[d] = minimum(extents[d], c.count[d] - from[d]);
    }
    return n;
  };
  const int64_t tasks_per_split = all_blocks ? 1 : g.branches * blocks,
                blocks_per_task = g.branches * blocks / tasks_per_split;
  const int64_t positions = y.size[0] * c.count[0] * c.count[1] * c.count[2];
  distribute(pool, splits * tasks_per_split, positions * ceil_div(floats, 16), [&](int, auto next) {
    Scratch box_memory(box * 4), gradient((tile.d * tile.h + 1) * (tile.w + 4) * WIDE * 4),
        offsets(2 * (tile.d * tile.h + 1) * 8);
    int64_t* offset_a = reinterpret_cast<int64_t*>(offsets.data);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t split = task % splits, first = task / splits * blocks_per_task,
                    until = (split + 1) * tiles / splits;
      for (int64_t block = first; block < first + blocks_per_task; ++block) {
        const ChannelBlock to = channel_block(block, split);
        const Branch& b = g.branch[to.branch];
        if (b.kind == Kind::convolution)
          __builtin_memset(to.sums, 0, size_t(tap_count(b) * g.in_channels * to.width) * 4);
      }
      for (int64_t i = split * tiles / splits; i < until; ++i) {
        int64_t begin[3], size[3], n = tile_coordinates(minimum(i + 1, tiles - 1), begin, size);
        Interval read[3], written[3];
        for (int d = 0; d < 3; ++d) {
          read[d] = read_interval(widest[d], g.stride[d], begin[d], begin[d] + size[d]);
          written[d] = {begin[d], size[d]};
        }
        Prefetcher prefetcher[2] = {Prefetcher(x, n, read, steps), Prefetcher(y, n, written, steps)};
        n = tile_coordinates(i, begin, size);
        InputView in;
        for (int64_t block = first; block < first + blocks_per_task; ++block) {
          const ChannelBlock to = channel_block(block, split);
          if (g.branch[to.branch].kind != Kind::convolution) continue;
          if (block == first || block % blocks == 0) in = work.inputs(to.branch, n, begin, size, box_memory.floats());
          work.add(in, to, n, begin, size, gradient.floats(), offset_a, offset_a + tile.d * tile.h + 1,
                   all_blocks && i + 1 < until ? prefetcher : nullptr);
        }
      }
    }
  });
  // Adds the splits, and stores the sums in the weight's own memory order.
  distribute(pool, g.branches * blocks, splits * floats, [&](int, auto next) {
    for (int64_t task = next(); task >= 0; task = next()) {
      const ChannelBlock block = channel_block(task, 0);
      const Branch& b = g.branch[block.branch];
      if (b.kind != Kind::convolution) continue;
      const int width = block.width;
      const int64_t rows = tap_count(b) * g.in_channels;
      float* from = block.sums;
      for (int64_t split = 1; split < splits; ++split)
        for (int64_t i = 0; i < rows * width; ++i) from[i] += from[split * floats + i];
      // Per input channel, as in pack_weight_block: gathers its taps' rows, then stores tap after tap.
      const int64_t taps = tap_count(b);
      Scratch tap_rows(taps * width * 4);
      for (int64_t i = 0; i < g.in_channels; ++i) {
        for (int64_t t = 0; t < taps; ++t) {
          const int64_t kw = t % b.extent[2];
          const int64_t row =
              (t - kw) * g.in_channels + (fuse_three_taps(g, b, width) ? 3 * i + 2 - kw : kw * g.in_channels + i);
          __builtin_memcpy(tap_rows.floats(t * width), from + row * width, size_t(width) * 4);
        }
        for (int64_t o = 0; o < block.inside; ++o) {
          const float* row = tap_rows.floats(o);
          float* to = b.gradient + (block.first + o) * b.stride[0] + i * b.stride[1];
          for (int64_t kd = 0; kd < b.extent[0]; ++kd)
            for (int64_t kh = 0; kh < b.extent[1]; ++kh)
              for (int64_t kw = 0; kw < b.extent[2]; ++kw, row += width)
                to[kd * b.stride[2] + kh * b.stride[3] + kw * b.stride[4]] = *row;
        }
      }
    }
  });
}
