/* claim_window.h: a second mapping of a ring or an arena, for claims (claim_window.c). Internal. */
#ifndef SHMD_CLAIM_WINDOW_H
#define SHMD_CLAIM_WINDOW_H

#include "../shmd_abi.h"

/* `from`: `bytes` of shared memory that are mapped twice in a row; the window is mapped alike, and holds the mapping. */
int shmd_window_open(shmd_mapping *mapping, void *from, uint64_t bytes, shmd_window_t *out);

#endif
