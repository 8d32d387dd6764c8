/* The loops over elements, each in one pass over memory; what they compute is said where torch does the same.
 *
 * The bytes are torch's: every step rounds as IEEE 754 has it, so nothing may be contracted or reassociated
 * (-ffp-contract=off, no -ffast-math). Weights are contiguous bf16, fp16 or fp32; scales are contiguous float32.
 */
#include "compiled.h"

INLINE float lower(float a, float b) { return a < b ? a : b; }

INLINE float higher(float a, float b) { return a > b ? a : b; }

/* The largest magnitude of each of `count` runs of `width` elements. */
INLINE void absmax_of(const void *x, int dtype, size_t count, size_t width, float *out)
{
    for (size_t run = 0; run < count; run++) {
        const void *p = from(x, dtype, run * width);
        if (dtype == F32) {
            uint32_t most = 0;
            for (size_t i = 0; i < width; i++) {
                uint32_t bits = magnitude_bits(p, dtype, i);
                most = bits > most ? bits : most;
            }
            out[run] = widened(most, dtype);
        } else {
            uint16_t most = 0;
            for (size_t i = 0; i < width; i++) {
                uint16_t bits = (uint16_t)magnitude_bits(p, dtype, i);
                most = bits > most ? bits : most;
            }
            out[run] = widened(most, dtype);
        }
    }
}

LOOP absmax(const void *x, int dtype, size_t count, size_t width, float *out)
{
    /* the widths of blocks as constants: such short loops are unrolled */
    if (width == 16) {
        FOR_DTYPE(dtype, absmax_of(x, D, count, 16, out))
    } else if (width == 32) {
        FOR_DTYPE(dtype, absmax_of(x, D, count, 32, out))
    } else {
        FOR_DTYPE(dtype, absmax_of(x, D, count, width, out))
    }
}

/* 1.5 * 2^23: added to a small number it leaves the nearest integer, ties to even, in the low bits. */
#define MAGIC 0x1.8p23f

INLINE void int8_codes_of(const void *x, int dtype, size_t rows, size_t columns, const float *scale, int8_t *out)
{
    for (size_t row = 0; row < rows; row++) {
        const void *p = from(x, dtype, row * columns);
        for (size_t i = 0; i < columns; i++) {
            float steps = higher(lower(value(p, dtype, i) / scale[row], 127), -127);
            out[row * columns + i] = (int8_t)as_bits(steps + MAGIC);
        }
    }
}

LOOP int8_codes(const void *x, int dtype, size_t rows, size_t columns, const float *scale, int8_t *out)
{
    FOR_DTYPE(dtype, int8_codes_of(x, D, rows, columns, scale, out))
}

INLINE void e4m3_codes_of(const void *x, int dtype, size_t rows, size_t columns, const float *scale, uint8_t *out)
{
    for (size_t row = 0; row < rows; row++) {
        const void *p = from(x, dtype, row * columns);
        for (size_t i = 0; i < columns; i++) {
            float steps = lower(magnitude(p, dtype, i) / scale[row], 448);
            uint32_t bits = as_bits(steps);
            /* half a step less one bit, and one more where the code is odd; the exponents differ by 127 - 7 */
            uint32_t normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
            /* below 2^-6 the step is 2^-9, that of float32 numbers from 2^14 on */
            uint32_t subnormal = as_bits(steps + 0x1p14f) - as_bits(0x1p14f);
            uint32_t code = bits < as_bits(0x1p-6f) ? subnormal : normal;
            out[row * columns + i] = (uint8_t)(code | sign(p, dtype, i) << 7);
        }
    }
}

LOOP e4m3_codes(const void *x, int dtype, size_t rows, size_t columns, const float *scale, uint8_t *out)
{
    FOR_DTYPE(dtype, e4m3_codes_of(x, D, rows, columns, scale, out))
}

INLINE uint32_t e4m3_code(float steps)
{
    uint32_t bits = as_bits(lower(steps, 448));
    uint32_t normal = ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
    uint32_t subnormal = as_bits(lower(steps, 448) + 0x1p14f) - as_bits(0x1p14f);
    return bits < as_bits(0x1p-6f) ? subnormal : normal;
}

INLINE void e4m3_codes_of_blocks_of(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * 32);
        for (size_t i = 0; i < 32; i++)
            out[block * 32 + i] =
                (uint8_t)(e4m3_code(magnitude(p, dtype, i) * per_step[block]) | sign(p, dtype, i) << 7);
    }
}

