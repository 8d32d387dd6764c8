/* A product of two matrices added to a third, each element by one chain of fused multiply-adds in float32. Rows and
 * columns are blocked, ranks are not: they come in their order, so neither block nor machine shows in the bits. */
#include "compiled.h"

#include <math.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define X86
#endif

/* LINE: floats of a cache line; the tile after this one is fetched while this one is computed */
enum { RANKS = 128, LINE = 16 };

/* `lanes` floats to a vector; a tile is `tall` rows of `wide` vectors, which stay in registers while the ranks pass.
 * strip: the tile's columns of `right`, one row for each rank, padded with zeros. */
#define DEFINE_CHAIN(name, attribute, vector, lanes, tall, wide, load, store, spread, fma) \
    enum { name##_columns = (wide) * (lanes) }; \
    attribute static void name##_tile(float *const *tile, const float *const *left, const float *strip, size_t ranks) \
    { \
        vector sum[tall][wide]; \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) \
            _Pragma("GCC unroll 8") for (size_t v = 0; v < (wide); v++) \
                sum[i][v] = load(tile[i] + v * (lanes)); \
        for (size_t r = 0; r < ranks; r++) { \
            vector right[wide]; \
            _Pragma("GCC unroll 8") for (size_t v = 0; v < (wide); v++) \
                right[v] = load(strip + r * name##_columns + v * (lanes)); \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) { \
                vector one = spread(left[i][r]); \
                _Pragma("GCC unroll 8") for (size_t v = 0; v < (wide); v++) \
                    sum[i][v] = fma(one, right[v], sum[i][v]); \
            } \
        } \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) \
            _Pragma("GCC unroll 8") for (size_t v = 0; v < (wide); v++) \
                store(tile[i] + v * (lanes), sum[i][v]); \
    } \
    attribute static void name(const void *begin, int dtype, size_t rows, size_t columns, const float *left, \
                               const float *right, size_t ranks, float *out) \
    { \
        enum { COLUMNS = name##_columns }; \
        float strip[RANKS * COLUMNS]; \
        for (size_t column = 0; column < columns; column += COLUMNS) { \
            size_t width = columns - column < COLUMNS ? columns - column : COLUMNS; \
            for (size_t first = 0; first < ranks; first += RANKS) { \
                size_t count = ranks - first < RANKS ? ranks - first : RANKS; \
                for (size_t r = 0; r < count; r++) { \
                    memcpy(strip + r * COLUMNS, right + (first + r) * columns + column, width * sizeof(float)); \
                    memset(strip + r * COLUMNS + width, 0, (COLUMNS - width) * sizeof(float)); \
                } \
                for (size_t row = 0; row < rows; row += (tall)) { \
                    float edge[tall][COLUMNS]; \
                    float *tile[tall]; \
                    const float *factors[tall]; \
                    for (size_t i = 0; i < (tall); i++) { \
                        size_t at = row + i < rows ? row + i : rows - 1; \
                        float *direct = out + at * columns + column; \
                        tile[i] = width < COLUMNS || row + i >= rows ? edge[i] : direct; \
                        factors[i] = left + at * ranks + first; \
                        size_t next = (at + (tall) < rows ? at + (tall) : at) * columns + column; \
                        for (size_t line = 0; line < COLUMNS; line += LINE) \
                            __builtin_prefetch(out + next + line, 1); \
                        for (size_t line = 0; line < COLUMNS; line += dtype == F32 ? LINE : 2 * LINE) \
                            __builtin_prefetch(from(begin, dtype, next + line)); \
                        if (first == 0) \
                            FOR_DTYPE(dtype, for (size_t j = 0; j < width; j++) \
                                                 tile[i][j] = value(begin, D, at * columns + column + j)) \
                        else if (tile[i] != direct) \
                            memcpy(tile[i], direct, width * sizeof(float)); \
                    } \
                    name##_tile(tile, factors, strip, count); \
                    for (size_t i = 0; i < (tall) && row + i < rows; i++) \
                        if (tile[i] == edge[i]) \
                            memcpy(out + (row + i) * columns + column, edge[i], width * sizeof(float)); \
                } \
            } \
        } \
    }

#ifdef X86
DEFINE_CHAIN(chain_512, __attribute__((target("arch=x86-64-v4"))), __m512, 16, 8, 3, _mm512_loadu_ps, _mm512_storeu_ps,
             _mm512_set1_ps, _mm512_fmadd_ps)
DEFINE_CHAIN(chain_256, __attribute__((target("arch=x86-64-v3"))), __m256, 8, 6, 2, _mm256_loadu_ps, _mm256_storeu_ps,
             _mm256_set1_ps, _mm256_fmadd_ps)
#endif

INLINE float load_one(const float *at) { return *at; }
INLINE void store_one(float *at, float value) { *at = value; }
#define SAME(x) (x)

DEFINE_CHAIN(chain_plain, , float, 1, 4, 16, load_one, store_one, SAME, fmaf)

/* out = begin + left @ right: `begin` of a dtype and [rows, columns], `left` [rows, ranks], `right` [ranks, columns]. */
void chain(const void *begin, int dtype, size_t rows, size_t columns, const float *left, const float *right,
           size_t ranks, float *out)
{
#ifdef X86
    if (__builtin_cpu_supports("x86-64-v4"))
        chain_512(begin, dtype, rows, columns, left, right, ranks, out);
    else if (__builtin_cpu_supports("x86-64-v3"))
        chain_256(begin, dtype, rows, columns, left, right, ranks, out);
    else
#endif
        chain_plain(begin, dtype, rows, columns, left, right, ranks, out);
}

/* out = factor * other + total, each element rounded once. */
LOOP fused(const float *factor, const float *other, const float *total, size_t count, float *out)
{
    for (size_t i = 0; i < count; i++)
        out[i] = __builtin_fmaf(factor[i], other[i], total[i]);
}
