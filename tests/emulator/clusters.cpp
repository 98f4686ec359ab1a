// A small kernel in which the blocks of a cluster copy to each other, for tests/support/cluster_checks.py. `faults`
// names what it leaves out or does wrong.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cuda/launch_kernel.cuh"
#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/threads.cuh"
#include "cuda/ptx/tma.cuh"

namespace py = pybind11;
using namespace ssconv;

namespace {

struct ShareParams {
  const char* source;  // rounds of 2 * BYTES
  char* out;           // (block, round, 2 * BYTES)
  int rounds;
  std::string faults;
  bool has(const char* one) const { return faults.find(one) != std::string::npos; }
};

// Each of two blocks copies half of every round's bytes to both; both write all of them to `out`.
struct Share {
  using Params = ShareParams;
  static constexpr int THREADS = 64, BLOCKS = 1, BYTES = 256, FULL = 2 * BYTES, FREE = FULL + 8, SHARED = FREE + 8;
  static const char* name() { return "share"; }

  static void run(const Params& p) {
    const uint32_t rank = cluster_rank();
    if (thread_index() == 0) {
      mbarrier_init(FULL, 1);
      mbarrier_init(FREE, p.has("one block's arrivals") ? 1 : 2);
      if (!p.has("no fence")) fence_mbarrier_init();
    }
    if (p.has("no barrier of the cluster"))
      sync_threads();
    else
      cluster_sync();
    for (int round = 0; round < p.rounds; ++round) {
      const uint32_t parity = round & 1;
      if (thread_index() == 0) {
        if (!p.has("never waits")) mbarrier_wait(FREE, parity ^ 1);
        mbarrier_arrive_expect_tx(FULL, 2 * BYTES);
        const uint32_t half = p.has("the same half") ? 0 : rank * BYTES;
        const int blocks = p.has("to itself") ? 1 << rank : p.has("to a third") ? 7 : 3;
        bulk_load_multicast(blocks, half, p.source + round * 2 * BYTES + half, BYTES, FULL);
      }
      mbarrier_wait(FULL, parity);
      if (p.has("freed before it is read") && thread_index() == 0) free(p, rank);
      for (uint32_t at = thread_index() * 16; at < 2 * BYTES; at += THREADS * 16)
        store(reinterpret_cast<Bytes16*>(p.out + (rank * p.rounds + round) * 2 * BYTES + at), shared_load<Bytes16>(at));
      sync_threads();
      if (!p.has("freed before it is read") && thread_index() == 0) free(p, rank);
    }
    if (thread_index() == 0 && !p.has("no wait at the end")) mbarrier_wait(FREE, (p.rounds & 1) ^ 1);
    if (p.has("a barrier for some") && thread_index() % 2 == 0) return;
    if (p.has("a barrier for some") || p.has("barrier at the end")) cluster_sync();
  }

  static void free(const Params& p, uint32_t rank) {
    mbarrier_arrive(FREE);
    if (!p.has("no arrival at the other's")) mbarrier_arrive_cluster(FREE, p.has("of a third") ? 2 : rank ^ 1);
  }
};

}  // namespace

void bind_clusters(py::module_& m) {
  m.def("share", [](uintptr_t source, int rounds, uintptr_t out, const std::string& faults) {
    const ShareParams p = {reinterpret_cast<const char*>(source), reinterpret_cast<char*>(out), rounds, faults};
    const Grid grid = {faults.find("half a cluster") != std::string::npos ? 3u : 2u, 1, 1};
    if (const char* error = launch_clusters<Share>(p, grid, 2, Share::SHARED, nullptr)) throw std::runtime_error(error);
  });
}
