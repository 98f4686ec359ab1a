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
    Table<ROWS_A, DEPTH, TRIPLE, 3, SSCONV_TRIPLE_ROWS>::fill(three);
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
  const bool two = width == WIDE, three = width == 3 * TRIPLE;
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
