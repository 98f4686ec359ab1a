// Chooses among the compiled instruction sets the best that this processor has.
#include <string.h>

#include "cpu.h"

namespace ssconv {

namespace generic {
extern const Kernels KERNELS;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels KERNELS;
}
namespace avx512 {
extern const Kernels KERNELS;
}
#endif

const Kernels* cpu_kernels(const char* name) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (strcmp(name, "avx2") == 0) return fma ? &avx2::KERNELS : nullptr;
  if (strcmp(name, "avx512") == 0)
    return fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? &avx512::KERNELS
               : nullptr;
#endif
  return strcmp(name, "generic") == 0 ? &generic::KERNELS : nullptr;
}

const Kernels* cpu_kernels() {
  const Kernels* best = cpu_kernels("avx512");
  if (best == nullptr) best = cpu_kernels("avx2");
  return best != nullptr ? best : &generic::KERNELS;
}

}  // namespace ssconv
