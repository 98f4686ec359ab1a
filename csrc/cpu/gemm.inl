// GEMM micro-kernels: small matrix products whose accumulators stay in registers. fprop, dgrad and wgrad are made of
// them.

// A batch-reduce GEMM: c[i][:] (+)= sum over batch j and k of a_j[i * lda + k * k_stride_a] * b_j[k * k_stride_b + :]
// with a_j = a + offset_a[j], b_j = b + offset_b[j]. The batch is the taps and blocks of channels of a convolution. Its
// first `skip_first_row` elements leave out row 0 and its last `skip_last_row` ones the last row: taps that read
// outside the volume there. Only micro-kernels with a DEPTH skip rows.
struct GemmArgs {
  const float* a;
  const float* b;
  const int64_t* offset_a;
  const int64_t* offset_b;
  int64_t batch, skip_first_row, skip_last_row;
  int64_t depth;  // K
  int64_t k_stride_a, k_stride_b;
  float* c;
  int64_t ldc;
  bool accumulate;  // add to c, do not replace it
};

// The sum of L floats.
template <int L>
inline float sum_of(typename Vector<L>::type v) {
  if constexpr (L > 1) {
    float halves[L];
    store_vector<L>(halves, v);
    return sum_of<L / 2>(load_vector<L / 2>(halves) + load_vector<L / 2>(halves + L / 2));
  } else {
    return v[0];
  }
}

// The sum of a[i] * b[i].
inline float dot(const float* a, const float* b, int64_t count) {
  Vector<LANES>::type sums = {};
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) sums += load_vector<LANES>(a + i) * load_vector<LANES>(b + i);
  float rest = 0;
  if (HALF < LANES && i + HALF <= count) {
    rest = sum_of<HALF>(load_vector<HALF>(a + i) * load_vector<HALF>(b + i));
    i += HALF;
  }
  for (; i < count; ++i) rest += a[i] * b[i];
  return sum_of<LANES>(sums) + rest;
}

constexpr int PREFETCH_DISTANCE = 32;  // positions: wgrad prefetches its inputs that far ahead

template <int N>
struct Constant {
  static constexpr int value = N;
};

// M rows and NV vectors of L floats of c. LDA: floats from a row of a to the next. DEPTH: p.depth where it is known at
// compile time, and then k_stride_a is 1 and k_stride_b is NV * L; else 0.
template <int LDA, int DEPTH, int L, int NV, int M>
void microkernel(const GemmArgs& p) {
  typedef typename Vector<L>::type vector;
  typedef typename Vector<L>::memory memory;
  vector sum[M][NV];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < NV; ++v) sum[i][v] = vector{};
  const int64_t depth = DEPTH ? DEPTH : p.depth, ka = DEPTH ? 1 : p.k_stride_a, kb = DEPTH ? NV * L : p.k_stride_b;
  const auto add = [&](auto first, auto last, int64_t begin, int64_t end) __attribute__((always_inline)) {
    for (int64_t j = begin; j < end; ++j) {
      const float* a = p.a + p.offset_a[j];
      const float* b = p.b + p.offset_b[j];
#pragma GCC unroll 8
      for (int64_t k = 0; k < depth; ++k) {
        vector w[NV];
        for (int v = 0; v < NV; ++v) w[v] = *reinterpret_cast<const memory*>(b + v * L);
#pragma GCC unroll 32
        for (int i = first.value; i < last.value; ++i)
          for (int v = 0; v < NV; ++v) sum[i][v] += a[i * LDA] * w[v];
        a += ka;
        b += kb;
      }
    }
  };
  const int64_t first = DEPTH ? p.skip_first_row : 0, last = DEPTH ? p.batch - p.skip_last_row : p.batch;
  if (DEPTH != 0) add(Constant<1>{}, Constant<M>{}, 0, first);
  add(Constant<0>{}, Constant<M>{}, first, last);
  if (DEPTH != 0) add(Constant<0>{}, Constant<M - 1>{}, last, p.batch);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < NV; ++v) {
      memory* c = reinterpret_cast<memory*>(p.c + i * p.ldc + v * L);
      *c = p.accumulate ? *c + sum[i][v] : sum[i][v];
    }
}

