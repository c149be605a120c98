/* shmd_client_ring.c: the control segment of one client.
 *
 * A ring of SHMD_CLIENT_REQUESTS requests that one client writes and one driver reads. A position is a 64-bit number; its slot is
 * position % SHMD_CLIENT_REQUESTS. The client owns the slots from tail on, up to one ring past the driver's cursor; the driver owns
 * those from its cursor to tail. Each side moves its own word only, so nobody claims, skips or repairs anything. The cursor
 * stands in the client's record, which clients cannot write.
 *
 * Beside the ring stands a table with an entry for each lease of the client. The driver says in its answer which entry a lease has.
 * An entry may serve one lease after another, and a thread may still hold a handle of the earlier one. Lease ids only grow, so
 * a note of an earlier lease never replaces one of a later lease.
 *
 * The segment's one writer is its client. Whatever else stands there harms that client alone.
 */
#include "shmd_client_ring.h"

#include "../shmd_failpoint.h"
#include "../shmd_internal.h"

#include <sys/socket.h>

enum { HOW_BITS = 8 };

/* ---- the segment -------------------------------------------------------------------------- */

uint64_t shmd_client_ring_footprint(void) { return shmd_round_up(sizeof(shmd_control_t), shmd_page_bytes()); }

int shmd_client_ring_init(void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id, uint64_t now_ns)
{
    shmd_control_t *control = base;
    if (bytes != shmd_client_ring_footprint())
        return shmd_fail(SHMD_E_INVALID, "a client's control segment of %llu bytes: expected %llu", (unsigned long long)bytes,
                         (unsigned long long)shmd_client_ring_footprint());
    memset(base, 0, (size_t)bytes);
    control->header = (shmd_header_t){.layout_version = SHMD_LAYOUT_VERSION, .kind = SHMD_SEGMENT_CONTROL, .segment_bytes = bytes,
                                      .boot_id = boot_id, .created_ns = now_ns};
    control->client_id = client_id;
    control->request_count = SHMD_CLIENT_REQUESTS;
    control->lease_count = SHMD_CLIENT_LEASES;
    return SHMD_OK;
}

int shmd_client_ring_check(const void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id)
{
    const shmd_control_t *control = base;
    if (bytes < sizeof *control)
        return shmd_fail(SHMD_E_LAYOUT, "a client's control segment of %llu bytes: expected %llu", (unsigned long long)bytes,
                         (unsigned long long)shmd_client_ring_footprint());
    int rc = shmd_header_check(base, bytes, SHMD_SEGMENT_CONTROL, boot_id, 0, 0);
    if (rc != SHMD_OK)
        return rc;
    uint64_t found_id = shmd_load_relaxed(&control->client_id);
    uint32_t requests = shmd_load32_relaxed(&control->request_count), leases = shmd_load32_relaxed(&control->lease_count);
    if (found_id != client_id)
        return shmd_fail(SHMD_E_LAYOUT, "control segment of client %llu, expected that of client %llu", (unsigned long long)found_id,
                         (unsigned long long)client_id);
    if (requests != SHMD_CLIENT_REQUESTS || leases != SHMD_CLIENT_LEASES)
        return shmd_fail(SHMD_E_LAYOUT, "control segment of client %llu has %u requests and %u leases, expected %d and %d",
                         (unsigned long long)client_id, requests, leases, SHMD_CLIENT_REQUESTS, SHMD_CLIENT_LEASES);
    return SHMD_OK;
}

/* ---- the client --------------------------------------------------------------------------- */

int shmd_client_ring_open(shmd_client_ring_t *ring, shmd_control_t *control, const uint64_t *cursor, uint32_t client_index,
                          uint64_t nonce)
{
    *ring = (shmd_client_ring_t){.control = control, .cursor = cursor, .tail = shmd_load_acquire(cursor), .nonce = nonce,
                                 .who = client_index + 1, .fork_generation = shmd_fork_generation()};
    errno = pthread_mutex_init(&ring->lock, NULL);
    return errno == 0 ? SHMD_OK : shmd_fail_errno(SHMD_CALL_OTHER, "the lock of the control ring of client %u", client_index);
}

