// Converts bf16 and fp16 to float32 and back (round to nearest even), single values and strided runs of them.

union Bits {
  float f;
  uint32_t u;
};

inline float from_bf16(uint16_t h) {
  Bits b;
  b.u = uint32_t(h) << 16;
  return b.f;
}

inline uint16_t to_bf16(float f) {
  Bits b;
  b.f = f;
  const uint32_t rounded = (b.u + 0x7fffu + ((b.u >> 16) & 1)) >> 16;
  const bool nan = (b.u & 0x7fffffffu) > 0x7f800000u;
  return uint16_t(nan ? (b.u >> 16) | 0x40 : rounded);
}

inline float from_f16(uint16_t h) {
  Bits b, scale;
  scale.u = (254u - 15u) << 23;  // 2^112: moves the exponent's bias, denormals included
  b.u = (h & 0x7fffu) << 13;
  b.f *= scale.f;
  if (b.f >= 65536.f) b.u |= 255u << 23;  // infinity and NaN
  b.u |= (h & 0x8000u) << 16;
  return b.f;
}

inline uint16_t to_f16(float f) {
  Bits b, magic;
  b.f = f;
  const uint32_t sign = b.u & 0x80000000u;
  b.u ^= sign;
  uint32_t h;
  if (b.u >= (143u << 23)) {  // 65536 and more, infinity, NaN
    h = b.u > (255u << 23) ? 0x7e00u : 0x7c00u;
  } else if (b.u < (113u << 23)) {  // becomes a denormal: the addition rounds it
    magic.u = (127u - 15u + 23u - 10u + 1u) << 23;
    b.f += magic.f;
    h = b.u - magic.u;
  } else {
    h = (b.u - ((127u - 15u) << 23) + 0xfffu + ((b.u >> 13) & 1)) >> 13;
  }
  return uint16_t(h | (sign >> 16));
}

inline float load(const void* p, Type type, int64_t i) {
  if (type == Type::f32) return static_cast<const float*>(p)[i];
  const uint16_t h = static_cast<const uint16_t*>(p)[i];
  return type == Type::bf16 ? from_bf16(h) : from_f16(h);
}

// Reads `count` elements, `step` elements apart, as float32.
inline void read_run(const void* base, Type type, int64_t at, int64_t step, int64_t count, float* to) {
  if (type == Type::f32) {
    const float* p = static_cast<const float*>(base) + at;
    if (step == 1)
      for (int64_t i = 0; i < count; ++i) to[i] = p[i];
    else
      for (int64_t i = 0; i < count; ++i) to[i] = p[i * step];
  } else if (type == Type::bf16) {
    const uint16_t* p = static_cast<const uint16_t*>(base) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = from_bf16(p[i * step]);
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(base) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = from_f16(p[i * step]);
  }
}

// Writes float32 values as `count` elements, `step` elements apart.
inline void write_run(const float* from, int64_t count, void* base, Type type, int64_t at, int64_t step) {
  if (type == Type::f32) {
    float* p = static_cast<float*>(base) + at;
    for (int64_t i = 0; i < count; ++i) p[i * step] = from[i];
  } else if (type == Type::bf16) {
    uint16_t* p = static_cast<uint16_t*>(base) + at;
    for (int64_t i = 0; i < count; ++i) p[i * step] = to_bf16(from[i]);
  } else {
    uint16_t* p = static_cast<uint16_t*>(base) + at;
    for (int64_t i = 0; i < count; ++i) p[i * step] = to_f16(from[i]);
  }
}
