/* shmd_client_ring.h: the control segment of one client: its requests to the driver, and what it says of its leases
 * (core/shmd_client_ring.c). Internal. */
#ifndef SHMD_CLIENT_RING_H
#define SHMD_CLIENT_RING_H

#include "../shmd_abi.h"

#include <pthread.h>

typedef struct shmd_client_ring {   /* private memory of the client */
    shmd_control_t *control;
    const uint64_t *cursor;         /* the driver's, in the client's record */
    uint64_t tail;                  /* the shared one is published, never read back */
    uint64_t nonce;
    uint32_t who;
    uint32_t fork_generation;
    pthread_mutex_t lock;           /* between threads of this process; nobody waits, calls out or rings while holding it */
} shmd_client_ring_t;

int shmd_client_ring_open(shmd_client_ring_t *ring, shmd_control_t *control, const uint64_t *cursor, uint32_t client_index,
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

#endif