LOOP e4m3_codes_of_blocks(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    FOR_DTYPE(dtype, e4m3_codes_of_blocks_of(x, D, blocks, per_step, out))
}

INLINE void e3m2_codes_of(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * 32);
        uint32_t codes[32];
        for (size_t i = 0; i < 32; i++) {
            float steps = lower(magnitude(p, dtype, i) * per_step[block], 28);
            uint32_t bits = as_bits(steps);
            /* as above: the exponents differ by 127 - 3, and below 2^-2 the step is 2^-4 */
            uint32_t normal = ((bits + 0xFFFFF + (bits >> 21 & 1)) >> 21) - (124 << 2);
            uint32_t subnormal = as_bits(steps + 0x1p19f) - as_bits(0x1p19f);
            codes[i] = (bits < as_bits(0x1p-2f) ? subnormal : normal) | sign(p, dtype, i) << 5;
        }
        uint8_t *bytes = out + block * 24;
        for (size_t i = 0; i < 8; i++) {
            const uint32_t *four = codes + 4 * i;
            bytes[3 * i] = (uint8_t)(four[0] | four[1] << 6);
            bytes[3 * i + 1] = (uint8_t)(four[1] >> 2 | four[2] << 4);
            bytes[3 * i + 2] = (uint8_t)(four[2] >> 4 | four[3] << 2);
        }
    }
}

LOOP e3m2_codes(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    FOR_DTYPE(dtype, e3m2_codes_of(x, D, blocks, per_step, out))
}

/* What the codes stand for, times the scale of their row. */
LOOP e4m3_values(const uint8_t *codes, size_t rows, size_t columns, const float *scale, float *out)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t i = row * columns; i < (row + 1) * columns; i++) {
            uint32_t code = codes[i] & 0x7F, sign = (uint32_t)(codes[i] & 0x80) << 24;
            /* The exponents differ by 127 - 7. Below 2^-6 the codes count steps of 2^-9, as float32 does from 2^-6 on. */
            uint32_t hidden = code < 8 ? 1 << 23 : 0;
            float size = as_float((code << 20) + ((127 - 7) << 23) + hidden) - (code < 8 ? 0x1p-6f : 0);
            uint32_t bits = code == 0x7F ? 0x7FC00000 : as_bits(size);
            out[i] = as_float(bits | sign) * scale[row];
        }
}

/* From each of them to the next, times the scale of their row: 1/8 of the power of two at or below, 2^-9 at least. */
LOOP e4m3_steps(const uint8_t *codes, size_t rows, size_t columns, const float *scale, float *out)
{
    for (size_t row = 0; row < rows; row++)
        for (size_t i = row * columns; i < (row + 1) * columns; i++) {
            uint32_t exponent = codes[i] >> 3 & 15;
            exponent = exponent > 1 ? exponent : 1;
            out[i] = as_float((exponent + (127 - 7) - 3) << 23) * scale[row];
        }
}

/* Sum in the order of `halving_sum`; overwrites the terms. */
INLINE float halving_sum(float *terms, size_t count)
{
    while (count > 1) {
        size_t half = (count + 1) / 2;
        for (size_t i = 0; i < count - half; i++)
            terms[i] += terms[half + i];
        count = half;
    }
    return terms[0];
}

INLINE void int8_costs_of(const void *x, int dtype, size_t rows, size_t columns, const float *scale,
                          const float *shares, float *terms, float *out)
{
    for (size_t row = 0; row < rows; row++) {
        const void *p = from(x, dtype, row * columns);
        for (size_t i = 0; i < columns; i++) {
            float exact = value(p, dtype, i) / scale[row];
            float error = higher(lower((exact + MAGIC) - MAGIC, 127), -127) - exact;
            terms[i] = shares ? error * error * shares[i] : error * error;
        }
        out[row] = halving_sum(terms, columns);
    }
}

/* Squared error of each row in steps of its scale, each column as often as its share says (NULL: once). terms: `columns` float32 to work in. */
LOOP int8_costs(const void *x, int dtype, size_t rows, size_t columns, const float *scale, const float *shares,
                float *terms, float *out)
{
    if (shares) {
        FOR_DTYPE(dtype, int8_costs_of(x, D, rows, columns, scale, shares, terms, out))
    } else {
        FOR_DTYPE(dtype, int8_costs_of(x, D, rows, columns, scale, NULL, terms, out))
    }
}

