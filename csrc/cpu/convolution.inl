// fprop and dgrad: z = A (in_scale * x) tile by tile, and the epilogue on each tile while it is in the cache.

// Where a tile's results go: the first position, and the strides along D, H, W in floats.
struct ResultView {
  float* at;
  int64_t d, h, w;
};

constexpr int64_t MAX_ZERO_STRIDE = 64;  // floats: the largest stride along W for which a line of zeros is kept

struct Convolution {
  const Geometry& g;
  const Volume& x;
  const float* in_scale;
  const Epilogue& e;
  const Volume& y;
  const Volume* z;
  const float* packed;
  const int64_t* packed_at;
  int64_t pitch;
  int64_t packed_step;  // floats from a sample's packed weights to the next sample's; 0: all samples share them

  // Whether the micro-kernels can read x in place.
  bool contiguous_f32() const { return x.type == Type::f32 && x.stride[1] == 1 && in_scale == nullptr; }

  // Whether branch s reads x in place, if x is float32 with contiguous channels. pairs: whether two lines of it share a
  // vector.
  static bool fuses_everywhere(const Geometry& g, const Branch& b, bool* pairs) {
    bool all = b.kind == Kind::convolution;
    for (int64_t o = 0; o < g.out_channels; o += block_width(g.out_channels - o)) {
      const int width = block_width(g.out_channels - o);
      all = all && fuse_three_taps(g, b, width);
      *pairs = *pairs || (fuse_three_taps(g, b, width) && lines_per_vector(width) == 2);
    }
    return all;
  }

  // Whether in_scale goes into weights of each sample: then nothing of x is packed, which costs more than the weights.
  static bool scales_weights(const Geometry& g, const Volume& x, const float* in_scale, int64_t weights) {
    bool all = in_scale != nullptr && x.type == Type::f32 && x.stride[1] == 1, pairs = false;
    for (int s = 0; s < g.branches; ++s) all = all && fuses_everywhere(g, g.branch[s], &pairs);
    all = all && (!pairs || x.stride[4] <= MAX_ZERO_STRIDE);
    return all && weights <= x.size[1] * x.size[2] * x.size[3] * x.size[4];
  }

  // Whether branch b has so few outputs, each of one voxel, that dot products are faster than the GEMMs' blocks.
  bool dots(const Branch& b) const {
    const bool pointwise = tap_count(b) == 1 && g.stride[0] * g.stride[1] * g.stride[2] == 1 &&
                           (g.first[0] | g.first[1] | g.first[2]) == 0;
    return b.kind == Kind::convolution && pointwise && g.out_channels <= 2 && x.type == Type::f32 && x.stride[1] == 1;
  }

  // As `branch`, where `dots`.
  void dot_products(int s, int64_t n, const int64_t* begin, const int64_t* end, const ResultView& to) const {
    const Branch& b = g.branch[s];
    Scratch memory(g.in_channels * 4);
    for (int64_t o = 0; o < g.out_channels; ++o) {
      for (int64_t i = 0; i < g.in_channels; ++i)
        memory.floats()[i] = load(b.weight, g.weight_type, o * b.stride[0] + i * b.stride[1]) *
                             (in_scale ? in_scale[(n * g.branches + s) * g.in_channels + i] : 1.f);
      for (int64_t d = begin[0]; d < end[0]; ++d)
        for (int64_t h = begin[1]; h < end[1]; ++h) {
          const float* from = static_cast<const float*>(x.data) + n * x.stride[0] + s * g.in_channels +
                              d * x.stride[2] + h * x.stride[3] + begin[2] * x.stride[4];
          float* sum = to.at + (d - begin[0]) * to.d + (h - begin[1]) * to.h + o;
          for (int64_t w = begin[2]; w < end[2]; ++w, from += x.stride[4], sum += to.w)
            *sum = dot(from, memory.floats(), g.in_channels);
        }
    }
  }

