// The epilogue and its backward pass, a line of positions at a time. Nothing else knows the channel shuffle.

// The epilogue's arguments for one sample. scale and bias are in branch order with `pitch` floats per branch. Absent,
// they are 1 and 0, and the clamp is infinity: neutral values that change no bit.
struct SampleEpilogue {
  int groups;
  int64_t per_group, pitch;
  float slope, gain, clamp;
  const float* scale;
  const float* bias;
};

// A line of positions: reads z in branch order, writes `to` in the output's (shuffled) order. noise: one float per
// position, or null. Steps in floats.
struct Line {
  const float* z;
  int64_t z_step;
  const float* noise;
  float* to;
  int64_t to_step, count;
};

// Interleaves two vectors (low: a0 b0 a1 b1 .., high: the second half), and de-interleaves them (even, odd).
template <int L>
struct Pair;
#define SSCONV_PAIR(L, LOW, HIGH, EVEN, ODD)                                             \
  template <>                                                                            \
  struct Pair<L> {                                                                       \
    typedef Vector<L>::type vector;                                                      \
    static vector low(vector a, vector b) { return __builtin_shufflevector(a, b, LOW); }   \
    static vector high(vector a, vector b) { return __builtin_shufflevector(a, b, HIGH); } \
    static vector even(vector a, vector b) { return __builtin_shufflevector(a, b, EVEN); } \
    static vector odd(vector a, vector b) { return __builtin_shufflevector(a, b, ODD); }   \
  };
#define SSCONV_LIST(...) __VA_ARGS__
SSCONV_PAIR(4, SSCONV_LIST(0, 4, 1, 5), SSCONV_LIST(2, 6, 3, 7), SSCONV_LIST(0, 2, 4, 6), SSCONV_LIST(1, 3, 5, 7))
#if SSCONV_LANES >= 8
SSCONV_PAIR(8, SSCONV_LIST(0, 8, 1, 9, 2, 10, 3, 11), SSCONV_LIST(4, 12, 5, 13, 6, 14, 7, 15),
            SSCONV_LIST(0, 2, 4, 6, 8, 10, 12, 14), SSCONV_LIST(1, 3, 5, 7, 9, 11, 13, 15))
