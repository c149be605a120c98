/* test_record.c: records that are rewritten while others read them are read whole, or refused. fault: 46 (threads) */
#include "rig.h"

enum { EPOCHS_SEEN = 8 };

static uint64_t seal_of(uint32_t epoch) { return (uint64_t)epoch * 1000003u; }
static uint32_t reason_of(uint32_t epoch) { return SHMD_REASON_CLOSED + epoch % 8; }

static void set(void *field, const void *value, size_t bytes) { shmd_copy_to_shared(field, value, bytes); }

/* As the driver does it: marked, filled, opened; sealed; freed, with its end left to be read. */
static void live_through(shmd_epoch_record_t *record, uint32_t epoch)
{
    shmd_epoch_record_t filled = {.epoch = epoch, .stream_id = epoch, .slots = epoch, .arena_bytes = seal_of(epoch), .data_bytes = seal_of(epoch)};
    uint64_t end = (uint64_t)reason_of(epoch) << 32 | epoch; /* gate_count, end_reason */
    (void)snprintf(filled.data_name, sizeof filled.data_name, "/epoch.%u", epoch);
    filled.gate_count = epoch;
    shmd_record_rewrite(&record->hot.state, SHMD_EPOCH_FREE);
    set((char *)record + sizeof record->hot, (char *)&filled + sizeof filled.hot, sizeof filled - sizeof filled.hot);
    shmd_store_relaxed(&record->hot.sealed_seq, 0);
    shmd_word_store_seq_cst(&record->hot.state, (uint64_t)epoch << 8 | SHMD_EPOCH_OPEN);
    set(&record->gate_count, &end, sizeof end);
    shmd_store_release(&record->hot.sealed_seq, seal_of(epoch));
    shmd_store_seq_cst(&record->hot.state, (uint64_t)epoch << 8 | SHMD_EPOCH_SEALED);
    shmd_word_store_seq_cst(&record->hot.state, (uint64_t)epoch << 8 | SHMD_EPOCH_RETIRED);
    shmd_word_store_seq_cst(&record->hot.state, (uint64_t)epoch << 8 | SHMD_EPOCH_FREE);
}

typedef struct reuse {
    shmd_epoch_record_t records[SHMD_EPOCH_RECORDS];
    uint32_t newest; /* atomic */
    uint32_t is_over;
} reuse_t;

static void *reuse_records(void *argument)
{
    reuse_t *r = argument;
    for (uint32_t epoch = 1; epoch <= test_scale(40000); epoch++) {
        shmd_store32_release(&r->newest, epoch);
        live_through(&r->records[epoch % SHMD_EPOCH_RECORDS], epoch);
    }
    shmd_store32_release(&r->is_over, 1);
    return NULL;
}

static void *look_back(void *argument)
{
    reuse_t *r = argument;
    uint64_t told = 0;
    while (!shmd_load32_acquire(&r->is_over) || told == 0) {
        uint32_t newest = shmd_load32_acquire(&r->newest);
        for (uint32_t back = 0; back < EPOCHS_SEEN && back < newest; back++) {
            uint32_t epoch = newest - back, reason = 0;
            uint64_t sealed_seq = 0;
            const shmd_epoch_record_t *record = &r->records[epoch % SHMD_EPOCH_RECORDS];
            shmd_epoch_record_t copy;
            if (shmd_epoch_end(record, epoch, &sealed_seq, &reason)) {
                told++;
                CHECK_EQ(sealed_seq, seal_of(epoch));
                CHECK_EQ(reason, reason_of(epoch));
            }
            if (shmd_epoch_copy(&copy, record)) {
                char name[SHMD_SEGMENT_NAME_BYTES];
                (void)snprintf(name, sizeof name, "/epoch.%u", copy.epoch);
                CHECK(copy.epoch % SHMD_EPOCH_RECORDS == epoch % SHMD_EPOCH_RECORDS);
                CHECK(copy.slots == copy.epoch && copy.stream_id == copy.epoch && copy.data_bytes == seal_of(copy.epoch));
                CHECK(strcmp(copy.data_name, name) == 0);
                if ((copy.hot.state & 0xff) == SHMD_EPOCH_FREE || (copy.hot.state & 0xff) == SHMD_EPOCH_SEALED)
                    CHECK(copy.hot.sealed_seq == seal_of(copy.epoch) && copy.end_reason == reason_of(copy.epoch));
            }
        }
    }
    return NULL;
}

static void test_late_readers_are_told_the_end_of_their_own_epoch_or_nothing(void)
{
    reuse_t *r = test_memory(sizeof *r);
    pthread_t readers[] = {test_thread(look_back, r), test_thread(look_back, r)};
    pthread_t driver = test_thread(reuse_records, r);
    test_join(driver);
    test_join(readers[0]);
    test_join(readers[1]);
    free(r);
}

