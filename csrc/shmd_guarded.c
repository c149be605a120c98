/* shmd_guarded.c: the handles for callers that cannot promise one thread at a time nor that nobody forks: Python. Each
 * call takes the handle, works, and gives it back; a second thread inside is told so. Several steps go into one call,
 * because crossing the border costs more than a message. The consumer's are in shmd_guarded_consumer.c. */
#include "shmd_internal.h"
#include "core/claim_window.h"

#include <stdlib.h>

uint64_t shmd_guard_patience_ns = 500000000;

/* ---- what guards a handle --------------------------------------------------------------- */

/* A closed handle stays, as a tombstone, until its owner frees it: a thread that still has its address is told so. */
int shmd_guard_refuse(const shmd_guard_t *guard, int code)
{
    if (code == SHMD_E_FORKED)
        return shmd_fail(code, "stream %s: this %s was made before fork; attach a new one in the child", guard->stream, guard->what);
    if (code == SHMD_E_CONCURRENT)
        return shmd_fail(code, "stream %s: another thread is inside this %s; give each thread its own", guard->stream, guard->what);
    return shmd_fail(code, "%s of stream %s: this handle is closed", guard->what, guard->stream);
}

int shmd_guard_none(const char *what) { return shmd_fail(SHMD_E_CLOSED, "%s: this handle is closed", what); }

/* Takes `busy`: 1; 0: it is closed already; SHMD_E_CONCURRENT. A thread that waits inside sees `closing` and leaves. */
static int take_from_others(const shmd_guard_t *guard, uint64_t deadline_ns)
{
    enum { LOOK_NS = 50000 };
    while (shmd_exchange32(guard->busy, 1) != 0) {
        if (shmd_is_closed(guard->closing))
            return 0;
        if (shmd_now_ns() > deadline_ns)
            return shmd_fail(SHMD_E_CONCURRENT, "stream %s: another thread stays inside this %s; it was not closed", guard->stream, guard->what);
        shmd_futex_wake(guard->closing); /* H2 */
        (void)shmd_futex_wait(guard->busy, 1, LOOK_NS); /* who leaves it wakes nobody */
    }
    if (!shmd_is_closed(guard->closing))
        return 1;
    shmd_handle_leave(guard->busy);
    return 0;
}

int shmd_guard_take_over(const shmd_guard_t *guard)
{
    uint64_t deadline_ns = shmd_deadline(shmd_load_relaxed(&shmd_guard_patience_ns));
    if (shmd_is_closed(guard->closing))
        return 0;
    if (shmd_is_forked(guard->fork_generation))
        return shmd_guard_refuse(guard, SHMD_E_FORKED);
    (void)shmd_add32(guard->closing, SHMD_HANDLE_CLOSING);
    shmd_futex_wake(guard->closing); /* H2: also for who sleeps beside the handle, and not inside */
    int rc = take_from_others(guard, deadline_ns);
    if (rc == 1)
        shmd_await_lookers(guard->lookers);
    else
        (void)shmd_sub32(guard->closing, SHMD_HANDLE_CLOSING);
    return rc;
}

int shmd_guard_try_over(const shmd_guard_t *guard)
{
    if (shmd_is_closed(guard->closing))
        return 0;
    if (shmd_is_forked(guard->fork_generation))
        return SHMD_E_FORKED;
    (void)shmd_add32(guard->closing, SHMD_HANDLE_CLOSING); /* this mark stays: nobody opens an abandoned handle again, and a thread that waits inside leaves */
    int is_inside = shmd_exchange32(guard->busy, 1) != 0;
    shmd_futex_wake(guard->closing); /* H2 */
    if (is_inside)
        return SHMD_E_CONCURRENT;
    int is_closed = shmd_is_closed(guard->closing);
    shmd_fence_seq_cst(); /* H1: as shmd_await_lookers */
    if (!is_closed && shmd_load32_acquire(guard->lookers) == 0)
        return 1;
    shmd_handle_leave(guard->busy);
    return is_closed ? 0 : SHMD_E_CONCURRENT;
}

/* ---- producer --------------------------------------------------------------------------- */

static shmd_guard_t guard_of(shmd_producer *p)
{
    return (shmd_guard_t){.busy = &p->busy, .closing = &p->closing, .lookers = &p->lookers, .fork_generation = p->fork_generation, .what = "producer", .stream = p->stream};
}

static int enter_producer(shmd_producer *p)
{
    if (p == NULL)
        return shmd_guard_none("producer");
    shmd_guard_t guard = guard_of(p);
    return shmd_guard_enter(&guard);
}

int shmd_producer_sleep(const shmd_producer *p, const uint32_t *word, uint32_t seen, uint64_t timeout_ns)
{
    enum { LOOK_NS = 20000000 }; /* where the kernel sleeps on one word only */
    const shmd_word_t words[] = {{.word = word, .seen = seen}, {.word = &p->closing, .seen = SHMD_HANDLE_OPEN}}; /* H2 */
    if (shmd_load32_acquire(&p->closing) != SHMD_HANDLE_OPEN)
        return shmd_fail(SHMD_E_CLOSED, "stream %s: producer was closed by another thread", p->stream);
    return shmd_futex_wait_any(words, 2, timeout_ns, LOOK_NS);
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

int shmd_guarded_wait_room_or(shmd_producer *p, uint32_t length, uint64_t timeout_ns, const shmd_word_t *other)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    rc = shmd_producer_wait_room_or(p, length, timeout_ns, other);
    shmd_handle_leave(&p->busy);
    return rc;
}

int shmd_guarded_wait_room(shmd_producer *p, uint32_t length, uint64_t timeout_ns)
{
    return shmd_guarded_wait_room_or(p, length, timeout_ns, NULL);
}

int64_t shmd_guarded_unread(shmd_producer *p, uint64_t bound)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    int64_t count = (int64_t)shmd_producer_unread(p, bound);
    shmd_handle_leave(&p->busy);
    return count;
}

int shmd_guarded_producer_close(shmd_producer *p, int aborted)
{
    if (p == NULL)
        return SHMD_OK;
    shmd_guard_t guard = guard_of(p);
    int rc = shmd_guard_take_over(&guard);
    if (rc != 1)
        return rc;
    rc = shmd_producer_end(p, aborted ? SHMD_END_ABORTED : SHMD_END_CLEAN);
    shmd_guard_closed(&guard);
    return rc;
}

int shmd_guarded_producer_abandon(shmd_producer *p)
{
    if (p == NULL)
        return SHMD_OK;
    shmd_guard_t guard = guard_of(p);
    int rc = shmd_guard_try_over(&guard);
    if (rc != 1)
        return rc;
    (void)shmd_producer_end(p, SHMD_END_ABANDONED);
    shmd_guard_closed(&guard);
    return SHMD_OK;
}

int shmd_guarded_window(shmd_producer *p, uint64_t length, shmd_window_t *out)
{
    int rc = enter_producer(p);
    if (rc != SHMD_OK)
        return rc;
    int is_arena = length > p->inline_max;
    out->inline_max = p->inline_max;
    rc = shmd_window_open(p->mapping, is_arena ? p->arena : p->slots, is_arena ? p->arena_bytes : (p->mask + 1) * p->slot_bytes, out);
    if (rc != SHMD_OK && shmd_mapping_is_damaged(p->mapping))
        rc = shmd_producer_ended(p); /* zero pages cannot be mapped a second time */
    shmd_handle_leave(&p->busy);
    return rc;
}
