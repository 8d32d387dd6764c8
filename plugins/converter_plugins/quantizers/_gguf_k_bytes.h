/* From scales and weights to the bytes of K-quants, laid out as in ggml's ggml-common.h. */
#pragma once

/* codes of one group; `per_step` is 0 for a scale of 0 */
INLINE void codes_of(int width, float v[][LANES], int lane, float s, float m, float low, float high, uint8_t *out)
{
    float per_step = inverse(s);
    for (int i = 0; i < width; i++)
        out[i] = (uint8_t)(int)(nearest((v[i][lane] + m) * per_step, low, high) - low);
}

/* 6-bit scales and minima of eight groups in 12 bytes */
INLINE void put_scales(uint8_t *out, const float *scale, const float *low)
{
    for (int i = 0; i < 4; i++) {
        int s = (int)scale[i], m = (int)low[i], s4 = (int)scale[i + 4], m4 = (int)low[i + 4];
        out[i] = (uint8_t)(s | s4 >> 4 << 6);
        out[i + 4] = (uint8_t)(m | m4 >> 4 << 6);
        out[i + 8] = (uint8_t)((s4 & 15) | (m4 & 15) << 4);
    }
}

/* 6-bit scales of sixteen groups, around 32, in 12 bytes */
INLINE void put_signed_scales(uint8_t *out, const float *scale)
{
    int code[16];
    for (int i = 0; i < 16; i++)
        code[i] = (int)scale[i] + 32;
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)((code[i] & 15) | (code[i + 8] & 15) << 4);
    for (int i = 0; i < 4; i++)
        out[8 + i] = (uint8_t)(code[i] >> 4 | code[i + 4] >> 4 << 2 | code[i + 8] >> 4 << 4 | code[i + 12] >> 4 << 6);
}

/* four codes to a byte, those of 32 columns apart together; of each run of 128 columns */
INLINE void put_pairs_of_bits(uint8_t *out, const uint8_t *codes, int shift)
{
    for (int run = 0; run < 2; run++, codes += 128, out += 32)
        for (int i = 0; i < 32; i++)
            out[i] = (uint8_t)((codes[i] >> shift & 3) | (codes[i + 32] >> shift & 3) << 2
                               | (codes[i + 64] >> shift & 3) << 4 | (codes[i + 96] >> shift & 3) << 6);
}

/* bit `place` of the codes of eight runs of 32 columns */
INLINE void put_bit(uint8_t *out, const uint8_t *codes, int place)
{
    for (int i = 0; i < 32; i++) {
        int byte = 0;
        for (int run = 0; run < 8; run++)
            byte |= (codes[run * 32 + i] >> place & 1) << run;
        out[i] = (uint8_t)byte;
    }
}

/* low nibbles: of each run of 2 `apart` columns the first half low, the second high */
INLINE void put_low_nibbles(uint8_t *out, const uint8_t *codes, int apart)
{
    for (int run = 0; run < BLOCK; run += 2 * apart)
        for (int i = 0; i < apart; i++)
            *out++ = (uint8_t)((codes[run + i] & 15) | (codes[run + apart + i] & 15) << 4);
}

INLINE void affine_of(const void *x, int dtype, size_t blocks, int width, int bits, uint8_t *out)
{
    const int groups = BLOCK / width, together = LANES / groups;
    const float top = (float)((1 << bits) - 1), scale_top = width == 16 ? 15 : 63;
    const float unit = width == 16 ? 0x1p18f : bits == 4 ? 0x1p15f : 0x1p14f;
    float v[32][LANES], scale[LANES], low[LANES], d[2], dmin[2];
    uint8_t codes[BLOCK];
    for (size_t block = 0; block < blocks; block += (size_t)together) {
        int count = blocks - block < (size_t)together ? (int)(blocks - block) : together;
        load(from(x, dtype, block * BLOCK), dtype, count * groups, width, v);
        affine_search(width, groups, top, scale_top, unit, v, scale, low, d, dmin);
        for (int one = 0; one < count; one++) {
            const float *s = scale + one * groups, *m = low + one * groups;
            for (int k = 0; k < groups; k++)
                codes_of(width, v, one * groups + k, d[one] * s[k], dmin[one] * m[k], 0, top, codes + k * width);
            if (width == 16) {
                for (int k = 0; k < groups; k++)
                    *out++ = (uint8_t)((int)s[k] | (int)m[k] << 4);
                put_pairs_of_bits(out, codes, 0);
                out += 64;
            }
            put_half(out, d[one]);
            put_half(out + 2, dmin[one]);
            out += 4;
            if (width == 16)
                continue;
            put_scales(out, s, m);
            out += 12;
            if (bits == 5) {
                put_bit(out, codes, 4);
                out += 32;
            }
            put_low_nibbles(out, codes, 32);
            out += 128;
        }
    }
}

INLINE void symmetric_of(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    const float half = (float)(1 << (bits - 1)), least = bits == 3 ? -32 : -128, most = bits == 3 ? 31 : 127;
    const float unit = 0x1p20f / half;
    float v[16][LANES], scale[LANES], d;
    uint8_t codes[BLOCK];
    for (size_t block = 0; block < blocks; block++) {
        load(from(x, dtype, block * BLOCK), dtype, LANES, 16, v);
        symmetric_search(half, least, most, unit, v, scale, &d);
        for (int k = 0; k < LANES; k++)
            codes_of(16, v, k, d * scale[k], 0, -half, half - 1, codes + k * 16);
        if (bits == 3) {
            put_bit(out, codes, 2);
            put_pairs_of_bits(out + 32, codes, 0);
            out += 96;
            put_signed_scales(out, scale);
            out += 12;
        } else {
            put_low_nibbles(out, codes, 64);
            put_pairs_of_bits(out + 128, codes, 4);
            out += 192;
            for (int k = 0; k < LANES; k++)
                *out++ = (uint8_t)(int)scale[k];
        }
        put_half(out, d);
        out += 2;
    }
}

/* one body for formats whose search differs in numbers only: it is long to compile */
LOOP affine_16(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_of(x, dtype, blocks, 16, 2, out); }

LOOP affine_32(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    affine_of(x, dtype, blocks, 32, bits, out);
}

LOOP symmetric_16(const void *x, int dtype, size_t blocks, int bits, uint8_t *out)
{
    symmetric_of(x, dtype, blocks, bits, out);
}

void q2_k(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_16(x, dtype, blocks, out); }

void q4_k(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_32(x, dtype, blocks, 4, out); }

void q5_k(const void *x, int dtype, size_t blocks, uint8_t *out) { affine_32(x, dtype, blocks, 5, out); }

void q3_k(const void *x, int dtype, size_t blocks, uint8_t *out) { symmetric_16(x, dtype, blocks, 3, out); }

void q6_k(const void *x, int dtype, size_t blocks, uint8_t *out) { symmetric_16(x, dtype, blocks, 6, out); }