  // Whether the GEMM stores straight into y: there is no epilogue, and the channels are whole vectors.
  bool stores_sums_directly() const {
    return z == nullptr && e.groups == 1 && e.scale == nullptr && e.bias == nullptr && e.noise == nullptr &&
           e.slope == 1 && e.gain == 1 && e.clamp < 0 && y.type == Type::f32 && y.stride[1] == 1 &&
           pitch == g.out_channels;
  }

  // Whether branch s reads x where it lies, and packs nothing. pairs: as of `fuses_everywhere`.
  bool in_place(int s, bool* pairs) const {
    *pairs = false;
    return fuses_everywhere(g, g.branch[s], pairs) && contiguous_f32() && (!*pairs || x.stride[4] <= MAX_ZERO_STRIDE);
  }

  // The box of inputs of branch s that the tile [begin, end) reads in any of `count` classes.
  HaloBox box_of(int s, const ParityClass* classes, int count, const int64_t* begin, const int64_t* end) const {
    Interval all[3] = {};
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < 3; ++d) {
        const Interval own = read_interval(axis_taps(g, g.branch[s], classes[i], d), in_stride(g, d), begin[d], end[d]);
        if (own.length == 0) continue;
        const int64_t low = all[d].length ? minimum(all[d].low, own.low) : own.low;
        const int64_t last = maximum(all[d].low + all[d].length, own.low + own.length);
        all[d] = {low, (all[d].length ? last : own.low + own.length) - low};
      }
    return {all[0], all[1], all[2], in_stride(g, 2), g.in_channels};
  }

  void pack(int s, const HaloBox& box, int64_t n, bool outside, float* to) const {
    const float* scale = in_scale ? in_scale + (n * g.branches + s) * g.in_channels : nullptr;
    pack_input(box, x, n, s * g.in_channels, scale, outside, to);
  }

  // Computes z of branch s over the tile [begin, end) of class c. ready: the box that box_memory holds; null: it is
  // packed here.
  void branch(int s, const ParityClass& c, int64_t n, const int64_t* begin, const int64_t* end, const HaloBox* ready,
              float* box_memory, int64_t* offsets, const ResultView& to, Prefetcher& prefetcher) const {
    const Branch& b = g.branch[s];
    const int64_t tile[3] = {end[0] - begin[0], end[1] - begin[1], end[2] - begin[2]};
    const auto position = [&](int64_t i) {
      return to.at + i / (tile[1] * tile[2]) * to.d + i / tile[2] % tile[1] * to.h + i % tile[2] * to.w;
    };
    if (dots(b)) return dot_products(s, n, begin, end, to);
    AxisTaps r[3];
    bool zero = b.kind == Kind::absent;
    for (int d = 0; d < 3; ++d) {
      r[d] = axis_taps(g, b, c, d);
      zero = zero || r[d].count == 0;
    }
    if (zero) {
      for (int64_t i = 0; i < tile[0] * tile[1] * tile[2]; ++i) __builtin_memset(position(i), 0, size_t(pitch) * 4);
      return;
    }
    const HaloBox box = ready ? *ready : box_of(s, &c, 1, begin, end);
    bool pairs = false;
    const bool lies = in_place(s, &pairs);
    if (!lies && !ready) pack(s, box, n, b.kind == Kind::identity || pairs, box_memory);
    const int64_t pitch_in = box.pitch(), blocks = box.blocks(), full_blocks = g.in_channels / pitch_in;
    if (b.kind == Kind::identity) {
      for (int64_t i = 0; i < tile[0] * tile[1] * tile[2]; ++i)
        for (int64_t k = 0; k < blocks; ++k)
          __builtin_memcpy(position(i) + k * pitch_in, box_memory + k * box.plane() + i * pitch_in,
                           size_t(minimum(pitch_in, g.in_channels - k * pitch_in)) * 4);
      return;
    }
    const int64_t taps = int64_t(r[0].count) * r[1].count * r[2].count;
    int64_t *offset_a = offsets, *offset_b = offsets + taps * blocks;
    for (int64_t o = 0; o < g.out_channels;) {
      const int width = block_width(g.out_channels - o);
      if (fuse_three_taps(g, b, width)) {
        const ResultView sums = {to.at + o, to.d, to.h, to.w};
        three_tap_block(s, o, width, r, box, lies, n, begin, end, box_memory, offsets, sums, prefetcher);
        o += width;
        continue;
      }
      GemmArgs p = {};
      p.b = packed + n * packed_step + packed_at[s] + o * tap_count(b) * g.in_channels;
      p.k_stride_a = 1;
      p.k_stride_b = width;
      p.ldc = to.w;
      TapRange last_d = {-1, -1}, last_h = {-1, -1};
      int64_t lines = 0;
      // Taps along W: 0: those that read outside the volume at the tile's first output, 1: inside, 2: outside at the
      // last.
      int edge[MAX_EXTENT], edges[3] = {0, 0, 0};
      for (int i = 0; i < r[2].count; ++i) {
        const int64_t step = in_stride(g, 2), at = begin[2] * step + r[2].shift[i], to_last = (tile[2] - 1) * step;
        const bool before = at < 0 && at + step >= 0,
                   after = at + to_last >= x.size[4] && at + to_last - step < x.size[4];
        edge[i] = before == after ? 1 : before ? 0 : 2;
        ++edges[edge[i]];
      }
      for (int64_t d = 0; d < tile[0]; ++d)
        for (int64_t h = 0; h < tile[1]; ++h) {
          prefetcher.step();
          // Taps that read outside the volume along D or H would add zeros: skip them.
          const TapRange rd = taps_inside(r[0], (begin[0] + d) * in_stride(g, 0), x.size[2]);
          const TapRange rh = taps_inside(r[1], (begin[1] + h) * in_stride(g, 1), x.size[3]);
          if (rd.begin != last_d.begin || rd.end != last_d.end || rh.begin != last_h.begin || rh.end != last_h.end) {
            const auto add = [&](int64_t k, int i0, int i1, int i2, int64_t j) {
              offset_a[j] = k * box.plane() + box.at(begin[0] * in_stride(g, 0) + r[0].shift[i0],
                                                     begin[1] * in_stride(g, 1) + r[1].shift[i1],
                                                     begin[2] * in_stride(g, 2) + r[2].shift[i2]);
              const int64_t tap = (int64_t(r[0].tap[i0]) * b.extent[1] + r[1].tap[i1]) * b.extent[2] + r[2].tap[i2];
              offset_b[j] =
                  (k * pitch_in * tap_count(b) + tap * minimum(pitch_in, g.in_channels - k * pitch_in)) * width;
            };
            // Whole blocks of channels, then the last partial one; in each the taps by their edge.
            int64_t j = 0;
            for (int64_t k0 = 0; k0 < blocks; k0 = k0 < full_blocks ? full_blocks : blocks)
              for (int e = 0; e < 3; ++e) {
                const int64_t first = j;
                for (int i0 = rd.begin; i0 < rd.end; ++i0)
                  for (int i1 = rh.begin; i1 < rh.end; ++i1)
                    for (int i2 = 0; i2 < r[2].count; ++i2)
                      if (edge[i2] == e) add(k0, i0, i1, i2, j++);
                const int64_t count = j - first;
                for (int64_t k = k0 + 1; k < full_blocks; ++k)  // the other whole blocks alike
                  for (int64_t i = 0; i < count; ++i, ++j) {
                    offset_a[j] = offset_a[j - count] + box.plane();
                    offset_b[j] = offset_b[j - count] + pitch_in * tap_count(b) * width;
                  }
              }
            lines = int64_t(rd.end - rd.begin) * (rh.end - rh.begin) * r[2].count;
            last_d = rd;
            last_h = rh;
          }
          p.a = box_memory + (d * in_stride(g, 0) * box.h.length + h * in_stride(g, 1)) * box.row();
          p.c = to.at + d * to.d + h * to.h + o;
          for (int64_t k = 0; k < blocks; k = k < full_blocks ? full_blocks : blocks) {
            const bool whole = k < full_blocks;
            const int64_t merged = whole ? full_blocks : 1;  // blocks of this GEMM
            p.offset_a = offset_a + k * lines;
            p.offset_b = offset_b + k * lines;
            p.batch = merged * lines;
            p.skip_first_row = merged * (lines / r[2].count) * edges[0];
            p.skip_last_row = merged * (lines / r[2].count) * edges[2];
            p.depth = whole ? pitch_in : g.in_channels - full_blocks * pitch_in;
            p.accumulate = k > 0;
            if (pitch_in == BLOCK)
              whole ? run_gemm<BLOCK, BLOCK>(p, width, tile[2]) : run_gemm<BLOCK, 0>(p, width, tile[2]);
            else
              whole ? run_gemm<SMALL_BLOCK, SMALL_BLOCK>(p, width, tile[2])
                    : run_gemm<SMALL_BLOCK, 0>(p, width, tile[2]);
          }
        }
      o += width;
    }
  }

  // Computes the block of channels at `o` with the taps along W fused (`fuse_three_taps`): a GEMM whose rows are a
  // line's inputs, not its outputs, so nothing outside the volume is read along W. Two lines that share a vector are
  // one of the tile's first half and one of its second half.
  void three_tap_block(int s, int64_t o, int width, const AxisTaps* r, const HaloBox& box, bool in_place, int64_t n,
                    const int64_t* begin, const int64_t* end, float* box_memory, int64_t* offsets, const ResultView& to,
                    Prefetcher& prefetcher) const {
    const Branch& b = g.branch[s];
    const int lines_together = lines_per_vector(width);
    const int64_t block = box.pitch(), blocks = box.blocks(), full_blocks = g.in_channels / block;
    // Inputs first .. last - 1 of a line inside the volume; input u adds to outputs u - shift - 2 .. u - shift.
    const int64_t first = maximum(box.w.low, 0), last = minimum(box.w.low + box.w.length, x.size[4]),
                  rows = last - first;
    const int64_t shift = minimum(r[2].shift[0], r[2].shift[2]), touched = first - shift - 2;
    const float* from =
        in_place ? static_cast<const float*>(x.data) + n * x.stride[0] + s * g.in_channels + first * x.stride[4]
                 : box_memory + (first - box.w.low) * block;
    // Zeros for a line outside the volume whose partner in the vector is inside; the packed box holds such zeros
    // itself.
    int64_t zeros = 0;
    if (in_place && lines_together == 2 && rows > 0) {
      __builtin_memset(box_memory, 0, size_t(rows * x.stride[4] + block) * 4);
      zeros = (reinterpret_cast<intptr_t>(box_memory) - reinterpret_cast<intptr_t>(from)) / intptr_t(sizeof(float));
    }
    const auto at = [&](int64_t k, int64_t d, int64_t h) {
      if (in_place) return h < 0 || h >= x.size[3] ? zeros : k * block + d * x.stride[2] + h * x.stride[3];
      return k * box.plane() + ((d - box.d.low) * box.h.length + h - box.h.low) * box.row();
    };
    const auto clear = [&](float* line, int64_t from, int64_t to_) {
      for (int64_t w = from; w < to_; ++w) __builtin_memset(line + (w - begin[2]) * to.w, 0, size_t(width) * 4);
    };
    ThreeTapGemm p = {};
    p.lda = in_place ? x.stride[4] : block;
    p.ldc = to.w;
    p.skip = begin[2] - touched;
    p.tail = minimum(maximum(end[2] - (last - 2 - shift), 0), 2);
    const int64_t most_lines = blocks * r[0].count * r[1].count, heights = ceil_div(end[1] - begin[1], lines_together);
    int64_t *offset_b = offsets + most_lines, *second_offset_a = offsets + 2 * most_lines;
    p.offset_a = offsets;
    p.second_offset_a = second_offset_a;
    for (int64_t d = begin[0]; d < end[0]; ++d)
      for (int64_t h = begin[1]; h < begin[1] + heights; ++h) {
        float* line = to.at + (d - begin[0]) * to.d + (h - begin[1]) * to.h;
        const int lines = lines_together == 2 && h + heights < end[1] ? 2 : 1;
        p.second_offset_c = (lines - 1) * heights * to.h;
        const int64_t pd = d * in_stride(g, 0), ph = h * in_stride(g, 1),
                      other = (lines - 1) * heights * in_stride(g, 1);
        const TapRange rd = taps_inside(r[0], pd, x.size[2]);
        TapRange rh[2];  // taps inside the volume, of each line
        for (int i = 0; i < lines; ++i) {
          prefetcher.step();
          rh[i] = taps_inside(r[1], ph + i * other, x.size[3]);
          clear(line + i * p.second_offset_c, begin[2],
                rows > 0 ? minimum(touched, end[2]) : end[2]);  // outputs that no input adds to
          clear(line + i * p.second_offset_c, rows > 0 ? maximum(begin[2], last - shift) : end[2], end[2]);
        }
        for (int64_t k = 0; k < blocks && rows > 0; k = k < full_blocks ? full_blocks : blocks) {
          const int64_t until = k < full_blocks ? full_blocks : blocks;
          p.depth = k < full_blocks ? block : g.in_channels - k * block;
          p.batch = 0;
          for (int64_t i = k; i < until; ++i)
            for (int i0 = rd.begin; i0 < rd.end; ++i0)
              for (int i1 = 0; i1 < r[1].count; ++i1) {
                bool wanted = false;
                for (int l = 0; l < lines; ++l) wanted = wanted || (i1 >= rh[l].begin && i1 < rh[l].end);
                if (!wanted) continue;
                const int64_t taps = (int64_t(r[0].tap[i0]) * b.extent[1] + r[1].tap[i1]) * 3;
                offsets[p.batch] = at(i, pd + r[0].shift[i0], ph + r[1].shift[i1]);
                second_offset_a[p.batch] = at(i, pd + r[0].shift[i0], ph + other + r[1].shift[i1]);
                offset_b[p.batch++] = (i * block * tap_count(b) + taps * p.depth) * width;
              }
          p.offset_b = offset_b;
          p.a = from;
          p.b = packed + n * packed_step + packed_at[s] + o * tap_count(b) * g.in_channels;
          p.c = line + (touched - begin[2]) * to.w;
          p.accumulate = k != 0;
          run_three_tap_gemm(p, lines_together, rows);
        }
      }
  }

  // Applies the epilogue to the tile's results and stores y, and z where it is wanted. `memory` holds one line of
  // outputs.
  void store(const ParityClass& c, int64_t n, const int64_t* begin, const int64_t* end, const float* results,
             const SampleEpilogue& sample, float* memory) const {
    const int64_t ldz = pitch * g.branches, channels = g.out_channels * g.branches;
    const int64_t step = out_step(g, 2), count = end[2] - begin[2];
    const bool direct = y.type == Type::f32 && y.stride[1] == 1;
    Scratch noises(e.noise ? count * 4 : 0);
    for (int64_t d = begin[0]; d < end[0]; ++d)
      for (int64_t h = begin[1]; h < end[1]; ++h, results += count * ldz) {
        const int64_t pd = d * out_step(g, 0) + c.offset[0], ph = h * out_step(g, 1) + c.offset[1];
        const int64_t pw = begin[2] * step + c.offset[2];
        if (z != nullptr)
          for (int64_t w = 0; w < count; ++w)
            for (int s = 0; s < g.branches; ++s)
              write_run(results + w * ldz + s * pitch, g.out_channels, z->data, z->type,
                    n * z->stride[0] + s * g.out_channels * z->stride[1] + pd * z->stride[2] + ph * z->stride[3] +
                        (pw + w * step) * z->stride[4], z->stride[1]);
        const float* noise = e.noise ? e.noise + n * e.noise_stride + (pd * y.size[3] + ph) * y.size[4] + pw : nullptr;
        if (noise != nullptr && step != 1) {
          for (int64_t w = 0; w < count; ++w) noises.floats()[w] = noise[w * step];
          noise = noises.floats();
        }
        const int64_t at = n * y.stride[0] + pd * y.stride[2] + ph * y.stride[3] + pw * y.stride[4];
        float* to = direct ? static_cast<float*>(y.data) + at : memory;
        const int64_t to_step = direct ? step * y.stride[4] : channels;
        if (sample.groups == g.branches) {
          epilogue_line({results, ldz, noise, to, to_step, count}, sample);
        } else {  // not shuffled: branch after branch
          SampleEpilogue branch = sample;
          branch.per_group = g.out_channels;
          for (int s = 0; s < g.branches; ++s, branch.scale += g.out_channels, branch.bias += g.out_channels)
            epilogue_line({results + s * pitch, ldz, noise, to + s * g.out_channels, to_step, count}, branch);
        }
        if (!direct)
          for (int64_t w = 0; w < count; ++w)
            write_run(memory + w * channels, channels, y.data, y.type, at + w * step * y.stride[4], y.stride[1]);
      }
  }
};

