// The emulator's state, shared by the execution of threads (emulator.cpp) and the asynchronous operations (async.cpp).
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
constexpr int GROUP = 128;  // threads of a warp group
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

struct AsyncCopy {
  uint32_t at;
  char bytes[16];
};

struct Thread {
  Fiber fiber;
  Position position;
  State state = State::ready;
  const char* operation = "";
  std::vector<std::vector<AsyncCopy>> groups;  // committed, in flight, oldest first
  std::vector<AsyncCopy> open;            // not committed
  uint32_t proxy_fences = 0;              // executed so far
  uint32_t waiting = 0;                   // the mbarrier that it waits at
  std::map<uint32_t, uint32_t> known_phases;      // per mbarrier: phases that this thread knows to have ended
};

struct Wgmma;  // a wgmma in flight

struct Warp {
  void* lanes[WARP];
  int arrived = 0;
  const char* operation = "";
  int ready = 0;
  std::vector<std::shared_ptr<Wgmma>> open;
  std::deque<std::vector<std::shared_ptr<Wgmma>>> groups;  // committed, oldest first
};

struct Warpgroup {
  void* threads[GROUP];
  int arrived = 0;
  const char* operation = "";
};

// Two bytes of shared memory: the last threads that accessed them, and in which epoch. Epochs lie between barriers.
struct Cell {
  uint32_t written = 0, read = 0;
  int16_t writer = -1, reader = -1;
  bool in_flight = false;
  bool generic = false;    // last written by a thread's own store, which the async proxy sees only after a fence
  bool mbarrier = false;
  uint8_t locked = 0;      // wgmmas in flight that read it
  uint32_t fences = 0;     // the writer's proxy fences at that store
  uint32_t source = ~0u;   // the mbarrier that its bulk copy completes, and the phase
  uint32_t phase = 0;
};
constexpr int16_t SEVERAL = -2;

struct Mbarrier {
  uint32_t count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;        // expected, not arrived yet
  uint32_t epoch = 0;     // of its initialisation
  uint32_t cluster_epoch = 0;
  int16_t initialiser = -1;
  bool fenced = false;
};

// A bulk copy in flight: arrives when the scheduler draws it.
struct Transfer {
  uint32_t at, mbarrier;
  int16_t thread;
  std::vector<uint32_t> offsets;  // per 16 bytes
  std::vector<char> bytes;
  bool from_another;             // issued by another block of the cluster
};

// A block. The blocks of a cluster run concurrently.
struct Block {
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
  uint32_t epoch = 1;
  Thread* running = nullptr;
  const char* name = "";
  void (*run)(const void*) = nullptr;
  const void* params = nullptr;
  bool failed = false;
  std::string failure;
  const Range* last = nullptr;
};
extern std::vector<Block> cluster;
extern Block* active;       // the block whose thread runs
extern uint32_t cluster_epoch;  // epochs of the cluster lie between its barriers

[[noreturn]] void fail(const std::string& what, int thread = -1);
void yield_thread(State state);
void make_ready(Thread& t);
void reschedule();  // lets another warp run before this thread continues
void check_shared(uint32_t at, size_t bytes, int thread);
std::string byte(uint32_t cell);

// Called by emulator.cpp: at the start of a block, at the end of a thread and of a block, at a completed barrier, and
// for a bulk copy that the scheduler drew.
void reset_async();
void check_async_done();
void end_block();
void share_known_phases();
void complete_transfer(size_t transfer);
// Checks a thread's access to a cell against the asynchronous operations in flight.
void check_cell(uint32_t cell, int16_t thread, bool write);

}  // namespace emulator
