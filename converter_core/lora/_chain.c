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

/* A tile is `tall` rows of `wide` vectors of `lanes` floats, which stay in registers while the ranks pass.
 * read(x, dtype, i): the vector that begins with element i of x. strip: the tile's columns of `right`, one row for each
 * rank, padded with zeros. At an edge the tile is worked on in a buffer. */
#define DEFINE_CHAIN(name, attribute, vector, lanes, tall, wide, read, store, spread, fma) \
    enum { name##_columns = (wide) * (lanes) }; \
    attribute static inline __attribute__((always_inline)) void name##_tile( \
        const void *const *begin, int dtype, float *const *out, const float *const *left, const float *strip, \
        size_t ranks) \
    { \
        vector sum[tall][wide]; \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) \
            _Pragma("GCC unroll 16") for (size_t v = 0; v < (wide); v++) \
                sum[i][v] = read(begin[i], dtype, v * (lanes)); \
        for (size_t r = 0; r < ranks; r++) { \
            vector right[wide]; \
            _Pragma("GCC unroll 16") for (size_t v = 0; v < (wide); v++) \
                right[v] = read(strip, F32, r * name##_columns + v * (lanes)); \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) { \
                vector one = spread(left[i][r]); \
                _Pragma("GCC unroll 16") for (size_t v = 0; v < (wide); v++) \
                    sum[i][v] = fma(one, right[v], sum[i][v]); \
            } \
        } \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < (tall); i++) \
            _Pragma("GCC unroll 16") for (size_t v = 0; v < (wide); v++) \
                store(out[i] + v * (lanes), sum[i][v]); \
    } \
    attribute static void name(const void *begin, int dtype, size_t rows, size_t columns, const float *left, \
                               const float *right, size_t ranks, float *out) \
    { \
        enum { COLUMNS = name##_columns }; \
        float strip[RANKS * COLUMNS], edge[tall][COLUMNS]; \
        for (size_t column = 0; column < columns; column += COLUMNS) { \
            size_t width = columns - column < COLUMNS ? columns - column : COLUMNS; \
            for (size_t first = 0; first < ranks; first += RANKS) { \
                size_t count = ranks - first < RANKS ? ranks - first : RANKS; \
                const void *source = first ? out : begin; \
                int type = first ? F32 : dtype; \
                for (size_t r = 0; r < count; r++) { \
                    memcpy(strip + r * COLUMNS, right + (first + r) * columns + column, width * sizeof(float)); \
                    memset(strip + r * COLUMNS + width, 0, (COLUMNS - width) * sizeof(float)); \
                } \
                for (size_t row = 0; row < rows; row += (tall)) { \
                    int whole = width == COLUMNS && row + (tall) <= rows; \
                    const void *sources[tall]; \
                    const float *factors[tall]; \
                    float *outs[tall]; \
                    for (size_t i = 0; i < (tall); i++) { \
                        size_t y = row + i < rows ? row + i : rows - 1, at = y * columns + column; \
                        size_t next = (y + (tall) < rows ? y + (tall) : y) * columns + column; \
                        factors[i] = left + y * ranks + first; \
                        sources[i] = whole ? from(source, type, at) : edge[i]; \
                        outs[i] = whole ? out + at : edge[i]; \
                        for (size_t j = 0; j < width && !whole; j++) \
                            FOR_DTYPE(type, edge[i][j] = value(source, D, at + j)) \
                        for (size_t line = 0; line < COLUMNS; line += LINE) \
                            __builtin_prefetch(out + next + line, 1); \
                        for (size_t line = 0; line < COLUMNS; line += type == F32 ? LINE : 2 * LINE) \
                            __builtin_prefetch(from(source, type, next + line)); \
                    } \
                    FOR_DTYPE(whole ? type : F32, name##_tile(sources, D, outs, factors, strip, count)) \
                    for (size_t i = 0; i < (tall) && row + i < rows && !whole; i++) \
                        memcpy(out + (row + i) * columns + column, edge[i], width * sizeof(float)); \
                } \
            } \
        } \
    }

#ifdef X86
#define V4 __attribute__((target("arch=x86-64-v4")))
#define V3 __attribute__((target("arch=x86-64-v3")))

V4 INLINE __m512 read_512(const void *x, int dtype, size_t i)
{
    const char *at = from(x, dtype, i);
    if (dtype == F32)
        return _mm512_loadu_ps(at);
    __m256i half = _mm256_loadu_si256((const __m256i *)at);
    return dtype == F16 ? _mm512_cvtph_ps(half)
                        : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

V3 INLINE __m256 read_256(const void *x, int dtype, size_t i)
{
    const char *at = from(x, dtype, i);
    if (dtype == F32)
        return _mm256_loadu_ps((const float *)at);
    __m128i half = _mm_loadu_si128((const __m128i *)at);
    return dtype == F16 ? _mm256_cvtph_ps(half)
                        : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

DEFINE_CHAIN(chain_512, V4, __m512, 16, 8, 3, read_512, _mm512_storeu_ps, _mm512_set1_ps, _mm512_fmadd_ps)
DEFINE_CHAIN(chain_256, V3, __m256, 8, 6, 2, read_256, _mm256_storeu_ps, _mm256_set1_ps, _mm256_fmadd_ps)
#endif

INLINE void store_one(float *at, float value) { *at = value; }
#define SAME(x) (x)

DEFINE_CHAIN(chain_plain, , float, 1, 4, 16, value, store_one, SAME, fmaf)

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
