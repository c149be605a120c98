/* shmd_record.c: the authority's records, read as shmd_seqlock.h says: table entries, and the epochs of a stream. */
#include "shmd_internal.h"

void shmd_record_rewrite(uint64_t *word, uint64_t value) { shmd_seqlock_rewrite(word, value); }

int shmd_record_copy(void *out, const void *record, uint64_t bytes)
{
    const uint64_t *word = record;
    uint64_t seen = shmd_seqlock_read(word);
    if ((seen >> 8 & 1) != 0)
        return 0; /* it is being rewritten */
    shmd_copy_from_shared(out, record, (size_t)bytes);
    memcpy(out, &seen, sizeof seen);
    return shmd_seqlock_unchanged(word, seen);
}

int shmd_epoch_copy(shmd_epoch_record_t *out, const shmd_epoch_record_t *record)
{
    uint64_t seen = shmd_seqlock_read(&record->hot.state);
    shmd_copy_from_shared(out, record, sizeof *out);
    out->hot.state = seen; /* not a later one: the other fields are at least as new */
    out->data_name[sizeof out->data_name - 1] = 0;
    out->gates_name[sizeof out->gates_name - 1] = 0;
    return seen >> 8 != 0 && shmd_seqlock_same(&record->hot.state, seen) && out->epoch == seen >> 8;
}

int shmd_epoch_end(const shmd_epoch_record_t *record, uint32_t epoch, uint64_t *sealed_seq, uint32_t *reason)
{
    uint64_t seen = shmd_seqlock_read(&record->hot.state); /* X2: the seal and its reason were stored before the state says so */
    uint32_t low = (uint32_t)(seen & 0xff);
    if (seen >> 8 != epoch || low == SHMD_EPOCH_OPEN || low == SHMD_EPOCH_SEALING)
        return 0;
    *reason = shmd_load32_relaxed(&record->end_reason);
    *sealed_seq = shmd_load_relaxed(&record->hot.sealed_seq);
    /* An epoch whose segments were lost is retired without a reason and without a seal: its leases have ended before (X2), and tell. */
    return shmd_seqlock_same(&record->hot.state, seen) && (low == SHMD_EPOCH_SEALED || *reason != SHMD_REASON_NONE);
}

int shmd_lease_copy(const shmd_client *client, uint32_t index, uint64_t lease_id, shmd_lease_record_t *out)
{
    const shmd_lease_record_t *record = shmd_client_lease(client, index);
    return record != NULL && shmd_record_copy(out, record, sizeof *out) && out->lease_id == lease_id;
}