void convolve(const Geometry& g, const Volume& x, const float* in_scale, const Epilogue& e, const Volume& y,
              const Volume* z, const Pool& pool) {
  Scratch starts((g.branches + 1) * 8);
  int64_t* at = reinterpret_cast<int64_t*>(starts.data);
  pack_weights(g, nullptr, nullptr, at, pool);
  const int64_t floats = at[g.branches];
  const bool scaled = Convolution::scales_weights(g, x, in_scale, floats);
  const int64_t copies = scaled ? x.size[0] : 1;
  Scratch packed(copies * floats * 4);
  const int64_t pitch = padded(g.out_channels), channels = g.out_channels * g.branches;
  for (int64_t n = 0; n < copies; ++n)
    pack_weights(g, scaled ? in_scale + n * g.branches * g.in_channels : nullptr, packed.floats(n * floats), at, pool);
  const Convolution convolution{g, x, scaled ? nullptr : in_scale, e, y, z, packed.floats(), at, pitch,
                                scaled ? floats : 0};
  const bool direct = convolution.stores_sums_directly();
  // An output that is not shuffled takes scale and bias branch by branch, without padding.
  const int64_t epilogue_pitch = e.groups == g.branches ? pitch : channels;
  ParityClass classes[8];
  const int count = parity_classes(g, y.size + 2, classes);
  if (count == 0) return;
  int64_t taps = 1, steps = 0;        // steps: blocks of output channels over all branches
  int64_t low[3] = {}, high[3] = {};  // of the inputs that an output reads, in any branch and class
  for (int s = 0; s < g.branches; ++s) {
    const Branch& b = g.branch[s];
    for (int64_t o = 0; o < g.out_channels && b.kind == Kind::convolution; ++steps)
      o += block_width(g.out_channels - o);
    if (b.kind == Kind::convolution) taps = maximum(taps, tap_count(b));
    for (int i = 0; i < count; ++i)
      for (int d = 0; d < 3; ++d) {
        const AxisTaps r = axis_taps(g, b, classes[i], d);
        for (int t = 0; t < r.count; ++t) {
          low[d] = minimum(low[d], r.shift[t]);
          high[d] = maximum(high[d], r.shift[t]);
        }
      }
  }
  // The classes of a tile take turns, so that its inputs are packed once for all; the first class is the largest.
  const int boxes = count > 1 ? g.branches : 1;
  const int64_t* const most = classes[0].count;
  const Tile tile = choose_tile(g, classes[0], y.size[0], pitch * g.branches, pool.workers, boxes);
  const int64_t extents[3] = {tile.d, tile.h, tile.w};
  const int64_t nd = ceil_div(most[0], tile.d), nh = ceil_div(most[1], tile.h), nw = ceil_div(most[2], tile.w);
  int64_t box = box_channels(g.in_channels);
  for (int d = 0; d < 3; ++d) box *= (extents[d] - 1) * in_stride(g, d) + high[d] - low[d] + 1;
  box = maximum(box, (tile.w + 2) * MAX_ZERO_STRIDE + BLOCK);
  const int64_t work = y.size[0] * most[0] * most[1] * most[2] * (floats / 16 + channels * count);
  distribute(pool, y.size[0] * nd * nh * nw, work, [&](int, auto next) {
    Scratch box_memory(boxes * box * 4), results(tile.d * tile.h * tile.w * pitch * g.branches * 4),
        offsets(2 * taps * ceil_div(g.in_channels, SMALL_BLOCK) * 8), rows(2 * e.groups * epilogue_pitch * 4),
        line(tile.w * channels * 4), packed_boxes(g.branches * int64_t(sizeof(HaloBox)));
    HaloBox* const ready = reinterpret_cast<HaloBox*>(packed_boxes.data);
    const auto tile_coordinates = [&](int64_t task, int64_t* begin, int64_t* end) {  // returns the sample
      const int64_t at[3] = {task / (nh * nw) % nd * tile.d, task / nw % nh * tile.h, task % nw * tile.w};
      for (int d = 0; d < 3; ++d) {
        begin[d] = at[d];
        end[d] = minimum(at[d] + extents[d], most[d]);
      }
      return task / (nd * nh * nw);
    };
    int64_t next_task;
    for (int64_t task = next(); task >= 0; task = next_task) {
      next_task = next();
      int64_t begin[3], end[3];
      Interval spans[3] = {};
      int64_t n = 0;
      if (next_task >= 0) {
        n = tile_coordinates(next_task, begin, end);
        for (int d = 0; d < 3; ++d)
          spans[d] = {begin[d] * in_stride(g, d) + low[d],
                      (end[d] - 1 - begin[d]) * in_stride(g, d) + high[d] - low[d] + 1};
      }
      Prefetcher prefetcher(x, n, spans, tile.d * tile.h * steps * count);
      n = tile_coordinates(task, begin, end);
      for (int s = 0; s < g.branches && count > 1; ++s) {
        bool pairs = false;
        ready[s] = convolution.box_of(s, classes, count, begin, end);
        if (!convolution.in_place(s, &pairs)) convolution.pack(s, ready[s], n, pairs, box_memory.floats(s * box));
      }
      const SampleEpilogue sample = sample_epilogue(e, channels, n, epilogue_pitch, rows.floats());
      for (int i = 0; i < count; ++i) {
        const ParityClass& c = classes[i];
        const int64_t last[3] = {minimum(end[0], c.count[0]), minimum(end[1], c.count[1]), minimum(end[2], c.count[2])};
        if (last[0] <= begin[0] || last[1] <= begin[1] || last[2] <= begin[2]) continue;
        const int64_t ldz = pitch * g.branches, width = last[2] - begin[2];
        ResultView sums = {results.floats(), (last[1] - begin[1]) * width * ldz, width * ldz, ldz};
        if (direct) {
          sums = {static_cast<float*>(y.data) + n * y.stride[0], out_step(g, 0) * y.stride[2],
                  out_step(g, 1) * y.stride[3], out_step(g, 2) * y.stride[4]};
          for (int d = 0; d < 3; ++d) sums.at += (begin[d] * out_step(g, d) + c.offset[d]) * y.stride[2 + d];
        }
        for (int s = 0; s < g.branches; ++s, sums.at += pitch)
          convolution.branch(s, c, n, begin, last, count > 1 ? ready + s : nullptr,
                             box_memory.floats(count > 1 ? s * box : 0), reinterpret_cast<int64_t*>(offsets.data), sums,
                             prefetcher);
        if (!direct) convolution.store(c, n, begin, last, results.floats(), sample, line.floats());
      }
    }
  });
}
