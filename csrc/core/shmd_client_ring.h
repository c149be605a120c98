/* shmd_client_ring.h: the control segment of one client: its requests to the driver, and what it says of its leases
 * (core/shmd_client_ring.c). Internal. */
#ifndef SHMD_CLIENT_RING_H
#define SHMD_CLIENT_RING_H

#include "../shmd_abi.h"

#include <pthread.h>

/* ---- the segment: made by the driver, mapped writable by its client, read-only by the driver ---- */

uint64_t shmd_client_ring_footprint(void);
int shmd_client_ring_init(void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id, uint64_t now_ns);
    /* All but the magic. The driver stores 0 in the client's cursor as well. 0, SHMD_E_INVALID */
int shmd_client_ring_check(const void *base, uint64_t bytes, uint64_t client_id, uint64_t boot_id);
    /* Whether this is that client's segment, of this layout; boot_id 0: any. SHMD_E_LAYOUT with a text. Nothing in the segment is an
       offset or a size, so nothing of it has to be kept. */

/* ---- the client ---- */

typedef struct shmd_client_ring {   /* private memory of the client */
    shmd_client_control_t *control;
    const uint64_t *cursor;         /* the driver's, in the client's record */
    uint64_t tail;                  /* the shared one is published, never read back */
    uint64_t nonce;
    uint32_t who;
    uint32_t fork_generation;
    pthread_mutex_t lock;           /* between threads of this process; nobody waits, calls out or rings while holding it */
} shmd_client_ring_t;

int shmd_client_ring_open(shmd_client_ring_t *ring, shmd_client_control_t *control, const uint64_t *cursor, uint32_t client_index,
                          uint64_t nonce);
    /* For a segment that no request was written into yet. 0, SHMD_E_SYSTEM */
void shmd_client_ring_close(shmd_client_ring_t *ring); /* no other thread is inside any more */
int shmd_client_ring_send(shmd_client_ring_t *ring, shmd_request_t *request);
    /* From any thread; never waits. Fills position and checksum. After SHMD_OK the caller rings (shmd_doorbell_ring).
       SHMD_BACK_PRESSURED: the driver has not read the last SHMD_CLIENT_REQUESTS requests. SHMD_E_CORRUPT: the driver's
       cursor is not within the ring: its segment was truncated or written over. SHMD_E_FORKED. */
int shmd_client_ring_confirm(shmd_client_ring_t *ring, uint32_t entry, uint64_t lease_id);
    /* The client has mapped this lease's stream. `entry` comes from the driver's answer. Needs no room and no driver.
       0; SHMD_E_CORRUPT: there is no such entry; SHMD_E_FORKED. */
int shmd_client_ring_detach(shmd_client_ring_t *ring, uint32_t entry, uint64_t lease_id, uint32_t how);
    /* Likewise: the client uses this lease no more. how: SHMD_ENTRY_DETACHED (a clean end) or SHMD_ENTRY_ABORTED. */
int shmd_doorbell_ring(int connection);
    /* After the calls above: wakes the driver by one byte; never waits. 0, also when the socket is full: then the driver has
       yet to read, and looks afterwards. SHMD_E_DRIVER_UNAVAILABLE: the connection is over; a successor finds what was
       written. SHMD_E_SYSTEM. The caller sees to it that no thread closes the descriptor meanwhile. */

/* ---- the driver ---- */

typedef struct shmd_client_ring_reader { /* private memory of the driver */
    const shmd_client_control_t *control;
    uint64_t *published;            /* the cursor in the client's record */
    uint64_t cursor;
    uint64_t client_id;
    uint64_t nonce;
    uint32_t who;
    uint32_t is_polled;             /* 1: poll found a request at the cursor */
} shmd_client_ring_reader_t;

void shmd_client_ring_reader_init(shmd_client_ring_reader_t *reader, const shmd_client_control_t *control, uint64_t *cursor,
                                  uint64_t client_id, uint32_t client_index, uint64_t nonce);
    /* Goes on at *cursor, which a new driver finds as its predecessor left it. */
int shmd_client_ring_poll(shmd_client_ring_reader_t *reader, shmd_request_t *out);
    /* 1: the next request, a private copy that is whole and of this client; the same again until shmd_client_ring_advance.
       0: none. SHMD_E_CORRUPT with a text: bad bytes, or a tail that is impossible. Only this client can have written them. */
void shmd_client_ring_advance(shmd_client_ring_reader_t *reader);
    /* Past what poll found, good or bad. Does nothing where poll found no request: an impossible tail stays. */
int shmd_client_ring_rests(const shmd_client_ring_reader_t *reader); /* 1: a poll would return 0 */
int shmd_client_ring_look(const shmd_client_control_t *control, uint32_t entry, uint64_t lease_id);
    /* SHMD_ENTRY_*: what the client says of this lease; a detach counts more than a confirmation. SHMD_E_CORRUPT: no detach has
       that low byte. SHMD_E_INVALID: there is no such entry. */

#endif
