/* GGUF's blocks of 256 columns (K-quants). What they compute is said where torch does the same (_gguf_search.py).
 *
 * The bytes are torch's: every step rounds as IEEE 754 has it, so nothing may be contracted or reassociated
 * (-ffp-contract=off, no -ffast-math). Sums are of integers below 2^24, which float32 adds exactly in any order.
 * Sixteen groups of columns are searched side by side, one to a lane.
 */
#include "compiled.h"
#include "_gguf_half.h"

#define BLOCK 256
#define LANES 16
#define CANDIDATES 8
#define MAGIC 0x1.8p23f
#define SMALLEST 0x1p-40f

#define EACH for (int k = 0; k < LANES; k++)

INLINE float lower(float a, float b) { return a < b ? a : b; }

INLINE float higher(float a, float b) { return a > b ? a : b; }

INLINE float clamped(float value, float low, float high) { return lower(higher(value, low), high); }

INLINE float nearest(float value, float low, float high) { return (clamped(value, low, high) + MAGIC) - MAGIC; }

INLINE float floored(float value)
{
    float near = (value + MAGIC) - MAGIC;
    return near > value ? near - 1 : near;
}

INLINE float inverse(float value) { return value != 0 ? 1 / value : 0; }

/* from -7/8 to 7/8 */
INLINE float candidate(int number) { return (float)number * 0.25f - 0.875f; }

/* Up to 16 groups of `width` columns, one to a lane; lanes without a group hold zeros. */
INLINE void load_of(const void *x, int dtype, int groups, int width, float v[][LANES])
{
    for (int i = 0; i < width; i++)
        EACH v[i][k] = k < groups ? value(x, dtype, (size_t)(k * width + i)) : 0;
}

/* the only step with a body for each dtype: the search is long to compile */
INLINE void load(const void *x, int dtype, int groups, int width, float v[][LANES])
{
    FOR_DTYPE(dtype, load_of(x, D, groups, width, v))
}

struct sums { float of_codes[LANES], of_squares[LANES], of_products[LANES]; };

INLINE void add_up(int width, float y[][LANES], const float *base, const float *per_step, float low, float high,
                   struct sums *out)
{
    struct sums sums = {0};
    for (int i = 0; i < width; i++)
        EACH {
            float code = nearest((y[i][k] - base[k]) * per_step[k], low, high);
            sums.of_codes[k] += code;
            sums.of_squares[k] += code * code;
            sums.of_products[k] += code * y[i][k];
        }
    *out = sums;
}

/* Scale and minimum codes of each lane; fp16 scales of each block (`groups` lanes make one). */
INLINE void affine_search(int width, int groups, float top, float scale_top, float unit, float v[][LANES],
                          float *scale_code, float *low_code, float *d, float *dmin)
{
    float y[32][LANES], low[LANES], per_unit[LANES], units[LANES], total[LANES], most_base[LANES];
    float scale[LANES] = {0}, base[LANES] = {0}, codes[LANES] = {0}, best[LANES], per_step[LANES], zero[LANES] = {0};
    struct sums sums;
    const float n = (float)width;
    EACH {
        float least = 0, most = v[0][k];
        for (int i = 0; i < width; i++) {
            least = lower(v[i][k], least);
            most = higher(v[i][k], most);
        }
        float range = most - least, per = unit / range;
        low[k] = least;
        units[k] = range / unit;
        per_unit[k] = range >= SMALLEST && is_finite(range) ? per : 0;
        most_base[k] = -least * per_unit[k];
        total[k] = 0;
        best[k] = as_float(0x7F800000);
    }
    for (int i = 0; i < width; i++)
        EACH {
            y[i][k] = ((v[i][k] - low[k]) * per_unit[k] + MAGIC) - MAGIC;
            total[k] += y[i][k];
        }
    for (int number = 0; number <= CANDIDATES; number++) {
        /* the last time around the best of them, once more */
        EACH per_step[k] = number < CANDIDATES ? (top + candidate(number)) / unit : inverse(scale[k]);
        add_up(width, y, number < CANDIDATES ? zero : base, per_step, 0, top, &sums);
        EACH {
            float s0 = sums.of_codes[k], s1 = sums.of_squares[k], s2 = sums.of_products[k];
            float denominator = n * s1 - s0 * s0;
            float s = (n * s2 - total[k] * s0) / denominator, b = (total[k] - s * s0) / n;
            float s_bound = (s2 - most_base[k] * s0) / s1;
            int bound = b > most_base[k];
            s = bound ? s_bound : s;
            b = bound ? most_base[k] : b;
            float cost = s * (s * s1 + 2 * b * s0 - 2 * s2) + b * (n * b - 2 * total[k]);
            int better = denominator > 0 && cost < best[k];
            best[k] = better ? cost : best[k];
            scale[k] = better ? s : scale[k];
            base[k] = better ? b : base[k];
            codes[k] = better ? s0 : codes[k];
        }
    }
    float real[LANES], minimum[LANES], d_of[LANES], dmin_of[LANES];
    EACH {
        int any = per_unit[k] > 0;
        real[k] = any ? higher(scale[k] * units[k], 0) + 0.0f : 0;
        minimum[k] = higher(any ? -(low[k] + base[k] * units[k]) : -low[k], 0) + 0.0f;
        best[k] = as_float(0x7F800000);
        scale_code[k] = low_code[k] = 0;
    }
    for (int block = 0; block < LANES / groups; block++) {
        float s = 0, m = 0;
        for (int k = block * groups; k < (block + 1) * groups; k++) {
            s = higher(real[k], s);
            m = higher(minimum[k], m);
        }
        d[block] = half_value(half_bits(s / scale_top));
        dmin[block] = half_value(half_bits(m / scale_top));
        for (int k = block * groups; k < (block + 1) * groups; k++) {
            d_of[k] = d[block];
            dmin_of[k] = dmin[block];
        }
    }
    for (int up = 0; up < 2; up++) {
        float code[LANES], s[LANES], start[LANES], minimum_code[LANES], b[LANES];
        EACH {
            float exact = d_of[k] > 0 ? real[k] / d_of[k] : 0;
            code[k] = clamped(floored(clamped(exact, 0, scale_top)) + (float)up, 0, scale_top);
            s[k] = d_of[k] * code[k] * per_unit[k];
            per_step[k] = inverse(s[k]);
            float fitted = -(low[k] + (total[k] - s[k] * codes[k]) / n * units[k]);
            float wanted = per_unit[k] > 0 ? fitted : minimum[k];
            start[k] = nearest(dmin_of[k] > 0 ? wanted / dmin_of[k] : 0, 0, scale_top);
        }
        for (int number = 0; number < 3; number++) {
            const float beside[3] = {0, -1, 1};
            EACH {
                minimum_code[k] = clamped(start[k] + beside[number], 0, scale_top);
                b[k] = -(dmin_of[k] * minimum_code[k] + low[k]) * per_unit[k];
            }
            add_up(width, y, b, per_step, 0, top, &sums);
            EACH {
                float s0 = sums.of_codes[k], s1 = sums.of_squares[k], s2 = sums.of_products[k];
                float cost = s[k] * (s[k] * s1 + 2 * b[k] * s0 - 2 * s2) + b[k] * (n * b[k] - 2 * total[k]);
                int better = cost < best[k];
                best[k] = better ? cost : best[k];
                scale_code[k] = better ? code[k] : scale_code[k];
                low_code[k] = better ? minimum_code[k] : low_code[k];
            }
        }
    }
}