#endif
#if SSCONV_LANES >= 16
SSCONV_PAIR(16, SSCONV_LIST(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
            SSCONV_LIST(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31),
            SSCONV_LIST(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            SSCONV_LIST(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31))
#endif

// y = clamp(gain * lrelu(scale * z + noise + bias))
template <class T, class Noise>
inline T apply_epilogue(T z, T scale, T bias, Noise noise, const SampleEpilogue& e) {
  T t = z * scale + (bias + noise);
  t = t > 0 ? t : t * e.slope;
  t *= e.gain;
  const T bound = e.clamp - T{};
  t = t > bound ? bound : t;
  return t < -bound ? -bound : t;
}

// Applies the epilogue to channels j .. j + L - 1 of each of G groups along the line, and interleaves the groups.
template <int L, int G>
inline void epilogue_vectors(const Line& line, const SampleEpilogue& e, int64_t j) {
  typedef typename Vector<L>::type vector;
  vector scale[G], bias[G], t[G];
  for (int s = 0; s < G; ++s) {
    scale[s] = load_vector<L>(e.scale + s * e.pitch + j);
    bias[s] = load_vector<L>(e.bias + s * e.pitch + j);
  }
  const float* z = line.z + j;
  float* to = line.to + G * j;
  for (int64_t w = 0; w < line.count; ++w, z += line.z_step, to += line.to_step) {
    const float noise = line.noise ? line.noise[w] : 0.f;
    for (int s = 0; s < G; ++s) t[s] = apply_epilogue(load_vector<L>(z + s * e.pitch), scale[s], bias[s], noise, e);
    if (G == 1) {
      store_vector<L>(to, t[0]);
    } else if (G == 2) {
      store_vector<L>(to, Pair<L>::low(t[0], t[1]));
      store_vector<L>(to + L, Pair<L>::high(t[0], t[1]));
    } else {
      const vector al = Pair<L>::low(t[0], t[2 % G]), ah = Pair<L>::high(t[0], t[2 % G]);
      const vector bl = Pair<L>::low(t[1 % G], t[3 % G]), bh = Pair<L>::high(t[1 % G], t[3 % G]);
      store_vector<L>(to, Pair<L>::low(al, bl));
      store_vector<L>(to + L, Pair<L>::high(al, bl));
      store_vector<L>(to + 2 * L, Pair<L>::low(ah, bh));
      store_vector<L>(to + 3 * L, Pair<L>::high(ah, bh));
    }
  }
}

template <int G>
inline int64_t epilogue_groups(const Line& line, const SampleEpilogue& e) {
  int64_t j = 0;
  for (; j + LANES <= e.per_group; j += LANES) epilogue_vectors<LANES, G>(line, e, j);
  for (; HALF < LANES && j + HALF <= e.per_group; j += HALF) epilogue_vectors<HALF, G>(line, e, j);
  for (; HALF > 4 && j + 4 <= e.per_group; j += 4) epilogue_vectors<4, G>(line, e, j);
  return j;
}

// LANES floats that are `step` floats apart.
inline Vector<LANES>::type load_steps(const float* from, int64_t step) {
  if (step == 1) return load_vector<LANES>(from);
  float values[LANES];
  for (int i = 0; i < LANES; ++i) values[i] = from[i * step];
  return load_vector<LANES>(values);
}

inline void store_steps(float* to, int64_t step, Vector<LANES>::type v) {
  if (step == 1) return store_vector<LANES>(to, v);
  for (int i = 0; i < LANES; ++i) to[i * step] = v[i];
}

// Applies the epilogue to the first positions of a line of one channel, whole vectors of them; returns how many.
inline int64_t epilogue_positions(const Line& line, const SampleEpilogue& e) {
  typedef Vector<LANES>::type vector;
  const vector scale = *e.scale - vector{}, bias = *e.bias - vector{};
  int64_t w = 0;
  for (; w + LANES <= line.count; w += LANES) {
    const vector noise = line.noise ? load_vector<LANES>(line.noise + w) : vector{};
    store_steps(line.to + w * line.to_step, line.to_step,
                apply_epilogue(load_steps(line.z + w * line.z_step, line.z_step), scale, bias, noise, e));
  }
  return w;
}

inline void epilogue_line(const Line& line, const SampleEpilogue& e) {
  int64_t j = 0;
  if (e.groups == 1) j = epilogue_groups<1>(line, e);
  if (e.groups == 2) j = epilogue_groups<2>(line, e);
  if (e.groups == 4) j = epilogue_groups<4>(line, e);
  if (j == e.per_group) return;
  for (int64_t w = e.groups * e.per_group == 1 ? epilogue_positions(line, e) : 0; w < line.count; ++w)
    for (int64_t k = j; k < e.per_group; ++k)
      for (int s = 0; s < e.groups; ++s) {
        const int64_t i = s * e.pitch + k;
        line.to[w * line.to_step + k * e.groups + s] =
            apply_epilogue(line.z[w * line.z_step + i], e.scale[i], e.bias[i], line.noise ? line.noise[w] : 0.f, e);
      }
}

template <int L>
inline int64_t unshuffle_vectors(const float* from, int64_t per_group, int64_t pitch, int64_t j, float* to) {
  for (; j + L <= per_group; j += L) {
    const typename Vector<L>::type a = load_vector<L>(from + 2 * j), b = load_vector<L>(from + 2 * j + L);
    store_vector<L>(to + j, Pair<L>::even(a, b));
    store_vector<L>(to + pitch + j, Pair<L>::odd(a, b));
  }
  return j;
}

// Un-shuffles: channel c = j * groups + s goes to s * pitch + j.
inline void to_branch_order(const float* from, int groups, int64_t per_group, int64_t pitch, float* to) {
  int64_t j = 0;
  if (groups == 2) {
    j = unshuffle_vectors<LANES>(from, per_group, pitch, j, to);
    if (HALF < LANES) j = unshuffle_vectors<HALF>(from, per_group, pitch, j, to);
    if (HALF > 4) j = unshuffle_vectors<4>(from, per_group, pitch, j, to);
  }
  for (; j < per_group; ++j)
    for (int s = 0; s < groups; ++s) to[s * pitch + j] = from[j * groups + s];
}

// The epilogue's arguments for sample n; `memory` holds 2 * groups * pitch floats.
inline SampleEpilogue sample_epilogue(const Epilogue& e, int64_t channels, int64_t n, int64_t pitch, float* memory) {
  const int64_t floats = e.groups * pitch;
  SampleEpilogue r = {e.groups, channels / e.groups, pitch, e.slope, e.gain,
                      e.clamp >= 0 ? e.clamp : __builtin_inff(), memory, memory + floats};
  for (int64_t i = 0; i < floats; ++i) {
    memory[i] = 1;
    memory[floats + i] = 0;
  }
  if (e.scale) to_branch_order(e.scale + n * channels, e.groups, r.per_group, pitch, memory);
  if (e.bias) to_branch_order(e.bias, e.groups, r.per_group, pitch, memory + floats);
  return r;
}

void epilogue(const Volume& z, const Epilogue& e, const Volume& y, const Pool& pool) {
  const int64_t channels = y.size[1], width = y.size[4];
  const bool z_direct = z.type == Type::f32 && z.stride[1] == 1, y_direct = y.type == Type::f32 && y.stride[1] == 1;
  const int64_t lines = y.size[2] * y.size[3];
  const int64_t lines_per_task = ceil_div(lines, maximum(1, ceil_div(8 * pool.workers, maximum(1, y.size[0]))));
  const int64_t tasks = ceil_div(lines, lines_per_task);  // of a sample
  distribute(pool, y.size[0] * tasks, y.size[0] * channels * lines * width, [&](int, auto next) {
    Scratch in(z_direct ? 0 : width * channels * 4), out(y_direct ? 0 : width * channels * 4), rows(2 * channels * 4);
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t n = task / tasks;
      const SampleEpilogue sample = sample_epilogue(e, channels, n, channels / e.groups, rows.floats());
      for (int64_t l = task % tasks * lines_per_task; l < minimum((task % tasks + 1) * lines_per_task, lines); ++l) {
        const int64_t d = l / y.size[3], h = l % y.size[3];
        const int64_t from = n * z.stride[0] + d * z.stride[2] + h * z.stride[3];
        const int64_t to = n * y.stride[0] + d * y.stride[2] + h * y.stride[3];
        if (!z_direct)
          for (int64_t w = 0; w < width; ++w)
            read_run(z.data, z.type, from + w * z.stride[4], z.stride[1], channels, in.floats(w * channels));
        epilogue_line(
            {z_direct ? static_cast<const float*>(z.data) + from : in.floats(), z_direct ? z.stride[4] : channels,
             e.noise ? e.noise + n * e.noise_stride + l * width : nullptr,
             y_direct ? static_cast<float*>(y.data) + to : out.floats(), y_direct ? y.stride[4] : channels, width},
            sample);
        if (!y_direct)
          for (int64_t w = 0; w < width; ++w)
            write_run(out.floats(w * channels), channels, y.data, y.type, to + w * y.stride[4], y.stride[1]);
      }
    }
  });
}

// The derivative of the epilogue's nonlinearity, gain * lrelu'(y), told from its output y: y's sign says on which side
// of 0 the activation was, its size whether it was clamped. With slope 1 and no clamp y is not read and may be
// anything.
struct Slopes {
  float above, below;  // the derivative where side * y > 0, and elsewhere (also at y = 0)
  float side;          // the gain's sign
  float clamp;
};

inline Slopes slopes(const Epilogue& e) {
  return {e.gain, e.gain * e.slope, e.gain > 0 ? 1.f : -1.f, e.clamp >= 0 ? e.clamp : __builtin_inff()};
}

template <class T>
inline T activation_gradient(T gy, T y, const Slopes& s) {
  const T zero = T{}, bound = s.clamp - T{};
  const T factor = y * s.side > 0 ? s.above - zero : s.below - zero;
  // Without a clamp (infinity) an infinite output has a gradient too; a clamped output has none.
  return (y < bound) & (y > -bound) ? gy * factor : (s.clamp == __builtin_inff() ? gy * factor : zero);
}

struct BackwardLine {
  const float *gy, *y, *z;  // z: null without a scale gradient
  int64_t gy_step, y_step, z_step;
  float* gz;
  int64_t gz_step, count, per_group;
  float *bias, *scale;          // sums over the line are added, in branch order; null: not computed
  float* noise;                 // sums over channels are added, one float per position; null: not computed
  const float* factor;          // (groups * per_group,) in branch order: multiplies gz
};

// The backward pass of channels j .. j + L - 1 of each of G groups along the line.
template <int L, int G>
inline void backward_vectors(const BackwardLine& l, const Slopes& slopes, int64_t j) {
  typedef typename Vector<L>::type vector;
  vector bias[G], scale[G], factor[G], t[G];
  for (int s = 0; s < G; ++s) {
    bias[s] = scale[s] = vector{};
    factor[s] = load_vector<L>(l.factor + s * l.per_group + j);
  }
  for (int64_t w = 0; w < l.count; ++w) {
    const float *gy = l.gy + w * l.gy_step + G * j, *y = l.y + w * l.y_step + G * j;
    for (int s = 0; s < G; ++s)
      t[s] = activation_gradient(load_vector<L>(gy + s * L), load_vector<L>(y + s * L), slopes);
    if (G == 2) {
      const vector even = Pair<L>::even(t[0], t[1 % G]);
      t[1 % G] = Pair<L>::odd(t[0], t[1 % G]);
      t[0] = even;
    }
    float sum = 0;
    for (int s = 0; s < G; ++s) {
      bias[s] += t[s];
      if (l.z) scale[s] += t[s] * load_vector<L>(l.z + w * l.z_step + s * l.per_group + j);
      if (l.noise)
        for (int i = 0; i < L; ++i) sum += t[s][i];
      store_vector<L>(l.gz + w * l.gz_step + s * l.per_group + j, t[s] * factor[s]);
    }
    if (l.noise) l.noise[w] += sum;
  }
  for (int s = 0; s < G; ++s) {
    float *b = l.bias + s * l.per_group + j, *c = l.scale + s * l.per_group + j;
    if (l.bias) store_vector<L>(b, load_vector<L>(b) + bias[s]);
    if (l.scale) store_vector<L>(c, load_vector<L>(c) + scale[s]);
  }
}

template <int G>
inline int64_t backward_groups(const BackwardLine& l, const Slopes& slopes) {
  int64_t j = 0;
  for (; j + LANES <= l.per_group; j += LANES) backward_vectors<LANES, G>(l, slopes, j);
  for (; HALF < LANES && j + HALF <= l.per_group; j += HALF) backward_vectors<HALF, G>(l, slopes, j);
  for (; HALF > 4 && j + 4 <= l.per_group; j += 4) backward_vectors<4, G>(l, slopes, j);
  return j;
}

// The backward pass of the first positions of a line of one channel, whole vectors of them; returns how many.
inline int64_t backward_positions(const BackwardLine& l, const Slopes& slopes) {
  typedef Vector<LANES>::type vector;
  vector bias = {}, scale = {};
  int64_t w = 0;
  for (; w + LANES <= l.count; w += LANES) {
    const vector t = activation_gradient(load_steps(l.gy + w * l.gy_step, l.gy_step),
                                         load_steps(l.y + w * l.y_step, l.y_step), slopes);
    bias += t;
    if (l.scale) scale += t * load_steps(l.z + w * l.z_step, l.z_step);
    if (l.noise) store_vector<LANES>(l.noise + w, load_vector<LANES>(l.noise + w) + t);
    store_steps(l.gz + w * l.gz_step, l.gz_step, t * *l.factor);
  }
  if (l.bias) *l.bias += sum_of<LANES>(bias);
  if (l.scale) *l.scale += sum_of<LANES>(scale);
  return w;
}

inline void backward_line(const BackwardLine& l, int groups, const Slopes& slopes) {
  int64_t j = 0;
  if (groups == 1) j = backward_groups<1>(l, slopes);
  if (groups == 2) j = backward_groups<2>(l, slopes);
  for (; j < l.per_group; ++j)
    for (int s = 0; s < groups; ++s) {
      const int64_t from = j * groups + s, to = s * l.per_group + j;
      for (int64_t w = groups * l.per_group == 1 ? backward_positions(l, slopes) : 0; w < l.count; ++w) {
        const float t = activation_gradient(l.gy[w * l.gy_step + from], l.y[w * l.y_step + from], slopes);
        if (l.bias) l.bias[to] += t;
        if (l.scale) l.scale[to] += t * l.z[w * l.z_step + to];
        if (l.noise) l.noise[w] += t;
        l.gz[w * l.gz_step + to] = t * l.factor[to];
      }
    }
}

void epilogue_backward(const Volume& gy, const Volume& y, const Volume* z, const Epilogue& e, const Volume& gz,
                       float* bias, float* noise, bool noise_shared, float* scale, const Pool& pool) {
  const int64_t channels = y.size[1], per_group = channels / e.groups, samples = y.size[0], width = y.size[4];
  const int64_t lines = y.size[2] * y.size[3], lines_per_task = maximum(1, ceil_div(lines, 4 * pool.workers));
  const int64_t tasks = ceil_div(lines, lines_per_task);
  const Slopes factors = slopes(e);
  if (noise && samples == 0) __builtin_memset(noise, 0, noise_shared ? size_t(lines * width) * 4 : 0);
  // Sums over positions: float32 along a line, double beyond; per task first, so that the result does not depend on
  // which worker took which task.
  Scratch bias_memory(bias ? tasks * channels * 8 : 0), scale_memory(scale ? tasks * samples * channels * 8 : 0);
  double* bias_sums = reinterpret_cast<double*>(bias_memory.data);
  double* scale_sums = reinterpret_cast<double*>(scale_memory.data);
  distribute(pool, tasks, samples * channels * lines * width, [&](int, auto next) {
    Scratch memory(3 * channels * 4), g_line(width * channels * 4), y_line(width * channels * 4),
        z_line(width * channels * 4), out_line(width * channels * 4), noise_line(width * 4);
    float *factor = memory.floats(), *bias_line = memory.floats(channels), *scale_line = memory.floats(2 * channels);
    for (int64_t i = 0; i < channels; ++i) factor[i] = 1;
    for (int64_t task = next(); task >= 0; task = next()) {
      double* bias_sum = bias_sums + task * channels;
      if (bias) __builtin_memset(bias_sum, 0, size_t(channels) * 8);
      for (int64_t n = 0; n < samples; ++n) {
        double* scale_sum = scale_sums + (task * samples + n) * channels;
        if (scale) __builtin_memset(scale_sum, 0, size_t(channels) * 8);
        if (e.scale) to_branch_order(e.scale + n * channels, e.groups, per_group, per_group, factor);
        for (int64_t l = task * lines_per_task; l < minimum((task + 1) * lines_per_task, lines); ++l) {
          const auto at = [&](const Volume& v) {
            return n * v.stride[0] + l / y.size[3] * v.stride[2] + l % y.size[3] * v.stride[3];
          };
          // A line in place, or a float32 copy where it is not float32 with contiguous channels.
          const auto in = [&](const Volume& v, float* copy, int64_t* step) -> const float* {
            *step = v.stride[4];
            if (v.type == Type::f32 && v.stride[1] == 1) return static_cast<const float*>(v.data) + at(v);
            for (int64_t w = 0; w < width; ++w)
              read_run(v.data, v.type, at(v) + w * v.stride[4], v.stride[1], channels, copy + w * channels);
            *step = channels;
            return copy;
          };
          const bool direct = gz.type == Type::f32 && gz.stride[1] == 1;
          BackwardLine b = {};
          b.gy = in(gy, g_line.floats(), &b.gy_step);
          b.y = in(y, y_line.floats(), &b.y_step);
          if (scale) b.z = in(*z, z_line.floats(), &b.z_step);
          b.gz = direct ? static_cast<float*>(gz.data) + at(gz) : out_line.floats();
          b.gz_step = direct ? gz.stride[4] : channels;
          b.count = width;
          b.per_group = per_group;
          b.factor = factor;
          if (bias) b.bias = bias_line;
          if (scale) b.scale = scale_line;
          if (noise) {
            b.noise = noise + (noise_shared ? 0 : n * lines * width) + l * width;
            if (!noise_shared || n == 0) __builtin_memset(b.noise, 0, size_t(width) * 4);
          }
          __builtin_memset(bias_line, 0, size_t(channels) * 4);
          __builtin_memset(scale_line, 0, size_t(channels) * 4);
          backward_line(b, e.groups, factors);
          if (!direct)
            for (int64_t w = 0; w < width; ++w)
              write_run(out_line.floats(w * channels), channels, gz.data, gz.type, at(gz) + w * gz.stride[4],
                        gz.stride[1]);
          for (int64_t i = 0; bias && i < channels; ++i) bias_sum[i] += double(bias_line[i]);
          for (int64_t i = 0; scale && i < channels; ++i) scale_sum[i] += double(scale_line[i]);
        }
      }
    }
  });
  for (int64_t i = 0; bias && i < channels; ++i) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += bias_sums[task * channels + i];
    bias[i % per_group * e.groups + i / per_group] = float(sum);
  }
  for (int64_t i = 0; scale && i < samples * channels; ++i) {
    double sum = 0;
    for (int64_t task = 0; task < tasks; ++task) sum += scale_sums[task * samples * channels + i];
    const int64_t c = i % channels;
    scale[i / channels * channels + c % per_group * e.groups + c / per_group] = float(sum);
  }
}
