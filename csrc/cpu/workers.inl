// What the workers share: scratch memory and a queue of tasks.

// Aligned, uninitialised, freed at the end of the scope.
struct Scratch {
  explicit Scratch(int64_t bytes) {
    void* p = nullptr;
    if (posix_memalign(&p, 64, size_t(bytes > 0 ? bytes : 64)) != 0) {
      fprintf(stderr, "ssconv: out of memory: %lld bytes of scratch\n", static_cast<long long>(bytes));
      abort();
    }
    data = static_cast<char*>(p);
  }
  ~Scratch() { free(data); }
  Scratch(const Scratch&) = delete;
  float* floats(int64_t at = 0) { return reinterpret_cast<float*>(data) + at; }
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
