// A GPU's execution model on a CPU, for tests: the host bodies of csrc/device.cuh call what is declared here.
//
// The threads of a block are fibers. They run in an order drawn from a seed and give way only at warp collectives and
// barriers. What a correct kernel may not rely on is made to fail:
//   - global memory: an access outside the tensors of the call, to an input for writing, or misaligned;
//   - shared memory: an access outside, misaligned, or in a race: another thread wrote it, or wants to write what another
//     read, with no barrier in between; it begins as NaN;
//   - asynchronous copies: their bytes arrive when their thread waits for them; until then the place is NaN and closed;
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
                   void (*run)(const void*), const void* params);

void barrier();
// Waits for the other lanes of the warp; the last to come performs, with what each lane gave.
void collective(const char* operation, void* mine, void (*perform)(void* const* lanes));

void check_global(const void* p, size_t bytes, bool write);
const char* shared_read(uint32_t at, size_t bytes, int lane = -1);
char* shared_write(uint32_t at, size_t bytes);

void copy_begin(uint32_t at, const void* from);  // 16 bytes; zeros where `from` is null
void copy_commit();
void copy_wait(int groups);

}  // namespace emulator
