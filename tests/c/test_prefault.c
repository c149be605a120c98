/* Who maps an epoch populates it, rings and arenas of any size, when its driver says so; else page by page, as they are used.
 * fault: 61 (page faults of every first use) */
#include <sys/resource.h>

#include "rig.h"

enum { SLOTS = 131072, SLOT_BYTES = 256, LARGE_ARENA = 17 << 20 }; /* a ring of 32 MiB */

static uint64_t faults(void)
{
    struct rusage usage;
    CHECK_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
    return (uint64_t)usage.ru_minflt;
}

static void touch(void *memory, uint64_t bytes, int writes)
{
    volatile unsigned char *page = memory;
    for (uint64_t at = 0; at < bytes; at += shmd_page_bytes()) {
        unsigned char byte = page[at];
        if (writes)
            page[at] = byte;
    }
}

/* How many page faults the first use of every page of the epoch takes, both halves of what is mapped twice. */
static uint64_t first_use(uint32_t slots, uint64_t arena_bytes, uint32_t role, uint32_t flags)
{
    rig_t rig;
    shmd_epoch_record_t record;
    shmd_mapping *mapping;
    rig_start(&rig, slots, SLOT_BYTES, arena_bytes, 0);
    CHECK_EQ(shmd_epoch_copy(&record, &rig.stream->epochs[0]), 1);
    record.flags = flags;
    int writes = role == SHMD_ROLE_PRODUCER;
    CHECK_EQ(shmd_mapping_open(&rig.client, &record, role, &mapping), SHMD_OK);
    (void)faults();
    uint64_t before = faults();
    touch(mapping->ring, 2 * mapping->ring_bytes, writes);
    if (mapping->arena != NULL)
        touch(mapping->arena, 2 * mapping->arena_bytes, writes);
    touch(mapping->gates, mapping->gates_bytes, !writes);
    uint64_t met = faults() - before;
    shmd_mapping_free(mapping);
    rig_stop(&rig);
    return met;
}

static void test_no_page_fault_where_it_is_populated(void)
{
    CHECK_EQ(first_use(SLOTS, 0, SHMD_ROLE_PRODUCER, SHMD_ATTACH_PREFAULT), 0);
    CHECK_EQ(first_use(SLOTS, 0, SHMD_ROLE_CONSUMER, SHMD_ATTACH_PREFAULT), 0);
    CHECK_EQ(first_use(64, LARGE_ARENA, SHMD_ROLE_PRODUCER, SHMD_ATTACH_PREFAULT), 0);
    CHECK_EQ(first_use(64, LARGE_ARENA, SHMD_ROLE_CONSUMER, SHMD_ATTACH_PREFAULT), 0);
}

static void test_page_faults_where_it_is_not(void)
{
    CHECK(first_use(64, 1 << 20, SHMD_ROLE_PRODUCER, 0) > 0);
    CHECK(first_use(64, 1 << 20, SHMD_ROLE_CONSUMER, 0) > 0);
}

int main(void)
{
#if defined SHMD_TEST || defined SHMD_EMULATED
    SKIP("the memory of a sanitizer or of an emulator has page faults of its own");
#endif
    RUN(test_no_page_fault_where_it_is_populated);
    RUN(test_page_faults_where_it_is_not);
    return test_report();
}
