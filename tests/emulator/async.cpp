// Emulates mbarriers, bulk copies and wgmma by the rules of PTX ISA 9.0, "Asynchronous operations", "Tensors",
// "mbarrier" and "wgmma".
#include <algorithm>
#include <cstring>

#include "block.h"

namespace emulator {

// A wgmma in flight: the cells that it reads, and the accumulators that its warps receive at their wait.
struct Wgmma {
  std::vector<uint32_t> chunks;  // of 16 bytes
  float* accumulators[GROUP];
  int n;
  int warps = GROUP / WARP;  // that have not waited for it yet
};

namespace {

// The future values of a thread's accumulators; `users`: wgmmas in flight that add to them.
struct Pending {
  std::vector<float> values;
  int users = 0;
};
std::map<float*, Pending> pending;                // by the address of a thread's accumulators
std::map<float*, uint64_t> returned;              // time of their last wait
std::map<const Thread*, uint64_t> fenced;         // time of the thread's last wgmma.fence
uint64_t now = 0;
constexpr uint32_t POISON = 0xffffffff;

std::string at_byte(uint32_t at) { return "at byte " + std::to_string(at); }

Mbarrier& mbarrier(uint32_t at) {
  auto found = active->mbarriers.find(at);
  if (found == active->mbarriers.end()) fail("an mbarrier " + at_byte(at) + " that was never initialised");
  Mbarrier& b = found->second;
  if (b.initialiser != active->running->position.thread && b.epoch == active->epoch)
    fail("the mbarrier " + at_byte(at) + " is used with no barrier since its initialisation");
  return b;
}

// An mbarrier of another block.
Mbarrier& mbarrier_of(const Block& block, uint32_t at) {
  if (block.done == block.count) fail("a block that has ended is reached into");
  auto& all = const_cast<Block&>(block).mbarriers;
  const auto found = all.find(at);
  if (found == all.end()) fail("an mbarrier " + at_byte(at) + " of another block that was never initialised");
  if (found->second.cluster_epoch == cluster_epoch)
    fail("the mbarrier " + at_byte(at) +
         " of another block is used with no barrier of the cluster since its initialisation");
  return found->second;
}

// Runs body() with `block` as the active block.
template <class Body>
void inside(Block& block, Body body) {
  Block* const own = active;
  active = &block;
  body();
  active = own;
}

void complete(uint32_t at, Mbarrier& b) {
  if (b.pending == 0 && b.bytes < 0) fail("more bytes arrive at the mbarrier " + at_byte(at) + " than it expects");
  if (b.pending > 0 || b.bytes != 0) return;
  ++b.phase;
  b.pending = b.count;
  for (int t = 0; t < active->count; ++t) {
    Thread& thread = active->threads[t];
    if (thread.state == State::mbarrier && thread.waiting == at) make_ready(thread);
  }
}

// Checks that the async proxy sees a thread's store to the cell.
void check_proxy(const Block& block, const Cell& cell, uint32_t i, const char* what) {
  if (cell.generic && block.threads[cell.writer].proxy_fences == cell.fences)
    fail(byte(i) + "was stored by thread " + std::to_string(cell.writer) + " with no proxy fence since, and is " +
         what);
}

void begin_write(Block& block, uint32_t at, uint32_t bytes, uint32_t barrier) {
  for (uint32_t i = at / 2; i < (at + bytes) / 2; ++i) {
    Cell& cell = block.cells[i];
    if (cell.in_flight) fail(byte(i) + "is written by two asynchronous copies at once");
    if (cell.locked > 0) fail(byte(i) + "is written by a bulk copy while a wgmma reads it");
    if (cell.mbarrier) fail(byte(i) + "is an mbarrier, and a bulk copy writes it");
    check_proxy(block, cell, i, "written by a bulk copy");
    cell.in_flight = true;
    cell.generic = false;
    cell.written = cell.read = 0;
    cell.source = barrier;
    cell.phase = block.mbarriers[barrier].phase;
  }
  std::memset(block.shared.data() + at, 0xff, bytes);
}

Transfer& begin_transfer(Block& block, uint32_t at, uint32_t barrier) {
  Mbarrier& b = &block == active ? mbarrier(barrier) : mbarrier_of(block, barrier);
  if (!b.fenced) fail("a bulk copy to the mbarrier " + at_byte(barrier) + ", whose initialisation no fence made known");
  const auto thread = static_cast<int16_t>(active->running->position.thread);
  block.transfers.push_back({at, barrier, thread, {}, {}, &block != active});
  return block.transfers.back();
}

uint32_t swizzled(uint32_t at, int span) {
  return span == 0 ? at : at ^ ((at >> 3) & (span - 16));
}

}  // namespace

void reset_async() {
  active->mbarriers.clear();
  active->transfers.clear();
  for (Warp& w : active->warps) {
    w.open.clear();
    w.groups.clear();
  }
  for (Warpgroup& g : active->warpgroups) g.arrived = 0;
  for (Thread& t : active->threads) {
    t.known_phases.clear();
    t.proxy_fences = 0;
  }
  pending.clear();
  returned.clear();
  fenced.clear();
}

void check_async_done() {
  const Warp& warp = active->warps[active->running->position.thread / WARP];
  if (!warp.open.empty()) fail("wgmmas that were never committed");
  if (!warp.groups.empty()) fail("wgmmas that were never waited for");
}

void end_block() {
  if (!active->transfers.empty()) fail("a block ended while a bulk copy was under way");
  if (cluster.size() == 1) return;
  for (const auto& [at, b] : active->mbarriers)
    if (b.pending != b.count)
      fail("a block of a cluster ended before all had arrived at the mbarrier " + at_byte(at) +
           ": others reach into it");
}

void share_known_phases() {
  for (auto& [at, b] : active->mbarriers) {
    uint32_t most = 0;
    for (int t = 0; t < active->count; ++t) most = std::max(most, active->threads[t].known_phases[at]);
    for (int t = 0; t < active->count; ++t) active->threads[t].known_phases[at] = most;
  }
}

void check_cell(uint32_t i, int16_t thread, bool write) {
  const Cell& cell = active->cells[i];
  if (cell.mbarrier) fail(byte(i) + "is an mbarrier, and a thread touches it", thread);
  if (write && cell.locked > 0) fail(byte(i) + "is written while a wgmma reads it", thread);
  if (cell.source == ~0u) return;
  auto& known_phases = active->threads[thread].known_phases;
  const auto found = known_phases.find(cell.source);
  if (found == known_phases.end() || found->second <= cell.phase)
    fail(byte(i) + "comes by a bulk copy, and this thread has not waited for that phase of its mbarrier", thread);
}

// ------------------------------------------------------------------------------------------------------- mbarriers

void mbarrier_init(uint32_t at, uint32_t count) {
  check_shared(at, 8, active->running->position.thread);
  for (uint32_t i = at / 2; i < at / 2 + 4; ++i) active->cells[i].mbarrier = true;
  Mbarrier b;
  b.count = b.pending = count;
  b.epoch = active->epoch;
  b.cluster_epoch = cluster_epoch;
  b.initialiser = static_cast<int16_t>(active->running->position.thread);
  active->mbarriers[at] = b;
}

void fence_mbarrier_init() {
  for (auto& [at, b] : active->mbarriers)
    if (b.initialiser == active->running->position.thread) b.fenced = true;
}

void mbarrier_arrive(uint32_t at, uint32_t bytes) {
  Mbarrier& b = mbarrier(at);
  if (b.pending == 0) fail("more arrivals at the mbarrier " + at_byte(at) + " than it counts");
  b.bytes += bytes;
  --b.pending;
  complete(at, b);
  if ((*active->random)() & 1) reschedule();
}

// At another block's mbarrier.
void mbarrier_arrive_cluster(uint32_t at, uint32_t rank) {
  if (rank >= cluster.size()) fail("an mbarrier of a block that the cluster does not have");
  if (&cluster[rank] == active) return mbarrier_arrive(at, 0);
  Mbarrier& b = mbarrier_of(cluster[rank], at);
  if (b.pending == 0) fail("more arrivals at the mbarrier " + at_byte(at) + " of another block than it counts");
  --b.pending;
  inside(cluster[rank], [&] { complete(at, b); });
  if ((*active->random)() & 1) reschedule();
}

void mbarrier_wait(uint32_t at, uint32_t parity) {
  Thread& self = *active->running;
  if ((*active->random)() & 1) reschedule();
  for (;;) {
    Mbarrier& b = mbarrier(at);
    if ((b.phase & 1) != parity) {
      self.known_phases[at] = b.phase;
      return;
    }
    self.waiting = at;
    yield_thread(State::mbarrier);
  }
}

void fence_proxy_async() { ++active->running->proxy_fences; }

// ------------------------------------------------------------------------------------------------------ bulk copies

namespace {

void bulk_load_into(Block& block, uint32_t at, const void* from, uint32_t bytes, uint32_t barrier) {
  if (at % 16 != 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0)
    fail("a bulk copy whose addresses or size are no multiples of 16");
  if (at + bytes > block.shared.size()) fail("a bulk copy beyond the end of shared memory");
  Transfer& t = begin_transfer(block, at, barrier);
  begin_write(block, at, bytes, barrier);
  for (uint32_t i = 0; i < bytes; i += 16) {
    check_global(static_cast<const char*>(from) + i, 16, false);
    t.offsets.push_back(at + i);
  }
  t.bytes.assign(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
}

}  // namespace

void bulk_load(uint32_t at, const void* from, uint32_t bytes, uint32_t barrier) {
  bulk_load_into(*active, at, from, bytes, barrier);
}

void bulk_load_multicast(uint16_t blocks, uint32_t at, const void* from, uint32_t bytes, uint32_t barrier) {
  if (blocks == 0 || blocks >> cluster.size() != 0) fail("a bulk copy to blocks that the cluster does not have");
  for (size_t rank = 0; rank < cluster.size(); ++rank)
    if (blocks >> rank & 1) bulk_load_into(cluster[rank], at, from, bytes, barrier);
}

void tma_load(uint32_t at, const Map& map, uint32_t barrier, const int32_t (&coordinate)[5],
              const uint16_t (&offset)[3]) {
  if (at % 128 != 0) fail("a tensor copy to an address that is not a multiple of 128");
  const uint32_t row = map.box[0] * map.element;
  if (row % 16 != 0 || (map.swizzle != 0 && row != map.swizzle))
    fail("a tensor copy whose rows its swizzle does not hold");
  uint32_t rows = map.box[1];
  if (!map.im2col) rows *= map.box[2] * map.box[3] * map.box[4];
  if (at + rows * row > active->shared.size()) fail("a tensor copy beyond the end of shared memory");
  Transfer& t = begin_transfer(*active, at, barrier);
  begin_write(*active, at, rows * row, barrier);
  t.bytes.assign(rows * row, 0);
  Trace* const trace = settings().trace.get();
  if (trace != nullptr) trace->copies.push_back({map, {coordinate, coordinate + 5}, {offset, offset + 3}, {}});
  int32_t base[4] = {coordinate[1], coordinate[2], coordinate[3],
                     coordinate[4]};  // of the pixel: W, H, D, N, before offsets
  for (uint32_t r = 0; r < rows; ++r) {
    bool inside = true;
    const char* from = map.base;
    int32_t voxel = 0;
    for (int i = 3; i >= 0; --i) {
      const int32_t x = base[i] + (map.im2col && i < 3 ? offset[i] : 0);
      inside = inside && x >= 0 && x < map.size[1 + i];
      from += x * map.stride[i];
      voxel = voxel * map.size[1 + i] + x;
    }
    if (trace != nullptr) trace->copies.back().voxels.push_back(inside ? voxel : -1);
    for (int32_t c = 0; inside && c < map.box[0]; ++c) {
      const int32_t channel = coordinate[0] + c;
      if (channel < 0 || channel >= map.size[0]) continue;
      check_global(from + channel * map.element, map.element, false);
      std::memcpy(&t.bytes[r * row + c * map.element], from + channel * map.element, map.element);
    }
    for (uint32_t b = 0; b < row; b += 16) t.offsets.push_back(swizzled(at + r * row + b, map.swizzle));
    for (int i = 0; i < 4; ++i) {  // the next pixel
      if (map.im2col) {
        base[i] += i < 3 ? map.step[i] : 1;
        if (i == 3 || base[i] <= map.size[1 + i] - 1 + map.upper[i]) break;
        base[i] = map.lower[i];
      } else {
        if (++base[i] < coordinate[1 + i] + map.box[1 + i]) break;
        base[i] = coordinate[1 + i];
      }
    }
  }
}

void complete_transfer(size_t number) {
  const Transfer t = std::move(active->transfers[number]);
  active->transfers.erase(active->transfers.begin() + number);
  active->running = &active->threads[t.thread];
  for (size_t i = 0; i < t.offsets.size(); ++i) {
    std::memcpy(active->shared.data() + t.offsets[i], &t.bytes[16 * i], 16);
    for (uint32_t c = t.offsets[i] / 2; c < t.offsets[i] / 2 + 8; ++c) active->cells[c].in_flight = false;
  }
  Mbarrier& b = active->mbarriers[t.mbarrier];
  b.bytes -= static_cast<int64_t>(t.bytes.size());
  if (b.bytes < 0 && !t.from_another)
    fail("more bytes arrive at the mbarrier " + at_byte(t.mbarrier) + " than it expects");
  complete(t.mbarrier, b);
}

// ------------------------------------------------------------------------------------------------------------ wgmma

namespace {

// An operand of wgmma in shared memory, decoded from its smem descriptor. It may start in any row of a swizzle atom.
// PTX's base offset is (start of the atom >> 7) & 7; with 0 the atoms lie as a bulk copy writes them, by the address
// bits. That is an assumption: no GPU has confirmed it.
struct Operand {
  uint32_t start, leading, stride;
  int span;  // of the swizzle, bytes
  bool transposed;

