// The emulator's bodies of csrc/cuda/ptx/memory.cuh: every access is checked.
#pragma once

#include <cstring>

#include "../emulator.h"

namespace ssconv {

template <class T>
T load(const T* p) {
  emulator::check_global(p, sizeof(T), false);
  return *p;
}
template <class T>
void store(T* p, T value) {
  emulator::check_global(p, sizeof(T), true);
  *p = value;
}

template <class T>
T shared_load(uint32_t smem) {
  T value;
  std::memcpy(&value, emulator::shared_read(smem, sizeof(T)), sizeof(T));
  return value;
}
template <class T>
void shared_store(uint32_t smem, T value) {
  std::memcpy(emulator::shared_write(smem, sizeof(T)), &value, sizeof(T));
}
inline uint32_t shared_address(uint32_t smem) { return smem; }

}  // namespace ssconv
