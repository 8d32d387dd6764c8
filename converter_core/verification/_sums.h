/* The kernels of _sums.c. Python reads the argument types from here, and the compiler holds the definitions to them. */
#include <stddef.h>

void compare(const void *source, int dtype, size_t rows, size_t columns, const float *decoded, double *sums,
             float *largest);