typedef void (*Microkernel)(const GemmArgs&);

template <int LDA, int DEPTH, int L, int NV, int M>
struct FillTable {
  static constexpr void fill(Microkernel* to) {
    to[M] = &microkernel<LDA, DEPTH, L, NV, M>;
    FillTable<LDA, DEPTH, L, NV, M - 1>::fill(to);
  }
};
template <int LDA, int DEPTH, int L, int NV>
struct FillTable<LDA, DEPTH, L, NV, 0> {
  static constexpr void fill(Microkernel*) {}
};

// The micro-kernels by number of rows: two vectors wide, one, half a vector, three. The tables are constants: a
// constructor at load time would run this instruction set on any processor.
template <int LDA, int DEPTH>
struct MicrokernelTable {
  Microkernel two[SSCONV_WIDE_ROWS + 1] = {}, one[SSCONV_NARROW_ROWS + 1] = {}, half[SSCONV_NARROW_ROWS + 1] = {};
  Microkernel three[SSCONV_THREE_TAP_ROWS + 1] = {};
  constexpr MicrokernelTable() {
    FillTable<LDA, DEPTH, LANES, 2, SSCONV_WIDE_ROWS>::fill(two);
    FillTable<LDA, DEPTH, LANES, 1, SSCONV_NARROW_ROWS>::fill(one);
    FillTable<LDA, DEPTH, HALF, 1, SSCONV_NARROW_ROWS>::fill(half);
    if constexpr (LDA == 1) FillTable<LDA, DEPTH, LANES, 3, SSCONV_THREE_TAP_ROWS>::fill(three);  // wgrad
  }
};

template <int LDA, int DEPTH>
struct Microkernels {
  static constexpr MicrokernelTable<LDA, DEPTH> table{};
};

// The width, in floats, of the next block of output channels when `left` channels are left.
inline int block_width(int64_t left) {
  if (2 * left > 3 * LANES) return WIDE;
  return left > HALF ? LANES : HALF;
}

// The channels' total width in such blocks.
inline int64_t padded(int64_t channels) {
  int64_t n = 0;
  while (n < channels) n += block_width(channels - n);
  return n;
}

// Computes all rows of one block of columns, in row tiles of nearly equal height.
template <int LDA, int DEPTH>
inline void run_gemm(GemmArgs p, int width, int64_t rows) {
  const MicrokernelTable<LDA, DEPTH>& all = Microkernels<LDA, DEPTH>::table;
  const bool two = width == WIDE, three = width == 3 * LANES;
  const Microkernel* table = three ? all.three : two ? all.two : width == LANES ? all.one : all.half;
  const int64_t skip_first_row = p.skip_first_row, skip_last_row = p.skip_last_row;
  bool first_tile = true;
  int64_t tiles = ceil_div(rows, three ? SSCONV_THREE_TAP_ROWS : two ? SSCONV_WIDE_ROWS : SSCONV_NARROW_ROWS);
  while (rows > 0) {
    const int64_t m = ceil_div(rows, tiles--);
    p.skip_first_row = first_tile ? skip_first_row : 0;
    p.skip_last_row = m == rows ? skip_last_row : 0;
    first_tile = false;
    table[m](p);
    p.a += m * LDA;
    p.c += m * p.ldc;
    rows -= m;
  }
}

// A GEMM whose columns are the three taps along W of a branch (`fuse_three_taps` in pack_weights.inl): input row u adds
// to the outputs u, u + 1 and u + 2; row i of c is output i. The last two outputs wait in `carry` for the next rows;
// `tail` of them are also stored. The first `skip` outputs are not stored. With LINES = 2 the upper halves of the
// vectors hold a second line, whose inputs are at a + second_offset_a[j] and whose outputs are second_offset_c floats
// after the first line's. A line without a partner is its own: second_offset_c is 0.
struct ThreeTapGemm : GemmArgs {
  const int64_t* second_offset_a;
  int64_t lda, second_offset_c;
  float* carry;
  int64_t skip, tail;
};