  Operand(uint64_t d, bool t)
      : start(static_cast<uint32_t>(d & 0x3fff) << 4), leading(static_cast<uint32_t>(d >> 16 & 0x3fff) << 4),
        stride(static_cast<uint32_t>(d >> 32 & 0x3fff) << 4), transposed(t) {
    constexpr int SPANS[4] = {0, 128, 64, 32};
    span = SPANS[d >> 62];
    if ((d >> 49 & 7) != 0) fail("a matrix descriptor with a base offset, which is not emulated");
  }

  // The offset of the element at index `row` of M or N and k; chunks of 16 bytes are contiguous.
  uint32_t element(int row, int k) const {
    uint32_t at = start;
    if (!transposed && span == 0) at += row / 8 * stride + row % 8 * 16 + k / 8 * leading + k % 8 * 2;
    if (!transposed && span != 0) at += row / 8 * stride + row % 8 * span + k * 2;
    if (transposed && span == 0) at += row / 8 * stride + row % 8 * 2 + k / 8 * leading + k % 8 * 16;
    if (transposed && span != 0) {
      const int wide = span / 2;
      at += row / wide * leading + row % wide * 2 + k / 8 * stride + k % 8 * span;
    }
    return swizzled(at, span);
  }
};

// Reads the operand (rows, 16) as floats; locks its cells and records them in m.
void read_operand(const Operand& o, int rows, float (*value)(uint16_t), std::vector<float>& out, Wgmma& m, int first) {
  out.resize(rows * 16);
  for (int outer = 0; outer < (o.transposed ? 16 : rows); ++outer) {
    for (int inner = 0; inner < (o.transposed ? rows : 16); inner += 8) {
      const uint32_t at = o.transposed ? o.element(inner, outer) : o.element(outer, inner);
      check_shared(at, 16, first);
      for (uint32_t i = at / 2; i < at / 2 + 8; ++i) {
        Cell& cell = active->cells[i];
        if (cell.in_flight) fail(byte(i) + "is read by a wgmma while an asynchronous copy to it is under way", first);
        check_proxy(*active, cell, i, "read by a wgmma");
        if (cell.written == active->epoch)  // most warps that read it are not the writer's
          fail(byte(i) + "was written since the last barrier, and is read by a wgmma", first);
        for (int w = 0; w < GROUP; w += WARP) check_cell(i, static_cast<int16_t>(first + w), false);
        ++cell.locked;
      }
      m.chunks.push_back(at);
      for (int e = 0; e < 8; ++e) {
        uint16_t bits;
        std::memcpy(&bits, active->shared.data() + at + 2 * e, 2);
        out[o.transposed ? (inner + e) * 16 + outer : outer * 16 + inner + e] = value(bits);
      }
    }
  }
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// Executes a wgmma: all threads of the warp group have arrived.
void run_wgmma(void* const* threads, int first) {
  const auto& one = *static_cast<const WgmmaArgs*>(threads[0]);
  const int n = one.n;
  for (int t = 1; t < GROUP; ++t) {
    const auto& m = *static_cast<const WgmmaArgs*>(threads[t]);
    if (m.a != one.a || m.b != one.b || m.n != n || m.add != one.add)
      fail("the threads of a warpgroup disagree on a wgmma", first + t);
  }
  if (settings().trace != nullptr) settings().trace->products.push_back(one);
  auto matrix = std::make_shared<Wgmma>();
  matrix->n = n;
  std::vector<float> a, b;
  read_operand(Operand(one.a, one.a_transposed), 64, one.value, a, *matrix, first);
  read_operand(Operand(one.b, one.b_transposed), n, one.value, b, *matrix, first);
  for (int t = 0; t < GROUP; ++t) {
    float* const d = static_cast<const WgmmaArgs*>(threads[t])->d;
    matrix->accumulators[t] = d;
    Pending& p = pending[d];
    if (p.users == 0) {
      if (fenced[&active->threads[first + t]] <= returned[d])
        fail("accumulators enter a wgmma with no wgmma.fence since they were registers", first + t);
      p.values.assign(d, d + n / 2);
      std::memset(d, 0xff, n / 2 * sizeof(float));
    } else if (p.values.size() != static_cast<size_t>(n / 2)) {
      fail("accumulators of a wgmma under way enter one of another shape", first + t);
    }
    ++p.users;
    for (int i = 0; i < n / 2; ++i) {
      const float* const x = &a[(t / WARP * 16 + t % WARP / 4 + i / 2 % 2 * 8) * 16];
      const float* const y = &b[(i / 4 * 8 + t % 4 * 2 + i % 2) * 16];
      float sum = 0;
      for (int k = 0; k < 16; ++k) sum += x[k] * y[k];
      p.values[i] = one.add ? p.values[i] + sum : sum;
    }
  }
  for (int w = 0; w < GROUP / WARP; ++w) active->warps[first / WARP + w].open.push_back(matrix);
}

// Completes a wgmma for one warp, which has waited for it.
void finish_wgmma(Wgmma& m, int first_of_warp) {
  for (int l = 0; l < WARP; ++l) {
    float* const d = m.accumulators[(first_of_warp + l) % GROUP];
    Pending& p = pending[d];
    for (int i = 0; i < m.n / 2; ++i)
      if (bits_of(d[i]) != POISON) fail("accumulators were touched while a wgmma was under way", first_of_warp + l);
    if (--p.users > 0) continue;
    std::copy(p.values.begin(), p.values.end(), d);
    pending.erase(d);
    returned[d] = ++now;
  }
  if (--m.warps > 0) return;
  for (const uint32_t at : m.chunks)
    for (uint32_t i = at / 2; i < at / 2 + 8; ++i) --active->cells[i].locked;
}

}  // namespace

void wgmma_fence() { fenced[active->running] = ++now; }

void wgmma(const WgmmaArgs& m) {
  Thread& self = *active->running;
  const int thread = self.position.thread, first = thread / GROUP * GROUP;
  if (first + GROUP > active->count) fail("a wgmma of less than a warpgroup");
  Warpgroup& group = active->warpgroups[thread / GROUP];
  self.operation = "wgmma";
  group.threads[thread - first] = const_cast<WgmmaArgs*>(&m);
  if (++group.arrived < GROUP) {
    yield_thread(State::collective);
    return;
  }
  group.arrived = 0;
  run_wgmma(group.threads, first);
  for (int t = first; t < first + GROUP; ++t)
    if (&active->threads[t] != &self) make_ready(active->threads[t]);
}

void wgmma_commit() {
  collective("wgmma.commit_group", nullptr, [](void* const*) {
    Warp& warp = active->warps[active->running->position.thread / WARP];
    warp.groups.push_back(std::move(warp.open));
    warp.open.clear();
  });
}

void wgmma_wait(int groups) {
  int wanted = groups;
  if ((*active->random)() & 1) reschedule();
  collective("wgmma.wait_group", &wanted, [](void* const* lanes) {
    const int thread = active->running->position.thread;
    Warp& warp = active->warps[thread / WARP];
    const size_t keep = *static_cast<int*>(lanes[0]);
    for (; warp.groups.size() > keep; warp.groups.pop_front())
      for (const auto& matrix : warp.groups.front()) finish_wgmma(*matrix, thread / WARP * WARP);
  });
}

}  // namespace emulator