static void test_a_record_says_how_its_epoch_ended_until_it_is_rewritten(void)
{
    shmd_epoch_record_t record = {.epoch = 5, .end_reason = SHMD_REASON_DIED, .hot = {.sealed_seq = 77}};
    static const uint32_t ended[] = {SHMD_EPOCH_SEALED, SHMD_EPOCH_RETIRED, SHMD_EPOCH_FREE};
    static const uint32_t going_on[] = {SHMD_EPOCH_OPEN, SHMD_EPOCH_SEALING};
    shmd_epoch_record_t copy;
    uint64_t sealed_seq;
    uint32_t reason;
    for (int i = 0; i < 3; i++) {
        record.hot.state = 5u << 8 | ended[i];
        CHECK_EQ(shmd_epoch_end(&record, 5, &sealed_seq, &reason), 1);
        CHECK_EQ(sealed_seq, 77);
        CHECK_EQ(reason, SHMD_REASON_DIED);
        CHECK_EQ(shmd_epoch_end(&record, 4, &sealed_seq, &reason), 0);
        CHECK_EQ(shmd_epoch_end(&record, 6, &sealed_seq, &reason), 0);
    }
    for (int i = 0; i < 2; i++) {
        record.hot.state = 5u << 8 | going_on[i];
        CHECK_EQ(shmd_epoch_end(&record, 5, &sealed_seq, &reason), 0);
        CHECK_EQ(shmd_epoch_copy(&copy, &record), 1);
    }
    record.hot.state = 5u << 8 | SHMD_EPOCH_RETIRED;
    record.end_reason = SHMD_REASON_NONE; /* given up by an adopting driver */
    CHECK_EQ(shmd_epoch_end(&record, 5, &sealed_seq, &reason), 0);
    shmd_record_rewrite(&record.hot.state, SHMD_EPOCH_FREE);
    CHECK_EQ(shmd_epoch_copy(&copy, &record), 0);
    CHECK_EQ(shmd_epoch_end(&record, 0, &sealed_seq, &reason), 0);
}

enum { FIELDS = sizeof(shmd_lease_record_t) / 8 };

static void *rewrite_entry(void *argument)
{
    uint64_t *words = argument;
    uint64_t filled[FIELDS];
    for (uint64_t use = 1; use <= test_scale(40000); use++) {
        for (int i = 0; i < FIELDS; i++)
            filled[i] = use;
        shmd_record_rewrite(words, (2 * use - 1) << 8 | SHMD_RECORD_USED);
        set(words + 1, filled + 1, sizeof filled - 8);
        shmd_word_store(words, (2 * use) << 8 | SHMD_RECORD_USED);
    }
    shmd_word_store(words, UINT64_MAX << 9 | SHMD_RECORD_ENDED);
    return NULL;
}

static void *copy_entry(void *argument)
{
    uint64_t copy[FIELDS] = {0};
    while ((copy[0] & 0xff) != SHMD_RECORD_ENDED) {
        if (!shmd_record_copy(copy, argument, sizeof copy))
            continue;
        CHECK((copy[0] >> 8 & 1) == 0);
        for (int i = 1; i < FIELDS && (copy[0] & 0xff) == SHMD_RECORD_USED; i++)
            CHECK_EQ(copy[i], copy[0] >> 9);
    }
    return NULL;
}

static void test_a_table_entry_is_copied_whole_or_not(void)
{
    uint64_t *words = test_memory(sizeof(shmd_lease_record_t));
    pthread_t reader = test_thread(copy_entry, words);
    pthread_t driver = test_thread(rewrite_entry, words);
    test_join(driver);
    test_join(reader);
    uint64_t copy[FIELDS];
    shmd_record_rewrite(words, 7u << 8 | SHMD_RECORD_USED); /* and killed: a copy taken within the rewriting would be torn */
    CHECK_EQ(shmd_record_copy(copy, words, sizeof copy), 0);
    free(words);
}

static void test_a_lease_whose_record_is_filled_anew_has_ended(void)
{
    rig_t rig;
    uint32_t reason = 0;
    shmd_lease_record_t copy;
    rig_start(&rig, 64, 64, 0, 0);
    uint64_t lease_id = rig_lease(&rig, 5, SHMD_LEASE_ACTIVE);
    shmd_lease_record_t *record = shmd_authority_lease(rig.authority, 5);
    CHECK_EQ(shmd_lease_live(&rig.client, 5, lease_id, &reason), 1);
    CHECK_EQ(shmd_lease_copy(&rig.client, 5, lease_id, &copy), 1);
    CHECK_EQ(shmd_lease_copy(&rig.client, 5, lease_id + 1, &copy), 0);
    CHECK_EQ(shmd_lease_copy(&rig.client, rig.client.tables.lease_max, lease_id, &copy), 0);
    shmd_record_rewrite(&record->word, ((record->word >> 8) + 1) << 8 | SHMD_LEASE_FREE); /* by a driver that was killed then */
    CHECK_EQ(shmd_lease_live(&rig.client, 5, lease_id, &reason), 0);
    rig_stop(&rig);
}

int main(void)
{
    RUN(test_late_readers_are_told_the_end_of_their_own_epoch_or_nothing);
    RUN(test_a_record_says_how_its_epoch_ended_until_it_is_rewritten);
    RUN(test_a_table_entry_is_copied_whole_or_not);
    RUN(test_a_lease_whose_record_is_filled_anew_has_ended);
    return test_report();
}
