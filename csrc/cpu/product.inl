// The small matrix products that everything else is made of. Sums stay in registers.

// c[i][:] (+)= sum over batch and k of a[i * ROWS_A + k * step_a] * b[k * step_b + :], M rows and NV vectors of L wide.
// a and b of batch element j start at a + offset_a[j], b + offset_b[j]. The first `without_first` elements leave out row
// 0 and the last `without_last` ones row M - 1 (taps outside the volume); only where DEPTH is known, else they take all.
struct Product {
  const float* a;
  const float* b;
  const int64_t* offset_a;
  const int64_t* offset_b;
  int64_t batch, without_first, without_last, depth, step_a, step_b;
  float* c;
  int64_t rows_c;
  bool accumulate;
};

constexpr int AHEAD = 32;  // positions: a gradient's inputs are asked for that long before they are used

template <int N>
struct Constant {
  static constexpr int value = N;
};

// DEPTH: p.depth where it is known, and then step_a is 1 and step_b the width; else 0.
template <int ROWS_A, int DEPTH, int L, int NV, int M>
void product(const Product& p) {
  typedef typename Vector<L>::type vector;
  typedef typename Vector<L>::memory memory;
  vector sum[M][NV];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < NV; ++v) sum[i][v] = vector{};
  const int64_t depth = DEPTH ? DEPTH : p.depth, ka = DEPTH ? 1 : p.step_a, kb = DEPTH ? NV * L : p.step_b;
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
          for (int v = 0; v < NV; ++v) sum[i][v] += a[i * ROWS_A] * w[v];
        a += ka;
        b += kb;
      }
    }
  };
  const int64_t first = DEPTH ? p.without_first : 0, last = DEPTH ? p.batch - p.without_last : p.batch;
  if (DEPTH != 0) add(Constant<1>{}, Constant<M>{}, 0, first);
  add(Constant<0>{}, Constant<M>{}, first, last);
  if (DEPTH != 0) add(Constant<0>{}, Constant<M - 1>{}, last, p.batch);
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < NV; ++v) {
      memory* c = reinterpret_cast<memory*>(p.c + i * p.rows_c + v * L);
      *c = p.accumulate ? *c + sum[i][v] : sum[i][v];
    }
}

typedef void (*ProductFn)(const Product&);

template <int ROWS_A, int DEPTH, int L, int NV, int M>
struct Table {
  static constexpr void fill(ProductFn* to) {
    to[M] = &product<ROWS_A, DEPTH, L, NV, M>;
    Table<ROWS_A, DEPTH, L, NV, M - 1>::fill(to);
  }
};
template <int ROWS_A, int DEPTH, int L, int NV>
struct Table<ROWS_A, DEPTH, L, NV, 0> {
  static constexpr void fill(ProductFn*) {}
};

// By number of rows. Made by the compiler: a constructor at load time would run this instruction set on any processor.
template <int ROWS_A, int DEPTH>
struct Products {
  ProductFn two[SSCONV_WIDE_ROWS + 1] = {}, one[SSCONV_NARROW_ROWS + 1] = {}, part[SSCONV_NARROW_ROWS + 1] = {};
  ProductFn three[SSCONV_TRIPLE_ROWS + 1] = {};
  constexpr Products() {
    Table<ROWS_A, DEPTH, LANES, 2, SSCONV_WIDE_ROWS>::fill(two);
    Table<ROWS_A, DEPTH, LANES, 1, SSCONV_NARROW_ROWS>::fill(one);
    Table<ROWS_A, DEPTH, HALF, 1, SSCONV_NARROW_ROWS>::fill(part);
    if constexpr (ROWS_A == 1) Table<ROWS_A, DEPTH, LANES, 3, SSCONV_TRIPLE_ROWS>::fill(three);  // gradients of weights
  }
};

template <int ROWS_A, int DEPTH>
struct All {
  static constexpr Products<ROWS_A, DEPTH> products{};
};

// How many of `left` channels the next block of columns takes.
inline int block_width(int64_t left) {
  if (2 * left > 3 * LANES) return WIDE;
  return left > HALF ? LANES : HALF;
}

inline int64_t padded(int64_t channels) {
  int64_t n = 0;
  while (n < channels) n += block_width(channels - n);
  return n;
}