template <int L, int LINES>
inline void store_sums(float* to, int64_t second_offset_c, bool accumulate, typename Vector<L>::type v) {
  if constexpr (LINES == 1) {
    store_vector<L>(to, accumulate ? load_vector<L>(to) + v : v);
  } else {
    typename Vector<L / 2>::type first = PackedLines<L, LINES>::first(v), second = PackedLines<L, LINES>::second(v);
    if (accumulate) {
      first += load_vector<L / 2>(to);
      second += load_vector<L / 2>(to + second_offset_c);
    }
    store_vector<L / 2>(to + second_offset_c, second);
    store_vector<L / 2>(to, first);
  }
}

template <int LINES, int DEPTH, int M>
void three_tap_microkernel(const ThreeTapGemm& p) {
  typedef Vector<LANES>::type vector;
  constexpr int WIDTH = LANES / LINES;
  vector sum[M][3];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < 3; ++v) sum[i][v] = vector{};
  const int64_t depth = DEPTH ? DEPTH : p.depth;
  for (int64_t j = 0; j < p.batch; ++j) {
    const float* a = p.a + p.offset_a[j];
    const float* b = p.b + p.offset_b[j];
    const float* other = LINES == 1 ? a : p.a + p.second_offset_a[j];
    // Rows far apart come from the L2 cache: prefetch those of the next element of the batch, or of the next row tile.
    const bool more = j + 1 < p.batch;
    const float* next = p.a + (more ? p.offset_a[j + 1] : p.offset_a[0] + M * p.lda);
    for (int i = 0; i < M; ++i) __builtin_prefetch(next + i * p.lda);
    if (LINES == 2) {
      next = p.a + (more ? p.second_offset_a[j + 1] : p.second_offset_a[0] + M * p.lda);
      for (int i = 0; i < M; ++i) __builtin_prefetch(next + i * p.lda);
    }
#pragma GCC unroll 8
    for (int64_t k = 0; k < depth; ++k, ++a, ++other, b += 3 * WIDTH) {
      vector w[3];
      for (int v = 0; v < 3; ++v) w[v] = PackedLines<LANES, LINES>::load_to_all(b + v * WIDTH);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const auto input = PackedLines<LANES, LINES>::broadcast(a + i * p.lda, other + i * p.lda);
        for (int v = 0; v < 3; ++v) sum[i][v] += input * w[v];
      }
    }
  }
  vector out[M + 2];
  for (int i = 0; i < M + 2; ++i) {
    out[i] = i < 2 ? load_vector<LANES>(p.carry + i * LANES) : vector{};
    for (int v = 0; v < 3; ++v)
      if (i - v >= 0 && i - v < M) out[i] += sum[i - v][v];
  }
  for (int i = 0; i < M + 2; ++i) {
    float* c = p.c + i * p.ldc;
    const bool stored = (i >= 2 || i >= p.skip) && (i < M || i < M + p.tail);
    if (stored) store_sums<LANES, LINES>(c, p.second_offset_c, p.accumulate, out[i]);
    if (i >= M) store_vector<LANES>(p.carry + (i - M) * LANES, out[i]);
  }
}

typedef void (*ThreeTapMicrokernel)(const ThreeTapGemm&);

template <int LINES, int DEPTH>
struct ThreeTapTable {
  ThreeTapMicrokernel of_rows[SSCONV_THREE_TAP_ROWS + 1] = {};
  template <int M>
  constexpr void fill(Constant<M>) {
    of_rows[M] = &three_tap_microkernel<LINES, DEPTH, M>;
    fill(Constant<M - 1>{});
  }
  constexpr void fill(Constant<0>) {}
  constexpr ThreeTapTable() { fill(Constant<SSCONV_THREE_TAP_ROWS>{}); }
  static const ThreeTapTable all;
};
template <int LINES, int DEPTH>
constexpr ThreeTapTable<LINES, DEPTH> ThreeTapTable<LINES, DEPTH>::all;

template <int LINES>
inline const ThreeTapMicrokernel* three_tap_table(int64_t depth) {
  return depth == BLOCK         ? ThreeTapTable<LINES, BLOCK>::all.of_rows
         : depth == SMALL_BLOCK ? ThreeTapTable<LINES, SMALL_BLOCK>::all.of_rows
                                : ThreeTapTable<LINES, 0>::all.of_rows;
}