INLINE void e4m3_costs_of(const void *x, int dtype, size_t rows, size_t columns, const float *scale,
                          const float *shares, float *terms, float *out)
{
    for (size_t row = 0; row < rows; row++) {
        const void *p = from(x, dtype, row * columns);
        for (size_t i = 0; i < columns; i++) {
            float exact = value(p, dtype, i) / scale[row];
            float binade = higher(as_float(as_bits(exact) & 0x7F800000), 0x1p-6f);
            float shift = binade * 0x1.8p20f;
            float error = ((exact + shift) - shift) - exact;
            terms[i] = shares ? error * error * shares[i] : error * error;
        }
        out[row] = halving_sum(terms, columns);
    }
}

LOOP e4m3_costs(const void *x, int dtype, size_t rows, size_t columns, const float *scale, const float *shares,
                float *terms, float *out)
{
    if (shares) {
        FOR_DTYPE(dtype, e4m3_costs_of(x, D, rows, columns, scale, shares, terms, out))
    } else {
        FOR_DTYPE(dtype, e4m3_costs_of(x, D, rows, columns, scale, NULL, terms, out))
    }
}

#define OCTAVE 128
#define BINADES 16

INLINE void e4m3_best_steps_of(const void *x, int dtype, size_t rows, size_t columns, const float *reach,
                               const float *first, const uint32_t *shares, const double *table, uint32_t *counts,
                               int32_t *out)
{
    for (size_t row = 0; row < rows; row++) {
        const void *p = from(x, dtype, row * columns);
        int32_t lowest = ((int32_t)(as_bits(reach[row]) >> 23) - (BINADES - 2)) * OCTAVE;
        memset(counts, 0, BINADES * OCTAVE * sizeof *counts);
        for (size_t i = 0; i < columns; i++) {
            int32_t bin = (int32_t)((as_bits(magnitude(p, dtype, i)) + 0x8000) >> 16) - lowest;
            counts[bin > 0 ? bin : 0] += shares ? shares[i] : 1;
        }
        uint64_t energy[OCTAVE] = {0}, total = 0;
        for (size_t binade = 0; binade < BINADES; binade++)
            for (size_t i = 0; i < OCTAVE; i++)
                energy[i] += (uint64_t)counts[binade * OCTAVE + i] << 2 * binade;
        for (size_t i = 0; i < OCTAVE; i++)
            total += energy[i];
        int excess = 0;
        while (total >> excess >= 1 << 26)
            excess++;
        double errors[OCTAVE] = {0};
        for (size_t i = 0; i < OCTAVE; i++) {
            double counted = (double)(energy[i] >> excess);
            for (size_t j = 0; j < OCTAVE; j++)
                errors[j] += counted * table[i * OCTAVE + j];
        }
        uint32_t start = as_bits(first[row]) >> 16, best = 0;
        for (uint32_t step = 1; step < OCTAVE; step++)
            best = errors[(start + step) % OCTAVE] < errors[(start + best) % OCTAVE] ? step : best;
        out[row] = (int32_t)best;
    }
}

/* Which of 128 neighbouring scales has the least squared error in each row. shares: of the columns, or NULL for one
 * each. table: 128 rows of 128. counts: 16 * 128 numbers to work in. */
LOOP e4m3_best_steps(const void *x, int dtype, size_t rows, size_t columns, const float *reach, const float *first,
                     const uint32_t *shares, const double *table, uint32_t *counts, int32_t *out)
{
    FOR_DTYPE(dtype, e4m3_best_steps_of(x, D, rows, columns, reach, first, shares, table, counts, out))
}

/* Elements whose intermediate results stay in the nearest cache; a multiple of every width. */
#define RUN 1024

INLINE void e2m1_codes_of(const void *x, int dtype, size_t blocks, size_t width, const float *per_step, uint8_t *out)
{
    float steps[RUN];
    uint16_t pairs[RUN / 2];
    uint8_t *codes = (uint8_t *)pairs;
    for (size_t first = 0; first < blocks * width; first += RUN) {
        size_t count = blocks * width - first < RUN ? blocks * width - first : RUN;
        const void *p = from(x, dtype, first);
        for (size_t block = 0; block < count / width; block++)
            for (size_t i = block * width; i < (block + 1) * width; i++)
                steps[i] = magnitude(p, dtype, i) * per_step[first / width + block];
        for (size_t i = 0; i < count; i++) {
            float code = lower(lower(2 * steps[i] + MAGIC, steps[i] + (MAGIC + 2)),
                               lower(0.5f * steps[i] + (MAGIC + 4), MAGIC + 7));
            codes[i] = (uint8_t)((as_bits(code) & 7) | sign(p, dtype, i) << 3);
        }
        for (size_t i = 0; i < count / 2; i++) {
            uint32_t pair = pairs[i];
            int little_endian = (union { uint16_t word; uint8_t first; }){1}.first;
            out[first / 2 + i] = (uint8_t)(little_endian ? pair | pair >> 4 : pair >> 8 | pair << 4);
        }
    }
}

