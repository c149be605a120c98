/* fuzz.h: what the fuzz targets share. A target is one file with LLVMFuzzerTestOneInput. An input is a program: bytes that
 * are read one after the other, so that every input is valid and a small change is a small change. */
#ifndef SHMD_FUZZ_H
#define SHMD_FUZZ_H

#include "rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *at;
    size_t left;
} input_t;

static inline uint64_t input_take(input_t *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes; i++) {
        value |= (uint64_t)(input->left != 0 ? *input->at : 0) << 8 * i;
        input->at += input->left != 0;
        input->left -= input->left != 0;
    }
    return value;
}

/* A number that is often interesting: a short one, one near a power of two, near 2^64, or any. */
static inline uint64_t input_number(input_t *input)
{
    uint64_t how = input_take(input, 1);
    switch (how & 3) {
    case 0:
        return how >> 2;
    case 1:
        return ((uint64_t)1 << (how >> 2)) + input_take(input, 1) - 2;
    case 2:
        return 0 - input_take(input, 2);
    default:
        return input_take(input, 8);
    }
}

/* Overwrites parts of a block: (offset, length, bytes) as long as there is input, at most `patches` times. */
static inline void input_patch(input_t *input, void *block, size_t bytes, int patches)
{
    for (; input->left != 0 && patches > 0; patches--) {
        size_t offset = (size_t)(input_take(input, 3) % bytes);
        size_t length = (size_t)(input_take(input, 1) % 40 + 1);
        uint64_t word = 0;
        if (length > 32) { /* a whole aligned word with a number of note */
            offset &= ~(size_t)7;
            word = input_number(input);
            length = 8;
            if (offset + length <= bytes)
                memcpy((unsigned char *)block + offset, &word, length);
            continue;
        }
        for (size_t i = 0; i < length && offset + i < bytes; i++)
            ((unsigned char *)block)[offset + i] = (unsigned char)input_take(input, 1);
    }
}

/* Exactly so many bytes, so that ASAN sees the first one past the end. */
static inline void *fuzz_copy(const void *from, size_t bytes)
{
    void *copy = malloc(bytes == 0 ? 1 : bytes);
    if (copy == NULL)
        abort();
    memcpy(copy, from, bytes);
    return copy;
}

/* Reads every byte, so that a pointer or a length that is wrong is noticed here. */
static inline uint64_t fuzz_touch(const void *data, uint64_t bytes)
{
    uint64_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++)
        sum += ((const volatile unsigned char *)data)[i];
    return sum;
}

#define MUST(condition)                                                                                                      \
    do {                                                                                                                     \
        if (!(condition)) {                                                                                                  \
            (void)fprintf(stderr, "%s:%d: %s does not hold (last error: %s)\n", __FILE__, __LINE__, #condition, shmd_last_error()); \
            abort();                                                                                                         \
        }                                                                                                                    \
    } while (0)

#endif
