// What the workers share: scratch memory and a queue of tasks.

// Blocks that a thread keeps from call to call: fresh pages cost more than many a small convolution.
struct Kept {
  static constexpr int SLOTS = 12;
  static constexpr int64_t LARGEST = int64_t(4) << 20;  // bytes; larger ones go back at once
  char* block[SLOTS] = {};
  int64_t bytes[SLOTS] = {};
  ~Kept() {
    for (int i = 0; i < SLOTS; ++i) free(block[i]);
  }
};
static thread_local Kept kept;

// Aligned, uninitialised; with SSCONV_POISON in the environment, for tests, full of NaN.
struct Scratch {
  explicit Scratch(int64_t wanted) : bytes(wanted > 64 ? wanted : 64) {
    int best = -1;
    for (int i = 0; i < Kept::SLOTS; ++i)
      if (kept.bytes[i] >= bytes && (best < 0 || kept.bytes[i] < kept.bytes[best])) best = i;
    if (best >= 0) {
      data = kept.block[best];
      bytes = kept.bytes[best];
      kept.block[best] = nullptr;
      kept.bytes[best] = 0;
    } else {
      void* p = nullptr;
      if (posix_memalign(&p, 64, size_t(bytes)) != 0) {
        fprintf(stderr, "ssconv: out of memory: %lld bytes of scratch\n", static_cast<long long>(bytes));
        abort();
      }
      data = static_cast<char*>(p);
    }
    static const bool poison = getenv("SSCONV_POISON") != nullptr;
    if (poison) __builtin_memset(data, 0xff, size_t(bytes));
  }
  ~Scratch() {
    int worst = 0;  // the smallest kept one makes room
    for (int i = 1; i < Kept::SLOTS; ++i)
      if (kept.bytes[i] < kept.bytes[worst]) worst = i;
    char* gone = data;
    if (bytes <= Kept::LARGEST && bytes > kept.bytes[worst]) {
      gone = kept.block[worst];
      kept.block[worst] = data;
      kept.bytes[worst] = bytes;
    }
    free(gone);
  }
  Scratch(const Scratch&) = delete;
  float* floats(int64_t at = 0) { return reinterpret_cast<float*>(data) + at; }
  int64_t bytes;
  char* data;
};

// Tasks 0 .. count-1 handed to whichever worker is free.
template <class Body>
struct Queue {
  int64_t next, count;
  Body* body;
  static void run(int worker, void* context) {
    Queue& q = *static_cast<Queue*>(context);
    (*q.body)(worker, [&q]() -> int64_t {
      const int64_t i = __atomic_fetch_add(&q.next, 1, __ATOMIC_RELAXED);
      return i < q.count ? i : -1;
    });
  }
};

template <class Body>
void distribute(const Pool& pool, int64_t count, Body body) {
  Queue<Body> queue{0, count, &body};
  const int workers = int(least(pool.workers, count));
  if (workers <= 1)
    Queue<Body>::run(0, &queue);
  else
    pool.launch(workers, &Queue<Body>::run, &queue);
}
