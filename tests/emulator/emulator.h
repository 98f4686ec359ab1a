// A GPU's execution model on a CPU, for tests: the host bodies of csrc/cuda/ptx/sm80.cuh call what is declared here.
//
// The threads of a block are fibers. They run in an order drawn from a seed and give way only at warp collectives and
// barriers. What a correct kernel may not rely on is made to fail:
//   - global memory: an access outside the tensors of the call, to an input for writing, or misaligned;
//   - shared memory: an access outside, misaligned, or in a race: another thread wrote it, or wants to write what another
//     read, with no barrier in between; it begins as NaN;
//   - asynchronous copies: their bytes arrive when their thread waits for them; until then the place is NaN and closed;
//   - bulk copies (TMA) arrive when the scheduler draws them; their bytes may be touched by who waited for the phase of the
//     mbarrier that they complete; too many bytes for what it expects fail, too few leave its waiters in a deadlock;
//   - clusters: blocks run side by side; nobody may reach into a block before a barrier of the cluster that follows what
//     it initialises, or after its end; nor may a block end while others have still to arrive at its mbarriers;
//   - wgmma: until the wait, the accumulators are NaN and shall stay so, and its operands in shared memory may not be
//     written; a thread's own stores are there for it, and for bulk copies, only after a proxy fence;
//   - a barrier that not all threads reach, a collective that not all lanes of a warp reach or that they disagree on.
// Every failure names kernel, block and thread.
#pragma once

#include <cstddef>
#include <cstdint>
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

// The global memory that a launch may touch.
struct Range {
  const char *begin, *end;
  bool writable;
};

struct Settings {
  uint64_t seed = 0;
  std::vector<Range> ranges;
  std::string error;  // of the last launch that failed
  uint64_t launches = 0;
};
Settings& settings();

// Null, or why the launch failed.
const char* launch(const char* name, uint32_t x, uint32_t y, uint32_t z, int threads, int shared_bytes,
                   void (*run)(const void*), const void* params, uint32_t cluster = 1);

void barrier();
void cluster_barrier();
// Waits for the other lanes of the warp; the last to come performs, with what each lane gave.
void collective(const char* operation, void* mine, void (*perform)(void* const* lanes));

void check_global(const void* p, size_t bytes, bool write);
const char* shared_read(uint32_t at, size_t bytes, int lane = -1);
char* shared_write(uint32_t at, size_t bytes);

void copy_begin(uint32_t at, const void* from);  // 16 bytes; zeros where `from` is null
void copy_commit();
void copy_wait(int groups);

// An mbarrier is 8 bytes of shared memory.
void mbarrier_init(uint32_t at, uint32_t count);
void mbarrier_fence();  // makes initialisations known to bulk copies
void mbarrier_arrive(uint32_t at, uint32_t bytes);
void mbarrier_arrive_at(uint32_t at, uint32_t rank);  // of another block of the cluster
void mbarrier_wait(uint32_t at, uint32_t parity);
void proxy_fence();

// A tensor map; dimensions are innermost first (C, W, H, D, N).
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
void copy_map(uint32_t at, const Map& map, uint32_t mbarrier, const int32_t (&place)[5], const uint16_t (&offset)[3]);
void copy_bulk(uint32_t at, const void* from, uint32_t bytes, uint32_t mbarrier);
void copy_bulk(uint32_t at, const void* from, uint32_t bytes, uint32_t mbarrier, uint16_t blocks);  // of the cluster

// d (64, n) = a (64, 16) * b (16, n) of 16-bit elements by a warpgroup, or with `add` += that; d holds n / 2 numbers of this thread.
struct Multiplication {
  float* d;
  int n;
  uint64_t a, b;
  bool a_transposed, b_transposed, add;
  float (*value)(uint16_t);
};
void matrix_fence();
void matrix_multiply(const Multiplication& m);
void matrix_commit();
void matrix_wait(int groups);

}  // namespace emulator