void shmd_client_ring_close(shmd_client_ring_t *ring)
{
    if (!shmd_is_forked(ring->fork_generation)) /* else a thread of the parent may hold it */
        (void)pthread_mutex_destroy(&ring->lock);
}

static int lock(shmd_client_ring_t *ring)
{
    if (shmd_is_forked(ring->fork_generation))
        return shmd_fail(SHMD_E_FORKED, "this client belongs to the process that connected it: connect again in the child");
    (void)pthread_mutex_lock(&ring->lock);
    return SHMD_OK;
}

/* Either the driver sees the stores before this fence, or the byte that the caller sends next finds room (Q3). */
static void unlock(shmd_client_ring_t *ring)
{
    (void)pthread_mutex_unlock(&ring->lock);
    shmd_fence_seq_cst();
}

int shmd_client_ring_send(shmd_client_ring_t *ring, shmd_request_t *request)
{
    int rc = lock(ring);
    if (rc != SHMD_OK)
        return rc;
    uint64_t cursor = shmd_load_acquire(ring->cursor); /* Q2 */
    uint64_t tail = ring->tail;
    if (tail - cursor < SHMD_CLIENT_REQUESTS) {
        request->position = tail;
        request->checksum = shmd_request_checksum(request, ring->who, ring->nonce);
        shmd_copy_to_shared(&ring->control->requests[tail % SHMD_CLIENT_REQUESTS], request, sizeof *request);
        SHMD_FAILPOINT("control.written");
        ring->tail = tail + 1;
        shmd_store_release(&ring->control->tail, tail + 1); /* Q1 */
        SHMD_FAILPOINT("control.committed");
    }
    unlock(ring);
    if (tail - cursor < SHMD_CLIENT_REQUESTS)
        return SHMD_OK;
    if (tail - cursor == SHMD_CLIENT_REQUESTS)
        return shmd_fail(SHMD_BACK_PRESSURED, "control ring full: %d requests of this client wait for the driver", SHMD_CLIENT_REQUESTS);
    return shmd_fail(SHMD_E_CORRUPT, "the driver's cursor in this client's ring is %llu, expected %llu to %llu: its segment was damaged",
                     (unsigned long long)cursor, (unsigned long long)(tail - SHMD_CLIENT_REQUESTS), (unsigned long long)tail);
}

/* Stores a note of a lease unless there is one of a later lease. `shift`: where the note's lease id begins. */
static int note(shmd_client_ring_t *ring, uint32_t entry, uint64_t *word, uint64_t value, unsigned shift)
{
    if (entry >= SHMD_CLIENT_LEASES)
        return shmd_fail(SHMD_E_CORRUPT, "lease entry %u of %d in the driver's answer", entry, SHMD_CLIENT_LEASES);
    int rc = lock(ring);
    if (rc != SHMD_OK)
        return rc;
    if (shmd_load_relaxed(word) >> shift <= value >> shift)
        shmd_store_release(word, value); /* L2, Q4 */
    SHMD_FAILPOINT("entry.noted");
    unlock(ring);
    return SHMD_OK;
}

int shmd_client_ring_confirm(shmd_client_ring_t *ring, uint32_t entry, uint64_t lease_id)
{
    return note(ring, entry, &ring->control->leases[entry % SHMD_CLIENT_LEASES].confirmed, lease_id, 0);
}

int shmd_client_ring_detach(shmd_client_ring_t *ring, uint32_t entry, uint64_t lease_id, uint32_t how)
{
    if (how != SHMD_ENTRY_DETACHED && how != SHMD_ENTRY_ABORTED)
        return shmd_fail(SHMD_E_INVALID, "a lease ends as SHMD_ENTRY_DETACHED (%d) or SHMD_ENTRY_ABORTED (%d), not as %u",
                         SHMD_ENTRY_DETACHED, SHMD_ENTRY_ABORTED, how);
    return note(ring, entry, &ring->control->leases[entry % SHMD_CLIENT_LEASES].detached, lease_id << HOW_BITS | how, HOW_BITS);
}