LOOP e2m1_codes(const void *x, int dtype, size_t blocks, size_t width, const float *per_step, uint8_t *out)
{
    if (width == 16) {
        FOR_DTYPE(dtype, e2m1_codes_of(x, D, blocks, 16, per_step, out))
    } else {
        FOR_DTYPE(dtype, e2m1_codes_of(x, D, blocks, 32, per_step, out))
    }
}

#define ONE (1 << 22)

INLINE void floor_is_better_of(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * 32);
        int32_t saved = 0;
        for (size_t i = 0; i < 32; i++) {
            int32_t fixed = (int32_t)(magnitude(p, dtype, i) * per_step[block] * ONE);
            int32_t low = fixed < 2 * ONE ? fixed : 2 * ONE;
            int32_t to_integer = ((low + ONE / 2) & (ONE - 1)) - ONE / 2;
            to_integer = to_integer < 0 ? -to_integer : to_integer;
            int32_t beyond = fixed > 7 * ONE ? fixed - 7 * ONE : 0;
            saved += (to_integer > ONE / 4 ? to_integer : ONE / 4) - 4 * beyond;
        }
        out[block] = saved > 32 * (ONE / 4);
    }
}

LOOP floor_is_better(const void *x, int dtype, size_t blocks, const float *per_step, uint8_t *out)
{
    FOR_DTYPE(dtype, floor_is_better_of(x, D, blocks, per_step, out))
}

INLINE void shared_floor_is_better_of(const void *x, int dtype, size_t blocks, const float *per_step,
                                      const float *shares, size_t row_blocks, uint8_t *out)
{
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * 32);
        const float *share = shares + block % row_blocks * 32;
        float saved[32];
        for (size_t i = 0; i < 32; i++) {
            int32_t fixed = (int32_t)(magnitude(p, dtype, i) * per_step[block] * ONE);
            int32_t low = fixed < 2 * ONE ? fixed : 2 * ONE;
            int32_t to_integer = ((low + ONE / 2) & (ONE - 1)) - ONE / 2;
            to_integer = to_integer < 0 ? -to_integer : to_integer;
            int32_t beyond = fixed > 7 * ONE ? fixed - 7 * ONE : 0;
            saved[i] = share[i] * (float)((to_integer > ONE / 4 ? to_integer : ONE / 4) - ONE / 4 - 4 * beyond);
        }
        for (size_t half = 16; half; half /= 2)
            for (size_t i = 0; i < half; i++)
                saved[i] += saved[half + i];
        out[block] = saved[0] > 0;
    }
}

/* The same with a share for each of the columns of a row, added in the order of `halving_sum`. */
LOOP shared_floor_is_better(const void *x, int dtype, size_t blocks, const float *per_step, const float *shares,
                            size_t row_blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, shared_floor_is_better_of(x, D, blocks, per_step, shares, row_blocks, out))
}

#define STEPS 8
typedef float row_of_sums __attribute__((vector_size(STEPS * sizeof(float))));
typedef int32_t row_of_keys __attribute__((vector_size(STEPS * sizeof(int32_t))));

