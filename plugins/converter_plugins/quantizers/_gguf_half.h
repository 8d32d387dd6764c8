/* fp16 as GGUF's blocks hold their scales. */
#pragma once

INLINE int is_finite(float value) { return (as_bits(value) & 0x7F800000) != 0x7F800000; }

/* Rounded to nearest even, saturated at 65504: an infinite scale would make NaN of the block's zeros. */
INLINE uint16_t half_bits(float value)
{
    uint32_t bits = as_bits(value), size = bits & 0x7FFFFFFF;
    uint32_t sign = bits >> 16 & 0x8000;
    if (size >= 0x477FF000) /* 65520, from which on it would be infinite */
        return (uint16_t)(sign | 0x7BFF);
    if (size < 0x38800000) /* 2^-14: below, the step is 2^-24, that of float32 numbers from 1/2 on */
        return (uint16_t)(sign | (as_bits(as_float(size) + 0.5f) - as_bits(0.5f)));
    return (uint16_t)(sign | ((size - 0x38000000 + 0xFFF + (size >> 13 & 1)) >> 13));
}

INLINE float half_value(uint16_t half)
{
    float size = as_float((uint32_t)(half & 0x7FFF) << 13) * 0x1p112f;
    return half & 0x8000 ? -size : size;
}

INLINE void put_half(uint8_t *out, float value)
{
    uint16_t half = half_bits(value);
    out[0] = (uint8_t)half;
    out[1] = (uint8_t)(half >> 8);
}