// All rows of one block of columns, in pieces of nearly equal height.
template <int ROWS_A, int DEPTH>
inline void run_product(Product p, int width, int64_t rows) {
  const Products<ROWS_A, DEPTH>& all = All<ROWS_A, DEPTH>::products;
  const bool two = width == WIDE, three = width == 3 * LANES;
  const ProductFn* table = three ? all.three : two ? all.two : width == LANES ? all.one : all.part;
  const int64_t without_first = p.without_first, without_last = p.without_last;
  bool begins = true;
  int64_t pieces = ceil_div(rows, three ? SSCONV_TRIPLE_ROWS : two ? SSCONV_WIDE_ROWS : SSCONV_NARROW_ROWS);
  while (rows > 0) {
    const int64_t m = ceil_div(rows, pieces--);
    p.without_first = begins ? without_first : 0;
    p.without_last = m == rows ? without_last : 0;
    begins = false;
    table[m](p);
    p.a += m * ROWS_A;
    p.c += m * p.rows_c;
    rows -= m;
  }
}

// A product whose columns are the three taps of a `triple` branch (weights.inl), and which adds up what they share: row u
// of a adds its channels to each of the outputs u, u + 1 and u + 2, and row i of c becomes output i. The last two outputs
// wait in `carry` for the next rows; `finish` of them are also stored, and the first `skip` outputs are not.
// SIDE of 2: the upper halves of the vectors belong to a second line, whose inputs are at other_a[j] and whose outputs
// `apart` floats after the first's. A line without a partner is its own, with `apart` of 0.
struct TripleProduct : Product {
  const int64_t* other_a;
  int64_t rows_a, apart;
  float* carry;
  int64_t skip, finish;
};

template <int L, int SIDE>
inline void store_sums(float* to, int64_t apart, bool accumulate, typename Vector<L>::type v) {
  if constexpr (SIDE == 1) {
    store_vector<L>(to, accumulate ? load_vector<L>(to) + v : v);
  } else {
    typename Vector<L / 2>::type first = Lines<L, SIDE>::first(v), second = Lines<L, SIDE>::second(v);
    if (accumulate) {
      first += load_vector<L / 2>(to);
      second += load_vector<L / 2>(to + apart);
    }
    store_vector<L / 2>(to + apart, second);
    store_vector<L / 2>(to, first);
  }
}

template <int SIDE, int DEPTH, int M>
void triple_product(const TripleProduct& p) {
  typedef Vector<LANES>::type vector;
  constexpr int WIDTH = LANES / SIDE;
  vector sum[M][3];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < 3; ++v) sum[i][v] = vector{};
  const int64_t depth = DEPTH ? DEPTH : p.depth;
  for (int64_t j = 0; j < p.batch; ++j) {
    const float* a = p.a + p.offset_a[j];
    const float* b = p.b + p.offset_b[j];
    const float* other = SIDE == 1 ? a : p.a + p.other_a[j];
    // Rows far apart come from the L2 cache: those of the next element, or of the next rows, are asked for meanwhile.
    const bool more = j + 1 < p.batch;
    const float* next = p.a + (more ? p.offset_a[j + 1] : p.offset_a[0] + M * p.rows_a);
    for (int i = 0; i < M; ++i) __builtin_prefetch(next + i * p.rows_a);
    if (SIDE == 2) {
      next = p.a + (more ? p.other_a[j + 1] : p.other_a[0] + M * p.rows_a);
      for (int i = 0; i < M; ++i) __builtin_prefetch(next + i * p.rows_a);
    }
#pragma GCC unroll 8
    for (int64_t k = 0; k < depth; ++k, ++a, ++other, b += 3 * WIDTH) {
      vector w[3];
      for (int v = 0; v < 3; ++v) w[v] = Lines<LANES, SIDE>::load_twice(b + v * WIDTH);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const auto input = Lines<LANES, SIDE>::spread(a + i * p.rows_a, other + i * p.rows_a);
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
    float* c = p.c + i * p.rows_c;
    const bool stored = (i >= 2 || i >= p.skip) && (i < M || i < M + p.finish);
    if (stored) store_sums<LANES, SIDE>(c, p.apart, p.accumulate, out[i]);
    if (i >= M) store_vector<LANES>(p.carry + (i - M) * LANES, out[i]);
  }
}

typedef void (*TripleFn)(const TripleProduct&);