INLINE void best_steps_of(const void *x, int dtype, size_t blocks, const float *bins_per_unit, const float *shift,
                          const uint8_t *allowed, const float *table, int32_t last, uint8_t *out)
{
    const row_of_keys number = {0, 1, 2, 3, 4, 5, 6, 7};
    int32_t bins[RUN];
    for (size_t first = 0; first < blocks; first += RUN / 16) {
        size_t count = blocks - first < RUN / 16 ? blocks - first : RUN / 16;
        const void *p = from(x, dtype, first * 16);
        for (size_t block = 0; block < count; block++)
            for (size_t i = block * 16; i < (block + 1) * 16; i++) {
                int32_t bin = (int32_t)(magnitude(p, dtype, i) * bins_per_unit[first + block] + shift[first + block]);
                bin = bin < 0 ? 0 : bin;
                bins[i] = bin > last ? last : bin;
            }
        for (size_t block = 0; block < count; block++) {
            row_of_sums even = {0}, odd = {0};
            for (size_t i = block * 16; i < (block + 1) * 16; i += 2) {
                row_of_sums one, other;
                memcpy(&one, table + (size_t)bins[i] * STEPS, sizeof one);
                memcpy(&other, table + (size_t)bins[i + 1] * STEPS, sizeof other);
                even += one;
                odd += other;
            }
            /* the sum and, in the last three bits, whose it is */
            row_of_keys closed = ~((int32_t)allowed[first + block] >> number) & 1;
            row_of_keys keys = __builtin_convertvector(even + odd, row_of_keys) * STEPS + number + (closed << 30);
            int32_t best = keys[0];
            for (int step = 1; step < STEPS; step++)
                best = keys[step] < best ? keys[step] : best;
            out[first + block] = (uint8_t)(best & (STEPS - 1));
        }
    }
}

/* Which column of `table` (last + 1 rows) sums up least over the rows that the elements of each block fall into; of
 * equals the first, the first of all being always allowed. Integers that float32 adds exactly. */
LOOP best_steps(const void *x, int dtype, size_t blocks, const float *bins_per_unit, const float *shift,
                const uint8_t *allowed, const float *table, int32_t last, uint8_t *out)
{
    FOR_DTYPE(dtype, best_steps_of(x, D, blocks, bins_per_unit, shift, allowed, table, last, out))
}

INLINE float e4m3_divisor(uint32_t code) { return as_float(code << 20) * 0x1p120f + (code == 0); }

INLINE void nvfp4_scales_of(const void *x, int dtype, size_t blocks, float whole, const int8_t *steps,
                            const uint8_t *allowed, const float *table, int32_t last, float bins_per_step,
                            uint8_t *codes, float *per_step)
{
    float most[RUN / 16], bins_per_unit[RUN / 16], shift[RUN / 16];
    uint8_t open[RUN / 16], best[RUN / 16];
    for (size_t first = 0; first < blocks; first += RUN / 16) {
        size_t count = blocks - first < RUN / 16 ? blocks - first : RUN / 16;
        const void *p = from(x, dtype, first * 16);
        uint8_t *code = codes + first;
        absmax_of(p, dtype, count, 16, most);
        for (size_t i = 0; i < count; i++)
            code[i] = (uint8_t)e4m3_code(most[i] * 0x1.555556p-3f * whole);
        if (steps) {
            for (size_t i = 0; i < count; i++) {
                bins_per_unit[i] = whole * (1 / e4m3_divisor(code[i])) * bins_per_step;
                shift[i] = (float)((int32_t)(code[i] & 7) * ((last + 1) / 8));
                open[i] = allowed[code[i]];
            }
            best_steps_of(p, dtype, count, bins_per_unit, shift, open, table, last, best);
            for (size_t i = 0; i < count; i++)
                code[i] = (uint8_t)(code[i] + steps[best[i]]);
        }
        for (size_t i = 0; i < count; i++)
            per_step[first + i] = whole * (1 / e4m3_divisor(code[i]));
    }
}

/* The scale of each block of 16, an E4M3 code, and how many steps of it make one. steps: of the columns of `table`, as
 * in `best_steps`; NULL: the code of absmax / 6. allowed: columns that may be taken, for each code. */
LOOP nvfp4_scales(const void *x, int dtype, size_t blocks, const float *whole, const int8_t *steps,
                  const uint8_t *allowed, const float *table, int32_t last, float bins_per_step, uint8_t *codes,
                  float *per_step)
{
    FOR_DTYPE(dtype, nvfp4_scales_of(x, D, blocks, *whole, steps, allowed, table, last, bins_per_step, codes, per_step))
}

