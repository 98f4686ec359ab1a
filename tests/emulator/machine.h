// The emulator's state, shared by what executes threads (emulator.cpp) and by what runs beside them (hopper.cpp).
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "emulator.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

constexpr int WARP = 32;
constexpr int GROUP = 128;  // threads of a warpgroup
constexpr size_t STACK = 128 * 1024;

struct Failure {
  std::string text;
};

#if defined(__x86_64__)
struct Fiber {
  void* stack_pointer = nullptr;
  std::vector<char> stack;
  void start(void (*entry)());
};
#else
struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  void start(void (*entry)());
};
#endif

enum class State { ready, barrier, collective, mbarrier, cluster, done };

struct Copy {
  uint32_t at;
  char bytes[16];
};

struct Thread {
  Fiber fiber;
  Position position;
  State state = State::ready;
  const char* operation = "";
  std::vector<std::vector<Copy>> groups;  // committed and under way, oldest first
  std::vector<Copy> open;
  uint32_t proxy_fences = 0;              // how many it has executed
  uint32_t waiting = 0;                   // at which mbarrier
  std::map<uint32_t, uint32_t> seen;      // of each mbarrier, how many phases this thread knows to be over
};

struct Matrix;  // a wgmma under way

struct Warp {
  void* lanes[WARP];
  int arrived = 0;
  const char* operation = "";
  int ready = 0;
  std::vector<std::shared_ptr<Matrix>> open;
  std::deque<std::vector<std::shared_ptr<Matrix>>> groups;  // committed, oldest first
};

struct Warpgroup {
  void* threads[GROUP];
  int arrived = 0;
  const char* operation = "";
};

// Two bytes of shared memory: who touched them last, in which stretch between barriers.
struct Cell {
  uint32_t written = 0, read = 0;
  int16_t writer = -1, reader = -1;
  bool arriving = false;
  bool generic = false;    // last written by a thread's own store, which the asynchronous proxy sees after a fence
  bool mbarrier = false;
  uint8_t locked = 0;      // wgmmas under way that read it
  uint32_t fences = 0;     // the writer's proxy fences at that store
  uint32_t source = ~0u;   // the mbarrier that its asynchronous copy completed at, and in which phase
  uint32_t phase = 0;
};
constexpr int16_t MANY = -2;

struct Mbarrier {
  uint32_t count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;        // expected and not there yet
  uint32_t stretch = 0;     // of its initialisation
  uint32_t cluster_stretch = 0;
  int16_t initialiser = -1;
  bool fenced = false;
};

// A bulk copy under way: arrives when the scheduler draws it.
struct Transfer {
  uint32_t at, mbarrier;
  int16_t thread;
  std::vector<uint32_t> places;  // of each 16 bytes
  std::vector<char> bytes;
  bool from_another;             // block, which does not know what this one's mbarrier expects by now
};

// One block. Those of a cluster run side by side.
struct Machine {
  Fiber scheduler;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<char> shared;
  std::vector<Cell> cells;
  std::map<uint32_t, Mbarrier> mbarriers;
  std::vector<Transfer> transfers;
  std::mt19937_64* random = nullptr;
  int count = 0, at_barrier = 0, done = 0;
  uint32_t stretch = 1;
  Thread* running = nullptr;
  const char* name = "";
  void (*run)(const void*) = nullptr;
  const void* params = nullptr;
  bool failed = false;
  std::string failure;
  const Range* last = nullptr;
};
extern std::vector<Machine> cluster;
extern Machine* machine;       // the block whose thread runs
extern uint32_t cluster_stretch;  // between barriers of the cluster

[[noreturn]] void fail(const std::string& what, int thread = -1);
void give_way(State state);
void wake(Thread& t);
void pause();  // another warp may run before this thread goes on
void check_shared(uint32_t at, size_t bytes, int thread);
std::string byte(uint32_t cell);

// What hopper.cpp asks to be done at the start of a block, when a thread and when a block ends, when a barrier lets all go,
// and for a bulk copy that the scheduler drew.
void begin_asynchronous();
void end_asynchronous();
void end_block();
void share_what_was_seen();
void deliver(size_t transfer);
// A thread's load or store of a cell that asynchronous operations use.
void check_cell(uint32_t cell, int16_t thread, bool write);

}  // namespace emulator
