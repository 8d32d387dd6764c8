/* A linear checksum of bytes, at the speed of memory, and whether numbers in them are finite; checksum.py says more. */
#include "compiled.h"

enum { WORDS = 512, BYTES = 8 * WORDS };

#define FACTOR 0x9E3779B97F4A7C15ull

/* The two halves of a word of 64 bits, each times a key of 32: products that a processor makes by the dozen. */
INLINE uint64_t product(uint64_t word, uint64_t key)
{
    return (word & 0xFFFFFFFF) * (key & 0xFFFFFFFF) + (word >> 32) * (key >> 32);
}

typedef struct {
    uint64_t sum, full;
} Folded;

/* Words `first` to `last` of a block. An exponent of nothing but ones carries into the sign when its lowest bit is added. */
INLINE Folded words(const uint8_t *data, size_t first, size_t last, const uint64_t *keys, uint64_t exponents)
{
    uint64_t sum = 0, full = 0, lowest = exponents & ~(exponents << 1);
    for (size_t i = first; i < last; i++) {
        uint64_t word;
        memcpy(&word, data + 8 * (i - first), 8);
        sum += product(word, keys[i]);
        full |= (word & exponents) + lowest;
    }
    return (Folded){sum, full};
}

/* Bytes `first` to `last` of one word. */
INLINE Folded bytes_of(const uint8_t *data, size_t first, size_t last, uint64_t key, uint64_t exponents)
{
    uint64_t word = 0;
    memcpy((uint8_t *)&word + first, data, last - first);
    return (Folded){product(word, key), (word & exponents) + (exponents & ~(exponents << 1))};
}

/* state: the checksum of whole blocks, the sum of the block that is begun, the bytes so far, and whether a number in
 * them was infinite or NaN. exponents: where the bits of the exponents are in a word; 0: these are no numbers. */
LOOP fold(const uint8_t *data, size_t count, const uint64_t *keys, uint64_t exponents, uint64_t *state)
{
    uint64_t all = state[0], block = state[1], bytes = state[2], full = 0;
    while (count) {
        size_t at = bytes % BYTES, odd = at % 8, left = BYTES - at < count ? BYTES - at : count, taken;
        Folded found;
        if (odd || left < 8) {
            taken = 8 - odd < left ? 8 - odd : left;
            found = bytes_of(data, odd, odd + taken, keys[at / 8], exponents);
        } else {
            taken = left / 8 * 8;
            found = words(data, at / 8, (at + taken) / 8, keys, exponents);
        }
        block += found.sum;
        full |= found.full;
        data += taken;
        count -= taken;
        bytes += taken;
        if (bytes % BYTES == 0) {
            all = all * FACTOR + block;
            block = 0;
        }
    }
    state[0] = all;
    state[1] = block;
    state[2] = bytes;
    state[3] |= full & exponents << 1 & ~exponents;
}
