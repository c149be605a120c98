/* shmd_bus_error.h: what a process does about a segment that another process has truncated (shmd_bus_error.c). Internal. */
#ifndef SHMD_BUS_ERROR_H
#define SHMD_BUS_ERROR_H

#include <stdint.h>

#define SHMD_GUARD_VARIABLE "SHMDRIVER_TRUNCATION_GUARD" /* "off" or "0": the handler is never installed */

/* Bits of an epoch's `damaged` word: which of its segments. */
enum { SHMD_DAMAGED_DATA = 1, SHMD_DAMAGED_GATES = 2 };

/* A handle that is told of damage to its mapping. Private memory; it stays allocated until the mapping is forgotten. */
typedef struct shmd_damage {
    uint32_t damaged;       /* bits: of which mappings */
    uint32_t inside;        /* how many handlers are about to store to *word (G4) */
    uint64_t word;          /* address of a handle's word, or 0 */
    uint64_t value;         /* what damage stores there: what the hot path compares then differs from what it expects */
} shmd_damage_t;

/* Enters a mapping into the table, before its first access. `span`: bytes of one file mapping, of which `bytes` holds one or two
 * in a row. SHMD_OK, SHMD_E_NO_MEMORY. */
int shmd_bus_error_watch(void *base, uint64_t bytes, uint64_t span, int writable);
/* Takes it out, before it is unmapped. */
void shmd_bus_error_forget(const void *base);
/* From now on damage to the mapping at `base` is told to *damage, by this bit. Damage from before is told at once. */
void shmd_bus_error_tell(const void *base, shmd_damage_t *damage, uint32_t bit);
/* From now on damage stores `value` to *word, which one thread reads plainly at each message. At once, if there is damage already. */
void shmd_damage_own(shmd_damage_t *damage, uint64_t *word, uint64_t value);
/* Not any more: nobody stores to the word when this returns. */
void shmd_damage_disown(shmd_damage_t *damage);
/* The file is about to be mapped over `base` again: clears the damage in the table. The caller clears its own word before. */
void shmd_bus_error_renew(const void *base);

#endif