INLINE void shared_best_steps_of(const void *x, int dtype, size_t blocks, const float *bins_per_unit,
                                 const float *shift, const uint8_t *allowed, const float *table, int32_t last,
                                 const float *shares, size_t row_blocks, uint8_t *out)
{
    const row_of_keys number = {0, 1, 2, 3, 4, 5, 6, 7};
    for (size_t block = 0; block < blocks; block++) {
        const void *p = from(x, dtype, block * 16);
        const float *share = shares + block % row_blocks * 16;
        row_of_sums even = {0}, odd = {0};
        int32_t bins[16];
        for (size_t i = 0; i < 16; i++) {
            int32_t bin = (int32_t)(magnitude(p, dtype, i) * bins_per_unit[block] + shift[block]);
            bin = bin < 0 ? 0 : bin;
            bins[i] = bin > last ? last : bin;
        }
        for (size_t i = 0; i < 16; i += 2) {
            row_of_sums one, other;
            memcpy(&one, table + (size_t)bins[i] * STEPS, sizeof one);
            memcpy(&other, table + (size_t)bins[i + 1] * STEPS, sizeof other);
            even += one * share[i];
            odd += other * share[i + 1];
        }
        row_of_keys open = -((int32_t)allowed[block] >> number & 1);
        row_of_sums sums = (row_of_sums)(((row_of_keys)(even + odd) & open) | (~open & (int32_t)as_bits(3e38f)));
        float least = sums[0];
        int best = 0;
        for (int step = 1; step < STEPS; step++) {
            best = sums[step] < least ? step : best;
            least = lower(sums[step], least);
        }
        out[block] = (uint8_t)best;
    }
}

/* The same with a share for each of the columns of a row: those of even columns are added, those of odd, then both. */
LOOP shared_best_steps(const void *x, int dtype, size_t blocks, const float *bins_per_unit, const float *shift,
                       const uint8_t *allowed, const float *table, int32_t last, const float *shares,
                       size_t row_blocks, uint8_t *out)
{
    FOR_DTYPE(dtype, shared_best_steps_of(x, D, blocks, bins_per_unit, shift, allowed, table, last, shares, row_blocks,
                                          out))
}

enum { TO_INT8, TO_E4M3, TO_E2M1 };

/* The nearest value of a format to `x`, in whose steps of `unit` its codes count; 0 where there is no unit. */
INLINE float nearest_value(int kind, float x, float unit)
{
    if (unit == 0)
        return 0;
    float steps = x / unit;
    if (kind == TO_INT8) {
        steps = higher(lower(steps, 127), -127);
        return ((steps + MAGIC) - MAGIC) * unit;
    }
    if (kind == TO_E4M3) {
        steps = higher(lower(steps, 448), -448);
        float shift = higher(as_float(as_bits(steps) & 0x7F800000), 0x1p-6f) * 0x1.8p20f;
        return ((steps + shift) - shift) * unit;
    }
    steps = higher(lower(steps, 6), -6);
    float size = steps < 0 ? -steps : steps;
    float step = size < 2 ? 0.5f : size < 4 ? 1 : 2;
    float nearest = ((size / step + MAGIC) - MAGIC) * step * unit;
    return as_float(as_bits(nearest) | (as_bits(x) & 0x80000000));
}

INLINE void feed_of(int kind, size_t rows, size_t columns, const float *weight, size_t weight_pitch,
                    const float *target, size_t target_pitch, const float *factor, size_t factor_pitch,
                    const float *unit, float *errors, float *values, size_t pitch, float *work)
{
    for (size_t row = 0; row < rows; row++) {
        memcpy(work, target + row * target_pitch, columns * sizeof *work);
        for (size_t j = columns; j-- > 0;) {
            float value = nearest_value(kind, work[j], unit[row]);
            float error = weight[row * weight_pitch + j] - value;
            values[row * pitch + j] = value;
            errors[row * pitch + j] = error;
            const float *along = factor + j * factor_pitch;
            for (size_t i = 0; i < j; i++)
                work[i] += error * along[i];
        }
    }
}

/* Round columns from the last to the first, each from its target and what the errors of those after it add to it. */
LOOP feed(int kind, size_t rows, size_t columns, const float *weight, size_t weight_pitch, const float *target,
          size_t target_pitch, const float *factor, size_t factor_pitch, const float *unit, float *errors,
          float *values, size_t pitch, float *work)
{
    if (kind == TO_INT8)
        feed_of(TO_INT8, rows, columns, weight, weight_pitch, target, target_pitch, factor, factor_pitch, unit,
                errors, values, pitch, work);
    else if (kind == TO_E4M3)
        feed_of(TO_E4M3, rows, columns, weight, weight_pitch, target, target_pitch, factor, factor_pitch, unit,
                errors, values, pitch, work);
    else
        feed_of(TO_E2M1, rows, columns, weight, weight_pitch, target, target_pitch, factor, factor_pitch, unit,
                errors, values, pitch, work);
}
