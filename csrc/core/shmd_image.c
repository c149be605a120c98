/* shmd_image.c: what tells an image of a process from the one before an exec, which keeps pid, start time and pidfd.
 *
 * The kernel gives each image 16 random bytes at its exec (AT_RANDOM), the same for all copies of this library in it. The C library
 * makes its own secrets of them, so they are only used as the key of SipHash-2-4, whose value tells nothing of the key
 * (Aumasson and Bernstein, SipHash: a fast short-input PRF, INDOCRYPT 2012; written from that paper, checked against its vectors).
 */
#include "shmd_image.h"
#include "shmd_internal.h"

#include <sys/auxv.h>

static uint64_t rotate(uint64_t value, unsigned bits) { return value << bits | value >> (64 - bits); }

static uint64_t word_of(const uint8_t *at, uint64_t bytes)
{
    uint64_t value = 0;
    for (uint64_t i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

static void sip_rounds(uint64_t *v, int rounds)
{
    for (; rounds > 0; rounds--) {
        v[0] += v[1];
        v[2] += v[3];
        v[1] = rotate(v[1], 13) ^ v[0];
        v[3] = rotate(v[3], 16) ^ v[2];
        v[0] = rotate(v[0], 32);
        v[2] += v[1];
        v[0] += v[3];
        v[1] = rotate(v[1], 17) ^ v[2];
        v[3] = rotate(v[3], 21) ^ v[0];
        v[2] = rotate(v[2], 32);
    }
}

static void take_word(uint64_t *v, uint64_t word)
{
    v[3] ^= word;
    sip_rounds(v, 2);
    v[0] ^= word;
}

uint64_t shmd_siphash(const void *data, uint64_t bytes, const uint8_t *key)
{
    const uint8_t *at = data;
    uint64_t k0 = word_of(key, 8), k1 = word_of(key + 8, 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du, k0 ^ 0x6c7967656e657261u, k1 ^ 0x7465646279746573u};
    uint64_t left = bytes;
    for (; left >= 8; left -= 8, at += 8)
        take_word(v, word_of(at, 8));
    take_word(v, word_of(at, left) | bytes << 56);
    v[2] ^= 0xff;
    sip_rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t shmd_image(const char *instance)
{
    static const char purpose[] = "shmdriver image 1";
    char message[sizeof purpose + SHMD_NAME_BYTES] = {0};
    const uint8_t *key = (const uint8_t *)(uintptr_t)getauxval(AT_RANDOM);
    if (key == NULL)
        return 0;
    memcpy(message, purpose, sizeof purpose);
    memcpy(message + sizeof purpose, instance, strnlen(instance, SHMD_NAME_BYTES));
    uint64_t image = shmd_siphash(message, sizeof message, key);
    return image == 0 ? 1 : image;
}