int shmd_doorbell_ring(int connection)
{
    const char byte = 0;
    ssize_t sent;
    do
        sent = send(connection, &byte, sizeof byte, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent >= 0 || errno == EAGAIN)
        return SHMD_OK;
    if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
        return shmd_fail(SHMD_E_DRIVER_UNAVAILABLE, "the driver's end of this connection is closed: what was written for it waits for the next driver");
    return shmd_fail_errno(SHMD_CALL_OTHER, "waking the driver through its connection");
}

/* ---- the driver --------------------------------------------------------------------------- */

void shmd_client_ring_reader_init(shmd_client_ring_reader_t *reader, const shmd_control_t *control, uint64_t *cursor,
                                  uint64_t client_id, uint32_t client_index, uint64_t nonce)
{
    *reader = (shmd_client_ring_reader_t){.control = control, .published = cursor, .cursor = shmd_load_relaxed(cursor),
                                          .client_id = client_id, .nonce = nonce, .who = client_index + 1};
}

static int check(const shmd_client_ring_reader_t *r, const shmd_request_t *request)
{
    if (request->position != r->cursor)
        return shmd_fail(SHMD_E_CORRUPT, "request of client %llu says position %llu, it stands at %llu", (unsigned long long)r->client_id,
                         (unsigned long long)request->position, (unsigned long long)r->cursor);
    if (request->client_id != r->client_id)
        return shmd_fail(SHMD_E_CORRUPT, "request in the ring of client %llu says that it is of client %llu", (unsigned long long)r->client_id,
                         (unsigned long long)request->client_id);
    if (request->checksum != shmd_request_checksum(request, r->who, r->nonce))
        return shmd_fail(SHMD_E_CORRUPT, "request of client %llu at position %llu: wrong checksum", (unsigned long long)r->client_id,
                         (unsigned long long)r->cursor);
    return 1;
}

int shmd_client_ring_poll(shmd_client_ring_reader_t *r, shmd_request_t *out)
{
    uint64_t tail = shmd_load_acquire(&r->control->tail); /* Q1 */
    r->is_polled = tail - r->cursor - 1 < SHMD_CLIENT_REQUESTS;
    if (tail == r->cursor)
        return 0;
    if (!r->is_polled)
        return shmd_fail(SHMD_E_CORRUPT, "client %llu says that its next request has position %llu, expected %llu to %llu",
                         (unsigned long long)r->client_id, (unsigned long long)tail, (unsigned long long)r->cursor,
                         (unsigned long long)(r->cursor + SHMD_CLIENT_REQUESTS));
    /* Once; the copy is what is checked and used. */
    shmd_copy_from_shared(out, &r->control->requests[r->cursor % SHMD_CLIENT_REQUESTS], sizeof *out);
    return check(r, out);
}

void shmd_client_ring_advance(shmd_client_ring_reader_t *r)
{
    if (!r->is_polled)
        return;
    r->is_polled = 0;
    shmd_store_release(r->published, ++r->cursor); /* Q2: after the copy */
    SHMD_FAILPOINT("control.cursor");
}

int shmd_client_ring_rests(const shmd_client_ring_reader_t *r) { return shmd_load_relaxed(&r->control->tail) == r->cursor; }

int shmd_client_ring_look(const shmd_control_t *control, uint32_t entry, uint64_t lease_id)
{
    if (entry >= SHMD_CLIENT_LEASES)
        return shmd_fail(SHMD_E_INVALID, "lease entry %u of %d", entry, SHMD_CLIENT_LEASES);
    uint64_t detached = shmd_load_acquire(&control->leases[entry].detached); /* Q4 */
    uint32_t how = (uint32_t)detached & 0xff;
    if (detached >> HOW_BITS == lease_id) {
        if (how != SHMD_ENTRY_DETACHED && how != SHMD_ENTRY_ABORTED)
            return shmd_fail(SHMD_E_CORRUPT, "lease %llu was detached as %u, expected %d or %d", (unsigned long long)lease_id, how,
                             SHMD_ENTRY_DETACHED, SHMD_ENTRY_ABORTED);
        return (int)how;
    }
    return shmd_load_acquire(&control->leases[entry].confirmed) == lease_id ? SHMD_ENTRY_CONFIRMED : SHMD_ENTRY_NONE; /* L2 */
}
