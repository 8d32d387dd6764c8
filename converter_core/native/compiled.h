/* What loops over elements share: the dtypes of weights, and a version for each generation of processors. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* one version for each generation of x86, chosen when the library is loaded */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define LOOP __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"))) void
#else
#define LOOP void
#endif
#define INLINE static inline __attribute__((always_inline))

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "weights are stored in little-endian order"
#endif

/* What the loader compares before it calls anything; see ABI in loader.py. */
const int converter_abi = 3;

enum { BF16, F16, F32 };

/* a body of its own for each dtype, in which it is a constant */
#define FOR_DTYPE(dtype, call) \
    switch (dtype) { \
    case BF16: { enum { D = BF16 }; call; break; } \
    case F16: { enum { D = F16 }; call; break; } \
    default: { enum { D = F32 }; call; } \
    }

INLINE float as_float(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

INLINE uint32_t as_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }

INLINE const void *from(const void *x, int dtype, size_t i) { return (const char *)x + i * (dtype == F32 ? 4 : 2); }

INLINE uint32_t magnitude_bits(const void *x, int dtype, size_t i)
{
    return dtype == F32 ? ((const uint32_t *)x)[i] & 0x7FFFFFFF : ((const uint16_t *)x)[i] & 0x7FFF;
}

INLINE uint32_t sign(const void *x, int dtype, size_t i)
{
    return dtype == F32 ? ((const uint32_t *)x)[i] >> 31 : ((const uint16_t *)x)[i] >> 15;
}

INLINE float widened(uint32_t magnitude, int dtype)
{
    if (dtype == F32)
        return as_float(magnitude);
    if (dtype == BF16)
        return as_float(magnitude << 16);
    return as_float(magnitude << 13) * 0x1p112f; /* fp16: the exponents differ by 127 - 15; exact, subnormals too */
}

INLINE float magnitude(const void *x, int dtype, size_t i) { return widened(magnitude_bits(x, dtype, i), dtype); }

INLINE float value(const void *x, int dtype, size_t i)
{
    return as_float(as_bits(magnitude(x, dtype, i)) | sign(x, dtype, i) << 31);
}
