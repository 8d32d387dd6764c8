/* The sums by which a weight is compared with its source, in one pass over memory. */
#include "compiled.h"

enum { LANES = 16, RUN = 4096 };

typedef struct {
    float ee[LANES], ss[LANES], se[LANES], most[LANES];
} Lanes;

INLINE void add(Lanes *to, const void *source, int dtype, const float *decoded, size_t start, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float exact = value(source, dtype, start + i), error = decoded[start + i] - exact;
        float size = as_float(as_bits(error) & 0x7FFFFFFF);
        to->ee[i] += error * error;
        to->ss[i] += exact * exact;
        to->se[i] += exact * error;
        to->most[i] = size > to->most[i] ? size : to->most[i];
    }
}

/* Of e = decoded - source and s = source: the sums of e e, s s and s e, added to `sums`, and the largest magnitude of
 * e in each row. A lane adds up RUN / LANES numbers in float32, all else is in float64. NaN is in the sums alone. */
INLINE void compare_of(const void *source, int dtype, size_t rows, size_t columns, const float *decoded, double *sums,
                       float *largest)
{
    for (size_t row = 0; row < rows; row++) {
        largest[row] = 0;
        for (size_t start = 0; start < columns; start += RUN) {
            size_t count = columns - start < RUN ? columns - start : RUN, i = 0;
            const void *s = from(source, dtype, row * columns + start);
            const float *d = decoded + row * columns + start;
            Lanes lanes = {{0}, {0}, {0}, {0}};
            for (; i + LANES <= count; i += LANES)
                add(&lanes, s, dtype, d, i, LANES);
            add(&lanes, s, dtype, d, i, count - i);
            for (size_t j = 0; j < LANES; j++) {
                sums[0] += lanes.ee[j];
                sums[1] += lanes.ss[j];
                sums[2] += lanes.se[j];
                largest[row] = lanes.most[j] > largest[row] ? lanes.most[j] : largest[row];
            }
        }
    }
}

LOOP compare(const void *source, int dtype, size_t rows, size_t columns, const float *decoded, double *sums,
             float *largest)
{
    FOR_DTYPE(dtype, compare_of(source, D, rows, columns, decoded, sums, largest))
}
