/* shmd_seqlock.h: how a record is read that its one writer may rewrite at any moment.
 *
 *     writer                                      reader
 *     shmd_seqlock_rewrite(word, no reader's)     seen = shmd_seqlock_read(word)
 *     all fields                                  the fields, by relaxed loads or a racing copy
 *     shmd_seqlock_publish(word, next)            shmd_seqlock_unchanged(word, seen), or shmd_seqlock_same
 *
 * The word is a number << 8 | a state. The number belongs to one use of the record: in a table the generation, which is odd
 * while the fields are rewritten; in an epoch record the epoch, which is 0 meanwhile. What the reader loaded is one use's when
 * its number was right before and after. A field that is written within a use is written before the state that says so. */
#ifndef SHMD_SEQLOCK_H
#define SHMD_SEQLOCK_H

#include "../shmd_atomic.h"

static inline uint64_t shmd_seqlock_read(const uint64_t *word)
{
    return shmd_load_acquire(word); /* T1: before the fields; pairs with shmd_seqlock_publish */
}

/* Neither number nor state has changed since the word was seen. */
static inline int shmd_seqlock_unchanged(const uint64_t *word, uint64_t seen)
{
    shmd_fence_acquire(); /* T2: after the fields; pairs with the fence in shmd_seqlock_rewrite */
    return shmd_load_relaxed(word) == seen;
}

/* The number has not changed; the state may have gone on. */
static inline int shmd_seqlock_same(const uint64_t *word, uint64_t seen)
{
    shmd_fence_acquire(); /* T2 */
    return (shmd_load_relaxed(word) ^ seen) >> 8 == 0;
}

static inline void shmd_seqlock_rewrite(uint64_t *word, uint64_t value)
{
    shmd_store_relaxed(word, value);
    shmd_fence_release(); /* T2: before the fields. A release store would not do: stores behind it may pass it. */
}

static inline void shmd_seqlock_publish(uint64_t *word, uint64_t value)
{
    shmd_store_release(word, value); /* T1: after the fields */
}

#endif
