/* shmd_image.h: SipHash-2-4, for the number by which a driver tells an image of a process from the one before an exec. */
#ifndef SHMD_IMAGE_H
#define SHMD_IMAGE_H

#include <stdint.h>

enum { SHMD_SIPHASH_KEY_BYTES = 16 };

/* A keyed function of short messages: without the key nobody can tell anything of it, or make another message's value. */
uint64_t shmd_siphash(const void *data, uint64_t bytes, const uint8_t *key);

#endif
