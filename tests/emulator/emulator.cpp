#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <random>
#include <sstream>

#include "block.h"

#if defined(__x86_64__)
// Saves the callee-saved registers on the stack, exchanges stacks, restores.
extern "C" void ssconv_emulator_switch(void** save, void* load);
asm(R"(
.text
.globl ssconv_emulator_switch
.type ssconv_emulator_switch, @function
ssconv_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ssconv_emulator_switch, .-ssconv_emulator_switch
)");
#endif

namespace emulator {
namespace {

constexpr int SHARED_LIMIT = 227 * 1024;  // of a block on sm_90

// ---------------------------------------------------------------------------------------------------------- fibers

#if defined(__x86_64__)
void switch_to(Fiber& from, Fiber& to) { ssconv_emulator_switch(&from.stack_pointer, to.stack_pointer); }
#else
void switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

Settings the_settings;

}  // namespace

std::vector<Block> cluster;
Block* active = nullptr;
uint32_t cluster_epoch = 1;

#if defined(__x86_64__)
void Fiber::start(void (*entry)()) {
  if (stack.empty()) stack.resize(STACK);
  auto top = reinterpret_cast<uintptr_t>(stack.data() + stack.size()) & ~uintptr_t(63);
  auto* words = reinterpret_cast<uintptr_t*>(top) - 8;  // six registers, the entry, and an aligned frame below it
  std::fill(words, words + 8, 0);
  words[6] = reinterpret_cast<uintptr_t>(entry);
  stack_pointer = words;
}
#else
void Fiber::start(void (*entry)()) {
  if (stack.empty()) stack.resize(STACK);
  getcontext(&context);
  context.uc_stack.ss_sp = stack.data();
  context.uc_stack.ss_size = stack.size();
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}
#endif

void fail(const std::string& what, int thread) {
  std::ostringstream text;
  const Position& p = active->running->position;
  text << active->name << ", block (" << p.block[0] << ", " << p.block[1] << ", " << p.block[2] << "), thread "
       << (thread < 0 ? p.thread : thread) << ": " << what;
  throw Failure{text.str()};
}

void yield_thread(State state) {
  Thread* self = active->running;
  self->state = state;
  --active->warps[self->position.thread / WARP].ready;
  switch_to(self->fiber, active->scheduler);
}

void reschedule() { switch_to(active->running->fiber, active->scheduler); }

void make_ready(Thread& t) {
  t.state = State::ready;
  ++active->warps[t.position.thread / WARP].ready;
}

namespace {

void enter() {
  try {
    active->run(active->params);
    if (!active->running->open.empty()) fail("asynchronous copies that were never committed");
    if (!active->running->groups.empty()) fail("asynchronous copies that were never waited for");
    check_async_done();
  } catch (const Failure& failure) {
    active->failed = true;
    active->failure = failure.text;
  } catch (const std::exception& error) {
    active->failed = true;
    active->failure = error.what();
  }
  ++active->done;
  yield_thread(State::done);
  std::abort();  // a finished thread is never resumed
}

void release_barrier() {
  active->at_barrier = 0;
  ++active->epoch;
  share_known_phases();
  for (int t = 0; t < active->count; ++t) make_ready(active->threads[t]);
}

std::string deadlock_message() {
  std::ostringstream text;
  for (Block& block : cluster) {
    if (block.done == block.count) continue;
    active = &block;
    break;
  }
  text << active->name << ", block (" << active->threads[0].position.block[0] << ", "
       << active->threads[0].position.block[1] << ", " << active->threads[0].position.block[2] << "): deadlock: ";
  std::map<std::string, std::pair<int, int>> groups;  // state -> how many threads, the first of them
  for (int t = 0; t < active->count; ++t) {
    const Thread& thread = active->threads[t];
    const std::string what = thread.state == State::barrier   ? "at a barrier"
                             : thread.state == State::cluster ? "at a barrier of the cluster"
                             : thread.state == State::done    ? "done"
                             : thread.state == State::mbarrier
                                 ? "at the mbarrier at byte " + std::to_string(thread.waiting)
                                 : std::string("at ") + thread.operation;
    auto [entry, fresh] = groups.try_emplace(what, 0, t);
    ++entry->second.first;
  }
  const char* separator = "";
  for (const auto& [what, group] : groups) {
    text << separator << group.first << " threads " << what << " (the first is thread " << group.second << ")";
    separator = ", ";
  }
  return text.str();
}

void prepare(std::mt19937_64& random, const uint32_t block[3], uint32_t rank, const uint32_t grid[3],
             int shared_bytes) {
  Block& m = *active;
  std::memset(m.shared.data(), 0xff, shared_bytes);  // NaN in every format
  std::fill(m.cells.begin(), m.cells.end(), Cell{});
  m.at_barrier = m.done = 0;
  m.epoch = 1;
  for (Warp& warp : m.warps) warp.arrived = warp.ready = 0;
  m.random = &random;
  reset_async();
  for (int t = 0; t < m.count; ++t) {
    Thread& thread = m.threads[t];
    thread.position = {t, rank, {block[0] + rank, block[1], block[2]}, {grid[0], grid[1], grid[2]}};
    thread.groups.clear();
    thread.open.clear();
    thread.fiber.start(enter);
    make_ready(thread);
  }
}

// Runs the threads of a warp, of the active block, that are ready.
void run_warp(int warp, uint64_t draw) {
  Block& m = *active;
  const int first = static_cast<int>(draw >> 32 & 31);
  const int step = 1 + 2 * static_cast<int>(draw >> 40 & 15);  // odd: visits every lane
  for (int i = 0; i < WARP; ++i) {
    const int t = warp * WARP + (first + i * step) % WARP;
    if (t >= m.count || m.threads[t].state != State::ready) continue;
    m.running = &m.threads[t];
    switch_to(m.scheduler, m.running->fiber);
    if (m.failed) throw Failure{m.failure};
  }
  if (m.done == m.count) end_block();
}

// Runs the blocks of a cluster from start to end; `block` is the first.
void run_cluster(std::mt19937_64& random, const uint32_t block[3], const uint32_t grid[3], int shared_bytes) {
  cluster_epoch = 1;
  for (size_t rank = 0; rank < cluster.size(); ++rank) {
    active = &cluster[rank];
    prepare(random, block, static_cast<uint32_t>(rank), grid, shared_bytes);
  }
  struct Choice {
    Block* block;
    int warp;
    size_t transfer;  // if warp < 0
  };
  std::vector<Choice> choices;
  const auto running = [](const Block& m) { return m.done < m.count; };
  while (std::any_of(cluster.begin(), cluster.end(), running)) {
    choices.clear();
    for (Block& m : cluster) {
      for (size_t w = 0; w < m.warps.size(); ++w)
        if (m.warps[w].ready > 0) choices.push_back({&m, static_cast<int>(w), 0});
      for (size_t t = 0; t < m.transfers.size(); ++t) choices.push_back({&m, -1, t});
    }
    if (choices.empty()) throw Failure{deadlock_message()};
    const uint64_t draw = random();
    const Choice chosen = choices[draw % choices.size()];
    active = chosen.block;
    if (chosen.warp < 0)
      complete_transfer(chosen.transfer);
    else
      run_warp(chosen.warp, draw);
  }
}

}  // namespace

Settings& settings() { return the_settings; }
const Position& current() { return active->running->position; }

const char* launch(const char* name, uint32_t x, uint32_t y, uint32_t z, int threads, int shared_bytes,
                   void (*run)(const void*), const void* params, uint32_t blocks) {
  cluster.resize(blocks);
  for (Block& m : cluster) {
    m.name = name;
    m.run = run;
    m.params = params;
    m.count = threads;
    m.failed = false;
    m.last = nullptr;
    if (m.threads.size() < static_cast<size_t>(threads)) m.threads.resize(threads);
    m.warps.assign((threads + WARP - 1) / WARP, Warp{});
    m.warpgroups.assign((threads + GROUP - 1) / GROUP, Warpgroup{});
    m.shared.resize(std::min(shared_bytes, SHARED_LIMIT));
    m.cells.resize(m.shared.size() / 2);
  }
  try {
    if (x % blocks != 0 || shared_bytes > SHARED_LIMIT || x == 0 || y == 0 || z == 0 || x > 0x7fffffff || y > 65535 ||
        z > 65535)
      throw Failure{std::string(name) + ": a launch that no card takes: grid (" + std::to_string(x) + ", " +
                    std::to_string(y) + ", " + std::to_string(z) + "), " + std::to_string(shared_bytes) +
                    " bytes of shared memory, clusters of " + std::to_string(blocks)};
    const uint32_t grid[3] = {x, y, z};
    std::mt19937_64 random(the_settings.seed + ++the_settings.launches * 0x9e3779b97f4a7c15u);
    std::vector<uint64_t> order(uint64_t(x) / blocks * y * z);
    for (size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (const uint64_t number : order) {
      const uint32_t along = x / blocks;
      const uint32_t block[3] = {static_cast<uint32_t>(number % along) * blocks,
                                 static_cast<uint32_t>(number / along % y),
                                 static_cast<uint32_t>(number / along / y)};
      run_cluster(random, block, grid, shared_bytes);
    }
  } catch (const Failure& failure) {
    the_settings.error = failure.text;
    return the_settings.error.c_str();
  }
  return nullptr;
}

void barrier() {
  Block& m = *active;
  if (m.done > 0) fail("a barrier that threads which are done never reach");
  if (++m.at_barrier < m.count) {
    yield_thread(State::barrier);
    return;
  }
  --m.warps[m.running->position.thread / WARP].ready;  // release_barrier makes this one ready too
  release_barrier();
}

void cluster_barrier() {
  int there = 1;
  for (const Block& m : cluster) {
    if (m.done > 0) fail("a barrier of the cluster that threads which are done never reach");
    for (int t = 0; t < m.count; ++t) there += m.threads[t].state == State::cluster;
  }
  Block* const own = active;
  if (there < own->count * static_cast<int>(cluster.size())) {
    yield_thread(State::cluster);
    return;
  }
  --own->warps[own->running->position.thread / WARP].ready;  // it becomes ready with the others
  ++cluster_epoch;
  for (Block& m : cluster) {
    active = &m;
    release_barrier();
  }
  active = own;
}

void collective(const char* operation, void* own, void (*perform)(void* const* lanes)) {
  Thread& self = *active->running;
  Warp& warp = active->warps[self.position.thread / WARP];
  if (warp.arrived > 0 && std::strcmp(warp.operation, operation) != 0)
    fail(std::string("a warp diverged: this lane is at ") + operation + ", another at " + warp.operation);
  warp.operation = self.operation = operation;
  warp.lanes[self.position.thread % WARP] = own;
  if (++warp.arrived < WARP) {
    yield_thread(State::collective);
    return;
  }
  warp.arrived = 0;
  perform(warp.lanes);
  const int first = self.position.thread / WARP * WARP;
  for (int l = 0; l < WARP; ++l)
    if (&active->threads[first + l] != &self) make_ready(active->threads[first + l]);
}

void check_global(const void* p, size_t bytes, bool write) {
  const char* begin = static_cast<const char*>(p);
  if (reinterpret_cast<uintptr_t>(p) % bytes != 0)
    fail("global memory: " + std::to_string(bytes) + " bytes at an address that is not a multiple of that");
  const auto inside = [&](const Range& r) { return begin >= r.begin && begin + bytes <= r.end; };
  if (active->last != nullptr && inside(*active->last) && (active->last->writable || !write)) return;
  for (const Range& r : the_settings.ranges) {
    if (!inside(r)) continue;
    if (write && !r.writable) fail("global memory: a store to an input");
    active->last = &r;
    return;
  }
  std::ostringstream text;
  text << "global memory: " << (write ? "a store" : "a load") << " of " << bytes << " bytes outside every tensor";
  int64_t nearest = INT64_MAX;
  for (const Range& r : the_settings.ranges) {
    const int64_t distance = begin < r.begin ? r.begin - begin : begin - r.end;
    nearest = std::min(nearest, std::abs(distance));
  }
  text << " (" << nearest << " bytes from the nearest)";
  fail(text.str());
}

void check_shared(uint32_t at, size_t bytes, int thread) {
  if (at % bytes != 0) fail("shared memory: misaligned at byte " + std::to_string(at), thread);
  if (at + bytes > active->shared.size())
    fail("shared memory: byte " + std::to_string(at) + " is beyond its end, " + std::to_string(active->shared.size()),
         thread);
}

std::string byte(uint32_t cell) { return "shared memory: byte " + std::to_string(2 * cell) + " "; }

namespace {

void record_write(uint32_t at, size_t bytes, int16_t thread, bool in_flight) {
  for (uint32_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
    Cell& cell = active->cells[i];
    if (cell.in_flight) fail(byte(i) + "is written while an asynchronous copy to it is under way", thread);
    if (cell.written == active->epoch && cell.writer != thread)
      fail(byte(i) + "was written by thread " + std::to_string(cell.writer) + " since the last barrier, and is again",
           thread);
    if (cell.read == active->epoch && cell.reader != thread)
      fail(byte(i) + "was read by another thread since the last barrier, and is written", thread);
    check_cell(i, thread, true);
    cell.generic = true;
    cell.fences = active->threads[thread].proxy_fences;
    cell.source = ~0u;
    cell.written = active->epoch;
    cell.writer = thread;
    cell.in_flight = in_flight;
  }
}

}  // namespace

const char* shared_read(uint32_t at, size_t bytes, int lane) {
  const int own = active->running->position.thread;
  const auto thread = static_cast<int16_t>(lane < 0 ? own : own / WARP * WARP + lane);
  check_shared(at, bytes, thread);
  for (uint32_t i = at / 2; i < (at + bytes + 1) / 2; ++i) {
    Cell& cell = active->cells[i];
    if (cell.in_flight) fail(byte(i) + "is read while an asynchronous copy to it is under way", thread);
    if (cell.written == active->epoch && cell.writer != thread)
      fail(byte(i) + "was written by thread " + std::to_string(cell.writer) + " since the last barrier, and is read",
           thread);
    check_cell(i, thread, false);
    if (cell.read != active->epoch) {
      cell.read = active->epoch;
      cell.reader = thread;
    } else if (cell.reader != thread) {
      cell.reader = SEVERAL;
    }
  }
  return active->shared.data() + at;
}

char* shared_write(uint32_t at, size_t bytes) {
  const auto thread = static_cast<int16_t>(active->running->position.thread);
  check_shared(at, bytes, thread);
  record_write(at, bytes, thread, false);
  return active->shared.data() + at;
}

void cp_async(uint32_t at, const void* from) {
  const auto thread = static_cast<int16_t>(active->running->position.thread);
  check_shared(at, 16, thread);
  record_write(at, 16, thread, true);
  std::memset(active->shared.data() + at, 0xff, 16);
  AsyncCopy copy{at, {}};
  if (from != nullptr) std::memcpy(copy.bytes, from, 16);
  active->running->open.push_back(copy);
}

void cp_async_commit() {
  active->running->groups.push_back(std::move(active->running->open));
  active->running->open.clear();
}

void cp_async_wait(int groups) {
  Thread& self = *active->running;
  while (self.groups.size() > static_cast<size_t>(groups)) {
    for (const AsyncCopy& copy : self.groups.front()) {
      std::memcpy(active->shared.data() + copy.at, copy.bytes, 16);
      for (uint32_t i = copy.at / 2; i < copy.at / 2 + 8; ++i) {
        active->cells[i].in_flight = false;
        active->cells[i].written = active->epoch;
      }
    }
    self.groups.erase(self.groups.begin());
  }
}

}  // namespace emulator
