/* shmd_atomic.h: the only file with atomics, fences and racing copies.
 *
 * Shared words are plain integers in shmd_abi.h; they are touched only through these functions.
 * Every caller that orders something names its partner in a comment, and docs/MEMORY_MODEL.md
 * has the table of pairs.
 *
 * TSAN does not model fences. Its builds get read-modify-writes of one global word instead, which
 * orders at least as much as a fence does; the shipped code has real fences.
 */
#ifndef SHMD_ATOMIC_H
#define SHMD_ATOMIC_H

#include "shmd_failpoint.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#if defined(__SANITIZE_THREAD__)
#define SHMD_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SHMD_TSAN 1
#endif
#endif

static inline uint64_t shmd_load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t shmd_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t shmd_load_seq_cst(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void shmd_store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void shmd_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void shmd_store_seq_cst(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int shmd_cas(uint64_t *p, uint64_t expected, uint64_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

static inline uint64_t shmd_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_RELAXED); }

static inline uint32_t shmd_load32_relaxed(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint32_t shmd_load32_acquire(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void shmd_store32_relaxed(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void shmd_store32_release(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void shmd_store32_seq_cst(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint32_t shmd_add32(uint32_t *p, uint32_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
static inline uint32_t shmd_sub32(uint32_t *p, uint32_t n) { return __atomic_fetch_sub(p, n, __ATOMIC_ACQ_REL); }
static inline int shmd_cas32(uint32_t *p, uint32_t expected, uint32_t desired)
{
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline uint32_t shmd_or32(uint32_t *p, uint32_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST); }
static inline uint32_t shmd_exchange32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline void *shmd_exchange_pointer(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }

/* Several narrow fields that share an aligned word, all at once. */
typedef uint64_t __attribute__((may_alias)) shmd_fields_t;
static inline uint64_t shmd_load_fields(const void *p) { return __atomic_load_n((const shmd_fields_t *)p, __ATOMIC_RELAXED); }
static inline void shmd_store_fields(void *p, uint64_t v) { __atomic_store_n((shmd_fields_t *)p, v, __ATOMIC_RELAXED); }

static inline uint16_t shmd_load16_relaxed(const uint16_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void shmd_store16_relaxed(uint16_t *p, uint16_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }

#ifdef SHMD_TSAN
extern uint32_t shmd_tsan_fence_word;
static inline void shmd_fence_acquire(void) { (void)__atomic_fetch_add(&shmd_tsan_fence_word, 0, __ATOMIC_SEQ_CST); }
static inline void shmd_fence_release(void) { (void)__atomic_fetch_add(&shmd_tsan_fence_word, 0, __ATOMIC_SEQ_CST); }
static inline void shmd_fence_seq_cst(void) { (void)__atomic_fetch_add(&shmd_tsan_fence_word, 0, __ATOMIC_SEQ_CST); }
#else
static inline void shmd_fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static inline void shmd_fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void shmd_fence_seq_cst(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif

static inline void shmd_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

/* Asks for a line for writing, before it is needed. Orders nothing, touches nothing: a hint. Not __builtin_prefetch on
 * x86-64: without -mprfchw that asks for a shared copy, and the store pays for the line once more. */
static inline void shmd_prefetch_write(const void *p)
{
#if defined(__x86_64__)
    __asm__ __volatile__("prefetchw (%0)" : : "r"(p));
#else
    __builtin_prefetch(p, 1);
#endif
}

/* Racing copies. A plain memcpy that races is undefined, so words are copied one by one as relaxed
 * atomics; the shared side is 8-byte aligned and its room is a multiple of 8, so the last word may be
 * written or read whole. Large blocks go through the string instruction on x86-64, which is outside
 * the language's memory model and copies as memcpy does. What is larger still is written past the
 * caches: its reader, on another core, would have to fetch every line out of the writer's. */
enum { SHMD_COPY_FRESH_BYTES = 128, SHMD_COPY_BLOCK_BYTES = 768, SHMD_COPY_STREAM_BYTES = 256 << 10 };

#if defined(__x86_64__) && !defined(SHMD_TSAN)
static inline void shmd_copy_block(void *out, const void *in, size_t bytes)
{
    __asm__ __volatile__("rep movsb" : "+D"(out), "+S"(in), "+c"(bytes) : : "memory");
}
#define SHMD_HAVE_COPY_BLOCK 1

/* Non-temporal stores are ordered with nothing, so there is a fence on both sides of them. */
static __attribute__((noinline, unused)) void shmd_copy_stream(void *shared, const void *in, size_t bytes)
{
    unsigned char *out = (unsigned char *)shared;
    const unsigned char *from = (const unsigned char *)in;
    size_t lead = (size_t)(-(uintptr_t)out & 63);
    shmd_copy_block(out, from, lead);
    _mm_sfence(); /* P1, U2: what was said before is seen before any byte of the payload */
    for (out += lead, from += lead, bytes -= lead; bytes >= 64; bytes -= 64, out += 64, from += 64)
        for (int i = 0; i < 4; i++)
            _mm_stream_si128((__m128i *)(void *)out + i, _mm_loadu_si128((const __m128i *)(const void *)from + i));
    _mm_sfence(); /* P2: all of it is seen before the commit */
    shmd_copy_block(out, from, bytes);
}
#endif

/* As shmd_copy_block, for a few: one instruction stores two words at once. What is left of a length goes with words before
 * it, which are stored a second time: no loop over what is left. Failpoints want the words one by one. */
#if defined(__x86_64__) && !defined(SHMD_TSAN) && !defined(SHMD_FAILPOINTS)
typedef struct shmd_pair { uint64_t words[2]; } __attribute__((packed, may_alias)) shmd_pair_t;

static inline void shmd_store_pair(unsigned char *shared, const unsigned char *in)
{
    __m128i pair = _mm_loadu_si128((const __m128i *)(const void *)in);
    __asm__ __volatile__("movups %1, %0" : "=m"(*(shmd_pair_t *)(void *)shared) : "x"(pair));
}

/* Loads the words one by one: a load of two waits until the store of one of them has left the core's store buffer, and that
 * stands behind stores to lines that are still on their way. So for what the caller has only just written. */
static inline void shmd_store_fresh_pair(unsigned char *shared, const unsigned char *in)
{
    const shmd_pair_t *from = (const shmd_pair_t *)(const void *)in;
    __m128i pair;
    __asm__ __volatile__("movq %2, %0\n\tmovhps %3, %0\n\tmovups %0, %1"
                         : "=&x"(pair), "=m"(*(shmd_pair_t *)(void *)shared) : "m"(from->words[0]), "m"(from->words[1]));
}

/* 8 to 15 bytes. */
static inline void shmd_store_words(unsigned char *shared, const unsigned char *in, size_t bytes)
{
    uint64_t first, last;
    memcpy(&first, in, 8);
    memcpy(&last, in + bytes - 8, 8);
    __asm__ __volatile__("movq %2, %0\n\tmovq %3, %1"
                         : "=m"(*(uint64_t *)(void *)shared), "=m"(*(shmd_pair_t *)(void *)(shared + bytes - 8)) : "r"(first), "r"(last));
}
#define SHMD_HAVE_PAIRS 1
#endif

/* Private to shared. Writes up to 7 bytes past the end (zeros) within the last word. */
static inline void shmd_copy_words(void *shared, const void *in, size_t bytes)
{
    uint64_t *out = (uint64_t *)shared;
    const unsigned char *from = (const unsigned char *)in;
    uint64_t word;
    for (; bytes >= 8; bytes -= 8, from += 8) {
        SHMD_FAILPOINT("copy.word");
        memcpy(&word, from, 8);
        shmd_store_relaxed(out++, word);
    }
    if (bytes != 0) {
        word = 0;
        for (size_t i = 0; i < bytes; i++) /* a memcpy of an unknown length is a call */
            word |= (uint64_t)from[i] << 8 * i;
        shmd_store_relaxed(out, word);
    }
}

/* As shmd_copy_words. */
static inline void shmd_copy_to_shared(void *shared, const void *in, size_t bytes)
{
#ifdef SHMD_HAVE_COPY_BLOCK
    if (__builtin_expect(bytes > (size_t)SHMD_COPY_BLOCK_BYTES, 0)) {
        if (bytes < (size_t)SHMD_COPY_STREAM_BYTES)
            shmd_copy_block(shared, in, bytes);
        else
            shmd_copy_stream(shared, in, bytes);
        return;
    }
#endif
#ifdef SHMD_HAVE_PAIRS
    unsigned char *out = (unsigned char *)shared;
    const unsigned char *from = (const unsigned char *)in;
    if (__builtin_expect(bytes >= 16, 1)) {
        size_t last = bytes - 16, i = 0;
        for (; i + 16 < last; i += 32) {
            shmd_store_pair(out + i, from + i);
            shmd_store_pair(out + i + 16, from + i + 16);
        }
        if (i < last)
            shmd_store_pair(out + i, from + i);
        shmd_store_pair(out + last, from + last);
        return;
    }
    if (bytes >= 8) {
        shmd_store_words(out, from, bytes);
        return;
    }
#endif
    shmd_copy_words(shared, in, bytes);
}

/* As shmd_copy_to_shared, for a message that was probably written right before. */
static inline void shmd_copy_fresh_to_shared(void *shared, const void *in, size_t bytes)
{
#ifdef SHMD_HAVE_PAIRS
    if (__builtin_expect(bytes - 16 <= (size_t)(SHMD_COPY_FRESH_BYTES - 16), 1)) { /* 16 to SHMD_COPY_FRESH_BYTES */
        unsigned char *out = (unsigned char *)shared;
        const unsigned char *from = (const unsigned char *)in;
        size_t last = bytes - 16;
        for (size_t i = 0; i < last; i += 16)
            shmd_store_fresh_pair(out + i, from + i);
        shmd_store_fresh_pair(out + last, from + last);
        return;
    }
#endif
    shmd_copy_to_shared(shared, in, bytes);
}

/* Shared to private. Reads up to 7 bytes past the end within the last word. */
static inline void shmd_copy_from_shared(void *out, const void *shared, size_t bytes)
{
    const uint64_t *from = (const uint64_t *)shared;
    unsigned char *to = (unsigned char *)out;
    uint64_t word;
#ifdef SHMD_HAVE_COPY_BLOCK
    if (bytes > (size_t)SHMD_COPY_BLOCK_BYTES) {
        shmd_copy_block(out, shared, bytes);
        return;
    }
#endif
    for (; bytes >= 8; bytes -= 8, to += 8) {
        word = shmd_load_relaxed(from++);
        memcpy(to, &word, 8);
    }
    if (bytes != 0) {
        word = shmd_load_relaxed(from);
        memcpy(to, &word, bytes);
    }
}

#endif