// Computes all rows of one line, or of two.
inline void run_three_tap_gemm(ThreeTapGemm p, int lines, int64_t rows) {
  const ThreeTapMicrokernel* table =
      lines == 1 ? three_tap_table<1>(p.depth) : three_tap_table<LINES_PER_VECTOR>(p.depth);
  float carry[2 * LANES] = {};
  p.carry = carry;
  const int64_t tail = p.tail;
  for (int64_t tiles = ceil_div(rows, maximum(1, SSCONV_THREE_TAP_ROWS)); rows > 0; --tiles) {
    const int64_t m = ceil_div(rows, tiles);
    p.tail = m == rows ? tail : 0;
    table[m](p);
    p.skip = maximum(p.skip - m, 0);
    p.a += m * p.lda;
    p.c += m * p.ldc;
    rows -= m;
  }
}

// wgrad of two lines at once: the first half of the batch in the lower halves of the vectors, the second half in the
// upper ones. The sum of both goes to c[i][0 .. 3 * NARROWEST - 1], i < M.
template <int M>
void paired_microkernel(const GemmArgs& p) {
  typedef Vector<LANES>::type vector;
  constexpr int WIDTH = LANES / LINES_PER_VECTOR;
  vector sum[M][3];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < 3; ++v) sum[i][v] = vector{};
  const int64_t half = p.batch / LINES_PER_VECTOR;
  for (int64_t j = 0; j < half; ++j) {
    const float *a = p.a + p.offset_a[j], *other_a = p.a + p.offset_a[p.batch - half + j];
    const float *b = p.b + p.offset_b[j], *other_b = p.b + p.offset_b[p.batch - half + j];
    vector w[3];  // the three vectors of a sliding window: each step loads one
    for (int v = 0; v < 2; ++v) w[v] = PackedLines<LANES, LINES_PER_VECTOR>::load(b + v * WIDTH, other_b + v * WIDTH);
    const auto add = [&](int first) __attribute__((always_inline)) {
      w[(first + 2) % 3] = PackedLines<LANES, LINES_PER_VECTOR>::load(b + 2 * WIDTH, other_b + 2 * WIDTH);
      __builtin_prefetch(a + PREFETCH_DISTANCE * p.k_stride_a);
      __builtin_prefetch(other_a + PREFETCH_DISTANCE * p.k_stride_a);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const auto input = PackedLines<LANES, LINES_PER_VECTOR>::broadcast(a + i, other_a + i);
        for (int v = 0; v < 3; ++v) sum[i][v] += input * w[(first + v) % 3];
      }
      a += p.k_stride_a, other_a += p.k_stride_a, b += WIDTH, other_b += WIDTH;
    };
    int64_t k = p.depth;
    for (; k >= 3; k -= 3) {
      add(0);
      add(1);
      add(2);
    }
    if (k > 0) add(0);
    if (k > 1) add(1);
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < 3; ++v) {
      float* c = p.c + i * p.ldc + v * WIDTH;
      store_vector<WIDTH>(c, load_vector<WIDTH>(c) + PackedLines<LANES, LINES_PER_VECTOR>::sum(sum[i][v]));
    }
}

struct PairedTable {
  Microkernel of_rows[SSCONV_THREE_TAP_ROWS + 1] = {};
  template <int M>
  constexpr void fill(Constant<M>) {
    of_rows[M] = &paired_microkernel<M>;
    fill(Constant<M - 1>{});
  }
  constexpr void fill(Constant<0>) {}
  constexpr PairedTable() { fill(Constant<SSCONV_THREE_TAP_ROWS>{}); }
  static const PairedTable all;
};
constexpr PairedTable PairedTable::all;

// Computes all rows of a wgrad of two lines.
inline void run_paired_gemm(GemmArgs p, int64_t rows) {
  for (int64_t tiles = ceil_div(rows, maximum(1, SSCONV_THREE_TAP_ROWS)); rows > 0; --tiles) {
    const int64_t m = ceil_div(rows, tiles);
    PairedTable::all.of_rows[m](p);
    p.a += m;
    p.c += m * p.ldc;
    rows -= m;
  }
}
