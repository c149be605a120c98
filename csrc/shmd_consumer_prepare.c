/* shmd_consumer_prepare.c: the next epoch of a consumer is mapped before its poll enters it, by whichever thread has the time.
 *
 *     shmd_consumer_prepare --exchange--> prepared --exchange--> the consumer's own thread, in shmd_consumer_wire
 *              ^                                                        |
 *              '----exchange---- spent <----exchange---- an epoch that it has left, in unmap
 *
 * A mapping belongs to the thread that took it out of one of the two words by an exchange; nobody looks into one that stands
 * there. What stands in `prepared` may be of an epoch that its consumer has entered by itself meanwhile: the consumer compares.
 */
#include "shmd_internal.h"

static shmd_mapping *exchange(void **word, shmd_mapping *mapping) { return shmd_exchange_pointer(word, mapping); } /* N1 */

shmd_mapping *shmd_consumer_take_prepared(shmd_consumer *c, uint32_t epoch)
{
    shmd_mapping *mapping = exchange(&c->prepared, NULL);
    if (mapping == NULL || mapping->epoch == epoch)
        return mapping;
    shmd_consumer_discard(c, mapping);
    return NULL;
}

void shmd_consumer_discard(shmd_consumer *c, shmd_mapping *mapping)
{
    if (mapping != NULL && shmd_load32_relaxed(&c->prepared_epoch) != 0) /* somebody calls shmd_consumer_prepare: unmapping takes as long as mapping */
        mapping = exchange(&c->spent, mapping);
    shmd_mapping_free(mapping);
}

void shmd_consumer_prepared_free(shmd_consumer *c)
{
    shmd_mapping_free(exchange(&c->prepared, NULL));
    shmd_mapping_free(exchange(&c->spent, NULL));
}

/* The next epoch that this consumer is wired to. 1: its record; 0: there is none. */
static int next_epoch(const shmd_consumer *c, shmd_epoch_record_t *record)
{
    uint32_t index;
    uint64_t bit = (uint64_t)1 << (c->gate_index & 63); /* gate_bit is the owner's, and damage clears it */
    return shmd_stream_next_epoch(c->client, c->stream_index, c->stream_id, shmd_load32_relaxed(&c->last_epoch), bit, record, &index);
}

int shmd_consumer_prepare(shmd_consumer *c)
{
    shmd_epoch_record_t record, again;
    if (shmd_consumer_check_fork(c) != SHMD_OK)
        return SHMD_E_FORKED;
    shmd_mapping *mapping = exchange(&c->spent, NULL);
    shmd_mapping_free(mapping);
    if (!next_epoch(c, &record))
        return 0;
    if (shmd_load32_relaxed(&c->prepared_epoch) == record.epoch)
        return 1;
    int rc = shmd_mapping_open(c->client, &record, SHMD_ROLE_CONSUMER, &mapping);
    if (rc != SHMD_OK) /* perhaps it was retired in between: an ungated reader keeps no epoch */
        return next_epoch(c, &again) && again.epoch == record.epoch ? rc : 0;
    shmd_store32_relaxed(&c->prepared_epoch, record.epoch);
    shmd_mapping_free(exchange(&c->prepared, mapping));
    return 1;
}
