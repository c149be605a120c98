/* claim_window.c: a second mapping of a ring or an arena, for claims whose writer may keep pointers (Python's views and arrays).
 *
 * The core never writes through a window. So a window's pages can be replaced without a change to the core's own mapping.
 * A pointer that is kept then leads into a private copy, and changes no delivered message. */
#include "../shmd_internal.h"
#include "claim_window.h"

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

/* The whole pages that hold `bytes` at `start`. */
static uintptr_t first_page(const void *start) { return (uintptr_t)start & ~((uintptr_t)shmd_page_bytes() - 1); }

static size_t pages_bytes(const void *start, uint64_t bytes)
{
    return (size_t)shmd_round_up((uintptr_t)start + bytes - first_page(start), shmd_page_bytes());
}

int shmd_window_open(shmd_mapping *mapping, void *from, uint64_t bytes, shmd_window_t *out)
{
    unsigned char *start = mmap(NULL, (size_t)bytes * 2, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return shmd_fail_errno(SHMD_CALL_MAP, "reserving %llu bytes of address space for claims", (unsigned long long)bytes * 2);
    for (size_t half = 0; half < 2; half++) {
        /* mremap of 0 bytes of a shared mapping makes a second mapping of the same pages. */
        if (mremap(from, 0, (size_t)bytes, MREMAP_MAYMOVE | MREMAP_FIXED, start + half * (size_t)bytes) == MAP_FAILED) {
            int rc = shmd_fail_errno(SHMD_CALL_MAP, "mapping %llu bytes for claims", (unsigned long long)bytes);
            (void)munmap(start, (size_t)bytes * 2);
            return rc;
        }
    }
    /* Page by page: what is missing of one claim must not take the private copy of another. */
    int rc = shmd_bus_error_watch(start, bytes * 2, shmd_page_bytes(), 1);
    if (rc != SHMD_OK) {
        (void)munmap(start, (size_t)bytes * 2);
        return rc;
    }
    shmd_mapping_hold(mapping);
    shmd_bus_error_tell(start, &mapping->damage, SHMD_DAMAGED_DATA);
    out->mapping = mapping;
    out->start = start;
    out->bytes = bytes * 2;
    out->prefaults = mapping->prefaults;
    return SHMD_OK;
}

void shmd_window_prefault(void *start, uint64_t bytes)
{
    (void)madvise((void *)first_page(start), pages_bytes(start, bytes), MADV_POPULATE_WRITE); /* kernels before 5.14 fault the pages in one by one */
}

int shmd_window_take_back(void *start, uint64_t bytes)
{
    uintptr_t first = first_page(start);
    size_t whole = pages_bytes(start, bytes);
    void *copy = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (copy == MAP_FAILED)
        return shmd_fail_errno(SHMD_CALL_MAP, "a private copy of %llu bytes of a claim", (unsigned long long)whole);
    memcpy(copy, (const void *)first, whole);
    if (mremap(copy, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)first) != MAP_FAILED) /* at once: no access in between fails */
        return SHMD_OK;
    int rc = shmd_fail_errno(SHMD_CALL_MAP, "taking back %llu bytes of a claim", (unsigned long long)whole);
    (void)munmap(copy, whole);
    return rc;
}

void shmd_window_close(shmd_window_t *window)
{
    (void)shmd_segment_unmap(window->start, window->bytes);
    shmd_mapping_free(window->mapping);
}
