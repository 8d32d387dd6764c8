/* GGUF's blocks of 32 columns; what they are is said where torch does the same (gguf_blocks.py).
 *
 * The bytes are torch's: every step rounds as IEEE 754 has it, so nothing may be contracted or reassociated
 * (-ffp-contract=off, no -ffast-math). Weights are contiguous bf16, fp16 or fp32.
 */
#include "compiled.h"
#include "_gguf_half.h"

#define WIDTH 32
#define RUN 32 /* blocks whose intermediate results stay in the nearest cache */

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

INLINE void values_of(const void *x, int dtype, size_t count, float *v)
{
    for (size_t i = 0; i < count; i++)
        v[i] = value(x, dtype, i);
}

/* scale, for some a minimum, for some the fifth bits, and the low nibbles: code i beside code i + 16 */
INLINE uint8_t *put_block(uint8_t *out, int bits, float d, const float *minimum, const uint8_t *codes)
{
    put_half(out, d);
    out += 2;
    if (minimum) {
        put_half(out, *minimum);
        out += 2;
    }
    if (bits == 5) {
        uint32_t high = 0;
        for (int i = 0; i < WIDTH; i++)
            high |= (uint32_t)(codes[i] >> 4 & 1) << i;
        for (int i = 0; i < 4; i++)
            out[i] = (uint8_t)(high >> 8 * i);
        out += 4;
    }
    for (int i = 0; i < WIDTH / 2; i++)
        out[i] = (uint8_t)((codes[i] & 15) | codes[i + WIDTH / 2] << 4);
    return out + WIDTH / 2;
}

/* codes around half of 2^bits; the scale is that of the value with the largest magnitude, the first of equals */
INLINE void centred_of(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    const int half = 1 << (bits - 1);
    float v[RUN * WIDTH], d[RUN], inverse[RUN];
    uint8_t codes[RUN * WIDTH];
    for (size_t first = 0; first < blocks; first += RUN) {
        size_t count = blocks - first < RUN ? blocks - first : RUN;
        const void *p = from(x, dtype, first * WIDTH);
        FOR_DTYPE(dtype, values_of(p, D, count * WIDTH, v))
        for (size_t block = 0; block < count; block++) {
            const float *w = v + block * WIDTH;
            /* of the bits as signed numbers the largest is that of the largest value, as unsigned of the smallest */
            int32_t above = 0;
            uint32_t below = 0x80000000;
            for (int i = 0; i < WIDTH; i++) {
                uint32_t bits_of = as_bits(w[i]);
                above = (int32_t)bits_of > above ? (int32_t)bits_of : above;
                below = bits_of > below ? bits_of : below;
            }
            uint32_t negative = below & 0x7FFFFFFF;
            float most = as_float((uint32_t)above > negative ? (uint32_t)above : below);
            if ((uint32_t)above == negative) {
                int at = 0;
                while ((as_bits(w[at]) & 0x7FFFFFFF) != negative)
                    at++;
                most = w[at];
            }
            d[block] = most / (float)-half;
            inverse[block] = reciprocal(d[block]);
        }
        for (size_t block = 0; block < count; block++)
            for (size_t i = block * WIDTH; i < (block + 1) * WIDTH; i++) {
                int code = (int)(v[i] * inverse[block] + ((float)half + 0.5f));
                codes[i] = (uint8_t)(code < 2 * half - 1 ? code : 2 * half - 1);
            }
        for (size_t block = 0; block < count; block++)
            out = put_block(out, bits, d[block], NULL, codes + block * WIDTH);
    }
}

LOOP q4_0(const void *x, int dtype, size_t blocks, uint8_t *out) { centred_of(x, dtype, blocks, 4, out); }

LOOP q5_0(const void *x, int dtype, size_t blocks, uint8_t *out) { centred_of(x, dtype, blocks, 5, out); }

/* codes from the smallest value, which is stored, to the largest; -0 is below +0 */
INLINE void affine_of(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    const int top = (1 << bits) - 1;
    float v[RUN * WIDTH], d[RUN], inverse[RUN], least[RUN];
    uint8_t codes[RUN * WIDTH];
    for (size_t first = 0; first < blocks; first += RUN) {
        size_t count = blocks - first < RUN ? blocks - first : RUN;
        const void *p = from(x, dtype, first * WIDTH);
        FOR_DTYPE(dtype, values_of(p, D, count * WIDTH, v))
        for (size_t block = 0; block < count; block++) {
            /* bits of negative numbers: below all others as signed ones, above as unsigned, in falling order */
            int32_t above = INT32_MIN;
            uint32_t most = 0, fewest = UINT32_MAX;
            for (size_t i = block * WIDTH; i < (block + 1) * WIDTH; i++) {
                uint32_t bits_of = as_bits(v[i]);
                above = (int32_t)bits_of > above ? (int32_t)bits_of : above;
                most = bits_of > most ? bits_of : most;
                fewest = bits_of < fewest ? bits_of : fewest;
            }
            least[block] = as_float(most >> 31 ? most : fewest);
            d[block] = (as_float(above < 0 ? fewest : (uint32_t)above) - least[block]) / (float)top;
            inverse[block] = reciprocal(d[block]);
        }
        for (size_t block = 0; block < count; block++)
            for (size_t i = block * WIDTH; i < (block + 1) * WIDTH; i++) {
                float steps = inverse[block] == 0 ? 0 : (v[i] - least[block]) * inverse[block];
                int code = (int)(steps + 0.5f);
                codes[i] = (uint8_t)(code < top ? code : top);
            }
        for (size_t block = 0; block < count; block++)
            out = put_block(out, bits, d[block], least + block, codes + block * WIDTH);
    }
}

LOOP q4_1(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_of(x, dtype, blocks, 4, out); }

LOOP q5_1(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_of(x, dtype, blocks, 5, out); }
