/* The sums by which a weight is compared with its source, in one pass over memory. */
#include "_sums.h"
#include "compiled.h"

enum { LANES = 16, RUN = 4096 };

/* Squares in float32 are good where their sum is from SMALL to LARGE: what underflows is then below 1e-9 of it. The
 * squares of numbers outside are added once more in float64, where those of all float32 numbers are normal numbers. */
#define SMALL 1e-25f
#define LARGE 1e30f

typedef struct {
    double ee, ss, se;
    float most;
} Sums;

/* Sums of one run in `type`, and the largest magnitude of e, which is rounded to float32 in either type. */
#define DEFINE_SUMS_IN(type) \
    INLINE Sums sums_in_##type(const void *source, int dtype, const float *decoded, size_t count) \
    { \
        type ee[LANES] = {0}, ss[LANES] = {0}, se[LANES] = {0}; \
        float most[LANES] = {0}; \
        for (size_t start = 0; start < count; start += LANES) { \
            size_t lanes = count - start < LANES ? count - start : LANES; \
            for (size_t i = 0; i < lanes; i++) { \
                float exact = value(source, dtype, start + i), error = decoded[start + i] - exact; \
                float size = as_float(as_bits(error) & 0x7FFFFFFF); \
                ee[i] += (type)error * error; \
                ss[i] += (type)exact * exact; \
                se[i] += (type)exact * error; \
                most[i] = size > most[i] ? size : most[i]; \
            } \
        } \
        Sums all = {0, 0, 0, 0}; \
        for (size_t i = 0; i < LANES; i++) { \
            all.ee += ee[i]; \
            all.ss += ss[i]; \
            all.se += se[i]; \
            all.most = most[i] > all.most ? most[i] : all.most; \
        } \
        return all; \
    }

DEFINE_SUMS_IN(float)
DEFINE_SUMS_IN(double)

INLINE int good(double sum) { return sum >= SMALL && sum <= LARGE; }

/* Of e = decoded - source and s = source: the sums of e e, s s and s e, added to `sums`, and the largest magnitude of
 * e in each row. NaN is in the sums alone. */
INLINE void compare_of(const void *source, int dtype, size_t rows, size_t columns, const float *decoded, double *sums,
                       float *largest)
{
    for (size_t row = 0; row < rows; row++) {
        largest[row] = 0;
        for (size_t start = 0; start < columns; start += RUN) {
            size_t count = columns - start < RUN ? columns - start : RUN;
            const void *s = from(source, dtype, row * columns + start);
            const float *d = decoded + row * columns + start;
            Sums run = sums_in_float(s, dtype, d, count);
            int exact = run.ee == 0 && run.most == 0;
            if (!good(run.ss) || !(exact || good(run.ee)))
                run = sums_in_double(s, dtype, d, count);
            sums[0] += run.ee;
            sums[1] += run.ss;
            sums[2] += run.se;
            largest[row] = run.most > largest[row] ? run.most : largest[row];
        }
    }
}

LOOP compare(const void *source, int dtype, size_t rows, size_t columns, const float *decoded, double *sums,
             float *largest)
{
    FOR_DTYPE(dtype, compare_of(source, D, rows, columns, decoded, sums, largest))
}
