// Emulates the GPU's execution model on a CPU, for tests. The bodies in ptx/ of the primitives of csrc/cuda/ptx call
// these functions.
//
// The threads of a block are fibers. They run in an order drawn from a seed and switch only at warp collectives,
// barriers and waits. The emulator fails where a kernel relies on what the GPU does not guarantee:
//   - global memory: an access outside the tensors of the call, a store to an input, or a misaligned access;
//   - shared memory: an access outside it, misaligned, or in a race with another thread's access since the last
//   barrier. It
//     starts as NaN;
//   - cp.async: the bytes arrive when their thread waits for them; until then the destination is NaN and may not be
//   accessed;
//   - bulk copies (TMA) arrive when the scheduler draws them. Their bytes may be accessed by a thread that has waited
//   for the
//     phase of the mbarrier that they complete. More bytes than the mbarrier expects fail; fewer leave a deadlock;
//   - clusters: blocks run concurrently. A thread may not access another block before a cluster barrier that follows
//   that
//     block's initialisation, nor after that block's end. A block may not end while arrivals at its mbarriers are
//     missing;
//   - wgmma: until the wait, the accumulators are NaN and must stay so, and the operands in shared memory may not be
//   written.
//     A thread's own stores are visible to wgmma and bulk copies only after a proxy fence;
//   - a barrier that not all threads reach, and a collective that not all lanes of a warp reach alike.
// Every failure names the kernel, the block and the thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace emulator {

struct Position {
  int thread;
  uint32_t rank;  // of the block in its cluster
  uint32_t block[3];
  uint32_t grid[3];
};
const Position& current();

// A range of global memory that a launch may access.
struct Range {
  const char *begin, *end;
  bool writable;
};

struct Trace;
struct Settings {
  uint64_t seed = 0;
  std::vector<Range> ranges;
  std::unique_ptr<Trace> trace;  // not null: launches add to it
  std::string error;  // of the last failed launch
  uint64_t launches = 0;
};
Settings& settings();

// Runs a kernel. Returns null, or why the launch failed.
const char* launch(const char* name, uint32_t x, uint32_t y, uint32_t z, int threads, int shared_bytes,
                   void (*run)(const void*), const void* params, uint32_t cluster = 1);

void barrier();
void cluster_barrier();
// Waits for the other lanes of the warp; the last to arrive calls perform() with every lane's `own`.
void collective(const char* operation, void* own, void (*perform)(void* const* lanes));

void check_global(const void* p, size_t bytes, bool write);
const char* shared_read(uint32_t at, size_t bytes, int lane = -1);
char* shared_write(uint32_t at, size_t bytes);

void cp_async(uint32_t at, const void* from);  // 16 bytes; zeros if `from` is null
void cp_async_commit();
void cp_async_wait(int groups);

// An mbarrier is 8 bytes of shared memory.
void mbarrier_init(uint32_t at, uint32_t count);
void fence_mbarrier_init();  // makes initialisations visible to bulk copies
void mbarrier_arrive(uint32_t at, uint32_t bytes);
void mbarrier_arrive_cluster(uint32_t at, uint32_t rank);  // at another block of the cluster
void mbarrier_wait(uint32_t at, uint32_t parity);
void fence_proxy_async();

// A tensor map; dimensions innermost first (C, W, H, D, N).
struct Map {
  const char* base;
  int64_t stride[4];  // bytes, of W, H, D, N
  int32_t size[5];
  int32_t box[5];     // elements; im2col: channels, pixels
  int8_t lower[3], upper[3];
  uint8_t step[3];
  uint8_t element, swizzle;  // bytes; swizzle 0, 32, 64 or 128
  bool im2col;
};
void tma_load(uint32_t at, const Map& map, uint32_t mbarrier, const int32_t (&coordinate)[5],
              const uint16_t (&offset)[3]);
void bulk_load(uint32_t at, const void* from, uint32_t bytes, uint32_t mbarrier);
// To each block of the cluster whose bit is set.
void bulk_load_multicast(uint16_t blocks, uint32_t at, const void* from, uint32_t bytes, uint32_t mbarrier);

// d (64, n) = a (64, 16) * b (16, n), or += with `add`, of 16-bit elements by a warp group. d: this thread's n / 2
// elements.
struct WgmmaArgs {
  float* d;
  int n;
  uint64_t a, b;
  bool a_transposed, b_transposed, add;
  float (*value)(uint16_t);
};
void wgmma_fence();
void wgmma(const WgmmaArgs& m);
void wgmma_commit();
void wgmma_wait(int groups);

// What launches ask of TMA and wgmma, in the order in which they do.
struct Trace {
  struct Copy {
    Map map;
    std::vector<int32_t> coordinate, offset;
    std::vector<int32_t> voxels;  // of each pixel, in the order n, d, h, w; -1 outside
  };
  std::vector<Copy> copies;
  std::vector<WgmmaArgs> products;
};

}  // namespace emulator
