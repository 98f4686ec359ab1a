// Scratch memory of the worker threads, and the queue that hands them tasks.

// Memory blocks that a thread keeps between calls: the page faults of fresh memory cost more than a small convolution.
struct ScratchCache {
  static constexpr int SLOTS = 12;
  static constexpr int64_t LARGEST = int64_t(4) << 20;  // bytes; larger blocks are freed at once
  char* block[SLOTS] = {};
  int64_t bytes[SLOTS] = {};
  ~ScratchCache() {
    for (int i = 0; i < SLOTS; ++i) free(block[i]);
  }
};
static thread_local ScratchCache scratch_cache;

// Tests set SSCONV_POISON in the environment: scratch memory is filled with NaN, and small calls use all workers too.
static bool poisoned() {
  static const bool set = getenv("SSCONV_POISON") != nullptr;
  return set;
}

// Uninitialised scratch memory, 64-byte aligned.
struct Scratch {
  explicit Scratch(int64_t wanted) : bytes(wanted > 64 ? wanted : 64) {
    int best = -1;
    for (int i = 0; i < ScratchCache::SLOTS; ++i)
      if (scratch_cache.bytes[i] >= bytes && (best < 0 || scratch_cache.bytes[i] < scratch_cache.bytes[best])) best = i;
    if (best >= 0) {
      data = scratch_cache.block[best];
      bytes = scratch_cache.bytes[best];
      scratch_cache.block[best] = nullptr;
      scratch_cache.bytes[best] = 0;
    } else {
      void* p = nullptr;
      if (posix_memalign(&p, 64, size_t(bytes)) != 0) {
        fprintf(stderr, "ssconv: out of memory: %lld bytes of scratch\n", static_cast<long long>(bytes));
        abort();
      }
      data = static_cast<char*>(p);
    }
    if (poisoned()) __builtin_memset(data, 0xff, size_t(bytes));
  }
  ~Scratch() {
    int worst = 0;  // the smallest cached block makes room
    for (int i = 1; i < ScratchCache::SLOTS; ++i)
      if (scratch_cache.bytes[i] < scratch_cache.bytes[worst]) worst = i;
    char* freed = data;
    if (bytes <= ScratchCache::LARGEST && bytes > scratch_cache.bytes[worst]) {
      freed = scratch_cache.block[worst];
      scratch_cache.block[worst] = data;
      scratch_cache.bytes[worst] = bytes;
    }
    free(freed);
  }
  Scratch(const Scratch&) = delete;
  float* floats(int64_t at = 0) { return reinterpret_cast<float*>(data) + at; }
  int64_t bytes;
  char* data;
};

// Hands the tasks 0 .. count - 1 to whichever worker is free: next() is a task's number, or -1 at the end.
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

// Work for which another worker is woken, in elements written or 16 multiplications each: some tens of microseconds,
// which is what waking costs. Beside busy processes an 8-channel convolution of 2^3 voxels took 0.22 ms on one thread
// and 0.5 to 0.8 ms on two, and an upfirdn of that size up to 19 ms. Who computes a task changes no bit of it.
static constexpr int64_t GRAIN = int64_t(1) << 15;

// Runs body(worker, next) on the pool's workers until all `count` tasks are done. work: of all tasks, as for GRAIN.
template <class Body>
void distribute(const Pool& pool, int64_t count, int64_t work, Body body) {
  Queue<Body> queue{0, count, &body};
  const int workers = int(minimum(minimum(pool.workers, count), poisoned() ? count : work / GRAIN));
  if (workers <= 1)
    Queue<Body>::run(0, &queue);
  else
    pool.launch(workers, &Queue<Body>::run, &queue);
}