/* Scale codes of the 16 groups of a block, and its fp16 scale. */
INLINE void symmetric_search(float half, float least, float most, float unit, float v[][LANES], float *scale_code,
                             float *d)
{
    float y[16][LANES], per_unit[LANES], scale[LANES] = {0}, best[LANES] = {0}, per_step[LANES], zero[LANES] = {0};
    float real[LANES];
    struct sums sums;
    EACH {
        float size = 0, largest = v[0][k];
        for (int i = 0; i < 16; i++) {
            float here = as_float(as_bits(v[i][k]) & 0x7FFFFFFF);
            largest = here > size ? v[i][k] : largest;
            size = higher(here, size);
        }
        per_unit[k] = size >= SMALLEST ? unit / largest : 0;
    }
    for (int i = 0; i < 16; i++)
        EACH y[i][k] = (v[i][k] * per_unit[k] + MAGIC) - MAGIC;
    for (int number = 0; number < CANDIDATES; number++) {
        EACH per_step[k] = -(half + candidate(number)) / unit;
        add_up(16, y, zero, per_step, -half, half - 1, &sums);
        EACH {
            float s = sums.of_squares[k] > 0 ? sums.of_products[k] / sums.of_squares[k] : 0;
            float gain = s * sums.of_products[k];
            int better = gain > best[k];
            best[k] = better ? gain : best[k];
            scale[k] = better ? s : scale[k];
        }
    }
    float size = 0, largest = 0;
    EACH real[k] = per_unit[k] != 0 ? scale[k] / per_unit[k] : 0;
    EACH {
        float here = as_float(as_bits(real[k]) & 0x7FFFFFFF);
        largest = here > size ? real[k] : largest;
        size = higher(here, size);
    }
    *d = half_value(half_bits(largest / least + 0.0f));
    EACH {
        best[k] = as_float(0x7F800000);
        scale_code[k] = 0;
    }
    for (int up = 0; up < 2; up++) {
        float code[LANES], s[LANES];
        EACH {
            float exact = *d != 0 ? real[k] / *d : 0;
            code[k] = clamped(floored(clamped(exact, least, most)) + (float)up, least, most);
            s[k] = *d * code[k] * per_unit[k];
            per_step[k] = inverse(s[k]);
        }
        add_up(16, y, zero, per_step, -half, half - 1, &sums);
        EACH {
            float cost = s[k] * (s[k] * sums.of_squares[k] - 2 * sums.of_products[k]);
            int better = cost < best[k];
            best[k] = better ? cost : best[k];
            scale_code[k] = better ? code[k] : scale_code[k];
        }
    }
}

#include "_gguf_k_bytes.h"
