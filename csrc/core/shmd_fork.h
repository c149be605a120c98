/* shmd_fork.h: whether this process was forked, at no cost on the hot path. A handle has two parts, which lie on pages of
 * their own. The kernel wipes the pages of the first part in every forked child (MADV_WIPEONFORK), however the child was
 * made: fork, _Fork, or clone as a raw system call. A wiped handle has no room and nothing to read, so each call on it takes
 * its slow turn. The slow turn compares generations and returns SHMD_E_FORKED. */
#ifndef SHMD_FORK_H
#define SHMD_FORK_H

#include "../shmd_atomic.h"

/* The generation of this process. 0 in a child that was made without fork handlers, until shmd_fork_generation is called. */
extern const uint32_t *shmd_fork_word;

/* A test sets it: as on a kernel that does not wipe pages (Linux before 4.14). Then only fork() is noticed, by a fork handler. */
extern uint32_t shmd_wipe_missing;

/* Whether what was made in this generation was made by another process. */
static inline int shmd_is_forked(uint32_t generation) { return generation != shmd_load32_relaxed(shmd_fork_word); }

/* A zeroed handle of `bytes`, aligned to SHMD_LINE_BYTES; its first `wiped` bytes, a multiple of that, read as zeros in a
 * forked child. NULL: no memory. */
void *shmd_handle_new(size_t bytes, size_t wiped);
void shmd_handle_free(void *handle, size_t bytes, size_t wiped); /* NULL: nothing */

#endif
