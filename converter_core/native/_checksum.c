/* A linear checksum of bytes, at the speed of memory; checksum.py says what it is. */
#include "compiled.h"

enum { WORDS = 512, BYTES = 8 * WORDS };

#define FACTOR 0x9E3779B97F4A7C15ull

/* The two halves of a word of 64 bits, each times a key of 32: products that a processor makes by the dozen. */
INLINE uint64_t product(uint64_t word, uint64_t key)
{
    return (word & 0xFFFFFFFF) * (key & 0xFFFFFFFF) + (word >> 32) * (key >> 32);
}

INLINE uint64_t whole_block(const uint8_t *data, const uint64_t *keys)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < WORDS; i++) {
        uint64_t word;
        memcpy(&word, data + 8 * i, 8);
        sum += product(word, keys[i]);
    }
    return sum;
}

/* Of `count` bytes that begin at byte `at` of a block. */
INLINE uint64_t part_of_block(const uint8_t *data, size_t at, size_t count, const uint64_t *keys)
{
    uint64_t sum = 0;
    for (size_t i = at; i < at + count; i++)
        sum += product((uint64_t)*data++ << 8 * (i % 8), keys[i / 8]);
    return sum;
}

/* state: the checksum of whole blocks, the sum of the block that is begun, the bytes so far. */
LOOP fold(const uint8_t *data, size_t count, const uint64_t *keys, uint64_t *state)
{
    uint64_t all = state[0], block = state[1], bytes = state[2];
    while (count) {
        size_t at = bytes % BYTES, taken = BYTES - at < count ? BYTES - at : count;
        block += taken == BYTES ? whole_block(data, keys) : part_of_block(data, at, taken, keys);
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
}