template <int SIDE, int DEPTH>
struct Triples {
  TripleFn of_rows[SSCONV_TRIPLE_ROWS + 1] = {};
  template <int M>
  constexpr void fill(Constant<M>) {
    of_rows[M] = &triple_product<SIDE, DEPTH, M>;
    fill(Constant<M - 1>{});
  }
  constexpr void fill(Constant<0>) {}
  constexpr Triples() { fill(Constant<SSCONV_TRIPLE_ROWS>{}); }
  static const Triples all;
};
template <int SIDE, int DEPTH>
constexpr Triples<SIDE, DEPTH> Triples<SIDE, DEPTH>::all;

template <int SIDE>
inline const TripleFn* triples(int64_t depth) {
  return depth == BLOCK         ? Triples<SIDE, BLOCK>::all.of_rows
         : depth == SMALL_BLOCK ? Triples<SIDE, SMALL_BLOCK>::all.of_rows
                                : Triples<SIDE, 0>::all.of_rows;
}

// All rows of a line, or of two.
inline void run_triple_product(TripleProduct p, int side, int64_t rows) {
  const TripleFn* table = side == 1 ? triples<1>(p.depth) : triples<SIDES>(p.depth);
  float carry[2 * LANES] = {};
  p.carry = carry;
  const int64_t finish = p.finish;
  for (int64_t pieces = ceil_div(rows, most(1, SSCONV_TRIPLE_ROWS)); rows > 0; --pieces) {
    const int64_t m = ceil_div(rows, pieces);
    p.finish = m == rows ? finish : 0;
    table[m](p);
    p.skip = most(p.skip - m, 0);
    p.a += m * p.rows_a;
    p.c += m * p.rows_c;
    rows -= m;
  }
}

// Gradients of weights of two lines at once: the first half of the batch in the lower halves of the vectors, the second
// in the upper ones, and their sums together into c[i][0 .. 3 * EIGHT - 1], i < M.
template <int M>
void paired_product(const Product& p) {
  typedef Vector<LANES>::type vector;
  constexpr int WIDTH = LANES / SIDES;
  vector sum[M][3];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < 3; ++v) sum[i][v] = vector{};
  const int64_t half = p.batch / SIDES;
  for (int64_t j = 0; j < half; ++j) {
    const float *a = p.a + p.offset_a[j], *other_a = p.a + p.offset_a[p.batch - half + j];
    const float *b = p.b + p.offset_b[j], *other_b = p.b + p.offset_b[p.batch - half + j];
    vector w[3];  // a window that moves on by one vector: two of its three stay
    for (int v = 0; v < 2; ++v) w[v] = Lines<LANES, SIDES>::load(b + v * WIDTH, other_b + v * WIDTH);
    const auto add = [&](int first) __attribute__((always_inline)) {
      w[(first + 2) % 3] = Lines<LANES, SIDES>::load(b + 2 * WIDTH, other_b + 2 * WIDTH);
      __builtin_prefetch(a + AHEAD * p.step_a);
      __builtin_prefetch(other_a + AHEAD * p.step_a);
#pragma GCC unroll 8
      for (int i = 0; i < M; ++i) {
        const auto input = Lines<LANES, SIDES>::spread(a + i, other_a + i);
        for (int v = 0; v < 3; ++v) sum[i][v] += input * w[(first + v) % 3];
      }
      a += p.step_a, other_a += p.step_a, b += WIDTH, other_b += WIDTH;
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
      float* c = p.c + i * p.rows_c + v * WIDTH;
      store_vector<WIDTH>(c, load_vector<WIDTH>(c) + Lines<LANES, SIDES>::sum(sum[i][v]));
    }
}

struct Paired {
  ProductFn of_rows[SSCONV_TRIPLE_ROWS + 1] = {};
  template <int M>
  constexpr void fill(Constant<M>) {
    of_rows[M] = &paired_product<M>;
    fill(Constant<M - 1>{});
  }
  constexpr void fill(Constant<0>) {}
  constexpr Paired() { fill(Constant<SSCONV_TRIPLE_ROWS>{}); }
  static const Paired all;
};
constexpr Paired Paired::all;

inline void run_paired_product(Product p, int64_t rows) {
  for (int64_t pieces = ceil_div(rows, most(1, SSCONV_TRIPLE_ROWS)); rows > 0; --pieces) {
    const int64_t m = ceil_div(rows, pieces);
    Paired::all.of_rows[m](p);
    p.a += m;
    p.c += m * p.rows_c;
    rows -= m;
  }
}
