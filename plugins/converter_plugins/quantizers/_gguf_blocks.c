/* GGUF's blocks of 32 columns, a block in one pass; what they are is said where torch does the same (gguf_blocks.py).
 *
 * The bytes are torch's: every step rounds as IEEE 754 has it, so nothing may be contracted or reassociated
 * (-ffp-contract=off, no -ffast-math). Weights are contiguous bf16, fp16 or fp32.
 */
#include "compiled.h"
#include "_gguf_half.h"

#define WIDTH 32

/* 1 / d, and 0 where that is no number: a block of zeros, or one that no fp16 scale can hold */
INLINE float reciprocal(float d)
{
    float inverse = 1 / d;
    return d != 0 && is_finite(inverse) ? inverse : 0;
}

INLINE void q8_0_of(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    for (size_t block = 0; block < blocks; block++, out += 2 + WIDTH) {
        const void *p = from(x, dtype, block * WIDTH);
        float v[WIDTH];
        uint32_t most = 0;
        for (int i = 0; i < WIDTH; i++) {
            uint32_t bits = magnitude_bits(p, dtype, i);
            most = bits > most ? bits : most;
        }
        float d = widened(most, dtype) / 127, inverse = reciprocal(d);
        for (int i = 0; i < WIDTH; i++)
            v[i] = magnitude(p, dtype, i) * inverse;
        put_half(out, d);
        for (int i = 0; i < WIDTH; i++) {
            int whole = (int)v[i];
            int code = whole + (v[i] - (float)whole >= 0.5f);
            out[2 + i] = (uint8_t)(sign(p, dtype, i) ? -code : code);
        }
    }
}

LOOP q8_0(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, q8_0_of(x, D, blocks, out))
}

/* two codes to a byte, the first half of the block in the low nibbles */
INLINE void put_nibbles(uint8_t *out, const uint8_t *codes)
{
    for (int i = 0; i < WIDTH / 2; i++)
        out[i] = (uint8_t)((codes[i] & 15) | codes[i + WIDTH / 2] << 4);
}

INLINE void put_high_bits(uint8_t *out, const uint8_t *codes)
{
    uint32_t high = 0;
    for (int i = 0; i < WIDTH; i++)
        high |= (uint32_t)(codes[i] >> 4 & 1) << i;
    for (int i = 0; i < 4; i++)
        out[i] = (uint8_t)(high >> 8 * i);
}

/* codes around half of 2^bits; the scale is that of the value with the largest magnitude, the first of equals */
INLINE void centred_of(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    const int half = 1 << (bits - 1);
    uint8_t codes[WIDTH];
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * WIDTH);
        uint32_t most = 0, at = WIDTH;
        for (uint32_t i = 0; i < WIDTH; i++) {
            uint32_t size = magnitude_bits(p, dtype, i);
            most = size > most ? size : most;
        }
        for (uint32_t i = 0; i < WIDTH; i++) {
            uint32_t here = magnitude_bits(p, dtype, i) == most ? i : WIDTH;
            at = here < at ? here : at;
        }
        float d = value(p, dtype, at) / (float)-half, inverse = reciprocal(d);
        for (int i = 0; i < WIDTH; i++) {
            int code = (int)(value(p, dtype, i) * inverse + ((float)half + 0.5f));
            codes[i] = (uint8_t)(code < 2 * half - 1 ? code : 2 * half - 1);
        }
        put_half(out, d);
        out += 2;
        if (bits == 5) {
            put_high_bits(out, codes);
            out += 4;
        }
        put_nibbles(out, codes);
        out += WIDTH / 2;
    }
}

LOOP q4_0(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, centred_of(x, D, blocks, 4, out))
}

LOOP q5_0(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, centred_of(x, D, blocks, 5, out))
}

/* numbers as integers in the same order, -0 below +0; its own inverse */
INLINE int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7FFFFFFF); }

/* codes from the smallest value, which is stored, to the largest */
INLINE void affine_of(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    const int top = (1 << bits) - 1;
    uint8_t codes[WIDTH];
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * WIDTH);
        int32_t low = INT32_MAX, high = INT32_MIN;
        for (int i = 0; i < WIDTH; i++) {
            int32_t key = ordered((int32_t)as_bits(value(p, dtype, i)));
            low = key < low ? key : low;
            high = key > high ? key : high;
        }
        float least = as_float((uint32_t)ordered(low)), most = as_float((uint32_t)ordered(high));
        float d = (most - least) / (float)top, inverse = reciprocal(d);
        for (int i = 0; i < WIDTH; i++) {
            float steps = inverse == 0 ? 0 : (value(p, dtype, i) - least) * inverse;
            int code = (int)(steps + 0.5f);
            codes[i] = (uint8_t)(code < top ? code : top);
        }
        put_half(out, d);
        put_half(out + 2, least);
        out += 4;
        if (bits == 5) {
            put_high_bits(out, codes);
            out += 4;
        }
        put_nibbles(out, codes);
        out += WIDTH / 2;
    }
}

LOOP q4_1(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, affine_of(x, D, blocks, 4, out))
}

LOOP q5_1(const void *x, int dtype, size_t blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, affine_of(x, D, blocks, 5, out))
}
