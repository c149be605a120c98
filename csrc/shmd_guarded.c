/* shmd_guarded.c: the handles for callers that cannot promise one thread at a time nor that nobody forks: Python. Each
 * call takes the handle, works, and gives it back; a second thread inside is told so. Several steps go into one call,
 * because crossing the border costs more than a message. The consumer's are in shmd_guarded_consumer.c. */
#include "shmd_internal.h"

#include <sched.h>
#include <stdlib.h>

/* ---- what guards a handle --------------------------------------------------------------- */

/* A thread that waits inside sees `closing` and leaves; one that stays for half a second keeps the handle. 1: the caller
 * has it and must close it; 0: somebody stays inside; -1: somebody else has closed it. */
int shmd_handle_take_over(uint32_t *busy, uint32_t *closing)
{
    enum { PATIENCE_NS = 500000000 };
    uint64_t deadline_ns = shmd_deadline(PATIENCE_NS);
    (void)shmd_cas32(closing, SHMD_HANDLE_OPEN, SHMD_HANDLE_CLOSING);
    while (shmd_exchange32(busy, 1) != 0) {
        if (shmd_load32_acquire(closing) == SHMD_HANDLE_CLOSED)
            return -1;
        if (shmd_now_ns() > deadline_ns) {
            (void)shmd_cas32(closing, SHMD_HANDLE_CLOSING, SHMD_HANDLE_OPEN);
            return 0;
        }
        (void)sched_yield();
    }
    if (shmd_load32_acquire(closing) != SHMD_HANDLE_CLOSED)
        return 1;
    shmd_handle_leave(busy);
    return -1;
}

/* A closed handle stays, as a tombstone, until its owner frees it: a thread that still has its address is told so. */
int shmd_handle_none(const char *what, const char *stream) { return shmd_fail(SHMD_E_CLOSED, "%s%s: this handle is closed", what, stream); }

/* ---- producer --------------------------------------------------------------------------- */

static int enter_producer(shmd_producer *p)
{
    if (p == NULL)
        return shmd_handle_none("producer", "");
    if (p->fork_generation != shmd_fork_generation())
        return shmd_fail(SHMD_E_FORKED, "stream %s: this producer was made before fork; attach a new one in the child", p->stream);
    if (shmd_exchange32(&p->busy, 1) != 0)
        return shmd_fail(SHMD_E_CONCURRENT, "stream %s: another thread is inside this producer; give each thread its own", p->stream);
    if (shmd_load32_acquire(&p->closing) != SHMD_HANDLE_CLOSED)
        return SHMD_OK;
    shmd_handle_leave(&p->busy);
    return shmd_handle_none("producer of stream ", p->stream);
}

int shmd_guarded_publish(shmd_producer *p, const uint8_t *data, uint32_t length, uint16_t type)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_publish_inline(p, data, length, type);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_publish_flags(shmd_producer *p, const uint8_t *head, uint32_t head_bytes, const void *data, uint64_t bytes, uint16_t type,
                               uint16_t flags)
{
    void *room;
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = head_bytes % 8 == 0 ? SHMD_OK : shmd_fail(SHMD_E_INVALID, "head of %u bytes: expected a multiple of 8", head_bytes);
    rc = rc ? rc : shmd_producer_check_length(p, bytes > UINT64_MAX - head_bytes ? UINT64_MAX : head_bytes + bytes);
    rc = rc ? rc : shmd_claim(p, (uint32_t)(head_bytes + bytes), &room);
    if (rc == SHMD_OK) {
        shmd_copy_to_shared(room, head, head_bytes);
        shmd_copy_to_shared((unsigned char *)room + head_bytes, data, (size_t)bytes); /* tensor heads are multiples of 64 */
        rc = shmd_commit_flags(p, (uint32_t)(head_bytes + bytes), type, flags);
    }
    shmd_handle_leave(&p->busy);
    return rc;
}

int64_t shmd_guarded_publish_records(shmd_producer *p, const void *records, uint32_t record_bytes, uint64_t stride, uint64_t n, uint64_t timeout_ns)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    int64_t done = shmd_publish_strided(p, records, record_bytes, stride, n, timeout_ns);
    shmd_handle_leave(&p->busy);
    return done;
}

int64_t shmd_guarded_claim(shmd_producer *p, uint32_t length)
{
    void *data = NULL;
    int64_t rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = p->claim_open ? shmd_producer_room(p, 0) : shmd_claim(p, length, &data);
    if (rc == SHMD_OK)
        rc = (unsigned char *)data - (p->claim_arena_bytes != 0 ? p->arena : p->slots);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_commit(shmd_producer *p, uint32_t length, uint16_t type, uint16_t flags)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_commit_flags(p, length, type, flags);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_abort(shmd_producer *p)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_abort(p);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_wait_room(shmd_producer *p, uint32_t length, uint64_t timeout_ns)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_producer_wait_room(p, length, timeout_ns);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_producer_close(shmd_producer *p, int aborted)
{
    if (p == NULL || shmd_load32_acquire(&p->closing) == SHMD_HANDLE_CLOSED)
        return SHMD_OK;
    if (p->fork_generation != shmd_fork_generation())
        return enter_producer(p);
    int taken = shmd_handle_take_over(&p->busy, &p->closing);
    if (taken <= 0)
        return taken < 0 ? SHMD_OK : shmd_fail(SHMD_E_CONCURRENT, "stream %s: another thread stays inside this producer; it was not closed", p->stream);
    int rc = shmd_producer_end(p, aborted);
    shmd_store32_release(&p->closing, SHMD_HANDLE_CLOSED);
    shmd_handle_leave(&p->busy);
    return rc;
}

shmd_mapping *shmd_producer_mapping(shmd_producer *p) { return p->mapping; }

void *shmd_producer_memory(const shmd_producer *p, int in_arena, uint64_t *bytes)
{
    *bytes = 2 * (in_arena ? p->arena_bytes : (p->mask + 1) * p->slot_bytes); /* both are mapped twice in a row */
    return in_arena ? p->arena : p->slots;
}

void shmd_guarded_producer_free(shmd_producer *p)
{
    if (p != NULL && shmd_load32_acquire(&p->closing) == SHMD_HANDLE_CLOSED)
        free(p);
}
