/* ck.c: Concurrency Kit's ring, one producer and one consumer. It has no batches: they are a loop here. */
#include <ck_ring.h>

#include "peer.h"

typedef struct ring {
    ck_ring_t ring;
    peer_message_t buffer[PEER_SLOTS] CK_CC_CACHELINE;
} ring_t;

CK_RING_PROTOTYPE(peer, peer_message)

size_t peer_shared_bytes(void) { return sizeof(ring_t); }
void peer_make(void *shared) { ck_ring_init(&((ring_t *)shared)->ring, PEER_SLOTS); }

void *peer_open(void *shared, int which, int is_producer)
{
    (void)which, (void)is_producer;
    return shared;
}

uint64_t peer_push(void *queue, const peer_message_t *from, uint64_t n)
{
    ring_t *r = queue;
    uint64_t done = 0;
    while (done < n && CK_RING_ENQUEUE_SPSC(peer, &r->ring, r->buffer, (peer_message_t *)(uintptr_t)(from + done)))
        done++;
    return done;
}

uint64_t peer_pop(void *queue, peer_message_t *to, uint64_t n)
{
    ring_t *r = queue;
    uint64_t done = 0;
    while (done < n && CK_RING_DEQUEUE_SPSC(peer, &r->ring, r->buffer, to + done))
        done++;
    return done;
}

void peer_close(void *queue) { (void)queue; }
